//! The words of Ember as plain values: names, digests, tiers, and the record of one request.
//!
//! Invariants: a value that exists is valid (a [`FunctionName`] was checked where it was made), and nothing here does
//! I/O, reads a clock or knows who uses it. Left out: manifests (`appliance/config`), frames (`sandbox/wire`).

mod digest;
mod name;
mod provisioned;
mod record;

pub use digest::{ModelDigest, ParseDigestError};
pub use name::{FunctionName, KeyName, NAME_BYTES_MAX, ParseNameError, ProjectName};
pub use provisioned::{DAY_MINUTES, ParseDayError, ParseTimeError, Provisioned, TimeOfDay, Weekday};
pub use record::{Entry, Outcome, Record, RequestId, Stage};

use serde::{Deserialize, Serialize};
use std::fmt;

/// How ready a function is, from the readiest down. Waking is a move up, idling a move down.
///
/// The order is that of readiness: `Cold < Stored < Parked < Running`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Only the GGUF file.
    Cold,
    /// A compressed snapshot on disk.
    Stored,
    /// A decompressed memory image, resident and shared copy-on-write.
    Parked,
    /// An instance is up.
    Running,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tier::Cold => "cold",
            Tier::Stored => "stored",
            Tier::Parked => "parked",
            Tier::Running => "running",
        })
    }
}

/// What a function's model is asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Messages in, text out; also answers `completion`.
    #[default]
    Chat,
    /// A raw prompt in, text out.
    Completion,
    /// Text in, a vector out.
    Embedding,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Task::Chat => "chat",
            Task::Completion => "completion",
            Task::Embedding => "embedding",
        })
    }
}
