//! Processes as /proc shows them.
//!
//! A process is its pid and its start time, so that a pid that was given again is never taken for the one we knew. A
//! zombie counts as gone: all it holds is its number.

use crate::wait::until;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The processes of one Ember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Faces the network.
    Server,
    /// Owns the sandboxes.
    Warden,
    /// Owns the ledger.
    Ledger,
    /// Holds the model, in a sandbox.
    Runner,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    parent: i32,
    started_ticks: u64,
    arguments: Vec<String>,
}

impl Process {
    /// The process with this pid, unless it is gone.
    pub fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let arguments = arguments.split('\0').map(str::to_owned).collect();
        let (parent, started_ticks) = (fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?);
        (fields.first() != Some(&"Z")).then_some(Self { pid, parent, started_ticks, arguments })
    }

    /// All processes below `pid`, nearest first.
    pub fn below(pid: i32) -> Vec<Self> {
        let all = Self::all();
        let mut family = BTreeSet::from([pid]);
        let mut below: Vec<Self> = Vec::new();
        loop {
            let next = all.iter().filter(|p| family.contains(&p.parent) && !family.contains(&p.pid));
            let next: Vec<Self> = next.cloned().collect();
            if next.is_empty() {
                return below;
            }
            family.extend(next.iter().map(|p| p.pid));
            below.extend(next);
        }
    }

    /// Every process that names `text` in its arguments.
    pub fn naming(text: &str) -> Vec<Self> {
        Self::all().into_iter().filter(|p| p.arguments.iter().any(|argument| argument.contains(text))).collect()
    }

    /// Whether its arguments say that it has this role.
    pub fn is(&self, role: Role) -> bool {
        let child = |word: &str| self.arguments.windows(2).any(|pair| pair == ["child", word]);
        match role {
            Role::Server => child("server"),
            Role::Warden => child("warden"),
            Role::Ledger => child("ledger"),
            Role::Runner => self.arguments.first().is_some_and(|program| program.ends_with("ember-runner")),
        }
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        Self::read(self.pid).is_some_and(|now| now.started_ticks == self.started_ticks)
    }

    /// Ends it at once, and returns when it has ended.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
        until(&format!("{self:?} is dead"), || (!self.is_alive()).then_some(()));
    }

    /// Ends it at once unless it has just ended by itself; does not wait.
    pub fn end(&self) {
        if self.is_alive() {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        assert!(self.is_alive(), "{self:?} is gone before {signal}");
        kill(Pid::from_raw(self.pid), signal).unwrap_or_else(|error| panic!("{signal} to {self:?}: {error}"));
    }

    /// Memory of its own that is resident, bytes: not what it shares, as the rings that its ledger reads, of which a page
    /// counts from when it is first written.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("a live process has a status");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a process has memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("kilobytes") * 1024
    }

    /// Descriptors that it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("a live process has descriptors").count()
    }

    /// The cores that any of its threads may run on.
    pub fn cores(&self) -> BTreeSet<usize> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        // A thread may end while they are looked at.
        let statuses = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
        statuses.flat_map(|status| cores_in(&status)).collect()
    }

    /// The cgroups it is in, as (hierarchy's controllers, path).
    pub fn cgroups(&self) -> Vec<(String, String)> {
        let listed = fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).unwrap_or_default();
        let parts = listed.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        parts.map(|(controllers, path)| (controllers.to_owned(), path.to_owned())).collect()
    }

    /// The limit of its own cgroup's memory, bytes.
    pub fn memory_limit(&self) -> u64 {
        number_in(&self.memory_file("memory.limit_in_bytes", "memory.max"))
    }

    /// Memory that is charged to its own cgroup, bytes.
    pub fn memory_charged(&self) -> u64 {
        number_in(&self.memory_file("memory.usage_in_bytes", "memory.current"))
    }

    /// Sets the limit of its own cgroup's memory, bytes.
    pub fn limit_memory(&self, bytes: u64) {
        let file = self.memory_file("memory.limit_in_bytes", "memory.max");
        fs::write(&file, bytes.to_string()).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }

    /// The folder of its own cgroup.
    pub fn cgroup(&self) -> PathBuf {
        self.memory_file("memory.limit_in_bytes", "memory.max").parent().expect("a file is in a folder").to_owned()
    }

    /// The file in which the kernel counts the CPU time of its own cgroup's siblings, itself, and those that are gone.
    pub fn siblings_cpu(&self) -> PathBuf {
        let ours = self.cgroups().into_iter().filter(|(_, path)| path.contains("/ember"));
        let mut files = ours.filter_map(|(controllers, path)| {
            let folder = Path::new(path.trim_start_matches('/')).parent()?.to_owned();
            match controllers.as_str() {
                "" => Some(Path::new("/sys/fs/cgroup").join(folder).join("cpu.stat")),
                v1 if v1.split(',').any(|controller| controller == "cpuacct") => {
                    Some(Path::new("/sys/fs/cgroup").join(v1).join(folder).join("cpuacct.usage"))
                }
                _ => None,
            }
        });
        let found = files.find(|file| file.exists());
        found.unwrap_or_else(|| panic!("{self:?} is in no cgroup of ours that counts CPU time"))
    }

    /// A file of its own cgroup, by its names in versions 1 and 2.
    fn memory_file(&self, v1: &str, v2: &str) -> PathBuf {
        let ours = self.cgroups().into_iter().filter(|(_, path)| path.contains("/ember"));
        let mut files = ours.filter_map(|(controllers, path)| {
            let path = path.trim_start_matches('/').to_owned();
            match controllers.as_str() {
                "memory" => Some(Path::new("/sys/fs/cgroup/memory").join(path).join(v1)),
                "" => Some(Path::new("/sys/fs/cgroup").join(path).join(v2)),
                _ => None,
            }
        });
        let found = files.find(|file| file.exists());
        found.unwrap_or_else(|| panic!("{self:?} is in no cgroup of ours with a memory limit"))
    }

    fn all() -> Vec<Self> {
        let entries = fs::read_dir("/proc").expect("/proc is mounted").filter_map(Result::ok);
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter_map(Self::read).collect()
    }
}

/// `Cpus_allowed_list:\t0-2,5` of a status.
fn cores_in(status: &str) -> Vec<usize> {
    let list =
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("a thread may run somewhere");
    let number = |text: &str| text.parse::<usize>().expect("a core has a number");
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        number(first)..=number(last)
    };
    list.trim().split(',').flat_map(range).collect()
}

fn number_in(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    text.trim().parse().unwrap_or_else(|error| panic!("{}: {text}: {error}", file.display()))
}
