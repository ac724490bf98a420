//! What is taken from measurements: each default says from which.

use std::time::Duration;

/// What waking, holding and computing cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// From a request that finds its function in memory to where a running instance would be.
    pub parked_wake: Duration,
    /// The same from disk.
    pub stored_wake: Duration,
    /// The same where there is no snapshot.
    pub cold_wake: Duration,
    /// From a stop to the end of a process.
    pub stop: Duration,
    /// A model's weights: in memory while any instance is up.
    pub weight_bytes: u64,
    /// A function's image: in memory while it is up or parked.
    pub image_bytes: u64,
    /// An instance's own memory, or its spare's.
    pub own_bytes: u64,
    /// Time to read a token of a prompt.
    pub prefill_token: Duration,
    /// Time to write a token.
    pub decode_token: Duration,
    /// Work of a request whose trace names neither tokens nor a time.
    pub service: Duration,
}

impl Default for Costs {
    /// SmolLM2-135M Q4_1 on two cores: `bench/runs/2026-11-24T185852Z-amd-epyc`.
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        Self {
            // S1: 59.3 ms to the first token, 54.1 from a running instance.
            parked_wake: Duration::from_millis(5),
            // S2-disk: 168.7 ms to the first token, page cache dropped.
            stored_wake: Duration::from_millis(115),
            // S2-disk's peer, which loads the model: 484.9 ms, as a stand-in.
            cold_wake: Duration::from_millis(430),
            // Prototype: `kill` to reaped, some milliseconds.
            stop: Duration::from_millis(5),
            // S4: the GGUF has 93.8 MiB.
            weight_bytes: 94 * MIB,
            // Private memory that is not zero: 20 MB in the first measurements of a restored process.
            image_bytes: 20 * MIB,
            // S3: what a second instance adds.
            own_bytes: 3 * MIB,
            // S2: 59.4 ms for 41 tokens.
            prefill_token: Duration::from_micros(1450),
            // 110 to 130 tokens/s in the first measurements of llama.cpp.
            decode_token: Duration::from_micros(8300),
            service: Duration::from_millis(500),
        }
    }
}

/// The server that is simulated, and what its manifests say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Inference cores.
    pub cores: u32,
    /// Memory of all functions, bytes.
    pub memory_bytes: u64,
    /// Manifest `memory`, bytes.
    pub lease_bytes: u64,
    /// Manifest `cpus`.
    pub cpus: u32,
    /// Manifest `concurrency`.
    pub slots: u32,
    /// Manifest `max`.
    pub instances_max: u32,
    /// Manifest `queue`.
    pub queue_max: u32,
    /// Manifest `queue_timeout`.
    pub queue_timeout: Duration,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            cores: 16,
            memory_bytes: 64 << 30,
            lease_bytes: 1 << 30,
            cpus: 2,
            slots: 4,
            instances_max: 4,
            queue_max: 64,
            queue_timeout: Duration::from_secs(30),
        }
    }
}
