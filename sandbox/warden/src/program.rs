//! The runner's program, opened once: what is executed later is what was looked at, whatever happens to its path.

use crate::RunError;
use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const PROGRAM_HEADERS_MAX: u16 = 64;
/// A program header that names a loader: `PT_INTERP`.
const INTERPRETER: u32 = 3;

/// Opens the program and checks that it can run in an empty root and that only root can change it.
pub(crate) fn open(path: &Path) -> Result<File, RunError> {
    let refuse = |reason: String| RunError::Runner { path: path.to_owned(), reason };
    let file = File::open(path).map_err(|error| refuse(error.to_string()))?;
    let metadata = file.metadata().map_err(|error| refuse(error.to_string()))?;
    if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
        return Err(refuse("it must belong to root and be writable by nobody else".into()));
    }
    match is_static(&file) {
        Ok(true) => Ok(file),
        Ok(false) => Err(refuse("it is not a static x86-64 or aarch64 executable; an empty root has no loader".into())),
        Err(error) => Err(refuse(error.to_string())),
    }
}

/// Whether a file is a 64-bit little-endian ELF without an interpreter.
fn is_static(file: &File) -> io::Result<bool> {
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Ok(false);
    }
    let table = u64::from_le_bytes(header[32..40].try_into().expect("8 bytes"));
    let count = u16::from_le_bytes(header[56..58].try_into().expect("2 bytes"));
    for index in 0..count.min(PROGRAM_HEADERS_MAX) {
        let mut kind = [0; 4];
        file.read_exact_at(&mut kind, table.saturating_add(u64::from(index) * PROGRAM_HEADER_BYTES as u64))?;
        if u32::from_le_bytes(kind) == INTERPRETER {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_programs_are_static_and_the_hosts_are_not() {
        open(&std::env::current_exe().unwrap()).unwrap();
        let refused = |path: &str| open(Path::new(path)).unwrap_err().to_string();
        assert!(refused("/bin/sh").contains("no loader"));
        assert!(refused("/etc/services").contains("no loader"));
        assert!(refused("/no/such/runner").contains("/no/such/runner"));
    }
}
