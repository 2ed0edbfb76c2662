//! The merges of a vocabulary: stated by the file, or implied by its scores.

use std::cmp::Ordering;
use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Vocab};

use crate::TextError;
use crate::vocabulary::{TokenKind, Vocabulary};

/// Builds the merges of byte-level BPE, which the file lists best first.
pub(crate) fn byte_level_bpe(
    vocabulary: &Vocabulary,
    ids: &HashMap<&str, u32>,
    kinds: &[TokenKind],
    whole_words: bool,
) -> Result<BPE, TextError> {
    let mut merges = Vec::with_capacity(vocabulary.merges.len());
    for (index, merge) in vocabulary.merges.iter().enumerate() {
        let bad = || TextError::BadMerge {
            index,
            merge: merge.clone(),
        };
        let (left, right) = merge.split_once(' ').ok_or_else(bad)?;
        let joined = [left, right].concat();
        let mut mergeable = true;
        for text in [left, right, &joined] {
            let id = *ids.get(text).ok_or_else(bad)?;
            mergeable &= is_text(kinds[id as usize]);
        }
        if mergeable {
            merges.push((left.to_owned(), right.to_owned()));
        }
    }
    let texts = texts_for_merging(vocabulary, kinds);
    let builder = BPE::builder()
        .vocab_and_merges(texts, merges)
        .ignore_merges(whole_words);
    builder.build().map_err(unforeseen)
}

/// Builds merges from scores: each token can be made of any two tokens that join to it.
pub(crate) fn spm_bpe(
    vocabulary: &Vocabulary,
    ids: &HashMap<&str, u32>,
    kinds: &[TokenKind],
) -> Result<BPE, TextError> {
    let (tokens, found) = (vocabulary.tokens.len(), vocabulary.scores.len());
    if found != tokens {
        return Err(TextError::LengthMismatch {
            list: "scores",
            found,
            tokens,
        });
    }
    let part = |text: &str| {
        ids.get(text)
            .copied()
            .filter(|&id| is_text(kinds[id as usize]))
    };
    let mut joins = Vec::new();
    for (id, text) in (0u32..).zip(&vocabulary.tokens) {
        let score = vocabulary.scores[id as usize];
        if score.is_nan() {
            return Err(TextError::BadScore { id });
        }
        if !is_text(kinds[id as usize]) {
            continue;
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(left_id), Some(right_id)) = (part(left), part(right)) {
                joins.push(Join {
                    score,
                    id,
                    left,
                    right,
                    left_id,
                    right_id,
                });
            }
        }
    }
    joins.sort_by(Join::rank);
    let merges = joins
        .iter()
        .map(|join| (join.left.to_owned(), join.right.to_owned()))
        .collect();

    let mut texts = texts_for_merging(vocabulary, kinds);
    let unknown = vocabulary
        .unknown
        .filter(|&id| kinds[id as usize] == TokenKind::Unknown);
    for (id, text) in (0u32..).zip(&vocabulary.tokens) {
        if kinds[id as usize] == TokenKind::Byte || unknown == Some(id) {
            texts.insert(text.clone(), id);
        }
    }
    let mut builder = BPE::builder()
        .vocab_and_merges(texts, merges)
        .byte_fallback(true)
        .fuse_unk(true);
    if let Some(id) = unknown {
        builder = builder.unk_token(vocabulary.tokens[id as usize].clone());
    }
    // Without pre-tokenizer the "words" are whole texts: a cache of them would only cost memory.
    builder.cache_capacity(0).build().map_err(unforeseen)
}

/// One way to make a token of two.
struct Join<'v> {
    score: f32,
    id: u32,
    left: &'v str,
    right: &'v str,
    left_id: u32,
    right_id: u32,
}

impl Join<'_> {
    /// Orders the better score first. Ties are broken as the converters of the `transformers`
    /// package do: the longer left part, then the longer right, then the lower ids.
    fn rank(&self, other: &Self) -> Ordering {
        let chars = |join: &Self| (join.left.chars().count(), join.right.chars().count());
        let ids = |join: &Self| (join.id, join.left_id, join.right_id);
        (other.score.partial_cmp(&self.score))
            .expect("scores that are no numbers were refused")
            .then_with(|| chars(other).cmp(&chars(self)))
            .then_with(|| ids(self).cmp(&ids(other)))
    }
}

/// Returns the tokens that text may be merged to. Control tokens are not among them, so no merge
/// and no whole word ever yields one.
fn texts_for_merging(vocabulary: &Vocabulary, kinds: &[TokenKind]) -> Vocab {
    (0..)
        .zip(&vocabulary.tokens)
        .zip(kinds)
        .filter(|((_, text), kind)| is_text(**kind) && !text.is_empty())
        .map(|((id, text), _)| (text.clone(), id))
        .collect()
}

fn is_text(kind: TokenKind) -> bool {
    matches!(kind, TokenKind::Normal | TokenKind::UserDefined)
}

/// Returns the byte a byte token such as `<0x0A>` stands for.
pub(crate) fn byte_of(id: u32, text: &str) -> Result<u8, TextError> {
    text.strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .filter(|digits| digits.len() == 2 && digits.bytes().all(|c| c.is_ascii_hexdigit()))
        .and_then(|digits| u8::from_str_radix(digits, 16).ok())
        .ok_or_else(|| TextError::BadByteToken {
            id,
            text: text.to_owned(),
        })
}

pub(crate) fn unforeseen(error: tokenizers::Error) -> TextError {
    TextError::Tokenizer(error.to_string())
}
