//! `ember support`: one file to send to whoever helps, with what they would ask for and nothing of anybody's.
//!
//! ```text
//!  this machine: doctor's checks, kernel, memory, cores ─┐
//!  server: functions, instances, snapshots, models,      ├─ without prompts, without names of keys and projects ─▶ FILE.json
//!          updates, usage by function, /metrics          ┘
//! ```
//! Works without a server, as `doctor` does: what cannot be had is told with its reason, and the rest is written. Never
//! asked for: keys, records of requests, anything that was said.

use crate::{
    args::Support,
    client::Client,
    doctor,
    error::Error,
    output::{self, data},
    target::Target,
};
use sandbox_kernel::{machine::kernel_release, memory::host_bytes};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process, thread,
    time::{SystemTime, UNIX_EPOCH},
};

/// What is asked of a server, by the names that it has in the file.
const ASKED: [(&str, &str); 5] = [
    ("instances", "/ember/v1/instances"),
    ("snapshots", "/ember/v1/snapshots"),
    ("models", "/ember/v1/models"),
    ("update", "/ember/v1/update"),
    ("usage_24h", "/ember/v1/usage?by=function&since=24h"),
];

pub(crate) fn support(target: Result<Target, Error>, support: &Support) -> Result<(), Error> {
    let checks = doctor::checks(target.as_ref());
    let server = target.and_then(|target| Client::connect(&target)).map(|client| of_server(&client));
    let made = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let bundle = json!({
        "made_unix_s": made,
        "ember": env!("CARGO_PKG_VERSION"),
        "machine": machine(),
        "checks": checks,
        "server": part(server),
    });
    let text = format!("{bundle:#}\n");
    write_private(&support.out, &text).map_err(|source| Error::Write { path: support.out.clone(), source })?;
    output::note(&format!(
        "`{}` holds no keys, no prompts and no names of keys or projects; read it before you send it",
        support.out.display()
    ));
    Ok(())
}

/// Writes a file that only its owner reads, also where another was.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        // What it was to become is not there either way.
        let _ = fs::remove_file(&fresh);
    }
    written
}

fn machine() -> Value {
    json!({
        "kernel": kernel_release().map_err(|error| error.to_string()).unwrap_or_else(|error| error),
        "memory_bytes": host_bytes().ok(),
        "cores": thread::available_parallelism().map(usize::from).ok(),
    })
}

/// What was answered, or why not.
fn part(answer: Result<Value, Error>) -> Value {
    answer.unwrap_or_else(|error| json!({ "error": error.to_string() }))
}

fn of_server(client: &Client) -> Value {
    let mut parts: serde_json::Map<String, Value> =
        ASKED.iter().map(|(name, path)| ((*name).to_owned(), part(client.get(path).map(data)))).collect();
    parts.insert("functions".to_owned(), part(functions(client)));
    let metrics = client.page("/metrics").map(|(text, _)| json!(nameless(&text).lines().collect::<Vec<_>>()));
    parts.insert("metrics".to_owned(), part(metrics));
    Value::Object(parts)
}

fn functions(client: &Client) -> Result<Value, Error> {
    let list = data(client.get("/ember/v1/functions")?);
    let names = list.as_array().into_iter().flatten().filter_map(|function| function["name"].as_str());
    Ok(names.map(|name| part(client.get(&format!("/ember/v1/functions/{name}")).map(speechless))).collect())
}

/// A function without what it is told to say.
fn speechless(mut function: Value) -> Value {
    if let Some(manifest) = function["manifest"].as_object_mut() {
        manifest.remove("prompt");
    }
    function
}

/// Metrics in which a key or a project is a number, the same wherever it is named.
fn nameless(metrics: &str) -> String {
    let mut numbers = BTreeMap::new();
    let mut lines = metrics.lines().map(|line| of_nobody(line, &mut numbers)).collect::<Vec<_>>().join("\n");
    lines.push('\n');
    lines
}

fn of_nobody(line: &str, numbers: &mut BTreeMap<String, usize>) -> String {
    for owner in ["of=\"key:", "of=\"project:"] {
        if let Some((before, rest)) = line.split_once(owner)
            && let Some((name, after)) = rest.split_once('"')
        {
            let next = numbers.len() + 1;
            let number = *numbers.entry(format!("{owner}{name}")).or_insert(next);
            return format!("{before}{owner}{number}\"{after}");
        }
    }
    line.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_and_projects_are_numbers_and_functions_keep_their_names() {
        let metrics = "ember_budgets 3\nspent{of=\"key:alice\",period=\"month\"} 1\nspent{of=\"project:p\"} 2\n\
                       left{of=\"key:alice\"} 3\nspent{of=\"function:assistant\"} 4\n";
        let expected = "ember_budgets 3\nspent{of=\"key:1\",period=\"month\"} 1\nspent{of=\"project:2\"} 2\n\
                        left{of=\"key:1\"} 3\nspent{of=\"function:assistant\"} 4\n";
        assert_eq!(nameless(metrics), expected);
    }

    #[test]
    fn nobody_else_reads_what_is_written_also_where_a_file_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("support.json");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        write_private(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(write_private(folder.path(), "over a folder").is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_function_is_shown_without_its_prompt() {
        let shown = speechless(json!({"name": "f", "manifest": {"task": "chat", "prompt": {"system": "secret"}}}));
        assert_eq!(shown, json!({"name": "f", "manifest": {"task": "chat"}}));
    }
}
