//! The function manifest: what an operator deploys.
//!
//! A default is the value a key has when it is left out; [`Manifest::to_toml`] writes every key, so that a stored
//! manifest says the same after the defaults of a later version have changed. `keep_warm` and `park` have none: left out,
//! they are decided from the function's past, up to [`KEEP_WARM_MS_MAX`] and [`PARK_MS_MAX`].

mod read;
mod write;

use crate::ConfigError;
use appliance_types::{FunctionName, ModelDigest, ParseDigestError, Provisioned, Task};
use serde::{Serialize, Serializer};
use std::{fmt, str::FromStr};

/// Longest system prompt: the longest that the warden takes.
pub const SYSTEM_BYTES_MAX: usize = 64 << 10;
/// Greatest request body that a function may allow; half the longest frame to a runner.
pub const REQUEST_BYTES_MAX: u64 = 16 << 20;
/// Fewest tokens a sequence may hold: a chat template alone needs a few.
pub const CONTEXT_TOKENS_MIN: u32 = 16;
/// Most tokens a sequence may hold.
pub const CONTEXT_TOKENS_MAX: u32 = 1 << 20;
/// Most sequences in one instance: llama.cpp has 256, of which one holds the system prompt.
pub const CONCURRENCY_MAX: u32 = 255;

/// Longest time running without a request where the manifest does not say.
pub const KEEP_WARM_MS_MAX: u64 = 60_000;
/// Longest time parked where the manifest does not say.
pub const PARK_MS_MAX: u64 = 900_000;
/// Most windows in which instances are kept up.
pub const PROVISIONED_MAX: usize = 32;

/// A function, as its operator describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// What it is called by.
    pub name: FunctionName,
    /// The model it runs.
    pub model: ModelReference,
    /// What the model is for.
    pub task: Task,
    /// What one request and one instance may use.
    pub limits: Limits,
    /// How many instances there are, and for how long.
    pub scale: Scale,
    /// What comes before the caller's words.
    pub prompt: Prompt,
}

/// A model file by its place, or by its name in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelReference {
    /// A path as it was written; relative to whoever reads it.
    Path(String),
    /// A model in the store, written `sha256:HEX`.
    Digest(ModelDigest),
}

/// What one request and one instance may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Private memory of one instance, bytes.
    pub memory_bytes: u64,
    /// Cores of one instance.
    pub cpus: u32,
    /// Tokens a sequence may hold.
    pub context_tokens: u32,
    /// Tokens a request may produce.
    pub output_tokens: u32,
    /// Time a request may run, ms.
    pub timeout_ms: u64,
    /// Bytes of a request body.
    pub request_bytes: u64,
}

/// How many instances there are, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Scale {
    /// Instances that are kept up.
    pub min: u32,
    /// Instances at most.
    pub max: u32,
    /// Sequences in one instance.
    pub concurrency: u32,
    /// Time running without a request, then parked, ms; `None` as it pays.
    pub keep_warm_ms: Option<u64>,
    /// Time parked without a request, then stored, ms; `None` as it pays.
    pub park_ms: Option<u64>,
    /// Requests that may wait.
    pub queue: u32,
    /// Time a request may wait, ms.
    pub queue_timeout_ms: u64,
    /// Windows of the week in which more are kept up.
    pub provisioned: Vec<Provisioned>,
}

/// What comes before the caller's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Prompt {
    /// First message of a chat that brings no system message.
    pub system: Option<String>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 1 << 30,
            cpus: 2,
            context_tokens: 2048,
            output_tokens: 1024,
            timeout_ms: 900_000,
            request_bytes: 1 << 20,
        }
    }
}

impl Default for Scale {
    fn default() -> Self {
        Self {
            min: 0,
            max: 1,
            concurrency: 4,
            keep_warm_ms: None,
            park_ms: None,
            queue: 64,
            queue_timeout_ms: 30_000,
            provisioned: Vec::new(),
        }
    }
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// The first thing wrong with it, and where.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        read::manifest(text)
    }

    /// The manifest as text with every key, which [`Manifest::parse`] reads as the same manifest.
    pub fn to_toml(&self) -> String {
        write::manifest(self)
    }
}

impl FromStr for ModelReference {
    type Err = ParseDigestError;
    fn from_str(text: &str) -> Result<Self, ParseDigestError> {
        match text.strip_prefix("sha256:") {
            Some(hex) => hex.parse().map(Self::Digest),
            None => Ok(Self::Path(text.to_owned())),
        }
    }
}

impl fmt::Display for ModelReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Digest(digest) => write!(f, "sha256:{digest}"),
        }
    }
}

impl Serialize for ModelReference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests;
