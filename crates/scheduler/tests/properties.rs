//! What holds for every order of submissions, cancellations and steps.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use proptest::prelude::*;
use shoal_scheduler::{Limits, Refused, RequestId, Scheduler, StepPlan, Submission};

#[derive(Clone, Debug)]
enum Move {
    Submit {
        prompt: u32,
        max_tokens: u32,
    },
    /// Cancels one of the open requests.
    Cancel {
        nth: usize,
    },
    /// Plans, computes and handles; a request stops early when its count of tokens is a multiple of this.
    Step {
        stop_every: usize,
    },
}

fn limits() -> impl Strategy<Value = Limits> {
    (
        0..6_usize,
        1..5_usize,
        1..12_usize,
        1..24_u32,
        1..9_u32,
        1..64_u32,
    )
        .prop_map(
            |(waiting_max, running_max, batch_tokens_max, kv_pages, page_tokens, context)| Limits {
                waiting_max,
                running_max,
                batch_tokens_max,
                kv_pages,
                page_tokens,
                context,
            },
        )
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        3 => (0..24_u32, 0..12_u32).prop_map(|(prompt, max_tokens)| Move::Submit { prompt, max_tokens }),
        1 => any::<usize>().prop_map(|nth| Move::Cancel { nth }),
        4 => (2..9_usize).prop_map(|stop_every| Move::Step { stop_every }),
    ];
    prop::collection::vec(one, 0..120)
}

/// A request as the outside sees it.
#[derive(Debug)]
struct Open {
    tokens: Vec<u32>,
    tokens_max: usize,
    computed: usize,
    pages: Vec<u32>,
    admitted: bool,
}

/// Drives a scheduler and checks every plan against what the outside knows.
struct World {
    scheduler: Scheduler,
    limits: Limits,
    now: Instant,
    /// By id, which grows with the order of submission.
    open: BTreeMap<u64, Open>,
    next_id: u64,
}

impl World {
    fn apply(&mut self, step: &Move) {
        match *step {
            Move::Submit { prompt, max_tokens } => self.submit(prompt, max_tokens),
            Move::Cancel { nth } => {
                let nth = nth % self.open.len().max(1);
                if let Some(&id) = self.open.keys().nth(nth) {
                    self.open.remove(&id);
                    self.scheduler.cancel(RequestId(id));
                }
            }
            Move::Step { stop_every } => {
                self.step(stop_every);
            }
        }
        assert_eq!(
            self.scheduler.waiting() + self.scheduler.running(),
            self.open.len()
        );
        if self.open.is_empty() {
            assert_eq!(
                self.scheduler.pages_free(),
                self.limits.kv_pages as usize,
                "all pages came back"
            );
        }
    }

    fn submit(&mut self, prompt: u32, max_tokens: u32) {
        self.next_id += 1;
        let id = self.next_id;
        let prompt: Vec<u32> = (0..prompt).map(|i| i + 100 * id as u32).collect();
        let submission = Submission {
            id: RequestId(id),
            prompt: prompt.clone(),
            max_tokens,
        };
        let tokens_max = prompt.len() + max_tokens as usize;
        let fits = tokens_max as u64 <= self.limits.sequence_max();
        let expected = if prompt.is_empty() || max_tokens == 0 {
            Err(Refused::Empty)
        } else if !fits {
            Err(Refused::TooLong {
                tokens: tokens_max as u64,
                context: self.limits.sequence_max(),
            })
        } else if self.open.len() >= self.limits.open_max() {
            Err(Refused::QueueFull {
                open_max: self.limits.open_max(),
            })
        } else {
            Ok(())
        };
        assert_eq!(self.scheduler.submit(submission, self.now), expected);
        if expected.is_ok() {
            let (computed, pages, admitted) = (0, Vec::new(), false);
            self.open.insert(
                id,
                Open {
                    tokens: prompt,
                    tokens_max,
                    computed,
                    pages,
                    admitted,
                },
            );
        }
    }

    /// One step; returns whether it computed anything.
    fn step(&mut self, stop_every: usize) -> bool {
        let plan = self.scheduler.plan(self.now);
        self.check(&plan);
        for span in plan.spans.iter().filter(|span| span.wants_logits) {
            let request = self
                .open
                .get_mut(&span.id.0)
                .expect("only open requests are planned");
            let token = request.tokens.len() as u32;
            request.tokens.push(token);
            let stop = request.tokens.len().is_multiple_of(stop_every);
            if stop || request.tokens.len() == request.tokens_max {
                self.open.remove(&span.id.0);
            }
            self.scheduler.handle(span.id, token, stop);
        }
        !plan.spans.is_empty()
    }

    fn check(&mut self, plan: &StepPlan) {
        for admission in &plan.admitted {
            let first = self
                .open
                .iter()
                .find(|(_, it)| !it.admitted)
                .map(|(&id, _)| id);
            assert_eq!(first, Some(admission.id.0), "first come, first served");
            self.open
                .get_mut(&admission.id.0)
                .expect("found above")
                .admitted = true;
        }
        let running = self.open.values().filter(|it| it.admitted).count();
        assert_eq!(running, self.scheduler.running());
        assert!(running <= self.limits.running_max);
        let tokens: usize = plan.spans.iter().map(|span| span.tokens.len()).sum();
        assert!(tokens <= self.limits.batch_tokens_max);
        let ids: HashSet<_> = plan.spans.iter().map(|span| span.id).collect();
        assert_eq!(ids.len(), plan.spans.len(), "one span a request");

        for span in &plan.spans {
            let request = self
                .open
                .get_mut(&span.id.0)
                .expect("only open requests are planned");
            assert!(request.admitted);
            let end = request.computed + span.tokens.len();
            assert_eq!(
                span.start as usize, request.computed,
                "no position is skipped or repeated"
            );
            assert_eq!(span.tokens, request.tokens[request.computed..end]);
            assert_eq!(span.wants_logits, end == request.tokens.len());
            assert!(
                span.pages.starts_with(&request.pages),
                "a sequence keeps its pages"
            );
            assert!(span.pages.len() * self.limits.page_tokens as usize >= end);
            request.computed = end;
            request.pages.clone_from(&span.pages);
        }
        let mut owner = HashMap::new();
        for (id, request) in &self.open {
            for &page in &request.pages {
                assert!(page < self.limits.kv_pages);
                assert_eq!(owner.insert(page, id), None, "page {page} has two owners");
            }
        }
        assert!(owner.len() + self.scheduler.pages_free() <= self.limits.kv_pages as usize);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn pages_places_budgets_and_order_hold_and_every_request_ends(limits in limits(), moves in moves()) {
        let scheduler = Scheduler::new(limits);
        let mut world = World { scheduler, limits, now: Instant::now(), open: BTreeMap::new(), next_id: 0 };
        for step in &moves {
            world.apply(step);
        }
        while !world.open.is_empty() {
            assert!(world.step(usize::MAX), "open requests and nothing to do: {:?}", world.scheduler);
        }
        prop_assert_eq!(world.scheduler.pages_free(), limits.kv_pages as usize);
    }
}
