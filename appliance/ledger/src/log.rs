//! The ledger's files: taken over after a crash, appended to, rotated, thinned out.
//!
//! ```text
//!  DIR/ledger/   00000007.log ─chain▶ 00000008.log ─chain▶ 00000009.log      reserve      reserve.new   lock
//!                sealed, cut to       sealed               active            next, zeros  being made
//!                what it holds
//!
//!  append ─▶ write, fdatasync ─▶ Ok        no room ─▶ head into `reserve`, fdatasync ─▶ rename, sync the folder
//!              │ failed                                                    ─▶ cut the old one ─▶ go on in the new
//!              └▶ Failed for ever: open anew, which reads what the disk has
//!
//!  tend ─▶ make `reserve` where it is missing ─▶ remove the oldest segments beyond what is to be kept
//! ```
//!
//! Invariants: [`Log::append`] returns `Ok` when its entries are on the disk, and takes none twice, by boot, core and
//! sequence. Blocks and length of the active segment were written as zeros before it got its name, so that a sync waits
//! for data alone. The next segment exists before it is needed: while [`Log::space`] says [`Space::Ample`], a whole
//! segment is left for what has been admitted, even on a full disk. A segment is removed as a whole; the head of the
//! oldest that is kept anchors the chain.

use crate::{
    disk::{Disk, DiskFile, Folder},
    frame::{self, Chain, Head, LINE_BYTES_MAX},
    recover::{self, Recovery},
    segment::{Position, name},
};
use appliance_types::Entry;
use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
};

/// The next segment, before it has a number.
pub(crate) const RESERVE: &str = "reserve";
/// The same, while it is being made.
pub(crate) const RESERVE_NEW: &str = "reserve.new";
/// Zeros written at once.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// Sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Of a segment, bytes; at least two longest lines, at most 1 GiB.
    pub segment_bytes: u32,
    /// Segments are removed, oldest first, while all together are larger, bytes.
    pub retain_bytes: u64,
    /// Segments are removed when what follows them was begun so long ago, ms; none: never, since a wall clock that
    /// jumps must not remove anything.
    pub retain_ms: Option<u64>,
    /// Space is low while less is free on the disk, bytes.
    pub free_bytes_min: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { segment_bytes: 8 << 20, retain_bytes: 1 << 30, retain_ms: None, free_bytes_min: 32 << 20 }
    }
}

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk is full: nothing of the segment at hand was lost, and appending can be tried again.
    #[error("no space left for {path}; free some on its disk")]
    NoSpace {
        /// The folder.
        path: PathBuf,
    },
    /// The kernel refused something else. Final: the ledger must be opened and verified again.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// An earlier call failed for good.
    #[error("the ledger in {path} failed before and must be opened again")]
    Failed {
        /// The folder.
        path: PathBuf,
    },
    /// The sizes contradict themselves.
    #[error("a segment of {segment_bytes} bytes: it must hold two lines of {LINE_BYTES_MAX}, and be at most 1 GiB")]
    Config {
        /// Wanted.
        segment_bytes: u32,
    },
}

/// Whether work may be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// The next segment is ready, or can be made.
    Ample,
    /// What was admitted can still be written; nothing more should be.
    Low,
}

/// A sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) bytes: u64,
    /// When its successor was begun, where that is known.
    pub(crate) ended_unix_ms: Option<u64>,
}

/// The segment that is appended to.
#[derive(Debug)]
pub(crate) struct Active<F> {
    pub(crate) file: F,
    pub(crate) segment: u64,
    pub(crate) length: u32,
    /// Behind its last line; all before is on the disk.
    pub(crate) end: u32,
    pub(crate) chain: Chain,
}

/// The ledger, open for appending by one process.
#[derive(Debug)]
pub struct Log<D: Disk = Folder> {
    disk: D,
    config: Config,
    now_unix_ms: u64,
    active: Active<D::File>,
    sealed: BTreeMap<u64, Sealed>,
    reserve: Option<D::File>,
    space: Space,
    last: HashMap<(u64, u16), u64>,
    failed: bool,
    lines: Lines,
}

/// Lines of the append at hand, not written yet.
#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    chain: Chain,
    last: HashMap<(u64, u16), u64>,
}

impl Log<Folder> {
    /// Takes the ledger in `folder` over with the default sizes: waits until no other process appends to it, verifies
    /// it, cuts a torn tail, takes in what an older version left.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(folder: &Path, now_unix_ms: u64) -> Result<(Self, Recovery), LogError> {
        let path = || folder.to_owned();
        let disk = Folder::lock(folder).map_err(|source| LogError::Io { action: "lock", path: path(), source })?;
        let (mut log, mut recovery) = Self::open_on(disk, Config::default(), now_unix_ms)?;
        crate::legacy::import(folder, &mut log, &mut recovery)?;
        Ok((log, recovery))
    }
}

impl<D: Disk> Log<D> {
    /// The same on any disk, with any sizes.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open_on(disk: D, config: Config, now_unix_ms: u64) -> Result<(Self, Recovery), LogError> {
        let segment_bytes = config.segment_bytes;
        if (segment_bytes as usize) < 2 * LINE_BYTES_MAX || segment_bytes > 1 << 30 {
            return Err(LogError::Config { segment_bytes });
        }
        let opened = recover::recover(&disk, &config).map_err(|source| error("take over", disk.path(), source))?;
        let recover::Recovered { active, sealed, reserve, last, recovery } = opened;
        let (active, reserve) = match active {
            Some(active) => (active, reserve),
            None => {
                let next = sealed.last_key_value().map_or(1, |(segment, _)| segment + 1);
                let file = match reserve {
                    Some(file) => file,
                    None => make_reserve(&disk, segment_bytes).map_err(|e| error("begin", disk.path(), e))?,
                };
                let begun = begin(&disk, file, segment_bytes, next, recovery.chain, now_unix_ms);
                (begun.map_err(|source| error("begin", disk.path(), source))?, None)
            }
        };
        let mut log = Self {
            disk,
            config,
            now_unix_ms,
            active,
            sealed,
            reserve,
            space: Space::Ample,
            last,
            failed: false,
            lines: Lines::default(),
        };
        log.tend(now_unix_ms)?;
        Ok((log, recovery))
    }

    /// Appends entries, those that it has excepted, and returns when they are on the disk.
    ///
    /// # Errors
    /// [`LogError`]; some of the entries may be on the disk then. After [`LogError::NoSpace`] the same call can be made
    /// again; after any other error the ledger takes nothing more until it is opened again.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), LogError> {
        self.require_sound()?;
        self.lines =
            Lines { bytes: std::mem::take(&mut self.lines.bytes), chain: self.active.chain, ..Lines::default() };
        self.lines.bytes.clear();
        for entry in entries {
            if self.has(entry) {
                continue;
            }
            if self.active.end as usize + self.lines.bytes.len() + LINE_BYTES_MAX > self.active.length as usize {
                self.flush()?;
                self.rotate()?;
                self.lines.chain = self.active.chain;
            }
            let chain = self.lines.chain;
            self.lines.chain = frame::encode(entry, self.active.end, chain, &mut self.lines.bytes);
            self.lines.last.insert((entry.boot, entry.core), entry.sequence);
        }
        self.flush()
    }

    /// The highest sequence of a core that is on the disk.
    pub fn last(&self, boot: u64, core: u16) -> Option<u64> {
        self.last.get(&(boot, core)).copied()
    }

    /// Behind the last entry on the disk.
    pub fn end(&self) -> Position {
        Position { segment: self.active.segment, offset: self.active.end }
    }

    /// The oldest segment that is kept.
    pub fn oldest(&self) -> u64 {
        self.sealed.first_key_value().map_or(self.active.segment, |(segment, _)| *segment)
    }

    /// Whether work may be admitted, as of the last [`Log::tend`] or append.
    pub fn space(&self) -> Space {
        self.space
    }

    /// What is to be done now and then, once a second say: prepares the next segment, removes the oldest, looks at the
    /// disk. Takes the time that new segments are stamped with.
    ///
    /// # Errors
    /// [`LogError`]; a full disk is none.
    pub fn tend(&mut self, now_unix_ms: u64) -> Result<Space, LogError> {
        self.require_sound()?;
        self.now_unix_ms = now_unix_ms;
        self.retain()?;
        if self.reserve.is_none() {
            self.prepare();
        }
        let free = self.disk.free_bytes().map_err(|source| error("look at the disk of", self.disk.path(), source))?;
        let low = self.reserve.is_none() || free < self.config.free_bytes_min;
        self.space = if low { Space::Low } else { Space::Ample };
        Ok(self.space)
    }

    fn require_sound(&self) -> Result<(), LogError> {
        if self.failed { Err(LogError::Failed { path: self.disk.path().to_owned() }) } else { Ok(()) }
    }

    fn has(&self, entry: &Entry) -> bool {
        let core = (entry.boot, entry.core);
        [&self.last, &self.lines.last].iter().any(|last| last.get(&core).is_some_and(|last| *last >= entry.sequence))
    }

    /// Writes and syncs the lines at hand.
    fn flush(&mut self) -> Result<(), LogError> {
        if self.lines.bytes.is_empty() {
            return Ok(());
        }
        let Active { file, end, .. } = &self.active;
        let written = file.write(u64::from(*end), &self.lines.bytes).and_then(|()| file.sync());
        self.finally("append to", written)?;
        self.active.end += self.lines.bytes.len() as u32;
        self.active.chain = self.lines.chain;
        self.last.extend(self.lines.last.drain());
        self.lines.bytes.clear();
        Ok(())
    }

    /// Goes on in the next segment.
    fn rotate(&mut self) -> Result<(), LogError> {
        if self.reserve.is_none() {
            self.prepare();
        }
        let Some(file) = self.reserve.take() else {
            return Err(LogError::NoSpace { path: self.disk.path().to_owned() });
        };
        let (next, chain) = (self.active.segment + 1, self.active.chain);
        let begun = begin(&self.disk, file, self.config.segment_bytes, next, chain, self.now_unix_ms);
        let next = self.finally("begin a segment of", begun)?;
        let old = std::mem::replace(&mut self.active, next);
        // Its zeros are of no more use. Should the cut not last, it is made again when the ledger is opened.
        self.finally("seal a segment of", old.file.truncate(u64::from(old.end)))?;
        let sealed = Sealed { bytes: u64::from(old.end), ended_unix_ms: Some(self.now_unix_ms) };
        self.sealed.insert(old.segment, sealed);
        Ok(())
    }

    /// Makes the reserve, or says that space is low.
    fn prepare(&mut self) {
        match make_reserve(&self.disk, self.config.segment_bytes) {
            Ok(file) => self.reserve = Some(file),
            Err(error) => {
                if self.space == Space::Ample {
                    tracing::error!(%error, "the ledger's next segment cannot be made");
                }
                self.space = Space::Low;
            }
        }
    }

    fn retain(&mut self) -> Result<(), LogError> {
        let mut bytes = self.sealed.values().map(|sealed| sealed.bytes).sum::<u64>() + u64::from(self.active.length);
        while let Some((segment, sealed)) = self.sealed.first_key_value().map(|(segment, sealed)| (*segment, *sealed)) {
            let age_ms = sealed.ended_unix_ms.map(|ended| self.now_unix_ms.saturating_sub(ended));
            let old = self.config.retain_ms.zip(age_ms).is_some_and(|(retain, age)| age > retain);
            if !old && bytes <= self.config.retain_bytes {
                break;
            }
            let removed = match self.disk.remove(&name(segment)) {
                // An operator took it away.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed.and_then(|()| self.disk.sync_folder()),
            };
            self.finally("remove a segment of", removed)?;
            self.sealed.remove(&segment);
            bytes -= sealed.bytes;
        }
        Ok(())
    }

    /// Takes a failure to be for good.
    fn finally<T>(&mut self, action: &'static str, result: io::Result<T>) -> Result<T, LogError> {
        result.map_err(|source| {
            self.failed = true;
            LogError::Io { action, path: self.disk.path().to_owned(), source }
        })
    }
}

fn error(action: &'static str, path: &Path, source: io::Error) -> LogError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => LogError::NoSpace { path },
        _ => LogError::Io { action, path, source },
    }
}

/// Makes the next segment: zeros on the disk, under the name of the reserve.
fn make_reserve<D: Disk>(disk: &D, segment_bytes: u32) -> io::Result<D::File> {
    let file = disk.create(RESERVE_NEW)?;
    let made = fill(&file, u64::from(segment_bytes)).and_then(|()| disk.rename(RESERVE_NEW, RESERVE));
    if let Err(error) = made {
        // It may be what fills the disk.
        return Err(disk.remove(RESERVE_NEW).err().unwrap_or(error));
    }
    Ok(file)
}

/// Zeros are written, since the first write into a block that is only allocated changes metadata, and a sync then waits
/// for the journal.
fn fill(file: &impl DiskFile, length: u64) -> io::Result<()> {
    file.allocate(length)?;
    for offset in (0..length).step_by(ZEROS.len()) {
        file.write(offset, &ZEROS[..ZEROS.len().min((length - offset) as usize)])?;
    }
    file.sync()
}

/// Makes the reserve, which holds zeros, the segment of this number.
fn begin<D: Disk>(
    disk: &D,
    file: D::File,
    length: u32,
    segment: u64,
    previous: Chain,
    begun_unix_ms: u64,
) -> io::Result<Active<D::File>> {
    let mut line = Vec::new();
    let chain = frame::encode(&Head { segment, previous, begun_unix_ms }, 0, previous, &mut line);
    file.write(0, &line)?;
    file.sync()?;
    disk.rename(RESERVE, &name(segment))?;
    disk.sync_folder()?;
    Ok(Active { file, segment, length, end: line.len() as u32, chain })
}
