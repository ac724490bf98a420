//! Snapshots are taken of runners that have loaded and not yet seen a tenant, and retired when they are not to be used.
//!
//! ```text
//!  runner at rest ──stopped, captured, copied──▶ Ready ──▶ held in memory
//!        │ goes on at once                         └─────▶ encoded and written, when cores are idle; again, once it was tried
//! ```

use crate::{identity::DEVICE, raw::Keeper, shared::Shared, snapshots::Ready};
use appliance_types::FunctionName;
use sandbox_image::{Files, Held, park};
use sandbox_kernel::{cgroup::Cgroup, spawn::Child};
use sandbox_snapshot::image::Identity;
use sandbox_wire::runner::ModelInfo;
use std::{
    fs::File,
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, channel},
    },
    thread,
    time::Duration,
};

/// Longest wait for a runner to be at rest. One that has loaded waits for requests; one that computes instead is not to be
/// trusted. What comes after, the copy of a stopped process, takes as long as it has memory.
const CAPTURE_TIMEOUT: Duration = Duration::from_secs(5);

/// Captures a runner that waits, and lets it go on. What an instance needs is what this one may write to, or came to use
/// while it loaded.
pub(crate) fn take(
    shared: &Shared,
    child: &Child,
    cgroup: &Cgroup,
    identity: Identity,
    model: &File,
    info: &ModelInfo,
) -> Result<Arc<Ready>, String> {
    let killer = child.killer().map_err(|error| error.to_string())?;
    let (done, waiting) = channel::<()>();
    let watch = move || {
        if waiting.recv_timeout(CAPTURE_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            // The capture then sees its end.
            let _ = killer.kill();
        }
    };
    thread::Builder::new().name("capture".into()).spawn(watch).map_err(|error| error.to_string())?;
    let files = Files { program: &shared.program, model };
    let held = Held::capture(child.pid(), identity, &files, &DEVICE).map_err(|error| error.to_string())?;
    drop(done);
    let keeper = Keeper::new(shared.snapshots.raw());
    let parked = park(&held, &keeper).map_err(|error| error.to_string())?;
    held.resume().map_err(|error| error.to_string())?;
    parked.image.check().map_err(|error| error.to_string())?;
    let peak = cgroup.peak_bytes().map_err(|error| error.to_string())?;
    let needs_bytes = parked.image.writable_bytes().max(peak);
    Ok(Arc::new(Ready::new(parked, keeper.files(), info.clone(), needs_bytes)))
}

/// Holds a snapshot in memory, and writes it while nobody else wants to compute.
pub(crate) fn keep(shared: &Arc<Shared>, ready: Arc<Ready>) {
    let turn = shared.snapshots.next(ready.function(), Some(Arc::clone(&ready)));
    shared.spares.end_of(shared, ready.function());
    let writer = Arc::clone(shared);
    let write = move || {
        let function = ready.function().clone();
        match writer.snapshots.write_when_idle(&ready, turn) {
            Ok(()) => tracing::info!(%function, "snapshot written"),
            Err(error) => tracing::warn!(%function, %error, "the snapshot is in memory only"),
        }
        drop(ready);
        writer.snapshots.tidy();
    };
    if let Err(error) = thread::Builder::new().name("snapshot".into()).spawn(write) {
        tracing::warn!(%error, "the snapshot is in memory only");
    }
}

/// Writes a snapshot again that has been tried since, in the order which that showed, if it is held still when there is time.
pub(crate) fn keep_tried(shared: &Arc<Shared>, ready: &Arc<Ready>) {
    let (writer, ready) = (Arc::clone(shared), Arc::downgrade(ready));
    let write = move || {
        match writer.snapshots.write_again_when_idle(&ready) {
            Ok(None) => {}
            Ok(Some(function)) => tracing::info!(%function, "snapshot written again"),
            Err(error) => tracing::warn!(%error, "a snapshot's file stays in the order that it had"),
        }
        writer.snapshots.tidy();
    };
    if let Err(error) = thread::Builder::new().name("snapshot".into()).spawn(write) {
        tracing::warn!(%error, "a snapshot's file stays in the order that it had");
    }
}

/// Removes a snapshot that is not to be used, and says so.
pub(crate) fn retire(shared: &Shared, function: &FunctionName, reason: String) {
    tracing::warn!(%function, reason, "snapshot retired");
    if let Err(error) = shared.snapshots.remove(function) {
        tracing::error!(%function, %error, "a snapshot that must not be used could not be removed");
    }
    shared.spares.end_of(shared, function);
    shared.outbox.retired(function.clone(), reason);
}
