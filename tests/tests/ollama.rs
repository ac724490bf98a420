//! Ollama's dialect over real TLS: the same functions, keys and bills, in the words of Ollama's clients.

use serde_json::{Value, json};
use tests::{Client, Ember, Function, Reply, assistant, chat, until};

const STORY: &str = "Tell me a short story about a lighthouse.";

/// The function `assistant`, and one that embeds.
fn serving() -> Ember {
    Ember::serving(&assistant()).with(&Function::named("vectors").task("embedding").limit("context = 64"))
}

/// A request of Ollama's: greedy, short, nothing penalised; `with` adds fields.
fn request(with: Value) -> Value {
    let options = json!({"temperature": 0, "repeat_penalty": 1, "num_predict": 24});
    let mut request = json!({"model": "assistant:latest", "options": options});
    request.as_object_mut().unwrap().extend(with.as_object().expect("fields").clone());
    request
}

fn says(message: &str) -> Value {
    request(json!({"messages": [{"role": "user", "content": message}]}))
}

/// The lines of a streamed reply.
fn lines(reply: &Reply) -> Vec<Value> {
    let reply = reply.clone().expect(200);
    assert_eq!(reply.header("content-type"), "application/x-ndjson");
    let text = String::from_utf8(reply.body).expect("lines are UTF-8");
    text.strip_suffix('\n')
        .expect("a last line ends")
        .split('\n')
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn whole(client: &Client, path: &str, mut request: Value) -> Value {
    request["stream"] = false.into();
    client.post(path, &request).expect(200).json()
}

/// What an error says: Ollama's have a text, and nothing else.
#[track_caller]
fn error(reply: &Reply, status: u16) -> String {
    let body = reply.clone().expect(status).json();
    assert_eq!(body.as_object().map(serde_json::Map::len), Some(1), "{body}");
    body["error"].as_str().unwrap_or_else(|| panic!("no text in {body}")).to_owned()
}

#[test]
fn a_chat_says_the_same_in_both_dialects() {
    let ember = serving();
    let client = ember.client();
    let openai = client.ask(&chat("assistant", STORY, json!({"min_p": 0}))).text();
    let reply = client.post("/api/chat", &says(STORY));
    assert!(reply.header("x-ember-tier").len() > 3 && reply.header("x-request-id").starts_with("req-"));
    let all = lines(&reply);
    let (end, pieces) = all.split_last().unwrap();
    assert!(pieces.len() > 5, "a line a token: {pieces:?}");
    assert!(pieces.iter().all(|line| line["done"] == false && line["message"]["role"] == "assistant"));
    let text: String = pieces.iter().map(|line| line["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(text, openai);
    assert_eq!((&end["done"], &end["done_reason"], &end["eval_count"]), (&json!(true), &json!("length"), &json!(24)));
    let ns = |field: &str| end[field].as_u64().unwrap_or_else(|| panic!("{field} in {end}"));
    assert!(ns("total_duration") >= ns("prompt_eval_duration") + ns("eval_duration"), "{end}");
    assert!(ns("eval_duration") > 1_000_000 && ns("prompt_eval_count") > 0 && end["load_duration"].is_u64(), "{end}");

    let answer = whole(&client, "/api/chat", says(STORY));
    assert_eq!((&answer["message"]["content"], &answer["done"]), (&json!(openai), &json!(true)));
    let generated = whole(&client, "/api/generate", request(json!({"prompt": STORY})));
    // As `curl -d` sends what Ollama's own examples show.
    let form = request(json!({"prompt": STORY, "stream": false})).to_string();
    let by_curl = client.post_bytes("/api/generate", "application/x-www-form-urlencoded", form.as_bytes());
    assert_eq!(by_curl.expect(200).json()["response"], generated["response"]);
    assert_eq!(generated["response"], openai);
    let streamed = lines(&client.post("/api/generate", &request(json!({"prompt": STORY}))));
    let text: String = streamed.iter().map(|line| line["response"].as_str().unwrap()).collect();
    assert_eq!(text, openai);
    ember.stop();
}

#[test]
fn options_and_formats_are_honoured() {
    let ember = serving();
    let client = ember.client();
    let generate = |with: Value| whole(&client, "/api/generate", request(with));
    let free = generate(json!({"prompt": STORY}))["response"].as_str().unwrap().to_owned();
    let stop: String = free.chars().skip(10).take(4).collect();
    let stopped =
        generate(json!({"prompt": STORY, "options": {"temperature": 0, "repeat_penalty": 1, "stop": [stop]}}));
    assert_eq!(stopped["response"], free.split(stop.as_str()).next().unwrap());
    assert_eq!(stopped["done_reason"], "stop");
    let seeded = |seed: u32| {
        let options = json!({"temperature": 1.5, "num_predict": 12, "seed": seed});
        generate(json!({"prompt": STORY, "options": options}))["response"].clone()
    };
    assert_eq!(seeded(3), seeded(3));
    assert!((4..8).any(|seed| seeded(seed) != seeded(3)), "the seed changes nothing");

    let words = "one two one two one two one two one two one two";
    let raw = |penalty: f32| {
        let options = json!({"temperature": 0, "num_predict": 12, "repeat_penalty": penalty});
        generate(json!({"prompt": words, "raw": true, "options": options}))["response"].clone()
    };
    assert_ne!(raw(1.0), raw(2.0), "a penalty changes what is repeated");

    let schema = json!({"type": "object", "properties": {"legs": {"enum": [2, 4]}}, "required": ["legs"], "additionalProperties": false});
    let cat = generate(json!({"prompt": "How many legs has a cat?", "format": schema}));
    let cat: Value = serde_json::from_str(cat["response"].as_str().unwrap()).unwrap();
    assert!(cat["legs"] == 2 || cat["legs"] == 4, "{cat}");
    let object = generate(json!({"prompt": "A cat as JSON.", "format": "json"}));
    assert!(object["response"].as_str().unwrap().trim_start().starts_with('{'), "{object}");

    let logged = generate(json!({"prompt": STORY, "logprobs": true, "top_logprobs": 2}));
    assert_eq!(logged["logprobs"].as_array().map(Vec::len), Some(24));
    assert_eq!(logged["logprobs"][0]["top_logprobs"].as_array().map(Vec::len), Some(2));
    let system = |system: &str| generate(json!({"prompt": "Hello.", "system": system}))["prompt_eval_count"].as_u64();
    assert!(system("You are a pirate who only ever speaks of treasure.") > system("Hi."));
    ember.stop();
}

#[test]
fn vectors_are_those_of_openais_words() {
    let ember = serving();
    let client = ember.client();
    let openai =
        client.post("/v1/embeddings", &json!({"model": "vectors", "input": ["a cat", "a law"]})).expect(200).json();
    let embed = |with: Value| {
        let mut request = json!({"model": "vectors:latest"});
        request.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
        client.post("/api/embed", &request)
    };
    let reply = embed(json!({"input": ["a cat", "a law"]})).expect(200).json();
    for index in 0..2 {
        assert_eq!(reply["embeddings"][index], openai["data"][index]["embedding"]);
    }
    assert_eq!(reply["prompt_eval_count"], openai["usage"]["prompt_tokens"]);
    assert!(reply["total_duration"].as_u64() > reply["load_duration"].as_u64(), "{}", reply["total_duration"]);
    let long = "a cat and a law ".repeat(40);
    assert_eq!(embed(json!({"input": long})).expect(200).json()["prompt_eval_count"], 64);
    assert!(error(&embed(json!({"input": long, "truncate": false})), 400).contains("context"));
    assert!(error(&embed(json!({"input": "a", "dimensions": 7})), 400).contains("dimensions"));
    ember.stop();
}

#[test]
fn functions_are_listed_as_models() {
    let ember = serving();
    let client = ember.client();
    let key = ember.run(&["key", "create", "--name", "app", "--functions", "assistant"]).ok();
    let app = client.with_key(key.trim());
    let names = |listed: Value| -> Vec<String> {
        listed["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(client.get("/api/tags").expect(200).json()), ["assistant:latest", "vectors:latest"]);
    let tags = app.get("/api/tags").expect(200).json();
    assert_eq!(names(tags.clone()), ["assistant:latest"]);
    assert_eq!(tags["models"][0]["size"], 98_362_432);
    assert_eq!(tags["models"][0]["digest"], "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53");

    let loaded = whole(&app, "/api/generate", json!({"model": "assistant"}));
    assert_eq!((&loaded["done_reason"], &loaded["response"]), (&json!("load"), &json!("")));
    let up = app.get("/api/ps").expect(200).json();
    assert_eq!(names(up.clone()), ["assistant:latest"]);
    assert!(up["models"][0]["size"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{up}");
    assert!(up["models"][0]["expires_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{up}");
    let shown = app.post("/api/show", &json!({"model": "assistant"})).expect(200).json();
    assert_eq!(shown["model_info"]["general.architecture"], "llama");
    assert_eq!(shown["model_info"]["llama.embedding_length"], 576);
    assert_eq!(
        (&shown["details"]["parameter_size"], &shown["capabilities"][0]),
        (&json!("134.52M"), &json!("completion"))
    );

    let unload = json!({"model": "assistant", "keep_alive": 0});
    assert!(error(&app.post("/api/generate", &unload), 403).contains("admin"));
    assert_eq!(whole(&client, "/api/generate", unload)["done_reason"], "unload");
    assert_eq!(names(client.get("/api/ps").expect(200).json()), [""; 0]);
    assert!(app.get("/api/version").expect(200).json()["version"].as_str().is_some_and(|v| v.starts_with("0.")));
    ember.stop();
}

#[test]
fn errors_are_a_text() {
    let ember = serving();
    let client = ember.client();
    assert!(error(&client.without_key().get("/api/tags"), 401).contains("key"));
    assert!(
        error(
            &client.post("/api/chat", &json!({"model": "nobody", "messages": [{"role": "user", "content": "x"}]})),
            404
        )
        .contains("nobody")
    );
    assert!(error(&client.post("/api/pull", &json!({})), 404).contains("/api/pull"));
    assert!(error(&client.get("/api/chat"), 405).contains("POST"));
    assert!(error(&client.post_bytes("/api/chat", "application/json", b"{"), 400).contains("JSON"));
    assert!(
        error(&client.post("/api/generate", &request(json!({"prompt": "x", "think": true}))), 400).contains("`think`")
    );
    let long = "lighthouse ".repeat(4000);
    assert!(error(&client.post("/api/chat", &says(&long)), 400).contains("context"));
    let vectors = json!({"model": "vectors", "prompt": "x"});
    assert!(error(&client.post("/api/generate", &vectors), 422).contains("text"));
    ember.stop();
}

#[test]
fn a_request_is_billed_in_any_words() {
    let ember = serving();
    let key = ember.run(&["key", "create", "--name", "app"]).ok();
    let app = ember.client().with_key(key.trim());
    let chat = whole(&app, "/api/chat", says("Hello."));
    let streamed = lines(&app.post("/api/generate", &request(json!({"prompt": "Hello."}))));
    let embedded = app.post("/api/embed", &json!({"model": "vectors", "input": "a cat"})).expect(200).json();
    let loaded = app.post("/api/generate", &json!({"model": "vectors"})).expect(200);
    let receipts = [&chat["ember"], &streamed.last().unwrap()["ember"], &embedded["ember"]];
    for receipt in receipts {
        let id = receipt["request_id"].as_str().unwrap_or_else(|| panic!("no receipt in {receipt}"));
        let record = until("the ledger has it", || ember.ledger().into_iter().find(|record| record["request"] == id));
        assert_eq!((&record["cost_nanos"], &record["outcome"]), (&receipt["cost_nanos"], &json!("completed")));
        assert!(record["cost_nanos"].as_u64() > Some(200), "{record}");
    }
    let id = loaded.header("x-request-id");
    let load = until("the ledger has it", || ember.ledger().into_iter().find(|record| record["request"] == id));
    assert_eq!((&load["key"], &load["status"]), (&json!("app"), &json!(200)));
    ember.stop();
}
