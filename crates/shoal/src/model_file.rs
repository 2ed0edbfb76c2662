//! What a front takes from a model file: its tokeniser, its chat template, its dimensions. No weights are read.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use shoal_model::gguf::{Gguf, Value};
use shoal_model::{ModelSpec, Shares, SplitPlan};
use shoal_server::ModelText;
use shoal_text::{ChatTemplate, Tokenizer, Vocabulary, VocabularyKind};

/// An opened model file whose every weight is known to be there.
pub(crate) struct ModelFile {
    gguf: Gguf,
    spec: ModelSpec,
    name: String,
}

impl ModelFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let gguf = Gguf::open(path).with_context(|| name.clone())?;
        let spec = ModelSpec::from_gguf(&gguf).with_context(|| name.clone())?;
        Ok(Self { gguf, spec, name })
    }

    /// The context to serve: what was asked for, or what the model was trained for up to a size that fits most machines.
    pub(crate) fn context(&self, wanted: Option<u32>) -> Result<u32> {
        let trained = self.spec.context_length();
        match wanted {
            Some(wanted) if wanted > trained => bail!(
                "--ctx {wanted} is more than the {trained} tokens this model was trained for; give at most {trained}"
            ),
            Some(wanted) => Ok(wanted),
            None => Ok(trained.min(CONTEXT_DEFAULT_MAX)),
        }
    }

    /// Makes sure that the model can be divided by these shares.
    pub(crate) fn check_split(&self, shares: Vec<u32>) -> Result<()> {
        SplitPlan::new(&self.spec, &Shares::new(shares)?)?;
        Ok(())
    }

    /// Builds the tokeniser and the chat template.
    pub(crate) fn text(&self) -> Result<Arc<ModelText>> {
        let vocabulary = self.vocabulary().with_context(|| self.name.clone())?;
        let token = |id: Option<u32>| {
            id.and_then(|id| vocabulary.tokens.get(id as usize).cloned())
                .unwrap_or_default()
        };
        let (bos, eos) = (token(vocabulary.bos), token(vocabulary.eos));
        let template = match self.text_of("tokenizer.chat_template") {
            Some(source) => {
                Some(ChatTemplate::new(source, &bos, &eos).with_context(|| self.name.clone())?)
            }
            None => None,
        };
        let tokenizer = Tokenizer::new(vocabulary).with_context(|| self.name.clone())?;
        Ok(Arc::new(ModelText {
            tokenizer,
            template,
        }))
    }

    /// The tokeniser's metadata, as the file states it.
    fn vocabulary(&self) -> Result<Vocabulary> {
        let kind = match self.text_of("tokenizer.ggml.model") {
            Some("gpt2") => VocabularyKind::Bpe {
                pre: self
                    .text_of("tokenizer.ggml.pre")
                    .unwrap_or("default")
                    .to_owned(),
            },
            Some("llama") => VocabularyKind::Spm,
            Some(other) => bail!("tokenizer {other:?} is not supported; supported: gpt2, llama"),
            None => {
                bail!("the file has no tokenizer (tokenizer.ggml.model); convert the model again")
            }
        };
        Ok(Vocabulary {
            tokens: self.texts("tokens"),
            merges: self.texts("merges"),
            scores: self.numbers("scores", Value::floats)?,
            token_types: self
                .numbers("token_type", Value::integers)?
                .into_iter()
                // A number beyond the type's range is no kind of token; the tokeniser says so.
                .map(|kind| i32::try_from(kind).unwrap_or(-1))
                .collect(),
            bos: self.id("bos_token_id"),
            eos: self.id("eos_token_id"),
            end_of_turn: ["eot_token_id", "eom_token_id"]
                .iter()
                .filter_map(|key| self.id(key))
                .collect(),
            unknown: self.id("unknown_token_id"),
            padding: self.id("padding_token_id"),
            add_bos: self
                .truth("add_bos_token")
                .unwrap_or_else(|| kind.begins_with_bos()),
            add_eos: self.truth("add_eos_token").unwrap_or(false),
            add_space_prefix: self.truth("add_space_prefix").unwrap_or(true),
            kind,
        })
    }

    fn tokenizer_value(&self, key: &str) -> Option<&Value> {
        self.gguf.metadata(&format!("tokenizer.ggml.{key}"))
    }

    fn text_of(&self, key: &str) -> Option<&str> {
        self.gguf.metadata(key)?.as_str()
    }

    fn texts(&self, key: &str) -> Vec<String> {
        self.tokenizer_value(key)
            .and_then(Value::as_texts)
            .map(<[String]>::to_vec)
            .unwrap_or_default()
    }

    fn numbers<T>(&self, key: &str, read: impl Fn(&Value) -> Option<Vec<T>>) -> Result<Vec<T>> {
        let Some(value) = self.tokenizer_value(key) else {
            return Ok(Vec::new());
        };
        read(value).with_context(|| {
            format!(
                "metadata tokenizer.ggml.{key} is not a list of numbers; convert the model again"
            )
        })
    }

    fn id(&self, key: &str) -> Option<u32> {
        self.tokenizer_value(key)?.as_u64()?.try_into().ok()
    }

    fn truth(&self, key: &str) -> Option<bool> {
        self.tokenizer_value(key)?.as_bool()
    }
}

/// The element type that most of a file's weights have, such as `Q4_1`.
pub(crate) fn quantisation(path: &Path) -> Result<String> {
    let gguf = Gguf::open(path)?;
    let mut bytes_by_type = std::collections::HashMap::new();
    for tensor in gguf.tensors() {
        *bytes_by_type.entry(tensor.dtype).or_insert(0) += tensor.range.len();
    }
    let most = bytes_by_type.into_iter().max_by_key(|(_, bytes)| *bytes);
    Ok(most.map_or_else(|| "none".to_owned(), |(dtype, _)| dtype.name().to_owned()))
}

/// The KV cache of eight sequences of this length stays below a gigabyte for models of a few billion parameters.
const CONTEXT_DEFAULT_MAX: u32 = 4096;
