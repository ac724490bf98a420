//! The end of what a runner wrote to standard error: the reason for a crash, if it gave one. Hostile, so bounded.

use std::{
    io::{PipeReader, Read},
    os::fd::{AsFd, BorrowedFd},
};

/// Bytes kept.
const KEPT_BYTES: usize = 4 << 10;
/// Bytes taken; then the pipe is closed, so that a runner cannot keep a thread of the warden busy.
const TAKEN_BYTES_MAX: usize = 1 << 20;

/// The read end of a runner's standard error, and its last words.
#[derive(Debug)]
pub(crate) struct Tail {
    pipe: Option<PipeReader>,
    kept: Vec<u8>,
    taken: usize,
}

impl Tail {
    pub(crate) fn new(pipe: PipeReader) -> Self {
        Self { pipe: Some(pipe), kept: Vec::new(), taken: 0 }
    }

    /// Becomes readable when there is something to [`Tail::take`].
    pub(crate) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Takes what is there; waits if nothing is.
    pub(crate) fn take(&mut self) {
        let mut buffer = [0; KEPT_BYTES];
        let read = self.pipe.as_mut().map(|pipe| pipe.read(&mut buffer));
        match read {
            Some(Ok(bytes)) if bytes > 0 && self.taken < TAKEN_BYTES_MAX => self.keep(&buffer[..bytes]),
            _ => self.pipe = None,
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.taken += bytes.len();
        self.kept.extend_from_slice(bytes);
        self.kept.drain(..self.kept.len().saturating_sub(KEPT_BYTES));
    }

    /// Takes the rest. Every writer has ended, so nothing is waited for.
    pub(crate) fn finish(mut self) -> String {
        while self.pipe.is_some() {
            self.take();
        }
        printable(&String::from_utf8_lossy(&self.kept))
    }
}

/// A text from a runner, fit for a log: without control characters, on one line.
pub(crate) fn printable(text: &str) -> String {
    let shown: String = text.chars().take(KEPT_BYTES).map(|c| if c.is_control() { ' ' } else { c }).collect();
    shown.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Write, pipe};

    #[test]
    fn the_last_words_are_kept() {
        let (reader, mut writer) = pipe().unwrap();
        writer.write_all(b"\x1b[31mboom\nat line 1\n").unwrap();
        drop(writer);
        assert_eq!(Tail::new(reader).finish(), "[31mboom at line 1".to_owned());
    }

    #[test]
    fn a_flood_is_cut_off() {
        let (reader, mut writer) = pipe().unwrap();
        let flood = std::thread::spawn(move || while writer.write_all(&[b'x'; 4096]).is_ok() {});
        let text = Tail::new(reader).finish();
        assert_eq!(text.len(), KEPT_BYTES);
        flood.join().unwrap();
    }
}
