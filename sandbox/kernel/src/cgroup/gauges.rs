//! Two files of a group that say what it has used, for whoever is handed them: reading needs no right to the group.
//!
//! ```text
//!  v2  cpu.stat: `usage_usec N`, µs    memory.current: bytes
//!  v1  cpuacct.usage: N, ns            memory.usage_in_bytes: bytes
//! ```
//! Memory is all that is charged to the group, page cache included. Once the group is removed, nothing can be read.

use super::{
    CgroupError, Hierarchy,
    files::{counter, read},
};
use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::PathBuf,
};

/// Longest that is read of either: `usage_usec` is in the first line.
const READ_BYTES: usize = 512;

/// Open files of one group.
#[derive(Debug)]
pub struct Gauges {
    cpu: File,
    memory: File,
}

impl Gauges {
    pub(super) fn open(hierarchy: &Hierarchy) -> Result<Self, CgroupError> {
        let open =
            |path: PathBuf| File::open(&path).map_err(|error| CgroupError::File { path, reason: error.to_string() });
        let memory = match hierarchy {
            Hierarchy::V2 { root } => open(root.join("memory.current"))?,
            Hierarchy::V1 { memory, .. } => open(memory.join("memory.usage_in_bytes"))?,
        };
        Ok(Self { cpu: open(cpu_file(hierarchy))?, memory })
    }

    /// From what was handed over.
    pub fn from_descriptors(cpu: OwnedFd, memory: OwnedFd) -> Self {
        Self { cpu: cpu.into(), memory: memory.into() }
    }

    /// The files of CPU time and of memory.
    pub fn files(&self) -> [&File; 2] {
        [&self.cpu, &self.memory]
    }

    /// CPU time used so far, µs, and bytes of memory used now.
    ///
    /// # Errors
    /// The kernel's: the group is gone.
    pub fn read(&self) -> io::Result<(u64, u64)> {
        Ok((counted_us(&text(&self.cpu)?), text(&self.memory)?.trim().parse().unwrap_or(0)))
    }
}

fn text(file: &File) -> io::Result<String> {
    let mut buffer = [0; READ_BYTES];
    let length = file.read_at(&mut buffer, 0)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// CPU time of a group and of those below it, also of those that are gone, µs.
pub(super) fn cpu_us(hierarchy: &Hierarchy) -> Result<u64, CgroupError> {
    read(&cpu_file(hierarchy)).map(|text| counted_us(&text))
}

fn cpu_file(hierarchy: &Hierarchy) -> PathBuf {
    match hierarchy {
        Hierarchy::V2 { root } => root.join("cpu.stat"),
        Hierarchy::V1 { cpuacct, .. } => cpuacct.join("cpuacct.usage"),
    }
}

/// What the file of either version says.
fn counted_us(text: &str) -> u64 {
    text.trim().parse::<u64>().map_or_else(|_| counter(text, "usage_usec"), |ns| ns / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        assert_eq!(counted_us("1234567\n"), 1234);
        assert_eq!(counted_us("usage_usec 1234\nuser_usec 1000\nsystem_usec 234\n"), 1234);
        assert_eq!(counted_us(""), 0);
    }
}
