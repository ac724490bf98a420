//! What the warden decides, as pure functions: values in, decision out.

use sandbox_kernel::{cgroup::Limits, memory::group_limit, pidfd::Ended};
use sandbox_wire::warden::{ExitCause, RunnerSpec};

/// Threads of a runner that do not compute.
const THREADS_SPARE: u32 = 8;
/// Below this no program starts.
const MEMORY_BYTES_MIN: u64 = 8 << 20;

/// What an instance gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Private memory, bytes.
    pub(crate) memory_bytes: u64,
    /// Threads that compute.
    pub(crate) threads: u32,
    /// What its cgroup enforces.
    pub(crate) limits: Limits,
}

/// Cuts what was asked for down to what this host gives.
pub(crate) fn grant(spec: &RunnerSpec, model_bytes: u64, memory_bytes_max: u64, cpus_max: u32) -> Grant {
    let memory_bytes = spec.lease_bytes().min(memory_bytes_max).max(MEMORY_BYTES_MIN);
    let threads = spec.cpus.min(cpus_max).max(1);
    let memory = group_limit(memory_bytes, model_bytes);
    let limits = Limits { memory_bytes: memory, pids: threads.saturating_add(THREADS_SPARE), cpus: threads };
    Grant { memory_bytes, threads, limits }
}

/// The cores that instances may compute on: the last so many of those that there are, since the server's first core drives
/// the pool; all where that is more than there are.
pub(crate) fn inference_cores(mut usable: Vec<usize>, count: u32) -> Vec<usize> {
    usable.split_off(usable.len().saturating_sub(count as usize))
}

/// The first free slot. A slot's user id is free again when its last process and its cgroup are gone.
pub(crate) fn free_slot(taken: &[bool]) -> Option<usize> {
    taken.iter().position(|taken| !taken)
}

/// What ended an instance. Its own end counts before a stop that came too late to be the reason.
pub(crate) fn cause(ended: Ended, oom_kills: u64, stopping: bool, limit_bytes: u64) -> ExitCause {
    match ended {
        _ if oom_kills > 0 => ExitCause::OutOfMemory { limit_bytes },
        Ended::Signal(KILL) if stopping => ExitCause::Stopped,
        Ended::Exit(0) if stopping => ExitCause::Stopped,
        Ended::Signal(signal) => ExitCause::Signal(signal),
        Ended::Exit(code) => ExitCause::Exit(code),
    }
}

/// Whether an instance ended as one does whose memory is not what it was: SIGILL, SIGBUS, SIGFPE or SIGSEGV.
pub(crate) fn is_fault(cause: &ExitCause) -> bool {
    matches!(cause, ExitCause::Signal(4 | 7 | 8 | 11))
}

const KILL: i32 = 9;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::spec;
    use proptest::prelude::*;

    #[test]
    fn inference_has_the_last_cores() {
        let chosen = |count| inference_cores(vec![0, 1, 4, 5], count);
        assert_eq!((chosen(1), chosen(3), chosen(16)), (vec![5], vec![1, 4, 5], vec![0, 1, 4, 5]));
    }

    proptest! {
        #[test]
        fn a_grant_never_goes_past_the_host(memory: u64, cpus: u32, model: u64, most in (64_u64 << 20)..(1 << 50), cores in 1_u32..512) {
            let grant = grant(&RunnerSpec { memory_bytes: memory, cpus, ..spec() }, model, most, cores);
            prop_assert!((MEMORY_BYTES_MIN..=most).contains(&grant.memory_bytes));
            prop_assert!((1..=cores).contains(&grant.threads));
            prop_assert!(grant.limits.memory_bytes > grant.memory_bytes);
        }
    }

    #[test]
    fn an_instance_is_held_to_what_was_reserved_for_it() {
        let granted = |reserved_bytes| grant(&RunnerSpec { reserved_bytes, ..spec() }, 0, 1 << 40, 2).memory_bytes;
        assert_eq!(granted(None), spec().memory_bytes);
        assert_eq!(granted(Some(200 << 20)), 200 << 20);
        assert_eq!(granted(Some(u64::MAX)), spec().memory_bytes, "never more than the cap");
    }

    #[test]
    fn slots_fill_from_the_first() {
        assert_eq!(free_slot(&[false, false]), Some(0));
        assert_eq!(free_slot(&[true, false]), Some(1));
        assert_eq!(free_slot(&[true, true]), None);
        assert_eq!(free_slot(&[]), None);
    }

    #[test]
    fn the_cause_is_what_happened_first() {
        assert_eq!(cause(Ended::Signal(9), 1, true, 5), ExitCause::OutOfMemory { limit_bytes: 5 });
        assert_eq!(cause(Ended::Signal(9), 0, true, 5), ExitCause::Stopped);
        assert_eq!(cause(Ended::Exit(0), 0, true, 5), ExitCause::Stopped);
        assert_eq!(cause(Ended::Signal(11), 0, true, 5), ExitCause::Signal(11));
        assert_eq!(cause(Ended::Signal(9), 0, false, 5), ExitCause::Signal(9));
        assert_eq!(cause(Ended::Exit(66), 0, false, 5), ExitCause::Exit(66));
    }
}
