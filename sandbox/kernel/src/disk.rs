//! How much room a file system has left.

use nix::{Result, sys::statvfs::statvfs};
use std::path::Path;

/// Bytes that an unprivileged user could still write to the file system of `path`.
///
/// # Errors
/// The kernel's.
pub fn bytes_free(path: &Path) -> Result<u64> {
    let status = statvfs(path)?;
    Ok(status.blocks_available().saturating_mul(status.fragment_size()))
}
