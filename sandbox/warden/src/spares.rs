//! Instances restored ahead of need: one for each function that is parked and was running a moment ago.
//!
//! ```text
//!  the last instance was stopped, its snapshot is in memory ──restore──▶ spare ──wake──▶ the instance, at once
//!                                                                          └── stored, another snapshot, room needed: ended
//! ```
//! A spare has the memory that a first request writes to ([`crate::trial`]), has seen no tenant, shares all else with the
//! parked snapshot, and waits. Invariants: it is of the snapshot that is in memory; it is looked at again before it is used;
//! whoever takes it from here ends it, by using it or at once.

use crate::{
    instance::{self, Woken},
    shared::Shared,
    snapshots::Ready,
    taking, trial,
};
use appliance_types::{FunctionName, ModelDigest};
use sandbox_wire::warden::RunnerSpec;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most spares, over all functions; the oldest goes first.
const SPARES_MAX: usize = 8;

struct Spare {
    ready: Arc<Ready>,
    woken: Woken,
}

/// All spares, the oldest first.
#[derive(Default)]
pub(crate) struct Spares {
    kept: Mutex<Vec<Spare>>,
    /// Held by whoever restores one: who comes after finds it.
    restoring: Mutex<()>,
}

impl std::fmt::Debug for Spares {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} spares", self.lock().len())
    }
}

impl Spares {
    fn lock(&self) -> MutexGuard<'_, Vec<Spare>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The spare of this snapshot.
    pub(crate) fn take(&self, ready: &Arc<Ready>) -> Option<Woken> {
        let mut spares = self.lock();
        let at = spares.iter().position(|spare| Arc::ptr_eq(&spare.ready, ready))?;
        Some(spares.remove(at).woken)
    }

    /// Ends a function's spare.
    pub(crate) fn end_of(&self, shared: &Shared, function: &FunctionName) {
        self.end(shared, |ready| ready.function() == function);
    }

    /// Ends the spares on a model.
    pub(crate) fn end_on(&self, shared: &Shared, model: &ModelDigest) {
        self.end(shared, |ready| ready.parked.image.identity.model == *model);
    }

    /// Ends all, and says whether there was any.
    pub(crate) fn end_all(&self, shared: &Shared) -> bool {
        self.end(shared, |_| true)
    }

    fn end(&self, shared: &Shared, is_meant: impl Fn(&Ready) -> bool) -> bool {
        let meant: Vec<_> = self.lock().extract_if(.., |spare| is_meant(&spare.ready)).collect();
        let any = !meant.is_empty();
        // Without the lock: an end takes a few milliseconds.
        for spare in meant {
            spare.woken.discard(shared);
        }
        any
    }

    fn put(&self, shared: &Shared, spare: Spare) {
        let mut spares = self.lock();
        spares.push(spare);
        let surplus = (spares.len() > SPARES_MAX).then(|| spares.remove(0));
        drop(spares);
        if let Some(surplus) = surplus {
            surplus.woken.discard(shared);
        }
    }

    fn has(&self, ready: &Arc<Ready>) -> bool {
        self.lock().iter().any(|spare| Arc::ptr_eq(&spare.ready, ready))
    }
}

/// Restores a spare of a function whose snapshot is in memory. What fails here fails again, and is told, at the next wake.
pub(crate) fn prepare(shared: &Arc<Shared>, spec: &RunnerSpec) {
    let Ok(identity) = instance::identity(shared, spec) else { return };
    let Some(ready) = shared.snapshots.held(&identity) else { return };
    // A trial computes, and would take cores from those who are asked.
    if !shared.registry.is_any_running() {
        match trial::run(shared, spec, &ready) {
            Ok(true) => taking::keep_tried(shared, &ready),
            Ok(false) => {}
            Err(reason) => return taking::retire(shared, &spec.function, reason),
        }
    }
    let _one_at_a_time = shared.spares.restoring.lock().unwrap_or_else(PoisonError::into_inner);
    let is_held = || shared.snapshots.held(&identity).is_some_and(|held| Arc::ptr_eq(&held, &ready));
    if !is_held() || shared.spares.has(&ready) || shared.registry.is_running(&spec.function) {
        return;
    }
    match instance::spare(shared, spec, &ready) {
        Ok(woken) => shared.spares.put(shared, Spare { ready: Arc::clone(&ready), woken }),
        Err(reason) => tracing::debug!(function = %spec.function, reason, "no spare"),
    }
    // Stored, or taken anew, meanwhile.
    if !is_held() {
        shared.spares.end_of(shared, &spec.function);
        drop(ready);
        shared.snapshots.tidy();
    }
}
