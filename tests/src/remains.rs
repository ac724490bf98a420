//! What a run of Ember could leave on a machine, looked for from outside.
//!
//! Cgroups are told by those that Ember's processes were seen in, and by those of its name that were not there before;
//! the latter may be another test's and so only have to go in time. Mounts are told by comparing this namespace's table with the
//! one from before; sockets and locks by the files of the data folder.

use crate::{Process, wait::until};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

/// What was there before, and what was seen since.
pub(crate) struct Remains {
    mounts: BTreeSet<String>,
    cgroups_before: BTreeSet<PathBuf>,
    processes: Vec<Process>,
    cgroups: BTreeSet<PathBuf>,
}

impl Remains {
    /// Looks at the machine before anything of Ember's runs.
    pub(crate) fn before() -> Self {
        Self { mounts: mounts(), cgroups_before: named_ember(), processes: Vec::new(), cgroups: BTreeSet::new() }
    }

    /// Remembers processes that run now, and where.
    pub(crate) fn saw(&mut self, processes: Vec<Process>) {
        self.cgroups.extend(processes.iter().flat_map(Process::cgroups).flat_map(|(_, path)| folders(&path)));
        self.processes.extend(processes);
    }

    /// Fails the test unless nothing is left.
    pub(crate) fn assert_none(&self, data: &Path) {
        until("every process seen is gone", || self.processes.iter().all(|p| !p.is_alive()).then_some(()));
        let named = Process::naming(&data.display().to_string());
        assert!(named.is_empty(), "processes left: {named:?}");
        let cgroups: Vec<_> = self.cgroups.iter().filter(|cgroup| cgroup.exists()).collect();
        assert!(cgroups.is_empty(), "cgroups left: {cgroups:?}");
        let new: Vec<PathBuf> = named_ember().difference(&self.cgroups_before).cloned().collect();
        until(&format!("no cgroup of {new:?} is left"), || new.iter().all(|cgroup| !cgroup.exists()).then_some(()));
        let mounts: Vec<_> = mounts().into_iter().filter(|mount| !self.mounts.contains(mount)).collect();
        assert!(!mounts.iter().any(|mount| mount.contains("ember")), "mounts left: {mounts:?}");
        assert_none_in(data);
    }

    /// Ends what is left after a test that failed.
    pub(crate) fn kill(&self) {
        self.processes.iter().filter(|p| p.is_alive()).for_each(Process::kill);
    }
}

/// The folders of a cgroup of Ember's, in whichever hierarchies have it, up to the first that is Ember's.
fn folders(path: &str) -> Vec<PathBuf> {
    let Some(at) = path.find("/ember") else { return Vec::new() };
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]).filter(|end| *end > at);
    let paths: Vec<&str> = ends.map(|end| path[..end].trim_start_matches('/')).collect();
    let mut folders: Vec<_> = hierarchies().iter().flat_map(|root| paths.iter().map(|path| root.join(path))).collect();
    folders.retain(|folder| folder.is_dir());
    folders
}

fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let below = fs::read_dir(root).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    below.filter(|path| path.join("cgroup.procs").exists()).chain([root.to_owned()]).collect()
}

/// Cgroups at the top of a hierarchy that are called like Ember's.
fn named_ember() -> BTreeSet<PathBuf> {
    let entries = hierarchies().into_iter().filter_map(|root| fs::read_dir(root).ok()).flatten().filter_map(Result::ok);
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("ember"));
    ours.map(|entry| entry.path()).collect()
}

fn mounts() -> BTreeSet<String> {
    fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted").lines().map(str::to_owned).collect()
}

fn assert_none_in(folder: &Path) {
    for entry in fs::read_dir(folder).expect("list the data folder").map(|entry| entry.expect("an entry")) {
        let (path, kind) = (entry.path(), entry.file_type().expect("a file type"));
        assert!(!kind.is_socket(), "a socket is left: {}", path.display());
        if kind.is_dir() {
            assert_none_in(&path);
        } else if entry.file_name() == "lock" {
            let file = File::open(&path).expect("open the lock");
            file.try_lock().unwrap_or_else(|error| panic!("{} is still held: {error}", path.display()));
        }
    }
}
