//! The names of slots' files: `ember-a.efi`, trusted; `ember-a+2-1.efi`, two trials left, one done.

use crate::Rename;
use std::{fmt, str::FromStr};

/// Trials that a slot is written with.
pub const TRIES: u32 = 3;

const PREFIX: &str = "ember-";
const SUFFIX: &str = ".efi";

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// What an image is built with.
    A,
    /// What the first update writes.
    B,
}

/// Trials left and done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Left.
    pub left: u32,
    /// Done.
    pub done: u32,
}

/// A slot's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its slot.
    pub slot: Slot,
    /// Its trials; a trusted one has none.
    pub counter: Option<Counter>,
}

impl Slot {
    /// Both.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The file that an update writes, before it is whole.
    pub fn fresh(self) -> String {
        format!("{PREFIX}{self}.new")
    }
}

impl Entry {
    /// What an update makes of `slot`.
    pub fn on_trial(slot: Slot) -> Self {
        Self { slot, counter: Some(Counter { left: TRIES, done: 0 }) }
    }

    /// The slot's file that `name`, the last part of a path with `/` or `\`, is. FAT keeps no case.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.rsplit(['/', '\\']).next()?.to_ascii_lowercase();
        let middle = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        let (slot, counter) = middle.split_once('+').map_or((middle, None), |(slot, counter)| (slot, Some(counter)));
        let slot = Slot::ALL.into_iter().find(|known| known.to_string() == slot)?;
        Some(Self { slot, counter: counter.map(parse_counter).map_or(Some(None), |counter| counter.map(Some))? })
    }

    /// systemd-boot starts it only where nothing else can be.
    pub fn is_exhausted(self) -> bool {
        self.counter.is_some_and(|counter| counter.left == 0)
    }

    /// Its file given another counter.
    pub(crate) fn renamed(self, counter: Option<Counter>) -> Rename {
        Rename { from: self.to_string(), to: Self { counter, ..self }.to_string() }
    }
}

fn parse_counter(text: &str) -> Option<Counter> {
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u32>().ok().filter(|_| plain)
    };
    let (left, done) = text.split_once('-').unwrap_or((text, "0"));
    Some(Counter { left: number(left)?, done: number(done)? })
}

impl FromStr for Slot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|slot| slot.to_string() == text);
        found.ok_or_else(|| format!("{text:?} is no slot; they are a and b"))
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "a",
            Self::B => "b",
        })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.slot)?;
        match self.counter {
            None => {}
            Some(Counter { left, done: 0 }) => write!(f, "+{left}")?,
            Some(Counter { left, done }) => write!(f, "+{left}-{done}")?,
        }
        f.write_str(SUFFIX)
    }
}
