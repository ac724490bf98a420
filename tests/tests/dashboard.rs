//! The dashboard: its files by hand, what a key may learn of itself, and all of it in a headless Chromium.
//!
//! The scripts lie in `tests/browser`; `make browser` installs what they need, pinned, below `target/browser`, and Debian's
//! Chromium.

use serde_json::{Value, json};
use std::{
    path::PathBuf,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};
use tests::{Ember, Function, HANG, Run, assistant, chat, tree, until};

/// Python with what drives the browser.
fn python() -> PathBuf {
    let path = tree::root().join("target/browser/bin/python");
    assert!(path.is_file(), "{} is not there: run `make browser`", path.display());
    path
}

/// Runs a script of `tests/browser`.
#[track_caller]
fn browse(ember: &Ember, script: &str, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(python());
    command.arg(tree::root().join("tests/browser").join(script));
    command.env("EMBER_URL", format!("https://{}", ember.address())).env("KEY_ADMIN", ember.admin_key());
    // A page after the other, and each step ends itself.
    Run::within(10 * HANG, command.envs(variables.iter().copied())).ok()
}

fn key(ember: &Ember, name: &str, with: &[&str]) -> String {
    ember.run(&[&["key", "create", "--name", name], with].concat()).ok().trim().to_owned()
}

/// What curl says of a request: its protocol, its status, and the reply's head and body.
fn curl(ember: &Ember, with: &[&str]) -> String {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--include", "--cacert"]).arg(ember.data().join("tls/ca.pem"));
    Run::of(curl.args(with)).ok()
}

#[test]
fn its_files_need_no_key_and_come_with_their_policy() {
    let ember = Ember::start();
    let anyone = ember.client().without_key();
    let page = anyone.get("/").expect(200);
    let text = String::from_utf8(page.body.clone()).expect("UTF-8");
    assert_eq!(text, tree::text("appliance/ui/web/index.html"));
    for file in ["app.css", "app.js", "icon.svg"] {
        assert_eq!(
            anyone.get(&format!("/ui/{file}")).expect(200).body,
            tree::text(&format!("appliance/ui/web/{file}")).into_bytes()
        );
    }
    let url = format!("https://{}/", ember.address());
    for (version, line) in [("--http1.1", "HTTP/1.1 200"), ("--http2", "HTTP/2 200")] {
        let got = curl(&ember, &[version, &url]);
        let head = curl(&ember, &[version, "--head", &url]);
        assert!(got.starts_with(line) && got.ends_with(&text) && head.starts_with(line), "{head}");
        for held in [
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
        ] {
            assert!(got.contains(held) && head.contains(held), "{held}: {head}");
        }
        assert!(head.contains(&format!("content-length: {}", text.len())) && !head.contains("<html"), "{head}");
        let etag = head.lines().find_map(|line| line.strip_prefix("etag: ")).expect("an etag").trim().to_owned();
        let again = curl(&ember, &[version, "--header", &format!("if-none-match: {etag}"), &url]);
        assert!(again.contains(" 304") && !again.contains("<html"), "{again}");
    }
    for path in ["/ui/", "/ui/keys.json", "/ui/../admin.key", "/index.html", "/ui/app.js/"] {
        anyone.get(path).error(401);
        ember.client().get(path).error(404);
    }
    anyone.post("/", &json!({})).error(401);
    ember.client().post("/", &json!({})).error(405);
    ember.stop();
}

#[test]
fn a_key_learns_of_itself_and_of_nobody_else() {
    let ember = Ember::serving(&assistant());
    let own = |key: &str, path: &str| ember.client().with_key(key).get(&format!("/ember/v1/key{path}"));
    let (app, other) = (key(&ember, "app", &["--budget", "5.00/month", "--rpm", "60"]), key(&ember, "other", &[]));
    let metrics = key(&ember, "prometheus", &["--telemetry"]);
    let hello = chat("assistant", "Hello.", json!({"max_tokens": 2}));
    let receipt = ember.client().with_key(&app).ask(&hello).expect(200).json()["usage"]["ember"].clone();
    let (id, cost) = (receipt["request_id"].as_str().expect("a name"), &receipt["cost_nanos"]);
    until("the request is in the ledger", || (ember.ledger().len() == 1).then_some(()));
    let explained = until("and in its index", || {
        let reply = own(&app, &format!("/usage/{id}"));
        (reply.status == 200).then(|| reply.json())
    });
    assert_eq!((&explained["record"]["key"], &explained["record"]["cost_nanos"]), (&json!("app"), cost));

    let told = own(&app, "").expect(200).json();
    assert_eq!((&told["name"], &told["kind"], &told["rates"]["rpm"]), (&json!("app"), &json!("user"), &json!(60)));
    let budget = &told["budget"];
    assert_eq!((&budget["hard_nanos"], &budget["spent_nanos"]), (&json!(5_000_000_000_u64), cost));
    assert!(budget["resets_unix_ms"].as_u64() > explained["record"]["ended_unix_ms"].as_u64(), "{budget}");
    assert_eq!(own(&other, "").expect(200).json()["budget"], Value::Null);
    assert_eq!(own(&metrics, "").expect(200).json()["kind"], "telemetry");

    let sums = |key: &str| own(key, "/usage?by=key&since=1h").expect(200).json()["data"].clone();
    assert_eq!((&sums(&app)[0]["group"], &sums(&app)[0]["cost_nanos"]), (&json!("app"), cost));
    let records = own(&app, "/usage/records").expect(200).body;
    assert_eq!(serde_json::from_slice::<Value>(&records).expect("one record"), explained["record"]);
    for stranger in [other.as_str(), &metrics, &ember.admin_key()] {
        assert_eq!(sums(stranger), json!([]));
        assert_eq!(own(stranger, "/usage/records").expect(200).body, b"");
        own(stranger, &format!("/usage/{id}")).error(404);
    }
    own(&other, "/usage?key=app").error(400);
    own(&other, "/usage/records?key=app").error(400);
    ember.client().with_key(&app).get("/ember/v1/usage").error(403);
    // A key made again under the name is another's.
    ember.run(&["key", "revoke", "app"]).ok();
    let ended_s = explained["record"]["ended_unix_ms"].as_u64().expect("a time") / 1_000;
    let now_s = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    until("its second is over", || (now_s() > ended_s).then_some(()));
    let heir = key(&ember, "app", &[]);
    assert_eq!((sums(&heir), own(&heir, "/usage/records").expect(200).body), (json!([]), Vec::new()));
    own(&heir, &format!("/usage/{id}")).error(404);
    ember.client().without_key().get("/ember/v1/key").error(401);
    ember.stop();
}

#[test]
fn people_use_it_in_a_browser() {
    // A small model may go on to its most, whatever it was asked.
    let ember = Ember::serving(&assistant().limit("output_tokens = 150")).with(&Function::named("idle"));
    let app = key(&ember, "app", &["--budget", "5.00/month"]);
    ["assistant", "idle"].iter().for_each(|name| drop(ember.run(&["stop", name]).ok()));
    let said = browse(&ember, "dashboard.py", &[("KEY_APP", &app)]);
    assert_eq!(said.lines().filter(|line| line.starts_with("ok ")).count(), 14, "{said}");
    ember.stop();
}

/// Asks as two keys do, so that there is something to be seen.
#[test]
#[ignore = "writes docs/pictures: `make pictures`"]
fn pictures() {
    let ember = Ember::serving(&assistant()).with(&Function::named("shop")).with(&Function::named("notes"));
    let keys = [key(&ember, "app", &["--budget", "5.00/month"]), key(&ember, "web", &[])];
    for (turn, key) in keys.iter().cycle().take(6).enumerate() {
        let function = ["assistant", "shop"][turn / 3];
        let question = chat(function, "Name three things that glow.", json!({"max_tokens": 20 + 10 * turn}));
        ember.client().with_key(key).ask(&question).expect(200);
    }
    ember.run(&["stop", "assistant"]).ok();
    ember.run(&["park", "shop"]).ok();
    let pictures = tree::root().join("docs/pictures").display().to_string();
    println!("{}", browse(&ember, "pictures.py", &[("PICTURES", &pictures)]));
    ember.stop();
}
