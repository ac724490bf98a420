//! Requests that are read, and requests that are refused with the field at fault.

use super::*;
use proptest::prelude::*;
use sandbox_wire::runner::{Call, Constraint, Role, Tenant, Tool, ToolCall, Tools};

const BOUNDS: Bounds = Bounds { output_tokens: 100, deadline_ms: 1_000, seed: 7, tenant: Tenant(9) };
const F: &str = r#"[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]"#;
const HELLO: &str = r#""messages": [{"role": "user", "content": "hello"}]"#;

fn parse(fields: &str) -> Result<ChatRequest, ApiError> {
    ChatRequest::parse(format!("{{\"model\": \"m\", {fields}}}").as_bytes())
}

/// What a runner is asked when a request says `more` than hello.
fn generate(more: &str) -> Generate {
    let request = parse(&format!("{HELLO}, {more}")).unwrap_or_else(|error| panic!("{more}: {error}"));
    request.into_generate(&BOUNDS).unwrap_or_else(|error| panic!("{more}: {error}"))
}

fn message(role: Role, content: &str) -> Message {
    Message::new(role, content)
}

#[test]
fn what_is_left_out_has_its_default() {
    let request = parse(HELLO).unwrap();
    assert_eq!((request.model.as_str(), request.stream, request.include_usage), ("m", false, false));
    let generate = request.into_generate(&BOUNDS).unwrap();
    assert_eq!(generate.prompt, Prompt::Chat(vec![message(Role::User, "hello")]));
    assert_eq!((generate.tokens_max, generate.deadline_ms, generate.logprobs), (100, 1_000, None));
    assert_eq!((generate.constraint, generate.stop), (Constraint::None, Vec::new()));
    assert_eq!(generate.tenant, Some(Tenant(9)));
    let sampling = generate.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (1.0, 1.0, 40, 0.05));
    assert_eq!((sampling.frequency_penalty, sampling.presence_penalty, sampling.seed), (0.0, 0.0, 7));
}

#[test]
fn every_field_is_honoured() {
    let sampling = generate(
        r#""temperature": 0, "top_p": 0.5, "top_k": -1, "min_p": 0, "seed": -5, "frequency_penalty": -2,
           "presence_penalty": 2, "logit_bias": {"7": -100, "3": 1.5, "07": 100}"#,
    )
    .sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (0.0, 0.5, 0, 0.0));
    assert_eq!((sampling.frequency_penalty, sampling.presence_penalty), (-2.0, 2.0));
    assert_eq!(sampling.logit_bias, [(3, 1.5), (7, 100.0)]);
    assert_eq!(sampling.seed, generate(r#""seed": -5"#).sampling.seed);
    assert_eq!(generate(r#""stop": "a""#).stop, ["a"]);
    assert_eq!(generate(r#""stop": ["a", "\n"]"#).stop, ["a", "\n"]);
    assert_eq!(generate(r#""max_tokens": 5"#).tokens_max, 5);
    assert_eq!(generate(r#""max_tokens": 5, "max_completion_tokens": 6"#).tokens_max, 6);
    assert_eq!(generate(r#""logprobs": true"#).logprobs, Some(0));
    assert_eq!(generate(r#""logprobs": true, "top_logprobs": 20"#).logprobs, Some(20));
    assert_eq!(generate(r#""logprobs": false"#).logprobs, None);
    assert_eq!(generate(r#""cache_prompt": false"#).tenant, None);
    assert_eq!(generate(r#""cache_prompt": true"#).tenant, Some(Tenant(9)));
    let streamed = parse(&format!(r#"{HELLO}, "stream": true, "stream_options": {{"include_usage": true}}"#)).unwrap();
    assert!(streamed.stream && streamed.include_usage);
}

#[test]
fn formats_become_constraints() {
    let check = |format: &str, expected: Constraint| {
        assert_eq!(generate(&format!("\"response_format\": {format}")).constraint, expected, "{format}");
    };
    let schema = |text: &str| Constraint::JsonSchema(text.to_owned());
    check(r#"{"type": "text"}"#, Constraint::None);
    check(r#"{"type": "json_object"}"#, Constraint::JsonObject);
    check(r#"{"type": "json_object", "schema": {"type": "object"}}"#, schema(r#"{"type": "object"}"#));
    check(r#"{"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": true}}"#, schema("{}"));
    check("null", Constraint::None);
}

#[test]
fn messages_are_text() {
    let check = |messages: &str, expected: &[Message]| {
        assert_eq!(parse(&format!("\"messages\": {messages}")).unwrap().messages, expected, "{messages}");
    };
    check(
        r#"[{"role": "developer", "content": "a"}, {"role": "assistant", "content": null, "tool_calls": []},
            {"role": "tool", "tool_call_id": "x", "content": "b"}]"#,
        &[
            message(Role::System, "a"),
            message(Role::Assistant, ""),
            Message { tool_call_id: Some("x".to_owned()), ..message(Role::Tool, "b") },
        ],
    );
    check(
        r#"[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]"#,
        &[message(Role::User, "a\nb")],
    );
    let named = Message { name: Some("bob".to_owned()), ..message(Role::User, "") };
    check(r#"[{"role": "user", "content": "", "name": "bob"}]"#, &[named]);
}

#[test]
fn tools_are_offered() {
    let offered = |more: &str| generate(&format!(r#""tools": {F}, {more}"#)).tools;
    let definition = r#"{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}"#.to_owned();
    let f = Tool { name: "f".to_owned(), parameters: Some(r#"{"type": "object"}"#.to_owned()), definition };
    let tools = |call, parallel| Some(Tools { definitions: vec![f.clone()], call, parallel });
    assert_eq!(offered(r#""x": 1"#), tools(Call::May, true));
    assert_eq!(offered(r#""tool_choice": "none""#), None);
    assert_eq!(offered(r#""tool_choice": "required", "parallel_tool_calls": false"#), tools(Call::Must, false));
    let named = offered(r#""tool_choice": {"type": "function", "function": {"name": "f"}}"#);
    assert_eq!(named, tools(Call::Named("f".to_owned()), true));
    let said = r#"[{"role": "user", "content": "x"}, {"role": "assistant", "content": null, "tool_calls":
        [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "y"}]"#;
    let messages = parse(&format!("\"messages\": {said}")).unwrap().messages;
    let call = ToolCall { id: "1".to_owned(), name: "f".to_owned(), arguments: "{}".to_owned() };
    assert_eq!(messages[1].tool_calls, [call]);
    assert_eq!(messages[2].tool_call_id.as_deref(), Some("1"));
}

#[test]
fn what_means_nothing_here_is_ignored() {
    let ignored = r#""store": true, "user": 7, "metadata": {"a": [1]}, "tools": [], "tool_choice": "auto", "n": 1,
        "functions": [], "function_call": "none", "modalities": ["text"], "parallel_tool_calls": true, "audio": null,
        "reasoning_effort": "high", "made_up": [[[]]], "temperature": null, "stop": null"#;
    assert_eq!(generate(ignored), generate("\"x\": 1"));
}

#[test]
fn what_is_wrong_names_its_field() {
    let check = |fields: &str, param: &str| {
        let error = parse(fields).unwrap_err();
        assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{fields}: {error}");
    };
    let hello = |more: &str, param: &str| check(&format!("{HELLO}, {more}"), param);
    check("\"x\": 1", "messages");
    check("\"messages\": []", "messages");
    check("\"messages\": {}", "messages");
    check("\"messages\": [1]", "messages[0]");
    let in_message = |message: &str, param: &str| {
        check(&format!("\"messages\": [{{\"role\": \"user\", \"content\": \"\"}}, {message}]"), param);
    };
    in_message("{}", "messages[1].role");
    in_message(r#"{"role": "robot", "content": ""}"#, "messages[1].role");
    in_message(r#"{"role": "user"}"#, "messages[1].content");
    in_message(r#"{"role": "user", "content": 1}"#, "messages[1].content");
    in_message(r#"{"role": "user", "content": [{"type": "image_url"}]}"#, "messages[1].content[0].type");
    in_message(r#"{"role": "user", "content": [{"type": "text"}]}"#, "messages[1].content[0].text");
    in_message(r#"{"role": "assistant", "tool_calls": [{}]}"#, "messages[1].tool_calls[0].function");
    in_message(
        r#"{"role": "user", "content": "", "tool_calls": [{"function": {"name": "f"}}]}"#,
        "messages[1].tool_calls",
    );
    in_message(r#"{"role": "assistant", "function_call": {}}"#, "messages[1].function_call");
    hello(r#""stream": 1"#, "stream");
    hello(r#""stream_options": {}"#, "stream_options");
    hello(r#""stream": true, "stream_options": {"include_usage": 1}"#, "stream_options.include_usage");
    hello(r#""temperature": 2.1"#, "temperature");
    hello(r#""temperature": "hot""#, "temperature");
    hello(r#""top_p": -1"#, "top_p");
    hello(r#""top_k": 1.5"#, "top_k");
    hello(r#""seed": 1e3"#, "seed");
    hello(r#""stop": """#, "stop");
    hello(r#""stop": ["a", ""]"#, "stop[1]");
    hello(r#""stop": 1"#, "stop");
    hello(&format!(r#""stop": [{}]"#, vec!["\"a\""; 17].join(",")), "stop");
    hello(r#""max_tokens": 0"#, "max_tokens");
    hello(r#""max_completion_tokens": -1"#, "max_completion_tokens");
    hello(r#""n": 2"#, "n");
    hello(r#""frequency_penalty": 3"#, "frequency_penalty");
    hello(r#""presence_penalty": -3"#, "presence_penalty");
    hello(r#""logit_bias": {"1": 101}"#, "logit_bias.1");
    hello(r#""logit_bias": {"x": 1}"#, "logit_bias");
    hello(r#""cache_prompt": 0"#, "cache_prompt");
    hello(r#""top_logprobs": 1"#, "top_logprobs");
    hello(r#""logprobs": true, "top_logprobs": 21"#, "top_logprobs");
    hello(r#""response_format": "json""#, "response_format");
    hello(r#""response_format": {"type": "xml"}"#, "response_format.type");
    hello(r#""response_format": {"type": "json_schema"}"#, "response_format.json_schema");
    hello(r#""response_format": {"type": "json_schema", "json_schema": {}}"#, "response_format.json_schema.schema");
    let deep = format!("{}{}", "{\"a\":".repeat(33), "1".to_owned() + &"}".repeat(33));
    hello(&format!(r#""response_format": {{"type": "json_object", "schema": {deep}}}"#), "response_format.schema");
    let long = format!("{{\"a\": \"{}\"}}", "x".repeat(64 << 10));
    hello(&format!(r#""response_format": {{"type": "json_object", "schema": {long}}}"#), "response_format.schema");
    hello(r#""tools": [{}]"#, "tools[0].function");
    hello(r#""tools": [{"type": "web", "function": {"name": "f"}}]"#, "tools[0].type");
    hello(r#""tools": [{"type": "function", "function": {"name": "a b"}}]"#, "tools[0].function.name");
    hello(r#""tools": [{"function": {"name": "f", "parameters": []}}]"#, "tools[0].function.parameters");
    hello(r#""tools": [{"function": {"name": "f"}}, {"function": {"name": "f"}}]"#, "tools[1].function.name");
    hello(&format!(r#""tools": {F}, "tool_choice": "any""#), "tool_choice");
    hello(
        &format!(r#""tools": {F}, "tool_choice": {{"type": "function", "function": {{"name": "g"}}}}"#),
        "tool_choice.function.name",
    );
    hello(&format!(r#""tools": {F}, "parallel_tool_calls": 1"#), "parallel_tool_calls");
    hello(&format!(r#""tools": {F}, "response_format": {{"type": "json_object"}}"#), "response_format");
    hello(r#""tool_choice": "required""#, "tool_choice");
    hello(r#""tool_choice": {"type": "function"}"#, "tool_choice.function");
    hello(r#""functions": [{}]"#, "functions");
    hello(r#""modalities": ["text", "audio"]"#, "modalities[1]");
    hello(r#""audio": {}"#, "audio");
    hello(r#""web_search_options": {}"#, "web_search_options");
    hello(r#""grammar": "root ::= \"a\"""#, "grammar");
}

#[test]
fn messages_for_people_say_what_was_expected() {
    let message = |more: &str| parse(&format!("{HELLO}, {more}")).unwrap_err().message;
    assert_eq!(message(r#""temperature": 3"#), "`temperature`: expected a number from 0 to 2, got 3");
    assert_eq!(message(r#""stream": "yes""#), "`stream`: expected true or false, got a string");
    let missing = ChatRequest::parse(format!("{{{HELLO}}}").as_bytes()).unwrap_err();
    assert_eq!((missing.message.as_str(), missing.param.as_deref()), ("`model`: this field is needed", Some("model")));
}

#[test]
fn more_tokens_than_the_function_allows_are_refused() {
    let request = parse(&format!(r#"{HELLO}, "max_completion_tokens": 101"#)).unwrap();
    let error = request.into_generate(&BOUNDS).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("max_completion_tokens"));
    assert_eq!(error.message, "`max_completion_tokens`: 101 tokens asked for; the function allows 100");
}

/// JSON of any shape, with names that mean something here among its keys.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let key = prop_oneof![
        prop::sample::select(vec!["model", "messages", "role", "content", "stop", "type", "text", "logit_bias"])
            .prop_map(str::to_owned),
        any::<String>(),
    ];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        "user|text|\\PC{0,8}".prop_map(Into::into),
    ];
    leaf.prop_recursive(5, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|entries| serde_json::Value::Object(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_json_is_read_or_refused(json in json()) {
        let body = json.to_string();
        let outcomes = [
            ChatRequest::parse(body.as_bytes()).err(),
            crate::completion::CompletionRequest::parse(body.as_bytes()).err(),
            crate::embedding::EmbeddingRequest::parse(body.as_bytes()).err(),
            crate::llama::TemplateRequest::parse(body.as_bytes()).err(),
        ];
        for error in outcomes.into_iter().flatten() {
            prop_assert_eq!(error.status, 400);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = ChatRequest::parse(&body);
    }

    #[test]
    fn any_value_of_any_field_is_read_or_refused(
        name in prop::sample::select(vec![
            "messages", "stream", "stream_options", "temperature", "top_k", "seed", "stop", "max_tokens", "logit_bias",
            "logprobs", "top_logprobs", "cache_prompt", "response_format", "tools", "tool_choice", "modalities",
        ]),
        value in json(),
    ) {
        if let Err(error) = parse(&format!("{HELLO}, \"{name}\": {value}")) {
            let param = error.param.unwrap_or_default();
            prop_assert!(param.starts_with(name) || param == "top_logprobs", "{} {}", name, param);
        }
    }

    #[test]
    fn any_text_and_any_stop_arrive_unchanged(text: String, stops in prop::collection::vec(".{1,9}", 0..=16)) {
        let body = serde_json::json!({"model": "m", "messages": [{"role": "user", "content": text}], "stop": stops});
        let request = ChatRequest::parse(body.to_string().as_bytes()).unwrap();
        let generate = request.into_generate(&BOUNDS).unwrap();
        prop_assert_eq!(generate.prompt, Prompt::Chat(vec![message(Role::User, &text)]));
        prop_assert_eq!(generate.stop, stops);
    }
}
