//! What both sides of a figure are to do.

use crate::error::Error;
use std::thread;

/// What both servers are to do at once, and how long each answer may get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Threads of each server; `None`: what each takes when nobody says.
    pub(crate) threads: Option<usize>,
    pub(crate) streams: usize,
    pub(crate) context_tokens: u32,
    /// Instances that Ember may start; llama-server is one.
    pub(crate) instances: u32,
    /// What every chat begins with: Ember has it in the function's manifest, llama-server is sent it. Printable ASCII.
    pub(crate) system: Option<&'static str>,
}

impl Load {
    /// As many threads as there are cores.
    pub(crate) fn of(streams: usize, context_tokens: u32) -> Result<Self, Error> {
        let threads = thread::available_parallelism().map_err(Error::setup)?.get();
        Ok(Self { threads: Some(threads), streams, context_tokens, instances: 1, system: None })
    }
}
