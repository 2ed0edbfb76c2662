//! Chat templates: a conversation as the text the model was trained on.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};

use fancy_regex::Regex;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind};

use crate::json::tojson;
use crate::{LocalTime, TextError};

/// A model's chat template, rendered as `apply_chat_template` of the `transformers` package does.
///
/// ```
/// use shoal_text::{ChatMessage, ChatTemplate};
///
/// let source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{{ eos_token }}{% endfor %}";
/// let template = ChatTemplate::new(source, "<s>", "</s>")?;
/// let hello = ChatMessage { role: "user".into(), content: " Hello ".into(), name: None };
/// assert_eq!(template.render(&[hello], false, None)?, "<user>Hello</s>");
/// # Ok::<(), shoal_text::TextError>(())
/// ```
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// The speaker's name, where the caller gives one and the template uses it.
    pub name: Option<String>,
}

impl ChatTemplate {
    /// Parses `source`, a Jinja template. `bos` and `eos` are the texts of those tokens, empty
    /// where the model has none.
    ///
    /// # Errors
    /// [`TextError::TemplateSyntax`] says where the template does not parse.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TextError> {
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        let mut environment = Environment::new();
        environment.set_syntax(syntax.map_err(syntax_error)?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        environment
            .add_template_owned(TEMPLATE_NAME, without_generation_marks(source))
            .map_err(syntax_error)?;
        Ok(Self {
            environment,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
        })
    }

    /// Renders the conversation, and with `add_generation_prompt` the words that begin the
    /// assistant's answer. `now` is what the template's `strftime_now` tells; without it a template
    /// finds no clock and falls back to whatever date it carries.
    ///
    /// # Errors
    /// [`TextError::TemplateRefused`] when the template rejects the conversation (roles that do not
    /// alternate, say), [`TextError::TemplateFailed`] when it breaks.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        now: Option<LocalTime>,
    ) -> Result<String, TextError> {
        let mut context = vec![
            ("messages", messages.iter().map(Value::from).collect()),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ];
        for (name, token) in [("bos_token", &self.bos), ("eos_token", &self.eos)] {
            if !token.is_empty() {
                context.push((name, Value::from(token)));
            }
        }
        if let Some(now) = now {
            let strftime = move |format: String| now.format(&format);
            context.push(("strftime_now", Value::from_function(strftime)));
        }
        let render = || {
            let template = self.environment.get_template(TEMPLATE_NAME)?;
            template.render(Value::from_pairs(context))
        };
        // Templates are other people's programs, and the engine panics on some slices with a
        // negative step (`''[::-1]`). It shares no state with later renderings that could be left
        // broken.
        match panic::catch_unwind(AssertUnwindSafe(render)) {
            Ok(rendered) => rendered.map_err(render_error),
            Err(_) => Err(TextError::TemplateFailed(
                "the template engine panicked".to_owned(),
            )),
        }
    }
}

impl From<&ChatMessage> for Value {
    fn from(message: &ChatMessage) -> Self {
        let ChatMessage {
            role,
            content,
            name,
        } = message;
        let fields = [
            ("role", Some(role)),
            ("content", Some(content)),
            ("name", name.as_ref()),
        ];
        let given = fields
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?.as_str())));
        Self::from_pairs(given)
    }
}

/// What a template said when it refused a conversation.
#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Refused(message)))
}

fn render_error(error: Error) -> TextError {
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(inner) = cause {
        if let Some(Refused(message)) = inner.downcast_ref() {
            return TextError::TemplateRefused(message.clone());
        }
        cause = inner.source();
    }
    TextError::TemplateFailed(error.to_string())
}

fn syntax_error(error: Error) -> TextError {
    TextError::TemplateSyntax(error.to_string())
}

/// Turns `{% generation %}` blocks, with which `transformers` marks what a model is trained on,
/// into blocks that do nothing.
fn without_generation_marks(source: &str) -> String {
    let replace = |source: &str, tag: &str, instead: &str| {
        let pattern = format!(r"\{{%([-+]?)\s*{tag}\s*([-+]?)%\}}");
        let pattern = Regex::new(&pattern).expect("the two tags give valid patterns");
        pattern
            .replace_all(source, format!("{{%$1 {instead} $2%}}"))
            .into_owned()
    };
    replace(
        &replace(source, "generation", "if true"),
        "endgeneration",
        "endif",
    )
}

const TEMPLATE_NAME: &str = "chat_template";

/// Template instructions one rendering may run: hundreds for each of many thousand messages, and
/// an end to a template that would loop for ever.
const FUEL: u64 = 20_000_000;
