//! Reads of pieces of a file by io_uring, several at once, into buffers that the kernel knows beforehand.
//!
//! ```text
//!  pieces ──▶ read_fixed, one for each free buffer ──▶ completed ──▶ taken by the caller ──▶ buffer free again
//!                        ▲                                │ fewer bytes than asked for
//!                        └────────────────────────────────┘ the rest
//! ```
//! The buffers are registered: the kernel pins their pages once, not at each read, which O_DIRECT reads into them need.
//! While a caller decodes one piece, the next is being read.
//!
//! Invariant: a buffer belongs to the kernel from its submission to its completion. A reader that is dropped waits for
//! all reads under way.
#![allow(unsafe_code)]

use crate::memory::resident;
use io_uring::{IoUring, opcode, types::Fd};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap},
};
use std::{ffi::c_void, fs::File, io, num::NonZeroUsize, ops::Range, os::fd::AsRawFd, ptr::NonNull};

/// Where the pages of a file are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Through the page cache, which has most of it.
    Cached,
    /// Past it (O_DIRECT): no second copy, and what others have in the cache stays there.
    Direct,
}

/// Whether the page cache has most of a file.
///
/// # Errors
/// The kernel's.
pub fn is_cached(file: &File) -> io::Result<bool> {
    Ok(resident(file)? >= 0.5)
}

/// Has a file read from now on by the route that suits it.
///
/// # Errors
/// The kernel's.
pub fn choose(file: &File) -> io::Result<Route> {
    if is_cached(file)? {
        return Ok(Route::Cached);
    }
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    match fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_DIRECT)) {
        Ok(_) => Ok(Route::Direct),
        // Some file systems know only the cache.
        Err(Errno::EINVAL) => Ok(Route::Cached),
        Err(error) => Err(error.into()),
    }
}

const PAGE_BYTES: usize = 4096;

/// Memory of whole pages for one read.
struct Buffer {
    address: NonNull<c_void>,
    bytes: NonZeroUsize,
}

// SAFETY: the mapping is ours alone, and any thread may use or unmap it.
unsafe impl Send for Buffer {}

impl Buffer {
    fn new(bytes: NonZeroUsize) -> io::Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let address = unsafe { mmap_anonymous(None, bytes, protection, flags) }?;
        Ok(Self { address, bytes })
    }

    fn iovec(&self) -> libc::iovec {
        libc::iovec { iov_base: self.address.as_ptr(), iov_len: self.bytes.get() }
    }

    /// The first bytes. The caller has made sure that the kernel does not write to it.
    fn filled(&self, bytes: usize) -> &[u8] {
        // SAFETY: initialised by the kernel with zeros, as long as asked for or longer (checked when a read is queued), and
        // with no read under way.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr().cast(), bytes) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: ours, no read under way (see `Reader`'s drop), and no slice of it outlives its borrow.
        let _ = unsafe { munmap(self.address, self.bytes.get()) };
    }
}

/// A read under way.
#[derive(Clone, Debug)]
struct Reading {
    piece: usize,
    range: Range<u64>,
    done: usize,
}

/// Reads pieces of one file.
pub struct Reader<'a> {
    ring: IoUring,
    file: &'a File,
    /// After the ring: it is closed first.
    buffers: Vec<Buffer>,
    readings: Vec<Option<Reading>>,
}

impl<'a> Reader<'a> {
    /// A reader with `depth` buffers of at least `bytes`.
    ///
    /// # Errors
    /// No io_uring here, or no memory.
    pub fn new(file: &'a File, depth: usize, bytes: usize) -> io::Result<Self> {
        let bytes = NonZeroUsize::new(bytes.next_multiple_of(PAGE_BYTES)).unwrap_or(NonZeroUsize::MIN);
        let buffers = (0..depth).map(|_| Buffer::new(bytes)).collect::<io::Result<Vec<_>>>()?;
        let ring = IoUring::new(depth as u32)?;
        let vectors: Vec<_> = buffers.iter().map(Buffer::iovec).collect();
        // SAFETY: the buffers are mapped as long as the ring lives: they are dropped after it, and it waits for its reads.
        unsafe { ring.submitter().register_buffers(&vectors) }?;
        Ok(Self { ring, file, readings: vec![None; buffers.len()], buffers })
    }

    /// Reads the pieces that `next` gives (a number and a range of the file) and hands each to `take`, in the order in
    /// which they come in.
    ///
    /// # Errors
    /// The kernel's, an end of the file before that of a piece, or what `take` says.
    pub fn each<E: From<io::Error>>(
        &mut self,
        mut next: impl FnMut() -> Option<(usize, Range<u64>)>,
        mut take: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            self.fill(&mut next)?;
            if self.readings.iter().all(Option::is_none) {
                return Ok(());
            }
            let (slot, reading) = self.complete()?;
            let bytes = (reading.range.end - reading.range.start) as usize;
            if reading.done < bytes {
                self.queue(slot, reading)?;
            } else {
                take(reading.piece, self.buffers[slot].filled(bytes))?;
            }
        }
    }

    /// Queues a read for each free buffer.
    fn fill(&mut self, next: &mut impl FnMut() -> Option<(usize, Range<u64>)>) -> io::Result<()> {
        for slot in 0..self.buffers.len() {
            if self.readings[slot].is_none()
                && let Some((piece, range)) = next()
            {
                self.queue(slot, Reading { piece, range, done: 0 })?;
            }
        }
        Ok(())
    }

    fn queue(&mut self, slot: usize, reading: Reading) -> io::Result<()> {
        let Reading { range, done, .. } = &reading;
        let (buffer, bytes) = (&self.buffers[slot], (range.end - range.start) as usize);
        if bytes > buffer.bytes.get() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a piece is longer than the buffers"));
        }
        let into = buffer.address.as_ptr().cast::<u8>().wrapping_add(*done);
        let file = Fd(self.file.as_raw_fd());
        let read =
            opcode::ReadFixed::new(file, into, (bytes - done) as u32, slot as u16).offset(range.start + *done as u64);
        let entry = read.build().user_data(slot as u64);
        self.readings[slot] = Some(reading);
        // SAFETY: the file is borrowed for our life; the range lies in the registered buffer of this slot, which nobody
        // touches until the read has completed: it is neither free nor taken.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            self.readings[slot] = None;
            return Err(io::Error::other("more reads than the ring has room for"));
        }
        Ok(())
    }

    /// Waits for a read to complete; its buffer is then free.
    fn complete(&mut self) -> io::Result<(usize, Reading)> {
        let (slot, result) = self.wait()?;
        let mut reading = self.readings[slot].take().expect("only what was queued completes");
        match result {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            error @ ..0 => Err(io::Error::from_raw_os_error(-error)),
            bytes => {
                reading.done += bytes as usize;
                Ok((slot, reading))
            }
        }
    }

    /// The next completion: a slot, and what the kernel says of its read.
    fn wait(&mut self) -> io::Result<(usize, i32)> {
        loop {
            if let Some(completion) = self.ring.completion().next() {
                return Ok((completion.user_data() as usize, completion.result()));
            }
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => drop(other?),
            }
        }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        while self.readings.iter().any(Option::is_some) {
            match self.wait() {
                Ok((slot, _)) => self.readings[slot] = None,
                // The kernel may still write to a buffer, and will not say until when.
                Err(_) => std::process::abort(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, os::unix::fs::OpenOptionsExt};

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file.as_file().sync_all().unwrap();
        file
    }

    fn bytes(pages: usize) -> Vec<u8> {
        (0..pages * PAGE_BYTES).map(|at| (at / 7 % 251) as u8).collect()
    }

    fn pieces(pages: usize) -> Vec<(usize, Range<u64>)> {
        let page = PAGE_BYTES as u64;
        (0..pages / 3).rev().map(|at| (at, at as u64 * 3 * page..(at as u64 * 3 + 3) * page)).collect()
    }

    #[test]
    fn every_piece_is_read_once_by_either_route() {
        let content = bytes(60);
        let file = file(&content);
        for flags in [OFlag::empty(), OFlag::O_DIRECT] {
            let file = File::options().read(true).custom_flags(flags.bits()).open(file.path()).unwrap();
            let (mut left, mut seen) = (pieces(60), Vec::new());
            let mut reader = Reader::new(&file, 4, 3 * PAGE_BYTES).unwrap();
            let taken = reader.each(
                || left.pop(),
                |piece, read| {
                    assert_eq!(read, &content[piece * 3 * PAGE_BYTES..][..3 * PAGE_BYTES]);
                    seen.push(piece);
                    Ok::<_, io::Error>(())
                },
            );
            taken.unwrap();
            seen.sort_unstable();
            assert_eq!(seen, (0..20).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_was_just_written_is_cached() {
        let file = file(&bytes(6));
        assert!(is_cached(file.as_file()).unwrap());
        assert_eq!(choose(file.as_file()).unwrap(), Route::Cached);
        assert_eq!(choose(tempfile::tempfile().as_ref().unwrap()).unwrap(), Route::Cached);
    }

    #[test]
    fn a_file_that_ends_too_early_and_a_caller_that_gives_up_are_told() {
        let file = file(&bytes(6));
        let opened = File::open(file.path()).unwrap();
        let mut reader = Reader::new(&opened, 2, 3 * PAGE_BYTES).unwrap();
        let mut left = pieces(9);
        let ended = reader.each(|| left.pop(), |_, _| Ok::<_, io::Error>(())).unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
        let mut reader = Reader::new(&opened, 2, 3 * PAGE_BYTES).unwrap();
        let mut left = pieces(6);
        let given_up = reader.each(|| left.pop(), |_, _| Err(io::Error::other("enough"))).unwrap_err();
        assert_eq!(given_up.to_string(), "enough");
        let long =
            Reader::new(&opened, 1, PAGE_BYTES).unwrap().each(|| Some((0, 0..8192)), |_, _| Ok::<_, io::Error>(()));
        assert_eq!(long.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
