//! What the supervisor and its children do to themselves: give up privileges, leave the network, tie their life to
//! their parent's.
//!
//! Call these at the start of a child, before it has threads: namespaces and no_new_privs are per thread.
#![allow(unsafe_code)]

use crate::identity;
use nix::{
    Result,
    errno::Errno,
    libc,
    sched::{CloneFlags, unshare},
    sys::{
        prctl::{set_child_subreaper, set_dumpable, set_pdeathsig},
        signal::Signal,
    },
    unistd::{Gid, Uid, getppid, setgroups, setresgid, setresuid},
};

/// Becomes an ordinary user for good: no groups, no capabilities, no way to gain any, no core dump, no tracer of the
/// same user. Clears the parent-death signal: call [`die_with_parent`] after it.
///
/// # Errors
/// The kernel's; the process must then end, since it may be half changed.
pub fn drop_privileges(uid: u32, gid: u32) -> Result<()> {
    identity::drop_bounding_set()?;
    identity::clear_ambient()?;
    setgroups(&[])?;
    let (gid, uid) = (Gid::from_raw(gid), Uid::from_raw(uid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    identity::drop_capabilities()?;
    identity::forbid_new_privileges()?;
    set_dumpable(false)
}

/// Asks to be killed when the parent thread ends. `parent` is the parent's pid as it was before the fork: if another
/// process is our parent by now, ours is gone, and the answer is `false`.
///
/// # Errors
/// The kernel's.
pub fn die_with_parent(parent: u32) -> Result<bool> {
    set_pdeathsig(Signal::SIGKILL)?;
    Ok(u32::try_from(getppid().as_raw()) == Ok(parent))
}

/// Moves the calling thread into a network namespace of its own, which holds nothing but a loopback that is down.
///
/// # Errors
/// `EPERM` without root.
pub fn leave_network() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)
}

/// Has memory go back to the kernel when it is freed, from 128 KiB on: what a process holds, a child that it clones copies.
pub fn keep_no_free_memory() {
    // SAFETY: nix has no mallopt. It takes numbers, and any value is one that the allocator can work with.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN) };
}

/// Allocations from here on are mappings of their own. To set it stops the C library from raising it to what was freed last.
const MAPPED_BYTES_MIN: libc::c_int = 128 << 10;

/// Becomes the parent of descendants whose parent ends, so that none escapes.
///
/// # Errors
/// The kernel's.
pub fn adopt_orphans() -> Result<()> {
    set_child_subreaper(true)
}

/// Has the calling thread, and those that it starts, run at once when they are woken, in place of one that computes, and for
/// short times. Such is what answers and waits. A kernel that has no such times (before Linux 6.12) goes on as it was, with
/// the weight alone.
///
/// It weighs as much as all instances together: a thread that has had more than its share waits until the others have had
/// theirs, and beside instances, which weigh ten times as much as what weighs nothing in particular, 1 ms of handshakes
/// cost the next answer 10.
///
/// # Errors
/// `EPERM` without root; the thread is then scheduled as before.
pub fn run_at_once() -> Result<()> {
    let bytes = size_of::<Attributes>() as u32;
    let attributes = Attributes { bytes, nice: NICE, runtime_ns: SLICE_NS, ..Attributes::default() };
    // SAFETY: nix has no sched_setattr. The structure is laid out as the kernel's first version of it, says its own size,
    // and outlives the call; 0 is the calling thread.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) }).map(drop)
}

/// A weight of 11916, beside [`crate::cgroup`]'s of ten times 1024.
const NICE: i32 = -11;
/// The least that the kernel takes.
const SLICE_NS: u64 = 100_000;

/// `struct sched_attr` of `linux/sched/types.h`, of an ordinary thread.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    bytes: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

/// Runs `work` on the calling thread only while nobody else wants to compute. What it holds meanwhile, others may wait for
/// without end: no lock that they take.
///
/// # Errors
/// The kernel's; `work` is then not run, or was run and the thread is left as it was meanwhile.
pub fn when_idle<T>(work: impl FnOnce() -> T) -> Result<T> {
    schedule(libc::SCHED_IDLE)?;
    let done = work();
    schedule(libc::SCHED_OTHER)?;
    Ok(done)
}

fn schedule(policy: libc::c_int) -> Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: nix has no sched_setscheduler. The structure outlives the call; 0 is the calling thread.
    Errno::result(unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_runs_at_once_hands_that_on() {
        // SAFETY: nix has no getpriority. It takes numbers; 0 is the calling thread.
        let nice = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let thread = std::thread::spawn(move || (run_at_once(), std::thread::spawn(nice).join().unwrap()));
        assert_eq!(thread.join().unwrap(), (Ok(()), NICE));
    }
}
