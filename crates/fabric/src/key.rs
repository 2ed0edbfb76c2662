//! The secret that the members of a cell share.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// A 256-bit shared secret; it authenticates connections and is never sent over one.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; KEY_BYTES]);

impl Key {
    /// Returns the key of a token as people write it into a file; white space around it does not count.
    ///
    /// A token should be long and random: whoever gets a connection attempted towards them can guess at a weak one.
    #[must_use]
    pub fn from_token(token: &str) -> Self {
        Self(mac(b"shoal token", &[token.trim().as_bytes()]))
    }

    /// Returns a fresh key from the operating system's generator.
    #[must_use]
    pub fn random() -> Self {
        Self(random_bytes())
    }

    /// Returns a key bound to `label`; it tells nothing of this key nor of its other descendants.
    #[must_use]
    pub fn derive(&self, label: &[u8]) -> Self {
        Self(self.mac(&[b"shoal derive", label]))
    }

    /// Returns the key of 32 bytes that [`as_bytes`](Self::as_bytes) gave, as a child process reads them.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Returns the secret itself, to be handed to a child process over a pipe.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Returns HMAC-SHA256 over `parts`, each preceded by its length.
    pub(crate) fn mac(&self, parts: &[&[u8]]) -> [u8; KEY_BYTES] {
        mac(&self.0, parts)
    }

    /// Says, in constant time, whether `tag` is [`mac`](Self::mac) over `parts`.
    pub(crate) fn verify(&self, parts: &[&[u8]], tag: &[u8]) -> bool {
        keyed(&self.0, parts).verify_slice(tag).is_ok()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(redacted)")
    }
}

/// Returns bytes from the operating system's generator.
pub(crate) fn random_bytes() -> [u8; KEY_BYTES] {
    let mut bytes = [0; KEY_BYTES];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; KEY_BYTES] {
    keyed(key, parts).finalize().into_bytes().into()
}

fn keyed(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(&(part.len() as u64).to_le_bytes());
        mac.update(part);
    }
    mac
}

/// Length of a key, of a nonce and of an HMAC-SHA256 tag.
pub(crate) const KEY_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_around_a_token_does_not_count() {
        assert_eq!(Key::from_token(" fish \n"), Key::from_token("fish"));
        assert_ne!(Key::from_token("fish"), Key::from_token("fishes"));
    }

    #[test]
    fn keys_survive_bytes_and_never_show_themselves() {
        let key = Key::random();
        assert_eq!(Key::from_bytes(*key.as_bytes()), key);
        assert_ne!(key, Key::random());
        assert_eq!(format!("{key:?}"), "Key(redacted)");
    }

    #[test]
    fn labels_and_part_boundaries_give_different_keys() {
        let key = Key::from_token("fish");
        assert_ne!(key.derive(b"a"), key.derive(b"b"));
        assert_ne!(key.mac(&[b"ab", b"c"]), key.mac(&[b"a", b"bc"]));
    }

    #[test]
    fn verify_accepts_only_the_right_tag() {
        let key = Key::from_token("fish");
        let tag = key.mac(&[b"part"]);
        assert!(key.verify(&[b"part"], &tag));
        assert!(!key.verify(&[b"trap"], &tag));
        assert!(!key.verify(&[b"part"], &tag[..31]));
    }
}
