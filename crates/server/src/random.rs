//! Random bits from the operating system: seeds and identifiers.

/// Draws a seed for a request that gave none.
pub(crate) fn seed() -> u64 {
    u64::from_le_bytes(bytes())
}

/// Makes an identifier such as `chatcmpl-0123456789abcdef01234567`.
pub(crate) fn id(prefix: &str) -> String {
    format!("{prefix}{}", hex::encode(bytes::<12>()))
}

fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has random bytes");
    bytes
}
