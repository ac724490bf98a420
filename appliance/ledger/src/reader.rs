//! The ledger as its readers see it: entries with their places, and records.
//!
//! Reads beside the process that appends, without its lock: what lies behind the last whole append is not there yet, and
//! no damage. A segment is read at once; it is bounded.

use crate::{
    frame::{Chain, Content},
    join::Joiner,
    segment::{self, Damage, Position, name},
};
use appliance_types::{Entry, Record};
use std::{
    collections::VecDeque,
    fs, io,
    path::{Path, PathBuf},
};

/// Times that the newest segment is read again while it changes.
const READS_MAX: usize = 8;

/// Why something cannot be read. The next can be after [`ReadError::Damaged`].
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Bytes are not what was written.
    #[error("{folder}: {damage}")]
    Damaged {
        /// The ledger's folder.
        folder: PathBuf,
        /// What and where.
        damage: Damage,
    },
    /// The kernel refused.
    #[error("read {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// An entry and the place of its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Where its line begins.
    pub at: Position,
    /// Where the next begins.
    pub next: Position,
    /// The entry.
    pub entry: Entry,
}

/// The entries of a folder, from the oldest.
#[derive(Debug)]
pub struct Entries {
    folder: PathBuf,
    segments: VecDeque<u64>,
    from: Position,
    chain: Option<Chain>,
    ready: VecDeque<Result<Placed, ReadError>>,
}

/// Reads the entries in `folder` that lie at `from` or behind.
///
/// # Errors
/// The folder cannot be listed.
pub fn entries(folder: &Path, from: Position) -> Result<Entries, ReadError> {
    let segments = segments(folder)?.into_iter().filter(|segment| *segment >= from.segment).collect();
    Ok(Entries { folder: folder.to_owned(), segments, from, chain: None, ready: VecDeque::new() })
}

/// Reads the records in `folder`: in the order of their closes, then those that an end of the server cut off.
///
/// # Errors
/// The folder cannot be listed.
pub fn records(folder: &Path) -> Result<Records, ReadError> {
    Ok(Records {
        entries: entries(folder, Position::default())?,
        joiner: Some(Joiner::default()),
        cut: VecDeque::new(),
    })
}

/// Numbers of the segments in `folder`, ascending.
pub(crate) fn segments(folder: &Path) -> Result<Vec<u64>, ReadError> {
    let failed = |source| ReadError::Io { path: folder.to_owned(), source };
    let mut numbers = Vec::new();
    for file in fs::read_dir(folder).map_err(failed)? {
        numbers.extend(file.map_err(failed)?.file_name().to_str().and_then(segment::number));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The bytes of a segment; none if it was removed meanwhile, since it was the oldest.
///
/// The `newest` is appended to meanwhile, and a read that is slower than two appends has a later page without an earlier
/// one, which looks like damage. What is damaged reads the same twice.
pub(crate) fn bytes(folder: &Path, segment: u64, newest: bool) -> Result<Option<Vec<u8>>, ReadError> {
    let path = folder.join(name(segment));
    let read = || match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ReadError::Io { path: path.clone(), source }),
    };
    let mut bytes = read()?;
    let damaged = |bytes: &Option<Vec<u8>>| {
        bytes.as_ref().is_some_and(|bytes| !segment::scan(segment, bytes, None).damage.is_empty())
    };
    for _ in 0..if newest { READS_MAX } else { 0 } {
        if !damaged(&bytes) {
            break;
        }
        let again = read()?;
        if again == bytes {
            break;
        }
        bytes = again;
    }
    Ok(bytes)
}

impl Iterator for Entries {
    type Item = Result<Placed, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() {
            let segment = self.segments.pop_front()?;
            self.read(segment);
        }
        self.ready.pop_front()
    }
}

impl Entries {
    fn read(&mut self, segment: u64) {
        let bytes = match bytes(&self.folder, segment, self.segments.is_empty()) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return,
            Err(error) => return self.ready.push_back(Err(error)),
        };
        let scan = segment::scan(segment, &bytes, self.chain);
        let end = if self.segments.is_empty() { scan.torn().unwrap_or(scan.used) } else { scan.used };
        let from = if self.from.segment == segment { self.from.offset } else { 0 };
        let meant = from..end;
        let mut found: Vec<(u32, Result<Placed, ReadError>)> = Vec::new();
        for damage in scan.damage.iter().filter(|damage| meant.contains(&damage.at.offset)) {
            found.push((damage.at.offset, Err(self.damaged(damage.clone()))));
        }
        for (index, (offset, frame)) in scan.lines.iter().enumerate().filter(|(_, (at, _))| meant.contains(at)) {
            let at = Position { segment, offset: *offset };
            // Damage between two lines belongs to neither: the next of this one is the next line, or the end.
            let next = scan.lines.get(index + 1).map_or(end, |(offset, _)| *offset).min(end);
            match frame.content() {
                Ok(Content::Entry(entry)) => {
                    let placed = Placed { at, next: Position { segment, offset: next }, entry: *entry };
                    found.push((*offset, Ok(placed)));
                }
                Ok(Content::Head(_)) => {}
                Err(reason) => found.push((*offset, Err(self.damaged(Damage { at, bytes: 0, reason })))),
            }
        }
        // Stable: damage that a line begins with comes before it.
        found.sort_by_key(|(offset, _)| *offset);
        self.ready.extend(found.into_iter().map(|(_, found)| found));
        self.chain = scan.chain();
    }

    fn damaged(&self, damage: Damage) -> ReadError {
        ReadError::Damaged { folder: self.folder.clone(), damage }
    }
}

/// The records of a folder.
#[derive(Debug)]
pub struct Records {
    entries: Entries,
    joiner: Option<Joiner>,
    cut: VecDeque<Record>,
}

impl Iterator for Records {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(joiner) = &mut self.joiner {
            match self.entries.next() {
                Some(Ok(placed)) => {
                    if let Some(record) = joiner.push(placed.entry) {
                        return Some(Ok(record));
                    }
                }
                Some(Err(error)) => return Some(Err(error)),
                None => self.cut = self.joiner.take().map(Joiner::interrupted).unwrap_or_default().into(),
            }
        }
        self.cut.pop_front().map(Ok)
    }
}
