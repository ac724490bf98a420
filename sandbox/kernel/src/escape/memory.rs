//! Ways to run code that was not in the program, and to share or pin memory.

use super::{Escape, call, text, untried, value, works};
use nix::{Result, libc};

const PAGE_BYTES: usize = 4096;
const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

fn map(protection: i32, flags: i32, descriptor: usize) -> Result<usize> {
    value(libc::SYS_mmap, [0, PAGE_BYTES, protection as usize, flags as usize, descriptor, 0])
}

const WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// A page that may be written, then changed by this call to what the call says.
fn change(number: libc::c_long, protection: i32) -> Result<()> {
    let page = map(WRITE, PRIVATE, usize::MAX)?;
    call(number, [page, PAGE_BYTES, protection as usize, usize::MAX])
}

/// The model, mapped.
fn map_model(protection: i32, flags: i32) -> Result<()> {
    let model = value(libc::SYS_openat, [super::HERE, text(super::MODEL) as usize, 0, 0])?;
    map(protection, flags, model).map(drop)
}

pub(super) const ALL: &[Escape] = &[
    works("map writable and executable memory", || map(WRITE | libc::PROT_EXEC, PRIVATE, usize::MAX).map(drop)),
    works("map executable memory", || map(libc::PROT_READ | libc::PROT_EXEC, PRIVATE, usize::MAX).map(drop)),
    works("make memory executable", || change(libc::SYS_mprotect, libc::PROT_READ | libc::PROT_EXEC)),
    works("make memory writable and executable", || change(libc::SYS_mprotect, WRITE | libc::PROT_EXEC)),
    works("make memory executable by a key", || change(libc::SYS_pkey_mprotect, libc::PROT_EXEC)),
    works("map shared memory", || map(WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, usize::MAX).map(drop)),
    untried("map the first page", || {
        call(libc::SYS_mmap, [0, PAGE_BYTES, WRITE as usize, (PRIVATE | libc::MAP_FIXED) as usize, usize::MAX, 0])
    }),
    untried("map over what is mapped", || {
        let page = map(WRITE, PRIVATE, usize::MAX)?;
        call(libc::SYS_mmap, [page, PAGE_BYTES, WRITE as usize, (PRIVATE | libc::MAP_FIXED) as usize, usize::MAX, 0])
    }),
    untried("map the model executable", || map_model(libc::PROT_READ | libc::PROT_EXEC, libc::MAP_SHARED)),
    untried("map the model writable", || map_model(WRITE, libc::MAP_SHARED)),
    untried("map a descriptor of its own", || map(libc::PROT_READ, libc::MAP_SHARED, 3).map(drop)),
    works("make a segment of shared memory", || {
        let segment = value(libc::SYS_shmget, [0, PAGE_BYTES, 0o600])?;
        call(libc::SYS_shmctl, [segment, libc::IPC_RMID as usize, 0])
    }),
    untried("make a message queue", || call(libc::SYS_msgget, [0, 0o1600])),
    untried("make a POSIX message queue", || call(libc::SYS_mq_open, [text(c"x") as usize, 0o102, 0o600, 0])),
    untried("handle its own page faults", || call(libc::SYS_userfaultfd, [1])),
    works("lock its memory", || call(libc::SYS_mlockall, [libc::MCL_FUTURE as usize])),
    untried("make secret memory", || call(libc::SYS_memfd_secret, [0])),
    works("see what is in the page cache", || {
        let (page, mut present) = (map(WRITE, PRIVATE, usize::MAX)?, 0_u8);
        call(libc::SYS_mincore, [page, PAGE_BYTES, (&raw mut present) as usize])
    }),
    untried("change its segments", || call(libc::SYS_modify_ldt, [1, 0, 0])),
    untried("set another thread pointer", || call(libc::SYS_arch_prctl, [0x1001, 0])),
    untried("inject an error into memory", || change(libc::SYS_madvise, libc::MADV_HWPOISON)),
    works("move memory to an address", || {
        let page = map(WRITE, PRIVATE, usize::MAX)?;
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as usize;
        call(libc::SYS_mremap, [page, PAGE_BYTES, PAGE_BYTES, flags, map(WRITE, PRIVATE, usize::MAX)?])
    }),
];
