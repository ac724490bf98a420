//! `emberd health`: whether the service below a data folder answers, asked as a client asks.
//!
//! ```text
//!  DIR/address ─▶ GET /health ─▶ with --answer: GET /ember/v1/functions ─▶ is each that served before among them?
//!                     one after the other, readiest first: one token of a function ─▶ the first that answers is enough
//!                                                               └─ silent: stopped before another is asked
//! ```
//! A request has [`REQUEST_MAX`], a function half of the time that is left, which it may need to load; all of it what
//! `--within` says: who asks has given it up by then. What served before is what the server noted when the update was
//! applied (`DIR/server/served`), or else whatever is stored.
//!
//! PID 1 of the appliance runs it, and trusts a new version of Ember by it.

use crate::{
    arguments::Health,
    exit::Failure,
    own::{Body, Refused, Service},
    setup::SERVER_FILES,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

/// Longest for a request that loads nothing.
const REQUEST_MAX: Duration = Duration::from_secs(100);
/// Functions that are asked before the service counts as failing.
const FUNCTIONS_MAX: usize = 8;
/// Names that are told of those that are not served.
const NAMES_TOLD_MAX: usize = 8;
/// Tiers of a function, the readiest first.
const TIERS: [&str; 4] = ["running", "parked", "stored", "cold"];

/// Asks, and prints what answered.
pub(crate) fn run(flags: &Health) -> Result<(), Failure> {
    let data = Path::new(&flags.data);
    let service = Service::find(data, Instant::now() + Duration::from_secs(flags.within))?;
    service.ask("/health", None, REQUEST_MAX).map_err(failed)?;
    let said = match flags.answer {
        false => "the server answers".to_owned(),
        true => match answer(&service, data)? {
            Some(function) => format!("function {function} answers"),
            None => "the server answers; no function is deployed".to_owned(),
        },
    };
    writeln!(io::stdout().lock(), "{said}").map_err(|source| Failure::io("print", "stdout", source))
}

/// The first function that answers, unless none was ever deployed below `data`.
fn answer(service: &Service, data: &Path) -> Result<Option<String>, Failure> {
    let mut listed = service.list("/ember/v1/functions", REQUEST_MAX).map_err(failed)?;
    let stored = stored(&data.join(SERVER_FILES.functions));
    let before = fs::read_to_string(data.join(SERVER_FILES.served)).ok();
    let missing = missing(&stored, before.as_deref(), &listed);
    if !missing.is_empty() {
        return Err(failed(not_served(&missing)));
    }
    listed.sort_by_key(readiness);
    let mut fault = None;
    for question in listed.iter().filter_map(question).take(FUNCTIONS_MAX) {
        match ask(service, &question) {
            Ok(()) => return Ok(Some(question.0.to_owned())),
            Err(error) => fault = Some(error),
        }
    }
    fault.map_or(Ok(None), |fault| Err(failed(fault)))
}

/// Has a function compute one token. What has not within half of the time that is left is stopped, so that it does not go on
/// loading beside the next.
fn ask(service: &Service, (name, path, body): &(&str, &'static str, Value)) -> Result<(), Refused> {
    let asked = service.ask(path, Some(Body::Json(body)), service.left() / 2);
    if let Err(Refused::Silent(_)) = &asked {
        // One that cannot be stopped is not worse than one that was not.
        let _ = service.ask(&format!("/ember/v1/functions/{name}/stop"), Some(Body::Json(&json!({}))), REQUEST_MAX);
    }
    asked.map(drop)
}

/// Those that served before, or of which nobody knows, are stored still, and are not served.
fn missing(stored: &BTreeSet<String>, before: Option<&str>, listed: &[Value]) -> Vec<String> {
    let is_served = |name: &&String| listed.iter().any(|function| function["name"] == name.as_str());
    let served_before = |name: &&String| before.is_none_or(|before| before.lines().any(|line| line == name.as_str()));
    stored.iter().filter(served_before).filter(|name| !is_served(name)).cloned().collect()
}

fn not_served(missing: &[String]) -> String {
    let told = missing.iter().take(NAMES_TOLD_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = missing.len().saturating_sub(NAMES_TOLD_MAX);
    let and_more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("stored and not served: {told}{and_more}")
}

/// Functions whose manifests are kept in a folder.
fn stored(folder: &Path) -> BTreeSet<String> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let name = |file: fs::DirEntry| Some(file.file_name().to_str()?.strip_suffix(".toml")?.to_owned());
    files.filter_map(name).collect()
}

/// By tier: the readiest first.
fn readiness(function: &Value) -> usize {
    TIERS.iter().position(|tier| function["tier"] == *tier).unwrap_or(TIERS.len())
}

/// A function's name, and the least that it can be asked.
fn question(function: &Value) -> Option<(&str, &'static str, Value)> {
    let name = function["name"].as_str()?;
    let messages = json!([{ "role": "user", "content": "Hello" }]);
    let (path, body) = match function["task"].as_str()? {
        "embedding" => ("/v1/embeddings", json!({ "model": name, "input": "Hello" })),
        "completion" => ("/v1/completions", json!({ "model": name, "prompt": "Hello", "max_tokens": 1 })),
        _ => ("/v1/chat/completions", json!({ "model": name, "messages": messages, "max_tokens": 1 })),
    };
    Some((name, path, body))
}

fn failed(reason: impl ToString) -> Failure {
    Failure::Service(format!("health: {}", reason.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_found() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["one.toml", "two.toml", "two.toml.new"] {
            fs::write(folder.path().join(file), "no manifest").unwrap();
        }
        assert_eq!(stored(folder.path()), ["one", "two"].map(str::to_owned).into());
        assert!(stored(&folder.path().join("absent")).is_empty());
    }

    #[test]
    fn whatever_served_before_must_serve_again() {
        let stored = ["a", "b", "broken"].map(str::to_owned).into();
        let listed = [json!({ "name": "a" })];
        // Nobody noted what served: all that is stored must.
        assert_eq!(missing(&stored, None, &listed), ["b", "broken"]);
        assert_eq!(missing(&stored, Some("a\nb\n"), &listed), ["b"]);
        // One that was removed since is not asked for, and neither is one that did not serve before.
        assert!(missing(&stored, Some("a\nremoved\n"), &listed).is_empty());
        assert_eq!(missing(&stored, Some("a\nb\n"), &[]), ["a", "b"]);
    }

    #[test]
    fn those_that_are_not_served_are_named() {
        let names: Vec<_> = (0..10).map(|at| format!("f{at}")).collect();
        assert_eq!(not_served(&names[..2]), "stored and not served: f0, f1");
        assert!(not_served(&names).ends_with("f6, f7 and 2 more"));
    }

    #[test]
    fn the_readiest_is_asked_first() {
        let function = |name: &str, tier: &str| json!({ "name": name, "tier": tier });
        let mut all = [function("a", "cold"), function("b", "stored"), function("c", "running"), function("d", "new")];
        all.sort_by_key(readiness);
        assert_eq!(all.each_ref().map(|function| function["name"].as_str().unwrap()), ["c", "b", "a", "d"]);
    }

    #[test]
    fn each_task_is_asked_what_it_answers() {
        let path = |task: &str| question(&json!({ "name": "f", "task": task })).unwrap().1;
        assert_eq!(
            ["chat", "completion", "embedding"].map(path),
            ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
        );
        assert_eq!(question(&json!({ "task": "chat" })), None);
    }
}
