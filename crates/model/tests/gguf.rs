//! Model files that are not as they should be: an error that says what to do, never a panic.

use std::fmt::Display;

use expect_test::{Expect, expect};
use shoal_kernels::Dtype;
use shoal_model::ModelSpec;
use shoal_model::gguf::{Gguf, Value};
use shoal_testkit::{GgufWriter, TinyConfig, tiny_llama};

fn tiny() -> TinyConfig {
    TinyConfig {
        layers: 1,
        width: 32,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        ffn: 32,
        vocabulary: 8,
        dtype: Dtype::Q4_0,
        ..TinyConfig::default()
    }
}

/// As far as a file is read before anything is computed.
fn read(bytes: Vec<u8>) -> Result<ModelSpec, String> {
    let text = |error: &dyn Display| error.to_string();
    let file = Gguf::parse(bytes).map_err(|error| text(&error))?;
    ModelSpec::from_gguf(&file).map_err(|error| text(&error))
}

fn refused(bytes: Vec<u8>, message: &Expect) {
    message.assert_eq(&read(bytes).expect_err("refused"));
}

/// The tiny model after a change to what is written.
fn spoilt(change: impl FnOnce(&mut GgufWriter), message: &Expect) {
    let mut file = tiny().writer();
    change(&mut file);
    refused(file.finish(), message);
}

/// The tiny model with some of its bytes replaced.
fn patched(at: usize, bytes: &[u8], message: &Expect) {
    let mut file = tiny_llama(&tiny());
    file[at..at + bytes.len()].copy_from_slice(bytes);
    refused(file, message);
}

/// Where the entry of a tensor goes on after its name.
fn entry_of(file: &[u8], name: &str) -> usize {
    let found = file
        .windows(name.len())
        .position(|window| window == name.as_bytes());
    found.expect("the tensor's name") + name.len()
}

#[test]
fn a_whole_file_is_read() {
    let file = Gguf::parse(tiny_llama(&TinyConfig::default())).expect("a valid file");
    let tokens = file
        .metadata("tokenizer.ggml.tokens")
        .and_then(Value::as_texts);
    assert_eq!(
        tokens.map(|tokens| (tokens.len(), tokens[1].as_str())),
        Some((512, "<|im_start|>"))
    );
    let kinds = file
        .metadata("tokenizer.ggml.token_type")
        .and_then(Value::integers);
    assert_eq!(
        kinds.map(|kinds| kinds[..4].to_vec()),
        Some(vec![3, 3, 3, 1])
    );
    let spec = ModelSpec::from_gguf(&file).expect("a model");
    let shape = (
        spec.heads,
        spec.kv_heads,
        spec.head_dim,
        spec.width,
        spec.ffn_width,
    );
    assert_eq!(shape, (9, 3, 32, 64, 160));
    assert_eq!(
        (spec.vocabulary(), spec.context_length(), spec.blocks.len()),
        (512, 256, 2)
    );
    assert_eq!(spec.head, None);
    assert_eq!(spec.weights().count(), 1 + 2 * 9 + 1);
}

#[test]
fn values_of_every_kind_are_read() {
    let mut file = GgufWriter::default();
    for (kind, bytes, value) in [
        (0, vec![255], Value::Unsigned(255)),
        (1, vec![255], Value::Signed(-1)),
        (2, vec![1, 2], Value::Unsigned(0x201)),
        (3, vec![254, 255], Value::Signed(-2)),
        (4, vec![0, 0, 0, 128], Value::Unsigned(1 << 31)),
        (5, vec![0, 0, 0, 128], Value::Signed(-(1 << 31))),
        (6, 1.5_f32.to_le_bytes().to_vec(), Value::Float(1.5)),
        (7, vec![1], Value::Bool(true)),
        (
            8,
            [&2_u64.to_le_bytes()[..], b"hi"].concat(),
            Value::Text("hi".to_owned()),
        ),
        (
            10,
            u64::MAX.to_le_bytes().to_vec(),
            Value::Unsigned(u64::MAX),
        ),
        (11, (-3_i64).to_le_bytes().to_vec(), Value::Signed(-3)),
        (12, 2.5_f64.to_le_bytes().to_vec(), Value::Float(2.5)),
    ] {
        file.value("key", kind, bytes);
        let parsed = Gguf::parse(file.finish()).expect("a valid file");
        assert_eq!(parsed.metadata("key"), Some(&value));
    }
    file.integers("key", &[-1, 7]);
    let parsed = Gguf::parse(file.finish()).expect("a valid file");
    let array = parsed.metadata("key").expect("the key");
    assert_eq!(array.integers(), Some(vec![-1, 7]));
    assert_eq!(array.floats(), Some(vec![-1.0, 7.0]));
    assert_eq!((array.as_texts(), array.as_u64()), (None, None));
}

#[test]
fn every_prefix_is_refused() {
    let file = tiny_llama(&tiny());
    assert!(read(file.clone()).is_ok());
    for end in 0..file.len() {
        let message = read(file[..end].to_vec()).expect_err("a part is no model");
        assert!(
            message.contains("truncated") && message.contains("download it again"),
            "{end}: {message}"
        );
    }
}

#[test]
fn every_flipped_byte_is_read_or_refused() {
    let file = tiny_llama(&tiny());
    let data = file.len() - 4000;
    // A change in the weights is a change of values only; in what comes before, of everything.
    for at in (0..data).chain((data..file.len()).step_by(97)) {
        for flip in [0x01, 0x80, 0xff] {
            let mut file = file.clone();
            file[at] ^= flip;
            let _spec_or_message = read(file);
        }
    }
}

#[test]
fn other_formats_and_versions_are_named() {
    patched(
        0,
        b"PK\x03\x04",
        &expect![[
            r#"not a GGUF file: it begins with [50, 4b, 03, 04] instead of "GGUF"; give the path of a .gguf file"#
        ]],
    );
    patched(
        4,
        &1_u32.to_le_bytes(),
        &expect!["GGUF version 1 is not supported (2 and 3 are); convert the model again"],
    );
    patched(
        4,
        &0_u32.to_le_bytes(),
        &expect!["GGUF version 0 is not supported (2 and 3 are); convert the model again"],
    );
    patched(
        4,
        &3_u32.to_be_bytes(),
        &expect![
            "the file is big-endian GGUF, which is not supported; convert it again on a little-endian machine"
        ],
    );
}

#[test]
fn hostile_counts_set_nothing_aside() {
    let huge = (u64::MAX / 2).to_le_bytes();
    patched(
        8,
        &huge,
        &expect![
            "the file is truncated or corrupt: the tensor count at byte 16 does not fit into its 5248 bytes; download it again"
        ],
    );
    patched(
        16,
        &huge,
        &expect![
            "the file is truncated or corrupt: the metadata count at byte 24 does not fit into its 5248 bytes; download it again"
        ],
    );
    patched(
        24,
        &huge,
        &expect![
            "the file is truncated or corrupt: a metadata key at byte 32 does not fit into its 5248 bytes; download it again"
        ],
    );
    let array = |kind: u32| [&kind.to_le_bytes()[..], &huge].concat();
    spoilt(
        |file| file.value("key", 9, array(0)),
        &expect![
            "the file is truncated or corrupt: an array at byte 617 does not fit into its 5280 bytes; download it again"
        ],
    );
    spoilt(
        |file| file.value("key", 9, array(8)),
        &expect![
            "the file is truncated or corrupt: an array at byte 617 does not fit into its 5280 bytes; download it again"
        ],
    );
    spoilt(
        |file| file.value("key", 9, array(9)),
        &expect![
            "metadata key is of type 9, which is not supported; download the file again, or use a newer release"
        ],
    );
    spoilt(
        |file| file.value("key", 13, vec![0; 8]),
        &expect![
            "metadata key is of type 13, which is not supported; download the file again, or use a newer release"
        ],
    );
}

#[test]
fn directories_that_contradict_themselves_are_refused() {
    let f32s = |count: usize| vec![0; 4 * count];
    let tensor = |name, dimensions: &[u64], data| {
        let (name, dimensions): (String, Vec<u64>) = (String::from(name), dimensions.to_vec());
        move |file: &mut GgufWriter| file.tensor(&name, &dimensions, Dtype::F32, data)
    };
    spoilt(
        tensor("output_norm.weight", &[32], f32s(32)),
        &expect!["output_norm.weight stands twice in the file; download it again"],
    );
    spoilt(
        tensor("x", &[], f32s(1)),
        &expect![
            "tensor x is malformed: it has no dimensions, or more than four; download the file again"
        ],
    );
    spoilt(
        tensor("x", &[1, 1, 1, 1, 1], f32s(1)),
        &expect![
            "tensor x is malformed: it has no dimensions, or more than four; download the file again"
        ],
    );
    spoilt(
        tensor("x", &[4, 0], f32s(4)),
        &expect![
            "tensor x is malformed: a dimension is zero or too large; download the file again"
        ],
    );
    spoilt(
        tensor("x", &[1 << 40, 1 << 40, 1 << 40], f32s(4)),
        &expect![
            "tensor x is malformed: it has more elements than can be counted; download the file again"
        ],
    );
    spoilt(
        tensor("x", &[1 << 62], f32s(4)),
        &expect![
            "tensor x is malformed: its rows are not whole quantisation blocks, or too long to be counted; download the file again"
        ],
    );
    spoilt(
        tensor("x", &[64], f32s(4)),
        &expect![
            "the file is truncated: tensor x needs bytes 5280..5536, but the file has 5296; download it again"
        ],
    );
    spoilt(
        |file| file.tensor_of("x", &[256], 10, vec![0; 84]),
        &expect![
            "tensor x has type 10, which is not supported; use a model in F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K or IQ4_NL"
        ],
    );
    spoilt(
        |file| file.tensor("x", &[33], Dtype::Q4_0, vec![0; 36]),
        &expect![
            "tensor x is malformed: its rows are not whole quantisation blocks, or too long to be counted; download the file again"
        ],
    );
    spoilt(
        |file| file.number("general.alignment", 3),
        &expect!["the file's alignment is not a power of two up to 1 MiB; download it again"],
    );

    let file = tiny_llama(&tiny());
    let offset = entry_of(&file, "output_norm.weight") + 4 + 8 + 4;
    patched(
        offset,
        &1_u64.to_le_bytes(),
        &expect![
            "tensor output_norm.weight is malformed: its data is not aligned; download the file again"
        ],
    );
    patched(
        offset,
        &0_u64.to_le_bytes(),
        &expect![
            "tensor token_embd.weight is malformed: its data overlaps another tensor's; download the file again"
        ],
    );
    patched(
        offset,
        &(u64::MAX - 31).to_le_bytes(),
        &expect![
            "the file is truncated: tensor output_norm.weight needs bytes 18446744073709551615..18446744073709551615, but the file has 5248; download it again"
        ],
    );
}

#[test]
fn names_are_bounded_and_shown_on_one_line() {
    let long = "x".repeat(65);
    let unknown = |name: &str| {
        let name = name.to_owned();
        move |file: &mut GgufWriter| file.tensor(&name, &[1], Dtype::F32, vec![0; 4])
    };
    spoilt(
        unknown(&long),
        &expect![
            "the file is corrupt: a tensor's name has 65 bytes, 64 at most are allowed; download it again"
        ],
    );
    spoilt(
        unknown(&long[..64]),
        &expect![
            "tensor xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx has no meaning for architecture llama; use a newer release or another model"
        ],
    );
    spoilt(
        unknown("\x1b[2J\n"),
        &expect![[
            r#"tensor \u{1b}[2J\n has no meaning for architecture llama; use a newer release or another model"#
        ]],
    );
    spoilt(
        |file| file.number(&"k".repeat(65536), 1),
        &expect![
            "the file is corrupt: a metadata key has 65536 bytes, 65535 at most are allowed; download it again"
        ],
    );
    spoilt(
        |file| file.value(&"k".repeat(65535), 13, vec![0; 8]),
        &expect![
            "metadata kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk… is of type 13, which is not supported; download the file again, or use a newer release"
        ],
    );
    spoilt(
        |file| file.text("general.architecture", &"mamba\n".repeat(1 << 18)),
        &expect![[
            r#"architecture "mamba\nmamba\nmamba\nmamba\nmamba\nmamba\nmamba\nmamba\nmamba\nmamba\nmamb…" is not supported; supported: llama"#
        ]],
    );
    spoilt(
        |file| file.text("llama.rope.scaling.type", &"\r".repeat(1 << 18)),
        &expect![[
            r#"rotary scaling "\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r…" is not supported; use another model"#
        ]],
    );
}

#[test]
fn models_that_cannot_be_computed_are_refused() {
    for (key, factor) in [("yarn_attn_factor", 2.0), ("yarn_ext_factor", 0.5)] {
        let key = format!("llama.rope.scaling.{key}");
        let edit = |file: &mut GgufWriter| {
            file.text("llama.rope.scaling.type", "yarn");
            file.float("llama.rope.scaling.factor", 4.0);
            file.float(&key, factor);
        };
        let mut file = tiny().writer();
        edit(&mut file);
        let error = read(file.finish()).expect_err("refused");
        assert!(error.contains("other than 1"), "{key}: {error}");
    }
    spoilt(
        |file| file.text("general.architecture", "mamba"),
        &expect![[r#"architecture "mamba" is not supported; supported: llama"#]],
    );
    spoilt(
        |file| file.number("general.architecture", 1),
        &expect![
            "metadata general.architecture is not a text; download the model again, or convert it again"
        ],
    );
    spoilt(
        |file| file.remove_tensor("blk.0.ffn_up.weight"),
        &expect!["tensor blk.0.ffn_up.weight is missing; download the model again"],
    );
    spoilt(
        |file| file.number("llama.block_count", 2),
        &expect!["tensor blk.1.attn_norm.weight is missing; download the model again"],
    );
    spoilt(
        |file| file.number("llama.block_count", u32::MAX),
        &expect![
            "metadata llama.block_count is not a count within reason; download the model again, or convert it again"
        ],
    );
    spoilt(
        |file| file.number("llama.embedding_length", 64),
        &expect!["tensor token_embd.weight is 8 by 32, expected 8 by 64; download the model again"],
    );
    spoilt(
        |file| file.number("llama.attention.head_count", 0),
        &expect![
            "metadata llama.attention.head_count is zero; download the model again, or convert it again"
        ],
    );
    spoilt(
        |file| file.number("llama.attention.head_count", 3),
        &expect![
            "tensor blk.0.attn_q.weight is 32 by 32, expected 48 by 32; download the model again"
        ],
    );
    spoilt(
        |file| file.number("llama.attention.head_count_kv", 3),
        &expect![
            "metadata llama.attention.head_count_kv is not a divisor of the head count; download the model again, or convert it again"
        ],
    );
    spoilt(
        |file| file.number("llama.expert_count", 8),
        &expect!["a mixture of experts is not supported; use another model"],
    );
    spoilt(
        |file| file.number("llama.rope.dimension_count", 17),
        &expect![
            "metadata llama.rope.dimension_count is not an even number up to the width of a head; download the model again, or convert it again"
        ],
    );
    spoilt(
        |file| file.float("llama.rope.freq_base", f32::NAN),
        &expect![
            "metadata llama.rope.freq_base is not a finite number; download the model again, or convert it again"
        ],
    );
    spoilt(
        |file| file.text("llama.rope.scaling.type", "longrope"),
        &expect![[r#"rotary scaling "longrope" is not supported; use another model"#]],
    );
    spoilt(
        |file| file.tensor("blk.0.attn_q.bias", &[32], Dtype::F32, vec![0; 128]),
        &expect![
            "tensor blk.0.attn_q.bias has no meaning for architecture llama; use a newer release or another model"
        ],
    );
    spoilt(
        |file| file.tensor("rope_freqs.weight", &[8], Dtype::F32, vec![0; 32]),
        &expect![
            "metadata rope_freqs.weight is not one positive F32 factor for each rotated pair; download the model again, or convert it again"
        ],
    );
}
