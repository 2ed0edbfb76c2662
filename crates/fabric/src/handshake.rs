//! Both ends of a fresh connection prove that they hold the same key, before anything else is said.
//!
//! ```text
//! initiator                                        acceptor
//!   magic, version  ─────────────────────────────►
//!                   ◄─────────────────────────────  magic, version          (either side tells a mismatch)
//!   nonce I         ─────────────────────────────►
//!                   ◄─────────────────────────────  nonce A
//!   HMAC(key, purpose, version, "initiator", I, A) ►
//!                   ◄─────────────────────────────  1, HMAC(key, purpose, version, "acceptor", I, A)   or 0
//! ```
//! The key is never sent. Fresh nonces of both sides make an old conversation useless, and the role in each proof makes it
//! useless to send a side its own proof. The initiator proves first, so that whoever only connects learns nothing that
//! depends on the key. The keys of the two directions come from key, purpose and nonces.

use std::io;
use std::net::TcpStream;
use std::time::Instant;

use crate::error::FabricError;
use crate::key::{KEY_BYTES, Key, random_bytes};
use crate::timed;

/// Version of everything that is said over connections of this crate.
pub(crate) const PROTOCOL_VERSION: u16 = 12;

/// What a connection is for; the proof of one purpose is none for another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// A rank joins the others at rank 0.
    Rendezvous,
    /// A rank connects to another.
    Mesh,
    /// Two ranks that are connected open one more connection, over another cable.
    Cable,
    /// A control connection.
    Channel,
}

/// The keys of a connection that both ends have proved.
pub(crate) struct Session {
    pub(crate) send: Key,
    pub(crate) receive: Key,
}

/// Proves the key to the end that was connected to.
pub(crate) fn initiate(
    stream: &TcpStream,
    key: &Key,
    purpose: Purpose,
    deadline: Instant,
) -> Result<Session, FabricError> {
    let line = Line::new(stream, deadline);
    line.agree_on_version()?;
    let nonce = random_bytes();
    line.write(&nonce)?;
    let transcript = Transcript {
        key,
        purpose,
        initiator: nonce,
        acceptor: line.read()?,
    };
    line.write(&transcript.proof(INITIATOR))?;
    if line.read()? != [ACCEPTED] {
        return Err(line.wrong_token());
    }
    if !transcript.is_proved(ACCEPTOR, &line.read()?) {
        return Err(line.wrong_token());
    }
    let [send, receive] = transcript.session_keys();
    Ok(Session { send, receive })
}

/// Proves the key to the end that connected, after that has proved it.
pub(crate) fn accept(
    stream: &TcpStream,
    key: &Key,
    purpose: Purpose,
    deadline: Instant,
) -> Result<Session, FabricError> {
    let line = Line::new(stream, deadline);
    line.agree_on_version()?;
    let nonce = random_bytes();
    let transcript = Transcript {
        key,
        purpose,
        initiator: line.read()?,
        acceptor: nonce,
    };
    line.write(&nonce)?;
    if !transcript.is_proved(INITIATOR, &line.read()?) {
        line.write(&[REFUSED])?;
        return Err(line.wrong_token());
    }
    line.write(&[&[ACCEPTED][..], &transcript.proof(ACCEPTOR)].concat())?;
    let [receive, send] = transcript.session_keys();
    Ok(Session { send, receive })
}

/// What both ends have seen, and the key that makes proofs of it.
struct Transcript<'a> {
    key: &'a Key,
    purpose: Purpose,
    initiator: [u8; KEY_BYTES],
    acceptor: [u8; KEY_BYTES],
}

impl Transcript<'_> {
    fn proof(&self, role: &[u8]) -> [u8; KEY_BYTES] {
        self.over(role, |parts| self.key.mac(parts))
    }

    fn is_proved(&self, role: &[u8], proof: &[u8; KEY_BYTES]) -> bool {
        self.over(role, |parts| self.key.verify(parts, proof))
    }

    /// Returns the key from initiator to acceptor, and that of the way back.
    fn session_keys(&self) -> [Key; 2] {
        [b"forward".as_slice(), b"backward"].map(|direction| Key::from_bytes(self.proof(direction)))
    }

    fn over<T>(&self, role: &[u8], compute: impl FnOnce(&[&[u8]]) -> T) -> T {
        let purpose: &[u8] = match self.purpose {
            Purpose::Rendezvous => b"shoal rendezvous",
            Purpose::Mesh => b"shoal mesh",
            Purpose::Cable => b"shoal cable",
            Purpose::Channel => b"shoal channel",
        };
        compute(&[
            purpose,
            &PROTOCOL_VERSION.to_le_bytes(),
            role,
            &self.initiator,
            &self.acceptor,
        ])
    }
}

/// The connection while both ends prove themselves.
struct Line<'a> {
    stream: &'a TcpStream,
    peer: String,
    started: Instant,
    deadline: Instant,
}

impl<'a> Line<'a> {
    fn new(stream: &'a TcpStream, deadline: Instant) -> Self {
        let peer = stream.peer_addr().map_or_else(
            |_| "the other end".to_owned(),
            |address| address.to_string(),
        );
        Self {
            stream,
            peer,
            started: Instant::now(),
            deadline,
        }
    }

    /// Exchanges magic and version; both ends get to see both versions.
    fn agree_on_version(&self) -> Result<(), FabricError> {
        self.write(&[&MAGIC[..], &PROTOCOL_VERSION.to_le_bytes()].concat())?;
        if self.read()? != MAGIC {
            let reason = "it does not begin as shoal does".to_owned();
            return Err(FabricError::Protocol {
                rank: None,
                peer: self.peer.clone(),
                reason,
            });
        }
        match u16::from_le_bytes(self.read()?) {
            PROTOCOL_VERSION => Ok(()),
            theirs => Err(FabricError::VersionMismatch {
                peer: self.peer.clone(),
                ours: PROTOCOL_VERSION,
                theirs,
            }),
        }
    }

    fn wrong_token(&self) -> FabricError {
        FabricError::WrongToken {
            peer: self.peer.clone(),
        }
    }

    fn read<const N: usize>(&self) -> Result<[u8; N], FabricError> {
        let mut bytes = [0; N];
        let read = timed::read_exact(self.stream, &mut bytes, self.deadline);
        read.map(|()| bytes).map_err(|error| self.failure(&error))
    }

    fn write(&self, bytes: &[u8]) -> Result<(), FabricError> {
        timed::write_all(self.stream, bytes, self.deadline).map_err(|error| self.failure(&error))
    }

    fn failure(&self, error: &io::Error) -> FabricError {
        timed::failure(error, &self.peer, self.started, "proving the token")
    }
}

const MAGIC: [u8; 8] = *b"shoalfab";
const INITIATOR: &[u8] = b"initiator";
const ACCEPTOR: &[u8] = b"acceptor";
const ACCEPTED: u8 = 1;
const REFUSED: u8 = 0;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Runs `accept` against what `other` does with the other end.
    fn accepting(
        key: &Key,
        purpose: Purpose,
        other: impl FnOnce(TcpStream) + Send,
    ) -> Result<Session, FabricError> {
        let (ours, theirs) = connected();
        thread::scope(|scope| {
            scope.spawn(move || other(theirs));
            accept(&ours, key, purpose, soon())
        })
    }

    /// Runs `initiate` against what `other` does with the other end.
    fn initiating(key: &Key, other: impl FnOnce(TcpStream) + Send) -> Result<Session, FabricError> {
        let (ours, theirs) = connected();
        thread::scope(|scope| {
            scope.spawn(move || other(theirs));
            initiate(&ours, key, Purpose::Channel, soon())
        })
    }

    fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let ours = TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
        (ours, listener.accept().expect("connected above").0)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn key() -> Key {
        Key::from_token("fish")
    }

    fn receive<const N: usize>(stream: &TcpStream) -> [u8; N] {
        let mut bytes = [0; N];
        timed::read_exact(stream, &mut bytes, soon()).expect("the other end says this much");
        bytes
    }

    fn say(stream: &TcpStream, parts: &[&[u8]]) {
        timed::write_all(stream, &parts.concat(), soon()).expect("the other end listens");
    }

    fn opening() -> Vec<u8> {
        [&MAGIC[..], &PROTOCOL_VERSION.to_le_bytes()].concat()
    }

    #[test]
    fn both_ends_get_matching_keys_that_differ_by_direction() {
        let mut theirs = None;
        let ours = accepting(&key(), Purpose::Channel, |stream| {
            theirs = Some(initiate(&stream, &key(), Purpose::Channel, soon()).expect("same key"));
        });
        let (ours, theirs) = (ours.expect("same key"), theirs.expect("set by the thread"));
        assert_eq!(ours.send, theirs.receive);
        assert_eq!(ours.receive, theirs.send);
        assert_ne!(ours.send, ours.receive);
    }

    #[test]
    fn both_ends_tell_a_wrong_token() {
        let mut theirs = None;
        let ours = accepting(&key(), Purpose::Channel, |stream| {
            theirs = initiate(&stream, &Key::from_token("fowl"), Purpose::Channel, soon()).err();
        });
        assert!(matches!(ours.err(), Some(FabricError::WrongToken { .. })));
        assert!(matches!(theirs, Some(FabricError::WrongToken { .. })));
    }

    #[test]
    fn a_proof_for_one_purpose_is_none_for_another() {
        let ours = accepting(&key(), Purpose::Mesh, |stream| {
            assert!(initiate(&stream, &key(), Purpose::Channel, soon()).is_err());
        });
        assert!(matches!(ours.err(), Some(FabricError::WrongToken { .. })));
    }

    #[test]
    fn both_ends_tell_another_version() {
        const ANOTHER: u16 = PROTOCOL_VERSION + 1;
        let other = |stream: TcpStream| {
            say(&stream, &[&MAGIC, &ANOTHER.to_le_bytes()]);
            assert_eq!(
                receive::<10>(&stream).to_vec(),
                opening(),
                "it says its own version first"
            );
        };
        let mismatch = |result: Result<Session, FabricError>| {
            matches!(
                result.err(),
                Some(FabricError::VersionMismatch {
                    ours: PROTOCOL_VERSION,
                    theirs: ANOTHER,
                    ..
                })
            )
        };
        assert!(mismatch(accepting(&key(), Purpose::Channel, other)));
        assert!(mismatch(initiating(&key(), other)));
    }

    #[test]
    fn an_old_conversation_opens_nothing() {
        let mut recorded = Vec::new();
        let first = accepting(&key(), Purpose::Channel, |stream| {
            // A wire-tapping initiator: it keeps all it says.
            let nonce = random_bytes();
            say(&stream, &[&opening(), &nonce]);
            receive::<10>(&stream);
            let acceptor = receive(&stream);
            let (key, purpose) = (&key(), Purpose::Channel);
            let proof = Transcript {
                key,
                purpose,
                initiator: nonce,
                acceptor,
            }
            .proof(INITIATOR);
            say(&stream, &[&proof]);
            assert_eq!(receive(&stream), [ACCEPTED]);
            recorded = [opening(), nonce.to_vec(), proof.to_vec()].concat();
        });
        assert!(first.is_ok());
        let again = accepting(&key(), Purpose::Channel, |stream| {
            say(&stream, &[&recorded]);
            receive::<42>(&stream);
            assert_eq!(receive(&stream), [REFUSED]);
        });
        assert!(matches!(again.err(), Some(FabricError::WrongToken { .. })));
    }

    #[test]
    fn a_mirror_proves_nothing_to_an_initiator() {
        let ours = initiating(&key(), |stream| {
            say(&stream, &[&receive::<10>(&stream)]);
            say(&stream, &[&receive::<KEY_BYTES>(&stream)]);
            let proof: [u8; KEY_BYTES] = receive(&stream);
            say(&stream, &[&[ACCEPTED], &proof]);
        });
        assert!(matches!(ours.err(), Some(FabricError::WrongToken { .. })));
    }

    #[test]
    fn an_acceptor_s_own_proof_opens_nothing() {
        let ours = accepting(&key(), Purpose::Channel, |stream| {
            say(&stream, &[&opening()]);
            receive::<10>(&stream);
            let nonce = random_bytes();
            say(&stream, &[&nonce]);
            let acceptor = receive(&stream);
            let (key, purpose) = (&key(), Purpose::Channel);
            let reflected = Transcript {
                key,
                purpose,
                initiator: nonce,
                acceptor,
            }
            .proof(ACCEPTOR);
            say(&stream, &[&reflected]);
            assert_eq!(receive(&stream), [REFUSED]);
        });
        assert!(matches!(ours.err(), Some(FabricError::WrongToken { .. })));
    }

    #[test]
    fn silence_and_hanging_up_are_told_apart() {
        let (ours, theirs) = connected();
        let silent = accept(
            &ours,
            &key(),
            Purpose::Channel,
            Instant::now() + Duration::from_millis(20),
        );
        assert!(matches!(silent.err(), Some(FabricError::Silent { .. })));
        drop(theirs);
        let closed = accept(&ours, &key(), Purpose::Channel, soon());
        assert!(matches!(closed.err(), Some(FabricError::Closed { .. })));
    }
}
