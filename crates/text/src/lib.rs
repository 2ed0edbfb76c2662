//! Text on both sides of a language model: what users write becomes tokens, tokens become text.
//!
//! - [`Tokenizer`] is built from a GGUF file's [`Vocabulary`] and encodes text to the ids the model
//!   was trained on; its [`Decoder`] turns ids back into whole characters as they arrive.
//! - [`ChatTemplate`] renders a conversation as the model's own template says.
//! - [`StopMatcher`] finds the first stop string in a stream of text.
//!
//! The crate is pure: it reads no clock and no file and opens nothing. Reading the model file, and
//! telling what time it is where a template asks, is left to the caller.
//!
//! ```
//! use shoal_text::StopMatcher;
//!
//! let mut stops = StopMatcher::new(&["\nUser:".to_owned()]);
//! assert_eq!(stops.push("Hello.\nUs").text, "Hello.");
//! assert_eq!(stops.push("er: hm").matched, Some(0));
//! ```
#![forbid(unsafe_code)]

mod decoder;
mod error;
mod json;
mod merges;
mod pretokenizer;
mod stop;
mod template;
mod time;
mod tokenizer;
mod vocabulary;

pub use decoder::Decoder;
pub use error::TextError;
pub use stop::{StopMatcher, StopOutcome};
pub use template::{ChatMessage, ChatTemplate};
pub use time::LocalTime;
pub use tokenizer::{Special, Tokenizer};
pub use vocabulary::{Vocabulary, VocabularyKind};
