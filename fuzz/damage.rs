//! Seeded damage to valid inputs, so that the fuzz targets' cases run as ordinary tests, the same each time.
//! `cargo +nightly fuzz run TARGET` goes on from there for as long as one likes.

/// Feeds `case` with `valid`, which it must accept, with every prefix of it, and with `count` damaged copies.
pub(crate) fn feed(valid: &[u8], count: u64, case: fn(&[u8]) -> bool) {
    assert!(case(valid), "valid before it is damaged: {valid:02x?}");
    for end in 0..valid.len() {
        case(&valid[..end]);
    }
    for seed in 0..count {
        let _on_panic = PrintSeed(seed);
        case(&Damage(seed).of(valid));
    }
}

/// Tells which seed it was when a case panics.
struct PrintSeed(u64);

impl Drop for PrintSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with seed {}", self.0);
        }
    }
}

/// A small generator (SplitMix64, <https://prng.di.unimi.it/splitmix64.c>): the same seed damages the same way everywhere.
struct Damage(u64);

impl Damage {
    /// Returns `valid` with one to four changes of the kinds that break parsers: flipped bits, cut ends, numbers at the
    /// edges of their types, repeated and missing pieces.
    fn of(&mut self, valid: &[u8]) -> Vec<u8> {
        let mut bytes = valid.to_vec();
        for _ in 0..=self.below(4) {
            self.change(&mut bytes);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            bytes.push(self.next() as u8);
            return;
        }
        let at = self.below(bytes.len());
        match self.below(5) {
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes.truncate(at),
            2 => {
                let number = EDGES[self.below(EDGES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][self.below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            3 => {
                let piece = bytes[at..bytes.len().min(at + 16)].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                bytes.drain(at..bytes.len().min(at + 1 + self.below(16)));
            }
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

const EDGES: [u64; 8] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];
