//! A real Prometheus finds boxes through `ember fleet sd` and scrapes them as the fleet; the alerting rules and the dashboard that
//! come with Ember hold.

use crate::Owner;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tests::{Ember, Network, Run, tree, until};

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

/// The boxes that Prometheus reaches, by name.
fn boxes_up(prometheus: SocketAddr) -> Option<BTreeSet<String>> {
    let reply = get(prometheus, "/api/v1/query?query=up%3D%3D1")?;
    let series = reply["data"]["result"].as_array()?;
    series.iter().map(|series| series["metric"]["box"].as_str().map(str::to_owned)).collect()
}

/// Prometheus, configured as docs/fleet.md says but for its intervals.
fn prometheus(folder: &Path, discovery: &str) -> (Running, SocketAddr) {
    let config = format!(
        "global: {{ scrape_interval: 1s }}\nscrape_configs:\n  - job_name: ember\n    scheme: https\n    tls_config: {{ ca_file: {0}/ca.pem, cert_file: {0}/client.pem, key_file: {0}/client.key }}\n    http_sd_configs: [{{ url: {discovery}/, refresh_interval: 1s }}]\n    sample_limit: 50000\n    label_limit: 32\n    body_size_limit: 16MB\n",
        folder.display()
    );
    fs::write(folder.join("prometheus.yml"), config).unwrap();
    // Nobody else is in this network.
    let address = SocketAddr::from((Network::front(), 9090));
    let mut prometheus = Command::new(tree::prometheus("prometheus"));
    prometheus.arg(format!("--config.file={}", folder.join("prometheus.yml").display()));
    prometheus.arg(format!("--storage.tsdb.path={}", folder.join("prometheus").display()));
    (start(prometheus.arg(format!("--web.listen-address={address}"))), address)
}

#[test]
fn a_real_prometheus_finds_and_scrapes_three_boxes_over_a_network() {
    Network::with(3, |network| {
        let owner = Owner::new();
        let start_box = |number: usize| {
            let (name, address) = (format!("shop-{number}"), Network::address(number).to_string());
            let enrolled = owner.json(&["enrol", &name, "--host", &address]);
            let given = Path::new(enrolled["folder"].as_str().unwrap());
            let ember = network.start(number, "", |folder| crate::give(given, folder));
            owner.run(&["add", &name, &format!("https://{address}:9443")]).ok();
            ember
        };
        let mut boxes: Vec<Ember> = (0..3).map(start_box).collect();
        let mut discovery = start(&mut owner.command(&["sd", "--listen", "127.0.0.1:0"]));
        let mut ready = String::new();
        BufReader::new(discovery.0.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let url = ready.trim().strip_prefix("ready ").unwrap_or_else(|| panic!("{ready}"));
        let (_prometheus, address) = prometheus(&owner.folder(), url);

        let names = |count: usize| move || boxes_up(address).filter(|names| names.len() == count);
        let found = until("Prometheus scrapes three boxes", names(3));
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["shop-0", "shop-1", "shop-2"]);
        let versions = || {
            let reply = get(address, "/api/v1/query?query=ember_build_info")?;
            let series = reply["data"]["result"].as_array()?.clone();
            let told = |series: &Value| series["metric"]["version"].as_str().map(str::to_owned);
            series.iter().map(told).collect::<Option<Vec<_>>>().filter(|told| told.len() == 3)
        };
        assert_eq!(until("Prometheus has what boxes tell", versions), [env!("CARGO_PKG_VERSION"); 3]);

        boxes.pop().unwrap().stop();
        let found = until("Prometheus misses one", names(2));
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["shop-0", "shop-1"]);
        owner.run(&["pull", "shop-0", "shop-1"]).ok();
        crate::haproxy::stop(boxes);
    });
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
