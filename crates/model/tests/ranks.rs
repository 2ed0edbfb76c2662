//! A model divided over ranks against the same model on one.

mod common;

use std::thread;
use std::time::Duration;

use common::{CONFIG, alone, assert_close, cpu, file, on_ranks, on_ranks_with, span};
use shoal_fabric::{Exchange, Rank, in_process, solo};
use shoal_kernels::{Dtype, Isa, KvFormat};
use shoal_model::gguf::Gguf;
use shoal_model::{LoadConfig, Model, ModelError, Shares, Span};
use shoal_testkit::TinyConfig;

/// Sums over ranks round differently from sums over columns. Measured: 2e-5.
const SCALAR: f32 = 1e-4;
/// Such a difference may round an input of a later product to another of 8 bits, and a tiny model averages over few.
/// Measured: 2e-2.
const QUANTISED: f32 = 4e-2;
const PROMPT: [u32; 9] = [5, 300, 17, 2, 511, 0, 90, 91, 92];
const SHARES: [&[u32]; 8] = [
    &[1, 1],
    &[1, 1, 1],
    &[1, 1, 1, 1],
    &[3, 1],
    &[5, 1, 1, 2],
    &[1, 8],
    &[1, 1, 1, 1, 1, 1, 1, 1, 1],
    &[1000, 1],
];

/// A prompt, then two sequences together, of which one goes on.
fn steps() -> Vec<Vec<Span>> {
    let first = Span {
        wants_logits: false,
        ..span(&PROMPT[..4], 0, 0)
    };
    vec![
        vec![first],
        vec![span(&PROMPT[4..], 4, 0), span(&PROMPT, 0, 8)],
        vec![span(&[1], 9, 8), span(&[33], 9, 0)],
    ]
}

fn check(config: &TinyConfig, isa: Isa, tolerance: f32) {
    let file = file(config);
    let want = alone(&file, isa, &steps());
    assert_eq!(want.len(), 4);
    for shares in SHARES.iter().filter(|shares| shares.len() <= config.heads) {
        let ranks = on_ranks(&file, shares, isa, &steps());
        for rank in &ranks {
            assert_eq!(*rank, ranks[0], "{shares:?}: the same bits on every rank");
        }
        let what = format!("{isa}, shares {shares:?}, {config:?}");
        assert_close(&ranks[0], &want, tolerance, &what);
    }
}

#[test]
fn nine_heads_over_three_kv_heads() {
    for dtype in [Dtype::F32, Dtype::Q8_0, Dtype::Q4_1] {
        let config = TinyConfig {
            dtype,
            ..TinyConfig::default()
        };
        check(&config, Isa::Scalar, SCALAR);
        check(&config, Isa::detect(), QUANTISED);
    }
}

/// Heads end within blocks: of 256 with heads of 64, and of 32 with heads of 16.
#[test]
fn slices_that_end_within_a_block() {
    let large = TinyConfig::wide(Dtype::Q4K);
    let small = TinyConfig {
        heads: 6,
        head_dim: 16,
        dtype: Dtype::Q5_0,
        ..TinyConfig::default()
    };
    for config in [large, small] {
        check(&config, Isa::Scalar, SCALAR);
        check(&config, Isa::detect(), QUANTISED);
    }
}

/// Integers move a result by as much again as activations of 8 bits do; a split moves it no further.
#[test]
fn keys_and_values_kept_as_integers() {
    let config = LoadConfig {
        kv_format: KvFormat::Q8,
        ..CONFIG
    };
    let file = file(&TinyConfig::wide(Dtype::Q8_0));
    for isa in [Isa::Scalar, Isa::detect()] {
        let want = alone(&file, isa, &steps());
        for shares in [&[1][..], &[1, 1], &[2, 1]] {
            let ranks = on_ranks_with(config, &file, shares, isa, &steps());
            for rank in &ranks {
                assert_eq!(*rank, ranks[0], "{shares:?}: the same bits on every rank");
            }
            assert_ne!(ranks[0], want, "another format, other bits");
            assert_close(
                &ranks[0],
                &want,
                QUANTISED,
                &format!("{isa}, shares {shares:?}"),
            );
        }
    }
}

/// Sums that travel as integers move a result as activations of 8 bits do, and every rank's by the same.
#[test]
fn sums_sent_as_integers() {
    let config = LoadConfig {
        exchange: Exchange::Q8,
        ..CONFIG
    };
    let file = file(&TinyConfig::wide(Dtype::Q8_0));
    for isa in [Isa::Scalar, Isa::detect()] {
        let want = alone(&file, isa, &steps());
        for shares in [&[1, 1][..], &[2, 1]] {
            let exact = on_ranks(&file, shares, isa, &steps());
            let ranks = on_ranks_with(config, &file, shares, isa, &steps());
            for rank in &ranks {
                assert_eq!(*rank, ranks[0], "{shares:?}: the same bits on every rank");
            }
            assert_ne!(ranks[0], exact[0], "another exchange, other bits");
            let context = format!("{isa}, shares {shares:?}");
            assert_close(&ranks[0], &want, QUANTISED, &context);
        }
    }
}

#[test]
fn a_head_of_its_own_is_split_too() {
    let config = TinyConfig {
        tied: false,
        vocabulary: 301,
        dtype: Dtype::F16,
        ..TinyConfig::default()
    };
    let file = file(&config);
    let prompt = vec![vec![span(&[5, 300, 17], 0, 0)]];
    let want = alone(&file, Isa::Scalar, &prompt);
    for rank in on_ranks(&file, &[2, 1, 1], Isa::Scalar, &prompt) {
        assert_close(&rank, &want, SCALAR, "vocabulary of 301");
    }
}

#[test]
fn a_file_on_disk_is_handed_out_like_one_in_memory() {
    let config = TinyConfig::wide(Dtype::Q6K);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny.gguf");
    shoal_testkit::write_to(&config, &path).expect("room for a tiny file");
    let mapped = Gguf::open(&path).expect("a valid file");
    let in_memory = on_ranks(&file(&config), &[2, 1], Isa::Scalar, &steps());
    assert_eq!(on_ranks(&mapped, &[2, 1], Isa::Scalar, &steps()), in_memory);

    let missing = Gguf::open(&folder.path().join("none.gguf"))
        .err()
        .expect("no file");
    assert!(missing.to_string().starts_with("cannot open "), "{missing}");
}

#[test]
fn a_member_refuses_what_is_no_model() {
    let mut groups = in_process(2, Duration::from_secs(60));
    let mut member = groups.pop().expect("two ranks");
    let member = thread::spawn(move || Model::load_member(cpu(Isa::Scalar), &mut member).err());
    let sent = groups[0].broadcast(Rank(0), &mut b"{}".to_vec());
    sent.expect("a member that listens");
    let error = member.join().expect("no panic").expect("refused");
    assert!(matches!(error, ModelError::Handover(_)), "{error}");
}

#[test]
fn too_many_ranks_and_wrong_shares_are_refused() {
    let file = file(&TinyConfig::default());
    let loaded = Model::load_root(
        &file,
        &Shares::new(vec![1, 3]).expect("shares"),
        CONFIG,
        cpu(Isa::Scalar),
        &mut solo(),
        &mut |_, _| {},
    );
    assert_eq!(
        loaded.err().expect("refused").to_string(),
        "2 shares for 1 nodes; give one for each"
    );
    let error = shoal_model::SplitPlan::new(
        &shoal_model::ModelSpec::from_gguf(&file).expect("a spec"),
        &Shares::equal(10),
    )
    .expect_err("refused");
    assert_eq!(
        error.to_string(),
        "10 nodes cannot share 9 attention heads; use at most 9 nodes"
    );
    for bad in [vec![], vec![0], vec![1, 0]] {
        assert!(Shares::new(bad.clone()).is_err(), "{bad:?}");
    }
}
