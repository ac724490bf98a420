//! What all threads of a warden share.

use crate::{WardenConfig, outbox::Outbox, registry::Registry, spawner::Spawner, store::Store};
use sandbox_kernel::cgroup::Cgroups;

/// One warden's parts. The spawner's thread ends when the last holder of this does.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: WardenConfig,
    pub(crate) store: Store,
    pub(crate) cgroups: Cgroups,
    pub(crate) registry: Registry,
    pub(crate) outbox: Outbox,
    pub(crate) spawner: Spawner,
}
