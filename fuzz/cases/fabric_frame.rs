//! Frames as a peer might send them: any bytes are a frame, the beginning of one, or an error, and never a panic.

use shoal_fabric::frame::{self, Abort, HEADER_BYTES};

/// Feeds `data` to everything that reads frames.
///
/// # Panics
/// When what is read does not say the same as what was sent.
pub(crate) fn run(data: &[u8]) {
    if let Ok(Some(frame)) = frame::decode(data) {
        assert_eq!(
            frame.header.encode(),
            data[..HEADER_BYTES],
            "a header says what was read"
        );
        assert_eq!(
            frame.payload.len(),
            frame.header.length as usize,
            "a payload is whole"
        );
        if let Some(abort) = Abort::decode(frame.payload) {
            assert!(!abort.reason.contains('\n'), "a reason is one line");
        }
    }
}
