//! Which cores threads run on.
//!
//! ```text
//!  asleep, anywhere ──apart──▶ each kept on a core of its own ──woken──▶ each runs there ──anywhere──▶ and may go where it likes
//! ```
//! Threads that compute together spin where they wait for each other. A kernel that wakes two of them on one core while
//! another is idle has them share it for some ticks, in which neither gets far. A thread that ran last on a core of its own
//! is mostly woken there again, so that it is enough to see to it once.

use nix::{
    errno::Errno,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use std::{fs, io};

/// Threads of a process that were kept apart.
#[derive(Debug)]
pub struct Apart {
    threads: Vec<Pid>,
    cores: CpuSet,
}

/// Keeps each thread of a process on a core of its own among those that the process may use, the `turn`th of them first.
/// Nothing is done where there is one thread, or where threads are more than cores.
///
/// # Errors
/// The process is gone.
pub fn apart(process: Pid, turn: usize) -> io::Result<Option<Apart>> {
    let (threads, cores) = (threads(process)?, sched_getaffinity(process)?);
    let usable = usable(&cores);
    if threads.len() < 2 || threads.len() > usable.len() {
        return Ok(None);
    }
    for (at, thread) in threads.iter().enumerate() {
        set(*thread, &only(usable[(turn + at) % usable.len()])?)?;
    }
    Ok(Some(Apart { threads, cores }))
}

/// Keeps the calling thread on the `turn`th of the cores that it may use, counted round.
///
/// # Errors
/// The kernel's.
pub fn stay_on(turn: usize) -> io::Result<()> {
    let myself = Pid::from_raw(0);
    let usable = usable(&sched_getaffinity(myself)?);
    let Some(core) = turn.checked_rem(usable.len()) else { return Ok(()) };
    set(myself, &only(usable[core])?)
}

fn usable(cores: &CpuSet) -> Vec<usize> {
    (0..CpuSet::count()).filter(|core| cores.is_set(*core) == Ok(true)).collect()
}

fn only(core: usize) -> nix::Result<CpuSet> {
    let mut only = CpuSet::new();
    only.set(core)?;
    Ok(only)
}

impl Apart {
    /// Lets the threads run on any of the process's cores again. One that has ended is let be.
    ///
    /// # Errors
    /// The kernel's.
    pub fn anywhere(&self) -> io::Result<()> {
        self.threads.iter().try_for_each(|thread| set(*thread, &self.cores))
    }
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

    #[test]
    fn one_thread_is_let_be_and_a_process_that_is_gone_is_told() {
        let mut sleeper = sleeper();
        let process = Pid::from_raw(sleeper.id() as i32);
        assert_eq!(threads(process).unwrap(), [process]);
        assert!(apart(process, 0).unwrap().is_none());
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(apart(process, 0).is_err());
    }

    #[test]
    fn threads_are_kept_apart_until_they_may_go_anywhere() {
        let all = sched_getaffinity(Pid::this()).unwrap();
        let usable = usable(&all);
        let mut sleeper = sleeper();
        let process = Pid::from_raw(sleeper.id() as i32);
        let kept = Apart { threads: vec![process, Pid::from_raw(i32::MAX)], cores: all };
        let one = only(*usable.last().unwrap()).unwrap();
        set(process, &one).unwrap();
        assert_eq!(sched_getaffinity(process).unwrap(), one);
        kept.anywhere().unwrap();
        assert_eq!(sched_getaffinity(process).unwrap(), all);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        // More threads than cores are let be.
        let extra: Vec<_> = usable.iter().map(|_| std::thread::spawn(std::thread::park)).collect();
        assert!(apart(Pid::this(), 1).unwrap().is_none());
        extra.iter().for_each(|thread| thread.thread().unpark());
    }

    #[test]
    fn a_thread_stays_on_one_core() {
        let alone = std::thread::spawn(|| {
            stay_on(7).unwrap();
            usable(&sched_getaffinity(Pid::from_raw(0)).unwrap()).len()
        });
        assert_eq!(alone.join().unwrap(), 1);
    }
}
