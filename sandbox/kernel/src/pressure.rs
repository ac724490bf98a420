//! Word of the kernel's that memory is short (PSI, `Documentation/accounting/psi.rst`), on the host or in a cgroup: a trigger
//! that costs nothing while there is enough.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{fd::AsFd, unix::fs::FileExt},
    path::Path,
};

/// The host's.
pub const HOST: &str = "/proc/pressure/memory";
/// 150 ms lost within 2 s; without privilege, a window is a multiple of 2 s.
const TRIGGER: &[u8] = b"some 150000 2000000\0";

/// Tells when processes lose time for want of memory.
#[derive(Debug)]
pub struct MemoryPressure(File);

impl MemoryPressure {
    /// Sets the trigger on [`HOST`] or a cgroup's `memory.pressure`.
    ///
    /// # Errors
    /// The kernel has no PSI, gives no triggers to this user, or takes none in this file.
    pub fn watch(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut watch = Self(file);
        // Whatever else this is would be written over.
        watch.lost()?;
        watch.0.write_all(TRIGGER)?;
        Ok(watch)
    }

    /// Waits until memory is short, and gives the share of the last ten seconds that some process lost, in %.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&self) -> io::Result<f64> {
        loop {
            let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLPRI)];
            match poll(&mut polled, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                polled => polled?,
            };
            match polled[0].revents() {
                Some(events) if events.contains(PollFlags::POLLERR) => return Err(io::ErrorKind::NotConnected.into()),
                _ => return self.lost(),
            }
        }
    }

    fn lost(&self) -> io::Result<f64> {
        let mut text = [0; 256];
        let length = self.0.read_at(&mut text, 0)?;
        lost(&String::from_utf8_lossy(&text[..length])).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// `avg10` of `some`, in %.
fn lost(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split(' ').find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_tells_of_no_pressure_is_left_as_it_is() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "some text that somebody needs").unwrap();
        assert_eq!(MemoryPressure::watch(file.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "some text that somebody needs");
    }

    #[test]
    fn what_the_kernel_says_is_read() {
        let text = "some avg10=12.50 avg60=1.00 avg300=0.10 total=9\nfull avg10=3.00 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!(lost(text), Some(12.5));
        assert_eq!(lost("full avg10=3.00\n"), None);
        assert_eq!(lost("some avg10=x\n"), None);
    }
}
