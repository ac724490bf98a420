//! Which pages of a mapping are the process's own, as `/proc/PID/pagemap` tells.
//!
//! ```text
//!  one word a page:  63 present │ 62 swapped │ 61 of a file or shared │ 58 guard │ …
//! ```
//! A page is the process's own when it is present or swapped out, and not of a file. What is neither present nor swapped
//! reads as zero where no file lies beneath.

use crate::error::{CaptureError, Result};
use sandbox_snapshot::image::{PAGE_BYTES, Span};
use std::{fs::File, ops::Range, os::unix::fs::FileExt};

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;
const GUARD: u64 = 1 << 58;
/// Pages looked at in one read.
const BATCH_PAGES: u64 = 8192;

/// What the pages of a mapping are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pages {
    /// The process's own, by ascending address.
    pub(crate) own: Vec<Span>,
    /// Some page ends the process when touched, and no image can say so.
    pub(crate) guarded: bool,
}

impl Pages {
    fn add(&mut self, address: u64, word: u64) {
        self.guarded |= word & GUARD != 0;
        if word & (PRESENT | SWAPPED) == 0 || word & OF_FILE != 0 {
            return;
        }
        match self.own.last_mut() {
            Some(last) if last.end() == address => last.bytes += PAGE_BYTES,
            _ => self.own.push(Span { address, bytes: PAGE_BYTES }),
        }
    }
}

/// `/proc/PID/pagemap`.
pub(crate) struct Pagemap {
    path: String,
    file: File,
}

impl Pagemap {
    pub(crate) fn open(pid: i32) -> Result<Self, CaptureError> {
        let path = format!("/proc/{pid}/pagemap");
        match File::open(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => Err(CaptureError::Read { path, error }),
        }
    }

    /// The pages in a range of whole pages.
    pub(crate) fn pages(&self, range: Range<u64>) -> Result<Pages, CaptureError> {
        let mut pages = Pages::default();
        let mut address = range.start;
        while address < range.end {
            let words = self.words(address, BATCH_PAGES.min((range.end - address) / PAGE_BYTES))?;
            for word in words.as_chunks::<8>().0 {
                pages.add(address, u64::from_ne_bytes(*word));
                address += PAGE_BYTES;
            }
        }
        Ok(pages)
    }

    /// For each page of a range of whole pages, whether the process has it mapped, or had and it was swapped out.
    pub(crate) fn touched(&self, range: &Range<u64>) -> Result<impl Iterator<Item = bool> + use<>, CaptureError> {
        let words = self.words(range.start, (range.end - range.start) / PAGE_BYTES)?;
        let touched = |word: [u8; 8]| u64::from_ne_bytes(word) & (PRESENT | SWAPPED) != 0;
        Ok((0..words.len() / 8).map(move |at| touched(words.as_chunks::<8>().0[at])))
    }

    fn words(&self, address: u64, count: u64) -> Result<Vec<u8>, CaptureError> {
        let mut words = vec![0; count as usize * 8];
        let read = self.file.read_exact_at(&mut words, address / PAGE_BYTES * 8);
        read.map_err(|error| CaptureError::Read { path: self.path.clone(), error })?;
        Ok(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_pages_that_touch_are_one_span() {
        let mut pages = Pages::default();
        let words = [PRESENT, SWAPPED, 0, PRESENT | OF_FILE, PRESENT, 0];
        words.iter().enumerate().for_each(|(at, word)| pages.add(at as u64 * PAGE_BYTES, *word));
        let own = [Span { address: 0, bytes: 2 * PAGE_BYTES }, Span { address: 4 * PAGE_BYTES, bytes: PAGE_BYTES }];
        assert_eq!(pages, Pages { own: own.to_vec(), guarded: false });
        pages.add(0, GUARD);
        assert!(pages.guarded);
    }

    #[test]
    fn memory_written_to_is_own() {
        let written = vec![1_u8; 1 << 20];
        let start = (written.as_ptr() as u64).next_multiple_of(PAGE_BYTES);
        let pagemap = Pagemap::open(std::process::id() as i32).unwrap();
        let pages = pagemap.pages(start..start + (512 << 10)).unwrap();
        assert_eq!(pages.own, [Span { address: start, bytes: 512 << 10 }]);
    }
}
