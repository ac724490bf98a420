//! A client that leaves takes its work with it.

use serde_json::{Value, json};
use tests::{Ember, assistant, chat, until};

fn endless() -> Value {
    let with = json!({"max_tokens": 100_000, "logit_bias": {"2": -100}});
    chat("assistant", "Tell me a story that never ends.", with)
}

#[test]
fn a_client_that_leaves_frees_its_slot() {
    let slow = assistant().limit("context = 8192").limit("output_tokens = 100000").limit("timeout = \"30m\"");
    let ember = Ember::serving(&slow.scale("concurrency = 1").scale("queue_timeout = \"10m\""));
    let client = ember.client();
    for _ in 0..3 {
        let mut stream = client.ask_streamed(&endless());
        let id = stream.headers["x-request-id"].to_str().unwrap().to_owned();
        (0..3).for_each(|_| drop(stream.next().expect("the stream runs")));
        drop(stream);

        client.ask(&chat("assistant", "Say hello.", json!({"max_tokens": 4}))).expect(200);
        let record = until("the ledger has it", || ember.ledger().into_iter().find(|record| record["request"] == *id));
        assert_eq!((&record["outcome"], &record["function"]), (&json!("cancelled"), &json!("assistant")), "{record}");
        assert!(record["tokens_out"].as_u64().is_some_and(|tokens| tokens > 0 && tokens < 2000), "{record}");
    }
    ember.stop();
}

#[test]
fn a_client_that_leaves_before_the_answer_frees_its_slot() {
    let slow = assistant().limit("context = 8192").limit("output_tokens = 100000").limit("timeout = \"30m\"");
    let ember = Ember::serving(&slow.scale("concurrency = 1").scale("queue_timeout = \"10m\""));
    let body = endless().to_string();
    let mut raw = ember.raw();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        ember.admin_key(),
        body.len()
    );
    assert!(raw.send(head + &body));
    let busy = || ember.client().get("/ember/v1/instances").json()["data"][0]["slots_busy"].as_u64();
    until("the request runs", || busy().filter(|busy| *busy == 1));
    drop(raw);
    ember.client().ask(&chat("assistant", "Say hello.", json!({"max_tokens": 4}))).expect(200);
    until("the ledger has it", || ember.ledger().into_iter().find(|record| record["outcome"] == "cancelled"));
    ember.stop();
}

#[test]
fn a_finished_request_is_in_the_ledger_once() {
    let ember = Ember::serving(&assistant());
    let reply = ember.client().ask(&chat("assistant", "Say hello.", json!({}))).expect(200);
    let id = reply.header("x-request-id");
    let mine = || ember.ledger().into_iter().filter(|record| record["request"] == id).collect::<Vec<_>>();
    let records = until("the ledger has it", || Some(mine()).filter(|records| !records.is_empty()));
    assert_eq!(records.len(), 1);
    let (record, usage) = (&records[0], &reply.json()["usage"]);
    assert_eq!((&record["outcome"], &record["status"]), (&json!("completed"), &json!(200)), "{record}");
    assert_eq!((&record["tokens_in"], &record["tokens_out"]), (&usage["prompt_tokens"], &usage["completion_tokens"]));
    ember.stop();
}
