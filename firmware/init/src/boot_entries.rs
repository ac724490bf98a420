//! Boot entries in the firmware: one for each trial of a slot, and one more, by turns for the two copies of the boot loader.
//!
//! ```text
//!  firmware ─▶ entry 1: EFI/BOOT/BOOTX64.EFI ─▶ slot b cannot be loaded: the boot loader counts it, and returns
//!           ─▶ entry 2: EFI/systemd/…         ─▶ slot b again: counted, and back
//!           ─▶ entry 3                        ─▶ slot b again: its trials are used up, and back
//!           ─▶ entry 4                        ─▶ slot a, in the same power cycle
//! ```
//! With fewer, a slot that cannot be loaded at all ends in the firmware's own menu, where nobody stands. They come before all
//! others, and those of a disk that was here before go.
//!
//! Firmware puts entries in another form and order, gives them other names, adds its own, and forgets: so an entry counts by
//! what it starts, a file of a partition, whatever it is called, and what is as it should be is not written again. Those of
//! other names that start the same and are not needed are the firmware's own; more than [`STRANGERS_MAX`] of them go. The same is written over the same [`SAME_MAX`] times at most.

use crate::{console::say, disks, efi, error::InitError, machine::write_private};
use firmware_gpt::{self as gpt, Partition};
use firmware_slots::TRIES;
use std::{collections::BTreeMap, fs, io, path::Path};

/// What the firmware's menu calls them, and what they start.
const ENTRIES: [(&str, &str); TRIES as usize + 1] =
    [("Ember", LOADERS[0]), ("Ember (2)", LOADERS[1]), ("Ember (3)", LOADERS[0]), ("Ember (4)", LOADERS[1])];
const LOADERS: [&str; 2] = [r"\EFI\BOOT\BOOTX64.EFI", r"\EFI\systemd\systemd-bootx64.efi"];
const ACTIVE: u32 = 1;
/// Numbers that firmware does not give by itself.
const FIRST_NUMBER: u16 = 0xe0;
/// Entries that start our boot loader, are not needed and do not have our names: as many are left.
const STRANGERS_MAX: usize = 4;
/// Entries that are looked at.
const ENTRIES_MAX: usize = 512;
/// How often a firmware is told what it forgot, or undid, in the same way: its memory wears out.
const SAME_MAX: u32 = 100;
/// On the data partition: how often that was, and what was found.
const MEMORY: &str = "boot-entries";

/// Parts of a device path (UEFI 2.10, 10.3): kind, and kind of that kind.
const HARD_DRIVE: (u8, u8) = (4, 1);
const FILE: (u8, u8) = (4, 4);
const END: (u8, u8) = (0x7f, 0xff);
/// The hard drive's last two: of a GPT, by its id.
const BY_ID: [u8; 2] = [2, 2];

/// The firmware's entries as they are, or are to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entries {
    options: BTreeMap<u16, Vec<u8>>,
    order: Vec<u16>,
}

/// What an entry is, in whichever form firmware keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Start {
    is_active: bool,
    name: String,
    partition: [u8; 16],
    /// In capitals, as FAT compares names.
    file: String,
}

/// Sees to it that all entries are there. What fails is told: the machine has started, after all.
pub(crate) fn ensure(esp: &Path) {
    match ensure_in(Path::new(efi::VARIABLES), esp, &Path::new(disks::DATA).join(MEMORY)) {
        Ok(0) => {}
        Ok(_) => say("the firmware has entries for Ember now"),
        Err(error) => say(format_args!("the firmware's boot entries stay as they are: {error}")),
    }
}

/// How many variables were written.
fn ensure_in(variables: &Path, esp: &Path, memory: &Path) -> Result<usize, InitError> {
    let there = || InitError::io("the firmware's variables");
    if !variables.join(".").exists() || efi::globals(variables, "Boot").map_err(there())?.is_empty() {
        return Ok(0);
    }
    let disk = disks::disk_of(esp)?;
    if disk.is_removable {
        return Ok(0);
    }
    let partition = gpt::partitions(&disk.head()?).map_err(InitError::Disk)?;
    let partition = partition.into_iter().find(|partition| partition.number == disk.number);
    let partition = partition.ok_or_else(|| InitError::Missing("entry of the boot partition".to_owned()))?;
    change(variables, &ENTRIES.map(|(name, path)| option(&partition, name, path)), memory)
}

fn change(variables: &Path, options: &[Vec<u8>], memory: &Path) -> Result<usize, InitError> {
    let there = || InitError::io("the firmware's variables");
    let found = read(variables).map_err(there())?;
    let wanted = found.with(options);
    if wanted == found {
        return Ok(0);
    }
    let times = times(memory, &found);
    if times >= SAME_MAX {
        return Err(InitError::Disk(format!(
            "it forgot or undid the same {times} times; they are not written any more"
        )));
    }
    // Remembered first: a firmware that hangs over it must not be asked for ever.
    let remembered = write_private(memory, &format!("{}\n{found:?}", times + 1));
    remembered.map_err(InitError::io(memory.display().to_string()))?;
    write(variables, &found, &wanted).map_err(there())
}

/// How often what is found now was changed already.
fn times(memory: &Path, found: &Entries) -> u32 {
    let text = fs::read_to_string(memory).unwrap_or_default();
    let before = text.split_once('\n').filter(|(_, before)| *before == format!("{found:?}"));
    before.and_then(|(times, _)| times.parse().ok()).unwrap_or(0)
}

fn read(variables: &Path) -> io::Result<Entries> {
    let mut entries = Entries::default();
    for name in efi::globals(variables, "Boot")?.into_iter().take(ENTRIES_MAX) {
        let number = name.strip_prefix("Boot").filter(|digits| digits.len() == 4);
        let Some(number) = number.and_then(|digits| u16::from_str_radix(digits, 16).ok()) else { continue };
        entries.options.extend(efi::global(variables, &name)?.map(|option| (number, option)));
    }
    let order = efi::global(variables, "BootOrder")?.unwrap_or_default();
    entries.order = order.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    Ok(entries)
}

/// Options before the order that names them, and what nothing names any more goes last.
fn write(variables: &Path, found: &Entries, wanted: &Entries) -> io::Result<usize> {
    let new = wanted.options.iter().filter(|(number, _)| !found.options.contains_key(*number));
    let mut written = 0;
    for (number, option) in new {
        efi::set_global(variables, &format!("Boot{number:04X}"), option)?;
        written += 1;
    }
    if wanted.order != found.order {
        let order: Vec<u8> = wanted.order.iter().flat_map(|number| number.to_le_bytes()).collect();
        efi::set_global(variables, "BootOrder", &order)?;
        written += 1;
    }
    for number in found.options.keys().filter(|number| !wanted.options.contains_key(number)) {
        efi::remove_global(variables, &format!("Boot{number:04X}"))?;
        written += 1;
    }
    Ok(written)
}

impl Entries {
    /// These with `wanted` before all others, and without what is ours and not wanted.
    fn with(&self, wanted: &[Vec<u8>]) -> Self {
        let mut entries = self.clone();
        let numbers = entries.numbers_of(wanted);
        let starts: Vec<Start> = wanted.iter().filter_map(|option| Start::read(option)).collect();
        let mut strangers = 0;
        let mut is_kept = |number: &u16, option: &[u8]| match Start::read(option) {
            _ if numbers.contains(number) => true,
            Some(start) if start.is_ours() => false,
            Some(start) if starts.iter().any(|wanted| wanted.is_same(&start)) => {
                strangers += 1;
                strangers <= STRANGERS_MAX
            }
            Some(_) | None => true,
        };
        entries.options.retain(|number, option| is_kept(number, option));
        let is_there = |number: &&u16| entries.options.contains_key(*number) || !self.options.contains_key(*number);
        let others = self.order.iter().filter(|number| !numbers.contains(*number)).filter(is_there);
        entries.order = numbers.iter().chain(others).copied().collect();
        entries
    }

    /// For each of `wanted` the number of an entry of its own that starts the same: first those that have its name, too, then
    /// those of any name. Where there is none it is added.
    fn numbers_of(&mut self, wanted: &[Vec<u8>]) -> Vec<u16> {
        let starts: Vec<_> = wanted.iter().map(|option| Start::read(option)).collect();
        let mut numbers: Vec<Option<u16>> = vec![None; wanted.len()];
        for is_it in [Start::eq as fn(&Start, &Start) -> bool, Start::is_same] {
            for (at, start) in starts.iter().enumerate() {
                let is_free = |number: &u16| !numbers.contains(&Some(*number));
                let starts_it =
                    |option: &[u8]| start.as_ref().zip(Start::read(option)).is_some_and(|(a, b)| is_it(a, &b));
                let found = self.options.iter().find(|(number, option)| is_free(number) && starts_it(option));
                numbers[at] = numbers[at].or(found.map(|(number, _)| *number));
            }
        }
        let with_options = numbers.into_iter().zip(wanted);
        with_options.map(|(number, option)| number.unwrap_or_else(|| self.add(option))).collect()
    }

    fn add(&mut self, option: &[u8]) -> u16 {
        let mut free = (FIRST_NUMBER..=u16::MAX).filter(|number| !self.options.contains_key(number));
        let number = free.next().unwrap_or(u16::MAX);
        self.options.insert(number, option.to_vec());
        number
    }
}

impl Start {
    /// What an `EFI_LOAD_OPTION` starts; `None` where that is no file of a partition with an id.
    fn read(option: &[u8]) -> Option<Self> {
        let attributes = u32::from_le_bytes(*option.first_chunk()?);
        let length = usize::from(u16::from_le_bytes(*option.get(4..)?.first_chunk()?));
        let rest = option.get(6..)?;
        let letters = rest.chunks_exact(2).position(|letter| letter == [0, 0])?;
        let path = rest.get((letters + 1) * 2..)?.get(..length)?;
        let (mut partition, mut file) = (None, String::new());
        for (kind, contents) in nodes(path) {
            match kind {
                HARD_DRIVE if contents.ends_with(&BY_ID) => partition = contents.get(20..36)?.first_chunk().copied(),
                FILE => file += &efi::text(contents)?.to_ascii_uppercase(),
                _ => {}
            }
        }
        Some(Self { is_active: attributes & ACTIVE != 0, name: efi::text(rest)?, partition: partition?, file })
    }

    /// Whether it starts the same, whatever it is called.
    fn is_same(&self, other: &Self) -> bool {
        (self.is_active, self.partition, &self.file) == (other.is_active, other.partition, &other.file)
    }

    /// Whether we wrote it, for this disk or another.
    fn is_ours(&self) -> bool {
        ENTRIES.iter().any(|(name, file)| self.name == *name && self.file == file.to_ascii_uppercase())
    }
}

/// The parts of a device path, up to its end: their kinds, and what is in them.
fn nodes(mut path: &[u8]) -> impl Iterator<Item = ((u8, u8), &[u8])> {
    std::iter::from_fn(move || {
        let [kind, of_kind, low, high] = *path.first_chunk()?;
        let (node, rest) = path.split_at_checked(usize::from(u16::from_le_bytes([low, high])))?;
        path = rest;
        Some(((kind, of_kind), node.get(4..)?)).filter(|(kind, _)| *kind != END)
    })
}

/// `EFI_LOAD_OPTION` (UEFI 2.10, 3.1.3): attributes, the length of the device path, the name, and the device path.
fn option(partition: &Partition, name: &str, file: &str) -> Vec<u8> {
    let path = [hard_drive(partition), node(FILE, &efi::utf16(file)), node(END, &[])].concat();
    let length = u16::try_from(path.len()).expect("the path of a boot loader is short");
    [&ACTIVE.to_le_bytes(), length.to_le_bytes().as_slice(), &efi::utf16(name), &path].concat()
}

/// A partition as a part of a device path (10.3.5.1): by GPT, by its own id.
fn hard_drive(partition: &Partition) -> Vec<u8> {
    let Partition { number, id, first, last, .. } = partition;
    let sectors = last + 1 - first;
    let place = [&number.to_le_bytes(), first.to_le_bytes().as_slice(), &sectors.to_le_bytes(), id, &BY_ID].concat();
    node(HARD_DRIVE, &place)
}

fn node((kind, of_kind): (u8, u8), contents: &[u8]) -> Vec<u8> {
    let length = u16::try_from(contents.len() + 4).expect("a node is short");
    [&[kind, of_kind], length.to_le_bytes().as_slice(), contents].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn esp() -> Partition {
        Partition { number: 1, name: "esp".to_owned(), id: [7; 16], first: 2048, last: 4095 }
    }

    fn wanted() -> Vec<Vec<u8>> {
        ENTRIES.map(|(name, path)| option(&esp(), name, path)).to_vec()
    }

    #[test]
    fn an_option_is_of_uefi_s_form() {
        let option = option(&esp(), "E", r"\A");
        let expected = [
            &[1, 0, 0, 0, 42 + 10 + 4, 0][..],
            &[b'E', 0, 0, 0],
            &[4, 1, 42, 0, 1, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0],
            &[7; 16],
            &[2, 2],
            &[4, 4, 10, 0, b'\\', 0, b'A', 0, 0, 0],
            &[0x7f, 0xff, 4, 0],
        ];
        assert_eq!(option, expected.concat());
    }

    fn firmware() -> Entries {
        Entries { options: BTreeMap::from([(0, b"menu".to_vec()), (0xe0, b"x".to_vec())]), order: vec![0] }
    }

    #[test]
    fn what_is_missing_is_added_before_the_others_and_only_once() {
        let first = firmware().with(&wanted());
        assert_eq!(first.order, [0xe1, 0xe2, 0xe3, 0xe4, 0]);
        assert_eq!(first.with(&wanted()), first);
        for order in [vec![0, 0xe1, 0xe2, 0xe3, 0xe4], vec![0, 0xe1, 0xe3], vec![0xe2, 0xe1, 0, 0xe4, 0xe3]] {
            let moved = Entries { order, ..first.clone() };
            assert_eq!(moved.with(&wanted()), first);
        }
        // An order may name what there is not, and firmware adds its own behind.
        let order = vec![0xe1, 0xe2, 0xe3, 0xe4, 0, 9];
        let added = Entries { order, ..first.clone() };
        assert_eq!(added.with(&wanted()), added);
    }

    #[test]
    fn an_entry_in_another_form_is_the_same_entry() {
        let first = firmware().with(&wanted());
        let mut other = first.clone();
        // Behind the disk's controller, in capitals, with data of the firmware's own.
        let path = [node((2, 1), &[0; 8]), hard_drive(&esp()), node(FILE, &efi::utf16(r"\EFI\boot\bootx64.efi"))];
        let path = [path.concat(), node(END, &[])].concat();
        let length = u16::try_from(path.len()).unwrap().to_le_bytes();
        let form = [&ACTIVE.to_le_bytes()[..], &length, &efi::utf16("Ember"), &path, b"more"].concat();
        other.options.insert(0xe1, form);
        assert_eq!(other.with(&wanted()), other);
    }

    /// `entry` by another name.
    fn renamed(entry: usize, name: &str) -> Vec<u8> {
        option(&esp(), name, ENTRIES[entry].1)
    }

    #[test]
    fn entries_that_the_firmware_renamed_are_not_added_again() {
        let mut first = firmware().with(&wanted());
        for (entry, number) in (0xe1..=0xe4).enumerate() {
            first.options.insert(number, renamed(entry, "UEFI OS"));
        }
        assert_eq!(first.with(&wanted()), first);
        // One that is still ours is taken before one that is not.
        let mut both = firmware().with(&wanted());
        both.options.insert(1, renamed(0, "UEFI OS"));
        both.order.push(1);
        assert_eq!(both.with(&wanted()), both);
        // Where one of ours is gone, the firmware's own does for it.
        both.options.remove(&0xe1);
        both.order.retain(|number| *number != 0xe1);
        assert_eq!(both.with(&wanted()).order, [1, 0xe2, 0xe3, 0xe4, 0]);
    }

    #[test]
    fn a_firmware_that_adds_the_same_again_and_again_fills_nothing() {
        let mut entries = firmware().with(&wanted());
        for start in 1..=20 {
            entries.options.insert(0x100 + start, renamed(0, "UEFI OS"));
            entries.order.push(0x100 + start);
            entries = entries.with(&wanted());
            assert!(entries.options.len() <= 2 + ENTRIES.len() + STRANGERS_MAX, "{start}");
            assert_eq!(entries.order[..4], [0xe1, 0xe2, 0xe3, 0xe4]);
        }
        assert_eq!(entries.order.len(), entries.options.len() - 1);
        // What starts something else is not touched, however much of it there is.
        let other = Partition { id: [8; 16], ..esp() };
        for number in 0x200..0x220 {
            entries.options.insert(number, option(&other, "UEFI OS", LOADERS[0]));
        }
        assert_eq!(entries.with(&wanted()), entries);
    }

    #[test]
    fn entries_of_another_disk_and_those_that_are_switched_off_are_replaced() {
        let other = Partition { id: [8; 16], ..esp() };
        let mut off = option(&esp(), ENTRIES[3].0, ENTRIES[3].1);
        off[0] = 0;
        let mut before = firmware().with(&ENTRIES.map(|(name, path)| option(&other, name, path)));
        before.options.insert(7, off);
        before.options.insert(8, option(&other, "Debian", r"\EFI\debian\shimx64.efi"));
        before.order.extend([7, 8]);
        let after = before.with(&wanted());
        assert_eq!(after.order, [0xe5, 0xe6, 0xe7, 0xe8, 0, 8]);
        assert_eq!(after.options.keys().copied().collect::<Vec<_>>(), [0, 8, 0xe0, 0xe5, 0xe6, 0xe7, 0xe8]);
    }

    #[test]
    fn what_is_no_load_option_is_none_of_ours() {
        let option = option(&esp(), "Ember", LOADERS[0]);
        assert!(Start::read(&option).is_some_and(|start| start.is_ours()));
        for length in 0..option.len() {
            let _ = Start::read(&option[..length]);
        }
        assert_eq!(Start::read(b"menu"), None);
    }

    #[test]
    fn what_was_written_is_read_again_and_not_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let (variables, memory) = (folder.path().join("variables"), folder.path().join("memory"));
        fs::create_dir(&variables).unwrap();
        let forget = || {
            efi::set_global(&variables, "Boot0000", b"menu").unwrap();
            efi::set_global(&variables, "BootOrder", &[0, 0]).unwrap();
        };
        forget();
        efi::set_global(&variables, "BootOptionSupport", &[3, 0, 0, 0]).unwrap();
        let found = read(&variables).unwrap();
        assert_eq!((found.options.len(), found.order.as_slice()), (1, [0].as_slice()));
        assert_eq!(change(&variables, &wanted(), &memory).unwrap(), 5);
        assert_eq!(read(&variables).unwrap(), found.with(&wanted()));
        assert_eq!(change(&variables, &wanted(), &memory).unwrap(), 0);
        // A stale one goes.
        efi::set_global(&variables, "Boot0001", &option(&Partition { id: [8; 16], ..esp() }, "Ember", LOADERS[0]))
            .unwrap();
        assert_eq!(change(&variables, &wanted(), &memory).unwrap(), 1);
        assert_eq!(read(&variables).unwrap(), found.with(&wanted()));
        // A firmware that forgets the order each time is told it again, but not for ever.
        for _ in 0..SAME_MAX {
            forget();
            assert_eq!(change(&variables, &wanted(), &memory).unwrap(), 1);
        }
        forget();
        assert!(change(&variables, &wanted(), &memory).unwrap_err().to_string().contains("not written any more"));
        assert_eq!(read(&variables).unwrap().order, [0]);
    }
}
