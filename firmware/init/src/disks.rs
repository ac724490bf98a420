//! Finds the image's partitions by their names and mounts them; the data partition grows before, its file system after.
//!
//! Of several disks with an image the one counts that the machine was started from: the boot loader says which partition
//! that is (`LoaderDevicePartUUID`). Disks appear when their drivers and buses are done, USB ones after a second or more, so
//! it is waited for.

use crate::{console::say, efi, error::InitError, grow};
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
    /// Its first bytes, which hold the partition table; where a cut left that damaged, those that its second copy makes.
    pub(crate) fn head(&self) -> Result<Vec<u8>, InitError> {
        Ok(self.restored()?.unwrap_or(self.read(0, gpt::HEAD_BYTES)?))
    }

    /// Its first bytes as its table's second copy makes them, where the first copy is damaged and the second is not.
    pub(crate) fn restored(&self) -> Result<Option<Vec<u8>>, InitError> {
        if gpt::partitions(&self.read(0, gpt::HEAD_BYTES)?).is_ok() {
            return Ok(None);
        }
        let bytes = self.sectors * gpt::SECTOR;
        let tail = self.read(bytes.saturating_sub(gpt::TAIL_BYTES as u64), gpt::TAIL_BYTES)?;
        Ok(gpt::restore(&tail, bytes).ok())
    }

    fn read(&self, from: u64, length: usize) -> Result<Vec<u8>, InitError> {
        let mut bytes = vec![0; length];
        let read = File::open(&self.path).and_then(|file| file.read_exact_at(&mut bytes, from));
        read.map(|()| bytes).map_err(InitError::io(self.path.display().to_string()))
    }

    /// The id of the partition that was asked for, as disks have it.
    fn id(&self) -> Option<[u8; 16]> {
        let partitions = gpt::partitions(&self.head().ok()?).ok()?;
        partitions.into_iter().find(|partition| partition.number == self.number).map(|partition| partition.id)
    }
}

/// Mounts both; the boot partition's device, and whether it is surely that of the disk that was started from: another one is
/// used as it is.
pub(crate) fn mount_both() -> Result<(PathBuf, bool), InitError> {
    let until = Instant::now() + WAIT_MAX;
    let (esp, is_sure) = wait_for_esp(until)?;
    mount_at(&esp, ESP, "vfat", "umask=0077")?;
    let data = wait(until, |_| named(Path::new(CLASS), "data", Some(&esp)).into_iter().next());
    let data = data.ok_or_else(|| InitError::Missing(format!("partition named data beside {}", esp.display())))?;
    if is_sure {
        grow::partition(&data);
    }
    mount_at(&data, DATA, "ext4", "")?;
    grow::file_system(&data, Path::new(DATA));
    Ok((esp, is_sure))
}

fn mount_at(device: &Path, place: &str, kind: &str, options: &str) -> Result<(), InitError> {
    fs::create_dir_all(place).map_err(InitError::io(place))?;
    let flags = PLAIN.union(MsFlags::MS_NOATIME);
    mount(Some(device), place, Some(kind), flags, Some(options)).map_err(InitError::kernel(place))
}

fn wait_for_esp(until: Instant) -> Result<(PathBuf, bool), InitError> {
    let told = efi::loader_text(Path::new(efi::VARIABLES), "LoaderDevicePartUUID").and_then(|text| gpt::id(&text));
    let id = |device: &Path| disk_of(device).ok()?.id();
    let found = wait(until, |is_last| started_from(named(Path::new(CLASS), "esp", None), told, id, is_last));
    let (device, is_sure) = found.ok_or_else(|| InitError::Missing("partition named esp".to_owned()))?;
    if !is_sure {
        say(format_args!(
            "which disk was started from is not known: {} is taken, the first of its kind",
            device.display()
        ));
    }
    Ok((device, is_sure))
}

/// Which of `devices` was started from, and whether that is sure: the one whose id the boot loader told. One alone is it where
/// the boot loader told nothing; of several, or where it told of none of them until the `is_last` look, the first is taken.
fn started_from(
    devices: Vec<PathBuf>,
    told: Option<[u8; 16]>,
    id: impl Fn(&Path) -> Option<[u8; 16]>,
    is_last: bool,
) -> Option<(PathBuf, bool)> {
    let is_it = |device: &&PathBuf| told.is_none() || id(device) == told;
    let same: Vec<_> = devices.iter().filter(is_it).cloned().collect();
    let is_sure = same.len() == 1;
    let taken = if same.is_empty() && is_last { devices } else { same };
    taken.into_iter().next().map(|device| (device, is_sure))
}

/// What `look` finds, until then; it hears whether it is asked for the last time.
fn wait<T>(until: Instant, mut look: impl FnMut(bool) -> Option<T>) -> Option<T> {
    loop {
        let is_last = Instant::now() >= until;
        match look(is_last) {
            None if !is_last => sleep(LOOK_EVERY),
            found => return found,
        }
    }
}

/// The devices of partitions with this name, in their order; with `beside`, those on the disk that it is on.
fn named(class: &Path, name: &str, beside: Option<&Path>) -> Vec<PathBuf> {
    let wanted = format!("PARTNAME={name}");
    let disk = |device: &Path| Some(sysfs(class, device).ok()?.parent()?.to_owned());
    let wanted_disk = beside.and_then(disk);
    let device = |entry: fs::DirEntry| {
        let uevent = fs::read_to_string(entry.path().join("uevent")).ok()?;
        let is_elsewhere = || beside.is_some() && disk(&entry.path()) != wanted_disk;
        if !uevent.lines().any(|line| line == wanted) || is_elsewhere() {
            return None;
        }
        uevent.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(|name| Path::new("/dev").join(name))
    };
    let mut devices: Vec<_> = fs::read_dir(class).into_iter().flatten().flatten().filter_map(device).collect();
    devices.sort();
    devices
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
        let found = |name, beside: Option<&str>| {
            let devices = named(&class, name, beside.map(Path::new));
            devices.iter().map(|device| device.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found("esp", None), ["/dev/vda1"]);
        assert_eq!(found("data", None), ["/dev/sda1", "/dev/vda2"]);
        assert_eq!(found("data", Some("/dev/vda1")), ["/dev/vda2"], "not the other disk's");
        assert_eq!(found("data", Some("/dev/sdb1")), [""; 0]);
        assert_eq!(found("root", None), [""; 0]);
    }

    #[test]
    fn the_disk_that_was_started_from_counts() {
        let ids = [("/dev/sda1", [1; 16]), ("/dev/sdb1", [2; 16]), ("/dev/sdc1", [2; 16])];
        let id = |device: &Path| ids.iter().find(|(name, _)| Path::new(name) == device).map(|(_, id)| *id);
        let taken = |devices: &[&str], told, is_last| {
            let devices = devices.iter().map(PathBuf::from).collect();
            started_from(devices, told, id, is_last).map(|(device, is_sure)| (device.display().to_string(), is_sure))
        };
        let all = ["/dev/sda1", "/dev/sdb1", "/dev/sdc1"];
        let device = |name: &str, is_sure| Some((name.to_owned(), is_sure));
        assert_eq!(taken(&all[..2], Some([2; 16]), false), device("/dev/sdb1", true));
        assert_eq!(taken(&all, Some([2; 16]), false), device("/dev/sdb1", false), "two disks of one image");
        assert_eq!(taken(&all[..1], Some([2; 16]), false), None, "it is waited for");
        assert_eq!(taken(&all[..1], Some([2; 16]), true), device("/dev/sda1", false));
        assert_eq!(taken(&all[..1], None, false), device("/dev/sda1", true));
        assert_eq!(taken(&all, None, false), device("/dev/sda1", false));
        assert_eq!(taken(&[], None, true), None);
    }

    #[test]
    fn a_damaged_table_is_read_from_its_second_copy() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes = 8 << 20;
        file.as_file().set_len(bytes).unwrap();
        let disk = Disk { path: file.path().to_owned(), sectors: bytes / 512, is_removable: false, number: 1 };
        assert_eq!(disk.restored().unwrap(), None, "there is no second copy either");
        let sgdisk =
            std::process::Command::new("/usr/sbin/sgdisk").args(["-n", "1:2048:4095"]).arg(file.path()).output();
        assert!(sgdisk.expect("sgdisk, of the package gdisk").status.success());
        let (head, id) = (disk.head().unwrap(), disk.id());
        assert!(disk.restored().unwrap().is_none() && id.is_some());
        file.as_file().write_all_at(&[0; 512], 512).unwrap();
        // But for the addresses of cylinders in the protective MBR, which nobody reads.
        assert_eq!((disk.head().unwrap()[512..] == head[512..], disk.id()), (true, id));
        assert!(disk.restored().unwrap().is_some());
    }
}
