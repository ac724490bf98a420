//! What this kernel can do, found out by doing it: for `ember doctor`, and for exit code 69.
//!
//! A version number says little about a kernel that someone configured, a container that someone confined or a
//! distribution that someone patched, so each feature is tried: in a throwaway child where trying changes the process.
#![allow(unsafe_code)]

use crate::{cgroup::Hierarchy, landlock, pidfd::Pidfd, spawn::fork_and_end};
use nix::{
    errno::Errno,
    libc,
    sys::resource::{Resource, getrlimit},
    unistd::Pid,
};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// One feature, tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Its name.
    pub name: &'static str,
    /// Whether Ember cannot run without it.
    pub needed: bool,
    /// What was found, or what to do.
    pub outcome: Result<String, String>,
}

/// A layer of the sandbox without which the others still hold.
const LAYER_LEFT_OUT: &str = "landlock";

/// Whether every needed feature is there; the first that is not otherwise. With `may_lack_layers`, those that are missing and
/// can be left out are the answer.
///
/// # Errors
/// The missing feature.
pub fn require(probes: &[Probe], may_lack_layers: bool) -> Result<Vec<&Probe>, &Probe> {
    let missing = probes.iter().filter(|probe| probe.needed && probe.outcome.is_err());
    missing.map(|probe| if may_lack_layers && probe.name == LAYER_LEFT_OUT { Ok(probe) } else { Err(probe) }).collect()
}

/// Tries everything. Takes a few milliseconds and changes nothing.
pub fn all() -> Vec<Probe> {
    let mut probes = vec![clone3()];
    probes.extend(NAMESPACES.map(namespace));
    probes.extend([pidfd(), close_range(), mount_setattr(), memfd(), io_uring(), cgroup(), seccomp(), landlock()]);
    probes.extend([memlock(), cpus()]);
    probes
}

fn probe(name: &'static str, needed: bool, outcome: Result<String, String>) -> Probe {
    Probe { name, needed, outcome }
}

fn fine<T>(result: Result<T, Errno>, fix: &str) -> Result<String, String> {
    result.map(|_| "works".to_owned()).map_err(|error| format!("{error}; {fix}"))
}

fn clone3() -> Probe {
    probe("clone3", true, fine(fork_and_end(0), "needs Linux 5.3 or a container whose seccomp filter allows clone3"))
}

/// Each is tried inside a new user namespace, as it will be used.
const NAMESPACES: [(&str, libc::c_int, &str); 7] = [
    ("user namespace", 0, "enable CONFIG_USER_NS, and raise sysctl user.max_user_namespaces"),
    ("pid namespace", libc::CLONE_NEWPID, "enable CONFIG_PID_NS"),
    ("mount namespace", libc::CLONE_NEWNS, "raise sysctl user.max_mnt_namespaces"),
    ("network namespace", libc::CLONE_NEWNET, "enable CONFIG_NET_NS"),
    ("ipc namespace", libc::CLONE_NEWIPC, "enable CONFIG_IPC_NS"),
    ("uts namespace", libc::CLONE_NEWUTS, "enable CONFIG_UTS_NS"),
    ("cgroup namespace", libc::CLONE_NEWCGROUP, "enable CONFIG_CGROUPS"),
];

fn namespace((name, flag, fix): (&'static str, libc::c_int, &str)) -> Probe {
    probe(name, true, fine(fork_and_end(libc::CLONE_NEWUSER | flag), fix))
}

/// Makes a raw call that answers a descriptor, and closes it.
fn descriptor(number: libc::c_long, arguments: [usize; 3]) -> Result<(), Errno> {
    let [a, b, c] = arguments;
    // SAFETY: features are tried by number, since wrappers hide why they fail. Callers below pass numbers, or pointers to
    // memory that outlives the call.
    let fd = Errno::result(unsafe { libc::syscall(number, a, b, c) })?;
    // SAFETY: on success these calls answer a descriptor made for us.
    drop(unsafe { OwnedFd::from_raw_fd(fd as RawFd) });
    Ok(())
}

fn pidfd() -> Probe {
    let tried = Pidfd::open(Pid::this());
    probe("pidfd", true, fine(tried, "needs Linux 5.3"))
}

fn close_range() -> Probe {
    let past_the_last = libc::c_uint::MAX;
    // SAFETY: the range holds no open descriptor, so nothing changes.
    let tried =
        unsafe { libc::syscall(libc::SYS_close_range, past_the_last, past_the_last, libc::CLOSE_RANGE_CLOEXEC) };
    probe("close_range", true, fine(Errno::result(tried), "needs Linux 5.11"))
}

fn mount_setattr() -> Probe {
    // SAFETY: null pointers and a size of 0 are refused with EINVAL by a kernel that knows the call.
    let tried = Errno::result(unsafe { libc::syscall(libc::SYS_mount_setattr, -1, 0, 0, 0, 0) });
    let known = if tried == Err(Errno::ENOSYS) { Err(Errno::ENOSYS) } else { Ok(()) };
    probe("mount_setattr", true, fine(known, "needs Linux 5.12"))
}

fn memfd() -> Probe {
    let tried = descriptor(libc::SYS_memfd_create, [c"probe".as_ptr() as usize, libc::MFD_CLOEXEC as usize, 0]);
    probe("memfd", true, fine(tried, "enable CONFIG_MEMFD_CREATE"))
}

/// Room for `struct io_uring_params`.
const IO_URING_PARAMETERS_WORDS: usize = 30;

fn io_uring() -> Probe {
    let parameters = [0_u32; IO_URING_PARAMETERS_WORDS];
    let tried = descriptor(libc::SYS_io_uring_setup, [8, parameters.as_ptr() as usize, 0]);
    let fix = match tried {
        Err(Errno::EPERM) => {
            "set sysctl kernel.io_uring_disabled=0, and allow io_uring in the container's seccomp filter"
        }
        Err(Errno::ENOMEM) => "raise the limit on locked memory (ulimit -l)",
        _ => "enable CONFIG_IO_URING",
    };
    probe("io_uring", true, fine(tried, fix))
}

fn cgroup() -> Probe {
    let describe = |hierarchy: Hierarchy| match hierarchy {
        Hierarchy::V2 { root } => format!("v2 at {}", root.display()),
        Hierarchy::V1 { memory, .. } => format!("v1 (memory at {})", memory.display()),
    };
    probe("cgroup controllers", true, Hierarchy::of_host().map(describe).map_err(|error| error.to_string()))
}

fn seccomp() -> Probe {
    let action = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the call reads one u32, which outlives it, and changes nothing.
    let tried = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    probe("seccomp", true, fine(Errno::result(tried), "enable CONFIG_SECCOMP_FILTER"))
}

fn landlock() -> Probe {
    let fix = "enable CONFIG_SECURITY_LANDLOCK and add landlock to the kernel's lsm= list";
    let tried = landlock::version().map(|abi| format!("ABI {abi}")).map_err(|error| format!("{error}; {fix}"));
    probe(LAYER_LEFT_OUT, true, tried)
}

/// What one io_uring executor pins for each core at the least.
const MEMLOCK_BYTES_MIN: u64 = 512 << 10;

fn memlock() -> Probe {
    let outcome = match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((libc::RLIM_INFINITY, _)) => Ok("unlimited".to_owned()),
        Ok((soft, _)) if soft >= MEMLOCK_BYTES_MIN => Ok(format!("{} KiB", soft >> 10)),
        Ok((soft, _)) => Err(format!("{} KiB; raise it to 512 KiB or more (ulimit -l)", soft >> 10)),
        Err(error) => Err(error.to_string()),
    };
    probe("locked memory limit", true, outcome)
}

fn cpus() -> Probe {
    let counted = std::thread::available_parallelism();
    probe("cpus", true, counted.map(|count| count.to_string()).map_err(|error| error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_is_tried_and_this_host_has_the_needed() {
        let probes = all();
        assert_eq!(probes.len(), 18);
        assert_eq!(require(&probes, false), Ok(Vec::new()), "{probes:#?}");
    }

    #[test]
    fn a_missing_feature_is_named_unless_it_is_a_luxury() {
        let luxury = probe("a", false, Err("no".into()));
        let needed = probe("b", true, Err("no".into()));
        assert_eq!(require(std::slice::from_ref(&luxury), false), Ok(Vec::new()));
        assert_eq!(require(&[luxury, needed.clone()], true), Err(&needed));
    }

    #[test]
    fn only_landlock_can_be_left_out_and_only_when_told() {
        let missing = |name| probe(name, true, Err("no".into()));
        let probes = [missing(LAYER_LEFT_OUT), missing("seccomp")];
        assert_eq!(require(&probes[..1], false), Err(&probes[0]));
        assert_eq!(require(&probes[..1], true), Ok(vec![&probes[0]]));
        assert_eq!(require(&probes, true), Err(&probes[1]));
    }
}
