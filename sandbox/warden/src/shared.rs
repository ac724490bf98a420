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
    pub(crate) registry: Registry,
    pub(crate) outbox: Outbox,
    pub(crate) spares: Spares,
    pub(crate) spawner: Spawner,
}
