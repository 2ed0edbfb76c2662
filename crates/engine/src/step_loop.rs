//! Rank 0's loop: take orders, plan, broadcast, compute, sample, report.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use shoal_fabric::Group;
use shoal_model::{Model, Span};
use shoal_scheduler::{Admission, Limits, PlannedSpan, RequestId, Scheduler, StepPlan, Submission};
use tracing::{info, trace, warn};

use crate::error::RankError;
use crate::rank::{Facts, ROOT};
use crate::reception::{Order, Reception};
use crate::reply::Reply;
use crate::request::{Event, Failure, FinishReason, Request};
use crate::status::{CellInfo, RankReport};
use crate::step::Step;
use crate::wire::{self, Command, Notice, Phase};

/// Everything rank 0 needs to lead its group through steps.
pub(crate) struct StepLoop<'a> {
    scheduler: Scheduler,
    replies: HashMap<RequestId, Reply>,
    model: Model,
    facts: Facts,
    group: &'a mut Group,
    reception: &'a mut Reception,
    orphan_timeout: Duration,
    heartbeat: Duration,
    /// The front wants the ranks' reports.
    inspect: bool,
    /// The cell is to end.
    stop: bool,
    /// Scratch: the step on its way to the other ranks, and a row of logits.
    bytes: Vec<u8>,
    row: Vec<f32>,
}

impl<'a> StepLoop<'a> {
    pub(crate) fn new(
        model: Model,
        facts: Facts,
        limits: Limits,
        orphan_timeout: Duration,
        group: &'a mut Group,
        reception: &'a mut Reception,
    ) -> Self {
        Self {
            scheduler: Scheduler::new(limits),
            replies: HashMap::new(),
            row: Vec::with_capacity(model.spec().vocabulary()),
            model,
            facts,
            group,
            reception,
            orphan_timeout,
            heartbeat: HEARTBEAT_MAX,
            inspect: false,
            stop: false,
            bytes: Vec::new(),
        }
    }

    /// Sets how long a rank may be still within a step, and beats often enough that none is still between two.
    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.group.set_timeout(timeout);
        self.heartbeat = HEARTBEAT_MAX.min(timeout / 4);
    }

    /// Serves until the cell is to end.
    pub(crate) fn serve(&mut self, info: CellInfo) -> Result<(), RankError> {
        self.reception.enter(Phase::Ready(info));
        info!("ready");
        while self.turn()? {}
        Ok(())
    }

    /// One step; returns whether there is to be another.
    fn turn(&mut self) -> Result<bool, RankError> {
        self.take_orders();
        let (step, sampled) = self.plan();
        self.reception.show_life();
        self.broadcast(&step)?;
        match step {
            Step::Run(spans) => self.run(&spans, &sampled)?,
            Step::Idle => self.group.barrier()?,
            Step::Report => {
                self.inspect = false;
                let reports = self.gather_reports()?;
                self.reception.note(&Notice::Ranks(reports));
            }
            Step::Shutdown => return Ok(false),
        }
        self.reception.flush();
        Ok(true)
    }

    /// Gathers what every rank holds, in a step of its own.
    pub(crate) fn reports(&mut self) -> Result<Vec<RankReport>, RankError> {
        self.broadcast(&Step::Report)?;
        self.gather_reports()
    }

    /// Takes all orders there are. With nothing to do, waits for one, but no longer than until the next heartbeat.
    fn take_orders(&mut self) {
        let mut wait = if self.replies.is_empty() {
            self.heartbeat
        } else {
            Duration::ZERO
        };
        // As many as the front may have open, so that a front that talks without end does not hold up the steps.
        for _ in 0..=2 * self.scheduler.limits().open_max() {
            let Some(order) = self.reception.next(wait) else {
                break;
            };
            wait = Duration::ZERO;
            match order {
                Order::Command(Command::Submit { id, request }) => {
                    self.submit(RequestId(id), request)
                }
                Order::Command(Command::Cancel { id }) => {
                    self.scheduler.cancel(RequestId(id));
                    self.replies.remove(&RequestId(id));
                }
                Order::Command(Command::Inspect) => self.inspect = true,
                Order::Command(Command::Shutdown) => self.stop = true,
                Order::Command(Command::Hello { .. }) => warn!("the front greeted a second time"),
                Order::FrontGone => {
                    self.scheduler.cancel_all();
                    self.replies.clear();
                    self.inspect = false;
                }
            }
        }
        if self.reception.orphaned_for() > self.orphan_timeout {
            info!(
                orphan_timeout_ms = self.orphan_timeout.as_millis() as u64,
                "no front came; the cell ends"
            );
            self.stop = true;
        }
    }

    fn submit(&mut self, id: RequestId, request: Request) {
        let vocabulary = self.model.spec().vocabulary();
        let refused = if request
            .prompt
            .iter()
            .any(|&token| token as usize >= vocabulary)
        {
            Some(format!(
                "its prompt holds tokens beyond the model's {vocabulary}"
            ))
        } else {
            let (prompt, max_tokens) = (request.prompt.clone(), request.max_tokens);
            let submitted = self.scheduler.submit(
                Submission {
                    id,
                    prompt,
                    max_tokens,
                },
                Instant::now(),
            );
            submitted.err().map(|refused| refused.to_string())
        };
        match refused {
            Some(reason) => {
                let event = Event::Failed(Failure::Refused(reason));
                self.reception.note(&Notice::Event { id: id.0, event });
            }
            None => {
                self.replies.insert(id, Reply::new(request));
            }
        }
    }

    /// Decides the next step; for one that computes also returns for whom it samples tokens.
    fn plan(&mut self) -> (Step, Vec<RequestId>) {
        if self.stop {
            return (Step::Shutdown, Vec::new());
        }
        if self.inspect {
            return (Step::Report, Vec::new());
        }
        let now = Instant::now();
        let StepPlan { admitted, spans } = self.scheduler.plan(now);
        for Admission { id, waited } in admitted {
            self.replies
                .get_mut(&id)
                .expect("every request has its reply")
                .start(waited, now);
            self.reception.note(&Notice::Started { id: id.0 });
        }
        if spans.is_empty() {
            return (Step::Idle, Vec::new());
        }
        let sampled = spans
            .iter()
            .filter(|span| span.wants_logits)
            .map(|span| span.id)
            .collect();
        let span = |PlannedSpan {
                        tokens,
                        start,
                        pages,
                        wants_logits,
                        ..
                    }| Span {
            tokens,
            start,
            pages,
            wants_logits,
        };
        (Step::Run(spans.into_iter().map(span).collect()), sampled)
    }

    fn broadcast(&mut self, step: &Step) -> Result<(), RankError> {
        step.encode(&mut self.bytes);
        Ok(self.group.broadcast(ROOT, &mut self.bytes)?)
    }

    /// Computes the spans, then samples and reports one token for each request in `sampled`.
    fn run(&mut self, spans: &[Span], sampled: &[RequestId]) -> Result<(), RankError> {
        // The front cannot tell a long step from one that hangs.
        let mut progress = || self.reception.show_life();
        let logits = self.model.forward(spans, self.group, &mut progress)?;
        let now = Instant::now();
        trace!(spans = spans.len(), sampled = sampled.len(), "step");
        for (row, &id) in sampled.iter().enumerate() {
            self.row.clear();
            self.row.extend_from_slice(logits.row(row));
            let reply = self
                .replies
                .get_mut(&id)
                .expect("every request has its reply");
            let mut note = |event| self.reception.note(&Notice::Event { id: id.0, event });
            let Some(token) = reply.sample(&mut self.row) else {
                let reason = "the model gave no finite logits".to_owned();
                note(Event::Failed(Failure::Internal(reason)));
                self.scheduler.cancel(id);
                self.replies.remove(&id);
                continue;
            };
            let finished = reply.push(token, now);
            if finished != Some(FinishReason::Stop) {
                note(Event::Token(token));
            }
            if let Some(reason) = finished {
                note(Event::Finished {
                    reason,
                    timing: reply.timing(),
                });
                self.replies.remove(&id);
            }
            self.scheduler.handle(id, token, finished.is_some());
        }
        Ok(())
    }

    fn gather_reports(&mut self) -> Result<Vec<RankReport>, RankError> {
        let mine = wire::encode_report(&self.facts.report(ROOT, &self.model));
        let mut all = Vec::new();
        self.group.all_gather(&mine, &mut all)?;
        let report = |bytes: &Vec<u8>| wire::decode_report(bytes).map_err(RankError::Step);
        all.iter().map(report).collect()
    }
}

/// Often enough that a rank lost while nothing runs is noticed within a second.
const HEARTBEAT_MAX: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{self, SyncSender};

    use shoal_fabric::{Exchange, solo};
    use shoal_kernels::{Cpu, CpuConfig, Isa, KvFormat};
    use shoal_model::gguf::Gguf;
    use shoal_model::{LoadConfig, Shares};
    use shoal_testkit::{TinyConfig, tiny_llama};

    use super::*;
    use crate::front::{Front, Input, Outbox};
    use crate::request::Sampling;
    use crate::wire::{Greeting, Patience};

    const LIMITS: Limits = Limits {
        waiting_max: 2,
        running_max: 2,
        batch_tokens_max: 4,
        kv_pages: 16,
        page_tokens: 32,
        context: 256,
    };

    /// Drives a loop of one rank turn by turn.
    fn with_loop(test: impl FnOnce(&mut StepLoop<'_>, &SyncSender<Input>)) {
        let cpu = Cpu::new(CpuConfig {
            isa: Isa::detect(),
            threads: 1,
            first_core: None,
        })
        .expect("a device");
        let facts = Facts::of(&cpu);
        let gguf = Gguf::parse(tiny_llama(&TinyConfig::default())).expect("a model");
        let Limits {
            context,
            kv_pages,
            page_tokens,
            batch_tokens_max,
            ..
        } = LIMITS;
        let load = LoadConfig {
            context,
            kv_pages,
            page_tokens,
            kv_format: KvFormat::F16,
            exchange: Exchange::F32,
            batch_tokens_max,
        };
        let mut group = solo();
        let model = Model::load_root(
            &gguf,
            &Shares::equal(1),
            load,
            cpu,
            &mut group,
            &mut |_, _| {},
        )
        .expect("loaded");

        let folder = tempfile::tempdir().expect("a folder");
        let greeting = Greeting {
            fabric: None,
            world: 1,
            model_name: "tiny".to_owned(),
            phase: Phase::Starting,
            patience: Patience {
                forming: Duration::MAX,
                serving: Duration::MAX,
            },
        };
        let (front, _) = Front::open(
            &folder.path().join("socket"),
            greeting,
            1,
            mpsc::channel().0,
        )
        .expect("a socket");
        let (inputs, taken) = mpsc::sync_channel(16);
        let mut reception = Reception::new(taken, front.herald());
        let mut steps = StepLoop::new(
            model,
            facts,
            LIMITS,
            Duration::MAX,
            &mut group,
            &mut reception,
        );
        steps.set_timeout(Duration::ZERO); // no waiting for orders
        test(&mut steps, &inputs);
    }

    fn order(inputs: &SyncSender<Input>, command: Command) {
        inputs.send(Input::Command(command)).expect("there is room");
    }

    fn submit(inputs: &SyncSender<Input>, id: u64, max_tokens: u32) {
        let (prompt, sampling) = (vec![1; 10], Sampling::greedy());
        let request = Request {
            prompt,
            sampling,
            max_tokens,
            stop_tokens: Vec::new(),
        };
        order(inputs, Command::Submit { id, request });
    }

    /// A front attaches; returns what it hears.
    fn come(inputs: &SyncSender<Input>) -> UnixStream {
        let (stream, heard) = UnixStream::pair().expect("sockets");
        let outbox = Outbox::open(stream).expect("a writer");
        inputs.send(Input::Came(outbox)).expect("there is room");
        heard
    }

    fn notice(heard: &mut UnixStream) -> Notice {
        let mut frame = Vec::new();
        wire::read_frame(heard, &mut frame).expect("a notice");
        Notice::decode(&frame).expect("one that makes sense")
    }

    #[test]
    fn a_cancelled_request_is_gone_after_the_step_that_runs() {
        with_loop(|steps, inputs| {
            // In the middle of its prompt, and in the middle of its reply.
            for turns in [1, 6] {
                submit(inputs, 1, 100);
                (0..turns).for_each(|_| assert!(steps.turn().expect("computed")));
                assert_eq!(steps.scheduler.running(), 1);
                order(inputs, Command::Cancel { id: 1 });
                assert!(steps.turn().expect("computed"));
                assert_eq!((steps.scheduler.running(), steps.replies.len()), (0, 0));
                assert_eq!(steps.scheduler.pages_free(), 16);
            }
        });
    }

    #[test]
    fn what_the_front_should_have_refused_is_refused() {
        with_loop(|steps, inputs| {
            let request = |prompt: Vec<u32>| Request {
                prompt,
                sampling: Sampling::greedy(),
                max_tokens: 1,
                stop_tokens: Vec::new(),
            };
            let mut heard = come(inputs);
            let prompts = [vec![], vec![512], vec![1; 256]];
            for (id, prompt) in (1..).zip(prompts) {
                order(
                    inputs,
                    Command::Submit {
                        id,
                        request: request(prompt),
                    },
                );
            }
            assert!(steps.turn().expect("nothing to compute"));
            assert_eq!((steps.scheduler.waiting(), steps.replies.len()), (0, 0));

            let mut notice = || notice(&mut heard);
            assert_eq!(notice(), Notice::Phase(Phase::Starting));
            for (refused, why) in
                (1..).zip(["the request is empty", "beyond the model's 512", "256"])
            {
                let Notice::Event {
                    id,
                    event: Event::Failed(Failure::Refused(reason)),
                } = notice()
                else {
                    panic!("request {refused} was not refused")
                };
                assert_eq!(id, refused);
                assert!(reason.contains(why), "{reason}");
            }
        });
    }

    #[test]
    fn a_long_step_shows_that_it_goes_on() {
        with_loop(|steps, inputs| {
            let mut heard = come(inputs);
            submit(inputs, 1, 1);
            steps.reception.alive_every = Duration::ZERO; // every step is a long one
            assert!(steps.turn().expect("computed"));
            assert!(steps.turn().expect("computed"));
            assert!(steps.turn().expect("computed"));
            let mut notices = Vec::new();
            while !matches!(
                notices.last(),
                Some(Notice::Event {
                    event: Event::Finished { .. },
                    ..
                })
            ) {
                notices.push(notice(&mut heard));
            }
            let alive = notices.iter().filter(|notice| **notice == Notice::Alive);
            let (steps_taken, layers) = (3, steps.model.spec().blocks.len());
            assert!(alive.count() > steps_taken * 4 * layers, "{notices:?}");
        });
    }

    #[test]
    fn the_requests_of_a_front_go_with_it() {
        with_loop(|steps, inputs| {
            (1..=4).for_each(|id| submit(inputs, id, 100));
            assert!(steps.turn().expect("computed"));
            assert_eq!(
                (steps.scheduler.running(), steps.scheduler.waiting()),
                (2, 2)
            );
            inputs.send(Input::Gone).expect("there is room");
            assert!(steps.turn().expect("nothing to compute"));
            assert_eq!(
                (
                    steps.scheduler.running(),
                    steps.scheduler.waiting(),
                    steps.replies.len()
                ),
                (0, 0, 0)
            );
        });
    }

    #[test]
    fn without_a_front_the_loop_ends_after_the_orphan_timeout() {
        with_loop(|steps, _| {
            assert!(steps.turn().expect("a heartbeat"));
            steps.orphan_timeout = Duration::ZERO;
            assert!(!steps.turn().expect("the end"));
        });
    }
}
