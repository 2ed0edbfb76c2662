//! Pre-tokenizers: how a text is split into words before byte-pair encoding.
//!
//! Each is data, named as `tokenizer.ggml.pre` names it, and all run on one interpreter. Patterns
//! are those of the models' own `tokenizer.json`, under the names llama.cpp gives them, applied in
//! order: each cuts what the one before left into its matches and what lies between.

use std::borrow::Cow;

use fancy_regex::Regex;
use tokenizers::NormalizedString;

use crate::TextError;

/// One row of the table.
pub(crate) struct PreTokenizer {
    names: &'static [&'static str],
    splits: &'static [&'static str],
    /// Whether the model's tokenizer composes characters (NFC) first.
    composes: bool,
    /// Whether a word that is a token stays whole, whatever the merges say.
    pub(crate) whole_words: bool,
    /// Whether a file that says nothing of BOS means yes.
    pub(crate) begins_with_bos: bool,
}

impl PreTokenizer {
    /// Returns the row for a value of `tokenizer.ggml.pre`.
    pub(crate) fn named(name: &str) -> Result<&'static Self, TextError> {
        TABLE
            .iter()
            .find(|row| row.names.contains(&name))
            .ok_or_else(|| {
                let supported: Vec<_> = TABLE.iter().flat_map(|row| row.names).copied().collect();
                TextError::UnknownPreTokenizer {
                    name: name.to_owned(),
                    supported: supported.join(", "),
                }
            })
    }
}

/// A row made ready to run.
#[derive(Debug)]
pub(crate) struct Splitter {
    splits: Vec<Regex>,
    composes: bool,
}

impl Splitter {
    pub(crate) fn new(row: &PreTokenizer) -> Self {
        let compile = |pattern: &&str| {
            Regex::new(pattern).expect("every pattern of the table compiles, which a test holds")
        };
        Self {
            splits: row.splits.iter().map(compile).collect(),
            composes: row.composes,
        }
    }

    /// Returns `text` in the form that is to be split.
    pub(crate) fn normalize<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if !self.composes || text.is_ascii() {
            return Cow::Borrowed(text);
        }
        let mut composed = NormalizedString::from(text);
        composed.nfc();
        Cow::Owned(composed.get().to_owned())
    }

    /// Splits `text` into words that together are all of it.
    ///
    /// # Errors
    /// [`TextError::SplitTooCostly`] when a match takes back more than the expression library's
    /// limit of a million steps: one for each character of a run of spaces, or of capitals.
    pub(crate) fn words<'t>(&self, text: &'t str) -> Result<Vec<&'t str>, TextError> {
        let mut words = vec![text];
        for split in &self.splits {
            let mut finer = Vec::with_capacity(words.len() * 2);
            for word in words {
                let mut end = 0;
                for found in split.find_iter(word) {
                    let found = found.map_err(|_| TextError::SplitTooCostly)?;
                    finer.extend([&word[end..found.start()], found.as_str()]);
                    end = found.end();
                }
                finer.push(&word[end..]);
            }
            finer.retain(|word| !word.is_empty());
            words = finer;
        }
        Ok(words)
    }
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_WORDS: &str = r"\s?[A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\u{295}-\u{2AF}\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]+";
const CJK: &str = r"[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+";
const DEEPSEEK3_WORDS: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const BLOOM: &str = r" ?[^(\s|.,!?\u{2026}\u{3002}\u{FF0C}\u{3001}\u{964}\u{6D4}\u{60C})]+";

/// What most rows have in common.
const PLAIN: PreTokenizer = PreTokenizer {
    names: &[],
    splits: &[GPT2],
    composes: false,
    whole_words: false,
    begins_with_bos: false,
};

const TABLE: &[PreTokenizer] = &[
    PreTokenizer {
        names: &["default"],
        splits: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ..PLAIN
    },
    PreTokenizer {
        names: &[
            "gpt-2",
            "phi-2",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "exaone4",
            "jais",
            "trillion",
            "granite-docling",
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["mpt", "olmo"],
        composes: true,
        ..PLAIN
    },
    PreTokenizer {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        splits: &[r"\p{N}", GPT2],
        ..PLAIN
    },
    PreTokenizer {
        names: &["command-r"],
        splits: &[r"\p{N}", GPT2],
        composes: true,
        ..PLAIN
    },
    PreTokenizer {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ],
        splits: &[LLAMA3],
        whole_words: true,
        begins_with_bos: true,
        ..PLAIN
    },
    PreTokenizer {
        names: &["dbrx", "smaug-bpe", "chatglm-bpe"],
        splits: &[LLAMA3],
        ..PLAIN
    },
    PreTokenizer {
        names: &["glm4", "glm5"],
        splits: &[LLAMA3],
        whole_words: true,
        ..PLAIN
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "kormo"],
        splits: &[QWEN2],
        composes: true,
        ..PLAIN
    },
    PreTokenizer {
        names: &["stablelm2", "hunyuan", "solar-open", "grok-2"],
        splits: &[QWEN2],
        ..PLAIN
    },
    PreTokenizer {
        names: &["qwen35"],
        splits: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        composes: true,
        ..PLAIN
    },
    PreTokenizer {
        names: &["gpt-4o", "llama4", "kanana2", "minimax-m2"],
        splits: &[GPT4O],
        ..PLAIN
    },
    PreTokenizer {
        names: &["tekken"],
        splits: &[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        whole_words: true,
        begins_with_bos: true,
        ..PLAIN
    },
    PreTokenizer {
        // Digits one by one, as the model's own tokenizer has it; llama.cpp keeps numbers whole
        // here, which comes to the same because no merge of the model joins digits.
        names: &["deepseek-llm"],
        splits: &[
            r"[\r\n]",
            DEEPSEEK_WORDS,
            r"\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+",
            r"\s+$",
            CJK,
            r"\p{N}",
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        splits: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}"],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        splits: &[
            r"\p{N}{1,3}",
            r"[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+",
            DEEPSEEK3_WORDS,
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["kimi-k2"],
        splits: &[
            r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["falcon"],
        splits: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
        ..PLAIN
    },
    PreTokenizer {
        names: &["bloom", "gpt3-finnish", "poro-chat"],
        splits: &[BLOOM],
        ..PLAIN
    },
    PreTokenizer {
        names: &["viking"],
        splits: &[BLOOM, r"\p{N}"],
        ..PLAIN
    },
    PreTokenizer {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        splits: &[
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["seed-coder"],
        splits: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["exaone-moe"],
        splits: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["chameleon"],
        splits: &[
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ],
        begins_with_bos: true,
        ..PLAIN
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_compiles_and_loses_nothing() {
        let runs = [" ", "A", "a", "1", "é", "日", "!", "\n"].map(|one| one.repeat(4_000));
        for row in TABLE {
            let splitter = Splitter::new(row);
            for text in runs
                .iter()
                .map(String::as_str)
                .chain(["", "It's 12345 日本語's\r\n\n  x. "])
            {
                assert_eq!(
                    splitter.words(text).unwrap().concat(),
                    text,
                    "{:?}",
                    row.names
                );
            }
        }
    }

    #[test]
    fn a_text_too_costly_to_split_is_refused() {
        let splitter = Splitter::new(&PLAIN);
        let spaces = " ".repeat(3_000_000);
        assert!(matches!(
            splitter.words(&spaces),
            Err(TextError::SplitTooCostly)
        ));
    }

    #[test]
    fn every_name_is_found_in_its_row_only() {
        let names: Vec<_> = TABLE.iter().flat_map(|row| row.names).collect();
        for name in &names {
            assert_eq!(
                names.iter().filter(|other| *other == name).count(),
                1,
                "{name}"
            );
        }
        let error = PreTokenizer::named("tarot")
            .map(|row| row.names)
            .unwrap_err()
            .to_string();
        assert!(names.iter().all(|name| error.contains(*name)));
    }
}
