//! What can be wrong with a vocabulary, a chat template or a text.

use thiserror::Error;

/// An error of this crate. All but [`TextError::TemplateRefused`] and [`TextError::SplitTooCostly`]
/// are faults of the model file, not of the caller's text.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TextError {
    /// The file names a pre-tokenizer that is not in the table.
    #[error(
        "unknown pre-tokenizer `{name}`: this model needs a newer Shoal; supported are {supported}"
    )]
    UnknownPreTokenizer {
        /// The value of `tokenizer.ggml.pre`.
        name: String,
        /// Every supported name, comma separated.
        supported: String,
    },
    /// The vocabulary holds no token, or more than ids can number.
    #[error("the vocabulary has {tokens} tokens: the model file is damaged")]
    VocabularySize {
        /// How many tokens the file lists.
        tokens: usize,
    },
    /// A list that runs parallel to the tokens has another length.
    #[error("the vocabulary has {tokens} tokens but {found} {list}: the model file is damaged")]
    LengthMismatch {
        /// The list's name.
        list: &'static str,
        /// Its length.
        found: usize,
        /// The number of tokens.
        tokens: usize,
    },
    /// Two ids share one text, so that encoding would be ambiguous.
    #[error("tokens {first} and {second} are both `{text}`: the model file is damaged")]
    DuplicateToken {
        /// The text.
        text: String,
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
    },
    /// A special token's id lies outside the vocabulary.
    #[error(
        "the {role} token is {id} but the vocabulary has {tokens} tokens: the model file is damaged"
    )]
    TokenOutOfRange {
        /// What the token is for: `bos`, `eos`, …
        role: &'static str,
        /// The id.
        id: u32,
        /// The number of tokens.
        tokens: usize,
    },
    /// The file asks for a BOS or EOS around each text but does not say which token that is.
    #[error("the metadata asks for a {role} token but names none: the model file is damaged")]
    MissingToken {
        /// `bos` or `eos`.
        role: &'static str,
    },
    /// A token's kind is none of GGUF's.
    #[error("token {id} has type {found}, which GGUF does not define: the model file is damaged")]
    UnknownTokenType {
        /// The token.
        id: u32,
        /// The type.
        found: i32,
    },
    /// A score is not a number, so that merges cannot be ordered.
    #[error("the score of token {id} is not a number: the model file is damaged")]
    BadScore {
        /// The token.
        id: u32,
    },
    /// A byte token is not written `<0xNN>`.
    #[error("byte token {id} is `{text}` and not of the form <0x0A>: the model file is damaged")]
    BadByteToken {
        /// The token.
        id: u32,
        /// Its text.
        text: String,
    },
    /// A merge is not two texts parted by a space, or names a text that is no token.
    #[error(
        "merge {index} (`{merge}`) does not join two tokens to a third: the model file is damaged"
    )]
    BadMerge {
        /// Its rank.
        index: usize,
        /// Its text.
        merge: String,
    },
    /// The tokenizer could not be built or run for a reason not foreseen above.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// Splitting this text into words needs more backtracking than is allowed.
    #[error(
        "the text cannot be split into words within the allowed effort: break up its longest run of one kind of character"
    )]
    SplitTooCostly,
    /// The chat template does not parse.
    #[error("the chat template does not parse: {0}")]
    TemplateSyntax(String),
    /// The chat template itself refused the conversation with `raise_exception`.
    #[error("the chat template refuses this conversation: {0}")]
    TemplateRefused(String),
    /// The chat template failed while it ran.
    #[error("the chat template failed: {0}")]
    TemplateFailed(String),
}
