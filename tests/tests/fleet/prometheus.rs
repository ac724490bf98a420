//! A real Prometheus finds boxes through `ember fleet sd` and scrapes them as the fleet; the alerting rules and the dashboard that
//! come with Ember hold.

use crate::{Owner, shop::Mall};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tests::{Ember, Run, tree, until};

const ALERTS: &str = "docs/fleet/alerts.yaml";
const DASHBOARD: &str = "docs/fleet/dashboard.json";

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has told by then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(command: &mut Command) -> Running {
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    Running(spawned.unwrap_or_else(|error| panic!("start {command:?}: {error}")))
}

/// The names of metrics in an expression, without what histograms and counters add.
fn metrics_in(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    let is_metric = |word: &&str| {
        word.starts_with("ember_") || word.starts_with("gen_ai_client") || word.starts_with("gen_ai_server")
    };
    words.filter(is_metric).map(base).collect()
}

fn base(name: &str) -> String {
    let suffix = ["_bucket", "_sum", "_count", "_total"].into_iter().find_map(|suffix| name.strip_suffix(suffix));
    suffix.unwrap_or(name).to_owned()
}

/// The body of a small plain answer, if there is one.
fn get(address: SocketAddr, path: &str) -> Option<Value> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").as_bytes()).ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    serde_json::from_str(reply.split_once("\r\n\r\n")?.1).ok()
}

#[test]
fn a_real_prometheus_finds_and_scrapes_the_boxes() {
    let (owner, mall) = (Owner::new(), Mall::open());
    let shops = owner.shops(&mall, 2, 1);
    let given = owner.enrol("shop-7");
    let ember = Ember::prepared("telemetry_listen = \"127.0.0.1:0\"\n", |folder| crate::give(&given, folder));
    let address = fs::read_to_string(ember.data().join("telemetry/address")).unwrap();
    owner.run(&["add", "shop-7", address.trim()]).ok();
    for shop in &shops {
        owner.run(&["enrol", &shop.name, "--host", "127.0.0.1", "--host", &shop.wire.address.ip().to_string()]).ok();
    }
    // What was enrolled anew is served after a start.
    let mut shops = shops;
    shops.iter_mut().for_each(|shop| {
        shop.stop();
        shop.start();
    });

    let mut discovery = start(&mut owner.command(&["sd", "--listen", "127.0.0.1:0"]));
    let mut ready = String::new();
    BufReader::new(discovery.0.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let url = ready.trim().strip_prefix("ready ").unwrap_or_else(|| panic!("{ready}"));
    let folder = owner.folder();
    let config = format!(
        "global: {{ scrape_interval: 1s }}\nscrape_configs:\n  - job_name: ember\n    scheme: https\n    tls_config: {{ ca_file: {0}/ca.pem, cert_file: {0}/client.pem, key_file: {0}/client.key }}\n    http_sd_configs: [{{ url: {url}/, refresh_interval: 1s }}]\n    sample_limit: 50000\n    label_limit: 32\n    body_size_limit: 16MB\n",
        folder.display()
    );
    fs::write(folder.join("prometheus.yml"), config).unwrap();
    // Free until Prometheus takes it: nothing else here asks for a port of this address.
    let port = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 254), 0)).unwrap().local_addr().unwrap();
    let mut prometheus = Command::new(tree::prometheus("prometheus"));
    prometheus.arg(format!("--config.file={}", folder.join("prometheus.yml").display()));
    prometheus.arg(format!("--storage.tsdb.path={}", folder.join("prometheus").display()));
    let _prometheus = start(prometheus.arg(format!("--web.listen-address={port}")));

    let boxes_up = || {
        let reply = get(port, "/api/v1/query?query=up%3D%3D1")?;
        let names = reply["data"]["result"]
            .as_array()?
            .iter()
            .map(|series| series["metric"]["box"].as_str().map(str::to_owned));
        names.collect::<Option<BTreeSet<_>>>().filter(|names| names.len() == 3)
    };
    let names = until("Prometheus scrapes three boxes", boxes_up);
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["shop-00", "shop-01", "shop-7"]);
    let build = || {
        get(port, "/api/v1/query?query=ember_build_info")?["data"]["result"][0]["metric"]["version"]
            .as_str()
            .map(str::to_owned)
    };
    assert_eq!(until("Prometheus has what the box tells", build), env!("CARGO_PKG_VERSION"));

    ember.stop();
}

#[test]
fn the_alerting_rules_hold() {
    let promtool = |arguments: &[&str]| {
        let run = Run::of(Command::new(tree::prometheus("promtool")).args(arguments).current_dir(tree::root()));
        assert_eq!(run.code, 0, "promtool {arguments:?}: {}{}", run.stdout, run.stderr);
    };
    promtool(&["check", "rules", ALERTS]);
    promtool(&["test", "rules", "docs/fleet/alerts-test.yaml"]);
}

#[test]
fn rules_and_dashboard_ask_for_what_boxes_tell() {
    let families = tree::text("appliance/telemetry/src/families.rs");
    let told: BTreeSet<&str> = families.split('"').skip(1).step_by(2).collect();
    let is_told = |name: &str| {
        let bare = ["_seconds", "_bytes"].into_iter().find_map(|unit| name.strip_suffix(unit)).unwrap_or(name);
        told.contains(name) || told.contains(bare)
    };
    let asked = metrics_in(&tree::text(ALERTS)).union(&metrics_in(&tree::text(DASHBOARD))).cloned().collect::<Vec<_>>();
    assert!(asked.len() > 20, "{asked:?}");
    let unknown: Vec<_> = asked.iter().filter(|name| !is_told(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(!is_told("ember_wishes"));
}

#[test]
fn the_dashboard_asks_what_prometheus_understands() {
    let dashboard: Value = serde_json::from_str(&tree::text(DASHBOARD)).unwrap();
    let targets = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let rules = targets.enumerate().map(|(number, target)| {
        let expression = target["expr"].as_str().unwrap().replace("$box", ".*");
        format!("  - record: panel:{number}\n    expr: {}\n", Value::from(expression))
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), format!("groups:\n- name: panels\n  rules:\n{}", rules.collect::<String>())).unwrap();
    let run = Run::of(Command::new(tree::prometheus("promtool")).args(["check", "rules"]).arg(file.path()));
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
}
