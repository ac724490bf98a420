//! The ring's memory: a sealed memfd, and its mapping. The only unsafe code of this crate, in three blocks.
#![allow(unsafe_code)]

use crate::{
    cursor::Memory,
    record::{RECORD_BYTES, RECORD_WORDS},
};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl, posix_fallocate},
    libc::off_t,
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{MapFlags, ProtFlags, mmap, munmap},
        stat::fstat,
    },
};
use std::{
    ffi::c_void,
    num::NonZeroUsize,
    os::fd::{AsFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::AtomicU64,
};

/// The fewest records of a ring: what one request needs, and then some.
pub const RECORDS_MIN: u64 = 16;
/// The most records of a ring: 128 MiB.
pub const RECORDS_MAX: u64 = 1 << 20;

const WORD_BYTES: usize = size_of::<u64>();
const LINE_WORDS: usize = 16;
/// Tail, waiting and head, each on lines of its own.
const HEADER_WORDS: usize = 3 * LINE_WORDS;
/// The size cannot change, and nothing about that can be undone.
const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

/// Why a ring cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// No such ring can be made.
    #[error("a ring of {records} records: they are a power of two from {RECORDS_MIN} to {RECORDS_MAX}")]
    Length {
        /// What was asked for.
        records: u64,
    },
    /// The file may change its size, so that its mapping is not safe to touch.
    #[error("the ring's file is not sealed")]
    Unsealed,
    /// The file has no ring's size.
    #[error("the ring's file has {bytes} bytes, which is no ring's size")]
    Size {
        /// Its size.
        bytes: u64,
    },
    /// Its head and tail are those of no ring: what it held is lost unless the ledger takes it first.
    #[error("the ring's head and tail are further apart than the ring is long")]
    Inconsistent,
    /// The kernel refused.
    #[error("{action} the ring's memory: {source}")]
    Kernel {
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        source: Errno,
    },
}

fn kernel(action: &'static str) -> impl Fn(Errno) -> RingError {
    move |source| RingError::Kernel { action, source }
}

fn bytes_of(records: u64) -> u64 {
    (HEADER_WORDS * WORD_BYTES) as u64 + records * RECORD_BYTES as u64
}

fn is_length(records: u64) -> bool {
    records.is_power_of_two() && (RECORDS_MIN..=RECORDS_MAX).contains(&records)
}

/// Makes an empty ring: a memfd that cannot change its size, with all of its memory there.
///
/// # Errors
/// [`RingError::Length`], [`RingError::Kernel`].
pub fn create(records: u64) -> Result<OwnedFd, RingError> {
    if !is_length(records) {
        return Err(RingError::Length { records });
    }
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = memfd_create(c"ember-meter", flags).map_err(kernel("make"))?;
    posix_fallocate(&file, 0, bytes_of(records) as off_t).map_err(kernel("reserve"))?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS)).map_err(kernel("seal"))?;
    Ok(file)
}

/// A ring's memory, mapped.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: NonNull<c_void>,
    bytes: NonZeroUsize,
}

// SAFETY: needed because of the pointer. The mapping belongs to this value alone, and any thread may use or unmap it.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps a ring's file, once it is known that its size is a ring's and can never change.
    pub(crate) fn new(file: &OwnedFd) -> Result<Self, RingError> {
        let seals = fcntl(file, FcntlArg::F_GET_SEALS).map_err(kernel("look at"))?;
        if !SealFlag::from_bits_retain(seals).contains(SEALS) {
            return Err(RingError::Unsealed);
        }
        let size = fstat(file).map_err(kernel("look at"))?.st_size as u64;
        let records = size.saturating_sub(bytes_of(0)) / RECORD_BYTES as u64;
        let length = usize::try_from(size).ok().and_then(NonZeroUsize::new);
        let Some(bytes) = length.filter(|_| is_length(records) && bytes_of(records) == size) else {
            return Err(RingError::Size { bytes: size });
        };
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the way to memory that two processes share. A fresh mapping at an address of the kernel's choice.
        let address = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, file.as_fd(), 0) };
        Ok(Self { address: address.map_err(kernel("map"))?, bytes })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: needed to see the mapping as words. It is page-aligned, readable, writable, as long as this and lives as
        // long as `self`; its file cannot shrink (sealed, checked in `new`), so no access faults. Other processes write to
        // it at any time, which atomics allow; all bit patterns are words.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr().cast(), self.bytes.get() / WORD_BYTES) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: needed to give the memory back. The mapping is ours, and every slice of it borrowed `self`.
        let _unmapped = unsafe { munmap(self.address, self.bytes.get()) };
    }
}

impl Memory for Mapping {
    type Word = AtomicU64;

    fn tail(&self) -> &AtomicU64 {
        &self.words()[0]
    }

    fn waiting(&self) -> &AtomicU64 {
        &self.words()[LINE_WORDS]
    }

    fn head(&self) -> &AtomicU64 {
        &self.words()[2 * LINE_WORDS]
    }

    fn data(&self) -> &[AtomicU64] {
        &self.words()[HEADER_WORDS..]
    }
}

const _: () = assert!(RECORD_WORDS * WORD_BYTES == RECORD_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sealed_file_of_a_rings_size_is_mapped() {
        assert!(Mapping::new(&create(RECORDS_MIN).unwrap()).is_ok());
        assert!(matches!(create(48), Err(RingError::Length { records: 48 })));
        assert!(matches!(create(8), Err(RingError::Length { .. })));
        let file = memfd_create(c"test", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        posix_fallocate(&file, 0, bytes_of(RECORDS_MIN) as off_t).unwrap();
        assert!(matches!(Mapping::new(&file), Err(RingError::Unsealed)));
        for bytes in [0, 1, bytes_of(RECORDS_MIN) + 1, bytes_of(RECORDS_MIN) - 128, bytes_of(RECORDS_MAX * 2)] {
            let file = memfd_create(c"test", MFdFlags::MFD_ALLOW_SEALING).unwrap();
            nix::unistd::ftruncate(&file, bytes as off_t).unwrap();
            fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS)).unwrap();
            assert!(matches!(Mapping::new(&file), Err(RingError::Size { bytes: found }) if found == bytes));
        }
    }

    #[test]
    fn a_ring_keeps_its_size_for_ever() {
        let file = create(RECORDS_MIN).unwrap();
        assert_eq!(nix::unistd::ftruncate(&file, 0), Err(Errno::EPERM));
        assert_eq!(fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)), Err(Errno::EPERM));
    }
}
