//! The folder of slots on the boot partition, and what is done to it.
//!
//! ```text
//!  ember-b.new ── written, hashed, synced, looked at ──▶ old ember-b*.efi removed ──▶ renamed ember-b+3.efi ──▶ synced
//!       └── anything wrong, or a cut: removed, at the latest by the next sweep
//! ```
//! FAT renames are not atomic: a cut may leave the final name on a file of no bytes, which the boot loader passes over and
//! [`Place::sweep`] removes. The slot that runs is read only.

use crate::{BundleError, Manifest, Reader, minisign::PublicKey};
use firmware_slots::{Entry, Found, Rename, Slot, Slots, Unblessed, Version, raise};
use images_uki as uki;
use nix::unistd::syncfs;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

/// Longest file that is read to learn its version.
const UKI_BYTES_MAX: u64 = 1 << 30;

/// Where slots are, and what this machine is.
#[derive(Clone, Debug)]
pub struct Place {
    /// The folder: `EFI/Linux` of the boot partition.
    pub folder: PathBuf,
    /// The file that keeps the highest version that was ever blessed; not on the boot partition.
    pub floor: PathBuf,
    /// Who is trusted; nobody, where no key is known.
    pub key: Option<PublicKey>,
    /// What bundles must be for.
    pub machine: String,
    /// The slot that runs, where that is known.
    pub running: Option<Slot>,
}

/// What was installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Into which slot.
    pub slot: Slot,
    /// Its manifest.
    pub manifest: Manifest,
}

/// What there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Both slots, in the order in which the boot loader tries them.
    pub slots: Slots,
    /// The slot that runs, where that is known.
    pub running: Option<Slot>,
    /// The version below which nothing is installed: the highest that was ever blessed.
    pub floor: Option<Version>,
    /// Why that is not known, where its file is damaged. The version that runs is the floor then, until the next is blessed.
    pub floor_fault: Option<String>,
}

impl Place {
    /// What there is.
    ///
    /// # Errors
    /// [`BundleError::File`].
    pub fn status(&self) -> Result<Status, BundleError> {
        let slots = self.slots()?;
        let (floor, floor_fault) = match self.read_floor() {
            Ok(floor) => (floor, None),
            Err(error) => (self.running.and_then(|slot| slots.get(slot)).map(|it| it.version), Some(error.to_string())),
        };
        Ok(Status { slots, running: self.running, floor, floor_fault })
    }

    /// Reads a bundle from `stream` into the slot that does not run.
    ///
    /// # Errors
    /// [`BundleError`]; every slot is then as it was.
    pub fn apply(&self, stream: impl Read) -> Result<Installed, BundleError> {
        let reader = Reader::open(stream, self.key.as_ref().ok_or(BundleError::NoKey)?)?;
        let status = self.status()?;
        let slot = status.slots.place(reader.offer(), self.running, status.floor, &self.machine)?;
        let version = reader.offer().version;
        let fresh = Fresh::create(self.folder.join(slot.fresh()))?;
        let manifest = reader.copy(&fresh.file, |error| BundleError::at(&fresh.path)(error))?;
        fresh.file.sync_all().map_err(BundleError::at(&fresh.path))?;
        let found = version_of(&fresh.path).map_err(BundleError::at(&fresh.path))?;
        if found != Some(version) {
            let says = found.map_or("none".to_owned(), |found| found.to_string());
            return Err(BundleError::Contents(format!("the UKI's own version is {says}, not {version}")));
        }
        self.replace(slot, fresh)?;
        Ok(Installed { slot, manifest })
    }

    /// Makes the boot loader start the other slot from the next start on.
    ///
    /// # Errors
    /// [`BundleError::Refused`] where there is none, [`BundleError::File`].
    pub fn roll_back(&self) -> Result<(), BundleError> {
        self.rename(&self.slots()?.roll_back(self.running)?)
    }

    /// Trusts the slot that runs, if it is the one that the boot loader selected and counted; the version.
    ///
    /// # Errors
    /// [`BundleError::File`]. `Ok(Err)` says why it is not trusted now.
    pub fn bless(
        &self,
        selected: Option<Slot>,
        counted: Option<Slot>,
    ) -> Result<Result<Version, Unblessed>, BundleError> {
        let Status { slots, floor, .. } = self.status()?;
        let rename = match slots.bless(selected, counted) {
            Ok(rename) => rename,
            Err(reason) => return Ok(Err(reason)),
        };
        let blessed = selected.and_then(|slot| slots.get(slot)).expect("what is blessed is there").version;
        // The floor first: nobody raises that of a slot that is trusted already, which a cut in between would leave.
        self.write_floor(raise(floor, blessed))?;
        self.rename(&rename)?;
        Ok(Ok(blessed))
    }

    /// Removes what cuts left; how many files.
    ///
    /// # Errors
    /// [`BundleError::File`].
    pub fn sweep(&self) -> Result<usize, BundleError> {
        let leftovers = self.slots()?.leftovers;
        leftovers.iter().try_for_each(|name| self.remove(name))?;
        self.sync()?;
        Ok(leftovers.len())
    }

    fn slots(&self) -> Result<Slots, BundleError> {
        let at = |error| BundleError::at(&self.folder)(error);
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(at)? {
            let entry = entry.map_err(at)?;
            let path = entry.path();
            let bytes = entry.metadata().map_err(at)?.len();
            let Ok(name) = entry.file_name().into_string() else { continue };
            let version = if Entry::parse(&name).is_some() { version_of(&path).map_err(at)? } else { None };
            files.push(Found { name, bytes, version });
        }
        files.sort_by(|one, two| one.name.cmp(&two.name));
        Ok(Slots::of(&files))
    }

    /// Gives `fresh` the slot's name on trial, in place of what the slot had.
    fn replace(&self, slot: Slot, mut fresh: Fresh) -> Result<(), BundleError> {
        let old = fs::read_dir(&self.folder).map_err(BundleError::at(&self.folder))?.flatten();
        let old = old.filter_map(|entry| entry.file_name().into_string().ok());
        for name in old.filter(|name| Entry::parse(name).is_some_and(|entry| entry.slot == slot)) {
            self.remove(&name)?;
        }
        let to = self.folder.join(Entry::on_trial(slot).to_string());
        fs::rename(&fresh.path, &to).map_err(BundleError::at(&to))?;
        fresh.is_kept = true;
        self.sync()
    }

    fn rename(&self, Rename { from, to }: &Rename) -> Result<(), BundleError> {
        let [from, to] = [from, to].map(|name| self.folder.join(name));
        fs::rename(&from, &to).map_err(BundleError::at(&from))?;
        self.sync()
    }

    fn remove(&self, name: &str) -> Result<(), BundleError> {
        let path = self.folder.join(name);
        fs::remove_file(&path).map_err(BundleError::at(path))
    }

    /// What syncfs writes of a FAT, such as where a renamed file begins, stays in the disk's own cache: fsync has that flushed.
    fn sync(&self) -> Result<(), BundleError> {
        let at = |error| BundleError::at(&self.folder)(error);
        let folder = File::open(&self.folder).map_err(at)?;
        syncfs(&folder).map_err(|errno| at(errno.into()))?;
        folder.sync_all().map_err(at)
    }

    fn read_floor(&self) -> Result<Option<Version>, BundleError> {
        let at = |error| BundleError::at(&self.floor)(error);
        match fs::read_to_string(&self.floor) {
            Ok(text) => text.trim().parse().map(Some).map_err(|reason: String| at(io::Error::other(reason))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(error)),
        }
    }

    fn write_floor(&self, floor: Version) -> Result<(), BundleError> {
        let fresh = Fresh::create(self.floor.with_extension("new"))?;
        let folder = self.floor.parent().unwrap_or(Path::new("."));
        (&fresh.file)
            .write_all(format!("{floor}\n").as_bytes())
            .and_then(|()| fresh.file.sync_all())
            .and_then(|()| fs::rename(&fresh.path, &self.floor))
            .and_then(|()| File::open(folder)?.sync_all())
            .map_err(BundleError::at(&self.floor))
    }
}

/// A file that is being written. Dropping it removes it, unless it was kept.
struct Fresh {
    file: File,
    path: PathBuf,
    is_kept: bool,
}

impl Fresh {
    fn create(path: PathBuf) -> Result<Self, BundleError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(BundleError::at(&path))?;
        Ok(Self { file, path, is_kept: false })
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.is_kept {
            // Gone already when it was renamed. What cannot be removed now is swept at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The version that a UKI says it has; `None` where it is none, or says nothing.
fn version_of(path: &Path) -> io::Result<Option<Version>> {
    let file = File::open(path)?;
    if file.metadata()?.len() > UKI_BYTES_MAX {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(UKI_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(uki::image_version(&bytes).and_then(|version| version.parse().ok()))
}
