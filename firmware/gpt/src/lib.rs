//! The partition table of an image on a larger disk: its second copy belongs at the disk's end, and its last partition may
//! reach up to there.
//!
//! ```text
//!  sector  0      protective MBR: the disk's size
//!          1      GPT header: where the other one is, the last sector that partitions may use, CRC-32 of itself
//!          2..34  entries, 128 bytes each, of which the header has the CRC-32
//!          …
//!          n-33   entries again
//!          n-1    GPT header again, which names its own place first
//! ```
//! Whoever changes it writes the second copy before the first, so that a cut leaves one of them whole: while the first is
//! being written the second holds, by [`restore`]. Pure: bytes in, bytes out. UEFI 2.10, chapter 5.3.

/// Bytes of a sector; images have no other.
pub const SECTOR: u64 = 512;

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

/// Bytes at a disk's begin that hold the table's first copy, with what goes before it.
pub const HEAD_BYTES: usize = (ENTRIES_LBA + ENTRIES_SECTORS) as usize * HEADER;
/// Bytes at a disk's end that hold the table's second copy.
pub const TAIL_BYTES: usize = (ENTRIES_SECTORS as usize + 1) * HEADER;
/// Partitions begin and end at multiples of this, 1 MiB.
const ALIGNED_SECTORS: u64 = 2048;
/// The version of a UUID that was drawn; what an image brings has another.
const RANDOM: u8 = 4;

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// Its own id, as it is written on disks.
    pub id: [u8; 16],
    /// Its first sector.
    pub first: u64,
    /// Its last sector.
    pub last: u64,
}

/// The table's second copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Where it goes, bytes.
    pub offset: u64,
    /// Entries and header.
    pub bytes: Vec<u8>,
}

/// Whether `head`, an image's first bytes, has a table.
pub fn is_there(head: &[u8]) -> bool {
    head.get(HEADER..HEADER + SIGNATURE.len()) == Some(SIGNATURE)
}

/// Makes the table in `head` that of a disk of `bytes`; its second copy.
///
/// # Errors
/// What is wrong with the table.
pub fn fit(head: &mut [u8], bytes: u64) -> Result<Backup, String> {
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
        seal(header);
    }
    let table = ENTRIES_LBA as usize * 512;
    let mut bytes = head[table..table + ENTRIES_SECTORS as usize * 512].to_vec();
    bytes.extend_from_slice(&copy);
    Ok(Backup { offset: first_of_backup * SECTOR, bytes })
}

/// Makes the last partition in `head` reach the end of a disk of `bytes`: what it is then, and the table's second copy.
/// `None` where it does already. The first time the disk and its partitions get ids of `new_id`, of version 4 (RFC 9562): what
/// an image has, all disks have that it is written to.
///
/// # Errors
/// What is wrong with the table.
pub fn grow(
    head: &mut [u8],
    bytes: u64,
    mut new_id: impl FnMut() -> [u8; 16],
) -> Result<Option<(Partition, Backup)>, String> {
    let all = partitions(head)?;
    let Some(partition) = all.iter().max_by_key(|partition| partition.last).cloned() else { return Ok(None) };
    let first_of_backup = (bytes / SECTOR).saturating_sub(1 + ENTRIES_SECTORS);
    let end = first_of_backup / ALIGNED_SECTORS * ALIGNED_SECTORS;
    if end <= partition.last + 1 {
        return Ok(None);
    }
    let table = ENTRIES_LBA as usize * HEADER;
    let last = end - 1;
    head[table + (partition.number as usize - 1) * ENTRY_BYTES + 40..][..8].copy_from_slice(&last.to_le_bytes());
    if all.iter().any(|partition| partition.id[7] >> 4 != RANDOM) {
        for Partition { number, .. } in &all {
            head[table + (*number as usize - 1) * ENTRY_BYTES + 16..][..16].copy_from_slice(&new_id());
        }
        head[HEADER + 56..][..16].copy_from_slice(&new_id());
    }
    let length = u32_at(&head[HEADER..], 80) as usize * ENTRY_BYTES;
    let sum = crc32(&head[table..table + length]);
    let header = &mut head[HEADER..HEADER * 2];
    header[88..92].copy_from_slice(&sum.to_le_bytes());
    seal(header);
    Ok(Some((Partition { last, ..partition }, fit(head, bytes)?)))
}

/// The head of a disk of `bytes` again, made of its last bytes: for a disk whose first copy is damaged.
///
/// # Errors
/// What is wrong with the second copy.
pub fn restore(tail: &[u8], bytes: u64) -> Result<Vec<u8>, String> {
    let last = (bytes / SECTOR).checked_sub(1).ok_or("it has no sector")?;
    let split = tail.split_at_checked(TAIL_BYTES - HEADER).filter(|(_, header)| header.len() == HEADER);
    let (entries, header) = split.ok_or("its end was not read whole")?;
    if !header.starts_with(SIGNATURE) || !is_sealed(header) || u64_at(header, 24) != last {
        return Err("its partition table has no second copy at the disk's end".to_owned());
    }
    let mut head = [protective_mbr(last).as_slice(), header, entries].concat();
    let header = &mut head[HEADER..HEADER * 2];
    for (at, value) in [(24, 1), (32, last), (72, ENTRIES_LBA)] {
        header[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
    }
    seal(header);
    check(&head)?;
    Ok(head)
}

/// The first sector of a disk whose last one is `last`: to who knows no GPT, one partition of an unknown kind.
fn protective_mbr(last: u64) -> [u8; HEADER] {
    let mut mbr = [0; HEADER];
    mbr[446..458].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    mbr[458..462].copy_from_slice(&u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr
}

/// A partition's id as disks have it, of how people write it: `c12a7328-f81f-11d2-ba4b-00a0c93ec93b`.
pub fn id(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.split('-').collect();
    let number = u128::from_str_radix(&digits, 16).ok().filter(|_| text.len() == 36 && digits.len() == 32)?;
    let mut id = number.to_be_bytes();
    for part in [0..4, 4..6, 6..8] {
        id[part].reverse();
    }
    Some(id)
}

/// The partitions in `head`.
///
/// # Errors
/// What is wrong with the table.
pub fn partitions(head: &[u8]) -> Result<Vec<Partition>, String> {
    check(head)?;
    let count = u32_at(&head[HEADER..], 80) as usize;
    let entries = head[ENTRIES_LBA as usize * HEADER..].chunks_exact(ENTRY_BYTES).take(count);
    let read = |(number, entry): (u32, &[u8])| {
        let is_used = entry[..16].iter().any(|byte| *byte != 0);
        let letters = entry[56..].chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        is_used.then(|| Partition {
            number,
            name: char::decode_utf16(letters.take_while(|letter| *letter != 0)).map(|c| c.unwrap_or('?')).collect(),
            id: *entry[16..].first_chunk().expect("an entry has 128 bytes"),
            first: u64_at(entry, 32),
            last: u64_at(entry, 40),
        })
    };
    Ok((1..).zip(entries).filter_map(read).collect())
}

/// Where the boot partition is, in bytes: from, to.
///
/// # Errors
/// What is wrong with the table.
pub fn boot_partition(head: &[u8]) -> Result<(u64, u64), String> {
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

/// Writes a header's checksum of itself.
fn seal(header: &mut [u8]) {
    header[16..20].fill(0);
    let sum = crc32(&header[..HEADER_BYTES]);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
}

/// Whether a header's checksum of itself holds.
fn is_sealed(header: &[u8]) -> bool {
    let mut summed = header[..HEADER_BYTES].to_vec();
    summed[16..20].fill(0);
    crc32(&summed) == u32_at(header, 16)
}

fn check(head: &[u8]) -> Result<(), String> {
    let table = ENTRIES_LBA as usize * 512;
    if !is_there(head) || head.len() < table + ENTRIES_SECTORS as usize * 512 {
        return Err("it has no GUID partition table".to_owned());
    }
    let header = &head[HEADER..HEADER * 2];
    let usual = u32_at(header, 12) as usize == HEADER_BYTES
        && u64_at(header, 72) == ENTRIES_LBA
        && u32_at(header, 84) as usize == ENTRY_BYTES
        && u32_at(header, 80) as usize * ENTRY_BYTES <= ENTRIES_SECTORS as usize * 512;
    if !usual {
        return Err("its partition table has an unusual form".to_owned());
    }
    let entries = &head[table..table + u32_at(header, 80) as usize * ENTRY_BYTES];
    if !is_sealed(header) || crc32(entries) != u32_at(header, 88) {
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
    use ::gpt::{
        GptConfig, disk::LogicalBlockSize, mbr::ProtectiveMBR, partition::Partition as Entry, partition_types,
    };
    use std::{collections::BTreeMap, io::Cursor};

    const BYTES: usize = 8 << 20;

    /// An image with one boot partition, by another implementation.
    fn disk() -> Vec<u8> {
        let mut file = Cursor::new(vec![0; BYTES]);
        ProtectiveMBR::with_lb_size(BYTES as u32 / 512 - 1).overwrite_lba0(&mut file).unwrap();
        let config = GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb512);
        let mut disk = config.create_from_device(&mut file, None).unwrap();
        let partition = Entry {
            part_type_guid: partition_types::EFI,
            part_guid: uuid::Builder::from_custom_bytes([7; 16]).into_uuid(),
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
    fn the_last_partition_grows_to_the_disk_s_end_and_another_implementation_agrees() {
        let small = disk();
        let same = grow(&mut small.clone()[..HEAD_BYTES], 8192 * 512 + (1 << 20), || [0; 16]);
        assert_eq!(same, Ok(None), "there is no room");
        let mut larger = small.clone();
        larger.resize(BYTES * 3 + 512, 0);
        let bytes = larger.len() as u64;
        let drawn = |number: u8| std::array::from_fn(|at| if at == 7 { 0x40 | number } else { number });
        let mut ids = (1..).map(drawn);
        let (partition, backup) = grow(&mut larger[..HEAD_BYTES], bytes, || ids.next().unwrap()).unwrap().unwrap();
        assert_eq!((partition.number, partition.first, partition.name.as_str()), (1, 2048, "esp"));
        larger[backup.offset as usize..].copy_from_slice(&backup.bytes);
        let again = grow(&mut larger.clone()[..HEAD_BYTES], bytes, || [0; 16]).unwrap();
        // Enlarged later it stays the disk that it is.
        let mut head = larger[..HEAD_BYTES].to_vec();
        let (grown, _) = grow(&mut head, bytes * 2, || panic!("it has its ids")).unwrap().unwrap();
        assert_eq!((grown.id, partitions(&head).unwrap()[0].id), (drawn(1), drawn(1)));
        let read = GptConfig::new().open_from_device(Cursor::new(larger)).unwrap();
        assert_eq!(read.partitions()[&1].last_lba, partition.last);
        assert_eq!([read.partitions()[&1].part_guid, *read.guid()].map(|id| id.to_bytes_le()), [drawn(1), drawn(2)]);
        assert_eq!((partition.last + 1) % 2048, 0);
        assert!(
            partition.last * 512 > bytes - (2 << 20) && partition.last < read.header().last_usable,
            "{partition:?}"
        );
        assert_eq!(again, None);
    }

    #[test]
    fn the_first_copy_is_made_of_the_second_again() {
        let disk = disk();
        let (head, tail) = (&disk[..HEAD_BYTES], &disk[BYTES - TAIL_BYTES..]);
        assert!(restore(tail, BYTES as u64).as_deref() == Ok(head));
        let none = Err("its partition table has no second copy at the disk's end".to_owned());
        assert_eq!(restore(&[0; TAIL_BYTES], BYTES as u64), none);
        assert_eq!(restore(tail, BYTES as u64 * 2), none, "it was at another disk's end");
        assert_eq!(restore(&tail[1..], BYTES as u64), Err("its end was not read whole".to_owned()));
        for at in [0, TAIL_BYTES - HEADER + 8, TAIL_BYTES - HEADER + 88] {
            let mut bad = tail.to_vec();
            bad[at] ^= 1;
            assert!(restore(&bad, BYTES as u64).is_err(), "byte {at}");
        }
    }

    /// Sectors are written whole or not at all, in any order, but for what was flushed before.
    #[test]
    fn a_cut_while_it_grows_leaves_one_copy_whole() {
        let small = disk();
        let bytes = BYTES as u64 * 3;
        let mut grown = small[..HEAD_BYTES].to_vec();
        let (partition, backup) = grow(&mut grown, bytes, || [1; 16]).unwrap().unwrap();
        for written in (0..1_u64 << 8).map(|bits| bits | bits << 26) {
            let mut head = small[..HEAD_BYTES].to_vec();
            for sector in (0..HEAD_BYTES / HEADER).filter(|sector| written >> sector & 1 == 1) {
                let range = sector * HEADER..(sector + 1) * HEADER;
                head[range.clone()].copy_from_slice(&grown[range]);
            }
            let found = partitions(&head).or_else(|_| partitions(&restore(&backup.bytes, bytes)?)).unwrap();
            assert!([8191, partition.last].contains(&found[0].last), "{written:b}");
        }
    }

    #[test]
    fn ids_are_read_as_people_write_them() {
        assert_eq!(id("C12A7328-F81F-11D2-BA4B-00A0C93EC93B"), Some(EFI_SYSTEM));
        for wrong in ["", "c12a7328", "c12a7328-f81f-11d2-ba4b-00a0c93ec93x", "-----c12a7328f81f11d2ba4b00a0c93ec93"] {
            assert_eq!(id(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn partitions_are_listed_with_what_others_know_them_by() {
        let disk = disk();
        let partitions = partitions(&disk[..HEAD_BYTES]).unwrap();
        let [esp] = partitions.as_slice() else { panic!("{partitions:?}") };
        assert_eq!((esp.number, esp.name.as_str(), esp.first, esp.last), (1, "esp", 2048, 8191));
        let read = GptConfig::new().open_from_device(Cursor::new(disk)).unwrap();
        assert_eq!(esp.id, read.partitions()[&1].part_guid.to_bytes_le());
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
