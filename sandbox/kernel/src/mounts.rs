//! The root of a sandbox: a tmpfs of 64 KiB and 16 inodes that holds the files it was given and nothing else, read-only.
//!
//! ```text
//!  parent   detach_file(fd)         a mount of the one file, read-only, nosuid, nodev, noexec, attached nowhere
//!  child    make private            / and below
//!           mount tmpfs             over /proc, the one directory that must exist (the id maps were written there)
//!           attach each file        move_mount onto an empty file in the tmpfs
//!           pivot_root(".", ".")    the old root lies on top of the new
//!           umount2(".", DETACH)    and goes
//!           remount read-only
//! ```
//!
//! A file comes in by descriptor rather than by path: the child, which is no longer root, may be unable to walk to it,
//! and what was checked is what is mounted. No proc, sys or dev is ever mounted. Trap: where `/` is the initramfs itself,
//! pivot_root answers EINVAL; whoever is PID 1 there moves to a tmpfs first.
#![allow(unsafe_code)]

use nix::{
    Result,
    errno::Errno,
    fcntl::{OFlag, open},
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::Mode,
    unistd::{chdir, close, pivot_root},
};
use std::{
    ffi::CStr,
    os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
};

const NOTHING: Option<&CStr> = None;
pub(crate) const ROOT_OPTIONS: &CStr = c"size=64k,nr_inodes=16,mode=0555";
pub(crate) const MOUNT_POINT: &CStr = c"/proc";

const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOSUID: u64 = 2;
const MOUNT_ATTR_NODEV: u64 = 4;
const MOUNT_ATTR_NOEXEC: u64 = 8;

/// `struct mount_attr` of `linux/mount.h`.
#[repr(C)]
#[derive(Default)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// A mount of one open file, read-only and without any meaning but its bytes, attached nowhere. Needs root.
///
/// # Errors
/// The kernel's.
pub fn detach_file(file: impl AsFd) -> Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint | libc::AT_EMPTY_PATH as libc::c_uint;
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: nix has no open_tree. The path is a literal; the answer is checked before it is used.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_open_tree, fd, c"".as_ptr(), flags) })?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    let mount = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    restrict(&mount)?;
    Ok(mount)
}

fn restrict(mount: &OwnedFd) -> Result<()> {
    let set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    let attributes = MountAttributes { set, ..MountAttributes::default() };
    // SAFETY: nix has no mount_setattr. The path is a literal, the structure outlives the call and its size is its own.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    Errno::result(done).map(drop)
}

/// Cuts all mounts of this namespace off from the host's. Like all below: for the child, allocates nothing.
pub(crate) fn make_private() -> Result<()> {
    mount(NOTHING, c"/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)
}

pub(crate) fn inert() -> MsFlags {
    MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC
}

/// Mounts the future root and stands in it.
pub(crate) fn mount_root() -> Result<()> {
    mount(Some(c"ember"), MOUNT_POINT, Some(c"tmpfs"), inert(), Some(ROOT_OPTIONS))?;
    chdir(MOUNT_POINT)
}

/// Attaches a detached mount at a name in the directory we stand in.
pub(crate) fn attach_file(mount: RawFd, name: &CStr) -> Result<()> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    close(open(name, flags, Mode::from_bits_truncate(0o444))?.into_raw_fd())?;
    // SAFETY: nix has no move_mount. Both paths are C strings that outlive the call.
    let moved = unsafe {
        libc::syscall(libc::SYS_move_mount, mount, c"".as_ptr(), libc::AT_FDCWD, name.as_ptr(), MOVE_MOUNT_F_EMPTY_PATH)
    };
    Errno::result(moved).map(drop)
}

/// Makes the directory we stand in the root, and lets the old root go.
pub(crate) fn enter_root() -> Result<()> {
    pivot_root(c".", c".")?;
    umount2(c".", MntFlags::MNT_DETACH)?;
    chdir(c"/")
}

/// Makes the root read-only, mount and file system both.
pub(crate) fn seal_root() -> Result<()> {
    mount(NOTHING, c"/", NOTHING, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | inert(), NOTHING)
}
