//! What all threads of a warden share.

use crate::{
    WardenConfig, outbox::Outbox, registry::Registry, snapshots::Snapshots, spares::Spares, spawner::Spawner,
    store::Store,
};
use sandbox_kernel::cgroup::Cgroups;
use std::fs::File;

/// One warden's parts. The spawner's thread ends when the last holder of this does.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: WardenConfig,
    /// The runner's program, which text of captured runners is compared to.
    pub(crate) program: File,
    pub(crate) store: Store,
    pub(crate) snapshots: Snapshots,
    pub(crate) cgroups: Cgroups,
    /// CPU time of all groups before this warden, µs: an earlier one may have been killed.
    pub(crate) cpu_before_us: u64,
    pub(crate) registry: Registry,
    pub(crate) outbox: Outbox,
    pub(crate) spares: Spares,
    pub(crate) spawner: Spawner,
}

impl Shared {
    /// CPU time of all processes since this warden began, as the kernel counts it for their groups together, µs.
    pub(crate) fn cpu_us(&self) -> u64 {
        let cpu_us = self.cgroups.cpu_us().inspect_err(|error| tracing::warn!(%error, "what all instances used"));
        cpu_us.unwrap_or(0).saturating_sub(self.cpu_before_us)
    }
}
