//! The life of rank 0's process.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use shoal_fabric::{Exchange, Group, solo, tcp};
use shoal_kernels::KvFormat;
use shoal_model::gguf::Gguf;
use shoal_model::{LoadConfig, Model, ModelSpec, Shares};
use shoal_scheduler::Limits;
use tracing::info;

use crate::error::RankError;
use crate::front::{self, Front};
use crate::rank::{EngineLimits, Facts, RankConfig};
use crate::reception::Reception;
use crate::status::CellInfo;
use crate::step_loop::StepLoop;
use crate::wire::{Greeting, Phase};

/// Rank 0: what every rank is told, and the fields of [`Role::Root`](crate::Role::Root).
pub(crate) struct Root {
    pub(crate) config: RankConfig,
    pub(crate) model: PathBuf,
    pub(crate) model_name: String,
    pub(crate) socket: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) shares: Shares,
    pub(crate) context: u32,
    pub(crate) kv_format: KvFormat,
    pub(crate) exchange: Exchange,
    pub(crate) limits: EngineLimits,
    pub(crate) orphan_timeout: Duration,
}

impl Root {
    /// Opens the socket and the rendezvous, leaves everything else to the step thread, and waits for its end.
    pub(crate) fn run(self) -> Result<(), RankError> {
        let rendezvous = match self.config.world {
            1 => None,
            world => {
                let key = self.config.key.clone();
                let rendezvous = tcp::Rendezvous::bind(self.listen, world, key)?;
                Some(rendezvous.with(self.config.links.clone()))
            }
        };
        let greeting = Greeting {
            fabric: rendezvous.as_ref().map(tcp::Rendezvous::local_addr),
            world: self.config.world,
            model_name: self.model_name.clone(),
            phase: Phase::Starting,
            patience: self.config.patience(),
        };
        let (done, outcome) = mpsc::channel();
        let (front, inputs) = Front::open(&self.socket, greeting, self.inputs_max(), done.clone())?;
        let reception = Reception::new(inputs, front.herald());
        front::spawn("steps", move || {
            let work = AssertUnwindSafe(|| self.lead(rendezvous, reception));
            let _ = done.send(catch_unwind(work).unwrap_or(Err(RankError::Panicked)));
        })?;
        // An order to end that comes while nobody takes orders arrives here too; the step thread then ends with the
        // process.
        outcome
            .recv()
            .expect("the step thread always sends its outcome")
    }

    /// The step thread: leads the ranks, and tells the front if that goes wrong.
    fn lead(
        &self,
        rendezvous: Option<tcp::Rendezvous>,
        mut reception: Reception,
    ) -> Result<(), RankError> {
        let led = self.gather_and_serve(rendezvous, &mut reception);
        if let Err(error) = &led {
            reception.enter(Phase::Lost(error.loss(self.config.rank)));
        }
        led
    }

    fn gather_and_serve(
        &self,
        rendezvous: Option<tcp::Rendezvous>,
        reception: &mut Reception,
    ) -> Result<(), RankError> {
        // A file that cannot be served is known before anybody is waited for.
        let gguf = Gguf::open(&self.model).map_err(|source| RankError::File {
            path: self.model.clone(),
            source,
        })?;
        let limits = self.derive_limits(ModelSpec::from_gguf(&gguf)?.context_length())?;
        let mut group = match rendezvous {
            None => solo(),
            Some(rendezvous) => rendezvous.accept(Instant::now() + self.config.join_timeout)?,
        };
        info!(world = self.config.world, "every rank has joined");
        let served = self.load_and_serve(&gguf, limits, &mut group, reception);
        if let Err(error) = &served {
            let loss = error.loss(self.config.rank);
            group.abort(loss.rank, &loss.reason);
        }
        served
    }

    fn load_and_serve(
        &self,
        gguf: &Gguf,
        limits: Limits,
        group: &mut Group,
        reception: &mut Reception,
    ) -> Result<(), RankError> {
        let cpu = self.config.cpu()?;
        let facts = Facts::of(&cpu);
        let load = LoadConfig {
            context: limits.context,
            kv_pages: limits.kv_pages,
            page_tokens: limits.page_tokens,
            kv_format: self.kv_format,
            exchange: self.exchange,
            batch_tokens_max: limits.batch_tokens_max,
        };
        group.set_timeout(self.config.silence_while_loading());
        let mut told = None::<Instant>;
        let mut progress = |done_bytes, total_bytes| {
            reception.take_visits();
            if told.is_none_or(|told| told.elapsed() >= PROGRESS_EVERY) {
                told = Some(Instant::now());
                reception.enter(Phase::Loading {
                    done_bytes,
                    total_bytes,
                });
            }
        };
        let model = Model::load_root(gguf, &self.shares, load, cpu, group, &mut progress)?;

        let info = CellInfo {
            model_name: self.model_name.clone(),
            context: limits.context,
            vocabulary: model.spec().vocabulary(),
            world: self.config.world,
            limits,
        };
        let mut steps = StepLoop::new(model, facts, limits, self.orphan_timeout, group, reception);
        // The first step comes when the last rank has its weights: the longer timeout holds until then.
        for report in steps.reports()? {
            report.log();
        }
        steps.set_timeout(self.config.step_timeout);
        steps.serve(info)
    }

    /// Derives every bound from the configuration and the context that the model was made for.
    fn derive_limits(&self, context_max: u32) -> Result<Limits, RankError> {
        let EngineLimits {
            running_max,
            waiting_max,
            batch_tokens_max,
        } = self.limits;
        let context = self.context;
        if context > context_max {
            return Err(RankError::Limits(format!(
                "the model was made for {context_max} tokens of context, not for {context}; ask for less"
            )));
        }
        if running_max == 0 || batch_tokens_max == 0 || context < 2 {
            return Err(RankError::Limits(format!(
                "a cell needs room for one request, one token in a step and two in the context, \
                 not for {running_max}, {batch_tokens_max} and {context}"
            )));
        }
        // Every place can hold the longest sequence. The system backs a page with memory when it is first used.
        let pages = u64::from(context.div_ceil(PAGE_TOKENS)) * running_max as u64;
        let kv_pages = u32::try_from(pages).map_err(|_| {
            RankError::Limits(format!(
                "{running_max} requests of {context} tokens are more than a cache can hold; ask for less"
            ))
        })?;
        info!(
            waiting_max,
            running_max,
            batch_tokens_max,
            kv_pages,
            page_tokens = PAGE_TOKENS,
            kv = %self.kv_format,
            exchange = %self.exchange,
            context,
            inputs_max = self.inputs_max(),
            notices_max = front::OUTBOX_MAX,
            "bounds"
        );
        Ok(Limits {
            waiting_max,
            running_max,
            batch_tokens_max,
            kv_pages,
            page_tokens: PAGE_TOKENS,
            context,
        })
    }

    /// Room for the beginning and the end of every request there may be.
    fn inputs_max(&self) -> usize {
        2 * self
            .limits
            .running_max
            .saturating_add(self.limits.waiting_max)
            .min(1 << 16)
            + 16
    }
}

/// Positions in a page: short enough that little of the last page of a sequence is wasted.
const PAGE_TOKENS: u32 = 32;
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
