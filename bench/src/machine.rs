//! The machine card: where and from what a run was made, so that its numbers can be judged later.

use serde::Serialize;
use std::{fs, process::Command, thread};

#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_kib: u64,
    pub(crate) kernel: String,
    pub(crate) rustc: String,
    pub(crate) version: &'static str,
    /// The commit built from; `+` marks changes on top of it.
    pub(crate) commit: String,
    pub(crate) command: String,
    /// Load averages before anything was measured.
    pub(crate) load: String,
}

impl Machine {
    pub(crate) fn this() -> Self {
        Self {
            cpu: field("/proc/cpuinfo", "model name"),
            cores: thread::available_parallelism().map_or(0, Into::into),
            memory_kib: field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            rustc: said("rustc", &["--version"]),
            version: env!("CARGO_PKG_VERSION"),
            commit: commit(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
            load: fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned(),
        }
    }

    /// The processor as part of a file name.
    pub(crate) fn cpu_slug(&self) -> String {
        slug(&self.cpu)
    }
}

fn commit() -> String {
    let changed = !said("git", &["status", "--porcelain", "--untracked-files=no"]).is_empty();
    format!("{}{}", said("git", &["rev-parse", "--short", "HEAD"]), if changed { "+" } else { "" })
}

/// A program's words, or none where it cannot be asked.
fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

/// The value of the first `name : value` line.
fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(key, _)| key.trim() == name).map_or_else(String::new, |(_, value)| value.trim().to_owned())
}

fn slug(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let slug = words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-");
    if slug.is_empty() { "unknown-cpu".to_owned() } else { slug.chars().take(48).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_become_file_names() {
        assert_eq!(slug("AMD EPYC 9B14 (Zen 4) @ 2.6GHz"), "amd-epyc-9b14-zen-4-2-6ghz");
        assert_eq!(slug(""), "unknown-cpu");
    }

    #[test]
    fn this_machine_is_described() {
        let machine = Machine::this();
        assert!(machine.cores > 0 && machine.memory_kib > 0 && !machine.kernel.is_empty());
    }
}
