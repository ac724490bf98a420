//! Raw files: bytes that do not compress, such as weights that llama.cpp repacked, once for all snapshots that hold them.
//!
//! ```text
//!  snapshots/raw/HEX   named by the BLAKE3 of its bytes, whole pages, at most 16 MiB, mapped in place by those restored
//! ```
//! Invariants: a file that is handed out had its digest since this process began; it is on disk before a snapshot that
//! names it is ([`sync`]), and until then what a crash leaves of it is found by its digest. A file that no snapshot on disk and none in memory names is swept.
//!
//! Left out: who names what on disk, which the sweep is told.

use crate::{disk, snapshot_file::FileError, snapshots::storage};
use sandbox_image::RawSink;
use sandbox_snapshot::image::{Extent, Source};
use sandbox_wire::warden::WardenError;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

/// A digest as snapshots name it.
pub(crate) type Digest = [u8; 32];

const READ_BYTES: usize = 1 << 20;
const INCOMING: &str = ".incoming";

/// A file whose digest was checked.
#[derive(Debug)]
pub(crate) struct RawFile {
    pub(crate) digest: Digest,
    pub(crate) file: File,
}

/// The folder of raw files.
#[derive(Debug)]
pub(crate) struct RawStore {
    folder: PathBuf,
    /// Files that somebody holds. Locked while one is written, opened or swept.
    known: Mutex<BTreeMap<Digest, Weak<RawFile>>>,
}

impl RawStore {
    /// Opens the folder, and makes it.
    pub(crate) fn open(folder: PathBuf) -> Result<Self, WardenError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|error| storage("create", &folder, &error))?;
        Ok(Self { folder, known: Mutex::default() })
    }

    /// Brings the names of files to disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Weak<RawFile>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(blake3::Hash::from_bytes(*digest).to_hex().as_str())
    }

    /// The files that an image's extents name, checked where nobody holds them yet.
    pub(crate) fn files(&self, extents: &[Extent]) -> Result<Vec<Arc<RawFile>>, FileError> {
        digests(extents).into_iter().map(|digest| self.file(digest)).collect()
    }

    fn file(&self, digest: Digest) -> Result<Arc<RawFile>, FileError> {
        let mut known = self.lock();
        if let Some(file) = known.get(&digest).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let path = self.path(&digest);
        let file = match File::open(&path).map_err(FileError::from) {
            Err(FileError::Missing) => return Err(FileError::Raw(format!("{} is missing", path.display()))),
            other => other?,
        };
        if hash(&file)? != digest {
            return Err(FileError::Raw(format!("{}: its bytes are not those it is named by", path.display())));
        }
        Ok(remember(&mut known, RawFile { digest, file }))
    }

    /// Writes bytes unless they are there already.
    fn add(&self, bytes: &[u8]) -> io::Result<Arc<RawFile>> {
        let digest = blake3::hash(bytes).into();
        let mut known = self.lock();
        if let Some(file) = known.get(&digest).and_then(Weak::upgrade) {
            return Ok(file);
        }
        disk::require(&self.folder, bytes.len() as u64)?;
        let path = self.path(&digest);
        // One of the name may be corrupt: it costs less to write it anew than to trust it.
        let incoming = self.folder.join(INCOMING);
        let written = write(&incoming, bytes).and_then(|()| fs::rename(&incoming, &path));
        written.inspect_err(|_| drop(fs::remove_file(&incoming)))?;
        Ok(remember(&mut known, RawFile { digest, file: File::open(&path)? }))
    }

    /// Removes what neither `named` nor anybody in memory names. `named` is asked while nothing can be added.
    pub(crate) fn sweep(&self, named: impl FnOnce() -> BTreeSet<Digest>) -> Result<(), WardenError> {
        let mut known = self.lock();
        known.retain(|_, file| file.strong_count() > 0);
        let named = named();
        let keep: BTreeSet<_> = named.iter().chain(known.keys()).map(|digest| self.path(digest)).collect();
        let entries = fs::read_dir(&self.folder).map_err(|error| storage("list", &self.folder, &error))?;
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| !keep.contains(path)) {
            fs::remove_file(&path).map_err(|error| storage("remove", &path, &error))?;
        }
        Ok(())
    }
}

/// What an image's extents name.
pub(crate) fn digests(extents: &[Extent]) -> BTreeSet<Digest> {
    let raw = |extent: &Extent| match extent.source {
        Source::Raw { digest, .. } => Some(digest),
        _ => None,
    };
    extents.iter().filter_map(raw).collect()
}

fn remember(known: &mut BTreeMap<Digest, Weak<RawFile>>, file: RawFile) -> Arc<RawFile> {
    let file = Arc::new(file);
    known.insert(file.digest, Arc::downgrade(&file));
    file
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // What a crash left half written.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?;
    file.write_all(bytes)
}

/// Brings files to disk: not while the process whose bytes they are is stopped, which would wait for the disk.
pub(crate) fn sync(files: &[Arc<RawFile>]) -> io::Result<()> {
    files.iter().try_for_each(|raw| raw.file.sync_all())
}

fn hash(file: &File) -> io::Result<Digest> {
    let (mut hasher, mut buffer, mut offset) = (blake3::Hasher::new(), vec![0; READ_BYTES], 0);
    loop {
        match file.read_at(&mut buffer, offset)? {
            0 => return Ok(hasher.finalize().into()),
            bytes => {
                hasher.update(&buffer[..bytes]);
                offset += bytes as u64;
            }
        }
    }
}

/// Keeps what one capture has too much of, until its snapshot names it.
pub(crate) struct Keeper<'a> {
    store: &'a RawStore,
    kept: Mutex<Vec<Arc<RawFile>>>,
}

impl<'a> Keeper<'a> {
    pub(crate) fn new(store: &'a RawStore) -> Self {
        Self { store, kept: Mutex::default() }
    }

    /// The files of all that was kept, each once.
    pub(crate) fn files(self) -> Vec<Arc<RawFile>> {
        let mut files = self.kept.into_inner().unwrap_or_else(PoisonError::into_inner);
        files.sort_unstable_by_key(|file| file.digest);
        files.dedup_by_key(|file| file.digest);
        files
    }
}

impl RawSink for Keeper<'_> {
    fn keep(&self, bytes: &[u8]) -> io::Result<Option<Digest>> {
        let file = self.store.add(bytes)?;
        let digest = file.digest;
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(file);
        Ok(Some(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(folder: &tempfile::TempDir) -> RawStore {
        RawStore::open(folder.path().join("raw")).unwrap()
    }

    fn extent(digest: Digest) -> [Extent; 1] {
        [Extent { address: 0, bytes: 4096, source: Source::Raw { digest, offset: 0 } }]
    }

    #[test]
    fn the_same_bytes_are_kept_once_and_while_somebody_names_them() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        let keeper = Keeper::new(&store);
        let digests: Vec<_> = [1, 2, 1].map(|byte| keeper.keep(&[byte; 4096]).unwrap().unwrap()).to_vec();
        assert_eq!(digests[0], digests[2]);
        let files = keeper.files();
        assert_eq!(files.len(), 2);
        let count = || fs::read_dir(folder.path().join("raw")).unwrap().count();
        store.sweep(BTreeSet::new).unwrap();
        assert_eq!(count(), 2);
        drop(files);
        store.sweep(|| BTreeSet::from([digests[0]])).unwrap();
        assert_eq!(count(), 1);
        assert_eq!(store.files(&extent(digests[0])).unwrap().len(), 1);
        assert!(store.files(&extent(digests[1])).unwrap_err().to_string().contains("is missing"));
    }

    #[test]
    fn a_file_with_other_bytes_is_refused_and_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        let digest = store.add(&[7; 4096]).unwrap().digest;
        let path = store.path(&digest);
        fs::remove_file(&path).unwrap();
        fs::write(&path, [8; 4096]).unwrap();
        assert!(store.files(&extent(digest)).unwrap_err().to_string().contains("not those it is named by"));
        let kept = store.add(&[7; 4096]).unwrap();
        assert_eq!(store.files(&extent(digest)).unwrap()[0].digest, kept.digest);
        assert_eq!(fs::read(&path).unwrap(), [7; 4096]);
    }
}
