/// A way to read memory.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    /// Returns something that depends on every byte.
    pub(crate) read: fn(&[u8]) -> u64,
}

/// The ways there are.
pub(crate) const WAYS: &[Way] = &[
    Way {
        name: "read",
        read: read::<0>,
    },
    #[cfg(target_arch = "x86_64")]
    Way {
        name: "read with prefetches",
        read: read::<PREFETCH_BYTES>,
    },
];

/// As far ahead as the products of panels ask for weights.
#[cfg(target_arch = "x86_64")]
const PREFETCH_BYTES: usize = 4096;

/// Reads line by line and asks for what lies `AHEAD` bytes on, if that is not 0.
///
/// The baseline's 16-byte loads measured as fast as wider ones: memory is the bound.
fn read<const AHEAD: usize>(bytes: &[u8]) -> u64 {
    let mut sums = [0; 8];
    for line in bytes.as_chunks::<64>().0 {
        if AHEAD > 0 {
            prefetch(line.as_ptr().wrapping_add(AHEAD));
        }
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum ^= u64::from_ne_bytes(*word);
        }
    }
    sums.iter().fold(0, |sum, part| sum ^ part)
}

#[inline(always)]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint and does not fault, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
