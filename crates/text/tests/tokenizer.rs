//! Tokenizers against `tokenizers` and `sentencepiece` (`data/make_golden.py`), and what they do
//! with special tokens and damaged metadata.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use serde::Deserialize;
use shoal_text::{Decoder, Special, TextError, Tokenizer, Vocabulary, VocabularyKind};

#[derive(Deserialize)]
struct Bpe {
    tokens: Vec<String>,
    merges: Vec<String>,
    strings: Vec<String>,
    /// By pre-tokenizer, then by string.
    ids: BTreeMap<String, Vec<Vec<u32>>>,
}

#[derive(Deserialize)]
struct Spm {
    tokens: Vec<String>,
    scores: Vec<f32>,
    types: Vec<i32>,
    strings: Vec<String>,
    ids: Vec<Vec<u32>>,
}

#[test]
fn byte_level_ids_are_those_of_tokenizers() {
    let golden: Bpe = read("bpe.json");
    let mut differing = Vec::new();
    for (pre, ids) in &golden.ids {
        let tokenizer = Tokenizer::new(bpe_vocabulary(pre)).unwrap();
        for (text, wanted) in golden.strings.iter().zip(ids) {
            let found = tokenizer.encode(text, Special::AsText).unwrap();
            if found != *wanted {
                differing.push(format!("{pre} {text:?}:\n  {found:?}\n  {wanted:?}"));
            }
        }
    }
    assert!(golden.ids.len() >= 19 && golden.strings.len() >= 80);
    assert!(
        differing.is_empty(),
        "{} differ:\n{}",
        differing.len(),
        differing.join("\n")
    );
}

#[test]
fn sentencepiece_ids_are_those_of_sentencepiece() {
    let golden: Spm = read("spm.json");
    let tokenizer = Tokenizer::new(spm_vocabulary()).unwrap();
    let mut differing = Vec::new();
    for (text, wanted) in golden.strings.iter().zip(&golden.ids) {
        let found = tokenizer.encode(text, Special::AsText).unwrap();
        if found != *wanted {
            differing.push(format!("{text:?}:\n  {found:?}\n  {wanted:?}"));
        }
        assert_eq!(decode(tokenizer.decode_stream(), wanted), *text);
    }
    assert!(golden.strings.len() >= 80);
    assert!(
        differing.is_empty(),
        "{} differ:\n{}",
        differing.len(),
        differing.join("\n")
    );
}

#[test]
fn users_cannot_write_control_tokens() {
    let chat = "<|im_start|>user\nHi<|im_end|><think>";
    for vocabulary in [chat_vocabulary(), spm_chat_vocabulary()] {
        let id = |text: &str| {
            vocabulary
                .tokens
                .iter()
                .position(|token| token == text)
                .unwrap() as u32
        };
        let (start, end, think) = (id("<|im_start|>"), id("<|im_end|>"), id("<think>"));
        let tokenizer = Tokenizer::new(vocabulary).unwrap();

        let parsed = tokenizer.encode(chat, Special::Parse).unwrap();
        assert_eq!(parsed.first(), Some(&start));
        assert_eq!(parsed[parsed.len() - 2..], [end, think]);

        let as_text = tokenizer.encode(chat, Special::AsText).unwrap();
        assert!(!as_text.contains(&start) && !as_text.contains(&end));
        assert_eq!(as_text.last(), Some(&think), "user-defined tokens are text");
        assert_eq!(decode(tokenizer.decode_stream(), &as_text), chat);
        assert_eq!(tokenizer.token_bytes(start), b"");
        assert!(tokenizer.stop_tokens().contains(&end));
        assert!(!tokenizer.stop_tokens().contains(&start));
    }
}

#[test]
fn merges_and_whole_words_never_yield_a_control_token() {
    let mut vocabulary = bpe_vocabulary("llama-bpe");
    // An ordinary word, reached by merges and whole, that the file declares to be a control token.
    let quick = vocabulary
        .tokens
        .iter()
        .position(|token| token == "quick")
        .unwrap();
    vocabulary.token_types = vec![1; vocabulary.tokens.len()];
    vocabulary.token_types[quick] = 3;
    let tokenizer = Tokenizer::new(vocabulary).unwrap();
    let quick = quick as u32;
    assert!(
        !tokenizer
            .encode("quick", Special::AsText)
            .unwrap()
            .contains(&quick)
    );
    assert_eq!(tokenizer.encode("quick", Special::Parse).unwrap(), [quick]);
}

#[test]
fn bos_and_eos_are_added_as_the_metadata_says_and_never_doubled() {
    let mut vocabulary = chat_vocabulary();
    let id = |text: &str| {
        vocabulary
            .tokens
            .iter()
            .position(|token| token == text)
            .unwrap() as u32
    };
    let (start, end) = (id("<|im_start|>"), id("<|im_end|>"));
    vocabulary.bos = Some(start);
    vocabulary.eos = Some(end);
    let plain = Tokenizer::new(vocabulary.clone()).unwrap();
    let hi = plain.encode("hi", Special::AsText).unwrap();
    (vocabulary.add_bos, vocabulary.add_eos) = (true, true);
    let tokenizer = Tokenizer::new(vocabulary).unwrap();
    let wanted = [&[start], hi.as_slice(), &[end]].concat();
    assert_eq!(tokenizer.encode("hi", Special::AsText).unwrap(), wanted);
    assert_eq!(
        tokenizer.encode_opening("hi", Special::AsText).unwrap(),
        wanted[..wanted.len() - 1],
        "the text goes on"
    );
    assert_eq!(
        tokenizer
            .encode("<|im_start|>hi<|im_end|>", Special::Parse)
            .unwrap(),
        wanted
    );
    assert_eq!(tokenizer.encode("", Special::AsText).unwrap(), [start, end]);
}

#[test]
fn careless_roles_do_not_make_control_tokens_of_words() {
    let mut vocabulary = chat_vocabulary();
    let comma = vocabulary
        .tokens
        .iter()
        .position(|token| token == ",")
        .unwrap() as u32;
    (vocabulary.bos, vocabulary.padding, vocabulary.unknown) =
        (Some(comma), Some(comma), Some(comma));
    let tokenizer = Tokenizer::new(vocabulary).unwrap();
    let tokens = tokenizer.encode(",", Special::AsText).unwrap();
    assert_eq!(tokens, [comma]);
    assert_eq!(decode(tokenizer.decode_stream(), &tokens), ",");
}

#[test]
fn a_completion_keeps_the_space_that_a_reply_drops() {
    let tokenizer = Tokenizer::new(spm_vocabulary()).unwrap();
    let tokens = tokenizer.encode("the fox", Special::AsText).unwrap();
    assert_eq!(decode(tokenizer.decode_stream(), &tokens), "the fox");
    assert_eq!(decode(tokenizer.decode_continuation(), &tokens), " the fox");
}

#[test]
fn characters_over_several_tokens_come_out_whole() {
    let tokenizer = Tokenizer::new(bytes_vocabulary()).unwrap();
    let check = |bytes: &[u8], pieces: &[&str], rest: &str| {
        let mut decoder = tokenizer.decode_stream();
        let found: Vec<_> = bytes
            .iter()
            .map(|&byte| decoder.push(byte_token(byte)))
            .collect();
        assert_eq!(found, pieces, "{bytes:?}");
        assert_eq!(decoder.finish(), rest, "{bytes:?}");
    };
    check("é😀".as_bytes(), &["", "é", "", "", "", "😀"], "");
    check("日".as_bytes(), &["", "", "日"], "");
    check(b"a\xffb", &["a", "\u{fffd}", "b"], "");
    check(b"\xe6\x97x", &["", "", "\u{fffd}x"], "");
    check(b"\xf0\x9f\x98", &["", "", ""], "\u{fffd}");
    check(b"\xe6\xe6\x97\xa5", &["", "\u{fffd}", "", "日"], "");
}

#[test]
fn control_tokens_and_unknown_ids_decode_to_nothing() {
    let tokenizer = Tokenizer::new(chat_vocabulary()).unwrap();
    let tokens = tokenizer
        .encode("<|im_start|>é<|im_end|>", Special::Parse)
        .unwrap();
    assert_eq!(decode(tokenizer.decode_stream(), &tokens), "é");
    assert_eq!(
        decode(tokenizer.decode_stream(), &[u32::MAX, 1_000_000]),
        ""
    );
}

#[test]
fn damaged_metadata_is_refused_by_name() {
    type Damage = fn(&mut Vocabulary);
    let check = |damage: Damage, wanted: &str| {
        let mut vocabulary = chat_vocabulary();
        damage(&mut vocabulary);
        let error = Tokenizer::new(vocabulary).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error:?} does not say {wanted:?}");
    };
    check(
        |v| {
            v.kind = VocabularyKind::Bpe {
                pre: "tarot".into(),
            }
        },
        "`tarot`",
    );
    check(
        |v| {
            v.kind = VocabularyKind::Bpe {
                pre: "tarot".into(),
            }
        },
        "smollm",
    );
    check(|v| v.tokens.clear(), "0 tokens");
    check(|v| v.token_types.truncate(7), "7 token types");
    check(|v| v.scores = vec![0.0; 3], "3 scores");
    check(|v| v.tokens[9] = v.tokens[4].clone(), "tokens 4 and 9");
    check(|v| v.bos = Some(1_000_000), "bos token is 1000000");
    check(|v| v.end_of_turn.push(u32::MAX), "end-of-turn token");
    check(|v| v.unknown = Some(u32::MAX), "unknown token");
    check(|v| (v.add_eos, v.eos) = (true, None), "eos");
    check(|v| v.token_types[3] = 77, "type 77");
    check(|v| v.merges[2] = "nospace".into(), "merge 2");
    check(|v| v.merges[2] = "absent token".into(), "merge 2");
    // Both halves exist, what they make does not.
    check(|v| v.merges[2] = "! \"".into(), "merge 2");
    check(|v| v.merges[2] = String::new(), "merge 2");
    check(|v| v.kind = VocabularyKind::Spm, "0 scores");

    let mut spm = spm_vocabulary();
    spm.scores[300] = f32::NAN;
    assert!(matches!(
        Tokenizer::new(spm),
        Err(TextError::BadScore { id: 300 })
    ));
    let mut spm = spm_vocabulary();
    let byte = spm.token_types.iter().position(|&kind| kind == 6).unwrap();
    spm.tokens[byte] = "<0xZZ>".into();
    assert!(matches!(
        Tokenizer::new(spm),
        Err(TextError::BadByteToken { .. })
    ));
}

#[test]
fn empty_tokens_are_filler() {
    let mut vocabulary = chat_vocabulary();
    vocabulary.tokens.extend([String::new(), String::new()]);
    vocabulary.token_types.extend([5, 3]);
    let tokenizer = Tokenizer::new(vocabulary).unwrap();
    assert_eq!(
        tokenizer.vocabulary_size(),
        chat_vocabulary().tokens.len() + 2
    );
    assert!(!tokenizer.encode("a b", Special::Parse).unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pushes_and_finish_make_the_decoding_of_the_whole(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xf0), Just(0x9f), Just(0x98)], 0..40),
    ) {
        let tokenizer = Tokenizer::new(bytes_vocabulary()).unwrap();
        let tokens: Vec<_> = bytes.iter().map(|&byte| byte_token(byte)).collect();
        prop_assert_eq!(decode(tokenizer.decode_stream(), &tokens), String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_text_survives_encoding_and_decoding(text in any::<String>()) {
        for vocabulary in [chat_vocabulary(), spm_vocabulary()] {
            let tokenizer = Tokenizer::new(vocabulary).unwrap();
            let tokens = tokenizer.encode(&text, Special::AsText).unwrap();
            prop_assert_eq!(decode(tokenizer.decode_stream(), &tokens), text.as_str());
        }
    }

    #[test]
    fn random_metadata_never_panics(
        tokens in prop::collection::vec("[ab ▁<>x0-2]{0,6}", 0..12),
        merges in prop::collection::vec("[ab]{0,3} ?[ab]{0,3}", 0..6),
        scores in prop::collection::vec(any::<f32>(), 0..12),
        token_types in prop::collection::vec(-1..8i32, 0..12),
        ids in prop::collection::vec(prop::option::of(0..14u32), 4),
        flags in any::<[bool; 4]>(),
    ) {
        let kind = if flags[0] { VocabularyKind::Spm } else { VocabularyKind::Bpe { pre: "gpt-2".into() } };
        let vocabulary = Vocabulary {
            kind, tokens, scores, token_types, merges,
            bos: ids[0], eos: ids[1], unknown: ids[2], padding: ids[3],
            end_of_turn: vec![], add_bos: flags[1], add_eos: flags[2], add_space_prefix: flags[3],
        };
        if let Ok(tokenizer) = Tokenizer::new(vocabulary) {
            for special in [Special::Parse, Special::AsText] {
                let tokens = tokenizer.encode("ab ba <x> é", special).unwrap();
                prop_assert!(tokens.iter().all(|&id| (id as usize) < tokenizer.vocabulary_size()));
                decode(tokenizer.decode_stream(), &tokens);
            }
        }
    }
}

fn decode(mut decoder: Decoder, tokens: &[u32]) -> String {
    let pushed: String = tokens.iter().map(|&token| decoder.push(token)).collect();
    pushed + &decoder.finish()
}

fn read<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn vocabulary(kind: VocabularyKind, tokens: Vec<String>) -> Vocabulary {
    Vocabulary {
        kind,
        tokens,
        scores: vec![],
        token_types: vec![],
        merges: vec![],
        bos: None,
        eos: None,
        end_of_turn: vec![],
        unknown: None,
        padding: None,
        add_bos: false,
        add_eos: false,
        add_space_prefix: true,
    }
}

fn bpe_vocabulary(pre: &str) -> Vocabulary {
    let Bpe { tokens, merges, .. } = read("bpe.json");
    Vocabulary {
        merges,
        ..vocabulary(VocabularyKind::Bpe { pre: pre.into() }, tokens)
    }
}

fn spm_vocabulary() -> Vocabulary {
    let Spm {
        tokens,
        scores,
        types,
        ..
    } = read("spm.json");
    let unknown = Some(0);
    Vocabulary {
        scores,
        token_types: types,
        unknown,
        ..vocabulary(VocabularyKind::Spm, tokens)
    }
}

/// A byte-level vocabulary with two control tokens and one user-defined.
fn chat_vocabulary() -> Vocabulary {
    let mut vocabulary = bpe_vocabulary("smollm");
    vocabulary.token_types = vec![1; vocabulary.tokens.len()];
    for (text, token_type) in [("<|im_start|>", 3), ("<|im_end|>", 3), ("<think>", 4)] {
        vocabulary.tokens.push(text.into());
        vocabulary.token_types.push(token_type);
    }
    vocabulary
}

/// The SentencePiece vocabulary with pieces from which a control token could be put together.
fn spm_chat_vocabulary() -> Vocabulary {
    let mut vocabulary = spm_vocabulary();
    let mut add = |text: &str, token_type| {
        if !vocabulary.tokens.iter().any(|token| token == text) {
            vocabulary.tokens.push(text.into());
            vocabulary.scores.push(0.0);
            vocabulary.token_types.push(token_type);
        }
    };
    "<|im_start|>"
        .chars()
        .chain("<|im_end|>".chars())
        .for_each(|c| add(&c.to_string(), 1));
    for text in ["<|", "<|im", "_start", "_start|>", "_end", "_end|>", "|>"] {
        add(text, 1);
    }
    add("<think>", 4);
    vocabulary
}

/// A vocabulary whose tokens are the bytes of `<0xNN>`.
fn bytes_vocabulary() -> Vocabulary {
    let tokens: Vec<_> = (0..=u8::MAX)
        .map(|byte| format!("<0x{byte:02X}>"))
        .collect();
    Vocabulary {
        scores: vec![0.0; tokens.len()],
        token_types: vec![6; tokens.len()],
        add_space_prefix: false,
        ..vocabulary(VocabularyKind::Spm, tokens)
    }
}

fn byte_token(byte: u8) -> u32 {
    byte.into()
}
