//! Ways to start a process, to become another program, and to reach into processes that are there.

use super::{Escape, HERE, MODEL, call, text, untried, value, works};
use nix::{Result, libc};

/// A call that makes a process. The new one ends at once.
fn fork<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> Result<()> {
    match value(number, arguments)? {
        // SAFETY: safe after a fork; it runs no destructors, which belong to the parent.
        0 => unsafe { libc::_exit(0) },
        _ => Ok(()),
    }
}

const ENDS: usize = libc::SIGCHLD as usize;

fn clone(flags: i32) -> Result<()> {
    fork(libc::SYS_clone, [flags as usize | ENDS])
}

const THREAD: i32 = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;

fn unshare(flags: i32) -> Result<()> {
    call(libc::SYS_unshare, [flags as usize])
}

/// Arguments or environment: no strings.
static NONE: [usize; 1] = [0];

fn execute(path: &'static std::ffi::CStr) -> Result<()> {
    let strings = (&raw const NONE) as usize;
    call(libc::SYS_execve, [text(path) as usize, strings, strings])
}

/// Copies a word of this process by a call that could as well reach into another.
fn reach(number: libc::c_long) -> Result<()> {
    let (from, mut to) = (1_u64, 0_u64);
    let local = [(&raw mut to) as usize, size_of_val(&to)];
    let remote = [(&raw const from) as usize, size_of_val(&from)];
    let own = std::process::id() as usize;
    call(number, [own, (&raw const local) as usize, 1, (&raw const remote) as usize, 1, 0])
}

pub(super) const ALL: &[Escape] = &[
    works("fork", || fork(libc::SYS_fork, [])),
    works("vfork", || clone(libc::CLONE_VFORK)),
    works("clone a process", || clone(0)),
    works("clone a process by clone3", || {
        let mut arguments = [0_u64; 8];
        // After flags and three pointers: the signal at its end.
        arguments[4] = ENDS as u64;
        fork(libc::SYS_clone3, [(&raw const arguments) as usize, size_of_val(&arguments)])
    }),
    works("clone a sibling", || clone(libc::CLONE_FILES)),
    works("clone into a user namespace", || clone(libc::CLONE_NEWUSER)),
    works("clone into a pid namespace", || clone(libc::CLONE_NEWPID)),
    works("clone into a network namespace", || clone(libc::CLONE_NEWNET)),
    untried("clone a thread with a user namespace", || {
        call(libc::SYS_clone, [(THREAD | libc::CLONE_NEWUSER) as usize, 0, 0, 0, 0])
    }),
    untried("clone an untraceable thread", || {
        call(libc::SYS_clone, [(THREAD | libc::CLONE_UNTRACED) as usize, 0, 0, 0, 0])
    }),
    works("execute a program", || execute(c"/bin/true")),
    untried("execute the model", || execute(MODEL)),
    untried("execute its own program again", || execute(c"/proc/self/exe")),
    works("execute by execveat", || {
        let strings = (&raw const NONE) as usize;
        call(libc::SYS_execveat, [HERE, text(c"/bin/true") as usize, strings, strings, 0])
    }),
    untried("execute a descriptor of the start", || {
        let strings = (&raw const NONE) as usize;
        call(libc::SYS_execveat, [16, text(c"") as usize, strings, strings, libc::AT_EMPTY_PATH as usize])
    }),
    works("unshare the user namespace", || unshare(libc::CLONE_NEWUSER)),
    works("unshare the mount namespace", || unshare(libc::CLONE_NEWNS)),
    works("unshare the network namespace", || unshare(libc::CLONE_NEWNET)),
    works("unshare the time namespace", || unshare(CLONE_NEWTIME)),
    untried("join a namespace", || call(libc::SYS_setns, [0, 0])),
    works("signal everyone", || call(libc::SYS_kill, [usize::MAX, 0])),
    untried("kill everyone", || call(libc::SYS_kill, [usize::MAX, libc::SIGKILL as usize])),
    untried("signal the second process", || call(libc::SYS_tgkill, [2, 2, libc::SIGABRT as usize])),
    untried("kill itself by tgkill", || call(libc::SYS_tgkill, [1, 1, libc::SIGKILL as usize])),
    works("signal by tkill", || call(libc::SYS_tkill, [std::process::id() as usize, 0])),
    untried("queue a signal", || call(libc::SYS_rt_sigqueueinfo, [2, libc::SIGUSR1 as usize, 0])),
    works("hold a process by descriptor", || call(libc::SYS_pidfd_open, [std::process::id() as usize, 0])),
    untried("signal by descriptor", || call(libc::SYS_pidfd_send_signal, [0, 0, 0, 0])),
    untried("take a descriptor out of a process", || call(libc::SYS_pidfd_getfd, [0, 0, 0])),
    works("be traced", || call(libc::SYS_ptrace, [libc::PTRACE_TRACEME as usize, 0, 0, 0])),
    untried("trace the second process", || call(libc::SYS_ptrace, [libc::PTRACE_SEIZE as usize, 2, 0, 0])),
    works("read a process's memory", || reach(libc::SYS_process_vm_readv)),
    works("write a process's memory", || reach(libc::SYS_process_vm_writev)),
    untried("advise a process's memory", || call(libc::SYS_process_madvise, [0, 0, 0, 0, 0])),
    untried("compare two processes", || call(libc::SYS_kcmp, [1, 1, 1, 0, 0])),
    works("leave the session", || fork(libc::SYS_fork, []).and_then(|()| call(libc::SYS_getsid, [0]))),
    works("raise its priority", || call(libc::SYS_setpriority, [0, 0, usize::MAX])),
    works("run on chosen CPUs", || {
        let first = 1_u64;
        call(libc::SYS_sched_setaffinity, [0, size_of_val(&first), (&raw const first) as usize])
    }),
    untried("run before everyone", || {
        let priority = 1_i32;
        call(libc::SYS_sched_setscheduler, [0, libc::SCHED_FIFO as usize, (&raw const priority) as usize])
    }),
    works("raise its input and output priority", || call(libc::SYS_ioprio_set, [1, 0, 2 << 13])),
    works("set a limit of its own", || {
        let limit = [8_u64, 8];
        call(libc::SYS_prlimit64, [0, libc::RLIMIT_NOFILE as usize, (&raw const limit) as usize, 0])
    }),
    untried("read a limit of another", || {
        let mut limit = [0_u64; 2];
        call(libc::SYS_prlimit64, [2, libc::RLIMIT_NOFILE as usize, 0, (&raw mut limit) as usize])
    }),
];

/// `CLONE_NEWTIME` of `linux/sched.h`, which the C library does not name.
const CLONE_NEWTIME: i32 = 0x80;
