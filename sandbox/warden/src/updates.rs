//! The appliance's slots, which only root may write: a bundle goes from a socket into the one that does not run.
//!
//! What a bundle must be is `firmware/bundle`'s; this tells the server what became of it. Without a place, which is any
//! host that Ember did not boot, every call is refused.

use crate::WardenConfig;
use firmware_bundle::{BundleError, Place, Status};
use firmware_slots::{Installed, Slot};
use sandbox_wire::warden::{SlotEntry, SlotState, UpdateStatus, WardenError};
use std::io::{self, Read};

/// What there is.
pub(crate) fn status(config: &WardenConfig) -> Result<UpdateStatus, WardenError> {
    let Status { slots, running, floor, floor_fault } = there(config)?.status().map_err(|error| told(&error))?;
    Ok(UpdateStatus {
        restarts: config.after_update.is_some(),
        running: running.map(|slot: Slot| slot.to_string()),
        floor: floor.map(|floor| floor.to_string()),
        floor_fault,
        slots: slots.order().into_iter().map(entry).collect(),
    })
}

/// Installs the bundle that `source` gives, to its end; what there is then.
///
/// A bundle that is refused is read to its end as well: who is still sending would not see the reason.
pub(crate) fn apply(config: &WardenConfig, mut source: impl Read) -> Result<UpdateStatus, WardenError> {
    let applied = there(config).and_then(|place| place.apply(&mut source).map_err(|error| told(&error)));
    if applied.is_err() {
        let _ = io::copy(&mut source, &mut io::sink());
    }
    let installed = applied?;
    tracing::info!(slot = %installed.slot, version = installed.manifest.version, "update installed");
    status(config)
}

/// Has the other slot started from the next start on; what there is then.
pub(crate) fn roll_back(config: &WardenConfig) -> Result<UpdateStatus, WardenError> {
    there(config)?.roll_back().map_err(|error| told(&error))?;
    tracing::info!("the other slot is started next");
    status(config)
}

fn there(config: &WardenConfig) -> Result<&Place, WardenError> {
    config.update.as_ref().ok_or(WardenError::NoSlots)
}

fn entry(installed: Installed) -> SlotEntry {
    let state = match installed.entry.counter {
        None => SlotState::Trusted,
        Some(counter) if counter.left == 0 => SlotState::GivenUp,
        Some(counter) => SlotState::OnTrial { left: counter.left },
    };
    SlotEntry { slot: installed.entry.slot.to_string(), version: installed.version.to_string(), state }
}

fn told(error: &BundleError) -> WardenError {
    let reason = error.to_string();
    if error.is_of_bundle() {
        WardenError::UpdateRefused { reason }
    } else {
        WardenError::Storage { action: "install the update".to_owned(), reason }
    }
}
