//! The model store: `HEX.gguf` files named by their SHA-256, read-only, in a folder that only root may write.
//!
//! ```text
//!  .incoming-N   written, hashed, looked at, synced ──rename──▶ HEX.gguf ──▶ open · remove
//!        └── anything wrong, or a crash: removed, at the latest at the next start
//! ```
//! Invariant: a file with a model's name is whole, on disk, and has that SHA-256. Adding what is there already is fine.

use crate::{disk, gguf};
use appliance_types::ModelDigest;
use sandbox_wire::warden::{ModelEntry, WardenError};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, BufReader, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// Longest model.
const MODEL_BYTES_MAX: u64 = 1 << 40;
const COPY_BYTES: usize = 1 << 20;
const INCOMING: &str = ".incoming-";
const SUFFIX: &str = ".gguf";

/// The store's folder.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    incoming: AtomicU64,
}

impl Store {
    /// Opens the store, makes its folder, and removes what broken adds left.
    pub(crate) fn open(folder: &Path) -> Result<Self, WardenError> {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
        made.map_err(|error| storage("create", folder, &error))?;
        // Whatever the umask was: runners' ids must be able to see the models.
        let opened = fs::set_permissions(folder, Permissions::from_mode(0o755));
        opened.map_err(|error| storage("set the mode of", folder, &error))?;
        let store = Self { folder: folder.to_owned(), incoming: AtomicU64::new(0) };
        for name in store.names()?.iter().filter(|name| name.starts_with(INCOMING)) {
            let path = store.folder.join(name);
            fs::remove_file(&path).map_err(|error| storage("remove", &path, &error))?;
        }
        Ok(store)
    }

    fn names(&self) -> Result<Vec<String>, WardenError> {
        let entries = fs::read_dir(&self.folder).map_err(|error| storage("list", &self.folder, &error))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    fn path(&self, digest: &ModelDigest) -> PathBuf {
        self.folder.join(format!("{digest}{SUFFIX}"))
    }

    /// Every model, by digest.
    pub(crate) fn list(&self) -> Result<Vec<ModelEntry>, WardenError> {
        let names = self.names()?;
        let digests = names.iter().filter_map(|name| name.strip_suffix(SUFFIX)?.parse::<ModelDigest>().ok());
        let mut entries: Vec<_> = digests
            .filter_map(|digest| Some(ModelEntry { digest, bytes: fs::metadata(self.path(&digest)).ok()?.len() }))
            .collect();
        entries.sort_unstable_by_key(|entry| entry.digest);
        Ok(entries)
    }

    /// Opens a model for reading.
    pub(crate) fn model(&self, digest: &ModelDigest) -> Result<File, WardenError> {
        let path = self.path(digest);
        File::open(&path).map_err(|error| missing_or("open", digest, &path, &error))
    }

    /// Removes a model. Those who have it open keep it.
    pub(crate) fn remove(&self, digest: &ModelDigest) -> Result<(), WardenError> {
        let path = self.path(digest);
        fs::remove_file(&path).map_err(|error| missing_or("remove", digest, &path, &error))?;
        self.sync()
    }

    /// Copies `source` to its end into the store.
    pub(crate) fn add(&self, source: impl Read, expected: Option<ModelDigest>) -> Result<ModelEntry, WardenError> {
        let incoming = Incoming::create(self)?;
        let (bytes, digest) = incoming.fill(source, self.bytes_free()?)?;
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(invalid(format!("its SHA-256 is {digest}, not {expected}")));
        }
        incoming.check(bytes)?;
        incoming.keep(&self.path(&digest))?;
        self.sync()?;
        Ok(ModelEntry { digest, bytes })
    }

    /// What a model may take.
    fn bytes_free(&self) -> Result<u64, WardenError> {
        let room = disk::room(&self.folder);
        let room = room.map_err(|error| storage("ask for the free space of", &self.folder, &error))?;
        Ok(room.min(MODEL_BYTES_MAX))
    }

    fn sync(&self) -> Result<(), WardenError> {
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(|error| storage("sync", &self.folder, &error))
    }
}

/// A file that is being added. Dropping it removes it, unless it was kept.
struct Incoming {
    file: File,
    path: PathBuf,
}

impl Incoming {
    fn create(store: &Store) -> Result<Self, WardenError> {
        let number = store.incoming.fetch_add(1, Ordering::Relaxed);
        let path = store.folder.join(format!("{INCOMING}{number}"));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o444).open(&path);
        let file = file.map_err(|error| storage("create", &path, &error))?;
        Ok(Self { file, path })
    }

    /// Copies at most `bytes_max`; answers the length and the digest.
    fn fill(&self, mut source: impl Read, bytes_max: u64) -> Result<(u64, ModelDigest), WardenError> {
        let read = |error: io::Error| storage("read", Path::new("the model handed over"), &error);
        let mut buffer = vec![0; COPY_BYTES];
        let (mut bytes, mut hash) = (0_u64, Sha256::new());
        loop {
            let length = fill_buffer(&mut source, &mut buffer).map_err(read)?;
            let piece = &buffer[..length];
            if bytes == 0 && !gguf::has_magic(piece) {
                return Err(invalid(gguf::Fault::Magic.to_string()));
            }
            bytes += length as u64;
            if bytes > bytes_max {
                return Err(storage(
                    "store",
                    &self.path,
                    &format!("more than the {bytes_max} bytes there is room for"),
                ));
            }
            hash.update(piece);
            (&self.file).write_all(piece).map_err(|error| storage("write", &self.path, &error))?;
            if length < buffer.len() {
                return Ok((bytes, ModelDigest::from_bytes(hash.finalize().into())));
            }
        }
    }

    fn check(&self, bytes: u64) -> Result<(), WardenError> {
        let mut reader = BufReader::new(&self.file);
        reader.rewind().map_err(|error| storage("read", &self.path, &error))?;
        gguf::check(reader, bytes).map_err(|fault| invalid(fault.to_string()))
    }

    fn keep(&self, path: &Path) -> Result<(), WardenError> {
        self.file.sync_all().map_err(|error| storage("sync", &self.path, &error))?;
        fs::rename(&self.path, path).map_err(|error| storage("name", path, &error))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Gone already when it was kept. What cannot be removed now is swept at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

/// Reads until the buffer is full or the source ends.
fn fill_buffer(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match source.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(bytes) => length += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn invalid(reason: String) -> WardenError {
    WardenError::ModelInvalid { reason }
}

fn storage(action: &str, path: &Path, reason: &dyn std::fmt::Display) -> WardenError {
    WardenError::Storage { action: format!("{action} {}", path.display()), reason: reason.to_string() }
}

fn missing_or(action: &str, digest: &ModelDigest, path: &Path, error: &io::Error) -> WardenError {
    match error.kind() {
        io::ErrorKind::NotFound => WardenError::ModelMissing { digest: *digest },
        _ => storage(action, path, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest GGUF: no pairs, no tensors.
    const MODEL: &[u8] = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("models")).unwrap();
        (folder, store)
    }

    #[test]
    fn a_model_is_kept_once_read_only_and_under_its_digest() {
        let (_folder, store) = store();
        let entry = store.add(MODEL, None).unwrap();
        assert_eq!(store.add(MODEL, Some(entry.digest)), Ok(entry.clone()));
        assert_eq!(store.list(), Ok(vec![entry.clone()]));
        let mut text = Vec::new();
        let mut file = store.model(&entry.digest).unwrap();
        file.read_to_end(&mut text).unwrap();
        assert_eq!(text, MODEL);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o444);
        store.remove(&entry.digest).unwrap();
        let missing = WardenError::ModelMissing { digest: entry.digest };
        assert_eq!(store.remove(&entry.digest), Err(missing.clone()));
        assert_eq!(store.model(&entry.digest).unwrap_err(), missing);
    }

    #[test]
    fn what_is_refused_leaves_nothing() {
        let (_folder, store) = store();
        let reason = |source: &[u8], expected| store.add(source, expected).unwrap_err().to_string();
        assert!(reason(b"", None).contains("does not begin with `GGUF`"));
        assert!(reason(b"#!/bin/sh", None).contains("does not begin with `GGUF`"));
        assert!(reason(&MODEL[..20], None).contains("truncated"));
        assert!(reason(MODEL, Some(ModelDigest::from_bytes([7; 32]))).contains("its SHA-256 is"));
        assert_eq!(store.names(), Ok(vec![]));
    }

    #[test]
    fn a_model_longer_than_there_is_room_for_is_refused() {
        let (_folder, store) = store();
        let error = Incoming::create(&store).unwrap().fill(MODEL, 10).unwrap_err();
        assert!(error.to_string().contains("10 bytes there is room for"), "{error}");
    }

    #[test]
    fn leftovers_of_a_crash_are_swept_and_models_are_not() {
        let (_folder, store) = store();
        let entry = store.add(MODEL, None).unwrap();
        fs::write(store.folder.join(".incoming-3"), "half").unwrap();
        let again = Store::open(&store.folder).unwrap();
        assert_eq!(again.names().unwrap(), [format!("{}.gguf", entry.digest)]);
    }
}
