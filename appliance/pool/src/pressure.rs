//! The kernel's word that memory is short, as inputs of the scheduler: a thread that sleeps while there is enough.

use crate::scheduler::Input;
use sandbox_kernel::pressure::MemoryPressure;
use std::{io, thread};

/// Watches until the process ends.
pub(crate) fn watch(pressure: MemoryPressure, inputs: flume::Sender<Input>) {
    let follow = move || -> io::Result<()> {
        loop {
            let percent = pressure.wait()?.clamp(1.0, 100.0) as u64;
            if inputs.send(Input::Pressed(percent)).is_err() {
                return Ok(());
            }
        }
    };
    let logged = move || follow().unwrap_or_else(|error| tracing::warn!(%error, "memory pressure is watched no more"));
    if let Err(error) = thread::Builder::new().name("pressure".into()).spawn(logged) {
        tracing::warn!(%error, "memory pressure is not watched");
    }
}
