//! Programs that are measured: started, awaited until ready, their CPU time read, stopped.
//!
//! Invariants: a program is ready when it says so on a line of its output, not after some time; it is told to stop and
//! waited for when its handle is dropped.

use crate::error::Error;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

/// How long a program may take to get ready: loading a large model from a cold disk is the longest.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// Lines of output to quote when a program ends early.
const WORDS_LINES: usize = 5;

/// Which output says that a program is ready.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Says {
    Stdout,
    Stderr,
}

/// A running program.
pub(crate) struct Process {
    program: String,
    child: Child,
}

impl Process {
    /// Starts `command` and waits for the first line in which `ready` finds something.
    pub(crate) fn start<T: Send + 'static>(
        mut command: Command,
        says: Says,
        ready: impl Fn(&str) -> Option<T> + Send + 'static,
    ) -> Result<(Self, T), Error> {
        let program = command.get_program().to_string_lossy().into_owned();
        match says {
            Says::Stdout => command.stdout(Stdio::piped()),
            Says::Stderr => command.stdout(Stdio::null()).stderr(Stdio::piped()),
        };
        let spawned = command.stdin(Stdio::null()).spawn();
        let child = spawned.map_err(|source| Error::Spawn { program: program.clone(), source })?;
        let mut process = Self { program, child };
        let output: Option<Box<dyn Read + Send>> = match says {
            Says::Stdout => process.child.stdout.take().map(|out| Box::new(out) as _),
            Says::Stderr => process.child.stderr.take().map(|out| Box::new(out) as _),
        };
        let said = process.wait_for(output.expect("the output was piped above"), ready)?;
        Ok((process, said))
    }

    fn wait_for<T: Send + 'static>(
        &self,
        output: Box<dyn Read + Send>,
        ready: impl Fn(&str) -> Option<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = mpsc::sync_channel(1);
        thread::spawn(move || listen(output, ready, &sender));
        let program = self.program.clone();
        match receiver.recv_timeout(READY_TIMEOUT) {
            Ok(Ok(said)) => Ok(said),
            Ok(Err(words)) => Err(Error::Ended { program, words }),
            Err(RecvTimeoutError::Timeout) => Err(Error::NotReady { program, seconds: READY_TIMEOUT.as_secs() }),
            Err(RecvTimeoutError::Disconnected) => Err(Error::Ended { program, words: String::new() }),
        }
    }

    /// CPU time that all its threads have used, user and system, in µs.
    pub(crate) fn cpu_us(&self) -> Result<f64, Error> {
        let tasks = format!("/proc/{}/task", self.child.id());
        let unreadable = |source| Error::File { path: tasks.clone().into(), source };
        let mut total_ns = 0_u64;
        for task in fs::read_dir(&tasks).map_err(unreadable)? {
            let schedstat = task.map_err(unreadable)?.path().join("schedstat");
            total_ns += on_cpu_ns(&fs::read_to_string(schedstat).map_err(unreadable)?);
        }
        Ok(total_ns as f64 / 1_000.0)
    }

    /// Memory that it and all that descend from it use: each page's share, in MiB.
    pub(crate) fn family_pss_mib(&self) -> Result<f64, Error> {
        let family = family(self.child.id(), &parents()?);
        let mut total_kib = 0;
        for pid in family {
            let path = format!("/proc/{pid}/smaps_rollup");
            let rollup = fs::read_to_string(&path).map_err(|source| Error::File { path: path.into(), source })?;
            total_kib += pss_kib(&rollup);
        }
        Ok(total_kib as f64 / 1_024.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        if kill(pid, Signal::SIGTERM).is_ok() {
            // Reaped here or not at all: an error means that it is gone.
            let _gone = self.child.wait();
        }
    }
}

/// Reads to the end, so that the program never waits for a full pipe; says once whether it became ready.
fn listen<T>(
    output: Box<dyn Read + Send>,
    ready: impl Fn(&str) -> Option<T>,
    sender: &mpsc::SyncSender<Result<T, String>>,
) {
    let mut words = Vec::new();
    let mut is_ready = false;
    // Split as bytes: a model's vocabulary, as a server prints it, need not be UTF-8.
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        if is_ready {
            continue;
        }
        if let Some(said) = ready(&line) {
            is_ready = sender.send(Ok(said)).is_ok();
        }
        words.push(line);
    }
    if !is_ready {
        let last = &words[words.len().saturating_sub(WORDS_LINES)..];
        // The receiver may have run out of patience.
        let _unheard = sender.send(Err(last.join(" / ")));
    }
}

/// The first field of `schedstat`: what `utime + stime` counts, in ns rather than ticks.
fn on_cpu_ns(schedstat: &str) -> u64 {
    schedstat.split_whitespace().next().and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// Every process with its parent.
fn parents() -> Result<Vec<(u32, u32)>, Error> {
    let entries = fs::read_dir("/proc").map_err(|source| Error::File { path: "/proc".into(), source })?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // One that has ended meanwhile is nobody's parent.
    Ok(pids
        .filter_map(|pid: u32| Some((pid, parent(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)))
        .collect())
}

/// The fourth field of `stat`; the second is a name that may hold anything.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// A process and all that descend from it.
fn family(eldest: u32, parents: &[(u32, u32)]) -> Vec<u32> {
    let mut family = vec![eldest];
    let mut asked = 0;
    while let Some(parent) = family.get(asked).copied() {
        family.extend(parents.iter().filter(|(_, its_parent)| *its_parent == parent).map(|(pid, _)| *pid));
        asked += 1;
    }
    family
}

fn pss_kib(rollup: &str) -> u64 {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
}

/// Runs `command` to its end.
pub(crate) fn run(command: Command) -> Result<(), Error> {
    output(command).map(drop)
}

/// Runs `command` to its end; what it said on stdout.
pub(crate) fn output(mut command: Command) -> Result<String, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let output = output.map_err(|source| Error::Spawn { program: program.clone(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = words.lines().rev().take(WORDS_LINES).collect();
    let reason = format!("{}: {}", output.status, lines.into_iter().rev().collect::<Vec<_>>().join(" / "));
    Err(Error::Failed { program, reason })
}

/// Keeps the calling thread, and threads it starts, on one core.
pub(crate) fn pin(core: usize) -> Result<(), Error> {
    let mut set = CpuSet::new();
    set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).map_err(Error::setup)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_is_ready_when_it_says_so() {
        let ready = |line: &str| line.strip_prefix("ready ").map(str::to_owned);
        let (process, said) =
            Process::start(shell("echo hello; echo ready 7; exec cat /dev/zero >/dev/null"), Says::Stdout, ready)
                .unwrap();
        assert_eq!(said, "7");
        // It computes for ever, but may not have begun.
        let deadline = Instant::now() + Duration::from_secs(30);
        while process.cpu_us().unwrap() == 0.0 {
            assert!(Instant::now() < deadline, "no time is counted");
        }
    }

    #[test]
    fn one_that_ends_early_is_quoted() {
        let ready = |line: &str| (line == "never").then_some(());
        let ended = Process::start(shell("echo cannot >&2; exit 3"), Says::Stderr, ready).map(drop);
        assert!(matches!(ended, Err(Error::Ended { words, .. }) if words == "cannot"));
        assert!(
            matches!(run(shell("echo no >&2; exit 3")), Err(Error::Failed { reason, .. }) if reason.ends_with("no"))
        );
    }

    #[test]
    fn a_family_is_all_that_descend() {
        let parents = [(2, 1), (3, 2), (4, 1), (5, 3)];
        assert_eq!(family(2, &parents), [2, 3, 5]);
        assert_eq!(parent("7 (a (b) c) S 42 7 7 0"), Some(42));
        assert_eq!(pss_kib("00-ff ---p 00 [rollup]\nRss:  900 kB\nPss:   512 kB\nPss_Anon: 3 kB\n"), 512);
        let ready = |line: &str| (line == "ready").then_some(());
        let (process, ()) = Process::start(shell("echo ready; sleep 60"), Says::Stdout, ready).unwrap();
        assert!(process.family_pss_mib().unwrap() > 0.0);
    }

    #[test]
    fn schedstat_begins_with_time_on_cpu() {
        assert_eq!(on_cpu_ns("123456 789 4\n"), 123_456);
        assert_eq!(on_cpu_ns(""), 0);
    }
}
