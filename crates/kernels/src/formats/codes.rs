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

/// Decodes group `group` of a chunk at `at`.
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

/// Writes the codes of a chunk, given as groups of four.
pub(crate) fn pack<const BITS: usize>(groups: &[u32; 8], out: &mut [u8]) {
    let mut words = out.as_chunks_mut::<4>().0.iter_mut();
    let (mut width, mut below) = (8, 0);
    while width > 0 {
        if BITS & width != 0 {
            for (k, word) in words.by_ref().take(width).enumerate() {
                let mut parts = 0;
                for group in (k..8).step_by(width) {
                    parts |= (groups[group] >> below & mask(width)) << (group - k);
                }
                *word = parts.to_le_bytes();
            }
            below += width;
        }
        width /= 2;
    }
}

/// Undoes [`pack`].
pub(crate) fn unpack<const BITS: usize>(bytes: &[u8]) -> [u32; 8] {
    let mut groups = [0; 8];
    let mut words = bytes.as_chunks::<4>().0.iter();
    let (mut width, mut below) = (8, 0);
    while width > 0 {
        if BITS & width != 0 {
            for (k, &word) in words.by_ref().take(width).enumerate() {
                for group in (k..8).step_by(width) {
                    let part = u32::from_le_bytes(word) >> (group - k) & mask(width);
                    groups[group] |= part << below;
                }
            }
            below += width;
        }
        width /= 2;
    }
    groups
}

/// The lowest `width` bits of each of four bytes.
const fn mask(width: usize) -> u32 {
    0x0101_0101 * ((1 << width) - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check<const BITS: usize>(groups: [u32; 8]) -> Result<(), TestCaseError> {
        let groups = groups.map(|group| group & mask(BITS));
        let mut bytes = [0xff; CHUNK];
        pack::<BITS>(&groups, &mut bytes[..chunk_bytes(BITS)]);
        prop_assert_eq!(unpack::<BITS>(&bytes[..chunk_bytes(BITS)]), groups);
        Ok(())
    }

    proptest! {
        #[test]
        fn unpack_undoes_pack(groups: [u32; 8]) {
            check::<1>(groups)?;
            check::<2>(groups)?;
            check::<3>(groups)?;
            check::<4>(groups)?;
            check::<5>(groups)?;
            check::<6>(groups)?;
            check::<7>(groups)?;
            check::<8>(groups)?;
        }
    }
}
