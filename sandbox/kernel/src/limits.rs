//! Resource limits of a sandboxed process; the cgroup bounds what these cannot.
//!
//! Left out: `RLIMIT_AS`, since a mapped model counts as address space though it takes no memory of the instance's own.

use nix::{
    Result,
    sys::resource::{Resource, setrlimit},
};

/// A resource and its limit, soft and hard alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// What is limited.
    pub resource: Resource,
    /// To how much.
    pub max: u64,
}

const fn limit(resource: Resource, max: u64) -> Rlimit {
    Rlimit { resource, max }
}

/// No descriptor of a sandboxed process can get this number or a higher one.
pub const DESCRIPTORS_MAX: u64 = 16;

/// The limits of every sandbox.
pub const RLIMITS: [Rlimit; 7] = [
    // No memory image of a tenant's data on disk.
    limit(Resource::RLIMIT_CORE, 0),
    // No file can grow: there is none to write.
    limit(Resource::RLIMIT_FSIZE, 0),
    // Four are given; the model is opened once or twice while it loads.
    limit(Resource::RLIMIT_NOFILE, DESCRIPTORS_MAX),
    // Per user id, so per slot. The cgroup's pids.max is the tighter bound; this one holds if that fails.
    limit(Resource::RLIMIT_NPROC, 256),
    limit(Resource::RLIMIT_MSGQUEUE, 0),
    limit(Resource::RLIMIT_MEMLOCK, 0),
    // Signals queued with a value, which nothing here sends.
    limit(Resource::RLIMIT_SIGPENDING, 0),
];

/// Sets a limit of the calling process. One system call; allocates nothing.
pub(crate) fn apply(limit: Rlimit) -> Result<()> {
    setrlimit(limit.resource, limit.max, limit.max)
}
