//! This machine's slots: which one runs, what emberd is told of them, and when the one that runs is trusted.
//!
//! Which slot runs is what three say alike: the boot loader (`LoaderEntrySelected`), the version in that slot's file, and
//! the version that this very system has. Trusted is only a slot that the boot loader counted, too: after a fall-back its
//! note still names the one that failed.

use crate::{console::say, efi, error::InitError};
use firmware_bundle::{MACHINE, Place, minisign::PublicKey};
use firmware_slots::{Entry, Slot, Unblessed, Version};
use std::{fs, path::Path};

/// Where the slots' files are, on the boot partition.
const FOLDER: &str = "EFI/Linux";
/// What is kept of updates beside the service's own files; emberd reads it, too.
const FLOOR: &str = "update-floor";
/// The public key that the image brings along.
const IMAGE_KEY: &str = "/etc/update.pub";
const OS_RELEASE: &str = "/etc/os-release";

/// The slots, as they were when the machine started.
#[derive(Debug)]
pub(crate) struct Slots {
    place: Place,
    key: Option<String>,
    counted: Option<Slot>,
    version: Option<Version>,
    /// The files are large, so it is looked at once.
    trial: Trial,
}

/// How far the slot that runs is from being trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Trial {
    /// It has still to show that it answers.
    Runs,
    /// It answered, and is not said to be trusted yet; why, where that was tried in vain.
    Passed(Option<String>),
    /// It is trusted, or will not be.
    Over,
}

impl Slots {
    /// Looks at them, and removes what cuts left. `key` is the operator's, of use where the image has none.
    pub(crate) fn look(esp: &Path, data: &Path, key: Option<&str>) -> Self {
        let key = fs::read_to_string(IMAGE_KEY).ok().or_else(|| key.map(str::to_owned));
        let os_release = fs::read_to_string(OS_RELEASE).unwrap_or_default();
        Self::look_at(&esp.join(FOLDER), data, key, Path::new(efi::VARIABLES), &os_release)
    }

    fn look_at(folder: &Path, data: &Path, key: Option<String>, variables: &Path, os_release: &str) -> Self {
        let public = key.as_deref().and_then(|text| match PublicKey::parse(text) {
            Ok(public) => Some(public),
            Err(error) => {
                say(format_args!("no update is taken: {error}"));
                None
            }
        });
        let (folder, floor) = (folder.to_owned(), data.join(FLOOR));
        let mut place = Place { folder, floor, key: public, machine: MACHINE.to_owned(), running: None };
        if let Err(error) = place.sweep() {
            say(format_args!("leftovers of an update stay: {error}"));
        }
        let named = |variable: &str| Some(Entry::parse(&efi::loader_text(variables, variable)?)?.slot);
        let (selected, counted) = (named("LoaderEntrySelected"), named("LoaderBootCountPath"));
        let version = os_release.lines().find_map(|line| line.strip_prefix("IMAGE_VERSION="));
        let version = version.and_then(|version| version.trim_matches('"').parse().ok());
        let mut trial = Trial::Over;
        match place.status() {
            Ok(status) => {
                if let Some(fault) = &status.floor_fault {
                    say(format_args!("{fault}: what is older than what runs is not installed"));
                }
                place.running = status.slots.running(selected, version);
                let installed = place.running.and_then(|slot| status.slots.get(slot));
                let counts = installed.is_some_and(|installed| installed.entry.counter.is_some());
                if counts && counted == place.running {
                    trial = Trial::Runs;
                }
            }
            Err(error) => say(format_args!("the slots cannot be read: {error}")),
        }
        let key = key.filter(|_| place.key.is_some());
        Self { place, key, counted, version, trial }
    }

    /// Whether the slot that runs has still to show that it answers.
    pub(crate) fn is_on_trial(&self) -> bool {
        self.trial == Trial::Runs
    }

    /// The slot that runs has shown that it answers.
    pub(crate) fn passed(&mut self) {
        if self.is_on_trial() {
            self.trial = Trial::Passed(None);
        }
    }

    /// Whether the slot that runs answered, and is to be trusted for it.
    pub(crate) fn is_trust_owed(&self) -> bool {
        matches!(self.trial, Trial::Passed(_))
    }

    /// Trusts the slot that runs. Where a disk has no room for that it is owed still: until then the boot loader goes on
    /// counting. What fails is told once.
    pub(crate) fn bless(&mut self) {
        let before = std::mem::replace(&mut self.trial, Trial::Over);
        match self.place.bless(self.place.running, self.counted) {
            Ok(Ok(version)) => say(format_args!("version {version} is trusted now")),
            Ok(Err(Unblessed::Already)) => {}
            Ok(Err(reason)) => say(format_args!("this version is not trusted: {reason}")),
            Err(error) => {
                let fault = Trial::Passed(Some(error.to_string()));
                if before != fault {
                    say(format_args!("this version cannot be trusted, which is tried again: {error}"));
                }
                self.trial = fault;
            }
        }
    }

    /// What a person is told.
    pub(crate) fn summary(&self) -> String {
        let version = self.version.map_or("of no version".to_owned(), |version| version.to_string());
        match self.place.running {
            Some(slot) if self.trial != Trial::Over => format!("Ember {version}, slot {slot}, on trial"),
            Some(slot) => format!("Ember {version}, slot {slot}"),
            None => format!("Ember {version}, in no slot that the boot loader names"),
        }
    }

    /// emberd's configuration in `folder`, `first` and then the slots', with the key beside it: the file.
    pub(crate) fn configure(&self, folder: &Path, first: &str) -> Result<std::path::PathBuf, InitError> {
        let (config, public) = (folder.join("emberd.toml"), folder.join("update.pub"));
        let mut text =
            format!("{first}[update]\nslots = {:?}\nrestart = true\n", self.place.folder.display().to_string());
        if let Some(key) = &self.key {
            fs::write(&public, key).map_err(InitError::io("the update key"))?;
            text += &format!("key = {:?}\n", public.display().to_string());
        }
        if let Some(running) = self.place.running {
            text += &format!("running = \"{running}\"\n");
        }
        fs::write(&config, text).map_err(InitError::io("emberd's configuration"))?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firmware_bundle::minisign::SecretKey;
    use images_uki::{Parts, build, least_stub};
    use std::collections::BTreeSet;

    const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

    struct Machine {
        folder: tempfile::TempDir,
    }

    impl Machine {
        fn new(files: &[(&str, &str)]) -> Self {
            let machine = Self { folder: tempfile::tempdir().unwrap() };
            for part in ["slots", "variables", "data"] {
                fs::create_dir(machine.path(part)).unwrap();
            }
            for (name, version) in files {
                fs::write(machine.path("slots").join(name), uki(version)).unwrap();
            }
            machine
        }

        fn path(&self, part: &str) -> std::path::PathBuf {
            self.folder.path().join(part)
        }

        fn says(self, variable: &str, text: &str) -> Self {
            let bytes = [&[6, 0, 0, 0], efi::utf16(text).as_slice()].concat();
            fs::write(self.path("variables").join(format!("{variable}-{LOADER}")), bytes).unwrap();
            self
        }

        fn look(&self, version: &str) -> Slots {
            let key = SecretKey::from_random([1; 40]).public_text();
            let os_release = format!("ID=ember\nIMAGE_VERSION={version}\n");
            Slots::look_at(&self.path("slots"), &self.path("data"), Some(key), &self.path("variables"), &os_release)
        }

        fn files(&self) -> BTreeSet<String> {
            let entries = fs::read_dir(self.path("slots")).unwrap().flatten();
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
        }
    }

    fn uki(version: &str) -> Vec<u8> {
        let (stub, os_release) = (least_stub(), format!("ID=ember\nIMAGE_VERSION={version}\n"));
        let parts = Parts {
            stub: &stub,
            os_release: &os_release,
            command_line: "quiet",
            release: "6.12.1",
            linux: b"linux",
            initrd: b"initrd",
        };
        build(&parts).unwrap()
    }

    const BOTH: [(&str, &str); 2] = [("ember-a.efi", "1.0.0"), ("ember-b+2-1.efi", "1.1.0")];

    #[test]
    fn a_slot_on_trial_is_trusted_when_all_agree() {
        let machine = Machine::new(&BOTH)
            .says("LoaderEntrySelected", "ember-b+3.efi")
            .says("LoaderBootCountPath", r"\EFI\Linux\ember-b+2-1.efi");
        let mut slots = machine.look("1.1.0");
        assert!(slots.is_on_trial());
        assert_eq!(slots.summary(), "Ember 1.1.0, slot b, on trial");
        slots.passed();
        assert!(!slots.is_on_trial() && slots.is_trust_owed());
        slots.bless();
        assert!(!slots.is_trust_owed());
        assert_eq!(slots.summary(), "Ember 1.1.0, slot b");
        assert_eq!(machine.files(), BTreeSet::from(["ember-a.efi".to_owned(), "ember-b.efi".to_owned()]));
        assert_eq!(fs::read_to_string(machine.path("data/update-floor")).unwrap(), "1.1.0\n");
    }

    #[test]
    fn trust_that_found_no_room_is_owed_until_it_finds_some() {
        let machine = Machine::new(&BOTH)
            .says("LoaderEntrySelected", "ember-b+3.efi")
            .says("LoaderBootCountPath", r"\EFI\Linux\ember-b+2-1.efi");
        let mut slots = machine.look("1.1.0");
        fs::remove_dir(machine.path("data")).unwrap();
        slots.passed();
        for _ in 0..2 {
            slots.bless();
            assert!(slots.is_trust_owed() && !slots.is_on_trial());
            assert_eq!(slots.summary(), "Ember 1.1.0, slot b, on trial");
        }
        fs::create_dir(machine.path("data")).unwrap();
        slots.bless();
        assert!(!slots.is_trust_owed());
        assert!(machine.files().contains("ember-b.efi"));
        // One that is trusted has nothing to show.
        slots.passed();
        assert!(!slots.is_trust_owed());
    }

    #[test]
    fn nothing_is_trusted_after_a_fall_back_or_where_one_disagrees() {
        for (selected, counted, version, running) in [
            ("ember-a.efi", "ember-b+2-1.efi", "1.0.0", Some(Slot::A)),
            ("ember-b+2-1.efi", "ember-b+2-1.efi", "1.0.0", None),
            ("ember-b+2-1.efi", "ember-a.efi", "1.1.0", Some(Slot::B)),
            ("auto-windows", "ember-b+2-1.efi", "1.1.0", None),
        ] {
            let machine =
                Machine::new(&BOTH).says("LoaderEntrySelected", selected).says("LoaderBootCountPath", counted);
            let (mut slots, before) = (machine.look(version), machine.files());
            assert_eq!(slots.place.running, running, "{selected}");
            assert!(!slots.is_on_trial(), "{selected}");
            slots.passed();
            assert!(!slots.is_trust_owed(), "{selected}");
            slots.bless();
            assert_eq!(machine.files(), before, "{selected}");
        }
    }

    #[test]
    fn leftovers_go_and_emberd_is_told() {
        let machine = Machine::new(&BOTH[..1]).says("LoaderEntrySelected", "ember-a.efi");
        fs::write(machine.path("slots/ember-b.new"), "half").unwrap();
        fs::write(machine.path("slots/ember-b+3.efi"), "").unwrap();
        let slots = machine.look("1.0.0");
        assert_eq!(machine.files(), BTreeSet::from(["ember-a.efi".to_owned()]));
        let config =
            fs::read_to_string(slots.configure(&machine.path("data"), "load_timeout = \"600s\"\n").unwrap()).unwrap();
        assert!(config.starts_with("load_timeout = \"600s\"\n[update]\n"), "{config}");
        assert!(config.contains("running = \"a\"") && config.contains("restart = true"), "{config}");
        assert!(PublicKey::parse(&fs::read_to_string(machine.path("data/update.pub")).unwrap()).is_ok());
    }
}
