//! Ways to see or change files: by every call that opens, through mounts, and by descriptors that were left open.

use super::{Escape, HERE, MODEL, call, text, untried, value, works};
use crate::spec::{DESCRIPTORS_KEPT, DESCRIPTORS_OWN};
use nix::{Result, errno::Errno, libc};
use std::ffi::CStr;

fn open(path: &'static CStr, flags: i32) -> Result<()> {
    call(libc::SYS_openat, [HERE, text(path) as usize, flags as usize, 0])
}

fn read(path: &'static CStr) -> Result<()> {
    open(path, libc::O_RDONLY)
}

/// A call on one path.
fn on(number: libc::c_long, path: &'static CStr, argument: usize) -> Result<()> {
    call(number, [text(path) as usize, argument, argument])
}

/// A call on two paths.
fn onto(number: libc::c_long, from: &'static CStr, to: &'static CStr) -> Result<()> {
    call(number, [text(from) as usize, text(to) as usize])
}

pub(super) const ALL: &[Escape] = &[
    works("read /etc/passwd", || read(c"/etc/passwd")),
    works("read /etc/passwd from above the root", || read(c"/../../../etc/passwd")),
    works("read /proc/self/status", || read(c"/proc/self/status")),
    untried("read /proc/1/environ", || read(c"/proc/1/environ")),
    works("read /sys/kernel", || read(c"/sys/kernel")),
    works("read /dev/zero", || read(c"/dev/zero")),
    untried("read /dev/mem", || read(c"/dev/mem")),
    untried("read /dev/kvm", || read(c"/dev/kvm")),
    works("list the root", || read(c"/")),
    works("list the current directory", || read(c".")),
    works("hold the root by O_PATH", || open(c"/", libc::O_PATH)),
    works("open by the old call", || call(libc::SYS_open, [text(c"/etc/passwd") as usize, 0, 0])),
    works("open by openat2", || {
        // Flags, mode, resolve.
        let how = [0_u64; 3];
        call(libc::SYS_openat2, [HERE, text(c"/etc/passwd") as usize, (&raw const how) as usize, size_of_val(&how)])
    }),
    untried("open relative to a descriptor", || call(libc::SYS_openat, [0, text(c"../etc/passwd") as usize, 0, 0])),
    untried("create a file", || open(c"/file", libc::O_CREAT | libc::O_WRONLY)),
    untried("create a file by the old call", || on(libc::SYS_creat, c"/file", 0o600)),
    untried("create a nameless file", || open(c"/", libc::O_TMPFILE | libc::O_RDWR)),
    untried("open the model for writing", || open(MODEL, libc::O_RDWR)),
    untried("truncate the model at opening", || open(MODEL, libc::O_TRUNC)),
    untried("truncate the model", || on(libc::SYS_truncate, MODEL, 0)),
    untried("remove the model", || call(libc::SYS_unlinkat, [HERE, text(MODEL) as usize, 0])),
    untried("rename the model", || onto(libc::SYS_rename, MODEL, c"/other")),
    untried("link the model", || onto(libc::SYS_link, MODEL, c"/other")),
    untried("make a symbolic link", || onto(libc::SYS_symlink, c"/etc", c"/link")),
    untried("make a directory", || on(libc::SYS_mkdir, c"/directory", 0o700)),
    untried("make a device", || call(libc::SYS_mknod, [text(c"/null") as usize, 0o20666, 0x103])),
    untried("change the model's mode", || on(libc::SYS_chmod, MODEL, 0o777)),
    untried("change the model's owner", || on(libc::SYS_chown, MODEL, 0)),
    untried("set the model's times", || call(libc::SYS_utimensat, [HERE, text(MODEL) as usize, 0, 0])),
    untried("set an attribute of the model", || {
        call(libc::SYS_setxattr, [text(MODEL) as usize, text(c"user.x") as usize, text(c"x") as usize, 1, 0])
    }),
    works("change the directory", || on(libc::SYS_chdir, c"/", 0)),
    works("change the root", || on(libc::SYS_chroot, c"/", 0)),
    untried("pivot the root", || onto(libc::SYS_pivot_root, c"/", c"/")),
    untried("mount a tmpfs", || {
        call(libc::SYS_mount, [text(c"x") as usize, text(c"/") as usize, text(c"tmpfs") as usize, 0, 0])
    }),
    untried("remount the root writable", || {
        call(libc::SYS_mount, [0, text(c"/") as usize, 0, (libc::MS_REMOUNT | libc::MS_BIND) as usize, 0])
    }),
    untried("unmount the model", || on(libc::SYS_umount2, MODEL, libc::MNT_DETACH as usize)),
    works("open a file system", || on(libc::SYS_fsopen, c"tmpfs", 0)),
    works("clone a mount", || call(libc::SYS_open_tree, [HERE, text(c"/") as usize, 1])),
    untried("move a mount", || call(libc::SYS_move_mount, [HERE, text(MODEL) as usize, HERE, text(c"/") as usize, 0])),
    untried("change a mount's attributes", || {
        let attributes = [0_u64; 4];
        let size = size_of_val(&attributes);
        call(libc::SYS_mount_setattr, [HERE, text(c"/") as usize, 0, (&raw const attributes) as usize, size])
    }),
    works("turn a path into a handle", || {
        // `struct file_handle` with room for 128 bytes.
        let (mut handle, mut mount) = ([128_u32; 34], 0_i32);
        let [handle, mount] = [(&raw mut handle) as usize, (&raw mut mount) as usize];
        call(libc::SYS_name_to_handle_at, [HERE, text(c"/etc/passwd") as usize, handle, mount, 0])
    }),
    untried("open by a handle", || {
        // Inode 2, the root of many file systems, with generation 0.
        let handle = [8_u32, 1, 2, 0];
        call(libc::SYS_open_by_handle_at, [HERE, (&raw const handle) as usize, 0])
    }),
    untried("watch the file system", || call(libc::SYS_fanotify_init, [0, 0])),
    works("watch a directory", || call(libc::SYS_inotify_init1, [0])),
    untried("change a quota", || call(libc::SYS_quotactl, [0x0080_0001, text(c"/") as usize, 0, 0])),
    works("make a file in memory", || on(libc::SYS_memfd_create, c"x", 0)),
    works("make a pipe", || {
        let mut ends = [0_i32; 2];
        call(libc::SYS_pipe2, [(&raw mut ends) as usize, 0])
    }),
    works("duplicate a descriptor", || call(libc::SYS_dup, [2])),
    works("duplicate a descriptor by fcntl", || call(libc::SYS_fcntl, [2, libc::F_DUPFD as usize, 0])),
    untried("type into a terminal", || call(libc::SYS_ioctl, [0, libc::TIOCSTI as usize, text(c"x") as usize])),
    untried("write to descriptor 1", || call(libc::SYS_write, [1, text(c"x") as usize, 1])),
    untried("write to a descriptor of the start", || call(libc::SYS_write, [16, text(c"x") as usize, 1])),
    untried("splice from its socket", || call(libc::SYS_splice, [3, 0, 2, 0, 1, 0])),
    untried("find a descriptor that was left open", leaked),
];

/// A descriptor past those that were given, among all that could ever have been open.
fn leaked() -> Result<()> {
    let mut status = [0_u64; 32];
    let [path, status] = [text(c"") as usize, (&raw mut status) as usize];
    let numbers = DESCRIPTORS_KEPT..DESCRIPTORS_OWN + 4096;
    let is_open = |number: i32| {
        value(libc::SYS_newfstatat, [number as usize, path, status, libc::AT_EMPTY_PATH as usize]) != Err(Errno::EBADF)
    };
    if numbers.into_iter().any(is_open) { Ok(()) } else { Err(Errno::EBADF) }
}
