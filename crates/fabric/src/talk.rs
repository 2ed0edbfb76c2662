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
            Some(&NO) => {
                let words = String::from_utf8_lossy(&message[1..]);
                Ok(Err(format!("the peer says: {}", reason(&words))))
            }
            _ => Err(self.broken()),
        }
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
