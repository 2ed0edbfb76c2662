//! A vocabulary as a model file states it, and what is checked before anything is built on it.

use std::collections::HashMap;

use crate::TextError;
use crate::pretokenizer::PreTokenizer;

/// The tokenizer's metadata as a GGUF file states it, not yet trusted.
///
/// The lists run parallel: `tokens[id]`, `scores[id]`, `token_types[id]`. `scores` and
/// `token_types` may be empty where the file has none.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    /// Which algorithm the vocabulary is for.
    pub kind: VocabularyKind,
    /// The text of each token, `tokenizer.ggml.tokens`.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`; orders the merges of [`VocabularyKind::Spm`].
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`, GGUF's numbers.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`, each "left right", best first; for [`VocabularyKind::Bpe`].
    pub merges: Vec<String>,
    /// The token that begins a text.
    pub bos: Option<u32>,
    /// The token that ends a text.
    pub eos: Option<u32>,
    /// Tokens the file says end a turn (`eot_token_id`, `eom_token_id`).
    pub end_of_turn: Vec<u32>,
    /// The token for what cannot be encoded.
    pub unknown: Option<u32>,
    /// The token that fills up batches.
    pub padding: Option<u32>,
    /// Whether a text is begun with `bos`.
    pub add_bos: bool,
    /// Whether a text is ended with `eos`.
    pub add_eos: bool,
    /// Whether [`VocabularyKind::Spm`] puts a space before the text.
    pub add_space_prefix: bool,
}

/// The algorithm a vocabulary is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VocabularyKind {
    /// Byte-level byte-pair encoding (`tokenizer.ggml.model` = `gpt2`).
    Bpe {
        /// Which pre-tokenizer splits the text into words (`tokenizer.ggml.pre`).
        pre: String,
    },
    /// SentencePiece's byte-pair encoding with scores and byte fallback (`llama`).
    Spm,
}

impl VocabularyKind {
    /// Returns whether texts begin with BOS where the file does not say (`add_bos` is for the
    /// caller to fill).
    pub fn begins_with_bos(&self) -> bool {
        match self {
            Self::Bpe { pre } => PreTokenizer::named(pre).is_ok_and(|row| row.begins_with_bos),
            Self::Spm => true,
        }
    }
}

/// What a token is, from GGUF's `token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenKind {
    fn from_gguf(token_type: i32) -> Option<Self> {
        Some(match token_type {
            // 0 is "undefined", which converters write for ordinary tokens.
            0 | 1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

impl Vocabulary {
    /// Checks what every algorithm relies on and returns each token's kind.
    ///
    /// Tokens that end texts and turns are control tokens whatever the file says of their kind: a
    /// file that lists its end-of-turn marker as ordinary text would let users write it. The other
    /// roles change nothing, since files carry careless values there, such as a comma for BOS.
    pub(crate) fn kinds(&self, ids: &HashMap<&str, u32>) -> Result<Vec<TokenKind>, TextError> {
        let tokens = self.tokens.len();
        if tokens == 0 || u32::try_from(tokens).is_err() {
            return Err(TextError::VocabularySize { tokens });
        }
        for (list, found) in [
            ("scores", self.scores.len()),
            ("token types", self.token_types.len()),
        ] {
            if found != 0 && found != tokens {
                return Err(TextError::LengthMismatch {
                    list,
                    found,
                    tokens,
                });
            }
        }
        let mut kinds = vec![TokenKind::Normal; tokens];
        for ((id, kind), &found) in (0..).zip(&mut kinds).zip(&self.token_types) {
            *kind = TokenKind::from_gguf(found).ok_or(TextError::UnknownTokenType { id, found })?;
        }
        let end_of_turn = self.end_of_turn.iter().map(|&id| ("end-of-turn", id));
        for (role, id) in self
            .eos
            .map(|id| ("eos", id))
            .into_iter()
            .chain(end_of_turn)
        {
            *slot(&mut kinds, role, id)? = TokenKind::Control;
        }
        for id in STOP_TEXTS.iter().filter_map(|text| ids.get(text)) {
            let kind = &mut kinds[*id as usize];
            if *kind == TokenKind::UserDefined {
                *kind = TokenKind::Control;
            }
        }
        for (role, id) in [
            ("bos", self.bos),
            ("unknown", self.unknown),
            ("padding", self.padding),
        ] {
            if let Some(id) = id {
                slot(&mut kinds, role, id)?;
            }
        }
        for (role, wanted, id) in [
            ("bos", self.add_bos, self.bos),
            ("eos", self.add_eos, self.eos),
        ] {
            if wanted && id.is_none() {
                return Err(TextError::MissingToken { role });
            }
        }
        Ok(kinds)
    }

    /// Returns the tokens that end a text or a turn: those the file names, and control tokens
    /// known by their text, since files often name only one of several.
    pub(crate) fn stop_tokens(&self, ids: &HashMap<&str, u32>, kinds: &[TokenKind]) -> Vec<u32> {
        let known = STOP_TEXTS.iter().filter_map(|text| ids.get(text).copied());
        let known = known.filter(|&id| kinds[id as usize] == TokenKind::Control);
        let mut stops: Vec<_> = self
            .eos
            .into_iter()
            .chain(self.end_of_turn.iter().copied())
            .chain(known)
            .collect();
        stops.sort_unstable();
        stops.dedup();
        stops
    }

    /// Returns the id of each text. Empty texts, which some files use as filler, are left out.
    pub(crate) fn ids(&self) -> Result<HashMap<&str, u32>, TextError> {
        let mut ids = HashMap::with_capacity(self.tokens.len());
        for (second, text) in (0..).zip(&self.tokens) {
            if text.is_empty() {
                continue;
            }
            if let Some(first) = ids.insert(text.as_str(), second) {
                return Err(TextError::DuplicateToken {
                    text: text.clone(),
                    first,
                    second,
                });
            }
        }
        Ok(ids)
    }
}

fn slot<'a>(
    kinds: &'a mut [TokenKind],
    role: &'static str,
    id: u32,
) -> Result<&'a mut TokenKind, TextError> {
    let tokens = kinds.len();
    kinds
        .get_mut(id as usize)
        .ok_or(TextError::TokenOutOfRange { role, id, tokens })
}

/// How the model families write the end of a turn or a text.
const STOP_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|END_OF_TURN_TOKEN|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    "<EOT>",
    "[EOT]",
    "</s>",
];
