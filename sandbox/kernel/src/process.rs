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
        resource::{UsageWho, getrusage},
        signal::Signal,
        time::TimeValLike,
    },
    unistd::{Gid, Pid, Uid, getppid, setgroups, setresgid, setresuid},
};
use std::{path::Path, time::Duration};

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

/// Has the calling thread, and those that it starts, run soon after they are woken, in place of one that computes, and for
/// short times. Such is what answers and waits. A kernel that has no such times (before Linux 6.12) goes on as it was, with
/// the weight alone.
///
/// It weighs as much as all instances together: a thread that has had more than its share waits until the others have had
/// theirs, and beside instances, which weigh ten times as much as what weighs nothing in particular, 1 ms of handshakes
/// cost the next answer 10.
///
/// # Errors
/// `EPERM` without root; the thread is then scheduled as before.
pub fn run_soon() -> Result<()> {
    schedule(Pid::from_raw(0), &SOON)
}

/// Has a thread of `process` run at once when it is woken, whatever computes, and until it waits, by the kernel's real-time
/// policy, which leaves others a twentieth of each core; or, if not, as [`run_soon`] says.
///
/// # Errors
/// `ESRCH` where the process has no such thread. `EPERM` without root, or where the kernel shares real time out by groups
/// and has none for this one; the thread is then scheduled as before.
pub fn set_urgent(process: u32, thread: i32, is_urgent: bool) -> Result<()> {
    let of_process = Path::new("/proc").join(process.to_string()).join("task").join(thread.to_string());
    if thread <= 0 || !of_process.exists() {
        return Err(Errno::ESRCH);
    }
    schedule(Pid::from_raw(thread), if is_urgent { &URGENT } else { &SOON })
}

fn schedule(thread: Pid, attributes: &Attributes) -> Result<()> {
    // SAFETY: nix has no sched_setattr. The structure is laid out as the kernel's first version of it, says its own size,
    // and outlives the call; a number that is no thread's is refused.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setattr, thread.as_raw(), &raw const *attributes, 0) })
        .map(drop)
}

/// The CPU time that the calling thread has taken.
///
/// # Errors
/// The kernel's.
pub fn thread_cpu_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let us = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(us.unsigned_abs()))
}

/// A weight of 11916, beside [`crate::cgroup`]'s of ten times 1024; and the shortest time that the kernel takes.
const SOON: Attributes = Attributes { nice: -11, runtime_ns: 100_000, ..Attributes::NONE };
/// The lowest priority of real time.
const URGENT: Attributes = Attributes { policy: libc::SCHED_RR as u32, priority: 1, ..Attributes::NONE };

/// `struct sched_attr` of `linux/sched/types.h`.
#[repr(C)]
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

impl Attributes {
    const NONE: Self = Self {
        bytes: size_of::<Self>() as u32,
        policy: 0,
        flags: 0,
        nice: 0,
        priority: 0,
        runtime_ns: 0,
        deadline_ns: 0,
        period_ns: 0,
    };
}

/// Runs `work` on the calling thread only while nobody else wants to compute. What it holds meanwhile, others may wait for
/// without end: no lock that they take.
///
/// # Errors
/// The kernel's; `work` is then not run, or was run and the thread is left as it was meanwhile.
pub fn when_idle<T>(work: impl FnOnce() -> T) -> Result<T> {
    set_policy(libc::SCHED_IDLE)?;
    let done = work();
    set_policy(libc::SCHED_OTHER)?;
    Ok(done)
}

fn set_policy(policy: libc::c_int) -> Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: nix has no sched_setscheduler. The structure outlives the call; 0 is the calling thread.
    Errno::result(unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_runs_soon_hands_that_on_and_may_be_urgent() {
        // SAFETY: nix has no getpriority and no sched_getscheduler. They take numbers; 0 is the calling thread.
        let class = || unsafe { (libc::sched_getscheduler(0), libc::getpriority(libc::PRIO_PROCESS, 0)) };
        let thread = std::thread::spawn(move || {
            let (process, own) = (std::process::id(), nix::unistd::gettid().as_raw());
            assert_eq!(run_soon(), Ok(()));
            assert_eq!(std::thread::spawn(class).join().unwrap(), (libc::SCHED_OTHER, -11));
            assert_eq!((set_urgent(process, own, true), class().0), (Ok(()), libc::SCHED_RR));
            assert_eq!((set_urgent(process, own, false), class()), (Ok(()), (libc::SCHED_OTHER, -11)));
            for (process, thread) in [(process, 0), (process, -1), (process, 1), (1, own)] {
                assert_eq!(set_urgent(process, thread, true), Err(Errno::ESRCH));
            }
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_thread_knows_what_it_took() {
        let before = thread_cpu_time().unwrap();
        while thread_cpu_time().unwrap() < before + Duration::from_millis(5) {
            std::hint::black_box((0..10_000_u64).sum::<u64>());
        }
    }
}
