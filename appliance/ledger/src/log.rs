//! The file of lines: taken over after a crash, appended to, read.
//!
//! ```text
//!  open ─▶ lock ─▶ scan every line ─▶ cut the torn tail ─▶ append … append
//!
//!  ┌───────┬───────┬─────────┬───────┬──────────┐
//!  │ valid │ valid │ corrupt │ valid │ torn     │     corrupt: kept where it is, reported with its offset
//!  └───────┴───────┴─────────┴───────┴──────────┘     torn: all after the last valid line; cut
//! ```
//!
//! A crash can leave behind at most one batch that was being written, so a longer invalid tail is no torn write: it is
//! kept, reported as corrupt, and ended with a newline. An over-long line is met in pieces of [`LINE_BYTES_MAX`].

use crate::line::{self, LINE_BYTES_MAX, LineError};
use appliance_types::Record;
use nix::fcntl::{Flock, FlockArg};
use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Name of the file in the ledger's folder.
pub const FILE_NAME: &str = "requests.log";

/// Most bytes written between two syncs.
pub(crate) const BATCH_BYTES_MAX: usize = 256 << 10;
/// Most offsets of corrupt lines that are reported one by one.
const OFFSETS_MAX: usize = 16;

/// Why the file cannot be used. Final: the file must be opened and verified again.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk is full.
    #[error("no space left for {path}; free some on its disk")]
    NoSpace {
        /// The file.
        path: PathBuf,
    },
    /// The kernel refused something else.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What was found at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Valid lines.
    pub records: u64,
    /// Bytes of the torn tail that were cut.
    pub cut_bytes: u64,
    /// Lines that are kept but cannot be read.
    pub corrupt: Corrupt,
}

/// Corrupt lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Corrupt {
    /// How many.
    pub lines: u64,
    /// Where the first of them begin, in bytes.
    pub offsets: Vec<u64>,
}

impl Corrupt {
    fn note(&mut self, offset: u64) {
        self.lines += 1;
        if self.offsets.len() < OFFSETS_MAX {
            self.offsets.push(offset);
        }
    }

    fn absorb(&mut self, other: &mut Self) {
        self.lines += other.lines;
        self.offsets.append(&mut other.offsets);
        self.offsets.truncate(OFFSETS_MAX);
        other.lines = 0;
    }
}

/// The file, open for appending by one process.
#[derive(Debug)]
pub struct Log {
    file: Flock<File>,
    path: PathBuf,
}

impl Log {
    /// Takes the file in `folder` over: waits until no other process appends to it, verifies it, cuts a torn tail.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(folder: &Path) -> Result<(Self, Recovery), LogError> {
        let path = folder.join(FILE_NAME);
        let failed = |action| {
            let path = path.clone();
            move |source| error(action, &path, source)
        };
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path);
        let file = Flock::lock(file.map_err(failed("open"))?, FlockArg::LockExclusive)
            .map_err(|(_, errno)| failed("lock")(errno.into()))?;
        let recovery = recover(&file).map_err(failed("verify"))?;
        // The name of a file made just now must survive too.
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync the folder of"))?;
        Ok((Self { file, path }, recovery))
    }

    /// Appends whole lines, and returns when they are on the disk.
    ///
    /// # Errors
    /// [`LogError`]; some of the lines may be written, the last of them torn.
    pub fn append(&mut self, lines: &[u8]) -> Result<(), LogError> {
        self.file.write_all(lines).map_err(|source| error("append to", &self.path, source))?;
        self.file.sync_data().map_err(|source| error("sync", &self.path, source))
    }
}

fn error(action: &'static str, path: &Path, source: io::Error) -> LogError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => LogError::NoSpace { path },
        _ => LogError::Io { action, path, source },
    }
}

/// Verifies the file and cuts its torn tail.
fn recover(file: &File) -> io::Result<Recovery> {
    let mut recovery = Recovery::default();
    // What is invalid so far since the last valid line: corrupt if another valid line follows, torn if not.
    let (mut tail, mut tail_offset, mut whole) = (Corrupt::default(), 0, true);
    let mut pieces = Pieces::new(file);
    while let Some(piece) = pieces.next()? {
        whole = piece.bytes.ends_with(b"\n");
        if line::verify(&piece.bytes).is_err() {
            tail.note(piece.offset);
            continue;
        }
        recovery.corrupt.absorb(&mut tail);
        recovery.records += 1;
        tail_offset = pieces.offset;
    }
    let tail_bytes = pieces.offset - tail_offset;
    if tail_bytes <= BATCH_BYTES_MAX as u64 {
        cut(file, tail_offset, tail_bytes)?;
        recovery.cut_bytes = tail_bytes;
    } else {
        recovery.corrupt.absorb(&mut tail);
        end_line(file, whole)?;
    }
    Ok(recovery)
}

fn cut(file: &File, length: u64, tail_bytes: u64) -> io::Result<()> {
    if tail_bytes == 0 {
        return Ok(());
    }
    file.set_len(length)?;
    file.sync_data()
}

fn end_line(mut file: &File, whole: bool) -> io::Result<()> {
    if whole {
        return Ok(());
    }
    file.write_all(b"\n")?;
    file.sync_data()
}

/// A line, or a part of something too long to be one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    /// Where it begins in the file.
    offset: u64,
    /// Its bytes, newline included where it has one.
    bytes: Vec<u8>,
}

/// The file, cut at newlines.
#[derive(Debug)]
struct Pieces<R> {
    reader: BufReader<R>,
    offset: u64,
}

impl<R: Read> Pieces<R> {
    fn new(reader: R) -> Self {
        Self { reader: BufReader::with_capacity(64 << 10, reader), offset: 0 }
    }

    fn next(&mut self) -> io::Result<Option<Piece>> {
        let mut bytes = Vec::new();
        self.reader.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut bytes)?;
        let offset = self.offset;
        self.offset += bytes.len() as u64;
        Ok((!bytes.is_empty()).then_some(Piece { offset, bytes }))
    }
}

/// Why a record cannot be read. After [`ReadError::Corrupt`] the next one can be.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A line is not what was written.
    #[error("{path}, byte {offset}: {reason}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where the line begins.
        offset: u64,
        /// What is wrong with it.
        reason: LineError,
    },
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] LogError),
}

/// The records of a file, from the oldest.
#[derive(Debug)]
pub struct Records {
    pieces: Pieces<File>,
    path: PathBuf,
    failed: bool,
}

/// Reads the records in `folder`. Safe while they are being appended to: a line that is not whole yet is reported as
/// corrupt, and is the last.
///
/// # Errors
/// The file cannot be opened.
pub fn read(folder: &Path) -> Result<Records, LogError> {
    let path = folder.join(FILE_NAME);
    let file = File::open(&path).map_err(|source| error("open", &path, source))?;
    Ok(Records { pieces: Pieces::new(file), path, failed: false })
}

impl Records {
    /// Reads what `file` holds from its beginning, as far as it is written.
    pub fn of(file: File) -> Self {
        Self { pieces: Pieces::new(file), path: PathBuf::from(FILE_NAME), failed: false }
    }
}

impl Iterator for Records {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        match self.pieces.next() {
            Ok(piece) => piece.map(|piece| self.decode(&piece)),
            Err(source) => {
                self.failed = true;
                Some(Err(error("read", &self.path, source).into()))
            }
        }
    }
}

impl Records {
    fn decode(&self, piece: &Piece) -> Result<Record, ReadError> {
        line::decode(&piece.bytes).map_err(|reason| ReadError::Corrupt {
            path: self.path.clone(),
            offset: piece.offset,
            reason,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::tests::record;
    use std::fs;

    fn folder_with(bytes: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE_NAME), bytes).unwrap();
        folder
    }

    fn lines(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
        numbers.into_iter().flat_map(|number| line::encode(&record(number))).collect()
    }

    fn numbers(folder: &Path) -> Vec<u64> {
        read(folder).unwrap().map(|record| record.unwrap().ended_unix_ms).collect()
    }

    #[test]
    fn a_new_file_is_empty_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (mut log, recovery) = Log::open(folder.path()).unwrap();
        assert_eq!(recovery, Recovery::default());
        log.append(&lines([1, 2])).unwrap();
        assert_eq!(numbers(folder.path()), [1, 2]);
        let mode = fs::metadata(folder.path().join(FILE_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_tail_torn_at_any_byte_is_cut() {
        let (kept, torn) = (lines([1, 2]), lines([3]));
        for length in 0..torn.len() {
            let folder = folder_with(&[&kept[..], &torn[..length]].concat());
            let (mut log, recovery) = Log::open(folder.path()).unwrap();
            assert_eq!(recovery, Recovery { records: 2, cut_bytes: length as u64, corrupt: Corrupt::default() });
            log.append(&lines([4])).unwrap();
            assert_eq!(numbers(folder.path()), [1, 2, 4]);
        }
    }

    #[test]
    fn a_tail_whose_blocks_never_came_is_cut() {
        let folder = folder_with(&[lines([1]), vec![0; 4096], lines([2])[40..].to_vec()].concat());
        let (_, recovery) = Log::open(folder.path()).unwrap();
        assert_eq!(recovery.records, 1);
        assert_eq!(numbers(folder.path()), [1]);
    }

    #[test]
    fn a_corrupt_line_in_the_middle_is_reported_and_kept() {
        // Two lines follow: a flipped newline makes one corrupt line of its own and the next.
        let (first, mut middle, last) = (lines([1]), lines([2]), lines([3, 4]));
        for at in 0..middle.len() {
            middle[at] ^= 1;
            let bytes = [&first[..], &middle[..], &last[..]].concat();
            middle[at] ^= 1;
            let folder = folder_with(&bytes);
            let (_, recovery) = Log::open(folder.path()).unwrap();
            assert_eq!(recovery.corrupt.offsets.first(), Some(&(first.len() as u64)), "byte {at}");
            assert_eq!(fs::read(folder.path().join(FILE_NAME)).unwrap(), bytes);
            let found: Vec<_> = read(folder.path()).unwrap().collect();
            assert_eq!(found.first().unwrap().as_ref().unwrap(), &record(1));
            assert!(found.iter().any(|found| matches!(found, Err(ReadError::Corrupt { .. }))));
        }
    }

    #[test]
    fn a_file_of_something_else_is_not_cut() {
        let folder = folder_with(&vec![b'x'; BATCH_BYTES_MAX + 1]);
        let (mut log, recovery) = Log::open(folder.path()).unwrap();
        assert_eq!((recovery.records, recovery.cut_bytes), (0, 0));
        assert_eq!(recovery.corrupt.lines, (BATCH_BYTES_MAX / LINE_BYTES_MAX + 1) as u64);
        assert_eq!(recovery.corrupt.offsets.len(), OFFSETS_MAX);
        log.append(&lines([1])).unwrap();
        assert_eq!(read(folder.path()).unwrap().last().unwrap().unwrap(), record(1));
    }

    #[test]
    fn a_full_disk_is_named() {
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let file = Flock::lock(full, FlockArg::LockShared).unwrap();
        let mut log = Log { file, path: "/x/requests.log".into() };
        let error = log.append(b"line").unwrap_err();
        assert_eq!(error.to_string(), "no space left for /x/requests.log; free some on its disk");
    }
}
