//! Unsigned codes of 1 to 8 bits, as panels keep them.
//!
//! A code is kept in parts of 8, 4, 2 and 1 bits, the lowest first: one part for each binary digit of its bits, so that
//! 6 bits are 4 and 2. Of a chunk, a part of `width` bits takes `width` words of four bytes. In the bytes of word `k` are
//! the parts of the four codes of groups `k`, `k + width` and so on, each `width` bits above the one before.

use super::{CHUNK, Lanes};
use crate::arch::Simd;

/// Bytes that a chunk takes.
pub(crate) const fn chunk_bytes(bits: usize) -> usize {
    CHUNK / 8 * bits
}

/// Decodes group `group` of the chunk at `at`.
#[inline(always)]
pub(crate) fn read<S: Simd, const BITS: usize>(
    s: S,
    block: Lanes<'_>,
    mut at: usize,
    group: usize,
) -> S::I32 {
    let mut codes = s.splat_i32(0);
    let (mut width, mut below) = (8, 0);
    while width > 0 {
        if BITS & width != 0 {
            let word = block.word(s, at + 4 * (group % width));
            let word = s.shift_right(word, (group / width * width) as u32);
            codes = s.or(codes, s.shift_left(s.and(word, mask(width)), below));
            at += 4 * width;
            below += width as u32;
        }
        width /= 2;
    }
    codes
}

/// Writes the codes of a chunk.
pub(crate) fn pack(bits: usize, codes: &[u8; CHUNK], out: &mut [u8]) {
    let groups = codes.as_chunks::<4>().0;
    let mut words = out.as_chunks_mut::<4>().0.iter_mut();
    let mut below = 0;
    for width in widths(bits) {
        for (k, word) in words.by_ref().take(width).enumerate() {
            let mut parts = 0;
            for group in (k..8).step_by(width) {
                let part = u32::from_le_bytes(groups[group]) >> below & mask(width);
                parts |= part << (group - k);
            }
            *word = parts.to_le_bytes();
        }
        below += width;
    }
}

/// Undoes [`pack`].
pub(crate) fn unpack(bits: usize, bytes: &[u8]) -> [u8; CHUNK] {
    let mut codes = [0; CHUNK];
    let groups = codes.as_chunks_mut::<4>().0;
    let mut words = bytes.as_chunks::<4>().0.iter();
    let mut below = 0;
    for width in widths(bits) {
        for (k, word) in words.by_ref().take(width).enumerate() {
            for group in (k..8).step_by(width) {
                let part = u32::from_le_bytes(*word) >> (group - k) & mask(width);
                let code = u32::from_le_bytes(groups[group]) | part << below;
                groups[group] = code.to_le_bytes();
            }
        }
        below += width;
    }
    codes
}

fn widths(bits: usize) -> impl Iterator<Item = usize> {
    [8, 4, 2, 1]
        .into_iter()
        .filter(move |width| bits & width != 0)
}

/// The lowest `width` bits of each of four bytes.
const fn mask(width: usize) -> u32 {
    0x0101_0101 * ((1 << width) - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn unpack_undoes_pack(codes: [u8; CHUNK], bits in 1..=8_usize) {
            let codes = codes.map(|code| (u32::from(code) & ((1 << bits) - 1)) as u8);
            let mut bytes = vec![0xff; chunk_bytes(bits)];
            pack(bits, &codes, &mut bytes);
            prop_assert_eq!(unpack(bits, &bytes), codes);
        }
    }
}
