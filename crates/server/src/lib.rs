//! The front of a cell: OpenAI's HTTP API, text, and streams.
//!
//! [`Generator`] is text in, text out: it renders the chat template, encodes, submits to the cell
//! through the engine's client, and turns the tokens that come back into a [`TextStream`]. It needs
//! no HTTP, and `shoal run` uses it as it is. [`router`] puts the HTTP API over a generator and
//! [`serve`] runs it on a listener. Dropping a [`TextStream`], which is what happens when a client
//! hangs up, cancels the request.
//!
//! Wire types are `shoal-api`'s, tokenizers and templates `shoal-text`'s, and the cell itself is
//! behind `shoal-engine`'s client.
#![forbid(unsafe_code)]

mod auth;
mod browser;
mod chat;
mod completions;
mod connections;
mod error;
mod generator;
mod prompt_work;
mod random;
mod reply;
mod request_id;
mod router;
mod serve;
mod status;
mod stream;

pub use error::{GenerateError, StreamError};
pub use generator::{Generator, GeneratorConfig, ModelText};
pub use router::{ServerConfig, router};
pub use serve::serve;
pub use stream::{Finished, TextEvent, TextStream};
