//! The parts that messages are made of.

use shoal_fabric::Rank;
use shoal_kernels::Isa;
use shoal_scheduler::Limits;

use super::Phase;
use crate::bytes::{DecodeError, Put, Reader};
use crate::request::{Event, Failure, FinishReason, Request, Sampling, Timing};
use crate::status::{CellInfo, Loss, RankReport};

pub(super) fn put_request(out: &mut Vec<u8>, request: &Request) {
    let Request {
        prompt,
        sampling,
        max_tokens,
        stop_tokens,
    } = request;
    out.put_tokens(prompt);
    out.put_u32(*max_tokens);
    out.put_tokens(stop_tokens);
    out.put_f32(sampling.temperature);
    out.put_f32(sampling.top_p);
    out.put_u32(sampling.top_k);
    out.put_f32(sampling.min_p);
    out.put_f32(sampling.repetition_penalty);
    out.put_f32(sampling.presence_penalty);
    out.put_f32(sampling.frequency_penalty);
    out.put_u64(sampling.seed);
}

pub(super) fn request(from: &mut Reader<'_>) -> Result<Request, DecodeError> {
    Ok(Request {
        prompt: from.tokens()?,
        max_tokens: from.u32()?,
        stop_tokens: from.tokens()?,
        sampling: Sampling {
            temperature: from.f32()?,
            top_p: from.f32()?,
            top_k: from.u32()?,
            min_p: from.f32()?,
            repetition_penalty: from.f32()?,
            presence_penalty: from.f32()?,
            frequency_penalty: from.f32()?,
            seed: from.u64()?,
        },
    })
}

pub(super) fn put_event(out: &mut Vec<u8>, event: &Event) {
    match event {
        Event::Token(token) => {
            out.put_u8(0);
            out.put_u32(*token);
        }
        Event::Finished { reason, timing } => {
            out.put_u8(match reason {
                FinishReason::Stop => 1,
                FinishReason::Length => 2,
            });
            out.put_f64(timing.queue_ms);
            out.put_f64(timing.prompt_ms);
            out.put_f64(timing.generation_ms);
            out.put_u32(timing.prompt_tokens);
            out.put_u32(timing.generated_tokens);
            out.put_u32(timing.cached_tokens);
        }
        Event::Failed(Failure::RankLost { rank, reason }) => {
            out.put_u8(3);
            out.put_u16(rank.0);
            out.put_text(reason);
        }
        Event::Failed(Failure::Refused(reason)) => {
            out.put_u8(4);
            out.put_text(reason);
        }
        Event::Failed(Failure::Internal(reason)) => {
            out.put_u8(5);
            out.put_text(reason);
        }
    }
}

pub(super) fn event(from: &mut Reader<'_>) -> Result<Event, DecodeError> {
    Ok(match from.u8()? {
        0 => Event::Token(from.u32()?),
        1 => Event::Finished {
            reason: FinishReason::Stop,
            timing: timing(from)?,
        },
        2 => Event::Finished {
            reason: FinishReason::Length,
            timing: timing(from)?,
        },
        3 => Event::Failed(Failure::RankLost {
            rank: Rank(from.u16()?),
            reason: from.text()?,
        }),
        4 => Event::Failed(Failure::Refused(from.text()?)),
        5 => Event::Failed(Failure::Internal(from.text()?)),
        tag => return Err(DecodeError::Unknown { what: "event", tag }),
    })
}

fn timing(from: &mut Reader<'_>) -> Result<Timing, DecodeError> {
    Ok(Timing {
        queue_ms: from.f64()?,
        prompt_ms: from.f64()?,
        generation_ms: from.f64()?,
        prompt_tokens: from.u32()?,
        generated_tokens: from.u32()?,
        cached_tokens: from.u32()?,
    })
}

pub(super) fn put_phase(out: &mut Vec<u8>, phase: &Phase) {
    match phase {
        Phase::Starting => out.put_u8(0),
        Phase::Loading {
            done_bytes,
            total_bytes,
        } => {
            out.put_u8(1);
            out.put_u64(*done_bytes);
            out.put_u64(*total_bytes);
        }
        Phase::Ready(info) => {
            out.put_u8(2);
            out.put_text(&info.model_name);
            out.put_u32(info.context);
            out.put_size(info.vocabulary);
            out.put_size(info.world);
            let Limits {
                waiting_max,
                running_max,
                batch_tokens_max,
                kv_pages,
                page_tokens,
                context,
            } = info.limits;
            out.put_size(waiting_max);
            out.put_size(running_max);
            out.put_size(batch_tokens_max);
            out.put_u32(kv_pages);
            out.put_u32(page_tokens);
            out.put_u32(context);
        }
        Phase::Lost(loss) => {
            out.put_u8(3);
            out.put_u16(loss.rank.0);
            out.put_text(&loss.reason);
        }
    }
}

pub(super) fn phase(from: &mut Reader<'_>) -> Result<Phase, DecodeError> {
    Ok(match from.u8()? {
        0 => Phase::Starting,
        1 => Phase::Loading {
            done_bytes: from.u64()?,
            total_bytes: from.u64()?,
        },
        2 => Phase::Ready(CellInfo {
            model_name: from.text()?,
            context: from.u32()?,
            vocabulary: from.size()?,
            world: from.size()?,
            limits: Limits {
                waiting_max: from.size()?,
                running_max: from.size()?,
                batch_tokens_max: from.size()?,
                kv_pages: from.u32()?,
                page_tokens: from.u32()?,
                context: from.u32()?,
            },
        }),
        3 => Phase::Lost(Loss {
            rank: Rank(from.u16()?),
            reason: from.text()?,
        }),
        tag => return Err(DecodeError::Unknown { what: "phase", tag }),
    })
}

pub(super) fn put_report(out: &mut Vec<u8>, report: &RankReport) {
    out.put_u16(report.rank.0);
    out.put_u64(report.peak_memory_bytes);
    out.put_u64(report.weight_bytes);
    out.put_u64(report.kv_bytes);
    out.put_size(report.threads);
    out.put_text(&report.isa.to_string());
    out.put_text(&report.split);
}

pub(super) fn report(from: &mut Reader<'_>) -> Result<RankReport, DecodeError> {
    Ok(RankReport {
        rank: Rank(from.u16()?),
        peak_memory_bytes: from.u64()?,
        weight_bytes: from.u64()?,
        kv_bytes: from.u64()?,
        threads: from.size()?,
        isa: isa(&from.text()?)?,
        split: from.text()?,
    })
}

/// The rank may compute with what this processor does not have.
fn isa(name: &str) -> Result<Isa, DecodeError> {
    let mut all = Isa::ALL.into_iter();
    all.find(|isa| isa.to_string() == name)
        .ok_or(DecodeError::Bad("instruction set"))
}

/// The fields of a report without its texts.
pub(super) const REPORT_BYTES_MIN: usize = 2 + 4 * 8 + 2 * 4;
