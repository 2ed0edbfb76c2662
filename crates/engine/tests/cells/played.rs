//! What a client makes of a rank 0 that the test plays.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, drain, eventually, greedy};
use shoal_engine::client::{
    AttachError, CellInfo, CellState, Client, Event, Failure, Limits, Loss, SubmitError,
};
use shoal_engine::wire::{self, Command, Greeting, Notice, Patience, Phase};
use shoal_fabric::Rank;

const PROMPT: &[u32] = &[3, 1, 4, 1, 5];

/// A rank 0 that is played by the test.
struct Played {
    folder: tempfile::TempDir,
    listener: UnixListener,
}

impl Played {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join("socket")).expect("a socket");
        Self { folder, listener }
    }

    /// Attaches a client while `say` is said to it after its greeting.
    fn attach(&self, client: &Client, say: &[Notice]) -> (UnixStream, Result<(), AttachError>) {
        thread::scope(|scope| {
            let attached = scope.spawn(|| {
                client.attach(
                    &self.folder.path().join("socket"),
                    Instant::now() + PATIENCE,
                )
            });
            let (mut stream, _) = self.listener.accept().expect("it comes");
            let mut frame = Vec::new();
            wire::read_frame(&mut stream, &mut frame).expect("a greeting");
            assert_eq!(
                Command::decode(&frame),
                Ok(Command::Hello {
                    version: wire::VERSION
                })
            );
            tell(&mut stream, say);
            (stream, attached.join().expect("no panic").map(drop))
        })
    }

    fn attach_ready(&self, client: &Client) -> UnixStream {
        self.attach_in(client, Self::ready(), PATIENCE)
    }

    fn ready() -> Phase {
        let limits = Limits {
            waiting_max: 1,
            running_max: 1,
            batch_tokens_max: 8,
            kv_pages: 8,
            page_tokens: 32,
            context: 64,
        };
        let info = CellInfo {
            model_name: "played".to_owned(),
            context: 64,
            vocabulary: 512,
            world: 2,
            limits,
        };
        Phase::Ready(info)
    }

    /// Attaches a client that bears a silence of `serving` while the cell serves.
    fn attach_in(&self, client: &Client, phase: Phase, serving: Duration) -> UnixStream {
        let patience = Patience {
            forming: PATIENCE,
            serving,
        };
        let greeting = Greeting {
            fabric: None,
            world: 2,
            model_name: "played".to_owned(),
            phase,
            patience,
        };
        let (stream, attached) = self.attach(client, &[Notice::Hello(greeting)]);
        attached.expect("attached");
        stream
    }
}

fn tell(stream: &mut UnixStream, notices: &[Notice]) {
    let mut frames = Vec::new();
    notices.iter().for_each(|notice| notice.encode(&mut frames));
    stream.write_all(&frames).expect("sent");
}

fn hear(stream: &mut UnixStream) -> Command {
    let mut frame = Vec::new();
    wire::read_frame(stream, &mut frame).expect("a command");
    Command::decode(&frame).expect("one that makes sense")
}

fn assert_rank_0_lost(end: &Event) {
    let Event::Failed(Failure::RankLost { rank: Rank(0), .. }) = end else {
        panic!("{end:?}")
    };
}

#[test]
fn the_loss_of_rank_0_fails_every_stream_by_name() {
    let (played, client) = (Played::new(), Client::new());
    let mut stream = played.attach_ready(&client);
    let first = client.submit(greedy(PROMPT, 4)).expect("taken");
    let second = client.submit(greedy(PROMPT, 4)).expect("taken");
    let Command::Submit { id, request } = hear(&mut stream) else {
        panic!("no request")
    };
    assert_eq!((id, &request.prompt[..]), (first.id(), PROMPT));
    tell(
        &mut stream,
        &[
            Notice::Started { id },
            Notice::Event {
                id,
                event: Event::Token(9),
            },
        ],
    );
    eventually("the first one runs", || client.status().running == 1);
    drop(stream);
    let (tokens, end) = drain(first);
    assert_eq!(tokens, [9]);
    assert_rank_0_lost(&end);
    assert_rank_0_lost(&drain(second).1);
    assert_eq!(client.losses().recv_blocking().expect("told").rank, Rank(0));
    assert_eq!(client.status().counters.failed_total, 2);
}

#[test]
fn a_rank_0_that_falls_silent_is_given_up() {
    let (played, client) = (Played::new(), Client::new());
    let silence = Duration::from_millis(20);
    let mut hung = played.attach_in(&client, Phase::Starting, silence);
    // While the cell forms it may be silent for longer, and it is ready only when it says so.
    let Err(SubmitError::NotReady(why)) = client.submit(greedy(PROMPT, 1)) else {
        panic!("taken by a cell that is not ready")
    };
    assert_eq!(why, "its ranks are starting");
    tell(&mut hung, &[Notice::Alive, Notice::Phase(Played::ready())]);
    let loss = client.losses().recv_blocking().expect("told");
    let reason = "it was silent for 20 ms".to_owned();
    let expected = Loss {
        rank: Rank(0),
        reason,
    };
    assert_eq!(loss, expected);
    assert_eq!(client.status().state, CellState::Lost(expected));
    // Its socket is open to the end: nothing but the silence gave it away.
    drop(hung);
}

#[test]
fn the_streams_of_a_rank_0_that_falls_silent_fail() {
    let (played, client) = (Played::new(), Client::new());
    let hung = played.attach_in(&client, Played::ready(), Duration::from_secs(1));
    let stream = client.submit(greedy(PROMPT, 4)).expect("taken");
    assert_rank_0_lost(&drain(stream).1);
    drop(hung);
}

#[test]
fn a_dropped_stream_is_cancelled_and_hears_nothing_more() {
    let (played, client) = (Played::new(), Client::new());
    let mut stream = played.attach_ready(&client);
    let request = client.submit(greedy(PROMPT, 4)).expect("taken");
    let id = request.id();
    drop(request);
    assert!(matches!(hear(&mut stream), Command::Submit { .. }));
    assert_eq!(hear(&mut stream), Command::Cancel { id });
    // What was on its way meanwhile is nothing to anybody.
    tell(
        &mut stream,
        &[
            Notice::Started { id },
            Notice::Event {
                id,
                event: Event::Token(9),
            },
        ],
    );
    let next = client.submit(greedy(PROMPT, 1)).expect("taken");
    assert!(matches!(hear(&mut stream), Command::Submit { id, .. } if id == next.id()));
    let failed = Event::Failed(Failure::Internal("no finite logits".to_owned()));
    tell(
        &mut stream,
        &[Notice::Event {
            id: next.id(),
            event: failed.clone(),
        }],
    );
    assert_eq!(drain(next), (vec![], failed));
    let counters = client.status().counters;
    assert_eq!(
        (
            counters.cancelled_total,
            counters.failed_total,
            counters.generated_tokens_total
        ),
        (1, 1, 0)
    );
}

#[test]
fn a_rank_0_that_talks_nonsense_is_left() {
    let nonsense = |id| {
        let token = Notice::Event {
            id,
            event: Event::Token(1),
        };
        [
            vec![token.clone(), token],
            vec![Notice::Busy],
            vec![Notice::Phase(Phase::Lost(loss()))],
        ]
    };
    fn loss() -> Loss {
        Loss {
            rank: Rank(0),
            reason: "it said so itself".to_owned(),
        }
    }
    for case in 0..3 {
        let (played, client) = (Played::new(), Client::new());
        let mut stream = played.attach_ready(&client);
        let request = client.submit(greedy(PROMPT, 1)).expect("taken");
        assert!(matches!(hear(&mut stream), Command::Submit { .. }));
        tell(&mut stream, &nonsense(request.id())[case]);
        assert_rank_0_lost(&drain(request).1);
        assert_eq!(stream.read(&mut [0; 1]).expect("hung up"), 0);
    }
    let (played, client) = (Played::new(), Client::new());
    let mut stream = played.attach_ready(&client);
    stream.write_all(&[2, 0, 0, 0, 99, 99]).expect("sent");
    assert_eq!(client.losses().recv_blocking().expect("told").rank, Rank(0));
}

#[test]
fn the_newest_loss_is_told_however_many_nobody_heard() {
    let client = Client::new();
    let loss = |number: usize| Loss {
        rank: Rank(1),
        reason: format!("number {number}"),
    };
    for number in 1..=20 {
        let played = Played::new();
        let mut stream = played.attach_ready(&client);
        tell(&mut stream, &[Notice::Phase(Phase::Lost(loss(number)))]);
        // It hangs up when the loss has been told.
        assert_eq!(stream.read(&mut [0; 1]).expect("hung up"), 0);
        eventually("it is told", || client.losses().len() == number.min(16));
    }
    let mut heard = Vec::new();
    eventually("the newest is heard", || {
        heard.extend(client.losses().try_recv().ok());
        heard.last() == Some(&loss(20))
    });
}

#[test]
fn what_is_no_free_cell_of_this_version_is_not_attached_to() {
    let (played, client) = (Played::new(), Client::new());
    let attached = |say: &[Notice]| played.attach(&client, say).1.expect_err("refused");
    assert!(matches!(attached(&[Notice::Busy]), AttachError::Busy));
    let version = wire::VERSION + 1;
    let error = attached(&[Notice::Version { version }]);
    assert_eq!(
        error.to_string(),
        format!(
            "the cell at {} speaks protocol version {version} and this front version {}; restart the cell with this release",
            played.folder.path().join("socket").display(),
            wire::VERSION
        )
    );
    assert!(matches!(
        attached(&[Notice::Started { id: 1 }]),
        AttachError::Protocol(_)
    ));
    let nowhere = client.attach(
        &played.folder.path().join("none"),
        Instant::now() + Duration::from_millis(1),
    );
    assert!(matches!(nowhere, Err(AttachError::Unreachable { .. })));
    assert_eq!(client.status().state, CellState::Starting);
    assert!(matches!(
        client.wait_ready(Instant::now()),
        Err(AttachError::NotReady(_))
    ));
}
