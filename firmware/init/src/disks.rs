//! Finds the image's partitions by their names and mounts them; the data partition grows before, its file system after.
//!
//! Disks appear when their drivers and buses are done, USB ones after a second or more, so it is waited for.

use crate::{error::InitError, grow};
use firmware_gpt as gpt;
use nix::mount::{MsFlags, mount};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

/// The boot partition's place.
pub(crate) const ESP: &str = "/esp";
/// The data partition's place.
pub(crate) const DATA: &str = "/data";

const WAIT_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const PLAIN: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

const CLASS: &str = "/sys/class/block";

/// A disk, and which of its partitions was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Its device.
    pub(crate) path: PathBuf,
    /// Its length.
    pub(crate) sectors: u64,
    /// Whether it is one that people carry about.
    pub(crate) is_removable: bool,
    /// The partition's number.
    pub(crate) number: u32,
}

impl Disk {
    /// Its first bytes, which hold the partition table.
    pub(crate) fn head(&self) -> Result<Vec<u8>, InitError> {
        let mut head = vec![0; gpt::HEAD_BYTES];
        let read = File::open(&self.path).and_then(|file| file.read_exact_at(&mut head, 0));
        read.map(|()| head).map_err(InitError::io(self.path.display().to_string()))
    }
}

/// Mounts both; the boot partition's device.
pub(crate) fn mount_both() -> Result<PathBuf, InitError> {
    let mut devices: Vec<PathBuf> = Vec::new();
    let until = Instant::now() + WAIT_MAX;
    for (name, kind, place, options) in [("esp", "vfat", ESP, "umask=0077"), ("data", "ext4", DATA, "")] {
        let device = wait_for(name, devices.first(), until)?;
        fs::create_dir_all(place).map_err(InitError::io(place))?;
        if place == DATA {
            grow::partition(&device);
        }
        let flags = PLAIN.union(MsFlags::MS_NOATIME);
        mount(Some(&device), place, Some(kind), flags, Some(options)).map_err(InitError::kernel(place))?;
        if place == DATA {
            grow::file_system(&device, Path::new(place));
        }
        devices.push(device);
    }
    Ok(devices.swap_remove(0))
}

fn wait_for(name: &str, beside: Option<&PathBuf>, until: Instant) -> Result<PathBuf, InitError> {
    loop {
        if let Some(device) = find(Path::new(CLASS), name, beside.map(PathBuf::as_path)) {
            return Ok(Path::new("/dev").join(device));
        }
        if Instant::now() >= until {
            return Err(InitError::Missing(format!("partition named {name}")));
        }
        sleep(LOOK_EVERY);
    }
}

/// The device of the partition with this name, on the disk that `beside` is on: other disks may have one of that name too.
fn find(class: &Path, name: &str, beside: Option<&Path>) -> Option<String> {
    let wanted = format!("PARTNAME={name}");
    let disk = |device: &Path| Some(sysfs(class, device).ok()?.parent()?.to_owned());
    let wanted_disk = beside.and_then(disk);
    fs::read_dir(class).ok()?.flatten().find_map(|entry| {
        let uevent = fs::read_to_string(entry.path().join("uevent")).ok()?;
        let line = |start: &str| uevent.lines().find_map(|line| line.strip_prefix(start));
        let is_elsewhere = || beside.is_some() && disk(&entry.path()) != wanted_disk;
        if !uevent.lines().any(|line| line == wanted) || is_elsewhere() {
            return None;
        }
        line("DEVNAME=").map(str::to_owned)
    })
}

/// The disk that `device` is a partition of.
pub(crate) fn disk_of(device: &Path) -> Result<Disk, InitError> {
    disk_in(Path::new(CLASS), device)
}

/// How long `device` is.
pub(crate) fn sectors_of(device: &Path) -> Result<u64, InitError> {
    number(&sysfs(Path::new(CLASS), device)?.join("size"))
}

/// sysfs has a partition's folder in its disk's.
fn disk_in(class: &Path, device: &Path) -> Result<Disk, InitError> {
    let partition = sysfs(class, device)?;
    let disk = partition.parent().ok_or_else(|| InitError::Missing(format!("disk of {}", device.display())))?;
    let own = number(&partition.join("partition"))?;
    Ok(Disk {
        path: Path::new("/dev").join(disk.file_name().unwrap_or_default()),
        sectors: number(&disk.join("size"))?,
        is_removable: number(&disk.join("removable"))? != 0,
        number: u32::try_from(own).map_err(|_| InitError::Disk(format!("{own} is no partition's number")))?,
    })
}

fn sysfs(class: &Path, device: &Path) -> Result<PathBuf, InitError> {
    let link = class.join(device.file_name().unwrap_or_default());
    fs::canonicalize(&link).map_err(InitError::io(link.display().to_string()))
}

fn number(path: &Path) -> Result<u64, InitError> {
    let text = fs::read_to_string(path).map_err(InitError::io(path.display().to_string()))?;
    let parsed = text.trim().parse().map_err(|error| io::Error::other(format!("{error}")));
    parsed.map_err(InitError::io(path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_disk_of_a_partition_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (class, disk) = (folder.path().join("class"), folder.path().join("devices/nvme0n1"));
        fs::create_dir_all(disk.join("nvme0n1p2")).unwrap();
        fs::create_dir(&class).unwrap();
        symlink(disk.join("nvme0n1p2"), class.join("nvme0n1p2")).unwrap();
        for (file, text) in [("size", "2048\n"), ("removable", "0\n"), ("nvme0n1p2/partition", "2\n")] {
            fs::write(disk.join(file), text).unwrap();
        }
        let expected = Disk { path: "/dev/nvme0n1".into(), sectors: 2048, is_removable: false, number: 2 };
        assert_eq!(disk_in(&class, Path::new("/dev/nvme0n1p2")).unwrap(), expected);
        assert!(disk_in(&class, Path::new("/dev/sda1")).is_err());
    }

    #[test]
    fn partitions_are_found_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let class = folder.path().join("class");
        fs::create_dir(&class).unwrap();
        let partitions =
            [("sda", "sda1", "data"), ("vda", "vda1", "esp"), ("vda", "vda2", "data"), ("sdb", "sdb1", "base")];
        for (disk, device, name) in partitions {
            let path = folder.path().join(disk).join(device);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("uevent"), format!("MAJOR=1\nDEVNAME={device}\nPARTNAME={name}\n")).unwrap();
            symlink(&path, class.join(device)).unwrap();
        }
        let found = |name, beside: Option<&str>| find(&class, name, beside.map(Path::new));
        assert_eq!(found("esp", None), Some("vda1".to_owned()));
        assert_eq!(found("data", Some("/dev/vda1")), Some("vda2".to_owned()), "not the other disk's");
        assert_eq!(found("data", Some("/dev/sdb1")), None);
        assert_eq!(found("root", None), None);
    }
}
