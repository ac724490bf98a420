//! A Landlock domain with no rights but to the files that it is made with.
//!
//! ```text
//!  parent  domain(files) ──▶ ruleset: every right this kernel knows is handled, so refused; a rule for each file
//!  child   enter(ruleset)    for good, and for whatever it starts
//! ```
//! The second lock on the file system, should a way round the empty root be found: it holds by inode, wherever a file is
//! mounted, for what is opened later. From ABI 4 it also refuses TCP, from ABI 6 signals and abstract sockets to anyone
//! outside the domain.
//!
//! By hand: three calls, of which the last is made between clone3 and exec, where nothing may allocate. A kernel without
//! Landlock is an error, not a weaker sandbox, unless the operator has accepted that. Left out: the kernel does not tell from outside who is in a domain; that
//! the call succeeded is all that is known, and the escapes tried from inside are the proof.
#![allow(unsafe_code)]

use nix::{Result, errno::Errno, libc};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Flag of `landlock_create_ruleset` that asks for the version of the interface.
const VERSION: usize = 1;
/// Kind of rule that allows something below a path.
const PATH_BENEATH: usize = 1;

/// Rights to a file, as in `linux/landlock.h`.
const EXECUTE: u64 = 1;
const READ_FILE: u64 = 1 << 2;

/// What a file in a domain may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Reading.
    Read,
    /// Becoming the process's program.
    Execute,
}

impl Use {
    const fn rights(self) -> u64 {
        match self {
            Self::Read => READ_FILE,
            // The kernel reads what it executes.
            Self::Execute => EXECUTE | READ_FILE,
        }
    }
}

/// `struct landlock_ruleset_attr`: the rights that are refused but for rules. An older kernel knows less of it, and
/// takes it if the rest is zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Handled {
    files: u64,
    network: u64,
    scopes: u64,
}

impl Handled {
    /// All rights of a version of the interface.
    const fn all(version: usize) -> Self {
        let files = match version {
            0 => 0,
            1 => (1 << 13) - 1,
            2 => (1 << 14) - 1,
            3 | 4 => (1 << 15) - 1,
            _ => (1 << 16) - 1,
        };
        let network = if version >= 4 { 0b11 } else { 0 };
        let scopes = if version >= 6 { 0b11 } else { 0 };
        Self { files, network, scopes }
    }
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    rights: u64,
    file: RawFd,
}

/// The version of the interface.
///
/// # Errors
/// `ENOSYS` or `EOPNOTSUPP` when the kernel has none.
pub(crate) fn version() -> Result<usize> {
    // SAFETY: with this flag the call takes no memory and answers a number.
    let version = Errno::result(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, VERSION) })?;
    Ok(version as usize)
}

/// A domain in which these files have these uses, and nothing else is allowed.
///
/// # Errors
/// The kernel has no Landlock, or does not take a file.
pub fn domain<'a>(files: impl IntoIterator<Item = (BorrowedFd<'a>, Use)>) -> Result<OwnedFd> {
    let handled = Handled::all(version()?);
    // SAFETY: the structure outlives the call, and its size is its own.
    let fd = Errno::result(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const handled, size_of::<Handled>(), 0)
    })?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    let ruleset = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    files.into_iter().try_for_each(|(file, purpose)| add(&ruleset, file, purpose))?;
    Ok(ruleset)
}

/// The same; nothing where the kernel has no Landlock and `may_lack` says that this is accepted.
///
/// # Errors
/// As for [`domain`].
pub fn domain_if_there_is<'a>(
    files: impl IntoIterator<Item = (BorrowedFd<'a>, Use)>,
    may_lack: bool,
) -> Result<Option<OwnedFd>> {
    if may_lack && version().is_err() { Ok(None) } else { domain(files).map(Some) }
}

fn add(ruleset: &OwnedFd, file: BorrowedFd<'_>, purpose: Use) -> Result<()> {
    let rule = PathBeneath { rights: purpose.rights(), file: file.as_raw_fd() };
    // SAFETY: the structure outlives the call and is laid out, packed, as the kernel reads it for this kind of rule.
    let added =
        unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), PATH_BENEATH, &raw const rule, 0) };
    Errno::result(added).map(drop)
}

/// Enters a domain, for good. One system call; allocates nothing. Needs no_new_privs.
pub(crate) fn enter(ruleset: RawFd) -> Result<()> {
    // SAFETY: the call takes two numbers.
    Errno::result(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, os::fd::AsFd, thread};

    #[test]
    fn each_version_adds_rights() {
        assert_eq!(Handled::all(0), Handled::default());
        assert_eq!(Handled::all(1), Handled { files: 0x1fff, network: 0, scopes: 0 });
        assert_eq!(Handled::all(4), Handled { files: 0x7fff, network: 3, scopes: 0 });
        assert_eq!(Handled::all(7), Handled { files: 0xffff, network: 3, scopes: 3 });
    }

    #[test]
    fn in_a_domain_only_its_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["given", "other"].map(|name| folder.path().join(name));
        for path in &paths {
            std::fs::write(path, "x").unwrap();
        }
        let given = File::open(&paths[0]).unwrap();
        let ruleset = domain([(given.as_fd(), Use::Read)]).unwrap();
        // A domain is a thread's: it ends with this one.
        let opened = thread::spawn(move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            enter(ruleset.as_raw_fd()).unwrap();
            paths.map(|path| File::open(path).map_err(|error| error.kind()).is_ok())
        });
        assert_eq!(opened.join().unwrap(), [true, false]);
        assert!(File::open(folder.path().join("other")).is_ok());
    }
}
