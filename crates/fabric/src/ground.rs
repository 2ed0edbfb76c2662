//! What will carry the bytes of two ranks, and why: found out by the two while their connection is set up.

use std::borrow::Cow;

use tracing::info;

use crate::cables::Cables;
use crate::error::FabricError;
use crate::link::Transport;
use crate::rank::Rank;
use crate::segment::{self, Offer};
use crate::shared::Pipes;
use crate::tcp::Config;
use crate::verbs::{Agreement, Flows};

/// The end of a connection that offers memory.
pub(crate) struct Lead(Result<Offer, Cow<'static, str>>);

impl Lead {
    /// Creates what is to be offered, if `config` wants it.
    pub(crate) fn new(config: &Config) -> Self {
        Self(match config.shared_memory {
            false => Err(SWITCHED_OFF.into()),
            true => Offer::new()
                .map_err(|error| format!("this rank cannot create shared memory ({error})").into()),
        })
    }

    /// Returns the message to the other end.
    pub(crate) fn offer(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], Offer::name)
    }

    /// Hears what the other end answered to the offer.
    ///
    /// # Errors
    /// What is wrong with the answer.
    pub(crate) fn conclude(self, answer: &[u8]) -> Result<Ground, String> {
        match self.0 {
            Ok(offer) => Ok(match offer.conclude(answer)? {
                Some(segment) => Ground::Shared(Box::new(Pipes::of_creator(segment))),
                None => Ground::Apart(DECLINED.into()),
            }),
            Err(reason) if answer.is_empty() => Ok(Ground::Apart(reason)),
            Err(_) => Err("it accepts shared memory that was not offered".to_owned()),
        }
    }
}

/// What two ranks have found out.
pub(crate) enum Ground {
    /// They share memory.
    Shared(Box<Pipes>),
    /// They do not, for this reason, and use their devices.
    Rdma(Box<Flows>, Cow<'static, str>),
    /// Neither, for this reason.
    Apart(Cow<'static, str>),
}

/// What carries the bytes instead of a connection or beside it, if anything does.
pub(crate) enum Road {
    Tcp,
    /// This connection and others.
    Striped(Cables),
    Shared(Box<Pipes>),
    Rdma(Box<Flows>),
}

impl Ground {
    /// Opens what the other end offers, if `config` wants it; returns the answer to it as well.
    pub(crate) fn seek(config: &Config, offer: &[u8]) -> (Vec<u8>, Self) {
        let apart = |reason| (Vec::new(), Self::Apart(reason));
        if !config.shared_memory {
            return apart(SWITCHED_OFF.into());
        }
        if offer.is_empty() {
            return apart("the peer offers no shared memory".into());
        }
        match segment::open(offer) {
            Ok((segment, proof)) => {
                let pipes = Box::new(Pipes::of_opener(segment));
                (proof.to_vec(), Self::Shared(pipes))
            }
            Err(error) => {
                apart(format!("the peer's memory cannot be opened here ({error})").into())
            }
        }
    }

    /// Tries the devices where memory is not shared; `agree` asks the other end, which does the same.
    ///
    /// # Errors
    /// Of `agree`.
    pub(crate) fn or_rdma(
        self,
        agree: impl FnOnce() -> Result<Agreement, FabricError>,
    ) -> Result<Self, FabricError> {
        let Self::Apart(why) = self else {
            return Ok(self);
        };
        Ok(match agree()? {
            Ok(flows) => Self::Rdma(Box::new(flows), why),
            Err(reason) => Self::Apart(format!("{why}; rdma: {reason}").into()),
        })
    }

    /// Says what will carry the bytes between `rank` and `peer`, and why; where nothing is better than TCP, `agree` finds
    /// out with the other end, for the reason it is given, over which cables they go.
    ///
    /// # Errors
    /// Of `agree`.
    pub(crate) fn settle(
        self,
        rank: Rank,
        peer: Rank,
        agree: impl FnOnce(&str) -> Result<Cables, FabricError>,
    ) -> Result<Road, FabricError> {
        let (transport, reason, road) = match self {
            Self::Shared(pipes) => (
                Transport::SharedMemory.to_string(),
                "both ranks have opened the same memory".into(),
                Road::Shared(pipes),
            ),
            Self::Rdma(flows, why) => {
                let reason = [&[flows.proof(), why.into_owned()], &flows.left_out[..]].concat();
                (flows.to_string(), reason.join("; "), Road::Rdma(flows))
            }
            Self::Apart(why) => {
                let cables = agree(&why)?;
                let reason = [&[why.into_owned()], &cables.left_out[..]].concat();
                (cables.to_string(), reason.join("; "), cables.into_road())
            }
        };
        info!(%rank, %peer, transport, reason, "link up");
        Ok(road)
    }
}

const SWITCHED_OFF: &str = "shared memory is switched off on this rank";
const DECLINED: &str = "the peer did not open this rank's memory: it is on another machine, in another container, of \
    another user, or has it switched off";

#[cfg(test)]
mod tests {
    use super::*;

    use crate::interfaces::Interfaces;
    use crate::tcp::Rdma;

    const ON: Config = Config {
        shared_memory: true,
        rdma: Rdma::Off,
        tcp: true,
        interfaces: Interfaces::USUAL,
    };
    const OFF: Config = Config {
        shared_memory: false,
        ..ON
    };

    /// What both ends find out, the one that leads first; nothing where they share memory.
    fn reasons(lead: Config, follow: Config) -> [Option<String>; 2] {
        let lead = Lead::new(&lead);
        let (answer, follow) = Ground::seek(&follow, lead.offer());
        let lead = lead.conclude(&answer).expect("an honest answer");
        [lead, follow].map(|ground| match ground {
            Ground::Apart(reason) => Some(reason.into_owned()),
            Ground::Shared(_) | Ground::Rdma(..) => None,
        })
    }

    fn is_shared(ground: &Ground) -> bool {
        matches!(ground, Ground::Shared(_))
    }

    #[test]
    fn memory_is_shared_if_both_want_it() {
        assert_eq!(reasons(ON, ON), [None, None]);
        let off = || Some(SWITCHED_OFF.to_owned());
        let unoffered = Some("the peer offers no shared memory".to_owned());
        assert_eq!(reasons(OFF, ON), [off(), unoffered]);
        assert_eq!(reasons(ON, OFF), [Some(DECLINED.to_owned()), off()]);
        assert_eq!(reasons(OFF, OFF), [off(), off()]);
    }

    #[test]
    fn memory_of_another_machine_is_not_found() {
        for name in [&[9; 16][..], b"short", &[0; 40]] {
            let (answer, ground) = Ground::seek(&ON, name);
            assert!(answer.is_empty() && !is_shared(&ground));
        }
        let ground = Lead::new(&ON).conclude(&[]).expect("it may decline");
        assert!(!is_shared(&ground));
    }

    #[test]
    fn an_answer_that_only_guesses_is_refused() {
        for answer in [&[0][..], &[0; 32], &[0; 1000]] {
            assert!(Lead::new(&ON).conclude(answer).is_err());
            assert!(Lead::new(&OFF).conclude(answer).is_err());
        }
    }

    #[test]
    fn an_offer_can_be_taken_once() {
        let lead = Lead::new(&ON);
        let (answer, first) = Ground::seek(&ON, lead.offer());
        let (_, second) = Ground::seek(&ON, lead.offer());
        assert!(is_shared(&first) && !is_shared(&second));
        assert!(is_shared(&lead.conclude(&answer).expect("honest")));
    }
}
