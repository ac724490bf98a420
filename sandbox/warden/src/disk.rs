//! Room on the disk that holds models and snapshots. It also holds the ledger, which must never find it full.

use std::{io, path::Path};

/// What is left to others.
const RESERVE_BYTES: u64 = 256 << 20;

/// What may be written into a folder, bytes.
pub(crate) fn room(folder: &Path) -> io::Result<u64> {
    Ok(sandbox_kernel::disk::bytes_free(folder)?.saturating_sub(RESERVE_BYTES))
}

/// Refuses what there is no room for.
pub(crate) fn require(folder: &Path, bytes: u64) -> io::Result<()> {
    let room = room(folder)?;
    if bytes <= room {
        return Ok(());
    }
    let reason = format!("no space for {bytes} bytes: {room} are free beyond a reserve of {} MiB", RESERVE_BYTES >> 20);
    Err(io::Error::new(io::ErrorKind::StorageFull, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_not_given_away() {
        let folder = tempfile::tempdir().unwrap();
        let free = sandbox_kernel::disk::bytes_free(folder.path()).unwrap();
        assert!(room(folder.path()).unwrap() < free);
        assert!(require(folder.path(), 0).is_ok());
        let refused = require(folder.path(), u64::MAX).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        assert!(refused.to_string().contains("reserve of 256 MiB"), "{refused}");
    }
}
