//! Which tokens of which requests the next step computes, and on which KV pages: continuous batching as a pure state
//! machine. It does no IO, reads no clock and draws no random numbers; the step loop around it brings all three.
//!
//! [`Scheduler`] takes requests first come, first served. A request is admitted when one of the `running_max` places is
//! free and pages for its whole prompt and reply can be set aside, so an admitted request never has to give way. Each
//! step shares `batch_tokens_max` tokens: sequences that need one token go first, what is left goes to the prompts of
//! newer ones, in chunks.
//!
//! ```
//! use std::time::Instant;
//! use shoal_scheduler::{Limits, RequestId, Scheduler, Submission};
//!
//! let limits = Limits { waiting_max: 8, running_max: 2, batch_tokens_max: 4, kv_pages: 4, page_tokens: 16, context: 32 };
//! let (mut scheduler, now) = (Scheduler::new(limits), Instant::now());
//! let id = RequestId(1);
//! scheduler.submit(Submission { id, prompt: vec![7, 8, 9], max_tokens: 2 }, now)?;
//! let plan = scheduler.plan(now);
//! assert_eq!((plan.spans[0].start, &plan.spans[0].tokens[..]), (0, &[7, 8, 9][..]));
//! scheduler.handle(id, 10, false); // sampled from that span's logits
//! let plan = scheduler.plan(now);
//! assert_eq!((plan.spans[0].start, &plan.spans[0].tokens[..]), (3, &[10][..]));
//! scheduler.handle(id, 11, true);
//! assert_eq!(scheduler.pages_free(), 4);
//! # Ok::<(), shoal_scheduler::Refused>(())
//! ```
#![forbid(unsafe_code)]

mod limits;
mod pages;
mod plan;
mod scheduler;

pub use limits::Limits;
pub use plan::{Admission, PlannedSpan, StepPlan};
pub use scheduler::{Refused, RequestId, Scheduler, Submission};
