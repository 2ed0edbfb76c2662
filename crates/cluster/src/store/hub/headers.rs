//! What answers say of the bytes they carry.

/// A `Content-Range` header: `bytes START-END/TOTAL`, or `bytes */TOTAL` with status 416.
pub(super) struct ContentRange {
    pub(super) start: Option<u64>,
    pub(super) total: u64,
}

impl ContentRange {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
        Some(Self {
            start: range
                .split_once('-')
                .and_then(|(start, _)| start.parse().ok()),
            total: total.parse().ok()?,
        })
    }
}

/// Returns the SHA-256 in an entity tag, which is what the tag of a large file holds, or in a listing; in lower case.
pub(super) fn sha256_of(tag: &str) -> Option<String> {
    let text = tag.trim_start_matches("W/").trim_matches('"');
    let is_digest = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    is_digest.then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let range = ContentRange::parse("bytes 5-9/10").unwrap();
        assert_eq!((range.start, range.total), (Some(5), 10));
        let range = ContentRange::parse("bytes */10").unwrap();
        assert_eq!((range.start, range.total), (None, 10));
        assert!(ContentRange::parse("bytes 5-9/*").is_none());
        let digest = "ab".repeat(32);
        assert_eq!(
            sha256_of(&format!("\"{}\"", digest.to_uppercase())),
            Some(digest)
        );
        assert_eq!(sha256_of("\"7f3c-1\""), None);
    }
}
