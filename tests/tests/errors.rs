//! What cannot be answered is refused, over real TLS, with the right status and in OpenAI's envelope.

use serde_json::{Value, json};
use tests::{Client, Ember, Function, Reply, assistant, chat};

const CHAT: &str = "/v1/chat/completions";

/// The field that a chat with `with` is refused for.
fn param_refused(client: &Client, with: Value) -> String {
    let error = client.ask(&chat("assistant", "Hello.", with)).error(400);
    assert_eq!(error["type"], "invalid_request_error", "{error}");
    error["param"].as_str().unwrap_or_else(|| panic!("no param in {error}")).to_owned()
}

#[test]
fn a_bad_request_says_which_field() {
    let ember = Ember::serving(&assistant());
    let client = ember.client();
    for bad in ["", "{", "[]", "null", "{\"model\": \"assistant\"", "\u{feff}{}", "{\"a\": \"\\ud800\"}"] {
        let error = client.post_bytes(CHAT, "application/json", bad.as_bytes()).error(400);
        assert_eq!(error["type"], "invalid_request_error", "{bad}");
    }
    client.post_bytes(CHAT, "application/json", b"{\"model\": \"\xff\"}").error(400);
    client.post_bytes(CHAT, "application/json", "[".repeat(100_000).as_bytes()).error(400);
    let refused = client.post(CHAT, &json!({"model": "assistant"}));
    assert_eq!(refused.error(400)["param"], "messages");
    let took = refused.header("server-timing").strip_prefix("total;dur=").expect("what it took the server, ms");
    assert!(took.parse::<f64>().is_ok_and(|ms| ms > 0.0), "{took}");
    assert_eq!(client.post(CHAT, &json!({"messages": []})).error(400)["param"], "model");

    for (field, value) in [
        ("temperature", json!("hot")),
        ("temperature", json!(-1)),
        ("temperature", json!(2.5)),
        ("top_p", json!(1.5)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(1.5)),
        ("seed", json!("one")),
        ("stop", json!(5)),
        ("stream", json!("yes")),
        ("n", json!(2)),
        ("n", json!(0)),
        ("frequency_penalty", json!(3)),
        ("presence_penalty", json!(-3)),
        ("logit_bias", json!([1])),
        ("top_logprobs", json!(21)),
        ("response_format", json!("json")),
        ("tools", json!([{"type": "web_search"}])),
        ("tool_choice", json!("required")),
        ("messages", json!([])),
        ("messages", json!("hello")),
    ] {
        let with = json!({field: value, "logprobs": true});
        let param = param_refused(&client, with);
        assert!(param.starts_with(field), "{field} = {value} is refused for {param}");
    }
    let role = json!([{"role": "wizard", "content": "Hello."}]);
    assert!(param_refused(&client, json!({"messages": role})).starts_with("messages"));
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]);
    assert!(param_refused(&client, json!({"messages": image})).starts_with("messages"));

    client.ask(&chat("assistant", "Hello.", json!({"n": 1, "user": "me", "never_heard_of": [1]}))).expect(200);
    ember.stop();
}

#[test]
fn what_the_model_cannot_do_is_refused() {
    let ember = Ember::serving(&assistant().limit("context = 256"));
    let client = ember.client();
    let long = "many words ".repeat(400);
    let error = client.ask(&chat("assistant", &long, json!({}))).error(400);
    let message = error["message"].as_str().unwrap();
    assert_eq!(error["code"], "context_length_exceeded", "{error}");
    assert!(message.contains("256") && message.contains("8"), "the numbers: {message}");
    let with = json!({"stream": true});
    assert_eq!(client.ask(&chat("assistant", &long, with)).error(400)["code"], "context_length_exceeded");

    let too_high = json!({"model": "assistant", "prompt": [999_999_999], "max_tokens": 1});
    client.post("/v1/completions", &too_high).error(400);
    assert!(param_refused(&client, json!({"logit_bias": {"999999": 1}})).starts_with("logit_bias"));
    let schema = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}});
    assert!(param_refused(&client, json!({"response_format": schema})).starts_with("response_format"));
    let embedding = client.post("/v1/embeddings", &json!({"model": "assistant", "input": "hello"}));
    assert!([400, 422].contains(&embedding.status));
    embedding.error(embedding.status);
    client.ask(&chat("assistant", "Hello.", json!({}))).expect(200);
    ember.stop();
}

#[test]
fn keys_open_only_what_is_theirs() {
    let ember = Ember::serving(&assistant()).with(&Function::named("second"));
    let admin = ember.client();
    let hello = |function: &str| chat(function, "Hello.", json!({"max_tokens": 1}));

    let error = admin.without_key().ask(&hello("assistant")).error(401);
    assert_eq!((&error["type"], &error["code"]), (&json!("authentication_error"), &json!("invalid_api_key")));
    for bad in ["", "x", "ember-0000000000000000000000000000000000000000", &"k".repeat(5000)] {
        admin.with_key(bad).ask(&hello("assistant")).error(401);
    }
    admin.without_key().get("/v1/models").error(401);
    admin.without_key().get("/ember/v1/functions").error(401);

    let made = ember.run(&["key", "create", "--name", "limited", "--functions", "second"]).ok();
    let limited = admin.with_key(made.trim());
    limited.ask(&hello("second")).expect(200);
    let error = limited.ask(&hello("assistant")).error(403);
    assert_eq!(error["type"], "permission_error");
    for path in ["/ember/v1/functions", "/ember/v1/keys", "/ember/v1/instances", "/ember/v1/models"] {
        limited.get(path).error(403);
    }
    limited.put("/ember/v1/functions/mine", &[("content-type", "application/toml")], b"").error(403);
    limited.delete("/ember/v1/functions/second").error(403);
    limited.post("/ember/v1/functions/second/stop", &json!({})).error(403);
    ember.stop();
}

#[test]
fn what_is_not_there_is_not_found() {
    let ember = Ember::serving(&assistant());
    let client = ember.client();
    let error = client.ask(&chat("nobody", "Hello.", json!({}))).error(404);
    assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
    assert_eq!(client.get("/v1/models/nobody").error(404)["code"], "model_not_found");
    for path in ["/v1/nothing", "/v2/chat/completions", "/v1/chat/completions/x", "/ember/v1/functions/nobody"] {
        client.get(path).error(404);
    }
    client.delete("/ember/v1/functions/nobody").error(404);
    client.delete("/ember/v1/keys/nobody").error(404);

    let get = client.get(CHAT);
    get.error(405);
    assert!(get.header("allow").contains("POST"));
    client.delete("/v1/models").error(405);
    client.post("/v1/models", &json!({})).error(405);
    ember.stop();
}

#[test]
fn bodies_are_bounded_in_size_time_and_kind() {
    let ember = Ember::start_with("[limits]\nbody_timeout = \"500ms\"\nrequest_bytes = \"64KiB\"\n").with(&assistant());
    let client = ember.client();
    let head = |length: usize| {
        let (host, key) = (ember.address(), ember.admin_key());
        format!(
            "POST {CHAT} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let told = |sent: String| -> Reply {
        let mut raw = ember.raw();
        assert!(raw.send(sent));
        raw.reply().expect("a reply before the connection closes")
    };
    let slow = told(head(1000) + "{\"model\": ");
    assert_eq!(slow.error(408)["type"], "timeout_error");
    assert_eq!(told(head(10 << 20)).error(413)["code"], "request_too_large");
    let long = json!({"model": "assistant", "messages": [{"role": "user", "content": "x".repeat(80 << 10)}]});
    client.post(CHAT, &long).error(413);

    let request = chat("assistant", "Hello.", json!({"max_tokens": 1})).to_string();
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        assert_eq!(client.post_bytes(CHAT, kind, request.as_bytes()).error(415)["code"], "unsupported_media_type");
    }
    client.post_bytes(CHAT, "application/json; charset=utf-8", request.as_bytes()).expect(200);
    ember.stop();
}

#[test]
fn a_functions_own_body_limit_holds() {
    let ember = Ember::serving(&assistant().limit("request_bytes = \"2KiB\""));
    ember.client().ask(&chat("assistant", &"x".repeat(3000), json!({}))).error(413);
    ember.client().ask(&chat("assistant", "Hello.", json!({"max_tokens": 1}))).expect(200);
    ember.stop();
}

#[test]
fn a_wrong_manifest_says_where() {
    let ember = Ember::serving(&assistant());
    let put = |name: &str, manifest: &str| {
        let headers = [("content-type", "application/toml")];
        ember.client().put(&format!("/ember/v1/functions/{name}"), &headers, manifest.as_bytes())
    };
    let good = assistant().to_toml();
    let unknown = put("assistant", &format!("colour = \"red\"\n{good}")).error(422);
    let message = unknown["message"].as_str().unwrap();
    assert!(message.contains("line 1, column 1") && message.contains("colour"), "{message}");
    let deep = put("assistant", &good.replace("[limits]\n", "[limits]\n  memmory = \"1GiB\"\n")).error(422);
    let message = deep["message"].as_str().unwrap();
    assert!(message.contains("column 3") && message.contains("did you mean `memory`"), "{message}");
    for bad in ["", "name = ", "name = \"UPPER\"", "name = \"a/../b\"", &good.replace("chat", "dance")] {
        put("assistant", bad).error(422);
    }
    let other = put("other", &good);
    assert!((400..500).contains(&other.status), "a name unlike the path's: {}", other.status);

    let manifest = ember.scratch().join("bad.toml");
    std::fs::write(&manifest, format!("{good}\nconcurency = 2\n")).unwrap();
    let said = ember.run(&["deploy", &manifest.display().to_string()]).refused();
    assert!(said.contains("bad.toml:7:1: ") && said.contains("concurency") && said.contains("concurrency"), "{said}");
    ember.client().ask(&chat("assistant", "Hello.", json!({"max_tokens": 1}))).expect(200);
    ember.stop();
}

#[test]
fn a_full_queue_turns_away() {
    let narrow = |name: &str| Function::named(name).scale("concurrency = 1").limit("output_tokens = 1500");
    let full = narrow("full").scale("queue = 0");
    let slow = narrow("slow").scale("queue = 1").scale("queue_timeout = \"100ms\"");
    let ember = Ember::serving(&full).with(&slow).awake("full").awake("slow");
    let client = ember.client();
    for name in ["full", "slow"] {
        let long = chat(name, "Write a very long story.", json!({"max_tokens": 1500, "logit_bias": {"2": -100}}));
        let mut running = client.ask_streamed(&long);
        running.next().expect("the long answer has begun");
        let turned_away = client.ask(&chat(name, "Hello.", json!({})));
        assert_eq!(turned_away.error(503)["type"], "unavailable_error");
        assert!(turned_away.header("retry-after").parse::<u64>().is_ok());
        drop(running);
    }
    ember.stop();
}

#[test]
fn what_the_disk_does_not_take_is_our_fault() {
    let ember = Ember::serving(&assistant());
    let (folder, away) = (ember.data().join("server/functions"), ember.data().join("server/away"));
    let model = ember.client().get("/ember/v1/functions/assistant").expect(200).json()["model"].clone();
    let put = || {
        let headers = [("x-ember-model", model.as_str().unwrap())];
        ember.client().put("/ember/v1/functions/second", &headers, Function::named("second").to_toml().as_bytes())
    };
    std::fs::rename(&folder, &away).unwrap();
    let error = put().error(500);
    assert_eq!((&error["type"], &error["code"]), (&json!("server_error"), &json!("internal_error")), "{error}");
    ember.client().get("/v1/models/second").error(404);
    std::fs::rename(&away, &folder).unwrap();
    put().expect(200);
    ember.client().get("/v1/models/second").expect(200);
    ember.stop();
}

#[test]
fn a_request_is_cut_at_its_functions_timeout() {
    let brief = assistant().limit("timeout = \"1s\"").limit("output_tokens = 2000");
    let ember = Ember::serving(&brief);
    let long = chat("assistant", "Write a very long story.", json!({"max_tokens": 2000, "logit_bias": {"2": -100}}));
    let error = ember.client().ask(&long).error(504);
    assert_eq!(error["code"], "deadline_exceeded");
    let events: Vec<Value> = ember.client().ask_streamed(&long).collect();
    assert!(events.last().unwrap()["error"]["code"] == "deadline_exceeded", "{:?}", events.last());
    ember.client().ask(&chat("assistant", "Hello.", json!({"max_tokens": 1}))).expect(200);
    ember.stop();
}
