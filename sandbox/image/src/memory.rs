//! The memory of another process, by address.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
};

/// Reads and writes the memory of a process that is held. Many threads may do so at once.
#[derive(Debug)]
pub struct Memory(File);

impl Memory {
    pub(crate) fn open(pid: i32) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).map(Self)
    }

    /// Fills `bytes` from an address on.
    ///
    /// # Errors
    /// Nothing is mapped there.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(bytes, address)
    }

    /// Writes bytes from an address on, also where the process itself may only read.
    ///
    /// # Errors
    /// Nothing is mapped there.
    pub fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, address)
    }

    pub(crate) fn words<const N: usize>(&self, address: u64) -> io::Result<[u64; N]> {
        let mut words = [0; N];
        for (at, word) in words.iter_mut().enumerate() {
            let mut bytes = [0; 8];
            self.read(address + 8 * at as u64, &mut bytes)?;
            *word = u64::from_ne_bytes(bytes);
        }
        Ok(words)
    }
}
