//! What the front and rank 0 say to each other over the Unix socket.
//!
//! A message is a frame: its length as 32 bits, a tag, its fields, all little-endian. The front speaks first, with
//! [`Command::Hello`]; rank 0 answers with [`Notice::Hello`] or says why not and hangs up. The beginning of both greetings
//! is the same in every version, so that two releases can tell each other apart. After that each side says what it has to
//! say when it has to: there are no replies to wait for. Decoding never panics and allocates no more than it was sent.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::Duration;

use crate::bytes::{Put, Reader};
use crate::request::{Event, Request};
use crate::status::{CellInfo, Loss, RankReport};

mod fields;

use fields::{
    REPORT_BYTES_MIN, event, phase, put_event, put_phase, put_report, put_request, report, request,
};

pub use crate::bytes::DecodeError;

/// The version of this protocol. It grows with every change; there is no talk between versions.
pub const VERSION: u16 = 2;

/// What the front says.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// The greeting.
    Hello {
        /// The front's [`VERSION`].
        version: u16,
    },
    /// Take a request; its events carry `id`.
    Submit {
        /// A number no other open request of this front has.
        id: u64,
        /// The request.
        request: Request,
    },
    /// Stop working on a request. No more events of it are wanted.
    Cancel {
        /// Its number.
        id: u64,
    },
    /// Say what each rank holds: [`Notice::Ranks`].
    Inspect,
    /// End the whole cell.
    Shutdown,
}

/// What rank 0 says.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// The greeting.
    Hello(Greeting),
    /// There is a front already; rank 0 hangs up.
    Busy,
    /// The front is of another version; rank 0 hangs up.
    Version {
        /// Rank 0's [`VERSION`].
        version: u16,
    },
    /// The cell has gone on to another phase.
    Phase(Phase),
    /// A request was given its place.
    Started {
        /// Its number.
        id: u64,
    },
    /// Something happened to a request.
    Event {
        /// Its number.
        id: u64,
        /// What happened.
        event: Event,
    },
    /// What each rank holds, in order.
    Ranks(Vec<RankReport>),
    /// The thread that leads the ranks is at work, and has nothing else to say.
    Alive,
}

/// What rank 0 says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Greeting {
    /// Where it awaits the other ranks; `None` in a world of one.
    pub fabric: Option<SocketAddr>,
    /// Number of ranks.
    pub world: usize,
    /// Name under which the model is served.
    pub model_name: String,
    /// How far it is.
    pub phase: Phase,
    /// How long it may be silent.
    pub patience: Patience,
}

/// How long rank 0 may be silent before its front gives it up; in whole milliseconds on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Until the cell is ready.
    pub forming: Duration,
    /// While it serves.
    pub serving: Duration,
}

impl Patience {
    /// Returns what holds in a phase.
    #[must_use]
    pub fn during(&self, phase: &Phase) -> Duration {
        match phase {
            Phase::Ready(_) => self.serving,
            Phase::Starting | Phase::Loading { .. } | Phase::Lost(_) => self.forming,
        }
    }
}

/// How far a cell is.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Waiting for its ranks.
    Starting,
    /// Handing out weights.
    Loading {
        /// Bytes handed out.
        done_bytes: u64,
        /// Bytes there are.
        total_bytes: u64,
    },
    /// Serving.
    Ready(CellInfo),
    /// Over: a rank is gone.
    Lost(Loss),
}

/// Says whether a request fits into a frame.
pub(crate) fn fits(request: &Request) -> bool {
    let tokens = request.prompt.len() + request.stop_tokens.len();
    tokens <= (FRAME_BYTES_MAX as usize - SUBMIT_BYTES_MAX) / 4
}

impl Command {
    /// Appends the frame of this message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        framed(out, |out| match self {
            Self::Hello { version } => put_greeting(out, *version),
            Self::Submit { id, request } => {
                out.put_u8(1);
                out.put_u64(*id);
                put_request(out, request);
            }
            Self::Cancel { id } => {
                out.put_u8(2);
                out.put_u64(*id);
            }
            Self::Inspect => out.put_u8(3),
            Self::Shutdown => out.put_u8(4),
        });
    }

    /// Decodes what is in a frame, without its length.
    ///
    /// # Errors
    /// [`DecodeError`] for anything that [`encode`](Self::encode) does not write.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(payload);
        let message = match from.u8()? {
            GREETING => {
                let version = greeted_version(&mut from)?;
                if version != VERSION {
                    // What else a greeting of another version holds only that version knows.
                    return Ok(Self::Hello { version });
                }
                Self::Hello { version }
            }
            1 => Self::Submit {
                id: from.u64()?,
                request: request(&mut from)?,
            },
            2 => Self::Cancel { id: from.u64()? },
            3 => Self::Inspect,
            4 => Self::Shutdown,
            tag => {
                return Err(DecodeError::Unknown {
                    what: "command",
                    tag,
                });
            }
        };
        from.end()?;
        Ok(message)
    }
}

impl Notice {
    /// Appends the frame of this message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        framed(out, |out| match self {
            Self::Hello(greeting) => {
                put_greeting(out, VERSION);
                out.put_u8(u8::from(greeting.fabric.is_some()));
                if let Some(address) = &greeting.fabric {
                    out.put_address(address);
                }
                out.put_size(greeting.world);
                out.put_text(&greeting.model_name);
                put_phase(out, &greeting.phase);
                put_milliseconds(out, greeting.patience.forming);
                put_milliseconds(out, greeting.patience.serving);
            }
            Self::Busy => out.put_u8(1),
            // A greeting with nothing after the version.
            Self::Version { version } => put_greeting(out, *version),
            Self::Phase(phase) => {
                out.put_u8(3);
                put_phase(out, phase);
            }
            Self::Started { id } => {
                out.put_u8(4);
                out.put_u64(*id);
            }
            Self::Event { id, event } => {
                out.put_u8(5);
                out.put_u64(*id);
                put_event(out, event);
            }
            Self::Ranks(reports) => {
                out.put_u8(6);
                out.put_len(reports.len());
                for report in reports {
                    put_report(out, report);
                }
            }
            Self::Alive => out.put_u8(7),
        });
    }

    /// Decodes what is in a frame, without its length.
    ///
    /// # Errors
    /// [`DecodeError`] for anything that [`encode`](Self::encode) does not write.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(payload);
        let message = match from.u8()? {
            GREETING => {
                let version = greeted_version(&mut from)?;
                if version != VERSION {
                    return Ok(Self::Version { version });
                }
                Self::Hello(Greeting {
                    fabric: from.option(Reader::address)?,
                    world: from.size()?,
                    model_name: from.text()?,
                    phase: phase(&mut from)?,
                    patience: Patience {
                        forming: Duration::from_millis(from.u64()?),
                        serving: Duration::from_millis(from.u64()?),
                    },
                })
            }
            1 => Self::Busy,
            3 => Self::Phase(phase(&mut from)?),
            4 => Self::Started { id: from.u64()? },
            5 => Self::Event {
                id: from.u64()?,
                event: event(&mut from)?,
            },
            6 => Self::Ranks(from.list(REPORT_BYTES_MIN, report)?),
            7 => Self::Alive,
            tag => {
                return Err(DecodeError::Unknown {
                    what: "notice",
                    tag,
                });
            }
        };
        from.end()?;
        Ok(message)
    }
}

/// Reads one frame into `payload`, without its length.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] when the other side has hung up, [`io::ErrorKind::InvalidData`] when the length is
/// beyond reason.
pub fn read_frame(from: &mut impl Read, payload: &mut Vec<u8>) -> io::Result<()> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len);
    if len > FRAME_BYTES_MAX {
        let message =
            format!("a message of {len} bytes, more than the {FRAME_BYTES_MAX} there may be");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    payload.clear();
    // Grows with what arrives: a forged length allocates nothing.
    let read = from.take(len.into()).read_to_end(payload)?;
    if read < len as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// Returns the bytes of a report, as ranks gather them.
#[must_use]
pub fn encode_report(report: &RankReport) -> Vec<u8> {
    let mut out = Vec::new();
    put_report(&mut out, report);
    out
}

/// Decodes the bytes of a report.
///
/// # Errors
/// [`DecodeError`] for anything that [`encode_report`] does not write.
pub fn decode_report(bytes: &[u8]) -> Result<RankReport, DecodeError> {
    let mut from = Reader::new(bytes);
    let report = report(&mut from)?;
    from.end()?;
    Ok(report)
}

fn framed(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.put_u32(0);
    body(out);
    let len = u32::try_from(out.len() - start - 4).expect("a message is far below 4 GiB");
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
}

fn put_milliseconds(out: &mut Vec<u8>, duration: Duration) {
    out.put_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
}

fn put_greeting(out: &mut Vec<u8>, version: u16) {
    out.put_u8(GREETING);
    out.put(MAGIC);
    out.put_u16(version);
}

fn greeted_version(from: &mut Reader<'_>) -> Result<u16, DecodeError> {
    for &byte in MAGIC {
        if from.u8()? != byte {
            return Err(DecodeError::Bad("greeting"));
        }
    }
    from.u16()
}

/// The tag of both greetings, in every version.
const GREETING: u8 = 0;
/// What every greeting goes on with.
const MAGIC: &[u8; 5] = b"shoal";
/// Room for the longest prompt anybody has the memory for.
const FRAME_BYTES_MAX: u32 = 16 << 20;
/// No less than a request takes beside its tokens.
const SUBMIT_BYTES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use shoal_fabric::Rank;
    use shoal_kernels::Isa;
    use shoal_scheduler::Limits;

    use super::*;
    use crate::request::{Failure, FinishReason, Sampling, Timing};

    fn commands() -> Vec<Command> {
        let sampling = Sampling {
            seed: u64::MAX,
            top_k: 40,
            top_p: 0.9,
            ..Sampling::greedy()
        };
        let request = Request {
            prompt: vec![1, 2, 3],
            sampling,
            max_tokens: 7,
            stop_tokens: vec![0, 9],
        };
        vec![
            Command::Hello { version: VERSION },
            Command::Submit { id: 3, request },
            Command::Cancel { id: 3 },
            Command::Inspect,
            Command::Shutdown,
        ]
    }

    fn notices() -> Vec<Notice> {
        let limits = Limits {
            waiting_max: 1,
            running_max: 2,
            batch_tokens_max: 3,
            kv_pages: 4,
            page_tokens: 5,
            context: 6,
        };
        let model_name = "tiny".to_owned();
        let info = CellInfo {
            model_name: model_name.clone(),
            context: 6,
            vocabulary: 7,
            world: 2,
            limits,
        };
        let report = RankReport {
            rank: Rank(1),
            peak_memory_bytes: 1,
            weight_bytes: 2,
            kv_bytes: 3,
            threads: 4,
            isa: Isa::Scalar,
            split: "heads 0..5 of 9".to_owned(),
        };
        let timing = Timing {
            queue_ms: 0.5,
            prompt_ms: 1.5,
            prompt_tokens: 3,
            ..Timing::default()
        };
        let reason = "connection closed".to_owned();
        let loss = Loss {
            rank: Rank(1),
            reason: reason.clone(),
        };
        let event = |event| Notice::Event { id: 9, event };
        let hello = |fabric: &str, phase| {
            let fabric = fabric.parse().ok();
            Notice::Hello(Greeting {
                fabric,
                world: 2,
                model_name: model_name.clone(),
                phase,
                patience: Patience {
                    forming: Duration::from_millis(9),
                    serving: Duration::from_millis(u64::MAX),
                },
            })
        };
        vec![
            hello("127.0.0.1:80", Phase::Starting),
            hello(
                "[::1]:80",
                Phase::Loading {
                    done_bytes: 1,
                    total_bytes: 2,
                },
            ),
            hello("none", Phase::Ready(info.clone())),
            Notice::Busy,
            Notice::Version {
                version: VERSION + 1,
            },
            Notice::Phase(Phase::Ready(info)),
            Notice::Phase(Phase::Lost(loss)),
            Notice::Started { id: 9 },
            event(Event::Token(5)),
            event(Event::Finished {
                reason: FinishReason::Stop,
                timing,
            }),
            event(Event::Finished {
                reason: FinishReason::Length,
                timing,
            }),
            event(Event::Failed(Failure::RankLost {
                rank: Rank(1),
                reason,
            })),
            event(Event::Failed(Failure::Refused("full".to_owned()))),
            event(Event::Failed(Failure::Internal("no".to_owned()))),
            Notice::Ranks(vec![report.clone(), report]),
            Notice::Alive,
        ]
    }

    /// The payload of the one frame in `bytes`.
    fn payload(bytes: &[u8]) -> Vec<u8> {
        let mut payload = Vec::new();
        read_frame(&mut &bytes[..], &mut payload).expect("a whole frame");
        assert_eq!(payload.len() + 4, bytes.len());
        payload
    }

    #[test]
    fn messages_come_back_as_they_went() {
        for command in commands() {
            let mut bytes = Vec::new();
            command.encode(&mut bytes);
            assert_eq!(Command::decode(&payload(&bytes)), Ok(command));
        }
        for notice in notices() {
            let mut bytes = Vec::new();
            notice.encode(&mut bytes);
            assert_eq!(Notice::decode(&payload(&bytes)), Ok(notice));
        }
    }

    #[test]
    fn a_message_cut_short_or_grown_is_refused() {
        for notice in notices() {
            let mut bytes = Vec::new();
            notice.encode(&mut bytes);
            let mut payload = payload(&bytes);
            if matches!(notice, Notice::Version { .. }) {
                continue; // of which only the beginning is read
            }
            for len in 0..payload.len() {
                assert!(
                    Notice::decode(&payload[..len]).is_err(),
                    "{notice:?} cut to {len}"
                );
            }
            payload.push(0);
            assert_eq!(Notice::decode(&payload), Err(DecodeError::Long));
        }
    }

    #[test]
    fn a_greeting_of_a_later_version_is_understood_as_one() {
        let mut later = b"\0shoal\x09\x00".to_vec();
        later.extend(b"whatever it may hold");
        assert_eq!(Command::decode(&later), Ok(Command::Hello { version: 9 }));
        assert_eq!(Notice::decode(&later), Ok(Notice::Version { version: 9 }));
    }

    #[test]
    fn the_longest_request_that_fits_can_be_read() {
        let mut request = Request {
            prompt: vec![1],
            sampling: Sampling::greedy(),
            max_tokens: 1,
            stop_tokens: vec![2; (FRAME_BYTES_MAX as usize - SUBMIT_BYTES_MAX) / 4 - 1],
        };
        assert!(fits(&request));
        let command = Command::Submit {
            id: u64::MAX,
            request: request.clone(),
        };
        let mut bytes = Vec::new();
        command.encode(&mut bytes);
        assert_eq!(Command::decode(&payload(&bytes)), Ok(command));
        request.prompt.push(1);
        assert!(!fits(&request));
    }

    #[test]
    fn forged_lengths_allocate_nothing() {
        let mut submit = vec![1];
        submit.extend([0; 8]);
        submit.extend(u32::MAX.to_le_bytes());
        assert_eq!(Command::decode(&submit), Err(DecodeError::Short));
        let frame = u32::MAX.to_le_bytes();
        let error = read_frame(&mut &frame[..], &mut Vec::new()).expect_err("beyond reason");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn decoding_never_panics(tag in 0..9_u8, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let tagged = [&[tag], &bytes[..]].concat();
            let _ = Command::decode(&tagged);
            let _ = Notice::decode(&tagged);
        }

        #[test]
        fn a_flipped_byte_never_panics(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut bytes = Vec::new();
            which.get(&notices()).encode(&mut bytes);
            let mut payload = payload(&bytes);
            *at.get_mut(&mut payload) = to;
            let _ = Notice::decode(&payload);
        }
    }
}
