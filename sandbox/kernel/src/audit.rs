//! A sandbox seen from outside: whether the kernel holds what was asked of it, read from `/proc` before tenant data goes in.
//!
//! ```text
//!  exec ──▶ confinement() ──▶ told to load ──▶ loaded ──▶ holdings() ──▶ handed over
//!           what was set before the program: ids,          what the program has by now:
//!           capabilities, filter, namespaces, cgroup       descriptors, mappings
//! ```
//! The second look has to come later: an exec closes descriptors and makes mappings while its caller already goes on, and
//! what a loaded program maps is what tenant data will meet.
//!
//! Invariant: what is found is compared to what was given, not to what is usual; a difference names its layer. Reading is
//! apart from judging, so each judgement is tested on text. Left out: Landlock, of which `/proc` tells nothing.

use crate::{
    cgroup::Cgroup,
    pidfd::Pid,
    spawn::LayerError,
    spec::{DESCRIPTORS_KEPT, SOCKET},
};
use std::{
    fs,
    io::{self, Error},
    os::{
        fd::{AsFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

/// An open file, whichever descriptor refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    device: u64,
    number: u64,
}

impl Inode {
    /// That of a descriptor.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(descriptor: impl AsFd) -> io::Result<Self> {
        let status = nix::sys::stat::fstat(descriptor)?;
        Ok(Self { device: status.st_dev, number: status.st_ino })
    }

    fn at(path: impl AsRef<Path>) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self { device: metadata.dev(), number: metadata.ino() })
    }
}

fn differs(layer: &'static str, reason: impl Into<String>) -> LayerError {
    LayerError { layer, reason: reason.into() }
}

fn unread(layer: &'static str, path: &str) -> impl Fn(Error) -> LayerError {
    move |error| LayerError { layer, reason: format!("{path}: {error}") }
}

fn read(layer: &'static str, path: &str) -> Result<String, LayerError> {
    fs::read_to_string(path).map_err(unread(layer, path))
}

/// Whether a process that has been executed is confined: its identity, its namespaces and its cgroup.
///
/// # Errors
/// The first layer that is not as it was asked for.
pub fn confinement(pid: Pid, host_id: u32, cgroup: &Cgroup) -> Result<(), LayerError> {
    let own = read("seccomp", "/proc/self/status")?;
    let filters = field(&own, "Seccomp_filters").and_then(|count| count.parse::<u32>().ok()).unwrap_or(0);
    judge_status(&read("supervision", &format!("/proc/{pid}/status"))?, host_id, filters + 1)?;
    NAMESPACES.iter().try_for_each(|(name, layer)| namespace(pid, name, layer))?;
    match cgroup.holds(pid) {
        Ok(true) => Ok(()),
        Ok(false) => Err(differs("cgroup", format!("{pid} is not the one process in it"))),
        Err(error) => Err(differs("cgroup", error.to_string())),
    }
}

/// Whether a process holds the descriptors it was given and no other, and no memory both writable and executable.
///
/// # Errors
/// The layer that is not as it was asked for.
pub fn holdings(pid: Pid, stderr: Inode, socket: Inode) -> Result<(), LayerError> {
    let null = Inode::at("/dev/null").map_err(unread("descriptors", "/dev/null"))?;
    let held = descriptors(pid)?;
    judge_descriptors(&held, &[(0, null), (1, null), (2, stderr), (SOCKET, socket)])?;
    judge_maps(&read("memory", &format!("/proc/{pid}/maps"))?)
}

/// A field of `/proc/PID/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn judge_status(status: &str, host_id: u32, filters: u32) -> Result<(), LayerError> {
    let id = host_id.to_string();
    let ids = [id.as_str(); 4].join("\t");
    let expected = [
        ("identity", "Uid", ids.as_str()),
        ("identity", "Gid", &ids),
        ("identity", "Groups", ""),
        ("capabilities", "CapInh", EMPTY_SET),
        ("capabilities", "CapPrm", EMPTY_SET),
        ("capabilities", "CapEff", EMPTY_SET),
        ("capabilities", "CapBnd", EMPTY_SET),
        ("capabilities", "CapAmb", EMPTY_SET),
        ("no new privileges", "NoNewPrivs", "1"),
        ("seccomp", "Seccomp", "2"),
        ("seccomp", "Seccomp_filters", &filters.to_string()),
    ];
    expected.into_iter().try_for_each(|(layer, name, value)| match field(status, name) {
        Some(found) if found == value => Ok(()),
        found => Err(differs(layer, format!("{name} is `{}`, not `{value}`", found.unwrap_or("missing")))),
    })
}

const EMPTY_SET: &str = "0000000000000000";

/// Files of `/proc/PID/ns`, and the layers that they show.
const NAMESPACES: [(&str, &str); 7] = [
    ("user", "user namespace"),
    ("pid", "pid namespace"),
    ("mnt", "mount namespace"),
    ("net", "network namespace"),
    ("ipc", "ipc namespace"),
    ("uts", "uts namespace"),
    ("cgroup", "cgroup namespace"),
];

fn namespace(pid: Pid, name: &str, layer: &'static str) -> Result<(), LayerError> {
    let inode = |path: String| Inode::at(&path).map_err(unread(layer, &path));
    if inode(format!("/proc/{pid}/ns/{name}"))? == inode(format!("/proc/self/ns/{name}"))? {
        return Err(differs(layer, "it is the warden's own"));
    }
    Ok(())
}

fn descriptors(pid: Pid) -> Result<Vec<(RawFd, Inode)>, LayerError> {
    let folder = format!("/proc/{pid}/fd");
    let failed = unread("descriptors", &folder);
    let mut held = Vec::new();
    for entry in fs::read_dir(&folder).map_err(&failed)?.take(HELD_MAX) {
        let entry = entry.map_err(&failed)?;
        let number = entry.file_name().to_string_lossy().parse().map_err(|_| failed(Error::other("no number")))?;
        held.push((number, Inode::at(entry.path()).map_err(&failed)?));
    }
    held.sort_unstable_by_key(|(number, _)| *number);
    Ok(held)
}

/// One too many is enough to see.
const HELD_MAX: usize = DESCRIPTORS_KEPT as usize + 1;

fn judge_descriptors(held: &[(RawFd, Inode)], given: &[(RawFd, Inode)]) -> Result<(), LayerError> {
    if held == given {
        return Ok(());
    }
    let foreign = held.iter().find(|descriptor| !given.contains(descriptor));
    Err(differs(
        "descriptors",
        match foreign {
            Some((number, _)) => format!("descriptor {number} is not one that was given"),
            None => format!("{} of {} are open", held.len(), given.len()),
        },
    ))
}

/// Judges the text of `/proc/PID/maps`: `from-to permissions offset device inode path`.
fn judge_maps(maps: &str) -> Result<(), LayerError> {
    let both = |line: &&str| {
        let permissions = line.split(' ').nth(1).unwrap_or("wx");
        permissions.contains('w') && permissions.contains('x')
    };
    match maps.lines().find(both) {
        Some(line) => Err(differs("memory", format!("writable and executable: {line}"))),
        None if maps.is_empty() => Err(differs("memory", "no mappings")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "\
Name:\trunner\nUid:\t7\t7\t7\t7\nGid:\t7\t7\t7\t7\nGroups:\t \nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000
CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2
Seccomp_filters:\t1\n";

    fn layer(outcome: Result<(), LayerError>) -> &'static str {
        outcome.map_or_else(|error| error.layer, |()| "none")
    }

    #[test]
    fn a_status_as_asked_for_passes() {
        assert_eq!(judge_status(STATUS, 7, 1), Ok(()));
    }

    #[test]
    fn each_difference_in_a_status_names_its_layer() {
        for (found, instead, named) in [
            ("Uid:\t7\t7", "Uid:\t7\t0", "identity"),
            ("Gid:\t7", "Gid:\t0", "identity"),
            ("Groups:\t ", "Groups:\t0 ", "identity"),
            ("CapInh:\t0", "CapInh:\t8", "capabilities"),
            ("CapPrm:\t0", "CapPrm:\t8", "capabilities"),
            ("CapEff:\t0", "CapEff:\t8", "capabilities"),
            ("CapBnd:\t0", "CapBnd:\t8", "capabilities"),
            ("CapAmb:\t0", "CapAmb:\t8", "capabilities"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "no new privileges"),
            ("Seccomp:\t2", "Seccomp:\t0", "seccomp"),
            ("Seccomp_filters:\t1", "Seccomp_filters:\t0", "seccomp"),
            ("Seccomp_filters:\t1", "", "seccomp"),
        ] {
            assert!(STATUS.contains(found), "{found}");
            assert_eq!(layer(judge_status(&STATUS.replace(found, instead), 7, 1)), named, "{instead}");
        }
        assert_eq!(layer(judge_status(STATUS, 8, 1)), "identity");
        assert_eq!(layer(judge_status(STATUS, 7, 2)), "seccomp", "the warden's own filter does not count");
        assert_eq!(layer(judge_status("", 7, 1)), "identity");
    }

    #[test]
    fn our_own_namespaces_are_not_a_sandbox() {
        for (name, layer) in NAMESPACES {
            assert_eq!(namespace(Pid::this(), name, layer), Err(differs(layer, "it is the warden's own")));
        }
    }

    #[test]
    fn descriptors_are_those_given() {
        let [a, b] = [1, 2].map(|number| Inode { device: 1, number });
        let given = [(0, a), (3, b)];
        assert_eq!(judge_descriptors(&given, &given), Ok(()));
        let reason = |held: &[_]| judge_descriptors(held, &given).unwrap_err().reason;
        assert_eq!(reason(&[(0, a), (3, b), (4, b)]), "descriptor 4 is not one that was given");
        assert_eq!(reason(&[(0, b), (3, b)]), "descriptor 0 is not one that was given");
        assert_eq!(reason(&[(0, a)]), "1 of 2 are open");
    }

    #[test]
    fn memory_is_writable_or_executable() {
        let maps = "00400000-00500000 r-xp 00000000 fe:00 9 /x\n00600000-00700000 rw-p 00000000 00:00 0 [heap]\n";
        assert_eq!(judge_maps(maps), Ok(()));
        for bad in ["0-1 rwxp 0 0:0 0", "0-1 -wxs 0 0:0 0", "0-1"] {
            assert_eq!(layer(judge_maps(&format!("{maps}{bad}\n"))), "memory");
        }
        assert_eq!(layer(judge_maps("")), "memory");
    }
}
