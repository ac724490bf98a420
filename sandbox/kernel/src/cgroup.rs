//! Limits that the kernel keeps for a group of processes, on cgroup v2, v1, and hosts that mount both.
//!
//! ```text
//!  /sys/fs/cgroup[/memory|/pids|/cpu|/cpuacct]    where the host mounts the controllers (hierarchy.rs)
//!  └── ember-TAG                                  one for each warden: what a killed one left is found by its tag;
//!      │                                          weighs more than what else runs here
//!      └── NAME                                   one for each instance: limits written, then read back
//! ```
//! A leaf's life: `create` → `place` (before the process may run) → `kill` → `remove`. A leaf that cannot be limited is
//! removed again: nothing runs in it.
//!
//! Why by hand and not by a crate: the files are few, what matters is reading each limit back and telling hybrid hosts
//! apart, and both are left to the caller by the crates there are. What differs between the versions is data
//! ([`settings`]); v2's branch is tested on a folder that looks like one.

mod files;
mod gauges;
mod hierarchy;
mod settings;

pub use gauges::Gauges;
pub use hierarchy::Hierarchy;
pub use settings::Limits;

use crate::pidfd::Pidfd;
use files::{counter, read, write};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::Pid,
};
use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Why a group cannot do its work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CgroupError {
    /// The host has no usable controller.
    #[error("cgroup controllers missing: {missing}; mount cgroup2 with them, or their v1 hierarchies")]
    Missing {
        /// Their names.
        missing: String,
    },
    /// A file or folder could not be used.
    #[error("{path}: {reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
    /// The kernel took a limit and keeps another.
    #[error("{path}: wrote `{wanted}`, reads `{found}`")]
    NotKept {
        /// The limit's file.
        path: PathBuf,
        /// What was written.
        wanted: String,
        /// What it says.
        found: String,
    },
    /// Its processes do not end.
    #[error("{path}: still in use after {waited_ms} ms")]
    Busy {
        /// The group.
        path: PathBuf,
        /// How long was waited.
        waited_ms: u128,
    },
    /// A name that could leave the folder.
    #[error("`{name}` cannot name a cgroup: use a-z, 0-9 and `-`")]
    Name {
        /// The name.
        name: String,
    },
}

/// What a group uses and has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Anonymous memory and what the kernel holds for the group, bytes.
    pub private_bytes: u64,
    /// Page cache charged to it, bytes.
    pub cache_bytes: u64,
    /// CPU time, µs.
    pub cpu_us: u64,
    /// Processes killed for their memory.
    pub oom_kills: u64,
}

/// The groups of one warden.
#[derive(Debug)]
pub struct Cgroups {
    hierarchy: Hierarchy,
    folder: String,
}

/// Longest wait for killed processes to be gone.
const EMPTY_WAIT_MAX: Duration = Duration::from_secs(5);
/// Longest sleep between two looks at a group that has no event to wait for.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

impl Cgroups {
    /// The groups tagged `tag` on this host; makes their folder.
    ///
    /// # Errors
    /// No usable controllers, or no right to use them.
    pub fn open(tag: &str) -> Result<Self, CgroupError> {
        Self::within(Hierarchy::of_host()?, tag)
    }

    fn within(hierarchy: Hierarchy, tag: &str) -> Result<Self, CgroupError> {
        let groups = Self { hierarchy, folder: format!("ember-{}", checked(tag)?) };
        if let Hierarchy::V2 { root } = &groups.hierarchy {
            delegate(root)?;
        }
        let folders = groups.folders();
        folders.iter().try_for_each(|folder| files::make_folder(folder))?;
        if groups.hierarchy.is_v2() {
            folders.iter().try_for_each(|folder| delegate(folder))?;
        }
        enforce(&settings::weight(&groups.hierarchy.below(Path::new(&groups.folder))))?;
        Ok(groups)
    }

    /// How the host mounts cgroups.
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// CPU time of all groups of this tag since their folder was made, those that are gone included, µs.
    ///
    /// # Errors
    /// The kernel's, with the file.
    pub fn cpu_us(&self) -> Result<u64, CgroupError> {
        gauges::cpu_us(&self.hierarchy.below(Path::new(&self.folder)))
    }

    fn folders(&self) -> Vec<PathBuf> {
        self.hierarchy.roots().into_iter().map(|root| root.join(&self.folder)).collect()
    }

    /// A new group with its limits in force.
    ///
    /// # Errors
    /// A limit that cannot be set or is not kept; the group is then gone again.
    pub fn create(&self, name: &str, limits: &Limits) -> Result<Cgroup, CgroupError> {
        let group = self.leaf(checked(name)?);
        let made = group
            .folders
            .iter()
            .try_for_each(|folder| files::make_folder(folder))
            .and_then(|()| settings::settings(&group.hierarchy, limits).iter().try_for_each(enforce));
        match made {
            Ok(()) => Ok(group),
            Err(error) => {
                // The first error is the one to tell; what cannot be removed is swept at the next start.
                let _ = group.remove();
                Err(error)
            }
        }
    }

    fn leaf(&self, name: &str) -> Cgroup {
        let below = Path::new(&self.folder).join(name);
        let folders = self.hierarchy.roots().into_iter().map(|root| root.join(&below)).collect();
        Cgroup { hierarchy: self.hierarchy.below(&below), folders }
    }

    /// Kills and removes every group of this tag; says how many there were.
    ///
    /// # Errors
    /// Processes that do not end.
    pub fn sweep(&self) -> Result<usize, CgroupError> {
        let mut names = BTreeSet::new();
        for folder in self.folders() {
            names.extend(files::folders_in(&folder)?);
        }
        for name in &names {
            let leaf = self.leaf(name);
            leaf.kill()?;
            leaf.remove()?;
        }
        Ok(names.len())
    }

    /// Removes the tag's own folder, which must be empty. Nothing can be created after it.
    ///
    /// # Errors
    /// Groups are left in it.
    pub fn close(&self) -> Result<(), CgroupError> {
        self.folders().iter().try_for_each(|folder| files::remove_folder(folder).map(drop))
    }
}

fn checked(name: &str) -> Result<&str, CgroupError> {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !name.is_empty() && name.len() <= 128 && name.bytes().all(letter) {
        Ok(name)
    } else {
        Err(CgroupError::Name { name: name.chars().take(128).collect() })
    }
}

/// Writes a setting, and reads it back.
fn enforce(setting: &settings::Setting) -> Result<(), CgroupError> {
    let path = &setting.path;
    if setting.optional && !path.exists() {
        return Ok(());
    }
    write(path, &setting.value)?;
    let found = read(path)?.trim().to_owned();
    if found == setting.value {
        return Ok(());
    }
    Err(CgroupError::NotKept { path: path.clone(), wanted: setting.value.clone(), found })
}

/// Lets the groups below a v2 folder have their own limits.
fn delegate(folder: &Path) -> Result<(), CgroupError> {
    let path = folder.join("cgroup.subtree_control");
    let enabled = read(&path)?;
    let missing: Vec<_> =
        hierarchy::CONTROLLERS.iter().filter(|name| !enabled.split_whitespace().any(|word| word == **name)).collect();
    missing.into_iter().try_for_each(|name| write(&path, &format!("+{name}")))
}

/// The way into a group. To move another process in, the kernel waits until all processors have let go of a lock for
/// readers, which takes 10 to 40 ms; a child that is cloned into a v2 group, or that moves its one thread into v1 groups
/// by itself, waits for nobody.
#[derive(Debug)]
pub struct Entrance {
    /// A v2 group, for clone3.
    pub(crate) folder: Option<File>,
    /// Files of v1 groups that the child writes `0` to.
    pub(crate) tasks: Vec<File>,
}

impl Entrance {
    pub(crate) fn numbers(&self) -> Vec<RawFd> {
        self.tasks.iter().map(AsRawFd::as_raw_fd).collect()
    }
}

/// What a thread writes to a v1 group's `tasks` to move there.
pub(crate) const MYSELF: &[u8] = b"0";

/// One group, and the processes in it.
#[derive(Debug)]
pub struct Cgroup {
    /// As the host's, with this group's own folders in place of the roots.
    hierarchy: Hierarchy,
    folders: Vec<PathBuf>,
}

impl Cgroup {
    /// Opens the way in for a child that is about to be made.
    ///
    /// # Errors
    /// The kernel's, with the file.
    pub fn entrance(&self) -> Result<Entrance, CgroupError> {
        let open = |path: PathBuf, write: bool| {
            let opened = File::options().read(!write).write(write).open(&path);
            opened.map_err(|error| CgroupError::File { path, reason: error.to_string() })
        };
        match &self.hierarchy {
            Hierarchy::V2 { root } => Ok(Entrance { folder: Some(open(root.clone(), false)?), tasks: Vec::new() }),
            Hierarchy::V1 { .. } => {
                let tasks = self.folders.iter().map(|folder| open(folder.join("tasks"), true));
                Ok(Entrance { folder: None, tasks: tasks.collect::<Result<_, _>>()? })
            }
        }
    }

    /// Whether it limits this process in every controller, and no other process.
    ///
    /// # Errors
    /// The kernel's, with the file.
    pub fn holds(&self, pid: Pid) -> Result<bool, CgroupError> {
        let alone = pid.to_string();
        for folder in &self.folders {
            if read(&folder.join("cgroup.procs"))?.trim() != alone {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What it uses now.
    ///
    /// # Errors
    /// The kernel's, with the file.
    pub fn usage(&self) -> Result<Usage, CgroupError> {
        Ok(Usage { oom_kills: self.oom_kills()?, ..self.measure()? })
    }

    /// Files that say what it uses, for others to read.
    ///
    /// # Errors
    /// The kernel's, with the file.
    pub fn gauges(&self) -> Result<Gauges, CgroupError> {
        Gauges::open(&self.hierarchy)
    }

    /// CPU time that it has used, µs.
    ///
    /// # Errors
    /// The kernel's, with the file.
    pub fn cpu_us(&self) -> Result<u64, CgroupError> {
        gauges::cpu_us(&self.hierarchy)
    }

    fn measure(&self) -> Result<Usage, CgroupError> {
        match &self.hierarchy {
            Hierarchy::V2 { root } => {
                let stat = read(&root.join("memory.stat"))?;
                Ok(Usage {
                    private_bytes: counter(&stat, "anon") + counter(&stat, "kernel"),
                    cache_bytes: counter(&stat, "file"),
                    cpu_us: self.cpu_us()?,
                    oom_kills: 0,
                })
            }
            Hierarchy::V1 { memory, .. } => {
                let stat = read(&memory.join("memory.stat"))?;
                let kernel = read(&memory.join("memory.kmem.usage_in_bytes")).unwrap_or_default();
                Ok(Usage {
                    private_bytes: counter(&stat, "rss") + kernel.trim().parse().unwrap_or(0),
                    cache_bytes: counter(&stat, "cache"),
                    cpu_us: self.cpu_us()?,
                    oom_kills: 0,
                })
            }
        }
    }

    /// The most memory that was ever charged to it, page cache included, bytes; before Linux 5.19 on v2, what is now.
    ///
    /// # Errors
    /// The kernel's, with the file.
    pub fn peak_bytes(&self) -> Result<u64, CgroupError> {
        let text = match &self.hierarchy {
            Hierarchy::V2 { root } => {
                read(&root.join("memory.peak")).or_else(|_| read(&root.join("memory.current")))?
            }
            Hierarchy::V1 { memory, .. } => read(&memory.join("memory.max_usage_in_bytes"))?,
        };
        text.trim().parse().map_err(|_| self.failed(format!("its peak reads `{}`", text.trim())))
    }

    /// How many processes were killed for the group's memory.
    ///
    /// # Errors
    /// The kernel's, with the file.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        let path = match &self.hierarchy {
            Hierarchy::V2 { root } => root.join("memory.events"),
            Hierarchy::V1 { memory, .. } => memory.join("memory.oom_control"),
        };
        Ok(counter(&read(&path)?, "oom_kill"))
    }

    /// Kills every process in it and waits until they are gone.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] when they do not end in time.
    pub fn kill(&self) -> Result<(), CgroupError> {
        let begun = Instant::now();
        loop {
            self.kill_at_once();
            let processes = self.processes()?;
            if processes.is_empty() {
                return Ok(());
            }
            self.check_wait(begun)?;
            processes.iter().try_for_each(end).map_err(|error| self.failed(error))?;
        }
    }

    /// `cgroup.kill` of v2, where the kernel has it: nothing can fork its way out.
    fn kill_at_once(&self) {
        if let Hierarchy::V2 { root } = &self.hierarchy {
            // Absent before Linux 5.14: the processes are then killed one by one.
            let _ = write(&root.join("cgroup.kill"), "1");
        }
    }

    fn processes(&self) -> Result<Vec<Pidfd>, CgroupError> {
        let before = self.pids()?;
        let opened: Vec<_> =
            before.into_iter().filter_map(|pid| Some((pid, Pidfd::open(Pid::from_raw(pid)).ok()?))).collect();
        // A number may have passed to another process since it was read: only one that is still here is ours.
        let after = self.pids()?;
        Ok(opened.into_iter().filter(|(pid, _)| after.contains(pid)).map(|(_, process)| process).collect())
    }

    fn pids(&self) -> Result<BTreeSet<i32>, CgroupError> {
        let mut pids = BTreeSet::new();
        for folder in self.folders.iter().filter(|folder| folder.exists()) {
            pids.extend(read(&folder.join("cgroup.procs"))?.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        Ok(pids)
    }

    /// Removes it. Its processes have ended; the kernel may take a moment to notice.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] when processes are left in it.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let begun = Instant::now();
        for folder in &self.folders {
            while !files::remove_folder(folder)? {
                self.check_wait(begun)?;
                self.await_change().map_err(|error| self.failed(error))?;
            }
        }
        Ok(())
    }

    /// Waits for a sign that the last process is gone: v2 signals it, v1 has none.
    fn await_change(&self) -> io::Result<()> {
        let timeout = PollTimeout::try_from(LOOK_INTERVAL).expect("a millisecond fits");
        match &self.hierarchy {
            Hierarchy::V2 { root } => {
                let events = File::open(root.join("cgroup.events"))?;
                poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout)?;
            }
            Hierarchy::V1 { .. } => std::thread::sleep(LOOK_INTERVAL),
        }
        Ok(())
    }

    fn check_wait(&self, begun: Instant) -> Result<(), CgroupError> {
        let waited = begun.elapsed();
        if waited < EMPTY_WAIT_MAX {
            return Ok(());
        }
        Err(CgroupError::Busy { path: self.path(), waited_ms: waited.as_millis() })
    }

    fn path(&self) -> PathBuf {
        self.folders.first().cloned().unwrap_or_default()
    }

    fn failed(&self, error: impl std::fmt::Display) -> CgroupError {
        CgroupError::File { path: self.path(), reason: error.to_string() }
    }
}

fn end(process: &Pidfd) -> nix::Result<()> {
    process.kill()?;
    let timeout = PollTimeout::try_from(EMPTY_WAIT_MAX).expect("seconds fit");
    match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
