//! Boot entries in the firmware: one for each trial of a slot, and one more, by turns for the two copies of the boot loader.
//!
//! ```text
//!  firmware ─▶ entry 1: EFI/BOOT/BOOTX64.EFI ─▶ slot b cannot be loaded: the boot loader counts it, and returns
//!           ─▶ entry 2: EFI/systemd/…         ─▶ slot b again: counted, and back
//!           ─▶ entry 3                        ─▶ slot b again: its trials are used up, and back
//!           ─▶ entry 4                        ─▶ slot a, in the same power cycle
//! ```
//! With fewer, a slot that cannot be loaded at all ends in the firmware's own menu, where nobody stands. Written only
//! where they are missing: what an operator put before them stays before them.

use crate::{console::say, disks, efi, error::InitError};
use firmware_gpt::{self as gpt, Partition};
use firmware_slots::TRIES;
use std::{collections::BTreeMap, path::Path};

/// What the firmware's menu calls them, and what they start.
const ENTRIES: [(&str, &str); TRIES as usize + 1] =
    [("Ember", LOADERS[0]), ("Ember (2)", LOADERS[1]), ("Ember (3)", LOADERS[0]), ("Ember (4)", LOADERS[1])];
const LOADERS: [&str; 2] = [r"\EFI\BOOT\BOOTX64.EFI", r"\EFI\systemd\systemd-bootx64.efi"];
const ACTIVE: u32 = 1;
/// Numbers that firmware does not give by itself.
const FIRST_NUMBER: u16 = 0xe0;
/// Entries that are looked at.
const ENTRIES_MAX: usize = 512;

/// The firmware's entries as they are, or are to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entries {
    options: BTreeMap<u16, Vec<u8>>,
    order: Vec<u16>,
}

/// Sees to it that all entries are there. What fails is told: the machine has started, after all.
pub(crate) fn ensure(esp: &Path) {
    match ensure_in(Path::new(efi::VARIABLES), esp) {
        Ok(0) => {}
        Ok(_) => say("the firmware has entries for Ember now"),
        Err(error) => say(format_args!("the firmware's boot entries stay as they are: {error}")),
    }
}

/// How many variables were written.
fn ensure_in(variables: &Path, esp: &Path) -> Result<usize, InitError> {
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
    let found = read(variables).map_err(there())?;
    let changed = found.with(&ENTRIES.map(|(name, path)| option(&partition, name, path)));
    write(variables, &found, &changed).map_err(there())
}

fn read(variables: &Path) -> std::io::Result<Entries> {
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

/// Options before the order that names them.
fn write(variables: &Path, found: &Entries, wanted: &Entries) -> std::io::Result<usize> {
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
    Ok(written)
}

impl Entries {
    /// These with `wanted` among them. Where one had to be added, all of `wanted` come first.
    fn with(&self, wanted: &[Vec<u8>]) -> Self {
        let mut entries = self.clone();
        let numbers: Vec<u16> = wanted.iter().map(|option| entries.number_of(option)).collect();
        if !numbers.iter().all(|number| self.order.contains(number)) {
            let others = self.order.iter().filter(|number| !numbers.contains(number));
            entries.order = numbers.iter().chain(others).copied().collect();
        }
        entries
    }

    /// The number of `option`, which is added where it is missing.
    fn number_of(&mut self, option: &[u8]) -> u16 {
        if let Some((number, _)) = self.options.iter().find(|(_, known)| known.as_slice() == option) {
            return *number;
        }
        let mut free = (FIRST_NUMBER..=u16::MAX).filter(|number| !self.options.contains_key(number));
        let number = free.next().unwrap_or(u16::MAX);
        self.options.insert(number, option.to_vec());
        number
    }
}

/// `EFI_LOAD_OPTION` (UEFI 2.10, 3.1.3): attributes, the length of the device path, the name, and the device path.
fn option(partition: &Partition, name: &str, file: &str) -> Vec<u8> {
    let path = [hard_drive(partition), node(4, 4, &efi::utf16(file)), node(0x7f, 0xff, &[])].concat();
    let length = u16::try_from(path.len()).expect("the path of a boot loader is short");
    [&ACTIVE.to_le_bytes(), length.to_le_bytes().as_slice(), &efi::utf16(name), &path].concat()
}

/// A partition as a part of a device path (10.3.5.1): by GPT, by its own id.
fn hard_drive(partition: &Partition) -> Vec<u8> {
    let Partition { number, id, first, last, .. } = partition;
    let sectors = last + 1 - first;
    let place = [&number.to_le_bytes(), first.to_le_bytes().as_slice(), &sectors.to_le_bytes(), id, &[2, 2]].concat();
    node(4, 1, &place)
}

fn node(kind: u8, of_kind: u8, contents: &[u8]) -> Vec<u8> {
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

    #[test]
    fn what_is_missing_is_added_before_the_others_and_only_once() {
        let firmware =
            Entries { options: BTreeMap::from([(0, b"menu".to_vec()), (0xe0, b"x".to_vec())]), order: vec![0] };
        let first = firmware.with(&wanted());
        assert_eq!(first.order, [0xe1, 0xe2, 0xe3, 0xe4, 0]);
        assert_eq!(first.with(&wanted()), first);
        // Somebody put another system first.
        let moved = Entries { order: vec![0, 0xe1, 0xe2, 0xe3, 0xe4], ..first.clone() };
        assert_eq!(moved.with(&wanted()), moved);
        // Firmware forgot the order.
        let lost = Entries { order: vec![0, 0xe1, 0xe3], ..first.clone() };
        assert_eq!(lost.with(&wanted()).order, [0xe1, 0xe2, 0xe3, 0xe4, 0]);
    }

    #[test]
    fn what_was_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        efi::set_global(folder.path(), "Boot0000", b"menu").unwrap();
        efi::set_global(folder.path(), "BootOrder", &[0, 0]).unwrap();
        efi::set_global(folder.path(), "BootOptionSupport", &[3, 0, 0, 0]).unwrap();
        let found = read(folder.path()).unwrap();
        assert_eq!((found.options.len(), found.order.as_slice()), (1, [0].as_slice()));
        let changed = found.with(&wanted());
        assert_eq!(write(folder.path(), &found, &changed).unwrap(), 5);
        assert_eq!(read(folder.path()).unwrap(), changed);
        assert_eq!(write(folder.path(), &changed, &changed).unwrap(), 0);
    }
}
