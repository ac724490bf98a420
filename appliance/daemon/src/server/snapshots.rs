//! Snapshots of functions: listed, taken, verified and removed by hand; and where a function stands by its own.

use super::{
    functions,
    handler::Call,
    models,
    reply::{self, Answered},
};
use appliance_api::ApiError;
use appliance_types::{FunctionName, Tier};
use sandbox_wire::warden::{Call as WardenCall, Reply as WardenReply, SnapshotEntry, WardenError};
use serde_json::json;
use std::collections::BTreeMap;

/// `GET /ember/v1/snapshots`; `retired` counts those that could not be used, since the server began.
pub(super) async fn list(call: &Call) -> Answered {
    let all = by_function(call).await?;
    let retired = call.state.warden.snapshots_retired();
    Ok(reply::json(&json!({ "data": all.values().collect::<Vec<_>>(), "retired": retired })))
}

/// `POST /ember/v1/functions/{name}/snapshot`: takes one, whether or not there is one.
pub(super) async fn create(call: &Call, name: &str) -> Answered {
    let function = functions::find(call, name)?;
    let reservation = functions::reserve(call, &function).await?;
    let entry = ask(call, WardenCall::SnapshotTake(call.state.spec(&function))).await?;
    call.state.pool.hold(entry.function.clone(), entry.parked_bytes);
    drop(reservation);
    tracing::info!(function = name, entry.file_bytes, "snapshot taken");
    Ok(reply::json(&entry))
}

/// `POST /ember/v1/functions/{name}/snapshot/verify`: reads it to its end.
pub(super) async fn verify(call: &Call, name: &str) -> Answered {
    let function = functions::find(call, name)?;
    Ok(reply::json(&ask(call, WardenCall::SnapshotVerify(call.state.spec(&function))).await?))
}

/// `DELETE /ember/v1/functions/{name}/snapshot`; also of a function that is not deployed any more.
pub(super) async fn remove(call: &Call, name: &str) -> Answered {
    let name = name.parse().map_err(|_| ApiError::not_found(format!("no function can be named `{name}`")))?;
    discard(call, &name).await?;
    tracing::info!(function = %name, "snapshot removed");
    Ok(reply::nothing())
}

/// Makes the warden do something about a snapshot, and gives what there is then.
pub(super) async fn ask(call: &Call, what: WardenCall) -> Result<SnapshotEntry, ApiError> {
    match call.state.warden.call(what, None).await.map_err(models::refused)? {
        WardenReply::SnapshotTaken(entry) | WardenReply::SnapshotVerified(entry) | WardenReply::Parked(entry) => {
            Ok(entry)
        }
        _ => Err(models::out_of_place()),
    }
}

/// Frees the memory of a function's snapshot; one that has none is fine.
pub(super) async fn store(call: &Call, function: &FunctionName) -> Result<(), ApiError> {
    match call.state.warden.call(WardenCall::Store { function: function.clone() }, None).await {
        Ok(_) | Err(WardenError::SnapshotMissing { .. }) => Ok(()),
        Err(error) => Err(models::refused(error)),
    }
}

/// Removes a function's snapshot; one that has none is fine.
pub(super) async fn discard(call: &Call, function: &FunctionName) -> Result<(), ApiError> {
    let removed = call.state.warden.call(WardenCall::SnapshotRemove { function: function.clone() }, None).await;
    removed.map(drop).map_err(models::refused)
}

/// Snapshots by function.
pub(super) async fn by_function(call: &Call) -> Result<BTreeMap<FunctionName, SnapshotEntry>, ApiError> {
    match call.state.warden.call(WardenCall::Snapshots, None).await.map_err(models::refused)? {
        WardenReply::Snapshots(all) => Ok(all.into_iter().map(|entry| (entry.function.clone(), entry)).collect()),
        _ => Err(models::out_of_place()),
    }
}

/// Where a function with so many instances and this snapshot stands.
pub(super) fn tier(instances: usize, snapshot: Option<&SnapshotEntry>) -> Tier {
    match snapshot {
        _ if instances > 0 => Tier::Running,
        Some(entry) if entry.parked_bytes > 0 => Tier::Parked,
        Some(entry) if entry.file_bytes > 0 && entry.current => Tier::Stored,
        _ => Tier::Cold,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_stands_where_it_would_be_found() {
        let entry = |file_bytes, parked_bytes, current| {
            let (function, needs_bytes) = ("f".parse().unwrap(), 0);
            Some(SnapshotEntry { function, file_bytes, parked_bytes, needs_bytes, current })
        };
        for (instances, snapshot, expected) in [
            (1, None, Tier::Running),
            (1, entry(9, 9, true), Tier::Running),
            (0, entry(9, 9, true), Tier::Parked),
            (0, entry(0, 9, true), Tier::Parked),
            (0, entry(9, 0, true), Tier::Stored),
            (0, entry(9, 0, false), Tier::Cold),
            (0, None, Tier::Cold),
        ] {
            assert_eq!(tier(instances, snapshot.as_ref()), expected, "{instances} {snapshot:?}");
        }
    }
}
