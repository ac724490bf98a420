//! `kill -9` of any process while requests run: callers get an answer or a typed error, the service comes back, and
//! nothing is left over.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::{
    fs,
    path::PathBuf,
    thread::{self, JoinHandle},
};
use tests::{Client, Ember, Role, assistant, chat, text_of, until};

/// What a caller saw of a request during a fault.
#[derive(Debug)]
enum Seen {
    Answer,
    Error(u16),
    Broken,
}

fn long(message: &str) -> Value {
    chat("assistant", message, json!({"max_tokens": 200, "logit_bias": {"2": -100}}))
}

fn asking(client: Client) -> JoinHandle<Seen> {
    thread::spawn(move || match client.try_ask(&long("Tell me a story.")) {
        Ok(reply) if reply.status == 200 => Seen::Answer,
        Ok(reply) => {
            reply.error(reply.status);
            Seen::Error(reply.status)
        }
        Err(_) => Seen::Broken,
    })
}

/// Kills a process while two requests run; what the two callers saw.
fn kill_during_requests(ember: &mut Ember, role: Role) -> (Vec<Value>, Seen) {
    let mut stream = ember.client().ask_streamed(&long("Tell me a story."));
    let is_text = |event: &Value| !text_of(event).is_empty();
    // From its first word on an answer cannot be begun again elsewhere.
    stream.by_ref().find(is_text).expect("the stream has begun");
    let victim = ember.process(role);
    let whole = asking(ember.client());
    victim.kill();
    let events = stream.collect();
    (events, whole.join().expect("a typed error or none"))
}

fn answers_again(ember: &Ember) {
    let request = chat("assistant", "Say hello.", json!({"max_tokens": 4}));
    until("the service answers again", || ember.client().try_ask(&request).ok().filter(|reply| reply.status == 200));
}

#[test]
fn a_killed_runner_is_replaced() {
    let mut ember = Ember::serving(&assistant());
    let (events, whole) = kill_during_requests(&mut ember, Role::Runner);
    let error = &events.last().expect("an event at the end")["error"];
    assert_eq!((&error["type"], &error["code"]), (&json!("server_error"), &json!("runner_failed")), "{error}");
    assert!(matches!(whole, Seen::Answer | Seen::Error(502)), "{whole:?}");
    answers_again(&ember);
    ember.stop();
}

#[test]
fn a_killed_server_is_replaced() {
    let mut ember = Ember::serving(&assistant());
    let (_, whole) = kill_during_requests(&mut ember, Role::Server);
    assert!(matches!(whole, Seen::Broken | Seen::Answer), "{whole:?}");
    answers_again(&ember);
    ember.process(Role::Runner);
    ember.stop();
}

#[test]
fn a_killed_warden_is_replaced() {
    let mut ember = Ember::serving(&assistant());
    let (_, whole) = kill_during_requests(&mut ember, Role::Warden);
    assert!(!matches!(whole, Seen::Error(500)), "{whole:?}");
    answers_again(&ember);
    ember.process(Role::Warden);
    ember.stop();
}

#[test]
fn a_killed_ledger_is_replaced() {
    let mut ember = Ember::serving(&assistant());
    let (events, whole) = kill_during_requests(&mut ember, Role::Ledger);
    assert!(events.iter().all(|event| event["error"].is_null()), "{:?}", events.last());
    assert!(matches!(whole, Seen::Answer), "{whole:?}");
    ember.process(Role::Ledger);
    let id =
        ember.client().ask(&chat("assistant", "Hello.", json!({"max_tokens": 1}))).header("x-request-id").to_owned();
    until("the ledger has the request", || ember.ledger().into_iter().find(|record| record["request"] == *id));
    ember.stop();
}

#[test]
fn every_process_killed_in_turn_twice() {
    let mut ember = Ember::serving(&assistant());
    for role in [Role::Runner, Role::Server, Role::Ledger, Role::Warden].repeat(2) {
        answers_again(&ember);
        ember.process(role).kill();
    }
    answers_again(&ember);
    ember.stop();
}

#[test]
fn a_killed_supervisor_is_swept_up_by_the_next() {
    let mut ember = Ember::serving(&assistant());
    let mut stream = ember.client().ask_streamed(&long("Tell me a story."));
    stream.next().expect("the stream has begun");
    ember.kill();
    stream.for_each(drop);
    ember.start_again();
    answers_again(&ember);
    ember.stop();
}

#[test]
fn a_runner_that_hangs_is_given_up() {
    let mut ember = Ember::serving(&assistant().limit("timeout = \"2s\"")).awake("assistant");
    let runner = ember.process(Role::Runner);
    runner.signal(Signal::SIGSTOP);
    let reply = ember.client().ask(&long("Tell me a story."));
    assert!([502, 504].contains(&reply.status), "{}", reply.status);
    reply.error(reply.status);
    answers_again(&ember);
    until("the hung runner is gone", || (!runner.is_alive()).then_some(()));
    ember.stop();
}

#[test]
fn a_stream_that_runs_at_the_stop_is_finished() {
    let mut ember = Ember::serving(&assistant());
    let request = chat("assistant", "Tell me a story.", json!({"max_tokens": 60}));
    let mut stream = ember.client().ask_streamed(&request);
    stream.next().expect("the stream has begun");
    ember.signal(Signal::SIGTERM);
    assert!(stream.text().len() > 20, "the rest comes, up to [DONE]");
    ember.has_stopped();
}

/// Callers who never pause, and streams that run and wait: whatever was taken is answered, before the box ends.
#[test]
fn a_stop_under_load_fails_nobody() {
    const STREAMS: usize = 6;
    const CALLERS: usize = 3;
    let config = "drain = \"120s\"\n";
    let mut ember =
        Ember::start_with(config).with(&assistant().scale("concurrency = 2").scale("queue_timeout = \"120s\""));
    let client = ember.client();
    let request = chat("assistant", "Tell me a story.", json!({"max_tokens": 60}));
    let streams: Vec<_> = thread::scope(|scope| {
        let asking: Vec<_> = (0..STREAMS).map(|_| scope.spawn(|| client.ask_streamed(&request))).collect();
        asking.into_iter().map(|asked| asked.join().expect("it is admitted")).collect()
    });
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let client = ember.client();
            thread::spawn(move || {
                let ask = || client.try_ask(&chat("assistant", "Say hello.", json!({"max_tokens": 4}))).ok();
                // Until nobody is there any more.
                std::iter::from_fn(ask).inspect(|reply| assert_eq!(reply.status, 200)).count()
            })
        })
        .collect();
    ember.signal(Signal::SIGTERM);
    streams.into_iter().for_each(|stream| drop(stream.whole()));
    let answers: usize = callers.into_iter().map(|caller| caller.join().expect("each was answered with 200")).sum();
    ember.has_stopped();
    let records = ember.ledger();
    let failed: Vec<_> = records.iter().filter(|record| record["outcome"] != "completed").collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(records.len(), STREAMS + answers, "each that was taken was answered, and its caller has the answer");
}

#[test]
fn a_stream_that_outlasts_the_drain_is_cut() {
    let mut ember = Ember::start_with("drain = \"300ms\"\n").with(&assistant().limit("output_tokens = 1800"));
    let endless = chat("assistant", "Tell me a story.", json!({"max_tokens": 1800, "logit_bias": {"2": -100}}));
    let mut stream = ember.client().ask_streamed(&endless);
    stream.next().expect("the stream has begun");
    ember.signal(Signal::SIGTERM);
    stream.by_ref().for_each(drop);
    assert!(!stream.is_done(), "a cut stream does not pretend to be whole");
    ember.has_stopped();
}

/// The one model in the store.
fn stored_model(ember: &Ember) -> PathBuf {
    let models = fs::read_dir(ember.data().join("models")).expect("the store");
    let mut files = models.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file());
    files.find(|path| fs::metadata(path).is_ok_and(|file| file.len() > 1 << 20)).expect("the model")
}

#[test]
fn a_function_that_fails_again_and_again_is_left_alone_for_a_while() {
    let ember = Ember::start();
    ember.run(&["deploy", &ember.manifest(&assistant()), "--no-snapshot"]).ok();
    ember.run(&["stop", "assistant"]).ok();
    let (model, aside) = (stored_model(&ember), ember.scratch().join("aside"));
    fs::rename(&model, &aside).expect("take the model away");
    fs::write(&model, "no model").expect("put something else there");
    let request = chat("assistant", "Say hello.", json!({"max_tokens": 4}));
    let ask = || ember.client().ask(&request);
    let failing = || ember.client().get("/ember/v1/functions/assistant").expect(200).json()["failing"].clone();
    assert_eq!(failing(), Value::Null);
    (0..2).for_each(|_| drop(ask().error(502)));
    let refused = ask();
    let message = refused.error(503)["message"].as_str().expect("a message").to_owned();
    assert!(message.contains("the function fails, 2 times in a row so far"), "{message}");
    assert!(refused.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 0));
    assert_eq!(failing()["failures"], 2);
    fs::rename(&aside, &model).expect("bring the model back");
    ember.run(&["wake", "assistant"]).ok();
    ask().expect(200);
    assert_eq!(failing(), Value::Null);
    ember.stop();
}

#[test]
fn what_is_kept_up_is_woken_uncalled_and_again_after_it_was_lost() {
    let mut ember = Ember::serving(&assistant().scale("min = 1"));
    let up = |ember: &mut Ember| until("an instance is up", || ember.processes(Role::Runner).pop());
    let first = up(&mut ember);
    first.kill();
    let ps = || ember.client().get("/ember/v1/instances").expect(200).json()["data"].clone();
    let another = || ps().as_array()?.iter().find(|row| row["tier"] == "running" && row["instance"] != 1).cloned();
    until("another instance is up", another);
    answers_again(&ember);
    ember.kill();
    ember.start_again();
    up(&mut ember);
    ember.stop();
}
