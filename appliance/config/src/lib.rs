//! What an operator writes: function manifests, prices and emberd's own configuration, all TOML, all read strictly.
//!
//! ```text
//!  text ──▶ toml (spans) ──▶ section: keys ──▶ unit: sizes, durations, ranges ──▶ Manifest | Book | ServeConfig
//!                                 └────────────── ConfigError: line, column, what is wrong ◀──┘
//! ```
//!
//! Invariants: a parsed value lies within every range named here; an unknown key is an error, so a typing error never
//! becomes a default; every error points at the character that has to change. Pure: no file is opened and no host is
//! looked at. Left out: whether the model exists, and whether this machine can hold what is asked.

mod error;
mod manifest;
mod prices;
mod section;
mod serve;
mod unit;

pub use error::ConfigError;
pub use manifest::{
    CONCURRENCY_MAX, CONTEXT_TOKENS_MAX, CONTEXT_TOKENS_MIN, KEEP_WARM_MS_MAX, Limits, Manifest, ModelReference,
    PARK_MS_MAX, PROVISIONED_MAX, Prompt, REQUEST_BYTES_MAX, SYSTEM_BYTES_MAX, Scale,
};
pub use prices::{PRICES_DEFAULT, prices};
pub use serve::{EdgeLimits, ServeConfig, UpdateConfig};
pub use unit::{duration_ms, duration_text, size_bytes, size_text};
