//! Loads the kernel modules that this machine's hardware asks for.
//!
//! Each device names what it is (`modalias` below `/sys/devices`); `modules/alias` tells which module is for that, and
//! `modules/order` what must be loaded before it (both made by the image builder). Loading a bus's driver brings new
//! devices, so it goes on until a pass finds nothing new.

use crate::{console::say, error::InitError};
use nix::kmod::{ModuleInitFlags, finit_module};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::Path,
};

/// What no device asks for: file systems, and what the kernel would have modprobe load.
const ALWAYS: &[&str] = &["crc32c_generic", "ext4", "vfat", "nls_cp437", "nls_ascii", "efivarfs", "sd_mod"];
/// Passes at most: as deep as buses are nested.
const PASSES_MAX: usize = 8;
const DEPTH_MAX: usize = 24;

/// The modules of the image.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    needs: BTreeMap<String, Vec<String>>,
    aliases: Vec<(String, String)>,
    loaded: BTreeSet<String>,
}

impl Modules {
    /// Reads the builder's tables.
    pub(crate) fn read() -> Result<Self, InitError> {
        let read = |path: &str| fs::read_to_string(path).map_err(InitError::io(path));
        Ok(Self::parse(&read("/modules/order")?, &read("/modules/alias")?))
    }

    fn parse(order: &str, aliases: &str) -> Self {
        let mut modules = Self::default();
        for line in order.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            if let Some(name) = words.next() {
                modules.needs.insert(name, words.collect());
            }
        }
        for (pattern, name) in aliases.lines().filter_map(|line| line.rsplit_once(' ')) {
            modules.aliases.push((pattern.to_owned(), name.to_owned()));
        }
        modules
    }

    /// Loads what is always needed, then what hardware asks for.
    pub(crate) fn load(&mut self) {
        for name in ALWAYS {
            self.load_one(name);
        }
        for _ in 0..PASSES_MAX {
            let before = self.loaded.len();
            for name in self.wanted(&modaliases(Path::new("/sys/devices"))) {
                self.load_one(&name);
            }
            if self.loaded.len() == before {
                break;
            }
        }
    }

    /// How many are loaded.
    pub(crate) fn loaded(&self) -> usize {
        self.loaded.len()
    }

    fn wanted(&self, devices: &BTreeSet<String>) -> BTreeSet<String> {
        let matches = |pattern: &str| devices.iter().any(|device| fits(pattern.as_bytes(), device.as_bytes()));
        let hits = self.aliases.iter().filter(|(_, name)| !self.loaded.contains(name));
        hits.filter(|(pattern, _)| matches(pattern)).map(|(_, name)| name.clone()).collect()
    }

    /// One that cannot be loaded is said and not tried again.
    fn load_one(&mut self, name: &str) {
        let Some(needs) = self.needs.get(name).cloned() else { return };
        for one in needs.iter().map(String::as_str).chain([name]) {
            if !self.loaded.insert(one.to_owned()) {
                continue;
            }
            let path = format!("/modules/{one}.ko");
            let result = File::open(&path).map_err(|error| error.to_string()).and_then(|file| {
                finit_module(&file, c"", ModuleInitFlags::empty()).map_err(|errno| errno.desc().to_owned())
            });
            if let Err(reason) = result {
                say(format_args!("module {one}: {reason}"));
            }
        }
    }
}

/// What all devices below `folder` say of themselves.
fn modaliases(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && depth < DEPTH_MAX {
                folders.push((entry.path(), depth + 1));
            } else if entry.file_name() == "modalias" {
                found.extend(fs::read_to_string(entry.path()).ok().map(|text| text.trim_end().to_owned()));
            }
        }
    }
    found.remove("");
    found
}

/// Whether `text` fits `pattern`, which has `*`, `?` and `[a-z]`, as the kernel's aliases do.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut in_text) = (0, 0);
    // Where the last `*` stood, and what it had swallowed until then.
    let mut star: Option<(usize, usize)> = None;
    while in_text < text.len() {
        let step = match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, in_text));
                at += 1;
                continue;
            }
            Some(b'?') => Some(1),
            Some(b'[') => class(&pattern[at..], text[in_text]),
            Some(byte) if *byte == text[in_text] => Some(1),
            _ => None,
        };
        match (step, star) {
            (Some(step), _) => (at, in_text) = (at + step, in_text + 1),
            (None, Some((from, swallowed))) => {
                star = Some((from, swallowed + 1));
                (at, in_text) = (from + 1, swallowed + 1);
            }
            (None, None) => return false,
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// The length of the class that `pattern` begins with, if `byte` is in it.
fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let end = pattern.iter().position(|b| *b == b']')?;
    let (mut at, mut is_in) = (1, false);
    while at < end {
        match pattern[at..end] {
            [first, b'-', last, ..] => {
                is_in |= (first..=last).contains(&byte);
                at += 3;
            }
            [one, ..] => {
                is_in |= one == byte;
                at += 1;
            }
            [] => break,
        }
    }
    is_in.then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_the_kernel_means_them() {
        let device = "pci:v00001AF4d00001042sv00001AF4sd00001100bc01sc00i00";
        for (pattern, expected) in [
            ("pci:v00001AF4d*sv*sd*bc*sc*i*", true),
            ("pci:v00001AF4d00001042sv*", true),
            ("pci:v*d*sv*sd*bc01sc06i01*", false),
            ("pci:v*d*sv*sd*bc01sc00i*", true),
            ("pci:v0000[0-9A-F]AF4*", true),
            ("pci:v0000[02-9]AF4*", false),
            ("pci:?*", true),
            ("pci", false),
            ("*", true),
            ("", false),
        ] {
            assert_eq!(fits(pattern.as_bytes(), device.as_bytes()), expected, "{pattern}");
        }
        assert!(fits(b"", b"") && !fits(b"[a-", b"a"));
    }

    #[test]
    fn devices_find_their_modules() {
        let modules =
            Modules::parse("scsi_mod\nlibahci\nahci libahci scsi_mod\n", "pci:v*bc01sc06i01* ahci\nusb:* x\n");
        let devices = BTreeSet::from(["pci:v00008086bc01sc06i01".to_owned()]);
        assert_eq!(modules.wanted(&devices), BTreeSet::from(["ahci".to_owned()]));
        assert_eq!(modules.needs["ahci"], ["libahci", "scsi_mod"]);
    }

    #[test]
    fn modaliases_are_found_where_they_are() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        fs::write(folder.path().join("a/b/modalias"), "pci:x\n").unwrap();
        fs::write(folder.path().join("a/modalias"), "\n").unwrap();
        assert_eq!(modaliases(folder.path()), BTreeSet::from(["pci:x".to_owned()]));
    }
}
