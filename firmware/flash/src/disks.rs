//! This machine's disks, and what uses them, as sysfs and `/proc` say, below a root that tests make themselves.
//!
//! A disk is in use where it, a partition of it, or what is made of these (LVM, dm-crypt, RAID: `holders`) is mounted or
//! is swap. It is a system disk where one of these mounts is a place that a running system needs, or it is swap.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

/// Where a running system's own files are.
const SYSTEM_PLACES: &[&str] =
    &["/", "/boot", "/boot/efi", "/efi", "/etc", "/home", "/nix", "/opt", "/srv", "/usr", "/var"];
/// Block devices that are no disks to a person.
const NO_DISKS: &[&str] = &["loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd", "mtdblock"];
/// sysfs counts in these, whatever the disk's sectors are.
const SIZE_UNIT: u64 = 512;

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name, `sdb`.
    pub name: String,
    /// Vendor and model, as the disk says them.
    pub model: String,
    /// Bytes.
    pub bytes: u64,
    /// Bytes of a logical sector.
    pub sector: u64,
    /// It can be taken out, or hangs on USB.
    pub removable: bool,
    /// It takes no writes.
    pub read_only: bool,
    /// Where it is mounted.
    pub mounts: Vec<String>,
    /// This system runs from it.
    pub system: bool,
}

impl Disk {
    /// Its device, `/dev/sdb`.
    pub fn device(&self) -> PathBuf {
        Path::new("/dev").join(self.name.replace('!', "/"))
    }

    /// What an operator types to confirm: the model, or the name of a disk that says none.
    pub fn word(&self) -> &str {
        if self.model.is_empty() { &self.name } else { &self.model }
    }
}

/// What a device number is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// A whole disk.
    Disk(Disk),
    /// A partition of the disk with this name.
    Partition(String),
    /// Nothing that sysfs knows.
    Unknown,
}

/// The disks below `root` (`/` on a real machine) in the order in which to offer them: those that can be taken out first,
/// those that this system runs from last.
///
/// # Errors
/// Where there is no sysfs.
pub fn disks(root: &Path) -> io::Result<Vec<Disk>> {
    let facts = Facts::read(root)?;
    let is_disk = |name: &String| !NO_DISKS.iter().any(|start| name.starts_with(start));
    let mut disks: Vec<Disk> = facts.names.iter().filter(|name| is_disk(name)).map(|name| facts.disk(name)).collect();
    disks.retain(|disk| disk.bytes > 0);
    disks.sort_by_key(|disk| (disk.system, !disk.removable, disk.name.clone()));
    Ok(disks)
}

/// What the block device `major:minor` is.
///
/// # Errors
/// Where there is no sysfs.
pub fn device(root: &Path, major: u64, minor: u64) -> io::Result<Device> {
    let facts = Facts::read(root)?;
    let number = format!("{major}:{minor}");
    for name in &facts.names {
        if facts.text(name, "dev") == number {
            return Ok(Device::Disk(facts.disk(name)));
        }
        if facts.partitions(name).iter().any(|part| facts.text(&format!("{name}/{part}"), "dev") == number) {
            return Ok(Device::Partition(name.clone()));
        }
    }
    Ok(Device::Unknown)
}

/// What was read once for all disks.
struct Facts {
    block: PathBuf,
    names: Vec<String>,
    mounts: Vec<Mount>,
    swaps: Vec<String>,
}

struct Mount {
    number: String,
    source: String,
    place: String,
}

impl Facts {
    fn read(root: &Path) -> io::Result<Self> {
        let block = root.join("sys/block");
        let mut names: Vec<String> =
            fs::read_dir(&block)?.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let mounts = text("proc/self/mountinfo").lines().filter_map(mount).collect();
        let swap = |line: &str| line.split_whitespace().next().map(unescaped);
        let swaps = text("proc/swaps").lines().skip(1).filter_map(swap).collect();
        Ok(Self { block, names, mounts, swaps })
    }

    /// A file of the device at `path` below `sys/block`.
    fn text(&self, path: &str, file: &str) -> String {
        let text = fs::read_to_string(self.block.join(path).join(file)).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn number(&self, name: &str, file: &str) -> u64 {
        self.text(name, file).parse().unwrap_or(0)
    }

    fn disk(&self, name: &str) -> Disk {
        let places = self.places(name);
        let vendor = self.text(name, "device/vendor");
        // PCI's number, or what libata says of every disk, names nobody.
        let vendor = if vendor.starts_with("0x") || vendor == "ATA" { String::new() } else { vendor };
        let path = fs::canonicalize(self.block.join(name)).unwrap_or_default();
        let on_usb = path.components().any(|part| part.as_os_str().to_string_lossy().starts_with("usb"));
        Disk {
            name: name.to_owned(),
            model: format!("{vendor} {}", self.text(name, "device/model")).trim().to_owned(),
            bytes: self.number(name, "size") * SIZE_UNIT,
            sector: self.number(name, "queue/logical_block_size"),
            removable: on_usb || self.number(name, "removable") == 1,
            read_only: self.number(name, "ro") == 1,
            system: places.iter().any(|place| place == SWAP || SYSTEM_PLACES.contains(&place.as_str())),
            mounts: places.into_iter().collect(),
        }
    }

    fn partitions(&self, name: &str) -> Vec<String> {
        let folder = self.block.join(name);
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|part| folder.join(part).join("partition").exists()).collect()
    }

    /// Where the disk, its partitions, and what is made of these are mounted.
    fn places(&self, name: &str) -> BTreeSet<String> {
        let mut paths = vec![name.to_owned()];
        paths.extend(self.partitions(name).iter().map(|part| format!("{name}/{part}")));
        let mut at = 0;
        while let Some(path) = paths.get(at).cloned() {
            at += 1;
            let holders = fs::read_dir(self.block.join(&path).join("holders")).into_iter().flatten().flatten();
            for holder in holders.filter_map(|entry| entry.file_name().into_string().ok()) {
                if !paths.contains(&holder) {
                    paths.push(holder);
                }
            }
        }
        paths.iter().flat_map(|path| self.places_of(path)).collect()
    }

    fn places_of(&self, path: &str) -> Vec<String> {
        let (number, mapped) = (self.text(path, "dev"), self.text(path, "dm/name"));
        let name = path.rsplit('/').next().unwrap_or(path);
        let devices = [format!("/dev/{}", name.replace('!', "/")), format!("/dev/mapper/{mapped}")];
        let here = |mount: &&Mount| mount.number == number || devices.contains(&mount.source);
        let mut places: Vec<String> = self.mounts.iter().filter(here).map(|mount| mount.place.clone()).collect();
        if self.swaps.iter().any(|swap| devices.contains(swap)) {
            places.push(SWAP.to_owned());
        }
        places
    }
}

/// Stands among places for a disk that is swap.
const SWAP: &str = "swap";

/// `36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw`
fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let fields: Vec<&str> = before.split(' ').collect();
    let source = after.split(' ').nth(1)?;
    Some(Mount { number: fields.get(2)?.to_string(), place: unescaped(fields.get(4)?), source: unescaped(source) })
}

/// The kernel writes spaces and the like as three octal digits.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                plain.push(char::from(code));
                plain.push_str(&part[3..]);
            }
            None => plain.extend(['\\'].into_iter().chain(part.chars())),
        }
    }
    plain
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A machine: its system on NVMe by LVM, a USB stick that is mounted, a card in a reader, a bare disk, an empty reader.
    pub(crate) fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let pci = "sys/devices/pci0000:00";
        let disks = [
            ("nvme0n1", "nvme", "259:0", "0", "Samsung SSD 980", "", 1_953_525_168_u64),
            ("sda", "usb2/2-1", "8:0", "0", "Ultra", "SanDisk", 60_062_500),
            ("mmcblk0", "mmc", "179:0", "1", "", "", 31_116_288),
            ("sdb", "ata3", "8:16", "0", "WDC WD40", "ATA", 7_814_037_168),
            ("sdc", "usb2/2-2", "8:32", "1", "Reader", "Generic", 0),
            ("dm-0", "virtual", "254:0", "0", "", "", 1000),
        ];
        fs::create_dir_all(root.path().join("sys/block")).unwrap();
        for (name, bus, number, removable, model, vendor, sectors) in disks {
            let at = format!("{pci}/{bus}/block/{name}");
            for (file, text) in
                [("dev", number), ("removable", removable), ("device/model", model), ("device/vendor", vendor)]
            {
                put(&format!("{at}/{file}"), &format!("{text}\n"));
            }
            put(&format!("{at}/size"), &format!("{sectors}\n"));
            put(&format!("{at}/ro"), "0\n");
            put(&format!("{at}/queue/logical_block_size"), "512\n");
            symlink(root.path().join(&at), root.path().join("sys/block").join(name)).unwrap();
        }
        for (disk, part, number) in [
            ("nvme/block/nvme0n1", "nvme0n1p1", "259:1"),
            ("nvme/block/nvme0n1", "nvme0n1p2", "259:2"),
            ("usb2/2-1/block/sda", "sda1", "8:1"),
        ] {
            put(&format!("{pci}/{disk}/{part}/dev"), &format!("{number}\n"));
            put(&format!("{pci}/{disk}/{part}/partition"), "1\n");
        }
        put(&format!("{pci}/nvme/block/nvme0n1/nvme0n1p2/holders/dm-0"), "");
        put(&format!("{pci}/virtual/block/dm-0/dm/name"), "box-root\n");
        put(
            "proc/self/mountinfo",
            "22 1 254:0 / / rw - ext4 /dev/mapper/box-root rw\n\
             23 22 0:5 / /proc rw shared:1 - proc proc rw\n\
             24 22 8:1 / /media/my\\040stick rw - vfat /dev/sda1 rw\n",
        );
        put("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n");
        root
    }

    pub(crate) fn disk(root: &Path, name: &str) -> Disk {
        disks(root).unwrap().into_iter().find(|disk| disk.name == name).unwrap()
    }

    #[test]
    fn disks_that_can_be_taken_out_come_first_and_system_disks_last() {
        let root = machine();
        let names: Vec<_> = disks(root.path()).unwrap().into_iter().map(|disk| disk.name).collect();
        assert_eq!(names, ["mmcblk0", "sda", "sdb", "nvme0n1"]);
    }

    #[test]
    fn a_disk_says_what_it_is_and_what_uses_it() {
        let root = machine();
        let stick = disk(root.path(), "sda");
        assert_eq!((stick.model.as_str(), stick.bytes, stick.removable), ("SanDisk Ultra", 60_062_500 * 512, true));
        assert_eq!((stick.mounts.as_slice(), stick.system), (["/media/my stick".to_owned()].as_slice(), false));
        let bare = disk(root.path(), "sdb");
        assert_eq!((bare.model.as_str(), bare.removable, bare.mounts.len()), ("WDC WD40", false, 0));
        assert_eq!(disk(root.path(), "mmcblk0").word(), "mmcblk0");
    }

    #[test]
    fn the_system_is_found_through_what_its_disk_holds() {
        let root = machine();
        let system = disk(root.path(), "nvme0n1");
        assert_eq!((system.mounts.as_slice(), system.system), (["/".to_owned()].as_slice(), true));
        let swaps = "Filename\tType\n/dev/sdb\tpartition\n";
        fs::write(root.path().join("proc/swaps"), swaps).unwrap();
        assert!(disk(root.path(), "sdb").system);
        // btrfs: the number is nobody's, the source is.
        let subvolume = "22 1 0:31 /@ /home rw - btrfs /dev/sda1 rw\n";
        fs::write(root.path().join("proc/self/mountinfo"), subvolume).unwrap();
        assert!(disk(root.path(), "sda").system);
    }

    #[test]
    fn a_number_is_a_disk_or_a_partition_of_one() {
        let root = machine();
        let what = |major, minor| device(root.path(), major, minor).unwrap();
        assert_eq!(what(8, 0), Device::Disk(disk(root.path(), "sda")));
        assert_eq!(what(8, 1), Device::Partition("sda".to_owned()));
        assert_eq!(what(9, 9), Device::Unknown);
        assert!(disks(&root.path().join("nowhere")).is_err());
    }
}
