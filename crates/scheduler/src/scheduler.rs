//! The state machine.

use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use thiserror::Error;

use crate::limits::Limits;
use crate::pages::FreePages;
use crate::plan::{Admission, PlannedSpan, StepPlan};

/// The queue, the running sequences and the free pages of one cell.
///
/// Its methods are of three kinds:
/// - *commands*, at any time: [`submit`](Self::submit), [`cancel`](Self::cancel);
/// - *the step*, in this order: [`plan`](Self::plan); compute every span of the plan; for every span that
///   [wants logits](PlannedSpan::wants_logits), [`handle`](Self::handle) the token sampled from them (or cancel the
///   request); plan again. A sequence whose token has not been handled is left out of the next plan;
/// - *getters*: [`waiting`](Self::waiting), [`running`](Self::running), [`pages_free`](Self::pages_free).
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    free: FreePages,
    waiting: VecDeque<Waiting>,
    /// In the order of admission.
    running: Vec<Sequence>,
    open: HashSet<RequestId>,
}

/// The number of a request, chosen by its submitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A request as the scheduler sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// Its number; no other open request has it.
    pub id: RequestId,
    /// The tokens to compute before the first one is sampled.
    pub prompt: Vec<u32>,
    /// The tokens to generate at most.
    pub max_tokens: u32,
}

impl Submission {
    /// Returns the length of prompt and whole reply, in tokens.
    fn tokens_max(&self) -> u64 {
        self.prompt.len() as u64 + u64::from(self.max_tokens)
    }
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// As many requests as may wait do so.
    #[error("the queue is full: {open_max} requests are open; try again later")]
    QueueFull {
        /// How many may be open.
        open_max: usize,
    },
    /// It can never have enough pages.
    #[error("prompt and reply have {tokens} tokens and the context holds {context}; ask for less")]
    TooLong {
        /// Tokens of prompt and reply together.
        tokens: u64,
        /// What fits.
        context: u64,
    },
    /// There is no prompt, or no token is asked for.
    #[error("the request is empty: it needs a prompt and at least one token to generate")]
    Empty,
    /// The submitter used a number twice.
    #[error("request {} is open already", .0.0)]
    Duplicate(RequestId),
}

impl Scheduler {
    /// Returns a scheduler without requests.
    ///
    /// # Panics
    /// If `page_tokens`, `running_max` or `batch_tokens_max` is 0: nothing would ever run.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        assert!(
            limits.page_tokens > 0 && limits.running_max > 0 && limits.batch_tokens_max > 0,
            "a scheduler needs room to work: {limits:?}"
        );
        Self {
            limits,
            free: FreePages::new(limits.kv_pages, limits.page_tokens),
            waiting: VecDeque::with_capacity(limits.waiting_max.min(1024)),
            running: Vec::with_capacity(limits.running_max.min(1024)),
            open: HashSet::new(),
        }
    }

    /// Returns the bounds it works within.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Puts a request at the end of the queue. A request that would find a free place at once does not count as waiting.
    ///
    /// # Errors
    /// [`Refused`], and nothing has changed.
    pub fn submit(&mut self, submission: Submission, now: Instant) -> Result<(), Refused> {
        let tokens = submission.tokens_max();
        if submission.prompt.is_empty() || submission.max_tokens == 0 {
            return Err(Refused::Empty);
        }
        if tokens > self.limits.sequence_max() {
            return Err(Refused::TooLong {
                tokens,
                context: self.limits.sequence_max(),
            });
        }
        if self.open.len() >= self.limits.open_max() {
            return Err(Refused::QueueFull {
                open_max: self.limits.open_max(),
            });
        }
        if !self.open.insert(submission.id) {
            return Err(Refused::Duplicate(submission.id));
        }
        self.waiting.push_back(Waiting {
            submission,
            since: now,
        });
        Ok(())
    }

    /// Forgets a request and frees its pages. Does nothing if it is not open.
    ///
    /// This may be called between `plan` and the end of its step: the pages can only be given to a later step, which
    /// writes every position before it reads it.
    pub fn cancel(&mut self, id: RequestId) {
        if !self.open.remove(&id) {
            return;
        }
        if let Some(index) = self.running.iter().position(|it| it.id == id) {
            self.free.give_back(self.running.remove(index).pages);
        } else {
            self.waiting.retain(|it| it.submission.id != id);
        }
    }

    /// Forgets every request.
    pub fn cancel_all(&mut self) {
        self.waiting.clear();
        self.open.clear();
        for sequence in self.running.drain(..) {
            self.free.give_back(sequence.pages);
        }
    }

    /// Admits whom it can and decides the next step, which the caller must then compute.
    pub fn plan(&mut self, now: Instant) -> StepPlan {
        let admitted = self.admit(now);
        let mut spans = Vec::with_capacity(self.running.len());
        let mut budget = self.limits.batch_tokens_max;
        // Sequences that need one token go first, so that replies keep flowing while long prompts are read. One that was
        // just given its token needs none in the second round.
        for one_token in [true, false] {
            for sequence in &mut self.running {
                let left = sequence.tokens.len() - sequence.computed;
                let tokens = left.min(budget);
                if tokens > 0 && (left == 1) == one_token {
                    budget -= tokens;
                    spans.push(sequence.advance(tokens, self.limits.page_tokens));
                }
            }
        }
        StepPlan { admitted, spans }
    }

    /// Appends the token sampled for a request, and frees its pages if it is `finished` or has all it asked for.
    ///
    /// Does nothing if the request is not open: it may have been cancelled while the step ran.
    pub fn handle(&mut self, id: RequestId, token: u32, finished: bool) {
        let Some(index) = self.running.iter().position(|it| it.id == id) else {
            return;
        };
        let sequence = &mut self.running[index];
        sequence.tokens.push(token);
        if finished || sequence.tokens.len() as u64 >= sequence.tokens_max {
            self.cancel(id);
        }
    }

    /// Returns how many requests have no place yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Returns how many requests have a place.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Returns how many pages nobody holds.
    #[must_use]
    pub fn pages_free(&self) -> usize {
        self.free.len()
    }

    /// Gives places to the oldest requests. The first one that does not fit holds back those behind it: otherwise short
    /// requests could keep a long one waiting for ever.
    fn admit(&mut self, now: Instant) -> Vec<Admission> {
        let mut admitted = Vec::new();
        while self.running.len() < self.limits.running_max
            && let Some(next) = self.waiting.front()
            && let Some(pages) = self.free.take(next.submission.tokens_max())
        {
            let Waiting { submission, since } =
                self.waiting.pop_front().expect("it was in front above");
            admitted.push(Admission {
                id: submission.id,
                waited: now.saturating_duration_since(since),
            });
            self.running.push(Sequence::new(submission, pages));
        }
        admitted
    }
}

#[derive(Debug)]
struct Waiting {
    submission: Submission,
    since: Instant,
}

/// A request that has a place and pages.
#[derive(Debug)]
struct Sequence {
    id: RequestId,
    /// Prompt and reply so far.
    tokens: Vec<u32>,
    /// How many of them the cache holds, or will after the step that is planned.
    computed: usize,
    tokens_max: u64,
    pages: Vec<u32>,
}

impl Sequence {
    fn new(submission: Submission, pages: Vec<u32>) -> Self {
        let tokens_max = submission.tokens_max();
        Self {
            id: submission.id,
            tokens: submission.prompt,
            computed: 0,
            tokens_max,
            pages,
        }
    }

    fn advance(&mut self, tokens: usize, page_tokens: u32) -> PlannedSpan {
        let (start, end) = (self.computed, self.computed + tokens);
        self.computed = end;
        PlannedSpan {
            id: self.id,
            tokens: self.tokens[start..end].to_vec(),
            start: start as u32,
            pages: self.pages[..end.div_ceil(page_tokens as usize)].to_vec(),
            wants_logits: end == self.tokens.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        waiting_max: 2,
        running_max: 2,
        batch_tokens_max: 5,
        kv_pages: 8,
        page_tokens: 4,
        context: 16,
    };

    fn submission(id: u64, prompt: u32, max_tokens: u32) -> Submission {
        Submission {
            id: RequestId(id),
            prompt: (0..prompt).collect(),
            max_tokens,
        }
    }

    /// Id, start, tokens and whether logits are wanted, of each span.
    fn spans(plan: &StepPlan) -> Vec<(u64, u32, usize, bool)> {
        let row = |it: &PlannedSpan| (it.id.0, it.start, it.tokens.len(), it.wants_logits);
        plan.spans.iter().map(row).collect()
    }

    #[test]
    fn a_long_prompt_is_read_in_chunks_beside_replies() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        scheduler.submit(submission(1, 3, 4), now).unwrap();
        assert_eq!(spans(&scheduler.plan(now)), [(1, 0, 3, true)]);
        scheduler.handle(RequestId(1), 9, false);
        scheduler.submit(submission(2, 10, 2), now).unwrap();
        assert_eq!(
            spans(&scheduler.plan(now)),
            [(1, 3, 1, true), (2, 0, 4, false)]
        );
        scheduler.handle(RequestId(1), 9, false);
        assert_eq!(
            spans(&scheduler.plan(now)),
            [(1, 4, 1, true), (2, 4, 4, false)]
        );
        scheduler.handle(RequestId(1), 9, true);
        let last = scheduler.plan(now);
        assert_eq!(spans(&last), [(2, 8, 2, true)]);
        assert_eq!(
            last.spans[0].pages.len(),
            3,
            "only the pages of positions so far"
        );
    }

    #[test]
    fn a_sequence_waits_for_its_token() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        scheduler.submit(submission(1, 3, 2), now).unwrap();
        assert_eq!(scheduler.plan(now).spans.len(), 1);
        assert_eq!(
            scheduler.plan(now),
            StepPlan::default(),
            "its token was not handled"
        );
        scheduler.handle(RequestId(1), 9, false);
        scheduler.plan(now);
        scheduler.handle(RequestId(1), 9, false);
        assert_eq!(scheduler.running(), 0, "it has the two tokens it asked for");
    }

    #[test]
    fn refusals_name_the_limit_and_change_nothing() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(LIMITS);
        assert_eq!(
            scheduler.submit(submission(1, 0, 2), now),
            Err(Refused::Empty)
        );
        assert_eq!(
            scheduler.submit(submission(1, 2, 0), now),
            Err(Refused::Empty)
        );
        let (tokens, context) = (17, 16);
        assert_eq!(
            scheduler.submit(submission(1, 15, 2), now),
            Err(Refused::TooLong { tokens, context })
        );
        scheduler.submit(submission(1, 14, 2), now).unwrap();
        assert_eq!(
            scheduler.submit(submission(1, 1, 1), now),
            Err(Refused::Duplicate(RequestId(1)))
        );
        for id in 2..=4 {
            scheduler.submit(submission(id, 1, 1), now).unwrap();
        }
        assert_eq!(
            scheduler.submit(submission(5, 1, 1), now),
            Err(Refused::QueueFull { open_max: 4 })
        );
        assert_eq!((scheduler.waiting(), scheduler.running()), (4, 0));
    }

    #[test]
    fn admission_tells_how_long_a_request_waited() {
        let (now, wait) = (Instant::now(), std::time::Duration::from_secs(3));
        let mut scheduler = Scheduler::new(LIMITS);
        scheduler.submit(submission(1, 1, 1), now).unwrap();
        let admission = Admission {
            id: RequestId(1),
            waited: wait,
        };
        assert_eq!(scheduler.plan(now + wait).admitted, [admission]);
    }
}
