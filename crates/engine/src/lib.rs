//! One cell: the process of a rank, and the front's client to it.
//!
//! - [`run_rank`] is the whole life of a rank process. Rank 0 also schedules, samples and answers the front.
//! - [`client::Client`] is the front's end: it keeps the journal of open requests and turns what rank 0 reports into
//!   one [`client::TokenStream`] a request. It reconnects to a re-formed cell without its holder noticing more than
//!   failed streams and a [`client::Loss`].
//!
//! Between the two runs [`wire`], a small versioned protocol over a Unix socket: requests in, token events out. Text,
//! HTTP and the starting of processes are the business of others.
//!
//! ```no_run
//! use std::path::Path;
//! use std::time::{Duration, Instant};
//! use shoal_engine::client::{Client, Event, Request, Sampling};
//!
//! let client = Client::new();
//! let deadline = Instant::now() + Duration::from_secs(30);
//! client.attach(Path::new("cell.sock"), deadline)?;
//! client.wait_ready(deadline)?;
//! let request = Request { prompt: vec![1, 2, 3], sampling: Sampling::greedy(), max_tokens: 8, stop_tokens: vec![2] };
//! let mut stream = client.submit(request)?;
//! while let Some(Event::Token(token)) = stream.next_blocking() {
//!     eprintln!("{token}");
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod bytes;
pub mod client;
mod error;
mod front;
mod rank;
mod reception;
mod reply;
mod request;
mod root;
mod sampling;
mod status;
pub mod step;
mod step_loop;
pub mod wire;

pub use error::RankError;
pub use rank::{EngineLimits, RankConfig, Role, run_rank};
pub use sampling::{History, sample};
pub use shoal_kernels::KvFormat;
