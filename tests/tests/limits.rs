//! A function's limits on what one request may take, each at nothing, at one, at its most and just above.
//!
//! That a manifest is held to the same for its limits themselves: `appliance/config/src/manifest/tests.rs`.

use serde_json::{Value, json};
use std::{sync::mpsc, thread};
use tests::{Client, Ember, Function, Reply, chat, until};

const OUTPUT_TOKENS: u64 = 8;
const CONTEXT: usize = 64;
const REQUEST_BYTES: usize = 1024;

/// A greedy completion of so many tokens.
fn completion(function: &str, prompt_tokens: usize) -> Value {
    json!({"model": function, "prompt": vec![100; prompt_tokens], "max_tokens": 4, "temperature": 0})
}

/// An answer that goes on until its client leaves.
fn long(function: &str) -> Value {
    chat(function, "Write a very long story.", json!({"max_tokens": 100_000, "logit_bias": {"2": -100}}))
}

/// A function whose answers last, with `concurrency` of them at once.
fn lasting(name: &str, concurrency: u32) -> Function {
    let slow = Function::named(name).limit("context = 8192").limit("output_tokens = 100000");
    slow.scale(&format!("concurrency = {concurrency}"))
}

/// Instances that are up.
fn instances(client: &Client) -> Vec<Value> {
    let list = client.get("/ember/v1/instances").expect(200).json();
    list["data"].as_array().expect("a list").iter().filter(|row| row["tier"] == "running").cloned().collect()
}

fn finish(reply: &Reply) -> (Value, Value) {
    let reply = reply.clone().expect(200).json();
    (reply["choices"][0]["finish_reason"].clone(), reply["usage"]["completion_tokens"].clone())
}

#[test]
fn limits_hold_at_both_ends() {
    let tight = Function::named("tight").limit(&format!("output_tokens = {OUTPUT_TOKENS}"));
    let tight = tight.limit(&format!("context = {CONTEXT}")).limit("request_bytes = \"1KiB\"");
    let ember = Ember::serving(&tight);
    // What can be refused without an instance is refused without one.
    ember.run(&["park", "tight"]).ok();
    output_tokens_refused(&ember.client());
    request_bytes_refused(&ember.client());
    assert_eq!(instances(&ember.client()), [Value::Null; 0], "a refusal woke an instance");
    output_tokens_taken(&ember.client());
    request_bytes_taken(&ember.client());
    context(&ember.client());
    let ember = timeout(ember);
    let ember = queue(ember);
    let ember = concurrency(ember);
    ember.stop();
}

fn output_tokens_refused(client: &Client) {
    for field in ["max_tokens", "max_completion_tokens"] {
        for tokens in [0, OUTPUT_TOKENS + 1, u64::from(u32::MAX)] {
            let error = client.ask(&chat("tight", "Count.", json!({"max_tokens": null, field: tokens}))).error(400);
            assert_eq!((&error["param"], &error["type"]), (&json!(field), &json!("invalid_request_error")), "{error}");
        }
        let message =
            client.ask(&chat("tight", "Count.", json!({field: OUTPUT_TOKENS + 1}))).error(400)["message"].clone();
        assert!(message.as_str().is_some_and(|m| m.contains('9') && m.contains('8')), "the numbers: {message}");
    }
}

fn output_tokens_taken(client: &Client) {
    let forbid_end = |tokens: Value| json!({"max_tokens": tokens, "logit_bias": {"2": -100}});
    for tokens in [1, OUTPUT_TOKENS] {
        let reply = client.ask(&chat("tight", "Count.", forbid_end(json!(tokens))));
        assert_eq!(finish(&reply), (json!("length"), json!(tokens)));
    }
    let unsaid = client.ask(&chat("tight", "Count.", forbid_end(json!(null))));
    assert_eq!(finish(&unsaid), (json!("length"), json!(OUTPUT_TOKENS)), "left out, it is the function's");
}

/// A chat of exactly so many bytes.
fn of_bytes(bytes: usize) -> String {
    let request = chat("tight", "Hi.", json!({"max_tokens": 1, "user": ""})).to_string();
    request.replace("\"user\":\"\"", &format!("\"user\":\"{}\"", "x".repeat(bytes - request.len())))
}

fn post(client: &Client, body: &str) -> Reply {
    client.post_bytes("/v1/chat/completions", "application/json", body.as_bytes())
}

fn request_bytes_refused(client: &Client) {
    for bytes in ["", "1"] {
        assert_eq!(post(client, bytes).error(400)["type"], "invalid_request_error");
    }
    let error = post(client, &of_bytes(REQUEST_BYTES + 1)).error(413);
    assert_eq!(error["code"], "request_too_large");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("1024")), "{error}");
}

fn request_bytes_taken(client: &Client) {
    let largest = of_bytes(REQUEST_BYTES);
    assert_eq!(largest.len(), REQUEST_BYTES);
    post(client, &largest).expect(200);
}

/// A prompt may take all the context but for one token of the answer.
fn context(client: &Client) {
    let complete = |tokens: usize| client.post("/v1/completions", &completion("tight", tokens));
    assert_eq!(complete(0).error(400)["param"], "prompt");
    assert_eq!(complete(1).expect(200).json()["usage"]["prompt_tokens"], 1);
    assert_eq!(finish(&complete(CONTEXT - 4)).1, 4);
    assert_eq!(finish(&complete(CONTEXT - 1)), (json!("length"), json!(1)));
    for tokens in [CONTEXT, CONTEXT + 1] {
        let error = complete(tokens).error(400);
        assert_eq!((&error["code"], &error["param"]), (&json!("context_length_exceeded"), &json!("prompt")), "{error}");
        assert!(error["message"].as_str().is_some_and(|m| m.contains(&tokens.to_string())), "the numbers: {error}");
    }
}

fn timeout(ember: Ember) -> Ember {
    let (least, most) = (lasting("least", 1).limit("timeout = \"1ms\""), lasting("most", 1).limit("timeout = \"24h\""));
    let ember = ember.with(&least).with(&most).awake("least");
    let client = ember.client();
    assert_eq!(client.ask(&long("least")).error(504)["code"], "deadline_exceeded");
    let unharmed = client.ask(&chat("most", "Hello.", json!({"max_tokens": 1})));
    unharmed.expect(200);
    ember
}

/// A full queue refuses the newest, and those that wait are served.
fn queue(mut ember: Ember) -> Ember {
    for waiting in [0, 1, 3] {
        let name = format!("queue-{waiting}");
        let function = lasting(&name, 1).scale(&format!("queue = {waiting}")).scale("queue_timeout = \"10m\"");
        ember = ember.with(&function).awake(&name);
        let client = ember.client();
        let mut running = client.ask_streamed(&long(&name));
        running.next().expect("the long answer has begun");
        let (tell, told) = mpsc::channel();
        let asking: Vec<_> = (0..=waiting)
            .map(|_| {
                let (client, tell, request) =
                    (client.clone(), tell.clone(), chat(&name, "Hi.", json!({"max_tokens": 1})));
                thread::spawn(move || tell.send(client.ask(&request)).expect("the test listens"))
            })
            .collect();
        // Nobody can be answered before the long one ends: the one that is, is turned away.
        let refused = told.recv().expect("an answer");
        assert_eq!(refused.error(503)["type"], "unavailable_error");
        assert!(refused.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 0));
        drop(running);
        (0..waiting).for_each(|_| drop(told.recv().expect("an answer").expect(200)));
        asking.into_iter().for_each(|thread| thread.join().unwrap());
        ember.run(&["stop", &name]).ok();
    }
    ember
}

/// As many as may run do so at once; the next one does not.
fn concurrency(mut ember: Ember) -> Ember {
    for slots in [1, 3] {
        let name = format!("slots-{slots}");
        ember = ember.with(&lasting(&name, slots).scale("queue = 0")).awake(&name);
        let client = ember.client();
        let mut running: Vec<_> = (0..slots).map(|_| client.ask_streamed(&long(&name))).collect();
        running.iter_mut().for_each(|stream| drop(stream.next().expect("it runs beside the others")));
        let of_this = |instance: &Value| instance["function"] == *name;
        let view = instances(&client).into_iter().find(of_this).expect("it is up");
        assert_eq!((&view["slots"], &view["slots_busy"]), (&json!(slots), &json!(slots)), "{view}");
        client.ask(&chat(&name, "Hi.", json!({"max_tokens": 1}))).error(503);
        drop(running.pop());
        let ask = || client.ask(&chat(&name, "Hi.", json!({"max_tokens": 1})));
        until("a slot came free", || Some(ask()).filter(|reply| reply.status == 200));
        drop(running);
        ember.run(&["stop", &name]).ok();
    }
    let most = Function::named("slots-255").limit("context = 64").scale("concurrency = 255");
    let ember = ember.with(&most);
    ember.client().ask(&chat("slots-255", "Hi.", json!({"max_tokens": 1}))).expect(200);
    let view = instances(&ember.client()).into_iter().find(|instance| instance["function"] == "slots-255");
    assert_eq!(view.expect("it is up")["slots"], 255);
    ember
}
