//! What is written to: a disk, or a file that stands for one.

use crate::{
    disks::{self, Device, Disk},
    error::FlashError,
};
use firmware_gpt::{SECTOR, TAIL_BYTES};
use nix::{
    fcntl::OFlag,
    sys::stat::{major, minor},
};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Stands at a target's start from the first write to the last.
const MARK: &[u8] = b"ember flash: what follows was not written to its end; flash it again\n";
const MARK_BYTES: usize = 4096;

/// How much care is taken of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// No mounted disk, and none that this system runs from.
    On,
    /// The operator said that it may be.
    Off,
}

/// What a target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A disk.
    Disk(Disk),
    /// A file; there may be none yet.
    File,
}

/// A target that was looked at, and may be written.
#[derive(Clone, Debug)]
pub struct Target {
    path: PathBuf,
    kind: Kind,
    guard: Guard,
    unfinished: bool,
    there: bool,
}

impl Target {
    /// Looks at `path`; `root` is `/` but for tests. Changes nothing.
    ///
    /// # Errors
    /// [`FlashError::Refused`], [`FlashError::File`].
    pub fn look(path: &Path, root: &Path, guard: Guard) -> Result<Self, FlashError> {
        let refused = |reason: String| FlashError::Refused { path: path.to_owned(), reason };
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            // Below `/dev` a file that is not there is a disk that is not there.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.starts_with("/dev") => {
                return Ok(Self { path: path.to_owned(), kind: Kind::File, guard, unfinished: false, there: false });
            }
            Err(error) => return Err(FlashError::at(path)(error)),
        };
        let kind = if metadata.is_file() {
            Kind::File
        } else if metadata.file_type().is_block_device() {
            let number = metadata.rdev();
            let device = disks::device(root, major(number), minor(number)).map_err(FlashError::at(root.join("sys")))?;
            Kind::Disk(disk_of(device, guard).map_err(refused)?)
        } else {
            return Err(refused("it is neither a disk nor a file".to_owned()));
        };
        let unfinished = is_marked(path).map_err(FlashError::at(path))?;
        Ok(Self { path: path.to_owned(), kind, guard, unfinished, there: true })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// An earlier run began to write it, and did not end.
    pub fn unfinished(&self) -> bool {
        self.unfinished
    }

    /// What an operator types before it is overwritten; nothing where nothing is lost.
    pub fn word(&self) -> Option<String> {
        match &self.kind {
            Kind::Disk(disk) => Some(disk.word().to_owned()),
            Kind::File if self.there => self.path.file_name().map(|name| name.to_string_lossy().into_owned()),
            Kind::File => None,
        }
    }

    /// Opens it for writing an image of `bytes`, where that is known.
    pub(crate) fn open(&self, bytes: Option<u64>) -> Result<Opened, FlashError> {
        let at = |error| FlashError::at(&self.path)(error);
        let exclusive = matches!(self.kind, Kind::Disk(_)) && self.guard == Guard::On;
        let flags = if exclusive { OFlag::O_EXCL.bits() } else { 0 };
        let is_file = self.kind == Kind::File;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(is_file).custom_flags(flags);
        let mut file = options.open(&self.path).map_err(|error| match error.raw_os_error() {
            Some(code) if code == nix::errno::Errno::EBUSY as i32 => {
                FlashError::Refused { path: self.path.clone(), reason: "something on this machine uses it".to_owned() }
            }
            _ => at(error),
        })?;
        let mut length = file.seek(SeekFrom::End(0)).map_err(at)?;
        if let (true, Some(bytes)) = (is_file, bytes) {
            length = length.max(bytes);
            file.set_len(length).map_err(at)?;
        }
        if let Some(bytes) = bytes.filter(|bytes| *bytes > length) {
            return Err(FlashError::Refused { path: self.path.clone(), reason: too_small(length, bytes) });
        }
        // File systems in memory have no direct writes; nor does a disk of 4096-byte sectors come this far.
        let direct = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_DIRECT.bits()).open(&self.path);
        Ok(Opened { file, direct: direct.ok(), bytes: length, grows: is_file })
    }
}

pub(crate) fn too_small(disk: u64, image: u64) -> String {
    format!("it has {disk} bytes, the image {image}")
}

/// A target that is being written.
pub(crate) struct Opened {
    /// Through the page cache.
    pub(crate) file: File,
    /// Past it, where that is possible.
    pub(crate) direct: Option<File>,
    /// Its length.
    pub(crate) bytes: u64,
    /// It becomes as long as what is written to it.
    pub(crate) grows: bool,
}

impl Opened {
    /// Says on the target that it is not whole. From here on it is lost, the second copy of a partition table at its end, too:
    /// firmware and kernels take that where the first is none.
    pub(crate) fn mark(&self) -> io::Result<()> {
        let mut block = MARK.to_vec();
        block.resize(MARK_BYTES.min(self.bytes.max(MARK.len() as u64) as usize), 0);
        self.file.write_all_at(&block, 0)?;
        let tail = (self.bytes / SECTOR * SECTOR).saturating_sub(TAIL_BYTES as u64);
        if tail > MARK_BYTES as u64 {
            self.file.write_all_at(&[0; TAIL_BYTES], tail)?;
        }
        self.file.sync_data()
    }
}

fn is_marked(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    File::open(path)?.take(MARK.len() as u64).read_to_end(&mut start)?;
    Ok(start == MARK)
}

/// The disk, unless something speaks against writing it.
fn disk_of(device: Device, guard: Guard) -> Result<Disk, String> {
    let disk = match device {
        Device::Disk(disk) => disk,
        Device::Partition(of) => return Err(format!("it is a partition; an image is a whole disk: /dev/{of}")),
        Device::Unknown => return Err("the kernel knows no such disk".to_owned()),
    };
    if disk.read_only {
        return Err("it is read-only".to_owned());
    }
    if disk.sector != SECTOR {
        return Err(format!("its sectors have {} bytes; images are made for sectors of {SECTOR}", disk.sector));
    }
    if guard == Guard::Off {
        return Ok(disk);
    }
    let mounts = disk.mounts.join(", ");
    match (disk.system, disk.mounts.is_empty()) {
        (true, _) => Err(format!("this system runs from it ({mounts})")),
        (false, false) => Err(format!("it is mounted ({mounts})")),
        (false, true) => Ok(disk),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disks::tests::{disk, machine};

    #[test]
    fn a_disk_in_use_is_refused_unless_told() {
        let root = machine();
        let refusal = |name, guard| disk_of(Device::Disk(disk(root.path(), name)), guard).err();
        assert_eq!(refusal("nvme0n1", Guard::On).as_deref(), Some("this system runs from it (/)"));
        assert_eq!(refusal("sda", Guard::On).as_deref(), Some("it is mounted (/media/my stick)"));
        assert_eq!(refusal("sdb", Guard::On), None);
        assert_eq!((refusal("sda", Guard::Off), refusal("nvme0n1", Guard::Off)), (None, None));
    }

    #[test]
    fn what_cannot_hold_an_image_is_refused_whatever_was_told() {
        let root = machine();
        let refusal = |device| disk_of(device, Guard::Off).unwrap_err();
        let card = disk(root.path(), "mmcblk0");
        assert_eq!(refusal(Device::Disk(Disk { read_only: true, ..card.clone() })), "it is read-only");
        assert!(refusal(Device::Disk(Disk { sector: 4096, ..card })).contains("4096 bytes"));
        assert!(refusal(Device::Partition("sda".to_owned())).contains("/dev/sda"));
        assert!(refusal(Device::Unknown).contains("no such disk"));
    }

    #[test]
    fn what_is_neither_disk_nor_file_is_refused() {
        let look = |path: &str| Target::look(Path::new(path), Path::new("/"), Guard::On);
        assert!(look("/dev/null").unwrap_err().to_string().contains("neither a disk nor a file"));
        assert!(look("/dev/no-such-disk").is_err());
        let folder = tempfile::tempdir().unwrap();
        assert!(look(folder.path().to_str().unwrap()).is_err());
    }
}
