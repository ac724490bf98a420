//! Writes to a disk as QEMU's `blklogwrites` records them, and the disk as a power cut may leave it.
//!
//! ```text
//!  sector 0   u64 magic, u64 version 1, u64 entries, u32 bytes of a sector, zeros
//!  then, an entry after the other, in the order in which they were done:
//!    a sector   u64 first sector, u64 sectors, u64 flags (0 write, 1 flush, 4 discard), u64 0, zeros
//!    its data   of a write, in whole sectors
//! ```
//! The form is that of Linux's dm-log-writes, little-endian. What a cut leaves:
//!
//! ```text
//!        flush             flush           cut
//!  w w w w │ w w w w w w w w │ w w w w w w  ╳
//!  └────── all there ───────┘  └ any of them, one of them perhaps up to one of its blocks only
//! ```
//! Invariant: [`Disk`] shows one such state after another, and what it showed of writes that were not flushed is undone
//! before the next. Left out: disks that lie about flushes, and discarded ranges, which keep what they had.

use crate::Random;
use nix::unistd::{Whence, lseek};
use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, path::Path};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
/// Of `flags`.
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;
/// Blocks at a write's begin at which it is torn more often than elsewhere.
const FIRST_BLOCKS: usize = 8;
/// Bytes that are copied at once.
const COPY_BYTES: u64 = 1 << 20;

/// What was asked of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Bytes were written.
    Write {
        /// Where to, bytes.
        offset: u64,
        /// How many.
        bytes: u64,
        /// Where they are in the log.
        data: u64,
    },
    /// What was done before is kept without power.
    Flush,
    /// Bytes are of no use any more.
    Discard,
}

/// What was recorded.
#[derive(Debug)]
pub struct WriteLog {
    file: File,
    entries: Vec<Entry>,
}

/// A state of the disk: everything before entry `flushed`, and some of what came after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Entries that are all there.
    pub flushed: usize,
    /// Entry and bytes of each write that is there, too.
    pub kept: Vec<(usize, u64)>,
}

/// A disk, state after state.
#[derive(Debug)]
pub struct Disk {
    file: File,
    flushed: usize,
    /// What was where `kept` was written, in the order of writing.
    undo: Vec<(u64, Vec<u8>)>,
}

impl WriteLog {
    /// Reads what is in the log at `path`; an entry that is not whole is the last one's, and left out.
    ///
    /// # Errors
    /// Of the file; what is no such log, or has entries of another kind, is refused.
    pub fn read(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let (_, sector) = head(&file)?;
        let (end, mut at, mut entries) = (file.metadata()?.len(), sector, Vec::new());
        while at + sector <= end {
            let [first, sectors, flags] = numbers(&file, at)?;
            let (bytes, data) = (sectors * sector, at + sector);
            let entry = match flags {
                0 => Entry::Write { offset: first * sector, bytes, data },
                FLUSH => Entry::Flush,
                DISCARD => Entry::Discard,
                other => return Err(bad(format!("entry {} has flags {other:#x}", entries.len()))),
            };
            at = if flags == 0 { data + bytes } else { data };
            if at <= end {
                entries.push(entry);
            }
        }
        Ok(Self { file, entries })
    }

    /// How many entries the log at `path` said it has when something was flushed last; it may be written meanwhile.
    ///
    /// # Errors
    /// Of the file; what is no such log is refused.
    pub fn recorded(path: &Path) -> io::Result<usize> {
        head(&File::open(path)?).map(|(entries, _)| entries as usize)
    }

    /// What was asked of the disk, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Cuts right after each flush that had something to flush, and before the first.
    pub fn cuts_at_flushes(&self) -> Vec<Cut> {
        let flushed = self.spans().into_iter().map(|span| span.end).chain([0]);
        let mut cuts: Vec<_> = flushed.map(|flushed| Cut { flushed, kept: Vec::new() }).collect();
        cuts.sort_by_key(|cut| cut.flushed);
        cuts
    }

    /// `count` cuts while something was not flushed, in order: by turns at any write, and between any two flushes however
    /// little was written there. `block_bytes` says of how many bytes at an offset a disk writes all or none.
    pub fn cuts_at_random(&self, count: usize, random: &mut Random, block_bytes: impl Fn(u64) -> u64) -> Vec<Cut> {
        let spans = self.spans();
        let of_span = |span: &Range<usize>| self.writes(span.clone()).map(|last| span.start..last + 1).collect();
        let prefixes: Vec<Vec<Range<usize>>> = spans.iter().map(of_span).collect();
        let all = prefixes.concat();
        let mut draw = |at: usize| {
            let choice = if at.is_multiple_of(2) { &all } else { &prefixes[at / 2 % prefixes.len()] };
            self.some_of(choice[random.below(choice.len())].clone(), random, &block_bytes)
        };
        let mut cuts: Vec<_> = (0..count).map(&mut draw).collect();
        cuts.sort_by_key(|cut| cut.flushed);
        cuts
    }

    /// A cut that keeps some of the writes of `entries`, nothing of which was flushed; half the time one of them is torn.
    fn some_of(&self, entries: Range<usize>, random: &mut Random, block_bytes: impl Fn(u64) -> u64) -> Cut {
        let (flushed, of_8) = (entries.start, random.one_of(&[1, 4, 7]));
        let kept = self.writes(entries).filter(|_| random.below(8) < of_8).map(|write| (write, self.bytes_of(write)));
        let mut kept: Vec<_> = kept.collect();
        if !kept.is_empty() && random.below(2) == 0 {
            let torn = random.below(kept.len());
            let (write, bytes) = &mut kept[torn];
            let block = block_bytes(self.offset_of(*write));
            let blocks = bytes.div_ceil(block) as usize;
            // What begins a write is often what describes the rest.
            let blocks_max = random.one_of(&[blocks, blocks.min(FIRST_BLOCKS)]);
            *bytes = random.below(blocks_max) as u64 * block;
        }
        Cut { flushed, kept }
    }

    /// Runs of entries with a write, each up to the flush that ends it.
    fn spans(&self) -> Vec<Range<usize>> {
        let (mut spans, mut start) = (Vec::new(), 0);
        for at in 1..=self.entries.len() {
            let is_end = at == self.entries.len() || self.entries[at - 1] == Entry::Flush;
            if is_end && self.writes(start..at).next().is_some() {
                spans.push(start..at);
            }
            start = if is_end { at } else { start };
        }
        spans
    }

    fn writes(&self, span: Range<usize>) -> impl Iterator<Item = usize> {
        span.filter(|at| matches!(self.entries[*at], Entry::Write { .. }))
    }

    fn offset_of(&self, write: usize) -> u64 {
        if let Entry::Write { offset, .. } = self.entries[write] { offset } else { 0 }
    }

    fn bytes_of(&self, write: usize) -> u64 {
        if let Entry::Write { bytes, .. } = self.entries[write] { bytes } else { 0 }
    }
}

impl Disk {
    /// The disk in `file`, as it was before the first entry.
    pub fn new(file: File) -> Self {
        Self { file, flushed: 0, undo: Vec::new() }
    }

    /// Shows the state that `cut` leaves, not before the one that was shown last; which bytes may be others now.
    ///
    /// # Errors
    /// Of log and disk.
    pub fn show(&mut self, log: &WriteLog, cut: &Cut) -> io::Result<Vec<Range<u64>>> {
        assert!(cut.flushed >= self.flushed, "states are shown in order");
        let mut changed = Vec::new();
        while let Some((offset, bytes)) = self.undo.pop() {
            self.file.write_all_at(&bytes, offset)?;
            changed.push(offset..offset + bytes.len() as u64);
        }
        for write in log.writes(self.flushed..cut.flushed) {
            changed.push(self.write(log, write, log.bytes_of(write))?);
        }
        self.flushed = cut.flushed;
        for (write, bytes) in &cut.kept {
            let mut before = vec![0; *bytes as usize];
            self.file.read_exact_at(&mut before, log.offset_of(*write))?;
            self.undo.push((log.offset_of(*write), before));
            changed.push(self.write(log, *write, *bytes)?);
        }
        Ok(changed)
    }

    /// The file that it is.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn write(&self, log: &WriteLog, write: usize, bytes: u64) -> io::Result<Range<u64>> {
        let Entry::Write { offset, data, .. } = log.entries[write] else { return Ok(0..0) };
        let mut buffer = vec![0; bytes as usize];
        log.file.read_exact_at(&mut buffer, data)?;
        self.file.write_all_at(&buffer, offset)?;
        Ok(offset..offset + bytes)
    }
}

/// Copies a part of a file to a new one at `to`, holes as holes.
///
/// # Errors
/// Of the files.
pub fn copy_part(from: &File, part: Range<u64>, to: &Path) -> io::Result<()> {
    let copy = File::create(to)?;
    copy.set_len(part.end - part.start)?;
    let seek = |at: u64, whence| lseek(from, at as i64, whence).map(|at| at as u64);
    let mut buffer = vec![0; COPY_BYTES as usize];
    let mut at = part.start;
    while at < part.end {
        // Nothing but a hole up to the end is an error.
        let Ok(data) = seek(at, Whence::SeekData) else { break };
        let hole = seek(data, Whence::SeekHole)?.min(part.end);
        at = data;
        while at < hole {
            let length = COPY_BYTES.min(hole - at) as usize;
            from.read_exact_at(&mut buffer[..length], at)?;
            copy.write_all_at(&buffer[..length], at - part.start)?;
            at += length as u64;
        }
    }
    Ok(())
}

/// How many entries a log says it has, and the bytes of its sectors.
fn head(file: &File) -> io::Result<(u64, u64)> {
    let [magic, version, entries] = numbers(file, 0)?;
    let mut sector = [0; 4];
    file.read_exact_at(&mut sector, 24)?;
    match (magic, version, u32::from_le_bytes(sector)) {
        (MAGIC, VERSION, sector) if sector.is_power_of_two() && sector >= 512 => Ok((entries, sector.into())),
        found => Err(bad(format!("it begins with {found:x?}"))),
    }
}

fn numbers(file: &File, at: u64) -> io::Result<[u64; 3]> {
    let mut bytes = [0; 24];
    file.read_exact_at(&mut bytes, at)?;
    Ok([0, 8, 16].map(|at| u64::from_le_bytes(*bytes[at..].first_chunk().expect("24 bytes"))))
}

fn bad(what: String) -> io::Error {
    io::Error::other(format!("this is no log of blklogwrites: {what}"))
}
