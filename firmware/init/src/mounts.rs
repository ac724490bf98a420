//! The kernel's file systems, at the places where programs expect them.

use crate::{console::say, efi, error::InitError};
use nix::mount::{MsFlags, mount};
use std::fs;

const PLAIN: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

/// Source (and kind), place, options.
const MOUNTS: &[(&str, &str, MsFlags, &str)] = &[
    ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755"),
    ("proc", "/proc", PLAIN, ""),
    ("sysfs", "/sys", PLAIN, ""),
    ("tmpfs", "/run", PLAIN, "mode=0755"),
    ("tmpfs", "/tmp", PLAIN, "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", PLAIN, "nsdelegate,memory_recursiveprot"),
];

/// Mounts them all.
pub(crate) fn mount_all() -> Result<(), InitError> {
    for (kind, place, flags, options) in MOUNTS {
        fs::create_dir_all(place).map_err(InitError::io(*place))?;
        mount(Some(*kind), *place, Some(*kind), *flags, Some(*options)).map_err(InitError::kernel(*place))?;
    }
    Ok(())
}

/// The firmware's variables, whose file system is a module. A machine without them starts all the same.
pub(crate) fn mount_variables() {
    let kind = "efivarfs";
    if let Err(errno) = mount(Some(kind), efi::VARIABLES, Some(kind), PLAIN, None::<&str>) {
        say(format_args!("the firmware's variables cannot be read: {}", errno.desc()));
    }
}
