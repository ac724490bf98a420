//! Which cores threads run on.
//!
//! ```text
//!  asleep ──apart──▶ each kept on a core of its own ──woken──▶ each runs there ──keep_on──▶ and may go to any of its process's
//! ```
//! Said from outside, with `sched_setaffinity`: a runner's filter lets it say nothing of the kind. A cgroup's `cpuset.cpus`
//! would say the same, where there is one: on v1 that takes twice as long at its median and five times at its worst, since
//! the kernel looks at its scheduling domains anew, and a hybrid host may have none.
//!
//! Threads that compute together spin where they wait for each other. A kernel that wakes two of them on one core while
//! another is idle has them share it for some ticks, in which neither gets far. A thread that ran last on a core of its own
//! is mostly woken there again, so that it is enough to see to it once.
//!
//! A thread that ends between being listed and being set gives its number back to the kernel, which would have to come round
//! to it within microseconds: accepted.

use nix::{
    errno::Errno,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use std::{fs, io};

/// The cores that the calling thread may use, by the kernel's numbers.
///
/// # Errors
/// The kernel's.
pub fn usable() -> io::Result<Vec<usize>> {
    let cores = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|core| cores.is_set(*core) == Ok(true)).collect())
}

/// Keeps each thread of a process on a core of its own among `cores`, the `turn`th of them first, until [`keep_on`]. Nothing
/// is done where there is one thread, or where threads are more than cores; whether something was.
///
/// # Errors
/// The process is gone.
pub fn apart(process: Pid, cores: &[usize], turn: usize) -> io::Result<bool> {
    let threads = threads(process)?;
    if threads.len() < 2 || threads.len() > cores.len() {
        return Ok(false);
    }
    for (at, thread) in threads.iter().enumerate() {
        set(*thread, &only(&[cores[(turn + at) % cores.len()]])?)?;
    }
    Ok(true)
}

/// Keeps all threads of a process on `cores`, and those that its first thread makes from now on, which inherit that. One that
/// has ended is let be.
///
/// # Errors
/// The process is gone, or none of the cores can be used.
pub fn keep_on(process: Pid, cores: &[usize]) -> io::Result<()> {
    let cores = only(cores)?;
    // The first thread before the others are counted: what it made until then is among them.
    set(process, &cores)?;
    threads(process)?.into_iter().try_for_each(|thread| set(thread, &cores))
}

/// Keeps the calling thread on `cores`, and what it makes.
///
/// # Errors
/// None of them can be used.
pub fn stay_within(cores: &[usize]) -> io::Result<()> {
    set(Pid::from_raw(0), &only(cores)?)
}

fn only(cores: &[usize]) -> nix::Result<CpuSet> {
    let mut only = CpuSet::new();
    cores.iter().try_for_each(|core| only.set(*core))?;
    Ok(only)
}

fn set(thread: Pid, cores: &CpuSet) -> io::Result<()> {
    match sched_setaffinity(thread, cores) {
        Err(Errno::ESRCH) => Ok(()),
        other => Ok(other?),
    }
}

/// A process's threads, its first thread first.
fn threads(process: Pid) -> io::Result<Vec<Pid>> {
    let entries = fs::read_dir(format!("/proc/{process}/task"))?;
    let mut threads: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    threads.sort_unstable_by_key(|thread: &i32| (*thread != process.as_raw(), *thread));
    Ok(threads.into_iter().map(Pid::from_raw).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn sleeper() -> Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    fn on(thread: Pid) -> CpuSet {
        sched_getaffinity(thread).unwrap()
    }

    #[test]
    fn one_thread_is_not_kept_apart_and_a_process_that_is_gone_is_told() {
        let mut sleeper = sleeper();
        let process = Pid::from_raw(sleeper.id() as i32);
        let usable = usable().unwrap();
        assert_eq!(threads(process).unwrap(), [process]);
        assert!(!apart(process, &usable, 0).unwrap());
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(apart(process, &usable, 0).is_err());
        assert!(keep_on(process, &usable).is_err());
    }

    #[test]
    fn a_process_is_kept_where_it_is_told() {
        let usable = usable().unwrap();
        let mut sleeper = sleeper();
        let process = Pid::from_raw(sleeper.id() as i32);
        let last = &usable[usable.len() - 1..];
        keep_on(process, last).unwrap();
        assert_eq!(on(process), only(last).unwrap());
        keep_on(process, &usable).unwrap();
        assert_eq!(on(process), only(&usable).unwrap());
        assert!(keep_on(process, &[]).is_err(), "there is no such place");
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        // More threads than cores are let be.
        let extra: Vec<_> = usable.iter().map(|_| std::thread::spawn(std::thread::park)).collect();
        assert!(!apart(Pid::this(), &usable, 1).unwrap());
        extra.iter().for_each(|thread| thread.thread().unpark());
    }

    #[test]
    fn a_thread_stays_on_one_core() {
        let alone = std::thread::spawn(|| {
            stay_within(&usable().unwrap()[..1]).unwrap();
            usable().unwrap().len()
        });
        assert_eq!(alone.join().unwrap(), 1);
    }
}
