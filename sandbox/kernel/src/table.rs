//! A child that runs a table of system calls, and can thereby replace all of its own memory.
//!
//! ```text
//!  Region, at an address that is free in this process and in what the child will become
//!
//!  base ┌──────────────┐
//!       │ loop         │ r-x   one page: load a call, make it, compare, next; `int3` at the end or at a failure
//!       ├──────────────┤
//!       │ data         │ rw-   what calls point to
//!       │ calls        │       64 bytes each {number, six arguments, least result that is no failure}
//!       ├──────────────┤
//!       │ stage        │ ---   room for mappings that have to wait (the vDSO)
//!       └──────────────┘ base + REGION_BYTES
//!
//!  Table ──Region::load()──▶ Region ──Region::spawn()──▶ Child, a copy of this process that runs the loop
//!   data      maps it                one clone3          and stops by `int3` with rbx at the call, rax its result
//! ```
//! The loop uses neither stack nor thread pointer, so a call may unmap everything but the region. The steps of a restore
//! are data, made and tested elsewhere; the child runs no other code of ours after clone3.
//!
//! Invariants: the region is never writable and executable at once. A region that is dropped is unmapped here; the child
//! unmaps its own copy, or is killed.
#![allow(unsafe_code)]

use crate::{
    cgroup::Entrance,
    spawn::{Child, fork_into},
    trace::{Rseq, Tracee},
};
use nix::{
    Result,
    errno::Errno,
    libc,
    sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap},
};
use std::{ffi::c_void, num::NonZeroUsize, os::fd::AsFd, ptr::NonNull, sync::OnceLock, time::Duration};

/// The length of a region; only pages that are used cost anything.
pub const REGION_BYTES: u64 = 2 << 20;
/// The length of its last part, the stage.
pub const STAGE_BYTES: u64 = 256 << 10;
const PAGE_BYTES: u64 = 4096;
const TABLE_BYTES_MAX: u64 = REGION_BYTES - STAGE_BYTES - PAGE_BYTES;
const END: u64 = u64::MAX;

/// A result that no call can fall below: the call may fail.
pub const MAY_FAIL: i64 = i64::MIN;

/// A system call, as the loop reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: u64,
    /// Its arguments.
    pub arguments: [u64; 6],
    /// The least result that lets the loop go on. Failures are small negative numbers.
    pub result_min: i64,
}

impl Call {
    const BYTES: u64 = size_of::<Self>() as u64;

    fn words(&self) -> [u64; 8] {
        let [a, b, c, d, e, f] = self.arguments;
        [self.number, a, b, c, d, e, f, self.result_min as u64]
    }
}

/// Calls and what they point to, for a region at a known address.
#[derive(Clone, Debug)]
pub struct Table {
    base: u64,
    data: Vec<u8>,
    calls: Vec<Call>,
    /// Names of layers, each with the number of its first call.
    layers: Vec<(usize, &'static str)>,
}

impl Table {
    /// An empty table for a region that will begin at `base`.
    pub fn new(base: u64) -> Self {
        Self { base, data: Vec::new(), calls: Vec::new(), layers: Vec::new() }
    }

    /// The region's address.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The address of its stage.
    pub fn stage(&self) -> u64 {
        self.base + REGION_BYTES - STAGE_BYTES
    }

    /// The calls so far.
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// The data so far, from its address on.
    pub fn data(&self) -> (u64, &[u8]) {
        (self.base + PAGE_BYTES, &self.data)
    }

    /// The calls that follow are of this layer of the sandbox.
    pub fn begin(&mut self, layer: &'static str) {
        self.layers.push((self.calls.len(), layer));
    }

    /// Takes all calls of a layer out again: a test's way to a sandbox that lacks it.
    #[cfg(test)]
    pub(crate) fn leave_out(&mut self, layer: &str) {
        for at in 0..self.calls.len() {
            if self.layer(at) == Some(layer) {
                self.calls[at] = Call { number: libc::SYS_getpid as u64, arguments: [0; 6], result_min: 0 };
            }
        }
    }

    /// The layer that a call belongs to, if any.
    pub fn layer(&self, call: usize) -> Option<&'static str> {
        self.layers.iter().rev().find(|(first, _)| *first <= call).map(|(_, layer)| *layer)
    }

    /// Adds bytes for calls to point to, and says where they will be, aligned to 16.
    pub fn put(&mut self, bytes: &[u8]) -> u64 {
        self.data.resize(self.data.len().next_multiple_of(16), 0);
        let address = self.base + PAGE_BYTES + self.data.len() as u64;
        self.data.extend_from_slice(bytes);
        address
    }

    /// Adds a call that must not fail.
    pub fn call(&mut self, number: libc::c_long, arguments: &[u64]) {
        self.call_with(number, arguments, 0);
    }

    /// Adds a call that must answer at least `result_min`; see [`MAY_FAIL`].
    ///
    /// # Panics
    /// With more than six arguments.
    pub fn call_with(&mut self, number: libc::c_long, arguments: &[u64], result_min: i64) {
        let mut six = [0; 6];
        six[..arguments.len()].copy_from_slice(arguments);
        self.calls.push(Call { number: number as u64, arguments: six, result_min });
    }

    /// Adds a call that notes the time of [`monotonic`], and says where: two words, seconds and nanoseconds.
    pub fn mark(&mut self) -> u64 {
        let slot = self.put(&[0; 16]);
        self.call(libc::SYS_clock_gettime, &[libc::CLOCK_MONOTONIC as u64, slot]);
        slot
    }

    /// The table's bytes, and the address of the first call.
    fn to_bytes(&self) -> (Vec<u8>, u64) {
        let data_bytes = self.data.len().next_multiple_of(size_of::<Call>());
        let mut bytes = Vec::with_capacity(data_bytes + (self.calls.len() + 1) * size_of::<Call>());
        bytes.extend_from_slice(&self.data);
        bytes.resize(data_bytes, 0);
        let end = Call { number: END, arguments: [0; 6], result_min: 0 };
        for call in self.calls.iter().chain([&end]) {
            bytes.extend_from_slice(call.words().map(u64::to_ne_bytes).as_flattened());
        }
        (bytes, self.base + PAGE_BYTES + data_bytes as u64)
    }
}

std::arch::global_asm!(
    ".pushsection .rodata.sandbox_table, \"a\"",
    ".balign 64",
    "sandbox_table_loop:",
    "2:  mov rax, [rbx]",
    "    cmp rax, -1",
    "    je  3f",
    "    mov rdi, [rbx + 8]",
    "    mov rsi, [rbx + 16]",
    "    mov rdx, [rbx + 24]",
    "    mov r10, [rbx + 32]",
    "    mov r8,  [rbx + 40]",
    "    mov r9,  [rbx + 48]",
    "    syscall",
    "    cmp rax, [rbx + 56]",
    "    jl  3f",
    "    add rbx, 64",
    "    jmp 2b",
    "3:  int3",
    "    jmp 3b",
    "sandbox_table_loop_end:",
    ".popsection",
);

// SAFETY: both name bytes of the section above, which is linked into every program that uses this module.
unsafe extern "C" {
    static sandbox_table_loop: u8;
    static sandbox_table_loop_end: u8;
}

fn loop_code() -> &'static [u8] {
    let (start, end) = (&raw const sandbox_table_loop, &raw const sandbox_table_loop_end);
    // SAFETY: the assembler emits the labels in this order in one section of constants, so between them lie initialised
    // bytes that nothing ever changes.
    unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) }
}

/// A table in memory, ready to be run by a child.
#[derive(Debug)]
pub struct Region {
    address: NonNull<c_void>,
    first: u64,
    calls: usize,
}

impl Region {
    /// Maps a table at its address.
    ///
    /// # Errors
    /// `EEXIST` when something is mapped there: choose another base. `E2BIG` for a table that is too long.
    pub fn load(table: &Table) -> Result<Self> {
        let (base, calls) = (table.base, table.calls.len());
        let (bytes, first) = table.to_bytes();
        if bytes.len() as u64 > TABLE_BYTES_MAX {
            return Err(Errno::E2BIG);
        }
        let region = Self { address: reserve(base)?, first, calls };
        region.fill(0, loop_code(), ProtFlags::PROT_READ | ProtFlags::PROT_EXEC)?;
        region.fill(PAGE_BYTES as usize, &bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        Ok(region)
    }

    /// Copies bytes to an offset, and gives their pages a protection.
    fn fill(&self, offset: usize, bytes: &[u8], protection: ProtFlags) -> Result<()> {
        let whole_pages = bytes.len().next_multiple_of(PAGE_BYTES as usize);
        debug_assert!((offset + whole_pages) as u64 <= REGION_BYTES);
        // SAFETY: `load` has checked that the bytes fit. The pages are of a mapping that is ours alone, to which no
        // reference exists; they are made writable before the copy, and executable only once they no longer are.
        unsafe {
            let to = self.address.byte_add(offset);
            mprotect(to, whole_pages, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast().as_ptr(), bytes.len());
            mprotect(to, whole_pages, protection)
        }
    }

    /// Which call a child stands at whose rbx this is; `None` past the last: it is done.
    ///
    /// # Errors
    /// The address itself, when no call lies there.
    pub fn call_at(&self, rbx: u64) -> std::result::Result<Option<usize>, u64> {
        let offset = rbx.checked_sub(self.first).filter(|offset| offset.is_multiple_of(Call::BYTES)).ok_or(rbx)?;
        match (offset / Call::BYTES) as usize {
            index if index < self.calls => Ok(Some(index)),
            index if index == self.calls => Ok(None),
            _ => Err(rbx),
        }
    }

    /// Makes a child that runs the table and stops by SIGTRAP. Untraced by then, it dies of it.
    ///
    /// `namespaces` are flags of clone: `CLONE_NEWPID` and its like. It is made in the v2 group of `entrance`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn spawn(&self, namespaces: libc::c_int, entrance: Option<&Entrance>) -> Result<Child> {
        let cgroup = entrance.and_then(|entrance| entrance.folder.as_ref()).map(AsFd::as_fd);
        // SAFETY: in the child only `enter` runs, which never returns.
        match unsafe { fork_into(namespaces, cgroup) }? {
            Some(child) => Ok(child),
            None => self.enter(),
        }
    }

    /// The child's whole life as a copy of this process.
    fn enter(&self) -> ! {
        // SAFETY: the loop is mapped executable at `address` and its calls at `first`, both whole, by `load`. It never
        // returns and needs no stack. That calls may unmap all memory is why only a child gets here.
        unsafe {
            std::arch::asm!(
                "mov rbx, {calls}",
                "jmp {code}",
                calls = in(reg) self.first,
                code = in(reg) self.address.as_ptr(),
                options(noreturn)
            )
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives a method.
        let _ = unsafe { munmap(self.address, REGION_BYTES as usize) };
    }
}

fn reserve(base: u64) -> Result<NonNull<c_void>> {
    let address = NonZeroUsize::new(base as usize).ok_or(Errno::EINVAL)?;
    let bytes = NonZeroUsize::new(REGION_BYTES as usize).ok_or(Errno::EINVAL)?;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
    // SAFETY: with MAP_FIXED_NOREPLACE the kernel replaces no mapping of anyone.
    unsafe { mmap_anonymous(Some(address), bytes, ProtFlags::PROT_NONE, flags) }
}

/// The restartable sequences that a child of this thread inherits: the C library registers an area in each thread.
///
/// # Errors
/// The kernel's.
pub fn inherited_rseq() -> Result<Option<Rseq>> {
    // The distance from a thread's pointer to its area is the same for all threads: learned once.
    static RELATIVE: OnceLock<Option<Rseq>> = OnceLock::new();
    let relative = match RELATIVE.get() {
        Some(relative) => *relative,
        None => {
            let learned = learn_rseq()?;
            *RELATIVE.get_or_init(|| learned)
        }
    };
    Ok(relative.map(|rseq| Rseq { address: rseq.address.wrapping_add(thread_pointer()), ..rseq }))
}

/// Signals that a child inherits as ignored, a bit each from signal 1 on: clone3 takes handlers off, and leaves these. Learned
/// once.
pub fn inherited_ignored() -> u64 {
    static IGNORED: OnceLock<u64> = OnceLock::new();
    *IGNORED
        .get_or_init(|| (1..=64).filter(|signal| is_ignored(*signal)).fold(0, |set, signal| set | 1 << (signal - 1)))
}

fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: a sigaction of zeros is a valid one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nix cannot ask without setting. With no new action nothing is changed; the answer goes to a whole sigaction.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Only a tracer is told, so a throwaway child is stopped and asked.
fn learn_rseq() -> Result<Option<Rseq>> {
    // SAFETY: in the child only pause runs, which is safe after a fork.
    let Some(child) = (unsafe { fork_into(0, None) })? else {
        loop {
            // SAFETY: it takes nothing.
            unsafe { libc::pause() };
        }
    };
    let mut tracee = Tracee::seize(child.pid())?;
    tracee.interrupt()?;
    let rseq = tracee.rseq()?;
    Ok((rseq.address != 0).then(|| Rseq { address: rseq.address.wrapping_sub(thread_pointer()), ..rseq }))
}

/// The time on the clock by which tables note it.
pub fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: std keeps the bare value to itself. The pointer is to a whole timespec; the clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn thread_pointer() -> u64 {
    let pointer: u64;
    // SAFETY: on this target the word at fs:0 is the thread pointer itself, by the ABI of thread-local storage.
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, readonly, preserves_flags)) };
    pointer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pidfd::Ended, trace::Stop};
    use std::{
        fs,
        io::{PipeReader, PipeWriter, Read, Write, pipe},
        os::fd::AsRawFd,
        path::PathBuf,
    };

    /// The lowest of the addresses that tests use; each its own, since they run side by side.
    const BASE: u64 = 0x10_0000_0000;

    fn run(region: &Region, gate: &mut PipeWriter) -> (Child, Tracee) {
        let child = region.spawn(0, None).unwrap();
        let mut tracee = Tracee::seize(child.pid()).unwrap();
        gate.write_all(b".").unwrap();
        assert_eq!(tracee.wait(), Ok(Stop::Signal(libc::SIGTRAP)));
        (child, tracee)
    }

    /// A table whose child waits until `gate` is written to, so that it cannot stop before it is traced.
    fn gated(base: u64) -> (Table, PipeWriter, PipeReader) {
        let (reader, writer) = pipe().unwrap();
        let mut table = Table::new(base);
        let byte = table.put(&[0]);
        table.call_with(libc::SYS_read, &[reader.as_raw_fd() as u64, byte, 1], 1);
        (table, writer, reader)
    }

    #[test]
    fn a_child_runs_its_table_and_stops_past_the_end() {
        let (mut table, mut gate, _reader) = gated(BASE);
        let (mut said, mouth) = pipe().unwrap();
        let words = table.put(b"hello");
        table.call(libc::SYS_write, &[mouth.as_raw_fd() as u64, words, 5]);
        table.call_with(libc::SYS_close, &[u64::MAX], MAY_FAIL);
        table.call(libc::SYS_munmap, &[0x10000, BASE - 0x10000]);
        let region = Region::load(&table).unwrap();
        let (child, tracee) = run(&region, &mut gate);
        assert_eq!(region.call_at(tracee.registers().unwrap().rbx), Ok(None));
        let mut heard = [0; 5];
        said.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
        child.kill().unwrap();
    }

    #[test]
    fn a_call_that_fails_is_named() {
        let (mut table, mut gate, _reader) = gated(BASE + (1 << 30));
        table.call(libc::SYS_close, &[u64::MAX]);
        table.call(libc::SYS_getpid, &[]);
        let region = Region::load(&table).unwrap();
        let (child, tracee) = run(&region, &mut gate);
        let registers = tracee.registers().unwrap();
        assert_eq!(region.call_at(registers.rbx), Ok(Some(1)));
        assert_eq!(registers.rax as i64, -i64::from(libc::EBADF));
        assert_eq!(region.call_at(0), Err(0));
        child.kill().unwrap();
    }

    #[test]
    fn a_region_takes_no_place_that_is_taken() {
        let base = BASE + (2 << 30);
        let first = Region::load(&Table::new(base)).unwrap();
        assert_eq!(Region::load(&Table::new(base)).map(drop), Err(Errno::EEXIST));
        drop(first);
        drop(Region::load(&Table::new(base)).unwrap());
        let mut long = Table::new(base);
        long.put(&vec![0; REGION_BYTES as usize]);
        assert_eq!(Region::load(&long).map(drop), Err(Errno::E2BIG));
    }

    #[test]
    fn every_thread_knows_its_own_area() {
        let here = inherited_rseq().unwrap();
        let there = std::thread::spawn(|| inherited_rseq().unwrap()).join().unwrap();
        assert_eq!(here.map(|r| (r.bytes, r.signature)), there.map(|r| (r.bytes, r.signature)));
        assert!(here.is_none() || here.map(|r| r.address) != there.map(|r| r.address));
    }

    /// Where cgroup v2 is mounted: alone, or beside v1.
    fn unified() -> PathBuf {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        root.and_then(|line| line.split(' ').nth(1))
            .expect("cgroup2 is mounted on every host that Ember runs on")
            .into()
    }

    #[test]
    fn a_child_is_cloned_into_a_group_of_cgroup_v2() {
        let folder = unified().join(format!("ember-table-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let entrance = Entrance { folder: Some(fs::File::open(&folder).unwrap()), tasks: Vec::new() };
        let (mut table, mut gate, _reader) = gated(BASE + 0x7_0000_0000);
        table.call(libc::SYS_exit_group, &[0]);
        let region = Region::load(&table).unwrap();
        let mut child = region.spawn(0, Some(&entrance)).unwrap();
        let own = fs::read_to_string(format!("/proc/{}/cgroup", child.pid())).unwrap();
        gate.write_all(b".").unwrap();
        let ended = child.wait().unwrap();
        fs::remove_dir(&folder).unwrap();
        let name = folder.file_name().unwrap().to_str().unwrap();
        assert!(own.lines().any(|line| line.starts_with("0::") && line.ends_with(name)), "{own}");
        assert_eq!(ended, Ended::Exit(0));
    }
}
