//! The next turn of a conversation computes what is new in it; what a key asked serves that key only.

use serde_json::{Value, json};
use tests::{Client, Ember, Reply, assistant, chat};

/// A conversation, as a client sends it.
struct Talk(Vec<Value>);

impl Talk {
    fn request(&self, with: Value) -> Value {
        let mut request = chat("assistant", "", json!({"cache_prompt": null, "messages": self.0}));
        request.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
        request
    }

    fn ask(&mut self, client: &Client, question: &str) -> Reply {
        self.0.push(json!({"role": "user", "content": question}));
        let reply = client.ask(&self.request(json!({}))).expect(200);
        self.0.push(json!({"role": "assistant", "content": reply.text()}));
        reply
    }
}

/// Tokens of the prompt, and those of them that were found.
fn tokens(usage: &Value) -> (u64, u64) {
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
    (usage["prompt_tokens"].as_u64().expect("a number"), cached.expect("a number"))
}

#[test]
fn a_next_turn_is_cheaper_for_its_own_key_only() {
    let ember = Ember::serving(&assistant().system("You are a patient teacher. Be brief."));
    let client = |name: &str| {
        let key = ember.run(&["key", "create", "--name", name]).ok();
        ember.client().with_key(key.trim())
    };
    let (ann, bob) = (client("ann"), client("bob"));
    let mut talk = Talk(Vec::new());
    let (prompt, system) = tokens(&talk.ask(&ann, "Why is the sky blue?").json()["usage"]);
    assert!(system > 8 && system < prompt, "the system prompt is at hand: {system} of {prompt}");
    let second = talk.ask(&ann, "And in the evening?");
    let (_, found) = tokens(&second.json()["usage"]);
    assert!(found >= prompt, "{found} tokens were found of a turn of {prompt}");
    let record = ember.ledger().into_iter().find(|record| record["request"] == *second.header("x-request-id"));
    assert!(record.is_none_or(|record| record["tokens_cached"] == found), "the ledger says the same");

    let next = json!({"role": "user", "content": "And at night?"});
    talk.0.push(next);
    let found_by = |client: &Client, with: Value| {
        let reply = client.ask(&talk.request(with)).expect(200);
        (tokens(&reply.json()["usage"]).1, reply.text())
    };
    assert_eq!(found_by(&bob, json!({})).0, system, "another key finds nothing");
    let streamed = ann.ask_streamed(&talk.request(json!({"stream_options": {"include_usage": true}}))).whole();
    assert!(tokens(&streamed.last().unwrap()["usage"]).1 > found, "a stream finds it too");

    // A key that is made again under a name is another key.
    ember.run(&["key", "revoke", "ann"]).ok();
    let another = client("ann");
    assert_eq!(found_by(&another, json!({})).0, system);
    assert!(found_by(&another, json!({})).0 > found);

    // Who wants the same to the last bit finds nothing, and leaves nothing.
    let exact = json!({"cache_prompt": false});
    let first = found_by(&another, exact.clone());
    assert_eq!((first.0, &first), (system, &found_by(&another, exact)));
    assert_eq!(found_by(&another, json!({})).0, system);
    ann.ask(&talk.request(json!({}))).error(401);

    // An instance that was put away took along what it kept.
    assert!(found_by(&another, json!({})).0 > found);
    for away in ["park", "stop"] {
        ember.run(&[away, "assistant"]).ok();
        assert_eq!(found_by(&another, json!({})).0, system, "after `ember {away}`");
    }
    ember.stop();
}

/// Two conversations at once need two instances; each goes on in its own, whichever came first.
#[test]
fn a_conversation_goes_on_in_the_instance_that_has_it() {
    let function = assistant().limit("cpus = 1").scale("concurrency = 1").scale("max = 2").scale("keep_warm = \"60s\"");
    let ember = Ember::serving(&function.system("Be brief."));
    let client = ember.client();
    let mut talks = [Talk(Vec::new()), Talk(Vec::new())];
    let subjects = ["rivers", "stars"];
    let firsts = std::thread::scope(|scope| {
        let asked = talks.iter_mut().zip(subjects).map(|(talk, subject)| {
            let client = &client;
            scope.spawn(move || tokens(&talk.ask(client, &format!("Tell me about {subject}.")).json()["usage"]).0)
        });
        asked.collect::<Vec<_>>().into_iter().map(|asked| asked.join().unwrap()).collect::<Vec<_>>()
    });
    let up = ember.client().get("/ember/v1/instances").json()["data"].as_array().unwrap().len();
    assert_eq!(up, 2, "one each");
    for turn in 0..3 {
        for (talk, prompt) in talks.iter_mut().zip(&firsts).rev() {
            let (_, found) = tokens(&talk.ask(&client, "Go on.").json()["usage"]);
            assert!(found >= *prompt, "turn {turn}: {found} tokens were found of a turn of {prompt}");
        }
    }
    ember.stop();
}
