//! One run of the operator's command line.

use crate::wait::HANG;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// What a program that ended has said.
#[derive(Debug)]
pub struct Run {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it told the person.
    pub stderr: String,
}

impl Run {
    /// Runs a program to its end.
    pub fn of(command: &mut Command) -> Self {
        Self::within(2 * HANG, command)
    }

    /// Runs one that may take longer.
    pub fn within(limit: Duration, command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        let (ended, end) = mpsc::channel();
        thread::spawn(move || ended.send(child.wait_with_output()));
        let Ok(output) = end.recv_timeout(limit) else {
            kill(pid, Signal::SIGKILL).expect("kill what hangs");
            panic!("{command:?} hangs");
        };
        let output = output.expect("the output of a program");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("programs print UTF-8");
        Self { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// What it printed, if it succeeded; fails the test otherwise.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "it said {}{}", self.stdout, self.stderr);
        self.stdout
    }

    /// The one JSON document that it printed.
    #[track_caller]
    pub fn json(self) -> Value {
        let stdout = self.ok();
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
    }

    /// What it told the person, if it failed; fails the test otherwise.
    #[track_caller]
    pub fn refused(self) -> String {
        assert_ne!(self.code, 0, "it succeeded and said {}{}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked at"), "{}", self.stderr);
        self.stderr
    }
}
