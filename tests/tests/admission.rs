//! Who is served, when, and who is turned away: keys' limits, deadlines, turns and classes, on one real Ember.
//!
//! Order is asserted, not time: a function of one slot answers one request after the other, and the ledger says in which
//! order they ended.

use serde_json::{Value, json};
use std::thread;
use tests::{Client, Ember, Stream, assistant, chat, text_of, until};

#[test]
fn limits_deadlines_turns_and_classes_hold() {
    let function = assistant().limit("context = 8192").limit("output_tokens = 100000").limit("timeout = \"30m\"");
    let function = function.scale("concurrency = 1").scale("queue = 8").scale("queue_timeout = \"10m\"");
    let ember = Ember::serving(&function).awake("assistant");
    requests_a_minute(&ember);
    tokens_a_minute(&ember);
    requests_at_once(&ember);
    wrong_headers(&ember);
    deadlines(&ember);
    turns_of_keys(&ember);
    who_floods_is_turned_away(&ember);
    batch_gives_way(&ember);
    ember.stop();
}

fn requests_a_minute(ember: &Ember) {
    let client = with_key(ember, "few", &["--rpm", "2"]);
    let first = client.ask(&hello()).expect(200);
    assert_eq!(first.header("x-ratelimit-limit-requests"), "2");
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "1");
    assert!(first.header("x-ratelimit-reset-requests").ends_with('s'));
    assert!(first.headers.get("x-ratelimit-limit-tokens").is_none(), "it has no such limit");
    client.ask_streamed(&hello()).whole();

    let refused = client.ask(&hello());
    let error = refused.error(429);
    assert_eq!((&error["type"], &error["code"]), (&json!("rate_limit_error"), &json!("rate_limit_exceeded")));
    let seconds: u64 = refused.header("retry-after").parse().unwrap();
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("rpm") && message.contains(&format!("in {seconds} s")), "{message}");
    assert!((1..=30).contains(&seconds), "{seconds}");
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), "0");
    assert!(ember.client().ask(&hello()).expect(200).headers.get("x-ratelimit-limit-requests").is_none());
    let listed: Value = serde_json::from_str(&ember.run(&["key", "ls", "--json"]).ok()).unwrap();
    let few = listed.as_array().unwrap().iter().find(|key| key["name"] == "few").unwrap();
    assert_eq!((&few["rates"]["rpm"], &few["rates"]["weight"]), (&json!(2), &json!(1)));
}

fn tokens_a_minute(ember: &Ember) {
    let client = with_key(ember, "short", &["--tpm", "60"]);
    let never = client.ask(&chat("assistant", "Hello.", json!({"max_tokens": 500})));
    assert!(never.error(429)["message"].as_str().unwrap().contains("tpm"));
    assert!(never.headers.get("retry-after").is_none(), "trying again does not help");
    assert_eq!(never.header("x-should-retry"), "false");

    let answered = client.ask(&hello()).expect(200);
    let used = answered.json()["usage"]["total_tokens"].as_u64().unwrap();
    let left: u64 = answered.header("x-ratelimit-remaining-tokens").parse().unwrap();
    assert!(left >= 60_u64.saturating_sub(used) && left < 60, "{left} of 60 are left of which {used} were used");
    let refused = (0..8).map(|_| client.ask(&hello())).find(|reply| reply.status != 200).expect("it is used up");
    assert_eq!(refused.error(429)["code"], "rate_limit_exceeded");
    assert!(refused.header("retry-after").parse::<u64>().is_ok());
}

fn requests_at_once(ember: &Ember) {
    let client = with_key(ember, "single", &["--concurrency", "1"]);
    let running = held(&client);
    let refused = client.ask(&hello());
    assert!(refused.error(429)["message"].as_str().unwrap().contains("concurrency"));
    assert!(refused.header("retry-after").parse::<u64>().is_ok());
    drop(running);
    until("its one request has ended", || Some(client.ask(&hello())).filter(|reply| reply.status == 200));
}

fn wrong_headers(ember: &Ember) {
    for (header, value) in [("x-ember-deadline-ms", "0"), ("x-ember-deadline-ms", "soon"), ("x-ember-class", "first")] {
        let error = ember.client().with_header(header, value).ask(&hello()).error(400);
        assert_eq!(error["param"], header, "{error}");
        assert!(error["message"].as_str().unwrap().contains(header), "{error}");
    }
}

fn deadlines(ember: &Ember) {
    let client = ember.client();
    let cut = client.with_header("x-ember-deadline-ms", "1500").ask(&endless()).error(504);
    assert_eq!(cut["code"], "deadline_exceeded");
    assert!(cut["message"].as_str().unwrap().contains("x-ember-deadline-ms"), "{cut}");

    let _running = held(&client);
    let expired = client.with_header("x-ember-deadline-ms", "300").ask(&hello());
    assert_eq!(expired.error(503)["type"], "unavailable_error");
    assert!(expired.header("retry-after").parse::<u64>().is_ok());
    let mut waiting = client.with_header("x-ember-deadline-ms", "3500").ask_streamed(&hello());
    let events: Vec<Value> = waiting.by_ref().collect();
    assert_eq!(waiting.comments.first().map(|comment| position(comment)), Some(1));
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["error"]["type"], "unavailable_error", "after the head it is an event");
    assert!(!waiting.is_done());
}

fn turns_of_keys(ember: &Ember) {
    let (flood, quiet) = (with_key(ember, "flood", &[]), with_key(ember, "quiet", &["--weight", "2"]));
    let running = held(&flood);
    let (mut waiting, ids) = flooded(&flood, 4);
    let mut late = quiet.ask_streamed(&hello());
    assert_eq!(position(&late.comment()), 1, "next, before four that wait already");
    let late_id = id(&late);

    drop(running);
    late.whole();
    waiting.drain(..).for_each(|stream| drop(stream.whole()));
    let expected = [vec![late_id], ids].concat();
    assert_eq!(order_of_ends(ember, &expected), expected);
}

fn who_floods_is_turned_away(ember: &Ember) {
    let (flood, quiet) = (with_key(ember, "flood-2", &[]), with_key(ember, "quiet-2", &[]));
    let running = held(&flood);
    let (mut waiting, _) = flooded(&flood, 8);
    let full = flood.ask(&hello());
    assert_eq!(full.error(503)["type"], "unavailable_error", "the box's limit and not the key's");
    assert!(full.header("retry-after").parse::<u64>().is_ok());

    let late = quiet.ask_streamed(&hello());
    let events: Vec<Value> = waiting.pop().expect("eight wait").collect();
    let message = events[0]["error"]["message"].as_str().unwrap();
    assert!(message.contains("queue of 8 is full"), "the last of who floods makes room: {message}");
    drop(running);
    late.whole();
    waiting.drain(..).for_each(|stream| drop(stream.whole()));
}

fn batch_gives_way(ember: &Ember) {
    let with = json!({"max_tokens": 400, "logit_bias": {"2": -100}, "stream_options": {"include_usage": true}});
    let long = chat("assistant", "Tell me a long story.", with);
    let mut work = ember.client().with_header("x-ember-class", "batch").ask_streamed(&long);
    let first = work.find(|event| !text_of(event).is_empty()).expect("it speaks, and has the only slot");
    let somebody = ember.client().ask(&hello()).expect(200);
    let work_id = id(&work);
    let rest = work.whole();
    let ends = |event: &Value| event["choices"][0]["finish_reason"].as_str().map(str::to_owned);
    assert_eq!(rest.iter().find_map(ends).as_deref(), Some("length"), "it goes on where it was");
    assert_eq!(rest.last().unwrap()["usage"]["completion_tokens"], 400, "and says nothing twice: {first}");
    let ids = [somebody.header("x-request-id").to_owned(), work_id];
    assert_eq!(order_of_ends(ember, &ids), ids, "who is interactive does not wait for batch");
}

fn with_key(ember: &Ember, name: &str, limits: &[&str]) -> Client {
    let key = ember.run(&[&["key", "create", "--name", name], limits].concat()).ok();
    ember.client().with_key(key.trim())
}

fn hello() -> Value {
    chat("assistant", "Say hello.", json!({"max_tokens": 4}))
}

fn endless() -> Value {
    chat("assistant", "Tell me a story that never ends.", json!({"max_tokens": 100_000, "logit_bias": {"2": -100}}))
}

/// An answer that holds the only slot until it is dropped.
fn held(client: &Client) -> Stream {
    let mut stream = client.ask_streamed(&endless());
    stream.next().expect("it has the slot");
    stream
}

/// So many requests that wait, the next one first, and their ids. Each has its head, which it gets when it has waited.
fn flooded(client: &Client, count: usize) -> (Vec<Stream>, Vec<String>) {
    let streams: Vec<_> = thread::scope(|scope| {
        let asking: Vec<_> = (0..count).map(|_| scope.spawn(|| client.ask_streamed(&hello()))).collect();
        asking.into_iter().map(|stream| stream.join().unwrap()).collect()
    });
    let mut placed: Vec<_> = streams.into_iter().map(|mut stream| (position(&stream.comment()), stream)).collect();
    placed.sort_by_key(|(position, _)| *position);
    let (positions, streams): (Vec<_>, Vec<_>) = placed.into_iter().unzip();
    assert_eq!(positions, (1..=count).collect::<Vec<_>>());
    let ids = streams.iter().map(id).collect();
    (streams, ids)
}

/// The place that a comment tells.
fn position(comment: &str) -> usize {
    let (position, eta_ms) = comment.strip_prefix(": queued position=").unwrap().split_once(" eta_ms=").unwrap();
    assert!(eta_ms.parse::<u64>().is_ok(), "{comment}");
    position.parse().unwrap()
}

fn id(stream: &Stream) -> String {
    stream.headers["x-request-id"].to_str().unwrap().to_owned()
}

/// Those of `ids` in the order in which the ledger says that they ended.
fn order_of_ends(ember: &Ember, ids: &[String]) -> Vec<String> {
    let ended = || -> Vec<String> {
        let records = ember.ledger().into_iter().filter_map(|record| record["request"].as_str().map(str::to_owned));
        records.filter(|id| ids.contains(id)).collect()
    };
    until("the ledger has them all", || Some(ended()).filter(|ended| ended.len() == ids.len()))
}
