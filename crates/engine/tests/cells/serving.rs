//! Whole cells: what a front sees of them, in fair weather.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Cell, PATIENCE, drain, finish_reason, greedy, reply};
use shoal_engine::client::{
    CellState, Client, Event, Failure, FinishReason, Request, Sampling, SubmitError,
};
use shoal_engine::{EngineLimits, RankError, run_rank};
use shoal_fabric::Rank;
use shoal_kernels::{Isa, KvFormat};

const PROMPT: &[u32] = &[17, 300, 42, 5, 260, 99, 411];

#[test]
fn one_two_and_three_ranks_say_the_same() {
    let mut replies = Vec::new();
    for world in 1..=3 {
        let mut cell = Cell::new(world);
        // The faster ones round activations to 8 bits, which can tip the near ties of a random model.
        cell.isa = Isa::Scalar;
        let client = cell.start_all();
        let info = client.wait_ready(Instant::now()).expect("ready");
        assert_eq!(
            (info.world, info.vocabulary, info.context),
            (world, 512, 4096)
        );
        replies.push(reply(&client, greedy(PROMPT, 24)));
        client.shutdown();
        cell.ends_well();
    }
    assert_eq!(replies[0].len(), 24);
    assert_eq!(replies[0], replies[1]);
    assert_eq!(replies[0], replies[2]);
}

#[test]
fn requests_do_not_disturb_each_other() {
    let mut cell = Cell::new(2);
    cell.limits.waiting_max = 8;
    let client = cell.start_all();
    let requests: Vec<Request> = (1..=6_u32)
        .map(|i| {
            // Prompts of several steps and of less than one, some drawn and some greedy.
            let prompt: Vec<u32> = (0..i * 9).map(|token| (token * 31 + i) % 512).collect();
            let sampling = Sampling {
                temperature: 0.8,
                seed: i.into(),
                repetition_penalty: 1.1,
                ..Sampling::greedy()
            };
            let sampling = if i % 2 == 0 {
                sampling
            } else {
                Sampling::greedy()
            };
            Request {
                sampling,
                ..greedy(&prompt, 10 + i)
            }
        })
        .collect();
    let alone: Vec<Vec<u32>> = requests
        .iter()
        .map(|request| reply(&client, request.clone()))
        .collect();
    let streams: Vec<_> = requests
        .iter()
        .map(|request| client.submit(request.clone()).expect("taken"))
        .collect();
    let together: Vec<Vec<u32>> = streams.into_iter().map(|stream| drain(stream).0).collect();
    assert_eq!(alone, together);
    let status = client.status();
    assert_eq!((status.waiting, status.running), (0, 0));
    assert_eq!(
        (
            status.counters.requests_total,
            status.counters.finished_total
        ),
        (12, 12)
    );
    client.shutdown();
    cell.ends_well();
}

#[test]
fn a_reply_ends_at_a_stop_token_or_at_its_length_and_tells_its_times() {
    let mut cell = Cell::new(1);
    let client = cell.start_all();
    let (tokens, end) = drain(client.submit(greedy(PROMPT, 12)).expect("taken"));
    let Event::Finished {
        reason: FinishReason::Length,
        timing,
    } = end
    else {
        panic!("{end:?}")
    };
    assert_eq!(
        (
            timing.prompt_tokens,
            timing.generated_tokens,
            timing.cached_tokens
        ),
        (7, 12, 0)
    );
    assert!(timing.prompt_ms > 0.0 && timing.generation_ms > 0.0 && timing.queue_ms >= 0.0);

    let stop = tokens[5];
    let before = tokens
        .iter()
        .position(|&token| token == stop)
        .expect("it is there");
    let request = Request {
        stop_tokens: vec![stop],
        ..greedy(PROMPT, 12)
    };
    let (stopped, end) = drain(client.submit(request).expect("taken"));
    assert_eq!(
        (&stopped[..], finish_reason(&end)),
        (&tokens[..before], FinishReason::Stop)
    );

    let room = 4096 - PROMPT.len();
    let all = reply(&client, greedy(PROMPT, u32::MAX));
    assert_eq!(all.len(), room, "what the context leaves");
    client.shutdown();
    cell.ends_well();
}

#[test]
fn a_dropped_stream_gives_up_its_place() {
    let mut cell = Cell::new(2);
    cell.limits = EngineLimits {
        running_max: 1,
        waiting_max: 1,
        batch_tokens_max: 8,
    };
    let client = cell.start_all();
    let mut long = client.submit(greedy(PROMPT, 4000)).expect("taken");
    assert!(matches!(long.next_blocking(), Some(Event::Token(_))));
    let never_read = client.submit(greedy(PROMPT, 4000)).expect("taken");
    assert_eq!((client.status().running, client.status().waiting), (1, 1));
    // One is dropped while it runs, one before its first token.
    drop(long);
    drop(never_read);
    assert_eq!((client.status().running, client.status().waiting), (0, 0));
    assert_eq!(
        reply(&client, greedy(PROMPT, 3)).len(),
        3,
        "the only place is free"
    );
    assert_eq!(client.status().counters.cancelled_total, 2);
    client.shutdown();
    cell.ends_well();
}

#[test]
fn a_stream_that_nobody_reads_holds_nobody_up() {
    let mut cell = Cell::new(1);
    let client = cell.start_all();
    let unread = client.submit(greedy(PROMPT, 500)).expect("taken");
    assert_eq!(reply(&client, greedy(&[1, 2], 600)).len(), 600);
    let (tokens, _) = drain(unread);
    assert_eq!(tokens.len(), 500, "and loses nothing");
    client.shutdown();
    cell.ends_well();
}

#[test]
fn what_cannot_be_taken_is_refused_at_once() {
    let mut cell = Cell::new(1);
    cell.limits = EngineLimits {
        running_max: 1,
        waiting_max: 1,
        batch_tokens_max: 8,
    };
    let client = Client::new();
    let refused = |client: &Client, request| client.submit(request).expect_err("refused");
    assert!(matches!(
        refused(&client, greedy(PROMPT, 1)),
        SubmitError::NotReady(_)
    ));
    cell.start_root(&client);
    client.wait_ready(Instant::now() + PATIENCE).expect("ready");

    let too_long = SubmitError::TooLong {
        context: 4096,
        prompt_tokens: 4096,
    };
    assert_eq!(refused(&client, greedy(&[1; 4096], 1)), too_long);
    assert!(matches!(
        refused(&client, greedy(&[], 1)),
        SubmitError::Invalid(_)
    ));
    assert!(matches!(
        refused(&client, greedy(PROMPT, 0)),
        SubmitError::Invalid(_)
    ));
    assert!(matches!(
        refused(&client, greedy(&[512], 1)),
        SubmitError::Invalid(_)
    ));
    let endless = Request {
        stop_tokens: vec![0; 5 << 20],
        ..greedy(PROMPT, 1)
    };
    assert!(matches!(refused(&client, endless), SubmitError::Invalid(_)));

    let running = client.submit(greedy(PROMPT, 4000)).expect("taken");
    let waiting = client.submit(greedy(PROMPT, 4000)).expect("taken");
    let full = SubmitError::QueueFull {
        retry_after_seconds: 1,
    };
    assert_eq!(refused(&client, greedy(PROMPT, 1)), full);
    assert_eq!(client.status().counters.refused_total, 1);
    drop(waiting);
    let next = client
        .submit(greedy(PROMPT, 1))
        .expect("there is room again");
    drop(running);
    assert_eq!(drain(next).0.len(), 1);
    client.shutdown();
    assert!(matches!(
        refused(&client, greedy(PROMPT, 1)),
        SubmitError::NotReady(_)
    ));
    cell.ends_well();
}

#[test]
fn a_cell_that_keeps_integers_answers_and_takes_less_memory() {
    let [halves, integers] = KvFormat::ALL.map(|kv_format| {
        let mut cell = Cell::new(2);
        cell.kv_format = kv_format;
        let client = cell.start_all();
        let reports = client.inspect().expect("the ranks answer");
        // Twice, so that pages are written over.
        let replies = [(); 2].map(|()| reply(&client, greedy(PROMPT, 40)));
        assert_eq!(replies[0].len(), 40);
        assert_eq!(replies[0], replies[1], "{kv_format}");
        client.shutdown();
        cell.ends_well();
        reports
    });
    for (halves, integers) in halves.iter().zip(&integers) {
        assert!(integers.kv_bytes * 10 < halves.kv_bytes * 7, "{integers:?}");
    }
}

#[test]
fn every_rank_reports_what_it_holds() {
    let mut cell = Cell::new(3);
    let client = cell.start_all();
    let reports = client.inspect().expect("the ranks answer");
    assert_eq!(
        reports.iter().map(|it| it.rank).collect::<Vec<_>>(),
        [Rank(0), Rank(1), Rank(2)]
    );
    for report in &reports {
        assert!(report.weight_bytes > 0 && report.kv_bytes > 0 && report.threads == 1);
        assert!(!report.split.is_empty());
    }
    let status = client.status();
    assert_eq!(status.ranks.len(), 3);
    assert_eq!(status.limits.expect("known").kv_pages, 3 * 4096 / 32);
    client.shutdown();
    cell.ends_well();
}

#[test]
fn a_new_front_takes_over_without_a_reload() {
    let mut cell = Cell::new(2);
    let first = cell.start_all();
    let wanted = reply(&first, greedy(PROMPT, 8));
    let left_behind = first.submit(greedy(PROMPT, 4000)).expect("taken");
    let (_, end) = {
        first.detach(shoal_engine::client::Loss {
            rank: Rank(0),
            reason: "the front went away".to_owned(),
        });
        drain(left_behind)
    };
    assert!(
        matches!(end, Event::Failed(Failure::RankLost { rank: Rank(0), .. })),
        "{end:?}"
    );

    let second = Client::new();
    let hello = crate::support::attach(&second, &cell);
    assert_eq!(
        (hello.state, hello.model_name.as_str()),
        (CellState::Ready, "tiny")
    );
    assert_eq!(second.status().state, CellState::Ready);
    // All places are free: the old front's request went with it.
    let streams: Vec<_> = (0..3)
        .map(|_| second.submit(greedy(PROMPT, 8)).expect("taken"))
        .collect();
    for stream in streams {
        assert_eq!(drain(stream).0, wanted);
    }
    second.shutdown();
    cell.ends_well();
}

#[test]
fn a_cell_whose_front_stays_away_ends() {
    let mut cell = Cell::new(2);
    cell.orphan_timeout = Duration::from_millis(1);
    let client = cell.start_all();
    let stream = client.submit(greedy(PROMPT, 4000)).expect("taken");
    // The process of the front is gone, and all it had.
    drop((client, stream));
    let socket = cell.socket();
    cell.ends_well();
    assert!(!socket.exists(), "rank 0 tidies up");
}

#[test]
fn an_order_to_end_ends_everything() {
    let mut cell = Cell::new(2);
    let client = cell.start_all();
    let stream = client.submit(greedy(PROMPT, 4000)).expect("taken");
    client.shutdown();
    assert_eq!(client.status().state, CellState::Stopping);
    assert!(matches!(
        drain(stream).1,
        Event::Failed(Failure::Refused(_))
    ));
    cell.ends_well();
    assert_eq!(
        client.losses().try_recv().ok(),
        None,
        "an end that was asked for is no loss"
    );
}

#[test]
fn an_order_to_end_is_heard_while_the_ranks_are_waited_for() {
    let mut cell = Cell::new(2);
    let client = Client::new();
    let hello = cell.start_root(&client);
    assert_eq!((hello.state, hello.world), (CellState::Starting, 2));
    client.shutdown();
    cell.ends_well();
}

#[test]
fn a_file_that_is_no_model_ends_rank_0_with_its_name() {
    let cell = Cell::new(1);
    std::fs::write(cell.folder.path().join("tiny.gguf"), b"GGML").expect("written");
    let error = run_rank(cell.root()).expect_err("no model");
    assert!(matches!(error, RankError::File { .. }), "{error:?}");
    assert!(error.to_string().contains("tiny.gguf"), "{error}");
}

#[test]
fn a_context_beyond_the_model_s_own_is_an_error() {
    let mut cell = Cell::new(1);
    cell.context = 4097;
    let error = run_rank(cell.root()).expect_err("too long");
    assert!(matches!(error, RankError::Limits(_)), "{error:?}");
    let message = error.to_string();
    assert!(
        message.contains("4096") && message.contains("4097"),
        "{message}"
    );
}

#[test]
fn two_rank_0_do_not_share_a_socket() {
    let mut cell = Cell::new(1);
    let client = cell.start_all();
    let error = run_rank(cell.root()).expect_err("taken");
    assert!(matches!(error, RankError::SocketTaken(_)), "{error:?}");
    assert_eq!(
        reply(&client, greedy(PROMPT, 2)).len(),
        2,
        "the first one is unharmed"
    );
    client.shutdown();
    cell.ends_well();
}

#[test]
fn only_this_user_may_open_the_socket() {
    use std::os::unix::fs::PermissionsExt;
    let mut cell = Cell::new(1);
    // What a rank 0 that was killed leaves.
    drop(std::os::unix::net::UnixListener::bind(cell.socket()).expect("a stale socket"));
    let client = cell.start_all();
    let mode = std::fs::metadata(cell.socket())
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    client.shutdown();
    cell.ends_well();
}

#[test]
fn streams_can_be_read_from_other_threads() {
    let mut cell = Cell::new(1);
    let client = cell.start_all();
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let client = client.clone();
            thread::spawn(move || reply(&client, greedy(PROMPT, 16)))
        })
        .collect();
    let replies: Vec<_> = readers
        .into_iter()
        .map(|reader| reader.join().expect("no panic"))
        .collect();
    assert_eq!(replies[0], replies[1]);
    assert_eq!(replies[0], replies[2]);
    client.shutdown();
    cell.ends_well();
}
