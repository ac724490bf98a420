//! The partition table of an image on a larger disk: its second copy belongs at the disk's end.
//!
//! ```text
//!  sector  0      protective MBR: the disk's size
//!          1      GPT header: where the other one is, the last sector that partitions may use, CRC-32 of itself
//!          2..34  entries, 128 bytes each, of which the header has the CRC-32
//!          …
//!          n-33   entries again
//!          n-1    GPT header again, which names its own place first
//! ```
//! Pure: bytes in, bytes out. UEFI 2.10, chapter 5.3.

/// Bytes of a sector; images have no other.
pub(crate) const SECTOR: u64 = 512;

const SIGNATURE: &[u8] = b"EFI PART";
const HEADER: usize = 512;
const ENTRIES_LBA: u64 = 2;
/// Sectors that the table's copies take at the disk's end.
const ENTRIES_SECTORS: u64 = 32;
const ENTRY_BYTES: usize = 128;
const HEADER_BYTES: usize = 92;
/// C12A7328-F81F-11D2-BA4B-00A0C93EC93B as it is written on disks.
const EFI_SYSTEM: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];

/// The table's second copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backup {
    /// Where it goes, bytes.
    pub(crate) offset: u64,
    /// Entries and header.
    pub(crate) bytes: Vec<u8>,
}

/// Whether `head`, an image's first bytes, has a table.
pub(crate) fn is_there(head: &[u8]) -> bool {
    head.get(HEADER..HEADER + SIGNATURE.len()) == Some(SIGNATURE)
}

/// Makes the table in `head` that of a disk of `bytes`; its second copy. `Err` says what is wrong with it.
pub(crate) fn fit(head: &mut [u8], bytes: u64) -> Result<Backup, String> {
    check(head)?;
    let last = bytes / SECTOR - 1;
    let first_of_backup = last - ENTRIES_SECTORS;
    let used_to = entries(head).iter().map(|entry| u64_at(entry, 40)).max().unwrap_or(0);
    if used_to >= first_of_backup {
        return Err("its partitions reach to where the table's second copy belongs".to_owned());
    }
    let protective = u32::try_from(last).unwrap_or(u32::MAX);
    head[446 + 12..][..4].copy_from_slice(&protective.to_le_bytes());
    let mut copy = head[HEADER..HEADER * 2].to_vec();
    for (header, own, other, entries) in
        [(&mut head[HEADER..HEADER * 2], 1, last, ENTRIES_LBA), (copy.as_mut_slice(), last, 1, first_of_backup)]
    {
        for (at, value) in [(24, own), (32, other), (48, first_of_backup - 1), (72, entries)] {
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        header[16..20].fill(0);
        let sum = crc32(&header[..HEADER_BYTES]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
    }
    let table = ENTRIES_LBA as usize * 512;
    let mut bytes = head[table..table + ENTRIES_SECTORS as usize * 512].to_vec();
    bytes.extend_from_slice(&copy);
    Ok(Backup { offset: first_of_backup * SECTOR, bytes })
}

/// Where the boot partition is, in bytes: from, to.
pub(crate) fn boot_partition(head: &[u8]) -> Result<(u64, u64), String> {
    check(head)?;
    let found = entries(head).into_iter().find(|entry| entry[..16] == EFI_SYSTEM);
    let entry = found.ok_or("it has no EFI system partition")?;
    let [first, last] = [u64_at(entry, 32), u64_at(entry, 40)];
    let bytes = |sector: u64| sector.checked_mul(SECTOR).ok_or("its EFI system partition lies beyond all disks");
    if first < ENTRIES_LBA + ENTRIES_SECTORS || last < first {
        return Err("its EFI system partition has no place".to_owned());
    }
    Ok((bytes(first)?, bytes(last.saturating_add(1))?))
}

fn check(head: &[u8]) -> Result<(), String> {
    let table = ENTRIES_LBA as usize * 512;
    if !is_there(head) || head.len() < table + ENTRIES_SECTORS as usize * 512 {
        return Err("it has no GUID partition table".to_owned());
    }
    let header = &head[HEADER..HEADER * 2];
    let mut summed = header[..HEADER_BYTES].to_vec();
    summed[16..20].fill(0);
    let usual = u32_at(header, 12) as usize == HEADER_BYTES
        && u64_at(header, 72) == ENTRIES_LBA
        && u32_at(header, 84) as usize == ENTRY_BYTES
        && u32_at(header, 80) as usize * ENTRY_BYTES <= ENTRIES_SECTORS as usize * 512;
    if !usual {
        return Err("its partition table has an unusual form".to_owned());
    }
    let entries = &head[table..table + u32_at(header, 80) as usize * ENTRY_BYTES];
    if crc32(&summed) != u32_at(header, 16) || crc32(entries) != u32_at(header, 88) {
        return Err("its partition table is damaged".to_owned());
    }
    Ok(())
}

fn entries(head: &[u8]) -> Vec<&[u8]> {
    let count = u32_at(&head[HEADER..], 80) as usize;
    let table = &head[ENTRIES_LBA as usize * 512..];
    let is_used = |entry: &&[u8]| entry[..16].iter().any(|byte| *byte != 0);
    table.chunks_exact(ENTRY_BYTES).take(count).filter(is_used).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("the header was checked to be whole"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("the header was checked to be whole"))
}

/// IEEE 802.3's.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32, byte: &u8| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 })
    };
    !bytes.iter().fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::gpt::{GptConfig, disk::LogicalBlockSize, mbr::ProtectiveMBR, partition::Partition, partition_types};
    use std::{collections::BTreeMap, io::Cursor};

    const BYTES: usize = 8 << 20;

    /// A disk with one boot partition, by another implementation.
    fn disk() -> Vec<u8> {
        let mut file = Cursor::new(vec![0; BYTES]);
        ProtectiveMBR::with_lb_size(BYTES as u32 / 512 - 1).overwrite_lba0(&mut file).unwrap();
        let config = GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb512);
        let mut disk = config.create_from_device(&mut file, None).unwrap();
        let partition = Partition {
            part_type_guid: partition_types::EFI,
            part_guid: *disk.guid(),
            first_lba: 2048,
            last_lba: 8191,
            flags: 0,
            name: "esp".to_owned(),
        };
        disk.update_partitions(BTreeMap::from([(1, partition)])).unwrap();
        disk.write().unwrap();
        file.into_inner()
    }

    #[test]
    fn on_its_own_disk_nothing_changes() {
        let before = disk();
        let mut after = before.clone();
        let backup = fit(&mut after[..1 << 16], BYTES as u64).unwrap();
        assert!(after == before);
        assert_eq!(backup.bytes, before[backup.offset as usize..]);
    }

    #[test]
    fn on_a_larger_disk_another_implementation_finds_both_copies() {
        let mut larger = disk();
        larger.resize(BYTES * 3 + 512, 0);
        let bytes = larger.len() as u64;
        let backup = fit(&mut larger[..1 << 16], bytes).unwrap();
        larger[backup.offset as usize..].copy_from_slice(&backup.bytes);
        let read = GptConfig::new().open_from_device(Cursor::new(larger)).unwrap();
        let (one, two) = (read.primary_header().unwrap(), read.backup_header().unwrap());
        assert_eq!((one.backup_lba, two.current_lba), (bytes / 512 - 1, bytes / 512 - 1));
        assert_eq!((one.last_usable, two.last_usable), (bytes / 512 - 34, bytes / 512 - 34));
        assert_eq!(read.partitions()[&1].last_lba, 8191);
    }

    #[test]
    fn the_boot_partition_is_found_by_its_type() {
        assert_eq!(boot_partition(&disk()[..1 << 16]), Ok((1 << 20, 4 << 20)));
        let mut other = disk();
        other[1024] ^= 1;
        assert_eq!(boot_partition(&other), Err("its partition table is damaged".to_owned()));
    }

    #[test]
    fn what_is_no_table_or_does_not_fit_is_refused() {
        assert_eq!(fit(&mut [0; 1 << 16], 1 << 30), Err("it has no GUID partition table".to_owned()));
        let mut image = disk();
        let refused = fit(&mut image[..1 << 16], (8192 + 32) * 512).unwrap_err();
        assert_eq!(refused, "its partitions reach to where the table's second copy belongs");
        for at in 512..512 + HEADER_BYTES {
            let mut bad = disk();
            bad[at] ^= 0x40;
            assert!(fit(&mut bad[..1 << 16], BYTES as u64).is_err(), "byte {at}");
        }
    }
}
