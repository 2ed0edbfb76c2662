//! Frames as a peer might send them: any bytes are a frame, the beginning of one, or an error, and never a panic.

use shoal_fabric::frame::{self, Abort, HEADER_BYTES};

/// Feeds `data` to everything that reads frames, and says whether it is one.
///
/// # Panics
/// When what is read does not say the same as what was sent.
pub(crate) fn run(data: &[u8]) -> bool {
    let mut checked = data.to_vec();
    if let Some((header, _)) = checked.split_first_chunk_mut::<HEADER_BYTES>() {
        // Behind a wrong check nothing is looked at.
        let check = crc32fast::hash(&header[..HEADER_BYTES - 4]);
        header[HEADER_BYTES - 4..].copy_from_slice(&check.to_le_bytes());
    }
    read(&checked) | read(data)
}

fn read(data: &[u8]) -> bool {
    let Ok(Some(frame)) = frame::decode(data) else {
        return false;
    };
    let header = frame.header.encode();
    assert_eq!(header, data[..HEADER_BYTES], "a header says what was read");
    let length = frame.header.length as usize;
    assert_eq!(frame.payload.len(), length, "a payload is whole");
    if let Some(abort) = Abort::decode(frame.payload) {
        assert!(!abort.reason.contains('\n'), "a reason is one line");
    }
    true
}
