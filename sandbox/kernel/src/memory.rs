//! The page cache of a model, and room for what the kernel spends on an instance.
//!
//! Cgroups charge a page of the page cache to whoever touches it first. `limits.memory` means private memory, so the
//! warden touches the model before the runner may: the weights are then charged to the warden's group, which has no
//! limit, and are there for the next instance too. Pages that the kernel took back in between are charged to the
//! instance that faults them in again; clean, they are the first to be reclaimed and never a reason for an OOM kill.
#![allow(unsafe_code)]

use nix::{
    Result,
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    libc,
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{MapFlags, ProtFlags, mmap, munmap},
    },
    unistd::Pid,
};
use std::{
    ffi::{CStr, c_void},
    fs::{self, File},
    io,
    num::NonZeroUsize,
    ops::Range,
    os::fd::AsFd,
    ptr::NonNull,
};

const PAGE_BYTES: u64 = 4096;

/// What an instance may use beyond its private memory: sockets, stacks, the kernel's structures.
const KERNEL_BYTES: u64 = 8 << 20;
/// A page table entry of 8 bytes maps a page of 4096.
const MAPPED_BYTES_PER_TABLE_BYTE: u64 = 512;

/// The limit of a cgroup whose process may hold `private_bytes` and map a model of `model_bytes`.
pub const fn group_limit(private_bytes: u64, model_bytes: u64) -> u64 {
    private_bytes.saturating_add(KERNEL_BYTES).saturating_add(model_bytes / MAPPED_BYTES_PER_TABLE_BYTE)
}

struct Mapping {
    address: NonNull<c_void>,
    bytes: NonZeroUsize,
}

impl Mapping {
    fn new(file: &File, bytes: NonZeroUsize) -> Result<Self> {
        Self::of_part(file, 0, bytes)
    }

    fn of_part(file: &File, start: u64, bytes: NonZeroUsize) -> Result<Self> {
        let start = start.try_into().map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice. Its bytes are never read here, so a file that
        // shrinks cannot fault us.
        let address = unsafe { mmap(None, bytes, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file.as_fd(), start) }?;
        Ok(Self { address, bytes })
    }

    fn populate(&self) -> Result<()> {
        let advice = libc::MADV_POPULATE_READ;
        // SAFETY: nix's madvise lacks this advice. The range is exactly our own mapping; the kernel touches the pages
        // and answers an error where they cannot be had.
        Errno::result(unsafe { libc::madvise(self.address.as_ptr(), self.bytes.get(), advice) }).map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it was ever made.
        let _ = unsafe { munmap(self.address, self.bytes.get()) };
    }
}

/// Brings a file into the page cache, charged to the caller, and returns when it is there.
///
/// # Errors
/// The kernel's: the file cannot be read or mapped.
pub fn prefault(file: &File) -> io::Result<()> {
    prefault_part(file, 0..file.metadata()?.len())
}

/// The same for a part that begins with a page. Of all ways to read a file this one costs the kernel least, and gives it large
/// pages: a fifth of the time of `posix_fadvise`, or of reads into memory that is then thrown away.
///
/// # Errors
/// The kernel's: the part cannot be read or mapped.
pub fn prefault_part(file: &File, part: Range<u64>) -> io::Result<()> {
    let bytes = usize::try_from(part.end.saturating_sub(part.start)).unwrap_or(usize::MAX);
    let Some(bytes) = NonZeroUsize::new(bytes) else { return Ok(()) };
    Ok(Mapping::of_part(file, part.start, bytes)?.populate()?)
}

/// Which part of a file the page cache has, from 0 to 1; all of one that is empty.
///
/// # Errors
/// The kernel's: the file cannot be mapped.
pub fn resident(file: &File) -> io::Result<f64> {
    let bytes = usize::try_from(file.metadata()?.len()).ok().and_then(NonZeroUsize::new);
    let Some(bytes) = bytes else { return Ok(1.0) };
    let mapping = Mapping::new(file, bytes)?;
    let mut pages = vec![0_u8; bytes.get().div_ceil(PAGE_BYTES as usize)];
    // SAFETY: nix has no mincore. The range is exactly our own mapping, of whose pages each gets one byte of the vector.
    let asked = unsafe { libc::mincore(mapping.address.as_ptr(), bytes.get(), pages.as_mut_ptr()) };
    Errno::result(asked)?;
    Ok(pages.iter().filter(|page| *page & 1 == 1).count() as f64 / pages.len() as f64)
}

/// Memory that nobody can change once `fill` has written it: a sealed file, to be mapped copy-on-write by many.
///
/// `fill` writes to the file. That costs half of what writing to a mapping of it does, which takes a fault for each page. Huge
/// pages would cost less still, and more later: the first write to a private mapping of one unmaps all of it.
///
/// # Errors
/// There is no room, or what `fill` says.
pub fn sealed<E: From<io::Error>>(
    name: &CStr,
    bytes: u64,
    fill: impl FnOnce(&File) -> std::result::Result<(), E>,
) -> std::result::Result<File, E> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(name, flags).map_err(io::Error::from)?);
    file.set_len(bytes)?;
    fill(&file)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(io::Error::from)?;
    Ok(file)
}

/// Memory of this host, bytes.
///
/// # Errors
/// `/proc/meminfo` cannot be read.
pub fn host_bytes() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.map(|kib: u64| kib << 10).ok_or_else(|| io::Error::other("/proc/meminfo tells no MemTotal"))
}

/// File pages that a process has mapped and resident: memory that it shares, bytes.
///
/// # Errors
/// There is no such process.
pub fn shared_bytes(process: Pid) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/statm"))?;
    let pages = text.split(' ').nth(2).and_then(|field| field.parse::<u64>().ok());
    pages.map(|pages| pages * PAGE_BYTES).ok_or_else(|| io::Error::other(format!("statm reads `{text}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_never_wrap() {
        assert_eq!(group_limit(1 << 30, 512 << 20), (1 << 30) + KERNEL_BYTES + (1 << 20));
        assert_eq!(group_limit(u64::MAX, u64::MAX), u64::MAX);
    }

    #[test]
    fn the_host_and_this_process_have_memory() {
        assert!(host_bytes().unwrap() > 16 << 20);
        assert!(shared_bytes(Pid::this()).unwrap() > 0);
        assert!(shared_bytes(Pid::from_raw(i32::MAX)).is_err());
    }

    #[test]
    fn a_file_is_brought_in() {
        let file = tempfile::tempfile().unwrap();
        prefault(&file).unwrap();
        file.set_len(1 << 20).unwrap();
        prefault(&file).unwrap();
        prefault_part(&file, 8192..1 << 20).unwrap();
        assert!(prefault_part(&file, 8192..2 << 20).is_err(), "more than there is");
        assert!(prefault_part(&file, 1..4096).is_err(), "not from a page on");
    }
}
