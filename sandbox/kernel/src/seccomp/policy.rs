//! The rules, found by tracing the real runner while it loads models, good and broken, and answers.
//!
//! | kept | for |
//! |---|---|
//! | `recvfrom` `sendto` on descriptor 3 | its socket, and no descriptors over it |
//! | `write` `writev` on descriptor 2 | its last words |
//! | `mmap` `mprotect` `mremap` `munmap` `brk` `madvise` | memory, never executable |
//! | `clone` with a thread's flags and no other, `futex`, `set_robust_list`, `rseq`, `exit` | ggml's threads |
//! | `rt_sig…` `sigaltstack`, `tgkill` of itself by SIGABRT | the runtime's guard pages, and `abort` |
//!
//! Left out, though usual in such lists: `prctl`, `ioctl`, `fcntl`, `poll` (but for one look at start), `recvmsg`.

use super::{Answer, Check, Filter, Rule, compile};
use crate::spec::SOCKET;
use nix::{errno::Errno, libc};
use std::os::fd::RawFd;

/// The one exec that a starting process may make, and where its failure is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The program's descriptor.
    pub program: RawFd,
    /// Write end of the pipe that names a failed step.
    pub report: RawFd,
    /// Addresses of the empty path, the arguments and the environment.
    pub image: [u64; 3],
}

/// The filter of a process that has yet to start: what [`sealed`] allows, and what it takes to become a program and to
/// load a model.
pub fn starting(start: &Start) -> Filter {
    compile(&merge([served(), started(), executed(start)].concat()))
}

/// The filter of a process that has its model in memory.
pub fn sealed() -> Filter {
    compile(&merge(served()))
}

/// Brings rules in the order of their calls, those of one call in the order in which they were given.
fn merge(mut rules: Vec<Rule>) -> Vec<Rule> {
    rules.sort_by_key(|rule| rule.call);
    rules
}

fn rule<const N: usize>(call: libc::c_long, checks: [Check; N], answer: Answer) -> Rule {
    Rule { call: call as u32, checks: checks.to_vec(), answer }
}

fn allow(call: libc::c_long) -> Rule {
    rule(call, [], Answer::Allow)
}

fn when<const N: usize>(call: libc::c_long, checks: [Check; N]) -> Rule {
    rule(call, checks, Answer::Allow)
}

fn fail(call: libc::c_long, errno: Errno) -> Rule {
    rule(call, [], Answer::Fail(errno))
}

/// What the kernel reads of an argument that is an `int`.
const INT: u64 = u32::MAX as u64;

/// An argument of 64 bits is this.
const fn is(argument: u8, value: u64) -> Check {
    Check { argument, mask: u64::MAX, value }
}

/// An `int` is this.
const fn int(argument: u8, value: libc::c_int) -> Check {
    Check { argument, mask: INT, value: value as u32 as u64 }
}

/// Flags are these, and perhaps some of those.
const fn flags(argument: u8, these: libc::c_int, those: libc::c_int) -> Check {
    Check { argument, mask: !(those as u64), value: these as u64 }
}

/// The same, of an `int`.
const fn int_flags(argument: u8, these: libc::c_int, those: libc::c_int) -> Check {
    Check { argument, mask: INT & !(those as u64), value: these as u64 }
}

const NULL: u64 = 0;
/// What `pthread_create` asks for, to the bit.
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;
const READ_WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
const PRIVATE: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const PRIVATE_MAY: libc::c_int = libc::MAP_STACK | libc::MAP_NORESERVE | libc::MAP_POPULATE;
const FUTEX_MAY: libc::c_int = libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME;
/// The process's number in its namespace: it is the first.
const SELF: libc::c_int = 1;

/// What a process with its model in memory needs.
fn served() -> Vec<Rule> {
    [&talk()[..], &threads(), &memory(), &signals(), &odds()].concat()
}

fn talk() -> [Rule; 4] {
    [
        when(libc::SYS_recvfrom, [int(0, SOCKET), int_flags(3, 0, libc::MSG_DONTWAIT), is(4, NULL), is(5, NULL)]),
        when(libc::SYS_sendto, [int(0, SOCKET), int(3, libc::MSG_NOSIGNAL), is(4, NULL), is(5, 0)]),
        when(libc::SYS_write, [int(0, libc::STDERR_FILENO)]),
        when(libc::SYS_writev, [int(0, libc::STDERR_FILENO)]),
    ]
}

fn threads() -> [Rule; 11] {
    let futex = |operation| when(libc::SYS_futex, [int_flags(1, operation, FUTEX_MAY)]);
    [
        futex(libc::FUTEX_WAIT),
        futex(libc::FUTEX_WAKE),
        futex(libc::FUTEX_WAIT_BITSET),
        futex(libc::FUTEX_WAKE_BITSET),
        when(libc::SYS_clone, [is(0, THREAD)]),
        fail(libc::SYS_clone3, Errno::ENOSYS),
        allow(libc::SYS_set_robust_list),
        allow(libc::SYS_rseq),
        allow(libc::SYS_sched_yield),
        allow(libc::SYS_exit),
        allow(libc::SYS_exit_group),
    ]
}

fn memory() -> [Rule; 9] {
    let advice = |advice| when(libc::SYS_madvise, [int(2, advice)]);
    [
        when(libc::SYS_mmap, [flags(2, 0, READ_WRITE), flags(3, PRIVATE, PRIVATE_MAY)]),
        when(libc::SYS_mprotect, [flags(2, 0, READ_WRITE)]),
        when(libc::SYS_mremap, [flags(3, 0, libc::MREMAP_MAYMOVE)]),
        allow(libc::SYS_munmap),
        allow(libc::SYS_brk),
        advice(libc::MADV_DONTNEED),
        advice(libc::MADV_WILLNEED),
        advice(libc::MADV_FREE),
        advice(libc::MADV_HUGEPAGE),
    ]
}

fn signals() -> [Rule; 6] {
    [
        allow(libc::SYS_rt_sigprocmask),
        allow(libc::SYS_rt_sigaction),
        allow(libc::SYS_rt_sigreturn),
        allow(libc::SYS_sigaltstack),
        allow(libc::SYS_restart_syscall),
        when(libc::SYS_tgkill, [int(0, SELF), int(2, libc::SIGABRT)]),
    ]
}

fn odds() -> [Rule; 5] {
    [libc::SYS_clock_gettime, libc::SYS_getpid, libc::SYS_gettid, libc::SYS_getrandom, libc::SYS_close].map(allow)
}

/// What the C library's start and the loading of a model need besides.
fn started() -> Vec<Rule> {
    vec![
        when(libc::SYS_arch_prctl, [int(0, ARCH_SET_FS)]),
        allow(libc::SYS_set_tid_address),
        // Only to read a limit of its own.
        when(libc::SYS_prlimit64, [int(0, 0), is(2, NULL)]),
        // Whether descriptors 0 to 2 are open.
        when(libc::SYS_poll, [is(1, 3), int(2, 0)]),
        when(libc::SYS_getsockname, [int(0, SOCKET)]),
        when(libc::SYS_openat, [int(0, libc::AT_FDCWD), int_flags(2, libc::O_RDONLY, libc::O_CLOEXEC)]),
        when(libc::SYS_newfstatat, [int(3, libc::AT_EMPTY_PATH)]),
        allow(libc::SYS_read),
        allow(libc::SYS_lseek),
        allow(libc::SYS_fadvise64),
        when(libc::SYS_mmap, [is(2, libc::PROT_READ as u64), flags(3, libc::MAP_SHARED, libc::MAP_POPULATE)]),
        // Asked for in passing: where the program lies, how many CPUs, how much memory. There is no answer in here.
        fail(libc::SYS_readlink, Errno::ENOENT),
        fail(libc::SYS_sched_getaffinity, Errno::ENOSYS),
        fail(libc::SYS_sysinfo, Errno::ENOSYS),
    ]
}

/// `ARCH_SET_FS` of `asm/prctl.h`: the thread pointer.
const ARCH_SET_FS: libc::c_int = 0x1002;

/// Both are dead once the program runs: see the header of [`super`].
fn executed(start: &Start) -> Vec<Rule> {
    let [path, arguments, environment] = start.image;
    let pinned = [is(1, path), is(2, arguments), is(3, environment)];
    let [path, arguments, environment] = pinned;
    vec![
        when(libc::SYS_execveat, [int(0, start.program), path, arguments, environment, int(4, libc::AT_EMPTY_PATH)]),
        when(libc::SYS_write, [int(0, start.report)]),
    ]
}

#[cfg(test)]
mod tests {
    use super::{super::interpreter::run, *};

    const X86_64: u32 = super::super::X86_64;
    const START: Start = Start { program: 20, report: 21, image: [0x10_0000_1000, 0x10_0000_2000, 0x10_0000_3000] };

    fn answered(filter: &Filter, call: libc::c_long, arguments: [u64; 6]) -> u32 {
        run(filter, X86_64, call as u32, arguments)
    }

    fn check(filter: &Filter, call: libc::c_long, arguments: [u64; 6], expected: u32) {
        assert_eq!(answered(filter, call, arguments), expected, "call {call} {arguments:x?}");
    }

    const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;
    const KILLED: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    const NOSIGNAL: u64 = libc::MSG_NOSIGNAL as u64;
    const MODEL_MAP: u64 = (libc::MAP_SHARED | libc::MAP_POPULATE) as u64;
    const HERE: u64 = libc::AT_FDCWD as u32 as u64;

    #[test]
    fn what_the_runner_does_is_allowed() {
        for (call, arguments) in [
            (libc::SYS_recvfrom, [3, 1, 9, 0, 0, 0]),
            (libc::SYS_recvfrom, [3, 1, 9, libc::MSG_DONTWAIT as u64, 0, 0]),
            (libc::SYS_sendto, [3, 1, 9, NOSIGNAL, 0, 0]),
            (libc::SYS_write, [2, 1, 9, 0, 0, 0]),
            (libc::SYS_futex, [1, 0x80, 0, 0, 0, 0]),
            (libc::SYS_futex, [1, 0x109, 0, 0, 0, 0]),
            (libc::SYS_clone, [0x3d_0f00, 1, 1, 1, 1, 0]),
            (libc::SYS_mmap, [0, 4096, 3, 0x22, INT, 0]),
            (libc::SYS_mmap, [0, 4096, 0, 0x2_0022, INT, 0]),
            (libc::SYS_mprotect, [0, 4096, 3, 0, 0, 0]),
            (libc::SYS_madvise, [0, 4096, 4, 0, 0, 0]),
            (libc::SYS_tgkill, [1, 7, 6, 0, 0, 0]),
        ] {
            check(&starting(&START), call, arguments, ALLOWED);
            check(&sealed(), call, arguments, ALLOWED);
        }
    }

    #[test]
    fn what_a_start_does_is_allowed_until_the_seal() {
        let [path, arguments, environment] = START.image;
        for (call, arguments) in [
            (libc::SYS_execveat, [20, path, arguments, environment, libc::AT_EMPTY_PATH as u64, 0]),
            (libc::SYS_write, [21, 1, 8, 0, 0, 0]),
            (libc::SYS_openat, [HERE, 1, 0, 0, 0, 0]),
            (libc::SYS_openat, [HERE, 1, libc::O_CLOEXEC as u64, 0, 0, 0]),
            (libc::SYS_mmap, [0, 4096, 1, MODEL_MAP, 4, 0]),
            (libc::SYS_read, [4, 1, 1, 0, 0, 0]),
            (libc::SYS_prlimit64, [0, 3, 0, 1, 0, 0]),
        ] {
            check(&starting(&START), call, arguments, ALLOWED);
            check(&sealed(), call, arguments, KILLED);
        }
    }

    #[test]
    fn arguments_out_of_bounds_are_killed() {
        let [path, arguments, environment] = START.image;
        let empty = libc::AT_EMPTY_PATH as u64;
        for (call, arguments) in [
            (libc::SYS_recvfrom, [2, 1, 9, 0, 0, 0]),
            (libc::SYS_recvfrom, [3, 1, 9, libc::MSG_PEEK as u64, 0, 0]),
            (libc::SYS_sendto, [3, 1, 9, NOSIGNAL, 1, 16]),
            (libc::SYS_write, [1, 1, 9, 0, 0, 0]),
            (libc::SYS_futex, [1, 13, 0, 0, 0, 0]),
            (libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]),
            (libc::SYS_clone, [0x3d_0f00 | libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]),
            (libc::SYS_clone, [0x3d_0f00 | 1 << 33, 0, 0, 0, 0, 0]),
            (libc::SYS_mmap, [0, 4096, 7, 0x22, INT, 0]),
            (libc::SYS_mmap, [0, 4096, 5, MODEL_MAP, 4, 0]),
            (libc::SYS_mmap, [0, 4096, 3, MODEL_MAP, 4, 0]),
            (libc::SYS_mmap, [0, 4096, 3, 0x32, INT, 0]),
            (libc::SYS_mprotect, [0, 4096, 4, 0, 0, 0]),
            (libc::SYS_mprotect, [0, 4096, 7, 0, 0, 0]),
            (libc::SYS_tgkill, [2, 7, 6, 0, 0, 0]),
            (libc::SYS_tgkill, [1, 7, 9, 0, 0, 0]),
            (libc::SYS_openat, [HERE, 1, libc::O_RDWR as u64, 0, 0, 0]),
            (libc::SYS_openat, [HERE, 1, libc::O_PATH as u64, 0, 0, 0]),
            (libc::SYS_openat, [0, 1, 0, 0, 0, 0]),
            (libc::SYS_prlimit64, [0, 3, 1, 1, 0, 0]),
            (libc::SYS_prlimit64, [2, 3, 0, 1, 0, 0]),
            (libc::SYS_execveat, [20, path + 1, arguments, environment, empty, 0]),
            (libc::SYS_execveat, [20, path, arguments + (1 << 32), environment, empty, 0]),
            (libc::SYS_execveat, [3, path, arguments, environment, empty, 0]),
            (libc::SYS_execve, [path, arguments, environment, 0, 0, 0]),
        ] {
            check(&starting(&START), call, arguments, KILLED);
        }
    }

    #[test]
    fn of_all_calls_and_arguments_few_are_ever_allowed() {
        let allowed = |filter: &Filter| (0..1024).filter(|call| answered(filter, *call, [0; 6]) == ALLOWED).count();
        assert_eq!((allowed(&starting(&START)), allowed(&sealed())), (25, 20));
        let x32 = |call: libc::c_long| answered(&starting(&START), 1 << 30 | call, [0; 6]);
        assert!((0..1024).all(|call| x32(call) == KILLED));
    }

    #[test]
    fn harmless_questions_are_answered_no() {
        let no = |errno: Errno| libc::SECCOMP_RET_ERRNO | errno as u32;
        check(&sealed(), libc::SYS_clone3, [0; 6], no(Errno::ENOSYS));
        check(&starting(&START), libc::SYS_readlink, [0; 6], no(Errno::ENOENT));
        check(&starting(&START), libc::SYS_sched_getaffinity, [0; 6], no(Errno::ENOSYS));
    }
}
