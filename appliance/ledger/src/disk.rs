//! What the ledger asks of a disk, and the disk of the machine.
//!
//! Every effect of the ledger on its folder goes through [`Disk`] and [`DiskFile`], so that a simulated disk can be cut
//! at any of them (`tests/crash.rs`). The promises that the ledger builds on, and no others:
//!
//! - what was written before [`DiskFile::sync`] returned `Ok` is there after a power cut; anything else of a file, in
//!   pieces as small as a byte, may or may not be;
//! - names made, changed and removed before [`Disk::sync_folder`] returned `Ok` are so after a power cut; those since may
//!   have come that far in the order in which they were asked for;
//! - a failed sync tells nothing of what is on the disk, and a later success does not make up for it.

use nix::{
    fcntl::{FallocateFlags, Flock, FlockArg, PosixFadviseAdvice, fallocate, posix_fadvise},
    sys::statvfs::fstatvfs,
};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// A folder of files.
pub trait Disk {
    /// An open file.
    type File: DiskFile;

    /// Where errors say that it is.
    fn path(&self) -> &Path;
    /// Names of its files, in any order.
    ///
    /// # Errors
    /// The kernel's, here and below.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Makes a file, empty, whether or not there was one.
    ///
    /// # Errors
    /// The kernel's.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Opens a file to read and write.
    ///
    /// # Errors
    /// The kernel's.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Gives a file another name, which no other file has.
    ///
    /// # Errors
    /// The kernel's.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// The kernel's.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Returns when names are on the disk.
    ///
    /// # Errors
    /// The kernel's.
    fn sync_folder(&self) -> io::Result<()>;
    /// Bytes that can still be written.
    ///
    /// # Errors
    /// The kernel's.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// A file of a [`Disk`].
pub trait DiskFile {
    /// Its length, bytes.
    ///
    /// # Errors
    /// The kernel's, here and below.
    fn length(&self) -> io::Result<u64>;
    /// Reads all of it.
    ///
    /// # Errors
    /// The kernel's.
    fn read(&self) -> io::Result<Vec<u8>>;
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// The kernel's; some of them may be written.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Reserves its blocks and makes it `length` bytes long.
    ///
    /// # Errors
    /// The kernel's; no space.
    fn allocate(&self, length: u64) -> io::Result<()>;
    /// Cuts it to `length` bytes.
    ///
    /// # Errors
    /// The kernel's.
    fn truncate(&self, length: u64) -> io::Result<()>;
    /// Returns when its bytes and its length are on the disk.
    ///
    /// # Errors
    /// The kernel's.
    fn sync(&self) -> io::Result<()>;
    /// Drops what is cached of it and already on the disk, so that the next read shows what the disk has. After a failed
    /// sync the cache may show what the disk never got.
    ///
    /// # Errors
    /// The kernel's.
    fn forget(&self) -> io::Result<()>;
}

/// A folder of the machine, locked against other ledgers as long as this value lives.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    folder: File,
    _lock: Flock<File>,
}

const LOCK: &str = "lock";

impl Folder {
    /// Waits until no other process appends in the folder, and takes it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn lock(path: &Path) -> io::Result<Self> {
        let folder = File::open(path)?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path.join(LOCK))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusive);
        Ok(Self { path: path.to_owned(), folder, _lock: lock.map_err(|(_, errno)| errno)? })
    }
}

impl Disk for Folder {
    type File = File;

    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        names.filter_map(Result::transpose).collect()
    }

    fn create(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(self.path.join(name))
    }

    fn open(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.folder.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let free = fstatvfs(&self.folder)?;
        Ok(free.blocks_available().saturating_mul(free.fragment_size()))
    }
}

impl DiskFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.metadata()?.len()).map_err(io::Error::other)?];
        self.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        Ok(fallocate(self, FallocateFlags::empty(), 0, i64::try_from(length).map_err(io::Error::other)?)?)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn forget(&self) -> io::Result<()> {
        Ok(posix_fadvise(self, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
    }
}
