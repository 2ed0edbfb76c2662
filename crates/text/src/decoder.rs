//! Tokens back to text, one at a time.

use std::sync::Arc;

/// The bytes each token stands for, in one buffer. Control tokens stand for none.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    /// Where each token's bytes end; they begin where the token before ends.
    ends: Vec<usize>,
}

impl Pieces {
    pub(crate) fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
        self.ends.push(self.bytes.len());
    }

    /// Returns the bytes of `token`; none for a token outside the vocabulary.
    pub(crate) fn bytes(&self, token: u32) -> &[u8] {
        let index = token as usize;
        let Some(&end) = self.ends.get(index) else {
            return &[];
        };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start..end]
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }
}

/// Turns a stream of tokens into a stream of whole characters.
///
/// A character whose bytes are spread over several tokens is held back until it is whole; bytes
/// that can never become one come out as U+FFFD. What [`push`](Self::push) and
/// [`finish`](Self::finish) return, joined, is the text of the whole sequence.
#[derive(Debug, Clone)]
pub struct Decoder {
    pieces: Arc<Pieces>,
    /// Bytes of a character that is not whole yet: at most three.
    held: Vec<u8>,
    /// Whether a space that comes first is the encoder's and no part of the text.
    drop_space: bool,
}

impl Decoder {
    pub(crate) fn new(pieces: Arc<Pieces>, drop_space: bool) -> Self {
        Self {
            pieces,
            held: Vec::with_capacity(4),
            drop_space,
        }
    }

    /// Takes one token and returns the text that is whole with it, often none.
    pub fn push(&mut self, token: u32) -> String {
        let mut piece = self.pieces.bytes(token);
        if self.drop_space && !piece.is_empty() {
            self.drop_space = false;
            piece = piece.strip_prefix(b" ").unwrap_or(piece);
        }
        self.held.extend_from_slice(piece);
        let mut text = String::with_capacity(self.held.len());
        let mut whole = 0;
        for chunk in self.held.utf8_chunks() {
            let invalid = chunk.invalid();
            let reached = whole + chunk.valid().len() + invalid.len();
            text.push_str(chunk.valid());
            let may_grow = reached == self.held.len()
                && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if may_grow {
                whole = reached - invalid.len();
                break;
            }
            if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            whole = reached;
        }
        self.held.drain(..whole);
        text
    }

    /// Ends the stream and returns what was held back: U+FFFD for half a character, or nothing.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        rest
    }
}
