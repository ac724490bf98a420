//! What only the kernel's own calls reach of a machine that is ours alone: a partition's length, a file system's, a
//! watchdog's patience, the clock.

#![allow(unsafe_code)]

use nix::{Result, errno::Errno};
use std::{
    ffi::{c_char, c_int, c_longlong, c_void},
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd},
    time::{SystemTime, UNIX_EPOCH},
};

/// `BLKPG` of linux/blkpg.h: `_IO(0x12, 105)`.
const BLKPG: u64 = 0x1269;
const BLKPG_RESIZE_PARTITION: c_int = 3;
/// `_IOW('f', 16, __u64)` of the kernel's fs/ext4/ext4.h.
const EXT4_IOC_RESIZE_FS: u64 = 0x4008_6610;
/// `_IOWR('W', 6, int)` of linux/watchdog.h.
const WDIOC_SETTIMEOUT: u64 = 0xc004_5706;

/// `struct blkpg_partition`.
#[repr(C)]
struct Partition {
    start: c_longlong,
    length: c_longlong,
    number: c_int,
    device_name: [c_char; 64],
    volume_name: [c_char; 64],
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct Change {
    operation: c_int,
    flags: c_int,
    length: c_int,
    data: *mut c_void,
}

/// Has the kernel see partition `number` of `disk` as `bytes` from `start`, where it begins already.
///
/// # Errors
/// The kernel's; `EINVAL` where it begins elsewhere.
pub fn resize_partition(disk: BorrowedFd<'_>, number: u32, start: u64, bytes: u64) -> Result<()> {
    let signed = |bytes: u64| c_longlong::try_from(bytes).map_err(|_| Errno::EOVERFLOW);
    let mut partition = Partition {
        start: signed(start)?,
        length: signed(bytes)?,
        number: c_int::try_from(number).map_err(|_| Errno::EOVERFLOW)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let mut change = Change {
        operation: BLKPG_RESIZE_PARTITION,
        flags: 0,
        length: size_of::<Partition>() as c_int,
        data: (&raw mut partition).cast(),
    };
    ask(disk, BLKPG, &mut change)
}

/// Has the ext4 that is mounted at `root` have `blocks` of its blocks. It never shrinks.
///
/// # Errors
/// The kernel's; `EPERM` where the file system has errors.
pub fn resize_ext4(root: BorrowedFd<'_>, blocks: u64) -> Result<()> {
    ask(root, EXT4_IOC_RESIZE_FS, &mut { blocks })
}

/// How long `watchdog` waits to be fed, s: as near to `seconds` as it can.
///
/// # Errors
/// The kernel's.
pub fn set_watchdog_timeout(watchdog: BorrowedFd<'_>, seconds: u32) -> Result<u32> {
    let mut timeout = c_int::try_from(seconds).map_err(|_| Errno::EINVAL)?;
    ask(watchdog, WDIOC_SETTIMEOUT, &mut timeout)?;
    u32::try_from(timeout).map_err(|_| Errno::EINVAL)
}

/// Sets the machine's clock.
///
/// # Errors
/// The kernel's; `EINVAL` for a time before 1970.
pub fn set_clock(to: SystemTime) -> Result<()> {
    let since = to.duration_since(UNIX_EPOCH).map_err(|_| Errno::EINVAL)?;
    let time = libc::timespec {
        tv_sec: i64::try_from(since.as_secs()).map_err(|_| Errno::EOVERFLOW)?,
        tv_nsec: i64::from(since.subsec_nanos()),
    };
    // SAFETY: needed, since no safe call sets the clock. It reads one timespec, which lives until it returns.
    Errno::result(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) }).map(drop)
}

/// `ioctl` with a pointer; private, since `T` must be what `request` means.
fn ask<T>(file: BorrowedFd<'_>, request: u64, argument: &mut T) -> Result<()> {
    // SAFETY: needed, since these requests have no safe call. Each caller above passes the type that the kernel reads and
    // writes for its request, so it stays within `argument`, and what that points to outlives the call.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut *argument) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, os::fd::AsFd};

    #[test]
    fn structures_are_the_kernel_s() {
        assert_eq!((size_of::<Partition>(), size_of::<Change>()), (152, 24));
    }

    #[test]
    fn what_is_no_such_device_refuses() {
        let file = File::open("/dev/null").unwrap();
        assert_eq!(resize_partition(file.as_fd(), 1, 0, 512), Err(Errno::ENOTTY));
        assert_eq!(resize_ext4(file.as_fd(), 1), Err(Errno::ENOTTY));
        assert_eq!(set_watchdog_timeout(file.as_fd(), 60), Err(Errno::ENOTTY));
        assert_eq!(resize_partition(file.as_fd(), 1, u64::MAX, 512), Err(Errno::EOVERFLOW));
        assert_eq!(set_clock(UNIX_EPOCH - std::time::Duration::from_secs(1)), Err(Errno::EINVAL));
    }
}
