//! Chat templates against what the `transformers` package renders (`data/make_golden.py`).

use std::path::Path;

use serde::Deserialize;
use shoal_text::{ChatMessage, ChatTemplate, LocalTime, TextError};

#[derive(Deserialize)]
struct Golden {
    now: i64,
    conversations: Vec<Vec<Message>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
    name: Option<String>,
}

impl Message {
    fn to_chat(&self) -> ChatMessage {
        let Self {
            role,
            content,
            name,
        } = self;
        ChatMessage {
            role: role.clone(),
            content: content.clone(),
            name: name.clone(),
        }
    }
}

#[derive(Deserialize)]
struct Case {
    template: String,
    bos: String,
    eos: String,
    conversation: usize,
    prompt: bool,
    text: Option<String>,
    refused: Option<String>,
}

#[test]
fn templates_render_as_in_transformers() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let golden = std::fs::read_to_string(data.join("templates.json")).unwrap();
    let golden: Golden = serde_json::from_str(&golden).unwrap();
    let now = LocalTime::from_unix_seconds(golden.now);
    let mut differing = Vec::new();
    for case in &golden.cases {
        let source = data
            .join("templates")
            .join(&case.template)
            .with_extension("jinja");
        let source = std::fs::read_to_string(source).unwrap();
        let template = ChatTemplate::new(&source, &case.bos, &case.eos).unwrap();
        let messages: Vec<_> = golden.conversations[case.conversation]
            .iter()
            .map(Message::to_chat)
            .collect();
        let wanted = case
            .text
            .clone()
            .ok_or_else(|| case.refused.clone().unwrap());
        let found =
            template
                .render(&messages, case.prompt, Some(now))
                .map_err(|error| match error {
                    TextError::TemplateRefused(message) => message,
                    other => other.to_string(),
                });
        if found != wanted {
            let Case {
                template,
                conversation,
                ..
            } = case;
            differing.push(format!(
                "{template} {conversation}:\n  {found:?}\n  {wanted:?}"
            ));
        }
    }
    assert!(golden.cases.len() >= 14 * 14);
    assert!(
        differing.is_empty(),
        "{} differ:\n{}",
        differing.len(),
        differing.join("\n")
    );
}

#[test]
fn without_a_clock_a_template_uses_its_own_date() {
    let source = "{{ strftime_now('%Y') if strftime_now is defined else 'July' }}";
    let template = ChatTemplate::new(source, "", "").unwrap();
    assert_eq!(template.render(&[], false, None).unwrap(), "July");
    let now = LocalTime::from_unix_seconds(0);
    assert_eq!(template.render(&[], false, Some(now)).unwrap(), "1970");
}

#[test]
fn faults_of_a_template_are_errors() {
    let hello = [ChatMessage {
        role: "user".into(),
        content: "Hello".into(),
        name: None,
    }];
    let failing = |source: &str| {
        ChatTemplate::new(source, "", "")
            .and_then(|template| template.render(&hello, true, None))
            .unwrap_err()
    };
    assert!(matches!(failing("{% for %}"), TextError::TemplateSyntax(_)));
    assert!(matches!(
        failing("{{ messages[0].content.nope() }}"),
        TextError::TemplateFailed(_)
    ));
    assert!(matches!(
        failing("{{ missing.field }}"),
        TextError::TemplateFailed(_)
    ));
    assert!(matches!(
        failing("{{ raise_exception('only one message') }}"),
        TextError::TemplateRefused(message) if message == "only one message"
    ));
    let endless =
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ '' }}{% endfor %}{% endfor %}";
    assert!(matches!(failing(endless), TextError::TemplateFailed(_)));
}
