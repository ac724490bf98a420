//! Updates of the appliance: a bundle goes from a request to a socket that the warden reads. What it must be, and where
//! it goes, is not the server's to decide: it has no right to the boot partition.

use super::{
    handler::Call,
    models::{self, out_of_place, refused},
    reply::{self, Answered},
};
use crate::setup::SERVER_FILES;
use appliance_api::ApiError;
use appliance_edge::Request;
use appliance_runtime::{UnixStream, unblock};
use futures_lite::future;
use sandbox_kernel::socket::stream_pair;
use sandbox_wire::warden::{Call as WardenCall, Reply as WardenReply, SlotState, UpdateStatus};
use serde_json::{Value, json};
use std::{path::Path, sync::Arc};

/// Longest bundle.
const BUNDLE_BYTES_MAX: usize = 1 << 30;

/// `GET /ember/v1/update`
pub(super) async fn status(call: &Call) -> Answered {
    told(call.state.warden.call(WardenCall::UpdateStatus, None).await.map_err(refused)?)
}

/// `PUT /ember/v1/update`: the body is a bundle.
pub(super) async fn apply(call: &Call, request: Request) -> Answered {
    note_served(call).await;
    let (ours, theirs) = stream_pair().map_err(|error| ApiError::unavailable(format!("no socket: {error}"), 1))?;
    let installed = call.state.warden.call(WardenCall::UpdateApply, Some(theirs));
    let sent = models::send(request.body.up_to(BUNDLE_BYTES_MAX), UnixStream::from_fd(ours));
    let (sent, installed) = future::zip(sent, installed).await;
    // A body that broke off has the warden see a truncated bundle: the cause counts, not what it made of it.
    sent?;
    told(installed.map_err(refused)?)
}

/// `POST /ember/v1/update/rollback`
pub(super) async fn roll_back(call: &Call) -> Answered {
    note_served(call).await;
    told(call.state.warden.call(WardenCall::UpdateRollBack, None).await.map_err(refused)?)
}

/// Notes what serves now: the other version is trusted when it serves that, too. Before the update, which may end this process.
async fn note_served(call: &Call) {
    let state = Arc::clone(&call.state);
    let noted = unblock(move || state.functions.note(Path::new(SERVER_FILES.served))).await;
    if let Err(error) = noted {
        tracing::warn!(%error, file = SERVER_FILES.served, "what serves now is not noted: after the update all that is stored must");
    }
}

fn told(reply: WardenReply) -> Answered {
    let WardenReply::Updates(UpdateStatus { running, floor, floor_fault, slots, restarts }) = reply else {
        return Err(out_of_place());
    };
    let next = slots.first().map(|slot| slot.slot.clone());
    let slots: Vec<Value> = slots
        .iter()
        .map(|slot| {
            let (state, left) = match slot.state {
                SlotState::Trusted => ("trusted", None),
                SlotState::OnTrial { left } => ("on trial", Some(left)),
                SlotState::GivenUp => ("given up", None),
            };
            json!({ "slot": slot.slot, "version": slot.version, "state": state, "trials_left": left })
        })
        .collect();
    Ok(reply::json(&json!({
        "running": running, "next": next, "floor": floor, "floor_fault": floor_fault, "slots": slots, "restarts": restarts,
    })))
}
