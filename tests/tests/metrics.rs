//! Metrics: what Prometheus reads is what the ledger has, passes promtool, is bounded whatever callers send, and reading it
//! neither wakes a function nor keeps one. And the file for whoever helps, which has the same page.

use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    process::{Command, Stdio},
};
use tests::{Client, Ember, Function, assistant, chat, tree, until};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0";

/// A page of samples: values by name and labels, as they are written.
struct Page(BTreeMap<String, f64>);

impl Page {
    #[track_caller]
    fn read(client: &Client) -> Self {
        let body = client.with_header("accept", OPENMETRICS).get("/metrics").expect(200).body;
        let text = String::from_utf8(body).expect("a page is text");
        assert!(text.ends_with("# EOF\n"), "{text}");
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            (series.to_owned(), value.parse().unwrap_or_else(|_| panic!("a number in {line}")))
        };
        Self(text.lines().filter(|line| !line.starts_with('#')).map(sample).collect())
    }

    /// The sum of all series of a name whose labels hold all of these.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let is_meant = |series: &str| {
            let rest = series.strip_prefix(name).unwrap_or("x");
            (rest.is_empty() || rest.starts_with('{')) && labels.iter().all(|label| rest.contains(label))
        };
        self.0.iter().filter(|(series, _)| is_meant(series)).map(|(_, value)| value).sum()
    }

    fn series(&self) -> BTreeSet<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

/// Has promtool look at a page in the format that it reads.
fn lint(client: &Client) {
    let page = client.with_header("accept", "text/plain;version=0.0.4").get("/metrics").expect(200);
    assert_eq!(page.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let mut promtool = Command::new(tree::prometheus("promtool"));
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().expect("start promtool");
    promtool.stdin.take().unwrap().write_all(&page.body).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "promtool: {said}\n{}", String::from_utf8_lossy(&page.body));
}

fn total(records: &[Value], field: &str) -> f64 {
    records.iter().map(|record| record[field].as_u64().expect("a number") as f64).sum()
}

fn telemetry_key(ember: &Ember) -> Client {
    let key = ember.run(&["key", "create", "--name", "prometheus", "--telemetry"]).ok();
    ember.client().with_key(key.trim())
}

#[test]
fn what_is_counted_is_what_the_ledger_has() {
    let ember = Ember::serving(&assistant());
    let (admin, prometheus) = (ember.client(), telemetry_key(&ember));
    ember.run(&["budget", "set", "function:assistant", "5.00/month"]).ok();
    for message in ["Hi.", "Hello.", "Good day."] {
        admin.ask(&chat("assistant", message, json!({"max_tokens": 6}))).expect(200);
    }
    admin.ask_streamed(&chat("assistant", "Hi.", json!({"max_tokens": 3}))).text();
    admin.post("/v1/completions", &json!({"model": "assistant", "prompt": "Once", "max_tokens": 2})).expect(200);
    admin.post("/tokenize", &json!({"model": "assistant", "content": "one two"})).expect(200);
    admin.ask(&chat("assistant", "Hi.", json!({"max_tokens": 100_000}))).error(400);
    admin.ask(&chat("nobody", "Hi.", json!({}))).error(404);
    admin.without_key().get("/v1/models").error(401);

    let records = until("the ledger has all", || Some(ember.ledger()).filter(|records| records.len() == 7));
    let page = until("the rings are empty", || {
        Some(Page::read(&prometheus)).filter(|page| page.sum("ember_ledger_lag_entries", &[]) == 0.0)
    });
    let of = |name: &str| page.sum(name, &["function=\"assistant\""]);
    for (name, field) in [
        ("ember_cost_nanos_total", "cost_nanos"),
        ("ember_request_body_bytes_total", "bytes_in"),
        ("ember_response_body_bytes_total", "bytes_out"),
        ("ember_tokens_cached_total", "tokens_cached"),
    ] {
        assert_eq!(of(name), total(&records, field), "{name}");
    }
    let genai = |name: &str, label: &str| page.sum(name, &["gen_ai_request_model=\"assistant\"", label]);
    let tokens = |kind: &str| genai("gen_ai_client_token_usage_sum", &format!("gen_ai_token_type=\"{kind}\""));
    assert_eq!([tokens("input"), tokens("output")], ["tokens_in", "tokens_out"].map(|field| total(&records, field)));
    let count = |outcome: &str| records.iter().filter(|record| record["outcome"] == outcome).count() as f64;
    for outcome in ["completed", "refused"] {
        let labels = [format!("outcome=\"{outcome}\"")];
        assert_eq!(page.sum("ember_requests_total", &[&labels[0]]), count(outcome), "{outcome}");
    }
    let duration = "gen_ai_server_request_duration_seconds_count";
    assert_eq!(genai(duration, "gen_ai_operation_name=\"chat\""), 5.0);
    assert_eq!(genai(duration, "gen_ai_operation_name=\"text_completion\""), 1.0);
    assert_eq!(genai(duration, "error_type=\"refused\""), 1.0);
    let first = genai("gen_ai_server_time_to_first_token_seconds_sum", "");
    let spoke = |record: &&Value| record["outcome"] == "completed";
    let told: f64 = records.iter().filter(spoke).map(|record| record["first_text_us"].as_f64().unwrap() / 1e6).sum();
    assert!((first - told).abs() < 1e-6, "{first} {told}");
    assert_eq!(page.sum("ember_ledger_entries_total", &["stage=\"closed\""]), 7.0);
    assert_eq!(page.sum("ember_ledger_entries_total", &["stage=\"open\""]), 7.0);
    assert_eq!(page.sum("ember_ledger_dropped_total", &[]), 0.0);
    for reason in ["model_not_found", "invalid_api_key"] {
        assert_eq!(page.sum("ember_refusals_total", &[&format!("reason=\"{reason}\"")]), 1.0, "{reason}");
    }

    let budget = |what: &str| page.sum(&format!("ember_budget_{what}_nanos"), &["of=\"function:assistant\""]);
    assert_eq!([budget("limit"), budget("reserved")], [5e9, 0.0]);
    assert_eq!(budget("spent"), total(&records, "cost_nanos"));
    assert_eq!(page.sum("ember_functions", &["tier=\"running\""]), 1.0);
    assert_eq!(page.sum("ember_instances", &["state=\"idle\""]), 1.0);
    let wakes = page.sum("ember_wakes_total", &[]);
    let parts = page.sum("ember_wake_part_seconds_total", &[]);
    assert!(wakes == 1.0 && parts > 0.0, "{wakes} {parts}");
    assert!(page.sum("ember_memory_leased_bytes", &[]) <= page.sum("ember_memory_bytes", &[]));
    assert_eq!(page.sum("ember_part_up", &[]), 2.0);
    lint(&prometheus);
    ember.stop();
}

#[test]
fn who_may_read_and_what_else_such_a_key_may_do() {
    let ember = Ember::serving(&assistant());
    let (admin, prometheus) = (ember.client(), telemetry_key(&ember));
    let user = ember.run(&["key", "create", "--name", "app"]).ok();
    for client in [&admin, &prometheus] {
        let page = client.with_header("accept", OPENMETRICS).get("/metrics").expect(200);
        assert_eq!(page.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    }
    admin.with_key(user.trim()).get("/metrics").error(403);
    admin.without_key().get("/metrics").error(401);
    admin.post("/metrics", &json!({})).error(405);
    prometheus.ask(&chat("assistant", "Hi.", json!({}))).error(403);
    prometheus.get("/ember/v1/keys").error(403);
    assert_eq!(prometheus.get("/v1/models").expect(200).json()["data"], json!([]));
    ember.stop();
}

/// Read all the while, it goes down its tiers as if nobody had looked; and stays there.
#[test]
fn reading_neither_wakes_a_function_nor_keeps_it() {
    let function = Function::named("assistant").scale("keep_warm = \"1s\"").scale("park = \"1s\"");
    let ember = Ember::serving(&function).awake("assistant");
    let prometheus = telemetry_key(&ember);
    let tier = |page: &Page, tier: &str| page.sum("ember_functions", &[&format!("tier=\"{tier}\"")]);
    assert_eq!(tier(&Page::read(&prometheus), "running"), 1.0);
    until("it is stored, though looked at", || (tier(&Page::read(&prometheus), "stored") == 1.0).then_some(()));
    let before = Page::read(&prometheus);
    (0..20).for_each(|_| lint(&prometheus));
    let after = Page::read(&prometheus);
    for page in [&before, &after] {
        assert_eq!(
            (tier(page, "stored"), page.sum("ember_instances", &[]), page.sum("ember_wakes_total", &[])),
            (1.0, 0.0, 1.0)
        );
    }
    ember.stop();
}

#[test]
fn what_callers_send_grows_no_series() {
    let ember = Ember::serving(&assistant());
    let (admin, prometheus) = (ember.client(), telemetry_key(&ember));
    let keys: Vec<_> =
        (0..5).map(|n| ember.run(&["key", "create", "--name", &format!("app{n}")]).ok().trim().to_owned()).collect();
    let hostile = |n: usize| {
        let name = format!("{n}\"}}\n# EOF\nx{{y=\"\\{}", "é".repeat(n % 7));
        admin.ask(&chat(&name, "Hi.", json!({}))).error(404);
        admin.get(&format!("/v1/models/a{n}")).error(404);
        admin.get(&format!("/nothing/{n}")).error(404);
        admin.with_key(&format!("ember-{n}")).get("/v1/models").error(401);
        admin.with_header("x-ember-class", &format!("class{n}")).get("/v1/models");
        let asked = admin.with_key(&keys[n % keys.len()]);
        asked.post("/tokenize", &json!({"model": "assistant", "content": name})).expect(200);
    };
    hostile(0);
    hostile(1);
    let before = Page::read(&prometheus);
    (2..60).for_each(hostile);
    let after = Page::read(&prometheus);
    assert_eq!(before.series(), after.series());
    assert_eq!(after.sum("ember_requests_total", &["function=\"assistant\"", "outcome=\"completed\""]), 60.0);
    lint(&prometheus);
    ember.stop();
}

#[test]
fn a_support_file_tells_of_the_box_and_of_nobody() {
    let ember = Ember::serving(&assistant().system("The password is swordfish.")).awake("assistant");
    let key =
        ember.run(&["key", "create", "--name", "alice", "--project", "wonderland", "--budget", "5.00/month"]).ok();
    ember
        .client()
        .with_key(key.trim())
        .ask(&chat("assistant", "Say jabberwocky.", json!({"max_tokens": 4})))
        .expect(200);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("support.json");
    ember.run(&["support", "--out", out.to_str().unwrap()]).ok();
    let text = fs::read_to_string(&out).unwrap();
    let bundle: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(bundle["server"]["functions"][0]["name"], "assistant");
    assert_eq!(bundle["server"]["instances"][0]["function"], "assistant");
    assert!(text.contains("ember_budget_limit_nanos{of=\\\"key:1\\\""), "{text}");
    assert!(bundle["checks"].as_array().unwrap().iter().all(|check| check["state"] != "missing"), "{text}");
    for secret in ["swordfish", "alice", "wonderland", "jabberwocky", key.trim(), &ember.admin_key()] {
        assert!(!text.contains(secret), "{secret}");
    }
    ember.stop();
}
