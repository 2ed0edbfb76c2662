//! What request bodies mean, and how bad ones are refused.

use expect_test::{Expect, expect};
use serde_json::{Value, json};
use shoal_api::chat::{self, Message, Role};
use shoal_api::completion::{self, Prompt};
use shoal_api::{BadField, Options, StreamOptions};

/// A valid chat body with the fields of `extra` put over it.
fn chat_body(extra: Value) -> Vec<u8> {
    with(
        json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
        extra,
    )
}

/// A valid completion body with the fields of `extra` put over it.
fn completion_body(extra: Value) -> Vec<u8> {
    with(json!({"model": "m", "prompt": "once"}), extra)
}

fn with(mut body: Value, extra: Value) -> Vec<u8> {
    for (key, value) in extra.as_object().expect("extra is an object") {
        body[key] = value.clone();
    }
    body.to_string().into_bytes()
}

fn told(bad: &BadField) -> String {
    format!(
        "{} | {} | {bad}\n",
        bad.param.as_deref().unwrap_or("-"),
        bad.code.unwrap_or("-")
    )
}

fn refusals(bodies: impl IntoIterator<Item = Vec<u8>>) -> String {
    bodies
        .into_iter()
        .map(|body| match chat::parse(&body) {
            Ok(request) => panic!("accepted {} as {request:?}", String::from_utf8_lossy(&body)),
            Err(bad) => told(&bad),
        })
        .collect()
}

fn check(actual: &str, expected: &Expect) {
    expected.assert_eq(actual);
}

#[test]
fn plain_request_has_openai_defaults() {
    let request = chat::parse(&chat_body(json!({}))).expect("valid");
    assert_eq!(request.model, "m");
    assert_eq!(request.messages, [Message::new(Role::User, "hi")]);
    assert_eq!(request.options, Options::default());
    assert_eq!(request.stream, None);
}

#[test]
fn every_option_is_read() {
    let body = chat_body(json!({
        "temperature": 0, "top_p": 0.5, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": -2, "frequency_penalty": 2.0, "seed": -1, "max_tokens": 5, "max_completion_tokens": 7,
        "stop": ["a", "b"], "stop_token_ids": [3], "ignore_eos": true,
        "stream": true, "stream_options": {"include_usage": true, "include_obfuscation": false},
    }));
    let request = chat::parse(&body).expect("valid");
    assert_eq!(
        request.options,
        Options {
            temperature: 0.0,
            top_p: 0.5,
            top_k: 40,
            min_p: 0.1,
            repetition_penalty: 1.1,
            presence_penalty: -2.0,
            frequency_penalty: 2.0,
            seed: Some(u64::MAX),
            max_tokens: Some(7),
            stop: vec!["a".into(), "b".into()],
            stop_token_ids: vec![3],
            ignore_eos: true,
        }
    );
    assert_eq!(
        request.stream,
        Some(StreamOptions {
            include_usage: true
        })
    );
}

#[test]
fn nulls_unknown_fields_and_fields_that_ask_for_nothing_are_accepted() {
    let body = chat_body(json!({
        "temperature": null, "stop": null, "seed": null, "stream": null, "stream_options": null, "max_tokens": null,
        "n": 1, "logprobs": false, "top_logprobs": 0, "tools": [], "tool_choice": "auto", "logit_bias": {},
        "response_format": {"type": "text"}, "modalities": ["text"], "top_k": -1, "min_tokens": 0, "echo": false,
        "user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto", "no_such_field": [1, {}],
    }));
    assert_eq!(
        chat::parse(&body).expect("valid").options,
        Options::default()
    );
}

#[test]
fn messages_of_every_accepted_form() {
    let body = chat_body(json!({"messages": [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null, "tool_calls": null},
        {"role": "assistant"},
    ]}));
    let ann = Message {
        name: Some("Ann".into()),
        ..Message::new(Role::User, "a\nb")
    };
    assert_eq!(
        chat::parse(&body).expect("valid").messages,
        [
            Message::new(Role::System, "be brief"),
            ann,
            Message::new(Role::Assistant, ""),
            Message::new(Role::Assistant, ""),
        ]
    );
}

#[test]
fn prompts_of_every_accepted_form() {
    for (prompt, expected) in [
        (json!("a"), vec![Prompt::Text("a".into())]),
        (
            json!(["a", "b"]),
            vec![Prompt::Text("a".into()), Prompt::Text("b".into())],
        ),
        (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
        (
            json!([[1], [2, 3]]),
            vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])],
        ),
    ] {
        let request =
            completion::parse(&completion_body(json!({"prompt": prompt}))).expect("valid");
        assert_eq!(request.prompts, expected);
        assert_eq!(request.options.max_tokens, Some(16));
    }
}

#[test]
fn bodies_that_are_not_a_json_object() {
    let bodies = [
        "",
        "{",
        "[]",
        "nul",
        "{\"model\": \"m\",}",
        "{\"temperature\": 1e999}",
        "\"\u{1}\"",
    ];
    check(
        &refusals(bodies.map(|body| body.as_bytes().to_vec())),
        &expect![[r#"
            - | - | The body of the request is not valid JSON for this endpoint: EOF while parsing a value at line 1 column 0.
            - | - | The body of the request is not valid JSON for this endpoint: EOF while parsing an object at line 1 column 1.
            - | - | The body of the request is not valid JSON for this endpoint: expected an object, but got an array.
            - | - | The body of the request is not valid JSON for this endpoint: EOF while parsing a value at line 1 column 3.
            - | - | The body of the request is not valid JSON for this endpoint: trailing comma at line 1 column 15.
            - | - | The body of the request is not valid JSON for this endpoint: number out of range at line 1 column 21.
            - | - | The body of the request is not valid JSON for this endpoint: control character (\u0000-\u001F) found while parsing a string at line 1 column 2.
        "#]],
    );
    assert!(chat::parse(b"{\"model\": \"\xff\"}").is_err());
    assert!(chat::parse("[".repeat(100_000).as_bytes()).is_err());
}

#[test]
fn wrong_types_and_missing_fields_are_named() {
    check(
        &refusals([
            b"{}".to_vec(),
            chat_body(json!({"model": ""})),
            chat_body(json!({"model": 3})),
            chat_body(json!({"messages": null})),
            chat_body(json!({"messages": "hi"})),
            chat_body(json!({"messages": []})),
            chat_body(json!({"messages": ["hi"]})),
            chat_body(json!({"messages": [{"content": "hi"}]})),
            chat_body(json!({"messages": [{"role": "user"}]})),
            chat_body(json!({"messages": [{"role": "user", "content": 3}]})),
            chat_body(json!({"messages": [{"role": "owner", "content": "hi"}]})),
            chat_body(json!({"messages": [{"role": "user", "content": [{"text": "hi"}]}]})),
            chat_body(json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]})),
            chat_body(json!({"messages": [{"role": "user", "content": "hi", "name": 1}]})),
            chat_body(json!({"temperature": "hot"})),
            chat_body(json!({"max_tokens": 1.5})),
            chat_body(json!({"max_tokens": true})),
            chat_body(json!({"seed": 0.5})),
            chat_body(json!({"stop": 7})),
            chat_body(json!({"stop": ["a", 7]})),
            chat_body(json!({"stop_token_ids": [-1]})),
            chat_body(json!({"stream": "yes"})),
            chat_body(json!({"stream": true, "stream_options": 1})),
            chat_body(json!({"stream": true, "stream_options": {"include_usage": 1}})),
        ]),
        &expect![[r#"
            model | missing_required_parameter | Missing required parameter: 'model'.
            model | missing_required_parameter | Missing required parameter: 'model'.
            model | invalid_type | Invalid type for 'model': expected a string, but got an integer instead.
            messages | missing_required_parameter | Missing required parameter: 'messages'.
            messages | invalid_type | Invalid type for 'messages': expected an array of messages, but got a string instead.
            messages | invalid_value | Invalid value for 'messages': at least one message is needed.
            messages[0] | invalid_type | Invalid type for 'messages[0]': expected an object, but got a string instead.
            messages[0].role | missing_required_parameter | Missing required parameter: 'messages[0].role'.
            messages[0].content | missing_required_parameter | Missing required parameter: 'messages[0].content'.
            messages[0].content | invalid_type | Invalid type for 'messages[0].content': expected a string or an array of text parts, but got an integer instead.
            messages[0].role | invalid_value | Invalid value for 'messages[0].role': 'owner' is not one of system, developer, user and assistant.
            messages[0].content[0].type | missing_required_parameter | Missing required parameter: 'messages[0].content[0].type'.
            messages[0].content[0].text | missing_required_parameter | Missing required parameter: 'messages[0].content[0].text'.
            messages[0].name | invalid_type | Invalid type for 'messages[0].name': expected a string, but got an integer instead.
            temperature | invalid_type | Invalid type for 'temperature': expected a number, but got a string instead.
            max_tokens | invalid_type | Invalid type for 'max_tokens': expected an integer, but got a number instead.
            max_tokens | invalid_type | Invalid type for 'max_tokens': expected an integer, but got a boolean instead.
            seed | invalid_type | Invalid type for 'seed': expected a 64-bit integer, but got a number instead.
            stop | invalid_type | Invalid type for 'stop': expected a string or an array of strings, but got an integer instead.
            stop | invalid_type | Invalid type for 'stop': expected a string or an array of strings, but got an integer instead.
            stop_token_ids[0] | invalid_type | Invalid type for 'stop_token_ids[0]': expected a token id, but got an integer instead.
            stream | invalid_type | Invalid type for 'stream': expected a boolean, but got a string instead.
            stream_options | invalid_type | Invalid type for 'stream_options': expected an object, but got an integer instead.
            stream_options.include_usage | invalid_type | Invalid type for 'stream_options.include_usage': expected a boolean, but got an integer instead.
        "#]],
    );
}

#[test]
fn values_out_of_range_are_named() {
    check(
        &refusals([
            chat_body(json!({"temperature": 2.1})),
            chat_body(json!({"temperature": -0.1})),
            chat_body(json!({"top_p": 1.01})),
            chat_body(json!({"min_p": 2})),
            chat_body(json!({"top_k": -2})),
            chat_body(json!({"repetition_penalty": 0})),
            chat_body(json!({"presence_penalty": 3})),
            chat_body(json!({"frequency_penalty": -3})),
            chat_body(json!({"max_tokens": 0})),
            chat_body(json!({"max_completion_tokens": u64::MAX})),
            chat_body(json!({"stop": ""})),
            chat_body(json!({"stop": ["a", "b", "c", "d", "e"]})),
            chat_body(json!({"stop": ["a".repeat(1024), "a".repeat(1025)]})),
            chat_body(json!({"stream_options": {"include_usage": true}})),
        ]),
        &expect![[r#"
            temperature | invalid_value | Invalid value for 'temperature': 2.1 is outside 0 to 2.
            temperature | invalid_value | Invalid value for 'temperature': -0.1 is outside 0 to 2.
            top_p | invalid_value | Invalid value for 'top_p': 1.01 is outside 0 to 1.
            min_p | invalid_value | Invalid value for 'min_p': 2 is outside 0 to 1.
            top_k | invalid_value | Invalid value for 'top_k': -2 is outside -1 to 4294967295.
            repetition_penalty | invalid_value | Invalid value for 'repetition_penalty': 0 is outside 0.01 to 100.
            presence_penalty | invalid_value | Invalid value for 'presence_penalty': 3 is outside -2 to 2.
            frequency_penalty | invalid_value | Invalid value for 'frequency_penalty': -3 is outside -2 to 2.
            max_tokens | invalid_value | Invalid value for 'max_tokens': 0 is outside 1 to 4294967295.
            max_completion_tokens | invalid_value | Invalid value for 'max_completion_tokens': 18446744073709551615 is outside 1 to 4294967295.
            stop | invalid_value | Invalid value for 'stop': a stop string must not be empty.
            stop | invalid_value | Invalid value for 'stop': at most 4 strings are allowed, but got 5.
            stop | invalid_value | Invalid value for 'stop': a stop string of at most 1024 bytes is allowed, but got 1025.
            stream_options | invalid_value | Invalid value for 'stream_options': it is only allowed when 'stream' is true.
        "#]],
    );
}

#[test]
fn unsupported_meanings_are_refused_by_name() {
    let tool = json!({"type": "function", "function": {"name": "f"}});
    check(
        &refusals([
            chat_body(json!({"n": 2})),
            chat_body(json!({"logprobs": true})),
            chat_body(json!({"top_logprobs": 3})),
            chat_body(json!({"tools": [tool]})),
            chat_body(json!({"tool_choice": "required"})),
            chat_body(json!({"functions": [{"name": "f"}]})),
            chat_body(json!({"response_format": {"type": "json_object"}})),
            chat_body(json!({"logit_bias": {"1": 5}})),
            chat_body(json!({"modalities": ["text", "audio"]})),
            chat_body(json!({"audio": {"voice": "x"}})),
            chat_body(json!({"min_tokens": 3})),
            chat_body(json!({"structured_outputs": {}})),
            chat_body(json!({"chat_template": "{{ 1 }}"})),
            chat_body(json!({"messages": [{"role": "tool", "content": "4", "tool_call_id": "1"}]})),
            chat_body(json!({"messages": [{"role": "assistant", "tool_calls": [tool]}]})),
            chat_body(
                json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
            ),
        ]),
        &expect![[r#"
            n | unsupported_parameter | Unsupported parameter: 'n'; this server accepts only 1.
            logprobs | unsupported_parameter | Unsupported parameter: 'logprobs'; this server accepts only false.
            top_logprobs | unsupported_parameter | Unsupported parameter: 'top_logprobs'; this server accepts only 0.
            tools | unsupported_parameter | Unsupported parameter: 'tools'; this server accepts it only when empty.
            tool_choice | unsupported_parameter | Unsupported parameter: 'tool_choice'; this server accepts only "none" and "auto".
            functions | unsupported_parameter | Unsupported parameter: 'functions'; this server accepts it only when empty.
            response_format | unsupported_parameter | Unsupported parameter: 'response_format'; this server accepts only {"type": "text"}.
            logit_bias | unsupported_parameter | Unsupported parameter: 'logit_bias'; this server accepts it only when empty.
            modalities | unsupported_parameter | Unsupported parameter: 'modalities'; this server accepts only ["text"].
            audio | unsupported_parameter | Unsupported parameter: 'audio'; this server accepts requests without it.
            min_tokens | unsupported_parameter | Unsupported parameter: 'min_tokens'; this server accepts only 0.
            structured_outputs | unsupported_parameter | Unsupported parameter: 'structured_outputs'; this server accepts requests without it.
            chat_template | unsupported_parameter | Unsupported parameter: 'chat_template'; this server accepts requests without it.
            messages[0].role | unsupported_parameter | Unsupported parameter: 'messages[0].role'; this server accepts system, developer, user and assistant, not yet 'tool'.
            messages[0].tool_calls | unsupported_parameter | Unsupported parameter: 'messages[0].tool_calls'; this server accepts it only when empty.
            messages[0].content[0].type | unsupported_parameter | Unsupported parameter: 'messages[0].content[0].type'; this server accepts only text parts, not 'image_url'.
        "#]],
    );
}

#[test]
fn bad_completions_are_refused() {
    let bodies = [
        json!({"prompt": null}),
        json!({"prompt": []}),
        json!({"prompt": [[]]}),
        json!({"prompt": 5}),
        json!({"prompt": [1, "a"]}),
        json!({"prompt": ["a", 1]}),
        json!({"prompt": [-1]}),
        json!({"suffix": "end"}),
        json!({"echo": true}),
        json!({"best_of": 2}),
        json!({"logprobs": 5}),
    ];
    let told: String = bodies
        .into_iter()
        .map(|extra| told(&completion::parse(&completion_body(extra)).expect_err("refused")))
        .collect();
    check(
        &told,
        &expect![[r#"
        prompt | missing_required_parameter | Missing required parameter: 'prompt'.
        prompt | invalid_value | Invalid value for 'prompt': it must not be empty.
        prompt[0] | invalid_value | Invalid value for 'prompt[0]': it must not be empty.
        prompt | invalid_type | Invalid type for 'prompt': expected a string, an array of strings, an array of token ids or an array of arrays of token ids, but got an integer instead.
        prompt[1] | invalid_type | Invalid type for 'prompt[1]': expected a token id, but got a string instead.
        prompt[1] | invalid_type | Invalid type for 'prompt[1]': expected a string or an array of token ids, but got an integer instead.
        prompt[0] | invalid_type | Invalid type for 'prompt[0]': expected a token id, but got an integer instead.
        suffix | unsupported_parameter | Unsupported parameter: 'suffix'; this server accepts it only when empty.
        echo | unsupported_parameter | Unsupported parameter: 'echo'; this server accepts only false.
        best_of | unsupported_parameter | Unsupported parameter: 'best_of'; this server accepts only 1.
        logprobs | unsupported_parameter | Unsupported parameter: 'logprobs'; this server accepts requests without it.
    "#]],
    );
}

#[test]
fn long_lists_are_refused_with_their_bound() {
    let ids = |count| json!({"stop_token_ids": vec![1; count]});
    assert!(chat::parse(&chat_body(ids(128))).is_ok());
    let prompts = |count| completion_body(json!({"prompt": vec!["a"; count]}));
    assert!(completion::parse(&prompts(32)).is_ok());
    // Token ids are one prompt, however many they are.
    assert!(completion::parse(&completion_body(json!({"prompt": vec![1; 33]}))).is_ok());
    let mut refused = refusals([chat_body(ids(129))]);
    refused += &told(&completion::parse(&prompts(33)).expect_err("too many"));
    check(
        &refused,
        &expect![[r#"
        stop_token_ids | invalid_value | Invalid value for 'stop_token_ids': at most 128 token ids are allowed, but got 129.
        prompt | invalid_value | Invalid value for 'prompt': at most 32 prompts are allowed, but got 33.
    "#]],
    );
}
