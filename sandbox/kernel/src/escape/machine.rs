//! Ways to act on the machine, and into corners of the kernel that have had many holes.

use super::{Escape, call, text, untried, value, works};
use nix::{Result, errno::Errno, libc};

/// `__X32_SYSCALL_BIT` of `asm/unistd.h`.
const X32: libc::c_long = 1 << 30;
/// `getpid` of the 32-bit table.
const GETPID_I386: i64 = 20;

pub(super) const ALL: &[Escape] = &[
    works("set up a ring", || {
        let mut parameters = [0_u32; 30];
        call(libc::SYS_io_uring_setup, [8, (&raw mut parameters) as usize])
    }),
    untried("enter a ring", || call(libc::SYS_io_uring_enter, [3, 1, 0, 0, 0, 0])),
    untried("register with a ring", || call(libc::SYS_io_uring_register, [3, 0, 0, 0])),
    works("set up asynchronous I/O", || {
        let mut context = 0_usize;
        call(libc::SYS_io_setup, [1, (&raw mut context) as usize])
    }),
    untried("load a BPF program", || {
        let attributes = [0_u64; 16];
        call(libc::SYS_bpf, [5, (&raw const attributes) as usize, size_of_val(&attributes)])
    }),
    untried("count events", || {
        let attributes = [(u64::from(PERF_BYTES)) << 32 | 1, 0, 0, 0, 0, 0, 0, 0];
        call(libc::SYS_perf_event_open, [(&raw const attributes) as usize, 0, usize::MAX, usize::MAX, 0])
    }),
    works("wait for events", || call(libc::SYS_epoll_create1, [0])),
    works("make a counter", || call(libc::SYS_eventfd2, [0, 0])),
    works("make a timer", || call(libc::SYS_timerfd_create, [0, 0])),
    works("take signals by descriptor", || {
        let none = 0_u64;
        call(libc::SYS_signalfd4, [usize::MAX, (&raw const none) as usize, size_of_val(&none), 0])
    }),
    untried("load a module", || call(libc::SYS_init_module, [0, 0, text(c"") as usize])),
    untried("load a module by descriptor", || call(libc::SYS_finit_module, [0, text(c"") as usize, 0])),
    untried("remove a module", || call(libc::SYS_delete_module, [text(c"ext4") as usize, 0])),
    untried("load another kernel", || call(libc::SYS_kexec_load, [0, 0, 0, 0])),
    untried("load another kernel by descriptor", || call(libc::SYS_kexec_file_load, [0, 0, 0, text(c"") as usize, 0])),
    // Ctrl-Alt-Del off, which is what it is already.
    untried("reboot", || call(libc::SYS_reboot, [0xfee1_dead, 672_274_793, 0, 0])),
    untried("swap to the model", || call(libc::SYS_swapon, [text(super::MODEL) as usize, 0])),
    untried("stop swapping", || call(libc::SYS_swapoff, [text(super::MODEL) as usize])),
    untried("use every I/O port", || call(libc::SYS_iopl, [3])),
    untried("use an I/O port", || call(libc::SYS_ioperm, [0x80, 1, 1])),
    works("read the kernel's log", || call(libc::SYS_syslog, [10, 0, 0])),
    untried("account processes", || call(libc::SYS_acct, [0])),
    untried("set the clock", || {
        let epoch = [0_u64; 2];
        call(libc::SYS_clock_settime, [0, (&raw const epoch) as usize])
    }),
    untried("set the time of day", || {
        let epoch = [0_u64; 2];
        call(libc::SYS_settimeofday, [(&raw const epoch) as usize, 0])
    }),
    works("read the clock's adjustment", || {
        let mut adjustment = [0_u64; 26];
        call(libc::SYS_adjtimex, [(&raw mut adjustment) as usize])
    }),
    untried("name the host", || call(libc::SYS_sethostname, [text(c"x") as usize, 1])),
    untried("name the domain", || call(libc::SYS_setdomainname, [text(c"x") as usize, 1])),
    untried("hang up the terminal", || call(libc::SYS_vhangup, [])),
    works("see the machine's name", || {
        let mut names = [0_u8; 65 * 6];
        call(libc::SYS_uname, [(&raw mut names) as usize])
    }),
    works("see the machine's memory", || {
        let mut facts = [0_u64; 16];
        call(libc::SYS_sysinfo, [(&raw mut facts) as usize])
    }),
    works("see the machine's CPUs", || {
        let mut cpus = [0_u64; 128];
        call(libc::SYS_sched_getaffinity, [0, size_of_val(&cpus), (&raw mut cpus) as usize])
    }),
    works("restrict itself by Landlock", || value(libc::SYS_landlock_create_ruleset, [0, 0, 1]).map(drop)),
    untried("call by the x32 table", || call(X32 | libc::SYS_getpid, [])),
    untried("call by the 32-bit table", call_i386),
    untried("call what is no call", || call(1_000, [])),
];

/// `PERF_ATTR_SIZE_VER0`.
const PERF_BYTES: u32 = 64;

fn call_i386() -> Result<()> {
    let mut value = GETPID_I386;
    // SAFETY: the 32-bit entry has no other door. `getpid` takes nothing and touches no memory; registers that the entry
    // may change are given up.
    unsafe {
        std::arch::asm!("int 0x80", inout("rax") value, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    if value < 0 { Err(Errno::from_raw(-value as i32)) } else { Ok(()) }
}
