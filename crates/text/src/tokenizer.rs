//! Text to tokens.

use std::collections::HashMap;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::Model;
use tokenizers::models::bpe::BPE;

use crate::TextError;
use crate::decoder::{Decoder, Pieces};
use crate::merges::{byte_level_bpe, byte_of, spm_bpe, unforeseen};
use crate::pretokenizer::{PreTokenizer, Splitter};
use crate::vocabulary::{TokenKind, Vocabulary, VocabularyKind};

/// Encodes text to a model's tokens and gives out [`Decoder`]s for the way back.
#[derive(Debug)]
pub struct Tokenizer {
    algorithm: Algorithm,
    bpe: BPE,
    /// Finds every special token, for [`Special::Parse`].
    specials: Specials,
    /// Finds user-defined tokens only, for [`Special::AsText`].
    user_defined: Specials,
    pieces: Arc<Pieces>,
    bos: Option<u32>,
    eos: Option<u32>,
    stop_tokens: Vec<u32>,
}

/// What to make of text that reads like a control token, such as `<|im_start|>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// It is that token: for text a chat template has written.
    Parse,
    /// It is ordinary text: for text a user has written, who must not be able to end a turn or
    /// begin one in another's name. It is there for callers who encode such text by itself; a
    /// rendered template is encoded as a whole, with [`Special::Parse`].
    AsText,
}

#[derive(Debug)]
enum Algorithm {
    /// Words, then bytes written as printable characters, then merges.
    ByteLevel(Splitter),
    /// The whole fragment with spaces written as `▁`, then merges.
    Spm { space_prefix: bool },
}

impl Tokenizer {
    /// Checks `vocabulary` and builds the tokenizer it describes.
    ///
    /// # Errors
    /// Any inconsistency of the metadata, each a variant of [`TextError`].
    pub fn new(vocabulary: Vocabulary) -> Result<Self, TextError> {
        let ids = vocabulary.ids()?;
        let kinds = vocabulary.kinds(&ids)?;
        let (algorithm, bpe) = match &vocabulary.kind {
            VocabularyKind::Bpe { pre } => {
                let row = PreTokenizer::named(pre)?;
                let bpe = byte_level_bpe(&vocabulary, &ids, &kinds, row.whole_words)?;
                (Algorithm::ByteLevel(Splitter::new(row)), bpe)
            }
            VocabularyKind::Spm => {
                let space_prefix = vocabulary.add_space_prefix;
                (
                    Algorithm::Spm { space_prefix },
                    spm_bpe(&vocabulary, &ids, &kinds)?,
                )
            }
        };
        let user_defined = |kind| kind == TokenKind::UserDefined;
        let special = |kind| {
            matches!(
                kind,
                TokenKind::UserDefined | TokenKind::Control | TokenKind::Unknown
            )
        };
        Ok(Self {
            bpe,
            specials: Specials::new(&vocabulary.tokens, &kinds, special)?,
            user_defined: Specials::new(&vocabulary.tokens, &kinds, user_defined)?,
            pieces: Arc::new(pieces(&vocabulary, &kinds, &algorithm)?),
            algorithm,
            bos: vocabulary.bos.filter(|_| vocabulary.add_bos),
            eos: vocabulary.eos.filter(|_| vocabulary.add_eos),
            stop_tokens: vocabulary.stop_tokens(&ids, &kinds),
        })
    }

    /// Encodes `text`, with BOS and EOS around it if the model's metadata asks for them and the
    /// text (as a chat template's may) does not bring them itself. Bytes for which the vocabulary
    /// has no token (some lack a few control characters) are left out, as the references do.
    ///
    /// # Errors
    /// [`TextError::SplitTooCostly`] for a text built to be slow to split.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>, TextError> {
        let mut tokens = self.encode_opening(text, special)?;
        if let Some(eos) = self.eos
            && tokens.last() != Some(&eos)
        {
            tokens.push(eos);
        }
        Ok(tokens)
    }

    /// Encodes a text that goes on, such as a chat up to the reply: as [`encode`](Self::encode), with no EOS after it.
    ///
    /// # Errors
    /// See [`encode`](Self::encode).
    pub fn encode_opening(&self, text: &str, special: Special) -> Result<Vec<u32>, TextError> {
        let specials = match special {
            Special::Parse => &self.specials,
            Special::AsText => &self.user_defined,
        };
        let mut tokens = Vec::with_capacity(text.len() / 3 + 2);
        let mut end = 0;
        for (token, range) in specials.find(text) {
            self.encode_plain(&text[end..range.start], &mut tokens)?;
            tokens.push(token);
            end = range.end;
        }
        self.encode_plain(&text[end..], &mut tokens)?;
        if let Some(bos) = self.bos
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
        Ok(tokens)
    }

    /// Returns a decoder for a text of its own, such as a reply in a chat. Where the encoder puts
    /// a space before each text (SentencePiece), the decoder takes it away again.
    pub fn decode_stream(&self) -> Decoder {
        let drop_space = matches!(self.algorithm, Algorithm::Spm { space_prefix: true });
        Decoder::new(Arc::clone(&self.pieces), drop_space)
    }

    /// Returns a decoder for text that goes on where a prompt's text ended, as in a plain
    /// completion: a space that comes first is part of it.
    pub fn decode_continuation(&self) -> Decoder {
        Decoder::new(Arc::clone(&self.pieces), false)
    }

    /// Returns the bytes `token` stands for: none for control tokens and ids out of range, and
    /// perhaps only part of a character.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.pieces.bytes(token)
    }

    /// Returns the tokens after which nothing should be generated: end of text and end of turn.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// Returns the number of tokens.
    pub fn vocabulary_size(&self) -> usize {
        self.pieces.len()
    }

    /// Encodes text without special tokens.
    fn encode_plain(&self, text: &str, tokens: &mut Vec<u32>) -> Result<(), TextError> {
        if text.is_empty() {
            return Ok(());
        }
        match &self.algorithm {
            Algorithm::ByteLevel(splitter) => {
                let text = splitter.normalize(text);
                let mut word_as_chars = String::new();
                for word in splitter.words(&text)? {
                    word_as_chars.clear();
                    word_as_chars.extend(word.bytes().map(byte_as_char));
                    self.merge(&word_as_chars, tokens)?;
                }
                Ok(())
            }
            Algorithm::Spm { space_prefix } => {
                let mut escaped = String::with_capacity(text.len() + 16);
                if *space_prefix {
                    escaped.push(SPM_SPACE);
                }
                escaped.extend(text.chars().map(|c| if c == ' ' { SPM_SPACE } else { c }));
                self.merge(&escaped, tokens)
            }
        }
    }

    fn merge(&self, word: &str, tokens: &mut Vec<u32>) -> Result<(), TextError> {
        let merged = self.bpe.tokenize(word).map_err(unforeseen)?;
        tokens.extend(merged.iter().map(|token| token.id));
        Ok(())
    }
}

/// Finds tokens that are recognised as they stand in a text, before anything else happens to it.
#[derive(Debug)]
struct Specials {
    patterns: AhoCorasick,
    /// The token of each pattern.
    tokens: Vec<u32>,
}

impl Specials {
    fn new(
        texts: &[String],
        kinds: &[TokenKind],
        wanted: impl Fn(TokenKind) -> bool,
    ) -> Result<Self, TextError> {
        let (tokens, texts): (Vec<_>, Vec<_>) = (0..)
            .zip(texts)
            .zip(kinds)
            .filter(|((_, text), kind)| wanted(**kind) && !text.is_empty())
            .map(|(token, _)| token)
            .unzip();
        let patterns = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts)
            .map_err(|error| TextError::Tokenizer(error.to_string()))?;
        Ok(Self { patterns, tokens })
    }

    fn find(&self, text: &str) -> impl Iterator<Item = (u32, std::ops::Range<usize>)> {
        self.patterns
            .find_iter(text)
            .map(|found| (self.tokens[found.pattern().as_usize()], found.range()))
    }
}

/// Writes down what each token decodes to.
fn pieces(
    vocabulary: &Vocabulary,
    kinds: &[TokenKind],
    algorithm: &Algorithm,
) -> Result<Pieces, TextError> {
    let bytes_of_chars: HashMap<char, u8> = (0..=u8::MAX)
        .map(|byte| (byte_as_char(byte), byte))
        .collect();
    let mut pieces = Pieces::default();
    for ((id, text), kind) in (0u32..).zip(&vocabulary.tokens).zip(kinds) {
        match (kind, algorithm) {
            (TokenKind::Control | TokenKind::Unknown | TokenKind::Unused, _) => pieces.push(&[]),
            (TokenKind::Byte, _) => pieces.push(&[byte_of(id, text)?]),
            (TokenKind::UserDefined, Algorithm::ByteLevel(_)) => pieces.push(text.as_bytes()),
            (TokenKind::Normal, Algorithm::ByteLevel(_)) => {
                let bytes: Option<Vec<u8>> = text
                    .chars()
                    .map(|c| bytes_of_chars.get(&c).copied())
                    .collect();
                // A text with other characters was never byte-encoded; it stands for itself.
                pieces.push(bytes.as_deref().unwrap_or(text.as_bytes()));
            }
            (TokenKind::Normal | TokenKind::UserDefined, Algorithm::Spm { .. }) => {
                pieces.push(text.replace(SPM_SPACE, " ").as_bytes());
            }
        }
    }
    Ok(pieces)
}

/// Returns the printable character that stands for `byte` in byte-level vocabularies: itself if it
/// is printable Latin-1, else the next unused one from U+0100 on (the table of GPT-2).
fn byte_as_char(byte: u8) -> char {
    let code = u32::from(byte);
    let code = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x00..=0x20 => 0x100 + code,
        0x7f..=0xa0 => 0x100 + 0x21 + (code - 0x7f),
        _ => 0x100 + 0x43,
    };
    char::from_u32(code).expect("the codes above are all letters")
}

/// SentencePiece's visible space.
const SPM_SPACE: char = '▁';
