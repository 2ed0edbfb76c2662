//! A conversation of two ranks over their authenticated connection, in which either may say no, and why.

use std::time::{Duration, Instant};

use crate::channel::Channel;
use crate::error::FabricError;

/// One side of the conversation.
pub(crate) struct Talk<'a> {
    channel: &'a mut Channel,
    deadline: Instant,
    /// What it is about, for errors.
    about: &'static str,
}

impl<'a> Talk<'a> {
    pub(crate) fn new(channel: &'a mut Channel, deadline: Instant, about: &'static str) -> Self {
        Self {
            channel,
            deadline,
            about,
        }
    }

    pub(crate) fn say(&mut self, words: &[u8]) -> Result<(), FabricError> {
        self.channel.send(&[&[YES], words].concat())
    }

    /// Says why not, which is the end of the conversation, and returns that.
    pub(crate) fn decline<T>(&mut self, reason: String) -> Result<Result<T, String>, FabricError> {
        self.channel.send(&[&[NO], reason.as_bytes()].concat())?;
        Ok(Err(reason))
    }

    /// Returns what the other end says, or why it will not.
    pub(crate) fn hear(&mut self) -> Result<Result<Vec<u8>, String>, FabricError> {
        let mut message = self.channel.recv(Some(self.deadline))?;
        match message.first() {
            Some(&YES) => Ok(Ok(message.split_off(1))),
            Some(&NO) => Ok(Err(said(&message[1..]))),
            _ => Err(self.broken()),
        }
    }

    /// Says something of each of several matters, or why not, which is the end of that one.
    pub(crate) fn say_each(&mut self, words: &[Word]) -> Result<(), FabricError> {
        let words: Vec<Vec<u8>> = words.iter().map(encode).collect();
        self.say(&words.concat())
    }

    /// Returns what the other end says of each of several matters.
    pub(crate) fn hear_each(&mut self) -> Result<Result<Vec<Word>, String>, FabricError> {
        Ok(match self.hear()? {
            Ok(heard) => Ok(self.understand(decode_all(&heard))?),
            Err(reason) => Err(reason),
        })
    }

    pub(crate) fn understand<T>(&self, heard: Option<T>) -> Result<T, FabricError> {
        heard.ok_or_else(|| self.broken())
    }

    pub(crate) fn broken(&self) -> FabricError {
        FabricError::Protocol {
            rank: None,
            peer: self.channel.peer_addr().to_string(),
            reason: format!("what it says about {} makes no sense", self.about),
        }
    }

    /// Returns the end of `time` from now, or of the whole conversation if that comes first.
    pub(crate) fn within(&self, time: Duration) -> Instant {
        self.deadline.min(Instant::now() + time)
    }
}

fn said(words: &[u8]) -> String {
    format!("the peer says: {}", reason(&String::from_utf8_lossy(words)))
}

fn encode(word: &Word) -> Vec<u8> {
    let (tag, word) = match word {
        Ok(word) => (YES, &word[..]),
        Err(reason) => (NO, &reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX)]),
    };
    [&[tag], &(word.len() as u16).to_le_bytes()[..], word].concat()
}

fn decode_all(mut bytes: &[u8]) -> Option<Vec<Word>> {
    let mut words = Vec::new();
    while let Some((&[tag, low, high], rest)) = bytes.split_first_chunk() {
        let (word, rest) = rest.split_at_checked(u16::from_le_bytes([low, high]).into())?;
        words.push(match tag {
            YES => Ok(word.to_vec()),
            NO => Err(said(word)),
            _ => return None,
        });
        bytes = rest;
    }
    bytes.is_empty().then_some(words)
}

/// What is said of one of several matters, or why not.
type Word = Result<Vec<u8>, String>;

/// Returns a reason as far as it fits into a line.
pub(crate) fn reason(words: &str) -> String {
    let words = words.chars().take(REASON_CHARS_MAX);
    words
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect()
}

const NO: u8 = 0;
const YES: u8 = 1;
const REASON_CHARS_MAX: usize = 200;
/// Of those that are said together.
const REASON_BYTES_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn several_words_are_read_as_they_were_written(
            words in prop::collection::vec(prop::result::maybe_ok(any::<Vec<u8>>(), "[a-z ]{0,50}"), 0..5),
        ) {
            let bytes: Vec<u8> = words.iter().flat_map(encode).collect();
            let expected = words.into_iter().map(|word| word.map_err(|reason| said(reason.as_bytes())));
            prop_assert_eq!(decode_all(&bytes), Some(expected.collect()));
            prop_assert_eq!(decode_all(&[&bytes[..], &[YES]].concat()), None);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _either = decode_all(&bytes);
        }
    }
}
