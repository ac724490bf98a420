//! The disk: a partition table, a boot partition that UEFI reads, a data partition.
//!
//! ```text
//!   0      protective MBR, GPT
//!   1 MiB  esp   FAT32   EFI/BOOT/BOOTX64.EFI      systemd-boot, where firmware looks without being told
//!                        EFI/systemd/systemd-bootx64.efi   again: the second way in when the first slot cannot load
//!                        EFI/Linux/ember-a.efi     the UKI; an update writes ember-b.efi
//!                        loader/loader.conf
//!          data  ext4: empty, or with the functions that come along
//!   end    GPT again
//! ```
//!
//! Partitions are found by their names (`PARTNAME=` in sysfs), never by number or place. Every id is derived from the
//! image's contents. The file is sparse.

use crate::{
    ImageError,
    data::{self, DataFile},
    debian::{run, run_at},
};
use fatfs::{FileSystem, FsOptions};
use fscommon::{BufStream, StreamSlice};
use gpt::{GptConfig, disk::LogicalBlockSize, mbr::ProtectiveMBR, partition::Partition, partition_types};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    iter,
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
};
use uuid::Uuid;

/// The boot partition's name.
pub const ESP: &str = "esp";
/// The data partition's name.
pub const DATA: &str = "data";
/// Where the first slot's UKI lies on the boot partition.
pub const FIRST_SLOT: &str = "EFI/Linux/ember-a.efi";
/// Where firmware looks, and the boot loader's second copy.
pub const LOADERS: [&str; 2] = ["EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"];
/// The boot loader's configuration.
pub const LOADER_CONF: &str = "loader/loader.conf";

/// Nobody waits at the menu, and nobody edits the command line.
const LOADER_CONF_TEXT: &str = "timeout 0\neditor no\n";
const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;
/// FAT32 has at least 65,525 clusters; smaller volumes would be read as FAT16.
const ESP_BYTES_MIN: u64 = 72 * MIB;
const CLUSTER_BYTES: u64 = 1024;
pub(crate) const EXT4_BLOCK: u64 = 4096;
/// What a table of partitions takes with what goes before it.
const TABLE_BYTES: u64 = 34 * SECTOR;
/// The first time that FAT can tell, 1980-01-01, in seconds.
const FAT_EPOCH: &str = "315532800";
const DATA_BYTES_MIN: u64 = 16 * MIB;

/// What goes onto the disk.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// systemd-boot.
    pub loader: &'a [u8],
    /// The UKI of the first slot.
    pub uki: &'a [u8],
    /// Bytes of the boot partition.
    pub esp_bytes: u64,
    /// Bytes of the data partition.
    pub data_bytes: u64,
    /// What lies on it from the start.
    pub data_files: &'a [DataFile],
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Its name.
    pub name: String,
    /// Where it begins, bytes.
    pub offset: u64,
    /// Its length, bytes.
    pub bytes: u64,
}

/// Writes the disk to a new file.
///
/// # Errors
/// [`ImageError::Disk`] when it does not fit, [`ImageError::File`], [`ImageError::Program`] of mke2fs.
pub fn write(path: &Path, contents: &Contents) -> Result<(), ImageError> {
    check(contents)?;
    let total = MIB + contents.esp_bytes + contents.data_bytes + MIB;
    let mut file =
        OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(ImageError::at(path))?;
    file.set_len(total).map_err(ImageError::at(path))?;
    let ids = Ids::of(contents);
    let slices = table(&mut file, contents, &ids)?;
    boot_partition(path, &slices[0], contents, &ids)?;
    data::make(path, &slices[1], &ids.data, contents.data_files)?;
    file.sync_all().map_err(ImageError::at(path))
}

/// The partitions of the disk in `file`.
///
/// # Errors
/// [`ImageError::Disk`] where it has no valid table.
pub fn partitions(file: &File) -> Result<Vec<Slice>, ImageError> {
    let disk = GptConfig::new().writable(false).logical_block_size(LogicalBlockSize::Lb512).open_from_device(file);
    Ok(disk.map_err(bad)?.partitions().values().map(slice).collect())
}

/// Bytes whose value counts although they may be zeros, sorted: both tables of partitions, the boot partition's FATs, in which a zero is a free cluster,
/// and what the data partition's file system has in use, such as its journal.
///
/// # Errors
/// [`ImageError::Disk`] where it is no disk of ours, [`ImageError::File`], [`ImageError::Program`] of dumpe2fs.
pub fn used(image: &Path) -> Result<Vec<Range<u64>>, ImageError> {
    let file = File::open(image).map_err(ImageError::at(image))?;
    let bytes = file.metadata().map_err(ImageError::at(image))?.len();
    let mut used = vec![0..TABLE_BYTES, bytes.saturating_sub(TABLE_BYTES)..bytes];
    for slice in partitions(&file)? {
        match slice.name.as_str() {
            ESP => used.push(tables_of_fat(&file, &slice).map_err(bad)?),
            DATA => used.extend(used_of_ext4(image, &slice)?),
            _ => {}
        }
    }
    used.sort_by_key(|range| range.start);
    Ok(used)
}

/// From the volume's first sector to the end of its last FAT.
fn tables_of_fat(file: &File, esp: &Slice) -> io::Result<Range<u64>> {
    let mut sector = [0; SECTOR as usize];
    file.read_exact_at(&mut sector, esp.offset)?;
    let number =
        |at: usize, bytes: usize| sector[at..at + bytes].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
    let (bytes, reserved, tables, length) = (number(11, 2), number(14, 2), number(16, 1), number(36, 4));
    Ok(esp.offset..esp.offset + ((reserved + tables * length) * bytes).min(esp.bytes))
}

/// All blocks but those that dumpe2fs says are free.
fn used_of_ext4(image: &Path, data: &Slice) -> Result<Vec<Range<u64>>, ImageError> {
    let place = format!("{}?offset={}", image.display(), data.offset);
    let environment = [("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")];
    let text = run_at("dumpe2fs", &[&place], None, &environment)?;
    let mut free = free_blocks(&text).ok_or_else(|| bad("dumpe2fs prints what cannot be read"))?;
    free.sort_by_key(|blocks| blocks.start);
    let (mut used, mut at) = (Vec::new(), 0);
    let end = data.bytes / EXT4_BLOCK;
    for blocks in free.into_iter().chain(iter::once(end..end)) {
        if blocks.start > at {
            used.push(data.offset + at * EXT4_BLOCK..data.offset + blocks.start * EXT4_BLOCK);
        }
        at = at.max(blocks.end);
    }
    Ok(used)
}

/// The groups' lines, which are indented: `  Free blocks: 1549-8191, 9000`.
fn free_blocks(text: &str) -> Option<Vec<Range<u64>>> {
    let groups = text.lines().filter_map(|line| line.strip_prefix("  Free blocks: "));
    let ranges = groups.flat_map(|line| line.split(',')).map(str::trim).filter(|range| !range.is_empty());
    let read = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?)
    };
    ranges.map(read).collect()
}

/// A file of the boot partition; `None` where there is none.
///
/// # Errors
/// [`ImageError::Disk`] where the partition is no FAT volume.
pub fn read_boot_file(file: &File, esp: &Slice, path: &str) -> Result<Option<Vec<u8>>, ImageError> {
    let volume = volume(file, esp).map_err(bad)?;
    let mut contents = Vec::new();
    let root = volume.root_dir();
    match root.open_file(path) {
        Ok(mut file) => file.read_to_end(&mut contents).map_err(bad)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(bad(error)),
    };
    Ok(Some(contents))
}

/// The names below a folder of the boot partition, sorted.
///
/// # Errors
/// [`ImageError::Disk`] where the partition is no FAT volume, or has no such folder.
pub fn list_boot_files(file: &File, esp: &Slice, folder: &str) -> Result<Vec<String>, ImageError> {
    let volume = volume(file, esp).map_err(bad)?;
    let folder = volume.root_dir().open_dir(folder).map_err(bad)?;
    let mut names = Vec::new();
    for entry in folder.iter() {
        let entry = entry.map_err(bad)?;
        if entry.is_file() {
            names.push(entry.file_name());
        }
    }
    names.sort();
    Ok(names)
}

fn check(contents: &Contents) -> Result<(), ImageError> {
    let bad = |what: String| Err(ImageError::Disk(what));
    if !contents.esp_bytes.is_multiple_of(MIB) || !contents.data_bytes.is_multiple_of(MIB) {
        return bad("partitions are whole MiB".to_owned());
    }
    if contents.esp_bytes < ESP_BYTES_MIN || contents.data_bytes < DATA_BYTES_MIN {
        return bad("the boot partition has 72 MiB at least, the data partition 16 MiB".to_owned());
    }
    // Two slots, one that is being written, and room for the file system itself.
    let needed = contents.uki.len() as u64 * 3 + contents.loader.len() as u64 * 2 + 4 * MIB;
    if needed > contents.esp_bytes {
        let (needed, has) = (needed.div_ceil(MIB), contents.esp_bytes / MIB);
        return bad(format!("three UKIs need {needed} MiB, image.esp is {has} MiB"));
    }
    let (needed, has) = (data::room_for(contents.data_files), contents.data_bytes);
    if needed > has {
        return bad(format!("what comes along needs {} MiB, the data partition has {}", needed / MIB, has / MIB));
    }
    Ok(())
}

/// What names the disk and its volumes: the same contents have the same names.
struct Ids {
    disk: Uuid,
    esp: Uuid,
    data: Uuid,
}

impl Ids {
    fn of(contents: &Contents) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&contents.esp_bytes.to_le_bytes()).update(&contents.data_bytes.to_le_bytes());
        hasher.update(&(contents.loader.len() as u64).to_le_bytes()).update(contents.loader).update(contents.uki);
        for file in contents.data_files {
            file.tell(&mut hasher);
        }
        let mut bytes = [0; 48];
        hasher.finalize_xof().fill(&mut bytes);
        let id = |at: usize| {
            let bytes = bytes[at..at + 16].try_into().expect("16 of 48 bytes");
            uuid::Builder::from_custom_bytes(bytes).into_uuid()
        };
        Self { disk: id(0), esp: id(16), data: id(32) }
    }
}

fn table(file: &mut File, contents: &Contents, ids: &Ids) -> Result<[Slice; 2], ImageError> {
    let sectors = file.metadata().map_err(bad)?.len() / SECTOR;
    let protective = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(protective).overwrite_lba0(file).map_err(bad)?;
    let config = GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb512);
    let mut disk = config.create_from_device(&mut *file, Some(ids.disk)).map_err(bad)?;
    let partition = |name: &str, kind, id, offset: u64, bytes: u64| Partition {
        part_type_guid: kind,
        part_guid: id,
        first_lba: offset / SECTOR,
        last_lba: (offset + bytes) / SECTOR - 1,
        flags: 0,
        name: name.to_owned(),
    };
    let esp = partition(ESP, partition_types::EFI, ids.esp, MIB, contents.esp_bytes);
    let data = partition(DATA, partition_types::LINUX_FS, ids.data, MIB + contents.esp_bytes, contents.data_bytes);
    let slices = [slice(&esp), slice(&data)];
    disk.update_partitions(BTreeMap::from([(1, esp), (2, data)])).map_err(bad)?;
    disk.write().map_err(bad)?;
    Ok(slices)
}

fn slice(partition: &Partition) -> Slice {
    Slice {
        name: partition.name.clone(),
        offset: partition.first_lba * SECTOR,
        bytes: (partition.last_lba + 1).saturating_sub(partition.first_lba) * SECTOR,
    }
}

type Volume<'a> = FileSystem<BufStream<StreamSlice<&'a File>>>;

fn stream<'a>(file: &'a File, slice: &Slice) -> io::Result<BufStream<StreamSlice<&'a File>>> {
    Ok(BufStream::new(StreamSlice::new(file, slice.offset, slice.offset + slice.bytes)?))
}

fn volume<'a>(file: &'a File, esp: &Slice) -> io::Result<Volume<'a>> {
    FileSystem::new(stream(file, esp)?, FsOptions::new())
}

/// By mtools: fatfs 0.3, which reads volumes well, makes folders whose `.` and `..` other programs hold to be damaged.
fn boot_partition(image: &Path, esp: &Slice, contents: &Contents, ids: &Ids) -> Result<(), ImageError> {
    let [a, b, c, d, ..] = *ids.esp.as_bytes();
    let serial = format!("{:08x}", u32::from_le_bytes([a, b, c, d]));
    let (sectors, hidden) = ((esp.bytes / SECTOR).to_string(), (esp.offset / SECTOR).to_string());
    let cluster = (CLUSTER_BYTES / SECTOR).to_string();
    let volume = format!("{}@@{}", image.display(), esp.offset);
    let geometry = ["-h", "64", "-s", "32", "-T", &sectors, "-H", &hidden, "-c", &cluster];
    mtools("mformat", &[&["-i", &volume, "-F", "-v", "EMBER", "-N", &serial], geometry.as_slice(), &["::"]].concat())?;
    mtools("mmd", &["-i", &volume, "::EFI", "::EFI/BOOT", "::EFI/systemd", "::EFI/Linux", "::loader"])?;
    let fresh = tempfile::tempdir().map_err(bad)?;
    let [loader, uki, conf] = ["loader", "uki", "conf"].map(|name| fresh.path().join(name));
    let texts = [(&loader, contents.loader), (&uki, contents.uki), (&conf, LOADER_CONF_TEXT.as_bytes())];
    for (path, bytes) in texts {
        fs::write(path, bytes).map_err(ImageError::at(path))?;
    }
    for (from, to) in [(&loader, LOADERS[0]), (&loader, LOADERS[1]), (&uki, FIRST_SLOT), (&conf, LOADER_CONF)] {
        mtools("mcopy", &["-i", &volume, &from.to_string_lossy(), &format!("::{to}")])?;
    }
    Ok(())
}

fn mtools(program: &'static str, arguments: &[&str]) -> Result<(), ImageError> {
    run_at(program, arguments, None, &[("SOURCE_DATE_EPOCH", FAT_EPOCH)]).map(drop)
}

fn bad(error: impl ToString) -> ImageError {
    ImageError::Disk(error.to_string())
}

/// Copies a partition out, for a program that reads whole files only.
///
/// # Errors
/// [`ImageError::Program`] of dd.
pub fn copy_out(image: &Path, slice: &Slice, to: &Path) -> Result<(), ImageError> {
    let [from, count] = [slice.offset / MIB, slice.bytes / MIB];
    let arguments = [
        format!("if={}", image.display()),
        format!("of={}", to.display()),
        "bs=1M".to_owned(),
        format!("skip={from}"),
        format!("count={count}"),
        "conv=sparse".to_owned(),
        "status=none".to_owned(),
    ];
    run("dd", &arguments.each_ref().map(String::as_str), None).map(drop)
}
