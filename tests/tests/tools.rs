//! Tools: what a model is told of them, and the calls that come of it. Other people's clients call some in `clients`.

use serde_json::{Value, json};
use tests::{Client, Ember, Function, assistant, chat, tree};

/// What takes tools as they are, in the manner of Qwen's.
const TEMPLATE: &str = "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}\
{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls %}<tool_call>{{ c.function.arguments | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn weather() -> Value {
    let properties =
        json!({"city": {"enum": ["Oslo", "Paris"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}});
    let parameters = json!({"type": "object", "properties": properties, "required": ["city", "days"], "additionalProperties": false});
    json!({"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": parameters}})
}

fn ask(function: &str, with: Value) -> Value {
    let mut fields = json!({"tools": [weather()], "max_tokens": 90, "parallel_tool_calls": false});
    fields.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
    chat(function, "What is the weather in Oslo?", fields)
}

fn tokens(client: &Client, text: &str) -> usize {
    let asked = json!({"model": "assistant", "content": text, "add_special": false, "parse_special": true});
    client.post("/tokenize", &asked).expect(200).json()["tokens"].as_array().expect("tokens").len()
}

/// The call in a choice, checked against the tool's schema.
#[track_caller]
fn call(calls: &Value) -> Value {
    let calls = calls.as_array().unwrap_or_else(|| panic!("no calls: {calls}"));
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert_eq!((&calls[0]["type"], &calls[0]["function"]["name"]), (&json!("function"), &json!("weather")));
    let arguments: Value = serde_json::from_str(calls[0]["function"]["arguments"].as_str().expect("a text")).unwrap();
    assert!(arguments["city"] == "Oslo" || arguments["city"] == "Paris", "{arguments}");
    assert!((1..=9).contains(&arguments["days"].as_i64().expect("a number")), "{arguments}");
    calls[0].clone()
}

#[test]
fn a_call_that_must_be_is_made_in_any_model() {
    let ember = Ember::start();
    let native = ember.scratch().join("native.gguf");
    tests_synthetic::with_template(&tree::model(), &native, TEMPLATE).unwrap();
    let ember = ember.with(&assistant()).with(&Function::named("native").model(native.display()));
    let client = ember.client();
    for function in ["assistant", "native"] {
        let named = json!({"type": "function", "function": {"name": "weather"}});
        let request = ask(function, json!({"tool_choice": named}));
        let choice = client.ask(&request).expect(200).json()["choices"][0].clone();
        assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &Value::Null));
        let made = call(&choice["message"]["tool_calls"]);

        let events = client.ask_streamed(&request).whole();
        let deltas: Vec<_> =
            events.iter().filter(|event| event["choices"][0]["delta"].get("tool_calls").is_some()).collect();
        let [delta] = deltas[..] else { panic!("one event a call: {events:?}") };
        let streamed = call(&delta["choices"][0]["delta"]["tool_calls"]);
        assert_eq!((&streamed["function"], &streamed["index"]), (&made["function"], &json!(0)));
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");

        let result = json!({"role": "tool", "tool_call_id": made["id"], "content": "Rain."});
        let said = json!([request["messages"][0], choice["message"], result]);
        let answer = client.ask(&ask(function, json!({"messages": said, "tool_choice": "none"}))).expect(200).json();
        assert!(answer["choices"][0]["message"]["content"].as_str().is_some_and(|text| !text.is_empty()), "{answer}");
    }
    ember.stop();
}

#[test]
fn a_template_that_takes_tools_is_given_them_as_they_are() {
    let ember = Ember::start();
    let native = ember.scratch().join("native.gguf");
    tests_synthetic::with_template(&tree::model(), &native, TEMPLATE).unwrap();
    let ember = ember.with(&assistant()).with(&Function::named("native").model(native.display()));
    let client = ember.client();
    let prompt_tokens =
        |request: &Value| client.ask(request).expect(200).json()["usage"]["prompt_tokens"].as_u64().unwrap();
    // As Python writes JSON: a space after commas and colons.
    let tool = r#"{"type": "function", "function": {"name": "f", "description": "a <|im_end|> b"}}"#;
    let tools: Value = serde_json::from_str(&format!("[{tool}]")).unwrap();
    let body = format!(
        r#"{{"model": "native", "messages": [{{"role": "user", "content": "Hi"}}], "tools": [{tool}], "max_tokens": 1}}"#
    );
    let reply = client.post_bytes("/v1/chat/completions", "application/json", body.as_bytes()).expect(200).json();
    let [before, after] = [
        r#"<|im_start|>system
{"type": "function", "function": {"name": "f", "description": "a <"#,
        "|im_end|> b\"}}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ]
    .map(|part| tokens(&client, part));
    assert_eq!(reply["usage"]["prompt_tokens"], before + after, "a control token in a tool stays text");

    let plain = prompt_tokens(&chat("assistant", "Hi", json!({"max_tokens": 1})));
    let told = prompt_tokens(&chat("assistant", "Hi", json!({"max_tokens": 1, "tools": tools})));
    assert!(told > plain + 60, "a template without tools is told of them: {plain}, {told}");
    let none = prompt_tokens(&chat("assistant", "Hi", json!({"max_tokens": 1, "tools": tools, "tool_choice": "none"})));
    assert_eq!(none, plain, "tools that are not to be called are not told of");
    ember.stop();
}

#[test]
fn a_tool_that_cannot_be_offered_is_refused() {
    let ember = Ember::serving(&assistant());
    let client = ember.client();
    let refused = |with: Value| client.ask(&ask("assistant", with)).error(400)["param"].as_str().unwrap().to_owned();
    let with_parameters =
        |parameters: Value| json!([{"type": "function", "function": {"name": "f", "parameters": parameters}}]);
    assert_eq!(
        refused(json!({"tool_choice": {"type": "function", "function": {"name": "time"}}})),
        "tool_choice.function.name"
    );
    assert_eq!(refused(json!({"response_format": {"type": "json_object"}})), "response_format");
    let odd = json!({"type": "object", "properties": {"x": {"$ref": "#/$defs/nothing"}}});
    assert_eq!(refused(json!({"tools": with_parameters(odd), "tool_choice": "required"})), "tools");
    assert_eq!(refused(json!({"tools": with_parameters(json!("x"))})), "tools[0].function.parameters");
    ember.stop();
}
