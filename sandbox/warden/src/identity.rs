//! What a snapshot fits: this machine, this runner, and what a runner is told of its function.

use crate::decide::Grant;
use sandbox_image::{Device, NoDevice};
use sandbox_kernel::machine::{cpu_features, kernel_release};
use sandbox_snapshot::image::Identity;
use sandbox_wire::{
    frame::encode_packet,
    warden::{PACKET_BYTES_MAX, RunnerSpec},
};
use std::{
    fs::File,
    io::{self, Read},
};

/// What runners compute on besides cores.
pub(crate) static DEVICE: NoDevice = NoDevice;

/// What stays the same while a warden lives.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    runner_build: [u8; 32],
    kernel_release: String,
    cpu_features: Vec<u64>,
}

impl Machine {
    /// Reads the runner's program to its end.
    pub(crate) fn new(runner: &File) -> io::Result<Self> {
        let runner_build = build(runner)?;
        Ok(Self { runner_build, kernel_release: kernel_release()?, cpu_features: cpu_features() })
    }

    /// The identity of a snapshot of this function, here and now.
    pub(crate) fn identity(&self, spec: &RunnerSpec, grant: &Grant) -> Identity {
        Identity {
            runner_build: self.runner_build,
            kernel_release: self.kernel_release.clone(),
            cpu_features: self.cpu_features.clone(),
            model: spec.model,
            manifest: manifest(spec, grant),
            function: spec.function.clone(),
            accelerators: DEVICE.identity(),
        }
    }

    /// Whether a snapshot was taken here.
    pub(crate) fn is_of(&self, identity: &Identity) -> bool {
        let Identity { runner_build, kernel_release, cpu_features, accelerators, .. } = identity;
        (runner_build, kernel_release, cpu_features) == (&self.runner_build, &self.kernel_release, &self.cpu_features)
            && *accelerators == DEVICE.identity()
    }
}

fn build(mut runner: &File) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match runner.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            bytes => hasher.update(&buffer[..bytes]),
        };
    }
}

/// What a runner is told when it loads, and nothing that it is not: a function that may use more memory fits as well.
fn manifest(spec: &RunnerSpec, grant: &Grant) -> [u8; 32] {
    let RunnerSpec { function: _, model: _, task, context_tokens, slots, system, .. } = spec;
    let told = (task, context_tokens, slots, system, grant.threads);
    let told = encode_packet(&told, PACKET_BYTES_MAX).expect("a spec came in a packet");
    blake3::hash(&told).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decide::grant, fixture::spec};
    use appliance_types::ModelDigest;

    #[test]
    fn what_a_runner_is_told_makes_another_identity_and_limits_do_not() {
        let machine = Machine::new(&File::open(std::env::current_exe().unwrap()).unwrap()).unwrap();
        let of = |spec: &RunnerSpec| machine.identity(spec, &grant(spec, 0, 1 << 30, 2));
        let same = [
            RunnerSpec { memory_bytes: 1 << 29, ..spec() },
            RunnerSpec { reserved_bytes: Some(1 << 28), ..spec() },
            RunnerSpec { cpus: 9, ..spec() },
        ];
        let other = [
            RunnerSpec { cpus: 1, ..spec() },
            RunnerSpec { slots: 2, ..spec() },
            RunnerSpec { context_tokens: 1024, ..spec() },
            RunnerSpec { system: Some("x".into()), ..spec() },
            RunnerSpec { model: ModelDigest::from_bytes([2; 32]), ..spec() },
            RunnerSpec { function: "g".parse().unwrap(), ..spec() },
        ];
        assert!(same.iter().all(|same| of(same) == of(&spec())));
        assert!(other.iter().all(|other| of(other) != of(&spec())));
        assert!(machine.is_of(&of(&spec())));
    }
}
