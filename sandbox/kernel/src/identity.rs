//! Who a process is and what it may do: user, groups, capabilities, securebits, no_new_privs, and the maps of a new
//! user namespace.
//!
//! The user namespace maps exactly one id: 65534 inside is the slot's own id outside. No id 0 is mapped, so nothing in
//! the namespace is root, and a change of uid does not drop capabilities as it would for root: that is done by hand,
//! after the mounts. Supplementary groups are dropped by the child, for which the kernel wants `setgroups` allowed; it
//! needs a capability that is gone before any code of the runner's runs.
//!
//! Ids are set by raw system calls: after clone3 the C library still believes in the parent's other threads, and its
//! `setresuid` would wait for them. Setting them in a whole process ([`crate::process`]) goes through the C library,
//! for the same reason turned round.
#![allow(unsafe_code)]

use nix::{Result, errno::Errno, libc, unistd::Pid};
use std::{fs, io, sync::OnceLock};

/// Writes both id maps of a child that waits at its gate.
///
/// # Errors
/// What the kernel said, with the file.
pub(crate) fn write_maps(child: Pid, inside: u32, outside: u32) -> io::Result<()> {
    let line = format!("{inside} {outside} 1");
    for map in ["uid_map", "gid_map"] {
        let path = format!("/proc/{child}/{map}");
        fs::write(&path, &line).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
    }
    Ok(())
}

/// A raw call with up to three plain numbers.
fn call(number: libc::c_long, arguments: [u64; 3]) -> Result<()> {
    let [a, b, c] = arguments;
    // SAFETY: no wrapper is safe to use between clone3 and exec (see the header). Every caller in this module passes a
    // call that takes numbers, or a null pointer with a length of 0, so the kernel touches none of our memory.
    Errno::result(unsafe { libc::syscall(number, a, b, c) }).map(drop)
}

fn prctl(option: libc::c_int, arguments: [u64; 2]) -> Result<()> {
    // SAFETY: nix has no wrapper for these options. They take numbers only; unused arguments must be 0 and are.
    Errno::result(unsafe { libc::prctl(option, arguments[0], arguments[1], 0_u64, 0_u64) }).map(drop)
}

/// Drops supplementary groups of the calling thread.
pub(crate) fn clear_groups() -> Result<()> {
    call(libc::SYS_setgroups, [0, 0, 0])
}

/// Becomes a group: real, effective and saved.
pub(crate) fn set_group(id: u32) -> Result<()> {
    call(libc::SYS_setresgid, [id.into(); 3])
}

/// Becomes a user: real, effective and saved.
pub(crate) fn set_user(id: u32) -> Result<()> {
    call(libc::SYS_setresuid, [id.into(); 3])
}

/// Room in the kernel's capability sets; it knows fewer.
const CAPABILITIES_MAX: u64 = 64;

/// How many capabilities this kernel knows.
pub(crate) fn capabilities_known() -> u64 {
    static KNOWN: OnceLock<u64> = OnceLock::new();
    let is_known = |capability: &u64| prctl(libc::PR_CAPBSET_READ, [*capability, 0]).is_ok();
    *KNOWN.get_or_init(|| (0..CAPABILITIES_MAX).take_while(is_known).count() as u64)
}

/// Empties the bounding set.
pub(crate) fn drop_bounding_set() -> Result<()> {
    for capability in 0..CAPABILITIES_MAX {
        match prctl(libc::PR_CAPBSET_DROP, [capability, 0]) {
            Ok(()) => {}
            // Past the last that this kernel knows.
            Err(Errno::EINVAL) if capability > 0 => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Empties the ambient set.
pub(crate) fn clear_ambient() -> Result<()> {
    prctl(libc::PR_CAP_AMBIENT, [libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0])
}

/// Every securebit that takes something away, and all locks.
pub(crate) const SECUREBITS: libc::c_int = libc::SECBIT_NOROOT
    | libc::SECBIT_NOROOT_LOCKED
    | libc::SECBIT_NO_SETUID_FIXUP
    | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
    | libc::SECBIT_KEEP_CAPS_LOCKED
    | libc::SECBIT_NO_CAP_AMBIENT_RAISE
    | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;

/// Takes the special meaning of id 0 away for good.
pub(crate) fn lock_securebits() -> Result<()> {
    prctl(libc::PR_SET_SECUREBITS, [SECUREBITS as u64, 0])
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

pub(crate) const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Empties the effective, permitted and inheritable sets of the calling thread.
pub(crate) fn drop_capabilities() -> Result<()> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let empty = [[0_u32; 3]; 2];
    // SAFETY: nix has no capset. Version 3 reads one header and two triples of u32, which both outlive the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const empty) }).map(drop)
}

/// Sets no_new_privs, for good.
pub(crate) fn forbid_new_privileges() -> Result<()> {
    nix::sys::prctl::set_no_new_privs()
}
