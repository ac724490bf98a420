//! Instances that are up: listed, woken and stopped by hand.

use super::{
    functions,
    generation::refused,
    handler::Call,
    models,
    reply::{self, Answered},
};
use appliance_api::ApiError;
use appliance_pool::{Event, InstanceView, Work};
use appliance_runtime::sleep;
use appliance_types::{FunctionName, Tier};
use sandbox_wire::warden::{Call as WardenCall, InstanceStatus, Reply as WardenReply};
use serde_json::json;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Longest that an operator's command waits for instances to end; busy ones end when they are done.
const GONE_WAIT: Duration = Duration::from_secs(5);
const GONE_STEP: Duration = Duration::from_millis(10);

/// `GET /ember/v1/instances`
pub(super) async fn list(call: &Call) -> Answered {
    let instances = all(call).await?;
    let statuses = statuses(call).await?;
    let rows = instances.iter().map(|view| {
        let status = statuses.iter().find(|status| status.instance == view.instance);
        json!({
            "function": view.function,
            "instance": view.instance,
            "tier": Tier::Running,
            "private_bytes": status.map(|status| status.private_bytes),
            "shared_bytes": status.map(|status| status.shared_bytes),
            "cpu_us": status.map(|status| status.cpu_us),
            "cores": view.threads,
            "slots": view.slots,
            "slots_busy": view.slots_busy,
            "until_s": view.idle_stop_in.map(|left| left.as_secs_f64()),
            "wake_p50_ms": view.wake_p50_ms,
        })
    });
    Ok(reply::list(&rows.collect::<Vec<_>>()))
}

/// `POST /ember/v1/functions/{name}/wake`: returns when an instance is up.
pub(super) async fn wake(call: &Call, name: &str) -> Answered {
    let name = functions::find(call, name)?.manifest.name.clone();
    let mut submission = call.state.pool.submit(name.clone(), Work::Wake).map_err(refused)?;
    match submission.next().await {
        Event::Dispatched(how) => Ok(reply::json(&json!({
            "name": name,
            "tier": how.tier,
            "wake_ms": how.wake_us as f64 / 1_000.0,
        }))),
        Event::Failed(failed) => Err(refused(failed)),
        Event::Reply(_) => Err(ApiError::internal("a wake was answered with words")),
    }
}

/// `POST /ember/v1/functions/{name}/stop`: idle instances end now, busy ones when they are done.
pub(super) async fn stop(call: &Call, name: &str) -> Answered {
    let name = functions::find(call, name)?.manifest.name.clone();
    call.state.pool.stop(name.clone());
    let left = until_gone(call, &name).await?;
    Ok(reply::json(&json!({ "name": name, "instances": left })))
}

/// Waits until nothing is left of a function's instances, up to [`GONE_WAIT`]; gives how many it has then.
pub(super) async fn until_gone(call: &Call, name: &FunctionName) -> Result<usize, ApiError> {
    let end = Instant::now() + GONE_WAIT;
    loop {
        let left = statuses(call).await?.iter().filter(|status| status.function == *name).count();
        if left == 0 || Instant::now() >= end {
            return Ok(left);
        }
        sleep(GONE_STEP).await;
    }
}

/// Instances by function.
pub(super) async fn by_function(call: &Call) -> Result<BTreeMap<FunctionName, Vec<InstanceView>>, ApiError> {
    let mut map: BTreeMap<FunctionName, Vec<InstanceView>> = BTreeMap::new();
    for view in all(call).await? {
        map.entry(view.function.clone()).or_default().push(view);
    }
    Ok(map)
}

/// Where a function with so many instances stands.
pub(super) fn tier(instances: usize) -> Tier {
    if instances > 0 { Tier::Running } else { Tier::Cold }
}

/// What the warden knows of instances, those that are ending included.
async fn statuses(call: &Call) -> Result<Vec<InstanceStatus>, ApiError> {
    match call.state.warden.call(WardenCall::Instances, None).await.map_err(models::refused)? {
        WardenReply::Instances(statuses) => Ok(statuses),
        _ => Err(ApiError::internal("the warden answered out of place")),
    }
}

async fn all(call: &Call) -> Result<Vec<InstanceView>, ApiError> {
    call.state.pool.instances().await.map_err(|lost| ApiError::unavailable(lost.to_string(), 1))
}
