//! Ways to take more than was given: threads, descriptors, memory. Each gets through when it is past what any sandbox has.

use super::{Escape, HERE, MODEL, call, text, untried, value};
use nix::{Result, errno::Errno, libc};
use std::thread;

/// More than any test's limits allow.
const THREADS_TOO_MANY: usize = 500;
const DESCRIPTORS_TOO_MANY: usize = 64;
const BYTES_TOO_MANY: usize = 1 << 30;
const PAGE_BYTES: usize = 4096;

pub(super) const ALL: &[Escape] = &[
    untried("bomb of threads", threads),
    untried("bomb of processes", || (0..THREADS_TOO_MANY).try_for_each(|_| fork())),
    untried("bomb of descriptors", descriptors),
    untried(MEMORY_BOMBS[0], || fill(map()?)),
    untried(MEMORY_BOMBS[1], || {
        let end = value(libc::SYS_brk, [0])?;
        let grown = value(libc::SYS_brk, [end + BYTES_TOO_MANY])?;
        if grown == end { Err(Errno::ENOMEM) } else { fill(end) }
    }),
];

/// Those that the memory limit stops, by ending the instance.
pub const MEMORY_BOMBS: [&str; 2] = ["bomb of memory", "bomb of memory by brk"];

fn fork() -> Result<()> {
    match value(libc::SYS_fork, [])? {
        // SAFETY: safe after a fork; it runs no destructors, which belong to the parent.
        0 => unsafe { libc::_exit(0) },
        _ => Ok(()),
    }
}

fn threads() -> Result<()> {
    let refused = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
    let start = |_| thread::Builder::new().stack_size(64 << 10).spawn(thread::park).map(drop).map_err(refused);
    (0..THREADS_TOO_MANY).try_for_each(start)
}

fn descriptors() -> Result<()> {
    (0..DESCRIPTORS_TOO_MANY).try_for_each(|_| call(libc::SYS_openat, [HERE, text(MODEL) as usize, 0, 0]))
}

fn map() -> Result<usize> {
    let [protection, flags] =
        [libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS].map(|number| number as usize);
    value(libc::SYS_mmap, [0, BYTES_TOO_MANY, protection, flags, usize::MAX, 0])
}

/// Touches every page from an address on.
fn fill(from: usize) -> Result<()> {
    for page in 0..BYTES_TOO_MANY / PAGE_BYTES {
        // SAFETY: no call of the kernel's fills memory one page at a time; the caller has just been given this range,
        // private and writable, and nobody else knows it.
        unsafe { std::ptr::with_exposed_provenance_mut::<u8>(from + page * PAGE_BYTES).write_volatile(1) };
    }
    Ok(())
}
