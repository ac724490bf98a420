//! What the unit tests of several modules are given.

use appliance_types::{ModelDigest, Task};
use sandbox_wire::warden::RunnerSpec;

/// A function that wants much.
pub(crate) fn spec() -> RunnerSpec {
    RunnerSpec {
        function: "f".parse().unwrap(),
        model: ModelDigest::from_bytes([1; 32]),
        task: Task::Chat,
        memory_bytes: 1 << 30,
        reserved_bytes: None,
        cpus: 2,
        context_tokens: 512,
        slots: 1,
        system: None,
    }
}
