//! The snapshots of all functions: on disk, and in memory while they are parked.
//!
//! ```text
//!            take              store                   snapshots/
//!  cold ───────────▶ parked ──────────▶ stored          ├── .key              what seals them; never leaves this process
//!                    memory ◀────────── file            ├── .incoming-N       swept at every start
//!                              find                     └── FUNCTION.snap     one a function
//!       ◀────────────────────────────────┘
//!        retire: not authentic, of another identity, or what was restored from it crashed
//!                                                       └── raw/HEX           shared by snapshots ([`crate::raw`])
//! ```
//! Invariants: what is found here is authentic, of the identity asked for, and whole; a function has one snapshot. One
//! thread decodes a function's file while others that want the same wait for it.
//!
//! A deploy has its snapshot taken before its manifest is in force. Who wakes the function in between asks for what was
//! before: the new snapshot is not retired for that, nor replaced, until it is asked for itself ([`Announced`]).

use crate::{
    disk, gguf,
    identity::Machine,
    raw::{self, RawFile, RawStore, digests},
    snapshot_file::{self, FileError, Incoming, parked_bytes},
};
use appliance_types::{FunctionName, Tier};
use sandbox_image::Parked;
use sandbox_kernel::{
    memory::{prefault, prefault_part},
    process::when_idle,
};
use sandbox_snapshot::{
    EncodeOptions,
    image::{Capture, Identity, Image, PAGE_BYTES, Source, Span},
    limits::NOTE_BYTES_MAX,
};
use sandbox_wire::{
    frame::{decode_packet, encode_packet},
    runner::ModelInfo,
    warden::{SnapshotEntry, WardenError},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, BufReader, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const KEY: &str = ".key";
const INCOMING: &str = ".incoming-";
const RAW: &str = "raw";
const SUFFIX: &str = ".snap";
/// How long a snapshot may be ahead of its manifest. What a deploy does in between is to write a small file.
const ANNOUNCED_MAX: Duration = Duration::from_secs(30);

/// A snapshot in memory, ready to be restored.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) parked: Parked,
    /// The raw files that it names.
    pub(crate) raw: Vec<Arc<RawFile>>,
    /// What the runner told when it had loaded.
    pub(crate) model: ModelInfo,
    /// What an instance needs of its own before any request, bytes.
    pub(crate) needs_bytes: u64,
    /// What its trial showed, once it was tried.
    pub(crate) tried: OnceLock<Tried>,
}

/// What a trial shows of a snapshot's memory.
#[derive(Clone, Debug)]
pub(crate) struct Tried {
    /// What it wrote to.
    pub(crate) written: Vec<Span>,
    /// Pages, in the order in which it touched them; none once its file has that order.
    pub(crate) first_touch: Vec<u64>,
}

/// What is noted in a snapshot's file.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    model: ModelInfo,
    /// See [`Ready::needs_bytes`].
    needs_bytes: u64,
    /// See [`Tried::written`].
    written: Option<Vec<Span>>,
}

impl Ready {
    /// A captured runner that had told this.
    pub(crate) fn new(parked: Parked, raw: Vec<Arc<RawFile>>, model: ModelInfo, needs_bytes: u64) -> Self {
        Self { parked, raw, model, needs_bytes, tried: OnceLock::new() }
    }

    /// What a file of it holds, besides its pages.
    fn capture(&self) -> io::Result<Capture> {
        let written = self.tried.get().map(|tried| tried.written.clone());
        let note = Note { model: self.model.clone(), needs_bytes: self.needs_bytes, written };
        let note = encode_packet(&note, NOTE_BYTES_MAX).map_err(io::Error::other)?;
        Ok(Capture { note, ..self.parked.capture() })
    }

    pub(crate) fn function(&self) -> &FunctionName {
        &self.parked.image.identity.function
    }
}

/// A function's snapshot in memory, locked while it is decoded.
type Place = Arc<Mutex<Slot>>;

#[derive(Debug, Default)]
struct Slot {
    held: Option<Arc<Ready>>,
    /// Counts snapshots taken and removed: one whose turn has passed is not written any more.
    turn: u64,
    announced: Option<Announced>,
}

/// What was taken of a function by call, and has not been asked for yet.
#[derive(Debug)]
struct Announced {
    identity: Identity,
    until: Instant,
}

impl Slot {
    /// Whether a snapshot of another manifest or model is about to be asked for.
    fn is_ahead_of(&self, identity: &Identity, now: Instant) -> bool {
        self.announced.as_ref().is_some_and(|coming| coming.identity != *identity && now < coming.until)
    }

    /// Holds what was asked for, which is then ahead of nothing.
    fn hold(&mut self, ready: &Arc<Ready>) {
        self.held = Some(Arc::clone(ready));
        self.announced = None;
    }
}

/// A snapshot's place in the order of those of its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn(u64);

/// All snapshots.
#[derive(Debug)]
pub(crate) struct Snapshots {
    folder: PathBuf,
    raw: RawStore,
    key: [u8; 32],
    machine: Machine,
    /// Where snapshots are decoded, by the kernel's numbers.
    cores: Vec<usize>,
    places: Mutex<BTreeMap<FunctionName, Place>>,
    incoming: AtomicU64,
    /// Held by whoever writes at leisure, and by nobody else.
    leisurely: Mutex<()>,
}

impl Snapshots {
    /// Opens the folder, makes it and its key, and removes what was half written.
    pub(crate) fn open(folder: &Path, machine: Machine, cores: Vec<usize>) -> Result<Self, WardenError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| storage("create", folder, &error))?;
        // Whatever it was before: the key is ours alone.
        let closed = fs::set_permissions(folder, Permissions::from_mode(0o700));
        closed.map_err(|error| storage("set the mode of", folder, &error))?;
        for name in names(folder)?.iter().filter(|name| name.starts_with(INCOMING)) {
            let path = folder.join(name);
            fs::remove_file(&path).map_err(|error| storage("remove", &path, &error))?;
        }
        let path = folder.join(KEY);
        let key = key(&path).map_err(|error| storage("use", &path, &error))?;
        let raw = RawStore::open(folder.join(RAW))?;
        let snapshots = Self {
            raw,
            folder: folder.to_owned(),
            key,
            machine,
            cores,
            places: Mutex::default(),
            incoming: AtomicU64::new(0),
            leisurely: Mutex::default(),
        };
        snapshots.sweep()?;
        Ok(snapshots)
    }

    pub(crate) fn raw(&self) -> &RawStore {
        &self.raw
    }

    /// Removes raw files of a snapshot that was removed while it was in use.
    pub(crate) fn tidy(&self) {
        if let Err(error) = self.sweep() {
            tracing::warn!(%error, "raw files are left over");
        }
    }

    /// Removes raw files that no snapshot names any more.
    fn sweep(&self) -> Result<(), WardenError> {
        let functions = self.on_disk()?;
        self.raw.sweep(|| {
            let images = functions.iter().filter_map(|function| self.image(function));
            images.flat_map(|image| digests(&image.extents)).collect()
        })
    }

    fn on_disk(&self) -> Result<Vec<FunctionName>, WardenError> {
        let names = names(&self.folder)?;
        Ok(names.iter().filter_map(|name| name.strip_suffix(SUFFIX)?.parse().ok()).collect())
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    fn path(&self, function: &FunctionName) -> PathBuf {
        self.folder.join(format!("{function}{SUFFIX}"))
    }

    fn place(&self, function: &FunctionName) -> Place {
        Arc::clone(lock(&self.places).entry(function.clone()).or_default())
    }

    /// A function's snapshot in memory, decoded first where it is only on disk, and where it was found.
    ///
    /// # Errors
    /// Why it must not be used. It stays where it is until it is removed.
    pub(crate) fn find(&self, identity: &Identity, needed: &Needed<'_>) -> Result<Option<(Arc<Ready>, Tier)>, String> {
        let place = self.place(&identity.function);
        let mut slot = lock(&place);
        if let Some(ready) = slot.held.as_ref().filter(|ready| ready.parked.image.identity == *identity) {
            return Ok(Some((Arc::clone(ready), Tier::Parked)));
        }
        let ready = match self.read(identity, Some(needed)) {
            Ok(ready) => Arc::new(ready),
            Err(FileError::Missing) => return Ok(None),
            Err(error) if error.is_shortage() => {
                tracing::warn!(function = %identity.function, %error, "the snapshot cannot be read now");
                return Ok(None);
            }
            Err(_) if slot.is_ahead_of(identity, Instant::now()) => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        slot.hold(&ready);
        Ok(Some((ready, Tier::Stored)))
    }

    /// Says that a snapshot of this identity is about to come, and to be asked for.
    pub(crate) fn announce(&self, identity: Identity) {
        let place = self.place(&identity.function);
        lock(&place).announced = Some(Announced { identity, until: Instant::now() + ANNOUNCED_MAX });
    }

    /// Whether there is a snapshot of the function that this one is not to replace.
    pub(crate) fn is_ahead_of(&self, identity: &Identity) -> bool {
        lock(&self.place(&identity.function)).is_ahead_of(identity, Instant::now())
    }

    /// A function's snapshot if it is in memory and of this identity.
    pub(crate) fn held(&self, identity: &Identity) -> Option<Arc<Ready>> {
        let place = self.place(&identity.function);
        let slot = lock(&place);
        slot.held.as_ref().filter(|ready| ready.parked.image.identity == *identity).map(Arc::clone)
    }

    /// The turn of a snapshot that is in memory.
    fn turn_of(&self, ready: &Arc<Ready>) -> Option<Turn> {
        let place = self.place(ready.function());
        let slot = lock(&place);
        slot.held.as_ref().filter(|held| Arc::ptr_eq(held, ready)).map(|_| Turn(slot.turn))
    }

    /// Reads a function's file to its end, and has what its runner will need read behind it.
    fn read(&self, identity: &Identity, needed: Option<&Needed<'_>>) -> Result<Ready, FileError> {
        let ahead = needed.map(|needed| |file: &File, image: &Image| needed.read_ahead(file, image));
        let parked = snapshot_file::read(&self.path(&identity.function), &self.key, identity, &self.cores, ahead)?;
        let Note { model, needs_bytes, written } = decode_packet(&parked.image.note)?;
        let raw = self.raw.files(&parked.image.extents)?;
        let tried = written.map(|written| Tried { written, first_touch: Vec::new() });
        Ok(Ready { parked, raw, model, needs_bytes, tried: tried.map(OnceLock::from).unwrap_or_default() })
    }

    /// Whether a function's file is whole, authentic and of this identity.
    pub(crate) fn verify(&self, identity: &Identity) -> Result<SnapshotEntry, WardenError> {
        let function = identity.function.clone();
        match self.read(identity, None) {
            Ok(_) => Ok(self.entry(&function)),
            Err(FileError::Missing) => Err(WardenError::SnapshotMissing { function }),
            Err(error) if error.is_shortage() => {
                let action = format!("read {}", self.path(&function).display());
                Err(WardenError::Storage { action, reason: error.to_string() })
            }
            Err(error) => Err(WardenError::SnapshotInvalid { function, reason: error.to_string() }),
        }
    }

    /// Takes a function's next turn, and has what was held before forgotten for `ready`, or for nothing.
    pub(crate) fn next(&self, function: &FunctionName, ready: Option<Arc<Ready>>) -> Turn {
        let place = self.place(function);
        let mut slot = lock(&place);
        slot.held = ready;
        slot.turn += 1;
        Turn(slot.turn)
    }

    /// Writes a snapshot to disk, in place of any other of its function, unless its turn has passed meanwhile.
    pub(crate) fn write(&self, ready: &Ready, turn: Turn) -> Result<(), WardenError> {
        self.keep(self.encode(ready), ready.function(), turn)
    }

    /// The same at leisure: one at a time, encoded while nobody else computes, not at all where it has become needless.
    pub(crate) fn write_when_idle(&self, ready: &Ready, turn: Turn) -> Result<(), WardenError> {
        let _one_at_a_time = lock(&self.leisurely);
        self.write_idly(ready, turn)
    }

    /// The same of one that is held still when its time comes: its function then.
    pub(crate) fn write_again_when_idle(&self, ready: &Weak<Ready>) -> Result<Option<FunctionName>, WardenError> {
        let _one_at_a_time = lock(&self.leisurely);
        let Some(ready) = ready.upgrade() else { return Ok(None) };
        let Some(turn) = self.turn_of(&ready) else { return Ok(None) };
        self.write_idly(&ready, turn)?;
        Ok(Some(ready.function().clone()))
    }

    fn write_idly(&self, ready: &Ready, turn: Turn) -> Result<(), WardenError> {
        if lock(&self.place(ready.function())).turn != turn.0 {
            return Ok(());
        }
        let written = when_idle(|| self.encode(ready)).unwrap_or_else(|error| Err(error.into()));
        self.keep(written, ready.function(), turn)
    }

    fn encode(&self, ready: &Ready) -> io::Result<Incoming> {
        // Encoded, it will be smaller.
        disk::require(&self.folder, parked_bytes(&ready.parked))?;
        raw::sync(&ready.raw)?;
        self.raw.sync()?;
        let incoming = self.folder.join(format!("{INCOMING}{}", self.incoming.fetch_add(1, Ordering::Relaxed)));
        let first_touch = ready.tried.get().map_or(&[][..], |tried| &tried.first_touch);
        let options = EncodeOptions { first_touch, ..EncodeOptions::default() };
        Incoming::write(incoming, &self.key, ready.capture()?, &ready.parked, &options)
    }

    fn keep(&self, written: io::Result<Incoming>, function: &FunctionName, turn: Turn) -> Result<(), WardenError> {
        let path = self.path(function);
        let written = written.map_err(|error| storage("write", &path, &error))?;
        let place = self.place(function);
        let slot = lock(&place);
        if slot.turn == turn.0 {
            let kept = written.keep(&path).and_then(|()| File::open(&self.folder)?.sync_all());
            kept.map_err(|error| storage("keep", &path, &error))?;
        }
        Ok(())
    }

    /// Keeps a function's snapshot on disk only.
    pub(crate) fn store(&self, function: &FunctionName) {
        let place = self.place(function);
        lock(&place).held = None;
    }

    /// Removes a function's snapshot.
    pub(crate) fn remove(&self, function: &FunctionName) -> Result<(), WardenError> {
        // Before the file goes: one that is being written must not come after.
        self.next(function, None);
        lock(&self.place(function)).announced = None;
        let path = self.path(function);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(storage("remove", &path, &error)),
            _ => self.sweep(),
        }
    }

    /// Whether what there is of a function's snapshot is of this identity.
    pub(crate) fn is_of(&self, identity: &Identity) -> bool {
        let image = || self.image(&identity.function);
        self.held(identity).is_some() || image().is_some_and(|image| image.identity == *identity)
    }

    /// Every snapshot, by name.
    pub(crate) fn list(&self) -> Result<Vec<SnapshotEntry>, WardenError> {
        let mut functions = self.on_disk()?;
        functions.extend(lock(&self.places).keys().cloned());
        functions.sort_unstable();
        functions.dedup();
        let entries = functions.iter().map(|function| self.entry(function));
        Ok(entries.filter(|entry| entry.file_bytes > 0 || entry.parked_bytes > 0).collect())
    }

    /// What there is of a function's snapshot.
    pub(crate) fn entry(&self, function: &FunctionName) -> SnapshotEntry {
        let place = self.place(function);
        // One that is being decoded is on disk.
        let held = place.try_lock().ok().and_then(|slot| slot.held.clone());
        let file_bytes = fs::metadata(self.path(function)).map_or(0, |metadata| metadata.len());
        let parked_bytes = held.as_ref().map_or(0, |ready| parked_bytes(&ready.parked));
        let (current, needs_bytes) = match held {
            Some(ready) => (true, ready.needs_bytes),
            None => {
                self.image(function).map_or((false, 0), |image| (self.machine.is_of(&image.identity), needs(&image)))
            }
        };
        SnapshotEntry { function: function.clone(), file_bytes, parked_bytes, needs_bytes, current }
    }

    /// What an instance of this identity needs, by what there is of its snapshot.
    pub(crate) fn needs_bytes(&self, identity: &Identity) -> Option<u64> {
        if let Some(ready) = self.held(identity) {
            return Some(ready.needs_bytes);
        }
        let image = self.image(&identity.function).filter(|image| image.identity == *identity)?;
        Some(needs(&image)).filter(|bytes| *bytes > 0)
    }

    /// The image in a function's file, where that is authentic.
    fn image(&self, function: &FunctionName) -> Option<Image> {
        snapshot_file::image(&self.path(function), &self.key).ok()
    }
}

/// What is noted of an instance's needs; 0 where the note is of another form.
fn needs(image: &Image) -> u64 {
    decode_packet::<Note>(&image.note).map_or(0, |note| note.needs_bytes)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is changed under these locks is changed in one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn names(folder: &Path) -> Result<Vec<String>, WardenError> {
    let entries = fs::read_dir(folder).map_err(|error| storage("list", folder, &error))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// Files that a restored runner needs besides its snapshot. Where that is not in the page cache, they may not be either.
pub(crate) struct Needed<'a> {
    pub(crate) program: &'a File,
    pub(crate) model: &'a File,
}

impl Needed<'_> {
    /// Has the snapshot read at once and these behind it, while it is decoded, and waits for none. The program's text comes
    /// before the model: without it nothing goes on, and a disk does first what it was asked first. What fails here is read
    /// when it is touched.
    fn read_ahead(&self, snapshot: &File, image: &Image) {
        let files = (snapshot.try_clone(), self.program.try_clone(), self.model.try_clone());
        let (Ok(snapshot), Ok(program), Ok(model)) = files else { return };
        let text = image.extents.iter().filter_map(|extent| match extent.source {
            Source::Text { offset } => Some(offset..offset + extent.bytes),
            _ => None,
        });
        let text: Vec<_> = text.collect();
        let read = move || {
            prefault(&snapshot)?;
            text.into_iter().try_for_each(|part| prefault_part(&program, part))?;
            read_weights(&model)
        };
        let read = move || read().unwrap_or_else(|error: io::Error| tracing::debug!(%error, "nothing is read ahead"));
        let _ = thread::Builder::new().name("read-ahead".into()).spawn(read);
    }
}

/// Reads a model as an answer needs it, so that who computes with it never waits for long.
fn read_weights(model: &File) -> io::Result<()> {
    let bytes = model.metadata()?.len();
    let pieces = gguf::in_order_of_use(BufReader::new(model), bytes).map_err(io::Error::other)?;
    // From a page on.
    pieces.into_iter().try_for_each(|piece| prefault_part(model, piece.start & !(PAGE_BYTES - 1)..piece.end))
}

/// The key that seals snapshots, made at the first start. Under another, all snapshots are taken anew.
fn key(path: &Path) -> io::Result<[u8; 32]> {
    let mut key = [0; 32];
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() == key.len() as u64) {
        File::open(path)?.read_exact(&mut key)?;
        return Ok(key);
    }
    File::open("/dev/urandom")?.read_exact(&mut key)?;
    // What a crash left half written.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?;
    file.write_all(&key)?;
    file.sync_all()?;
    Ok(key)
}

pub(crate) fn storage(verb: &str, path: &Path, error: &io::Error) -> WardenError {
    WardenError::Storage { action: format!("{verb} {}", path.display()), reason: error.to_string() }
}
