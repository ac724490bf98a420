//! The data partition reaches to the disk's end: an image has it as small as it can be.
//!
//! ```text
//!  table on the disk: second copy at the end, then the first ─▶ the kernel's own view (BLKPG) ─▶ mounted ─▶ ext4, online
//! ```
//! Each step finds out by itself whether there is anything to do, so a cut between two of them is made up for at the next
//! start; a cut while the first copy of the table is written leaves it damaged, and it is made of the second again. The
//! kernel is told `gpt` on its command line, so that it looks for the second, too. A table that grows gets ids of its own, so
//! that two disks of one image can be told apart. A step that fails is told, and the machine
//! starts with what there is.

use crate::{console::say, disks, error::InitError};
use firmware_gpt as gpt;
use sandbox_kernel::hardware::{resize_ext4, resize_partition};
use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::{fd::AsFd, unix::fs::FileExt},
    path::Path,
};

/// ext4's superblock: where it is, and how much of it is read.
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;

/// Grows the partition that is `device`, where its disk has room behind it. To be called before it is mounted.
pub(crate) fn partition(device: &Path) {
    match restore_table(device) {
        Ok(false) => {}
        Ok(true) => say("the partition table was damaged; it is made of its second copy again"),
        Err(reason) => say(format_args!("the partition table stays damaged: {reason}")),
    }
    match grow_partition(device) {
        Ok(None) => {}
        Ok(Some(bytes)) => say(format_args!("the data partition has {} MiB now", bytes >> 20)),
        Err(reason) => say(format_args!("the data partition stays as it is: {reason}")),
    }
}

/// Grows the ext4 on `device`, mounted at `root`, to what the device has.
pub(crate) fn file_system(device: &Path, root: &Path) {
    match grow_file_system(device, root) {
        Ok(None) => {}
        Ok(Some(bytes)) => say(format_args!("the data file system has {} MiB now", bytes >> 20)),
        Err(reason) => say(format_args!("the data file system stays as it is: {reason}")),
    }
}

/// Whether the table's first copy was damaged.
fn restore_table(device: &Path) -> Result<bool, InitError> {
    let disk = disks::disk_of(device)?;
    let Some(head) = disk.restored()? else { return Ok(false) };
    put(&disk.path, &[(0, &head)])?;
    Ok(true)
}

fn grow_partition(device: &Path) -> Result<Option<u64>, InitError> {
    let disk = disks::disk_of(device)?;
    let mut head = disk.head()?;
    let grown = gpt::grow(&mut head, disk.sectors * gpt::SECTOR, random_id);
    let Some((partition, backup)) = grown.map_err(InitError::Disk)? else { return Ok(None) };
    if partition.number != disk.number {
        return Err(InitError::Disk("it is not the disk's last".to_owned()));
    }
    // The first copy last: until it is there, what it said before holds, and while it is written the second does.
    let file = put(&disk.path, &[(backup.offset, &backup.bytes), (0, &head)])?;
    let [start, bytes] = [partition.first, partition.last + 1 - partition.first].map(|n| n * gpt::SECTOR);
    let told = resize_partition(file.as_fd(), partition.number, start, bytes);
    told.map_err(InitError::kernel("telling the kernel its new length"))?;
    Ok(Some(disks::sectors_of(device)? * gpt::SECTOR))
}

/// A UUID of version 4. Two disks that got the same one, where the kernel has nothing random yet, are as they were.
fn random_id() -> [u8; 16] {
    let mut id = [0; 16];
    let _ = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut id));
    id[7] = id[7] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    id
}

/// Writes each piece to the disk at `path` when those before it are there.
fn put(path: &Path, pieces: &[(u64, &[u8])]) -> Result<File, InitError> {
    let at = || InitError::io(path.display().to_string());
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(at())?;
    for (offset, bytes) in pieces {
        file.write_all_at(bytes, *offset).and_then(|()| file.sync_all()).map_err(at())?;
    }
    Ok(file)
}

fn grow_file_system(device: &Path, root: &Path) -> Result<Option<u64>, InitError> {
    let ext4 = Ext4::of(device)?;
    let sectors = disks::sectors_of(device)?;
    let blocks = sectors * gpt::SECTOR / ext4.block_bytes;
    if blocks <= ext4.blocks {
        return Ok(None);
    }
    if ext4.has_errors {
        return Err(InitError::Disk("errors were found in it before; save what is on it and flash it anew".to_owned()));
    }
    let folder = File::open(root).map_err(InitError::io(root.display().to_string()))?;
    resize_ext4(folder.as_fd(), blocks).map_err(InitError::kernel("the kernel"))?;
    let grown = Ext4::of(device)?;
    Ok(Some(grown.blocks * grown.block_bytes))
}

/// What is of use in a superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ext4 {
    blocks: u64,
    block_bytes: u64,
    has_errors: bool,
}

impl Ext4 {
    fn of(device: &Path) -> Result<Self, InitError> {
        let mut superblock = [0; SUPERBLOCK_BYTES];
        let read = File::open(device).and_then(|file| file.read_exact_at(&mut superblock, SUPERBLOCK_AT));
        read.map_err(InitError::io(device.display().to_string()))?;
        Self::read(&superblock).ok_or_else(|| InitError::Disk("it is no ext4".to_owned()))
    }

    fn read(superblock: &[u8; SUPERBLOCK_BYTES]) -> Option<Self> {
        let u16_at = |at: usize| u16::from_le_bytes([superblock[at], superblock[at + 1]]);
        let u32_at = |at: usize| u64::from(u16_at(at)) | u64::from(u16_at(at + 2)) << 16;
        let shift = u32_at(24);
        let has_high_half = u32_at(96) & 0x80 != 0;
        let high = if has_high_half { u32_at(336) << 32 } else { 0 };
        (u16_at(56) == 0xef53 && shift <= 6).then_some(Self {
            blocks: high | u32_at(4),
            block_bytes: 1024 << shift,
            has_errors: u16_at(58) & 2 != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn ids_are_random() {
        let (one, other) = (random_id(), random_id());
        assert!(one != other && one[7] >> 4 == 4 && one[8] >> 6 == 2, "{one:?}");
    }

    #[test]
    fn a_superblock_says_how_much_and_whether_it_is_whole() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 << 20).unwrap();
        let mut mke2fs = Command::new("/usr/sbin/mke2fs");
        let status = mke2fs.args(["-q", "-F", "-t", "ext4", "-b", "4096"]).arg(file.path()).status();
        assert!(status.expect("mke2fs, of e2fsprogs").success());
        let mut bytes = [0; SUPERBLOCK_BYTES];
        file.as_file().read_exact_at(&mut bytes, SUPERBLOCK_AT).unwrap();
        let whole = Ext4 { blocks: 2048, block_bytes: 4096, has_errors: false };
        assert_eq!(Ext4::read(&bytes), Some(whole));
        bytes[58] |= 2;
        assert_eq!(Ext4::read(&bytes), Some(Ext4 { has_errors: true, ..whole }));
        bytes[56] = 0;
        assert_eq!(Ext4::read(&bytes), None);
    }
}
