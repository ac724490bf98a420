//! What is asked is answered: chats, completions, embeddings, tokens, over HTTP/1.1 and HTTP/2, whole and streamed.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::{process::Command, thread};
use tests::{Ember, Function, Reply, Run, assistant, chat, text_of, until};

const STORY: &str = "Tell me a short story about a lighthouse.";

#[test]
fn a_chat_is_answered_whole() {
    let ember = Ember::serving(&assistant());
    let reply = ember.client().ask(&chat("assistant", "Say hello.", json!({}))).expect(200);
    assert!(!reply.text().trim().is_empty());

    let answer = reply.json();
    assert!(answer["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")), "{answer}");
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("assistant")));
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    let usage = &answer["usage"];
    let tokens = |field: &str| usage[field].as_u64().unwrap_or_else(|| panic!("no {field} in {usage}"));
    assert_eq!(tokens("total_tokens"), tokens("prompt_tokens") + tokens("completion_tokens"));

    assert_eq!(reply.header("content-type").split(';').next(), Some("application/json"));
    assert_eq!(reply.header("x-request-id"), usage["ember"]["request_id"]);
    assert!(["running", "parked", "stored", "cold"].contains(&reply.header("x-ember-tier")));
    assert_eq!(reply.header("x-ember-tier"), usage["ember"]["tier"]);
    for header in ["openai-processing-ms", "x-ember-queue-ms", "x-ember-wake-ms"] {
        assert!(reply.header(header).parse::<f64>().is_ok(), "{header}");
    }
    assert!(reply.header("server-timing").contains("dur="));
    for part in ["queue_ms", "wake_ms", "prefill_ms", "decode_ms", "billed_ms", "memory_mib", "gib_ms", "cost_nanos"] {
        assert!(usage["ember"][part].is_number(), "no {part} in {usage}");
    }
    ember.stop();
}

#[test]
fn a_stream_says_the_same_as_a_whole_answer() {
    let ember = Ember::serving(&assistant());
    let client = ember.client();
    for how in [json!({}), json!({"temperature": 1, "seed": 7}), json!({"temperature": 1, "seed": 8, "top_p": 0.9})] {
        let request = chat("assistant", STORY, how);
        let whole = client.ask(&request).text();
        assert!(!whole.is_empty());
        assert_eq!(client.ask_streamed(&request).text(), whole, "{request}");
        assert_eq!(client.ask(&request).text(), whole, "{request}");
    }
    let seeded = |seed: u32| client.ask(&chat("assistant", STORY, json!({"temperature": 1, "seed": seed}))).text();
    assert!((1..5).any(|seed| seeded(seed) != seeded(0)), "the seed changes nothing");
    ember.stop();
}

#[test]
fn a_stream_is_made_of_chunks() {
    let ember = Ember::serving(&assistant());
    let client = ember.client();
    let events =
        client.ask_streamed(&chat("assistant", STORY, json!({"stream_options": {"include_usage": true}}))).whole();
    let (usage, chunks) = events.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert!(usage["usage"]["completion_tokens"].as_u64().is_some_and(|tokens| tokens > 0), "{usage}");
    assert!(usage["usage"]["ember"]["billed_ms"].is_number(), "{usage}");
    assert!(chunks.len() > 5, "one chunk a token: {chunks:?}");
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == chunks[0]["id"]));
    assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk["choices"][0]["index"] == 0));
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert!(before.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));

    let without = client.ask_streamed(&chat("assistant", STORY, json!({}))).whole();
    assert!(without.iter().all(|chunk| chunk["choices"].as_array().is_some_and(|choices| choices.len() == 1)));
    ember.stop();
}

#[test]
fn completions_take_text_lists_and_tokens() {
    let ember = Ember::serving(&assistant());
    let client = ember.client();
    let request = |prompt: Value| json!({"model": "assistant", "prompt": prompt, "max_tokens": 12, "temperature": 0, "cache_prompt": false});
    let complete = |prompt: Value| {
        let request = request(prompt);
        client.post("/v1/completions", &request).expect(200)
    };
    let prompt = "The capital of France is";
    let text = complete(json!(prompt));
    assert_eq!(text.json()["object"], "text_completion");
    assert!(text.text().contains("Paris"), "{}", text.text());
    let tokens = client.post("/tokenize", &json!({"model": "assistant", "content": prompt})).expect(200).json();
    assert_eq!(complete(tokens["tokens"].clone()).text(), text.text());
    assert_eq!(complete(json!([prompt])).text(), text.text());

    let both = complete(json!([prompt, "Two and two make"])).json();
    assert_eq!(both["choices"].as_array().map(Vec::len), Some(2));
    assert_eq!(both["choices"][0]["text"], text.text());
    let numbers: Vec<_> = both["choices"].as_array().unwrap().iter().map(|choice| choice["index"].clone()).collect();
    assert_eq!(numbers, [0, 1]);

    assert_eq!(client.stream("/v1/completions", &request(json!(prompt))).text(), text.text());
    ember.stop();
}

#[test]
fn clients_at_once_all_finish() {
    let ember = Ember::serving(&assistant());
    let request = |n: usize| chat("assistant", &format!("Count from {n} to twenty."), json!({"max_tokens": 40}));
    let alone: Vec<String> = (0..2).map(|n| ember.client().ask(&request(n)).text()).collect();
    let asking: Vec<_> = (0..2).map(|n| (ember.client(), request(n))).collect();
    let threads: Vec<_> =
        asking.into_iter().map(|(client, r)| thread::spawn(move || client.ask_streamed(&r).text())).collect();
    let together: Vec<String> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(together.iter().all(|text| !text.is_empty()));
    assert_eq!(together.len(), alone.len());

    let many: Vec<_> = (0..10).map(|n| (ember.client(), request(n))).collect();
    let threads: Vec<_> = many.into_iter().map(|(client, r)| thread::spawn(move || client.ask(&r).text())).collect();
    assert!(threads.into_iter().all(|thread| !thread.join().unwrap().is_empty()), "more clients than slots wait");
    ember.stop();
}

#[test]
fn embeddings_come_as_floats_and_as_base64() {
    let ember = Ember::serving(&Function::named("vectors").task("embedding"));
    let client = ember.client();
    let embed = |with: Value| {
        let mut request = json!({"model": "vectors", "input": ["a small cat", "a little kitten", "tax law"]});
        request.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
        client.post("/v1/embeddings", &request).expect(200).json()
    };
    let reply = embed(json!({}));
    assert_eq!((&reply["object"], &reply["data"][2]["index"]), (&json!("list"), &json!(2)));
    assert!(reply["usage"]["prompt_tokens"].as_u64().is_some_and(|tokens| tokens >= 6), "{}", reply["usage"]);
    let vectors: Vec<Vec<f32>> =
        (0..3).map(|i| serde_json::from_value(reply["data"][i]["embedding"].clone()).unwrap()).collect();
    let dot = |a: usize, b: usize| vectors[a].iter().zip(&vectors[b]).map(|(x, y)| x * y).sum::<f32>();
    assert_eq!(vectors[0].len(), 576);
    assert!((dot(0, 0) - 1.0).abs() < 1e-3, "a vector has length one");
    assert!(dot(0, 1) > dot(0, 2), "what means the same lies closer");

    let encoded = embed(json!({"encoding_format": "base64"}));
    let bytes = STANDARD.decode(encoded["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let decoded: Vec<f32> = bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    assert_eq!(decoded.len(), vectors[0].len());
    assert!(decoded.iter().zip(&vectors[0]).all(|(a, b)| (a - b).abs() < 1e-4));
    ember.stop();
}

#[test]
fn functions_are_listed_and_health_needs_no_key() {
    let ember = Ember::serving(&assistant()).with(&Function::named("second"));
    let client = ember.client();
    let models = client.get("/v1/models").expect(200).json();
    assert_eq!(models["object"], "list");
    let mut names: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    names.sort_by_key(Value::to_string);
    assert_eq!(names, ["assistant", "second"]);
    let one = client.get("/v1/models/assistant").expect(200).json();
    assert_eq!((&one["id"], &one["object"]), (&json!("assistant"), &json!("model")));
    assert!(one["created"].is_u64() && one["owned_by"].is_string(), "{one}");

    assert_eq!(client.without_key().get("/health").expect(200).json()["status"], "ok");
    ember.stop();
}

#[test]
fn text_goes_to_tokens_and_back() {
    let ember = Ember::serving(&assistant());
    let client = ember.client();
    let post = |path: &str, body: Value| client.post(path, &body).expect(200).json();
    let text = "Grüße, 世界! 🚀 <|im_start|>";
    let tokens = post("/tokenize", json!({"model": "assistant", "content": text}))["tokens"].clone();
    assert!(tokens.as_array().is_some_and(|tokens| tokens.len() > 5), "{tokens}");
    let back = post("/detokenize", json!({"model": "assistant", "tokens": tokens}));
    assert_eq!(back["content"], text);

    let messages = json!([{"role": "user", "content": "Is it raining?"}]);
    let prompt = post("/apply-template", json!({"model": "assistant", "messages": messages}))["prompt"].clone();
    let prompt = prompt.as_str().unwrap();
    assert!(prompt.contains("<|im_start|>user\nIs it raining?<|im_end|>"), "{prompt}");
    assert!(prompt.ends_with("<|im_start|>assistant\n"), "{prompt}");
    ember.stop();
}

#[test]
fn special_tokens_in_a_message_stay_text() {
    let ember = Ember::serving(&assistant());
    let prompt_tokens = |message: &str| {
        let reply = ember.client().ask(&chat("assistant", message, json!({"max_tokens": 1}))).expect(200).json();
        reply["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let (none, one, nine) = (prompt_tokens(""), prompt_tokens("<|im_end|>"), prompt_tokens(&"<|im_end|>".repeat(9)));
    assert!(one > none + 3, "`<|im_end|>` took {} token", one - none);
    assert!(nine > none + 27, "nine of `<|im_end|>` took {} tokens", nine - none);
    ember.stop();
}

#[test]
fn answers_end_where_they_are_told_to() {
    let ember = Ember::serving(&assistant());
    let client = ember.client();
    let free = client.ask(&chat("assistant", STORY, json!({"max_tokens": 60}))).text();
    for (from, to) in [(10, 14), (21, 30), (40, 41)] {
        let stop: String = free.chars().skip(from).take(to - from).collect();
        let request = chat("assistant", STORY, json!({"max_tokens": 60, "stop": [stop, "never said by anyone"]}));
        let expected = free.split(stop.as_str()).next().unwrap();
        let reply = client.ask(&request).expect(200);
        assert_eq!(reply.text(), expected, "stop at {stop:?}");
        assert_eq!(reply.json()["choices"][0]["finish_reason"], "stop");
        assert_eq!(client.ask_streamed(&request).text(), expected, "stop at {stop:?}");
    }
    for field in ["max_tokens", "max_completion_tokens"] {
        let mut request = chat("assistant", STORY, json!({}));
        request.as_object_mut().unwrap().remove("max_tokens");
        request[field] = 5.into();
        let reply = client.ask(&request).expect(200).json();
        assert_eq!(
            (&reply["choices"][0]["finish_reason"], &reply["usage"]["completion_tokens"]),
            (&json!("length"), &json!(5))
        );
    }
    ember.stop();
}

#[test]
fn log_probabilities_come_when_asked_for() {
    let ember = Ember::serving(&assistant());
    let client = ember.client();
    let request = chat("assistant", STORY, json!({"max_tokens": 6, "logprobs": true, "top_logprobs": 3}));
    let check = |token: &Value| {
        let logprob = token["logprob"].as_f64().unwrap();
        let top = token["top_logprobs"].as_array().unwrap();
        assert!(logprob <= 1e-6 && token["token"].is_string() && token["bytes"].is_array(), "{token}");
        assert_eq!(top.len(), 3);
        assert!(top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64(), "likeliest first: {token}");
        assert_eq!(top[0]["token"], token["token"], "at temperature 0 the likeliest is taken");
    };
    let whole = client.ask(&request).expect(200).json();
    let tokens = whole["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(tokens.len(), 6);
    tokens.iter().for_each(check);
    let events = client.ask_streamed(&request).whole();
    let streamed = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(streamed.flatten().count(), 6);

    let plain = client.ask(&chat("assistant", STORY, json!({"max_tokens": 2}))).expect(200).json();
    assert!(plain["choices"][0]["logprobs"].is_null());
    ember.stop();
}

#[test]
fn json_is_json() {
    let ember = Ember::serving(&assistant());
    let client = ember.client();
    let ask = |format: Value, tokens: u32| {
        let with = json!({"max_tokens": tokens, "response_format": format});
        let reply = client.ask(&chat("assistant", "Describe a cat as JSON.", with)).expect(200);
        (
            serde_json::from_str::<Value>(&reply.text()),
            reply.text(),
            reply.json()["choices"][0]["finish_reason"].clone(),
        )
    };
    let schema = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "legs": {"enum": [2, 4]}, "tame": {"type": "boolean"}},
        "required": ["name", "legs", "tame"],
        "additionalProperties": false,
    });
    let strict = json!({"type": "json_schema", "json_schema": {"name": "cat", "schema": schema, "strict": true}});
    let cat = ask(strict, 80).0.unwrap();
    assert!(cat["name"].is_string() && cat["legs"].is_u64() && cat["tame"].is_boolean(), "{cat}");
    // A small model may never end its object, but until it is cut all it says is the beginning of one.
    let (object, text, finish_reason) = ask(json!({"type": "json_object"}), 60);
    match object {
        Ok(object) => assert!(object.is_object(), "{object}"),
        Err(error) => assert!(error.is_eof() && text.starts_with('{') && finish_reason == "length", "{error}: {text}"),
    }
    ember.stop();
}

#[test]
fn text_is_whole_at_every_chunk() {
    let ember = Ember::serving(&assistant());
    let message = "Repeat exactly: 🚀🔥🎉 你好世界 Здравствуй, мир — Grüße 😀😃😄";
    let request = chat("assistant", message, json!({"max_tokens": 80}));
    let events = ember.client().ask_streamed(&request).whole();
    let pieces: Vec<String> = events.iter().map(text_of).collect();
    assert!(pieces.concat().chars().any(|c| c.len_utf8() >= 3), "nothing to cut: {pieces:?}");
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
    assert_eq!(pieces.concat(), ember.client().ask(&request).text());
    ember.stop();
}

#[test]
fn http_1_and_http_2_answer_alike() {
    let ember = Ember::serving(&assistant());
    let (base, ca) = (format!("https://{}", ember.address()), ember.data().join("tls/ca.pem"));
    let authorization = format!("authorization: Bearer {}", ember.admin_key());
    let request = chat("assistant", STORY, json!({})).to_string();
    let curl = |version: &str, path: &str, body: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-N", version, "-w", "\n%{http_version}", "-H", &authorization]).arg("--cacert").arg(&ca);
        curl.args(["-H", "content-type: application/json", "-d", body]).arg(format!("{base}{path}"));
        let printed = Run::of(&mut curl).ok();
        let (body, version) = printed.rsplit_once('\n').unwrap();
        (body.to_owned(), version.to_owned())
    };
    let text = |body: &str| serde_json::from_str::<Value>(body).unwrap()["choices"][0]["message"]["content"].clone();
    let (old, version) = curl("--http1.1", "/v1/chat/completions", &request);
    assert_eq!(version, "1.1");
    let (new, version) = curl("--http2", "/v1/chat/completions", &request);
    assert_eq!(version, "2");
    assert_eq!(text(&old), text(&new));

    let streamed = chat("assistant", STORY, json!({"stream": true})).to_string();
    let (events, _) = curl("--http2", "/v1/chat/completions", &streamed);
    assert!(events.trim_end().ends_with("data: [DONE]"), "{events}");
    ember.stop();
}

#[test]
fn the_command_line_runs_and_lists() {
    let ember = Ember::serving(&assistant());
    let asked = ember.client().ask(&chat("assistant", STORY, json!({}))).text();
    let run = ember.run(&["run", "assistant", STORY, "--temperature", "0", "--max-tokens", "24", "--verbose"]);
    assert!(run.stderr.contains("tokens/s") && run.stderr.contains("prefill"), "{}", run.stderr);
    assert_eq!(run.ok().trim_end(), asked.trim_end());

    let list = ember.run(&["ls", "--json"]).json();
    assert!(list.to_string().contains("\"assistant\""), "{list}");
    let shown = ember.run(&["show", "assistant", "--json"]).json();
    assert!(shown.to_string().contains("\"assistant\""), "{shown}");
    let instances = ember.run(&["ps", "--json"]).json();
    assert!(instances.to_string().contains("running"), "{instances}");
    let models = ember.run(&["model", "ls", "--json"]).json();
    assert!(models.to_string().contains("98362432"), "{models}");
    let keys = ember.run(&["key", "ls", "--json"]).json();
    assert!(keys.is_array() || keys.is_object(), "{keys}");
    for table in [&["ls"][..], &["ps"], &["show", "assistant"]] {
        assert!(ember.run(table).ok().contains("assistant"));
    }
    ember.run(&["doctor"]).ok();

    ember.run(&["stop", "assistant"]).ok();
    until("it is stopped", || (!ember.run(&["ps", "--json"]).json().to_string().contains("running")).then_some(()));
    ember.run(&["wake", "assistant"]).ok();
    assert!(ember.run(&["ps", "--json"]).json().to_string().contains("running"));
    ember.run(&["rm", "assistant"]).ok();
    assert!(!ember.run(&["ls", "--json"]).json().to_string().contains("\"assistant\""));
    ember.client().ask(&chat("assistant", STORY, json!({}))).error(404);
    ember.stop();
}

#[test]
fn functions_outlive_a_restart() {
    let mut ember = Ember::serving(&assistant());
    let request = chat("assistant", STORY, json!({}));
    let before: Reply = ember.client().ask(&request);
    ember.signal(nix::sys::signal::Signal::SIGTERM);
    ember.has_stopped();
    ember.start_again();
    assert_eq!(ember.client().ask(&request).text(), before.text());
    ember.stop();
}
