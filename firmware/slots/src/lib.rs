//! The two slots of an appliance: which one runs, which one an update writes, when one is trusted, when it is given up.
//!
//! ```text
//!            written: ember-b.new ─▶ ember-b+3.efi                  systemd-boot, each time it starts it
//!  empty ───────────────────────────▶ trial +3 ─▶ +2-1 ─▶ +1-2 ─▶ +0-3 exhausted: the other slot is started
//!    ▲                                  │  │  │                       ▲
//!    │                                  └──┴──┴─ bless ─▶ ember-b.efi ─┘ rollback
//!    └────────── a cut while it was written: `.new`, or nothing in it ─ swept
//! ```
//! Pure: names, versions and what firmware says in, decisions out. The names are the Boot Loader Specification's
//! (`NAME+LEFT-DONE.efi`), the order of trials is systemd-boot's: exhausted entries last, then the higher version.
//!
//! Invariants, which a test holds over random lives of a machine:
//! - the slot that runs is never written, and neither is the other while the one that runs is on trial: until it is blessed
//!   the other is what the machine falls back to;
//! - only the slot that systemd-boot counted is blessed: after a fall-back its note still names the slot that failed;
//! - a version below the highest that was ever blessed here is not installed again (the floor), whoever signed it.
//!
//! Left out: reading and renaming the files (`firmware/init`), signatures.

mod entry;
mod version;

pub use entry::{Counter, Entry, Slot, TRIES};
pub use version::Version;

use std::fmt;

/// A file in the folder of slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// The version that it says it is, where it can be read.
    pub version: Option<Version>,
}

/// A slot that can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Its file.
    pub entry: Entry,
    /// Its version.
    pub version: Version,
}

/// Both slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    installed: Vec<Installed>,
    /// Files that a cut left behind: to be removed.
    pub leftovers: Vec<String>,
}

/// Why a bundle is not installed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is for something else.
    #[error("it is for {bundle:?}, this machine is {machine:?}")]
    Incompatible {
        /// What it is for.
        bundle: String,
        /// What this is.
        machine: String,
    },
    /// The machine must be updated to something between first.
    #[error("it needs version {minimum} to be installed from; {running} is running")]
    TooFar {
        /// What it needs.
        minimum: Version,
        /// What runs.
        running: Version,
    },
    /// It is what runs, or older.
    #[error("it is version {bundle}, and {running} is running")]
    NotNewer {
        /// Its version.
        bundle: Version,
        /// What runs.
        running: Version,
    },
    /// It is older than what was trusted here once.
    #[error("it is version {bundle}; nothing below {floor} is installed here any more")]
    BelowFloor {
        /// Its version.
        bundle: Version,
        /// The highest that was ever blessed.
        floor: Version,
    },
    /// What runs is not trusted yet.
    #[error("version {0} is on trial: the other slot is what the machine falls back to")]
    OnTrial(Version),
    /// The machine does not know which slot it runs.
    #[error("which slot is running is not known")]
    Unknown,
    /// There is nothing to fall back to.
    #[error("the other slot has nothing that can be started")]
    NoOther,
}

/// What a bundle says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its version.
    pub version: Version,
    /// The least version that it can be installed from.
    pub minimum: Version,
    /// What it is for.
    pub compatible: String,
}

/// What is done to be rid of, or to trust, a slot: a file's name before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rename {
    /// Before.
    pub from: String,
    /// After.
    pub to: String,
}

/// Why the slot that runs is not blessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unblessed {
    /// It was before.
    Already,
    /// systemd-boot counted another slot: this one was fallen back to.
    OtherCounted(Slot),
    /// What firmware says names no slot that is there.
    Unknown,
}

impl Slots {
    /// What `files` are. A file of no bytes is one whose writing was cut; of two files of a slot the trusted one counts.
    pub fn of(files: &[Found]) -> Self {
        let mut slots = Self::default();
        for file in files {
            match (Entry::parse(&file.name), file.version) {
                (Some(entry), Some(version)) if file.bytes > 0 => slots.add(Installed { entry, version }),
                (Some(_), _) => slots.leftovers.push(file.name.clone()),
                (None, _) if Slot::ALL.iter().any(|slot| file.name == slot.fresh()) => {
                    slots.leftovers.push(file.name.clone());
                }
                (None, _) => {}
            }
        }
        slots
    }

    fn add(&mut self, new: Installed) {
        let Some(old) = self.installed.iter_mut().find(|old| old.entry.slot == new.entry.slot) else {
            return self.installed.push(new);
        };
        let loser = if old.entry.counter.is_none() { new } else { std::mem::replace(old, new) };
        self.leftovers.push(loser.entry.to_string());
    }

    /// What is in `slot`.
    pub fn get(&self, slot: Slot) -> Option<Installed> {
        self.installed.iter().copied().find(|installed| installed.entry.slot == slot)
    }

    /// The slot that runs: the one that the boot loader selected, if the version in it is the one that runs.
    pub fn running(&self, selected: Option<Slot>, version: Option<Version>) -> Option<Slot> {
        let installed = self.get(selected?)?;
        (Some(installed.version) == version).then_some(installed.entry.slot)
    }

    /// The slots in the order in which systemd-boot tries them.
    pub fn order(&self) -> Vec<Installed> {
        let mut order = self.installed.clone();
        order.sort_by(|one, two| {
            let exhausted = |installed: &Installed| installed.entry.is_exhausted();
            let by_version = two.version.cmp(&one.version);
            exhausted(one).cmp(&exhausted(two)).then(by_version).then(two.entry.slot.cmp(&one.entry.slot))
        });
        order
    }

    /// The slot that an update with `offer` is written to, on a machine that is a `machine`, runs `running`, and has blessed
    /// `floor` at the highest.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is to be changed then.
    pub fn place(
        &self,
        offer: &Offer,
        running: Option<Slot>,
        floor: Option<Version>,
        machine: &str,
    ) -> Result<Slot, Refusal> {
        let (slot, bundle) = (running.ok_or(Refusal::Unknown)?, offer.version);
        let running = self.get(slot).ok_or(Refusal::Unknown)?;
        if offer.compatible != machine {
            return Err(Refusal::Incompatible { bundle: offer.compatible.clone(), machine: machine.to_owned() });
        }
        if running.entry.counter.is_some() {
            return Err(Refusal::OnTrial(running.version));
        }
        if offer.minimum > running.version {
            return Err(Refusal::TooFar { minimum: offer.minimum, running: running.version });
        }
        if bundle <= running.version {
            return Err(Refusal::NotNewer { bundle, running: running.version });
        }
        match floor.filter(|floor| bundle < *floor) {
            Some(floor) => Err(Refusal::BelowFloor { bundle, floor }),
            None => Ok(slot.other()),
        }
    }

    /// What makes `running` trusted. `counted` is the slot of `LoaderBootCountPath`, `selected` that of
    /// `LoaderEntrySelected`: both must be it.
    ///
    /// # Errors
    /// [`Unblessed`].
    pub fn bless(&self, selected: Option<Slot>, counted: Option<Slot>) -> Result<Rename, Unblessed> {
        let running = selected.and_then(|slot| self.get(slot)).ok_or(Unblessed::Unknown)?;
        if running.entry.counter.is_none() {
            return Err(Unblessed::Already);
        }
        match counted {
            Some(slot) if slot == running.entry.slot => Ok(running.entry.renamed(None)),
            Some(other) => Err(Unblessed::OtherCounted(other)),
            None => Err(Unblessed::Unknown),
        }
    }

    /// What makes the machine start the other slot from the next start on.
    ///
    /// # Errors
    /// [`Refusal::Unknown`], [`Refusal::NoOther`].
    pub fn roll_back(&self, running: Option<Slot>) -> Result<Rename, Refusal> {
        let running = running.and_then(|slot| self.get(slot)).ok_or(Refusal::Unknown)?;
        let other = self.get(running.entry.slot.other()).ok_or(Refusal::NoOther)?;
        if other.entry.is_exhausted() {
            return Err(Refusal::NoOther);
        }
        let done = running.entry.counter.map_or(0, |counter| counter.done);
        Ok(running.entry.renamed(Some(Counter { left: 0, done })))
    }
}

/// The floor once `blessed` was: it never falls.
pub fn raise(floor: Option<Version>, blessed: Version) -> Version {
    floor.map_or(blessed, |floor| floor.max(blessed))
}

impl fmt::Display for Unblessed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Already => write!(f, "it is trusted already"),
            Self::OtherCounted(slot) => write!(f, "systemd-boot counted slot {slot}, which did not start"),
            Self::Unknown => write!(f, "firmware does not say which slot was started"),
        }
    }
}

#[cfg(test)]
mod tests;
