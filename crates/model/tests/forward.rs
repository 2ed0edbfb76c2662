//! What one rank computes, against the same written out plainly.

mod common;

use common::{alone, assert_close, cpu, file, reference, span};
use shoal_fabric::solo;
use shoal_kernels::{Dtype, Isa};
use shoal_model::{Model, ModelError, Shares, Span};
use shoal_testkit::{TinyConfig, TinyScaling};

/// Keys and values are cached in half precision; nothing else is rounded by the scalar kernels.
const SCALAR: f32 = 1e-3;
/// Other instruction sets round the inputs of products to 8 bits.
const QUANTISED: f32 = 4e-2;
const PROMPT: [u32; 11] = [5, 300, 17, 17, 400, 2, 511, 0, 90, 91, 92];

fn check(config: &TinyConfig, isa: Isa, tolerance: f32) {
    let file = file(config);
    let want = vec![reference::logits(config, &file, &PROMPT)];
    let got = alone(&file, isa, &[vec![span(&PROMPT, 0, 3)]]);
    assert_close(&got, &want, tolerance, &format!("{isa}, {config:?}"));
}

#[test]
fn every_format_agrees_with_the_reference() {
    for dtype in Dtype::ALL {
        check(&TinyConfig::wide(dtype), Isa::Scalar, SCALAR);
        check(&TinyConfig::wide(dtype), Isa::detect(), QUANTISED);
    }
}

#[test]
fn every_rotary_scaling_agrees_with_the_reference() {
    for rope_scaling in [
        TinyScaling::Linear { factor: 4.0 },
        TinyScaling::Yarn {
            factor: 4.0,
            original_context: 64,
        },
        TinyScaling::Factors((0..16).map(|pair| 1.0 + pair as f32).collect()),
    ] {
        let config = TinyConfig {
            rope_scaling,
            ..TinyConfig::default()
        };
        check(&config, Isa::Scalar, SCALAR);
    }
}

#[test]
fn a_head_of_its_own_agrees_with_the_reference() {
    let config = TinyConfig {
        tied: false,
        heads: 6,
        kv_heads: 6,
        ..TinyConfig::default()
    };
    check(&config, Isa::Scalar, SCALAR);
}

/// Expected values from NumPy in f64 over weights that the Python package `gguf` dequantised, from the file that
/// the testkit writes: `golden.py`, which shares nothing with this workspace.
#[test]
fn logits_are_those_of_an_independent_program() {
    const TOKENS: [usize; 4] = [0, 100, 259, 511];
    for (dtype, expected) in GOLDEN {
        let file = file(&TinyConfig::wide(dtype));
        let rows = alone(&file, Isa::Scalar, &[vec![span(&PROMPT, 0, 0)]]);
        let got = TOKENS.map(|token| rows[0][token]);
        for (got, expected) in got.iter().zip(expected) {
            assert!(
                (got - expected).abs() < 5e-3,
                "{dtype}: {got} for {expected}"
            );
        }
    }
}

const GOLDEN: [(Dtype, [f32; 4]); 3] = [
    (Dtype::Bf16, [-0.5367, -0.8611, 1.2796, 1.5466]),
    (Dtype::Q4_1, [1.7822, 1.1372, 0.894, 0.5662]),
    (Dtype::Q6K, [0.0901, 0.5614, -0.3016, -0.0525]),
];

#[test]
fn a_prompt_at_once_is_a_prompt_token_by_token() {
    let file = file(&TinyConfig::default());
    for isa in [Isa::Scalar, Isa::detect()] {
        let whole = alone(&file, isa, &[vec![span(&PROMPT, 0, 0)]]);
        let silent = |tokens: &[u32], start| Span {
            wants_logits: false,
            ..span(tokens, start, 0)
        };
        let steps = PROMPT[..10]
            .iter()
            .zip(0..)
            .map(|(&token, at)| vec![silent(&[token], at)]);
        let mut steps: Vec<_> = steps.collect();
        steps.push(vec![span(&PROMPT[10..], 10, 0)]);
        assert_close(&alone(&file, isa, &steps), &whole, 1e-5, "token by token");
        let chunks = [
            vec![silent(&PROMPT[..7], 0)],
            vec![span(&PROMPT[7..], 7, 0)],
        ];
        assert_close(&alone(&file, isa, &chunks), &whole, 1e-5, "in chunks");
    }
}

#[test]
fn a_batch_is_its_spans_one_by_one() {
    let file = file(&TinyConfig::default());
    let a = |wants_logits| Span {
        wants_logits,
        ..span(&PROMPT, 0, 0)
    };
    let (b, c) = (span(&PROMPT[3..], 0, 8), span(&[7], 0, 16));
    let batch = alone(&file, Isa::Scalar, &[vec![a(true), b.clone(), c.clone()]]);
    let single = alone(
        &file,
        Isa::Scalar,
        &[vec![a(true)], vec![b.clone()], vec![c.clone()]],
    );
    assert_close(&batch, &single, 1e-5, "batch of three");
    let rest = alone(&file, Isa::Scalar, &[vec![a(false), b, c]]);
    assert_close(&rest, &single[1..].to_vec(), 1e-5, "only two want logits");
    // Steps of other sizes between them leave nothing behind.
    let again = alone(
        &file,
        Isa::Scalar,
        &[vec![a(true)], vec![a(false)], vec![a(true)]],
    );
    assert_eq!(again, [single[0].clone(), single[0].clone()]);
}

#[test]
fn spans_that_do_not_fit_are_refused_and_harm_nothing() {
    let file = file(&TinyConfig::default());
    let (shares, mut group) = (Shares::equal(1), solo());
    let mut done = Vec::new();
    let mut progress = |bytes, total| done.push((bytes, total));
    let cpu = cpu(Isa::Scalar);
    let mut model = Model::load_root(
        &file,
        &shares,
        common::CONFIG,
        cpu,
        &mut group,
        &mut progress,
    )
    .expect("a model");
    let total = done.last().expect("progress").1;
    assert_eq!(done.last(), Some(&(total, total)));
    assert!(done.is_sorted() && model.weight_bytes() <= total && model.kv_bytes() > 0);

    let good = span(&PROMPT, 0, 0);
    for (spans, message) in [
        (vec![], "a step cannot be computed: there are no spans"),
        (
            vec![span(&[], 0, 0)],
            "a step cannot be computed: span 0 has no tokens",
        ),
        (
            vec![good.clone(), span(&[512], 0, 8)],
            "a step cannot be computed: span 1 has token 512 of 512",
        ),
        (
            vec![span(&[1], 0, 25)],
            "a step cannot be computed: span 0 has page 32 of 32",
        ),
        (
            vec![span(&[1, 1], 63, 0)],
            "a step cannot be computed: span 0 ends at position 65, beyond its pages",
        ),
        (
            vec![span(&[1], u32::MAX, 0)],
            "a step cannot be computed: span 0 ends at position 4294967296, beyond the context of 128",
        ),
        (
            vec![good.clone(); 6],
            "a step of 66 tokens exceeds the batch of 64",
        ),
    ] {
        let refused = model.forward(&spans, &mut group, &mut || {});
        let error = refused.err().expect("an error");
        assert_eq!(error.to_string(), message);
    }
    let row = model
        .forward(&[good], &mut group, &mut || {})
        .expect("a step")
        .row(0)
        .to_vec();
    assert_eq!(
        vec![row],
        alone(&file, Isa::Scalar, &[vec![span(&PROMPT, 0, 0)]])
    );
}

#[test]
fn what_cannot_be_set_aside_is_refused() {
    let file = file(&TinyConfig::default());
    let load = |config| {
        let shares = Shares::equal(1);
        Model::load_root(
            &file,
            &shares,
            config,
            cpu(Isa::Scalar),
            &mut solo(),
            &mut |_, _| {},
        )
    };
    for config in [
        shoal_model::LoadConfig {
            kv_pages: 0,
            ..common::CONFIG
        },
        shoal_model::LoadConfig {
            batch_tokens_max: usize::MAX / 8,
            ..common::CONFIG
        },
    ] {
        assert!(
            matches!(load(config), Err(ModelError::Config(_))),
            "{config:?}"
        );
    }
    // More than the address space, and more than can be counted.
    for (page_tokens, size_mib) in [
        (1 << 10, 3_221_225_471),
        (u32::MAX, 13_510_798_877_392_896_u64),
    ] {
        let refused = load(shoal_model::LoadConfig {
            kv_pages: u32::MAX,
            page_tokens,
            ..common::CONFIG
        });
        assert_eq!(
            refused.err().expect("refused").to_string(),
            format!("the system refuses {size_mib} MiB for the KV cache; lower --ctx or --batch")
        );
    }
}
