//! Other people's clients, unmodified, against the real server; and everything that openapi.yaml says, by schemathesis.
//!
//! The scripts lie in `tests/clients`; `make clients` installs what they need, pinned, below `target/clients`.

use std::{path::PathBuf, process::Command};
use tests::{Ember, Function, Run, assistant, tree};

/// A program of the clients' environment.
fn installed(program: &str) -> PathBuf {
    let path = tree::root().join("target/clients/bin").join(program);
    assert!(path.is_file(), "{} is not there: run `make clients`", path.display());
    path
}

/// The functions that the scripts call.
fn serving() -> Ember {
    let narrow = Function::named("narrow").scale("concurrency = 1").scale("queue = 1");
    Ember::serving(&assistant()).with(&Function::named("vectors").task("embedding")).with(&narrow)
}

/// Runs a script as a user does who has set address, key and CA; each of its steps says so.
#[track_caller]
fn run(ember: &Ember, script: &str, variables: &[(&str, &str)]) -> String {
    let mut python = Command::new(installed("python"));
    python.arg("-W").arg("error::DeprecationWarning:__main__").arg(tree::root().join("tests/clients").join(script));
    python.env("SSL_CERT_FILE", ember.data().join("tls/ca.pem")).envs(variables.iter().copied());
    Run::of(&mut python).ok()
}

fn key(ember: &Ember, name: &str, with: &[&str]) -> String {
    ember.run(&[&["key", "create", "--name", name], with].concat()).ok().trim().to_owned()
}

#[test]
fn openais_library() {
    let ember = serving();
    let base = format!("https://{}/v1", ember.address());
    let (limited, poor) =
        (key(&ember, "limited", &["--rpm", "20"]), key(&ember, "poor", &["--budget", "0.000000001/month"]));
    let narrow = key(&ember, "narrow", &["--functions", "narrow"]);
    let variables = [
        ("OPENAI_BASE_URL", base.as_str()),
        ("OPENAI_API_KEY", &ember.admin_key()),
        ("KEY_RPM", &limited),
        ("KEY_POOR", &poor),
        ("KEY_NARROW", &narrow),
    ];
    let said = run(&ember, "openai_client.py", &variables);
    assert_eq!(said.lines().filter(|line| line.starts_with("ok ")).count(), 10, "{said}");
    ember.stop();
}

#[test]
fn ollamas_library() {
    let ember = serving();
    let host = format!("https://{}", ember.address());
    let key = key(&ember, "app", &[]);
    let said = run(&ember, "ollama_client.py", &[("OLLAMA_HOST", &host), ("OLLAMA_API_KEY", &key)]);
    assert_eq!(said.lines().filter(|line| line.starts_with("ok ")).count(), 7, "{said}");
    ember.stop();
}

#[test]
fn langchains_library() {
    let ember = serving();
    let base = format!("https://{}/v1", ember.address());
    let key = key(&ember, "app", &[]);
    let said = run(&ember, "langchain_client.py", &[("OPENAI_BASE_URL", &base), ("OPENAI_API_KEY", &key)]);
    assert_eq!(said.lines().filter(|line| line.starts_with("ok ")).count(), 4, "{said}");
    ember.stop();
}

#[test]
fn everything_is_answered_as_documented() {
    // What is said does not matter, so it is said by a small model; and many requests say nothing of how long it may be.
    let ember = Ember::start();
    let tiny = ember.scratch().join("tiny.gguf");
    tests_synthetic::write(&tree::model(), &tiny, tests_synthetic::Sizes::TINY).expect("write a model");
    let on_tiny = |name: &str| Function::named(name).model(tiny.display()).limit("output_tokens = 8");
    let ember = ember.with(&on_tiny("assistant")).with(&on_tiny("vectors").task("embedding"));
    let base = format!("https://{}", ember.address());
    let served = ember.client().without_key().get("/openapi.yaml").expect(200);
    assert_eq!(String::from_utf8_lossy(&served.body), tree::text("docs/openapi.yaml"));

    let mut schemathesis = Command::new(installed("schemathesis"));
    schemathesis.current_dir(ember.scratch()).arg("run").arg(format!("{base}/openapi.yaml"));
    schemathesis.args(["--header", &format!("Authorization: Bearer {}", ember.admin_key())]);
    schemathesis.arg("--tls-verify").arg(ember.data().join("tls/ca.pem"));
    schemathesis.args(["--phases", "examples,coverage,fuzzing", "--max-examples", "12", "--seed", "1"]);
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance";
    schemathesis.args(["--checks", checks, "--workers", "1", "--no-color", "--generation-database", "none"]);
    Run::of(&mut schemathesis).ok();
    ember.stop();
}
