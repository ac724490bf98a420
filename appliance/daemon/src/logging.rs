//! Logs go to stderr, of all four processes alike; stdout carries nothing but the `ready` line.

use crate::{arguments::LogFormat, exit::Failure};
use std::io::{IsTerminal, stderr};
use tracing_subscriber::{EnvFilter, fmt};

/// Starts logging what `filter` selects: a level, or `target=level` pairs.
pub(crate) fn start(format: LogFormat, filter: &str) -> Result<(), Failure> {
    let filter =
        EnvFilter::try_new(filter).map_err(|error| Failure::Unusable(format!("EMBER_LOG `{filter}`: {error}")))?;
    let builder = fmt().with_env_filter(filter).with_writer(stderr).with_ansi(stderr().is_terminal());
    let started = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::Bug(format!("logging was started twice: {error}")))
}
