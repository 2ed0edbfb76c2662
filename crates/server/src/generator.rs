//! Text in, text out.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use shoal_api::Options;
use shoal_api::chat::Message;
use shoal_api::completion::Prompt;
use shoal_engine::client::{Client, Request, Sampling, SubmitError};
use shoal_text::{ChatMessage, ChatTemplate, LocalTime, Special, Tokenizer};

use crate::error::GenerateError;
use crate::prompt_work::PromptWork;
use crate::stream::TextStream;
use crate::{random, status};

/// What turns text into tokens and back for one model.
pub struct ModelText {
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template; without one only plain completions work.
    pub template: Option<ChatTemplate>,
}

/// What a generator has to know about its model.
#[derive(Clone, Debug)]
pub struct GeneratorConfig {
    /// The name clients ask for.
    pub model_name: String,
    /// Longest prompt and reply together, in tokens.
    pub context: u32,
    /// How many ranks the cell has, also before they are there.
    pub world: usize,
}

/// Answers conversations and continues texts with one cell. Clones share the cell.
///
/// Its methods are async because encoding a long prompt runs on a blocking thread of the tokio
/// runtime they are called in.
#[derive(Clone)]
pub struct Generator {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    text: Arc<ModelText>,
    config: GeneratorConfig,
    created: u64,
    prompt_work: PromptWork,
}

impl Generator {
    /// Puts text on both ends of `client`.
    pub fn new(client: Client, text: Arc<ModelText>, config: GeneratorConfig) -> Self {
        Self {
            shared: Arc::new(Shared {
                client,
                text,
                config,
                created: unix_seconds(),
                prompt_work: PromptWork::new(),
            }),
        }
    }

    /// Returns the cell's client.
    pub fn client(&self) -> &Client {
        &self.shared.client
    }

    /// Returns the name of the model.
    pub fn model_name(&self) -> &str {
        &self.shared.config.model_name
    }

    /// Returns the longest prompt and reply together, in tokens.
    pub fn context(&self) -> u32 {
        self.shared.config.context
    }

    /// Returns how many ranks the cell has.
    pub fn world(&self) -> usize {
        self.shared.config.world
    }

    /// Returns when this generator was made, in seconds since 1970.
    pub(crate) fn created(&self) -> u64 {
        self.shared.created
    }

    /// Answers a conversation. The reply may fill the rest of the context unless `options` says less.
    ///
    /// # Errors
    /// If the model has no chat template or it refuses the messages, if they do not fit the context,
    /// and if the cell is full or not ready.
    pub async fn chat(
        &self,
        messages: Vec<Message>,
        options: Options,
    ) -> Result<TextStream, GenerateError> {
        self.start(options, Form::Chat, move |shared| shared.render(&messages))
            .await
    }

    /// Continues a text, or tokens. The reply may fill the rest of the context unless `options` says less.
    ///
    /// # Errors
    /// If the prompt is empty, holds tokens the model does not have or does not fit the context, and
    /// if the cell is full or not ready.
    pub async fn complete(
        &self,
        prompt: Prompt,
        options: Options,
    ) -> Result<TextStream, GenerateError> {
        self.start(options, Form::Completion, move |shared| {
            shared.encode(prompt)
        })
        .await
    }

    /// Makes the prompt and submits it, on a blocking thread: a long prompt takes a while to encode.
    /// A cell that would not take it is not worth that work.
    ///
    /// If the caller goes away meanwhile, the stream is dropped as soon as it exists, which cancels it.
    async fn start(
        &self,
        options: Options,
        form: Form,
        prompt: impl FnOnce(&Shared) -> Result<Vec<u32>, GenerateError> + Send + 'static,
    ) -> Result<TextStream, GenerateError> {
        if let Some((_, reason)) = status::not_ready(&self.shared.client.status()) {
            return Err(SubmitError::NotReady(reason).into());
        }
        self.shared.client.has_room()?;
        let shared = Arc::clone(&self.shared);
        let work = move || shared.submit(prompt(&shared)?, options, form);
        self.shared
            .prompt_work
            .run(work)
            .await
            .map_err(|_| GenerateError::Panicked)?
    }
}

impl Shared {
    fn render(&self, messages: &[Message]) -> Result<Vec<u32>, GenerateError> {
        let template = self
            .text
            .template
            .as_ref()
            .ok_or(GenerateError::NoTemplate)?;
        let messages: Vec<ChatMessage> = messages
            .iter()
            .map(|message| ChatMessage {
                role: message.role.name().to_owned(),
                content: message.content.clone(),
                name: message.name.clone(),
            })
            .collect();
        // UTC, where transformers tells local time: the standard library does not know the zone, templates ask for
        // the date only, and every machine of a cell should render the same prompt.
        let now = LocalTime::from_unix_seconds(unix_seconds().cast_signed());
        let text = template.render(&messages, true, Some(now))?;
        // The template writes the special tokens itself, the first one included. As in transformers, such tokens in
        // a user's text are special too: once rendered, the two cannot be told apart.
        Ok(self.text.tokenizer.encode_opening(&text, Special::Parse)?)
    }

    fn encode(&self, prompt: Prompt) -> Result<Vec<u32>, GenerateError> {
        let tokens = match prompt {
            // Fill-in-the-middle prompts, for one, are written with the model's own special tokens.
            Prompt::Text(text) => self.text.tokenizer.encode(&text, Special::Parse)?,
            Prompt::Tokens(tokens) => tokens,
        };
        if tokens.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        let vocabulary = self.text.tokenizer.vocabulary_size();
        match tokens.iter().find(|&&token| token as usize >= vocabulary) {
            Some(&token) => Err(GenerateError::UnknownToken { token, vocabulary }),
            None => Ok(tokens),
        }
    }

    fn submit(
        &self,
        prompt: Vec<u32>,
        options: Options,
        form: Form,
    ) -> Result<TextStream, GenerateError> {
        let context = self.config.context;
        let prompt_tokens = prompt.len() as u64;
        let room = u64::from(context).saturating_sub(prompt_tokens) as u32;
        if room == 0 {
            return Err(GenerateError::TooLong {
                context,
                field: form.field(),
                prompt_tokens,
            });
        }
        let stop_tokens = match options.ignore_eos {
            true => &[],
            false => self.text.tokenizer.stop_tokens(),
        };
        let request = Request {
            prompt,
            sampling: Sampling {
                temperature: options.temperature,
                top_p: options.top_p,
                top_k: options.top_k,
                min_p: options.min_p,
                repetition_penalty: options.repetition_penalty,
                presence_penalty: options.presence_penalty,
                frequency_penalty: options.frequency_penalty,
                seed: options.seed.unwrap_or_else(random::seed),
            },
            max_tokens: options.max_tokens.map_or(room, |wanted| wanted.min(room)),
            stop_tokens: [stop_tokens, &options.stop_token_ids].concat(),
        };
        let started = Instant::now();
        let tokens = self.client.submit(request).map_err(|error| match error {
            // The cell may have been formed with less context than the model could have.
            SubmitError::TooLong { context, .. } => GenerateError::TooLong {
                context,
                field: form.field(),
                prompt_tokens,
            },
            other => other.into(),
        })?;
        let decoder = match form {
            Form::Chat => self.text.tokenizer.decode_stream(),
            Form::Completion => self.text.tokenizer.decode_continuation(),
        };
        Ok(TextStream::new(
            tokens,
            decoder,
            &options.stop,
            prompt_tokens,
            started,
        ))
    }
}

/// What the prompt was made from.
#[derive(Clone, Copy)]
enum Form {
    Chat,
    Completion,
}

impl Form {
    fn field(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Completion => "prompt",
        }
    }
}

pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
