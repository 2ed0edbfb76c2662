//! Everything a client knows, under one lock, so that the order of what it says is the order of what it notes.

use std::time::Instant;

use shoal_fabric::Rank;

use super::journal::{Journal, Surplus};
use super::{SubmitError, state_of};
use crate::request::{Event, Failure, Request};
use crate::status::{
    CellInfo, CellState, Counters, Loss, Place, RankReport, RankState, RankStatus, Status,
};
use crate::wire::{self, Command, Notice, Phase};

#[derive(Debug)]
pub(super) struct Desk {
    pub(super) state: CellState,
    /// What the cell offers; kept after a loss, for its limits.
    pub(super) info: Option<CellInfo>,
    pub(super) places: Vec<Place>,
    /// How many times the ranks have reported, and what they said last.
    pub(super) reports: (u64, Vec<RankReport>),
    attachment: Option<Attachment>,
    attachments: u64,
    journal: Journal,
    /// Kept while the cell forms again, so that whoever asks meanwhile hears why it is not ready.
    last_loss: Option<Loss>,
    ranks: Vec<RankState>,
    counters: Counters,
    /// Smoothed time that requests take from submission to end.
    request_seconds: f64,
}

#[derive(Debug)]
struct Attachment {
    /// Tells what an earlier attachment still has to say from what this one says.
    number: u64,
    /// Frames on their way to the writer thread, which closes the socket once this is dropped and all are written.
    outbox: async_channel::Sender<Vec<u8>>,
}

impl Default for Desk {
    fn default() -> Self {
        Self {
            state: CellState::Starting,
            info: None,
            places: Vec::new(),
            reports: (0, Vec::new()),
            attachment: None,
            attachments: 0,
            journal: Journal::default(),
            last_loss: None,
            ranks: Vec::new(),
            counters: Counters::default(),
            request_seconds: 0.0,
        }
    }
}

impl Desk {
    pub(super) fn is_attached(&self) -> bool {
        self.attachment.is_some()
    }

    /// Begins an attachment; returns its number and what its writer is to write.
    pub(super) fn attach(
        &mut self,
        world: usize,
        phase: Phase,
    ) -> (u64, async_channel::Receiver<Vec<u8>>) {
        // `submit` holds its bound.
        let (outbox, frames) = async_channel::unbounded();
        self.attachments += 1;
        let number = self.attachments;
        self.attachment = Some(Attachment { number, outbox });
        self.ranks = vec![RankState::Starting; world.min(RANKS_MAX)];
        self.enter(phase);
        (number, frames)
    }

    pub(super) fn submit(
        &mut self,
        mut request: Request,
    ) -> Result<(u64, async_channel::Receiver<Event>), SubmitError> {
        let info = self.admit()?;
        check(&request, &info)?;
        request.max_tokens = request
            .max_tokens
            .min(info.context - request.prompt.len() as u32);
        self.counters.requests_total += 1;
        self.counters.prompt_tokens_total += request.prompt.len() as u64;
        let (id, events) = self.journal.open(request.clone(), Instant::now());
        self.say(&Command::Submit { id, request });
        Ok((id, events))
    }

    /// Says whether there is room for a request.
    pub(super) fn admit(&mut self) -> Result<CellInfo, SubmitError> {
        let (CellState::Ready, Some(info), Some(attachment)) =
            (&self.state, &self.info, &self.attachment)
        else {
            return Err(SubmitError::NotReady(self.why_not_ready()));
        };
        // Every frame in the outbox is a request or the end of one. Rank 0 takes them between two steps; only a front
        // that opens and cancels requests by the thousand within one gets this far ahead of it.
        let open_max = info.limits.open_max();
        if self.journal.len() >= open_max || attachment.outbox.len() > 2 * open_max + 64 {
            let retry_after_seconds = self.retry_after_seconds(info.limits.running_max);
            self.counters.refused_total += 1;
            return Err(SubmitError::QueueFull {
                retry_after_seconds,
            });
        }
        Ok(info.clone())
    }

    pub(super) fn cancel(&mut self, id: u64) {
        if self.journal.cancel(id) {
            self.counters.cancelled_total += 1;
            self.say(&Command::Cancel { id });
        }
    }

    /// Puts a message into the outbox; says whether there is one.
    pub(super) fn say(&self, command: &Command) -> bool {
        let Some(attachment) = &self.attachment else {
            return false;
        };
        let mut frame = Vec::new();
        command.encode(&mut frame);
        // The writer has given up when it is closed: the reader will say why.
        attachment.outbox.try_send(frame).is_ok()
    }

    /// Takes what rank 0 said.
    pub(super) fn hear(&mut self, number: u64, notice: Notice) -> Result<(), Loss> {
        if self
            .attachment
            .as_ref()
            .is_none_or(|it| it.number != number)
        {
            return Ok(());
        }
        match notice {
            Notice::Phase(Phase::Lost(loss)) => return Err(loss),
            // Between the order to end and the end, readiness is no news.
            Notice::Phase(_) if self.state == CellState::Stopping => {}
            Notice::Phase(phase) => self.enter(phase),
            Notice::Started { id } => self.journal.start(id),
            Notice::Event {
                id,
                event: Event::Token(token),
            } => {
                let appended = self.journal.append(id, token);
                let appended = appended
                    .map_err(|Surplus| broken("it sent more tokens than were asked for"))?;
                self.counters.generated_tokens_total += u64::from(appended);
            }
            Notice::Event { id, event } => self.end(id, event),
            Notice::Alive => {}
            Notice::Ranks(reports) => self.reports = (self.reports.0 + 1, reports),
            Notice::Hello(_) | Notice::Busy | Notice::Version { .. } => {
                return Err(broken("it greeted a second time"));
            }
        }
        Ok(())
    }

    /// Ends an attachment that fell apart; says whether that is news.
    pub(super) fn lose(&mut self, number: u64, loss: Loss) -> bool {
        if self
            .attachment
            .as_ref()
            .is_none_or(|it| it.number != number)
        {
            return false;
        }
        let stopping = self.state == CellState::Stopping;
        self.counters.losses_total += u64::from(!stopping);
        self.leave(loss);
        !stopping
    }

    /// Leaves the cell, if there is one, and fails what is open.
    pub(super) fn leave(&mut self, loss: Loss) {
        self.attachment = None;
        let Loss { rank, reason } = loss.clone();
        self.fail_all(&Failure::RankLost { rank, reason });
        if self.state == CellState::Stopping {
            return;
        }
        // One loss ends the group: the other ranks go too.
        self.ranks.fill(RankState::Stopping);
        if let Some(state) = self.ranks.get_mut(rank.index()) {
            *state = RankState::Lost;
        }
        self.last_loss = Some(loss.clone());
        self.state = CellState::Lost(loss);
    }

    pub(super) fn shutdown(&mut self) {
        self.say(&Command::Shutdown);
        self.state = CellState::Stopping;
        self.ranks.fill(RankState::Stopping);
        self.fail_all(&Failure::Refused("it was told to end".to_owned()));
    }

    pub(super) fn status(&self) -> Status {
        let rank_status = |(index, &state): (usize, &RankState)| RankStatus {
            rank: Rank(index as u16),
            place: self.places.get(index).cloned().unwrap_or_default(),
            state,
        };
        let running = self.journal.started();
        Status {
            state: self.state.clone(),
            last_loss: self.last_loss.clone(),
            ranks: self.ranks.iter().enumerate().map(rank_status).collect(),
            waiting: self.journal.len() - running,
            running,
            limits: self.info.as_ref().map(|info| info.limits),
            counters: self.counters,
        }
    }

    /// Says for a person why the cell takes no requests.
    pub(super) fn why_not_ready(&self) -> String {
        let now = match &self.state {
            CellState::Starting => "its ranks are starting".to_owned(),
            CellState::Loading {
                done_bytes,
                total_bytes,
            } => {
                let (done, total) = (done_bytes / 1_000_000, total_bytes / 1_000_000);
                format!("loading: {done} of {total} MB")
            }
            CellState::Ready => return "its connection is gone".to_owned(),
            CellState::Lost(loss) => return format!("{loss}; the cell has to form again"),
            CellState::Stopping => return "it was told to end".to_owned(),
        };
        match &self.last_loss {
            Some(loss) => format!("{loss}; the cell is forming again ({now})"),
            None => now,
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.state = state_of(&phase);
        let ranks = match phase {
            Phase::Starting | Phase::Lost(_) => RankState::Starting,
            Phase::Loading { .. } => RankState::Loading,
            Phase::Ready(info) => {
                self.info = Some(info);
                self.last_loss = None;
                RankState::Ready
            }
        };
        self.ranks.fill(ranks);
    }

    fn end(&mut self, id: u64, event: Event) {
        let finished = matches!(event, Event::Finished { .. });
        let Some(entry) = self.journal.close(id, event) else {
            return;
        };
        if finished {
            self.counters.finished_total += 1;
            let seconds = entry.submitted.elapsed().as_secs_f64();
            let weight = if self.counters.finished_total == 1 {
                1.0
            } else {
                0.2
            };
            self.request_seconds += weight * (seconds - self.request_seconds);
        } else {
            self.counters.failed_total += 1;
        }
    }

    fn fail_all(&mut self, failure: &Failure) {
        self.counters.failed_total += self.journal.fail_all(failure) as u64;
    }

    /// With `running_max` requests at work, one ends every so often.
    fn retry_after_seconds(&self, running_max: usize) -> u64 {
        (self.request_seconds / running_max.max(1) as f64)
            .ceil()
            .clamp(1.0, 60.0) as u64
    }
}

fn check(request: &Request, info: &CellInfo) -> Result<(), SubmitError> {
    let invalid = |reason: String| Err(SubmitError::Invalid(reason));
    if request.prompt.is_empty() {
        return invalid("the prompt has no tokens".to_owned());
    }
    if request.max_tokens == 0 {
        return invalid("it asks for no tokens".to_owned());
    }
    if let Some(token) = request
        .prompt
        .iter()
        .find(|&&token| token as usize >= info.vocabulary)
    {
        return invalid(format!(
            "token {token} is not one of the model's {}",
            info.vocabulary
        ));
    }
    if request.prompt.len() >= info.context as usize {
        return Err(SubmitError::TooLong {
            context: info.context,
            prompt_tokens: request.prompt.len(),
        });
    }
    if !wire::fits(request) {
        return invalid(format!(
            "it has {} stop tokens, more than a message can hold",
            request.stop_tokens.len()
        ));
    }
    Ok(())
}

/// What speaks at the other end is rank 0.
fn broken(what: &str) -> Loss {
    Loss {
        rank: Rank(0),
        reason: format!("its messages make no sense: {what}"),
    }
}

/// As many ranks as their numbers can tell apart.
const RANKS_MAX: usize = 1 << 16;
