//! A snapshot's file: written whole or not at all, read by several threads into memory that is then sealed.
//!
//! ```text
//!  Parked ──encode──▶ .incoming-N ──sync, rename──▶ FUNCTION.snap ──head──▶ Snapshot ──frames, in parallel──▶ sealed memory
//! ```
//! Nothing of a file is believed before its seal is checked, and no frame before its tag is (`sandbox_snapshot`).

use sandbox_image::Parked;
use sandbox_kernel::{
    cores::stay_within,
    memory::sealed,
    ring::{self, Reader, Route},
};
use sandbox_snapshot::{
    EncodeOptions, Frame, FrameDecoder, HEADER_BYTES, Snapshot, SnapshotError, encode, head_bytes,
    image::{Capture, Extent, Identity, Image, Source},
};
use sandbox_wire::frame::FrameError;
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Why a snapshot's file is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It is not there.
    #[error("there is none")]
    Missing,
    /// The kernel's word.
    #[error("{0}")]
    Read(io::Error),
    /// It is not what was written, or not for this.
    #[error("{0}")]
    Unusable(#[from] SnapshotError),
    /// What its taker noted is not what we would note.
    #[error("its note: {0}")]
    Note(#[from] FrameError),
    /// A raw file that it names is missing, or is not what it is named by.
    #[error("{0}")]
    Raw(String),
}

impl FileError {
    /// Whether this process or the machine lacks something now, and the file may be as good as ever.
    pub(crate) fn is_shortage(&self) -> bool {
        const SHORTAGES: [io::ErrorKind; 4] = [
            io::ErrorKind::OutOfMemory,
            io::ErrorKind::ResourceBusy,
            io::ErrorKind::WouldBlock,
            io::ErrorKind::StorageFull,
        ];
        /// ENFILE and EMFILE, for which the library has no kind.
        const NO_DESCRIPTORS: [i32; 2] = [23, 24];
        let Self::Read(error) = self else { return false };
        SHORTAGES.contains(&error.kind()) || error.raw_os_error().is_some_and(|code| NO_DESCRIPTORS.contains(&code))
    }
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            _ => Self::Read(error),
        }
    }
}

/// Reads a snapshot to its end and decodes it, on a thread a core. Where it is not in the page cache, `ahead` may
/// bring it there, and all else that its process will need.
pub(crate) fn read(
    path: &Path,
    key: &[u8; 32],
    expected: &Identity,
    cores: &[usize],
    ahead: Option<impl FnOnce(&File, &Image)>,
) -> Result<Parked, FileError> {
    let file = File::open(path)?;
    let (head, file_bytes) = head(&file)?;
    let snapshot = Snapshot::open(&head, file_bytes, key, expected)?;
    let route = match ahead {
        Some(ahead) if !ring::is_cached(&file)? => {
            ahead(&file, snapshot.image());
            Route::Cached
        }
        _ => ring::choose(&file)?,
    };
    tracing::debug!(path = %path.display(), ?route, frames = snapshot.frames().len(), "reading a snapshot");
    let data = sealed(c"ember-snapshot", snapshot.data_bytes(), |data| decode(&file, &snapshot, data, cores))?;
    Ok(Parked { image: snapshot.into_image(), data })
}

/// What a snapshot is of, if its head is authentic.
pub(crate) fn image(path: &Path, key: &[u8; 32]) -> Result<Image, FileError> {
    let (head, file_bytes) = head(&File::open(path)?)?;
    Ok(Snapshot::peek(&head, file_bytes, key)?)
}

/// The head of a file, as long as it says within the format's limits, and the length of the file.
fn head(file: &File) -> Result<(Vec<u8>, u64), FileError> {
    let file_bytes = file.metadata()?.len();
    let mut head = vec![0; HEADER_BYTES.min(file_bytes as usize)];
    file.read_exact_at(&mut head, 0)?;
    head.resize(head_bytes(&head)?.min(file_bytes as usize), 0);
    file.read_exact_at(&mut head, 0)?;
    Ok((head, file_bytes))
}

/// Decodes every frame to its place in `data`. The first failure ends all threads.
fn decode(file: &File, snapshot: &Snapshot, data: &File, cores: &[usize]) -> Result<(), FileError> {
    let frames = Frames::of(snapshot);
    thread::scope(|scope| {
        let each = |core: &usize| {
            let (core, frames) = (*core, &frames);
            // On a core of its own: the kernel may start it on its maker's, and leave another idle. One that may not say
            // where it runs, runs where it may.
            scope.spawn(move || {
                let _ = stay_within(&[core]);
                work(file, snapshot, frames, data).inspect_err(|_| frames.end())
            })
        };
        let all: Vec<_> = cores.iter().take(frames.count.max(1)).map(each).collect();
        let panicked = |_| Err(FileError::Read(io::Error::other("a decoding thread panicked")));
        let done: Vec<_> = all.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect();
        done.into_iter().collect()
    })
}

/// Frames that are still to be decoded, each once.
struct Frames {
    next: AtomicUsize,
    count: usize,
}

impl Frames {
    fn of(snapshot: &Snapshot) -> Self {
        Self { next: AtomicUsize::new(0), count: snapshot.frames().len() }
    }

    fn take(&self) -> Option<usize> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        (index < self.count).then_some(index)
    }

    fn end(&self) {
        self.next.store(self.count, Ordering::Relaxed);
    }
}

fn work(file: &File, snapshot: &Snapshot, frames: &Frames, data: &File) -> Result<(), FileError> {
    let mut decoder = FrameDecoder::new()?;
    let most = |bytes: fn(&Frame) -> usize| snapshot.frames().iter().map(bytes).max().unwrap_or(0);
    let mut reader = Reader::new(file, READS_AT_ONCE, most(|frame| frame.stored_bytes))?;
    let mut output = vec![0; most(|frame| frame.raw_bytes)];
    let next = || frames.take().map(|index| (index, snapshot.frames()[index].file_range()));
    reader.each(next, |index, input| {
        let frame = &snapshot.frames()[index];
        let output = &mut output[..frame.raw_bytes];
        snapshot.decode_frame(&mut decoder, index, input, output)?;
        Ok(data.write_all_at(output, frame.data_offset)?)
    })
}

/// Pieces that a thread reads ahead while it decodes one.
const READS_AT_ONCE: usize = 3;

/// A file that has been written; gone when this is, unless it was kept.
pub(crate) struct Incoming(PathBuf);

impl Incoming {
    /// Writes a snapshot to a new file, to its end on disk.
    pub(crate) fn write(
        path: PathBuf,
        key: &[u8; 32],
        capture: Capture,
        pages: &Parked,
        options: &EncodeOptions<'_>,
    ) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o400).open(&path)?;
        let incoming = Self(path);
        encode(capture, pages, options, key, &mut file).map_err(io::Error::other)?;
        file.sync_all()?;
        Ok(incoming)
    }

    /// Moves it to its place.
    pub(crate) fn keep(self, path: &Path) -> io::Result<()> {
        fs::rename(&self.0, path)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Not there any more if it was kept; what resists is swept at the next start.
        let _ = fs::remove_file(&self.0);
    }
}

/// Memory that a parked image takes, bytes.
pub(crate) fn parked_bytes(parked: &Parked) -> u64 {
    let compressed = |extent: &&Extent| matches!(extent.source, Source::Compressed { .. });
    parked.image.extents.iter().filter(compressed).map(|extent| extent.bytes).sum()
}
