//! Instances that are up and functions that are parked: listed; and moved up or down the tiers by hand.

use super::{
    functions,
    generation::refused,
    handler::{Call, unix_ms},
    models,
    reply::{self, Answered},
    snapshots,
};
use appliance_api::ApiError;
use appliance_pool::{Event, FailingView, InstanceView, Share, System, View, WakeView, Work};
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
    // First, so that what the warden tells of its own processes with it is in the account.
    let machine = machine(call).await?;
    let View { instances, held, system, wakes_latest, .. } = view(call).await?;
    let now_unix_ms = unix_ms();
    let (statuses, snapshots) = (statuses(call).await?, snapshots::by_function(call).await?);
    let up = instances.iter().map(|view| {
        let status = statuses.iter().find(|status| status.instance == view.instance);
        json!({
            "function": view.function,
            "instance": view.instance,
            "tier": Tier::Running,
            "private_bytes": status.map(|status| status.private_bytes),
            "shared_bytes": status.map(|status| status.shared_bytes),
            "reserved_bytes": view.memory_bytes,
            "cpu_us": status.map(|status| status.cpu_us),
            "cores": view.threads,
            "slots": view.slots,
            "slots_busy": view.slots_busy,
            "until_s": view.idle_stop_in.map(|left| left.as_secs_f64()),
            "wake_p50_ms": view.wake_p50_ms,
        })
    });
    let parked = snapshots.values().filter(|entry| {
        let instances = instances.iter().filter(|view| view.function == entry.function).count();
        snapshots::tier(instances, Some(entry)) == Tier::Parked
    });
    let parked = parked.map(|entry| {
        let held = held.iter().find(|held| held.function == entry.function);
        json!({
            "function": entry.function,
            "instance": null,
            "tier": Tier::Parked,
            "parked_bytes": entry.parked_bytes,
            "until_s": held.map(|held| held.store_in.as_secs_f64()),
            "wake_p50_ms": held.and_then(|held| held.wake_p50_ms),
        })
    });
    let data: Vec<_> = up.chain(parked).collect();
    let system: Vec<_> = system.iter().map(own_account).collect();
    let machine = share(&machine);
    let wakes: Vec<_> = wakes_latest.iter().map(|wake| latest(now_unix_ms, wake)).collect();
    Ok(reply::json(&json!({ "data": data, "system": system, "machine": machine, "wakes": wakes })))
}

fn latest(now_unix_ms: u64, wake: &WakeView) -> serde_json::Value {
    let ago_ms = u64::try_from(wake.ago.as_millis()).unwrap_or(u64::MAX);
    json!({
        "function": wake.function,
        "tier": wake.tier,
        "ended_unix_ms": now_unix_ms.saturating_sub(ago_ms),
        "find_us": wake.parts.find_us,
        "process_us": wake.parts.process_us,
        "ready_us": wake.parts.ready_us,
        "handover_us": wake.handover_us,
    })
}

fn share(share: &Share) -> serde_json::Value {
    json!({
        "us": share.us,
        "cpu_us": share.cpu_us,
        // In ms, 64 GiB would be too many within days.
        "reserved_byte_s": u64::try_from(share.reserved_byte_us / 1_000_000).unwrap_or(u64::MAX),
        "used_byte_s": u64::try_from(share.used_byte_us / 1_000_000).unwrap_or(u64::MAX),
    })
}

/// What nobody is billed for, of a function's processes since the server began: with what its requests are billed, that
/// is the processes' lives.
fn own_account((function, system): (&FunctionName, &System)) -> serde_json::Value {
    json!({
        "function": function,
        "wakes": system.instances,
        "idle": share(&system.idle),
        "provision": share(&system.provision),
        "waste": share(&system.waste),
        "capture": share(&system.capture),
        "trial": share(&system.trial),
        "spare": share(&system.spare),
        "late": share(&system.late),
        "life": share(&system.life),
    })
}

/// `POST /ember/v1/functions/{name}/wake`: returns when an instance is up.
pub(super) async fn wake(call: &Call, name: &str) -> Answered {
    let function = functions::find(call, name)?;
    let name = function.manifest.name.clone();
    let mut submission = call.state.pool.submit(name.clone(), Work::Wake).map_err(refused)?;
    match submission.next().await {
        Event::Dispatched(how) => {
            call.state.saw(function.model, &how.model);
            let wake_ms = how.wake_us as f64 / 1_000.0;
            Ok(reply::json(&json!({ "name": name, "tier": how.tier, "wake_ms": wake_ms })))
        }
        Event::Failed(failed) => Err(refused(failed)),
        Event::Corrected | Event::Reply(_) => Err(ApiError::internal("a wake was answered with words")),
    }
}

/// `POST /ember/v1/functions/{name}/park`: instances end as with a stop; what is held in memory is there on return.
pub(super) async fn park(call: &Call, name: &str) -> Answered {
    let function = functions::find(call, name)?;
    let name = function.manifest.name.clone();
    call.state.pool.stop(name.clone());
    let left = until_gone(call, &name).await?;
    let reservation = functions::reserve(call, &function).await?;
    let entry = snapshots::ask(call, WardenCall::Park(call.state.spec(&function))).await?;
    call.state.pool.hold(name.clone(), entry.parked_bytes);
    drop(reservation);
    Ok(reply::json(&json!({ "name": name, "instances": left, "parked_bytes": entry.parked_bytes })))
}

/// `POST /ember/v1/functions/{name}/stop`: idle instances end now, busy ones when they are done; nothing is held in
/// memory then.
pub(super) async fn stop(call: &Call, name: &str) -> Answered {
    let name = functions::find(call, name)?.manifest.name.clone();
    // Before the instances end, too: else the warden restores the next one ahead of need, to end it again.
    snapshots::store(call, &name).await?;
    call.state.pool.stop(name.clone());
    let left = until_gone(call, &name).await?;
    call.state.pool.storing(name.clone());
    snapshots::store(call, &name).await?;
    call.state.pool.stored(name.clone());
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
    for view in view(call).await?.instances {
        map.entry(view.function.clone()).or_default().push(view);
    }
    Ok(map)
}

/// Why a function is not woken for now; `null` where it is.
pub(super) async fn failing(call: &Call, name: &FunctionName) -> Result<serde_json::Value, ApiError> {
    let failing = view(call).await?.failing.into_iter().find(|failing| failing.function == *name);
    Ok(failing.map_or(serde_json::Value::Null, |failing| {
        let FailingView { failures, reason, retry_in, .. } = failing;
        json!({ "failures": failures, "reason": reason, "retry_in_s": retry_in.as_secs_f64() })
    }))
}

/// What the warden knows of instances, those that are ending included.
pub(super) async fn statuses(call: &Call) -> Result<Vec<InstanceStatus>, ApiError> {
    match call.state.warden.call(WardenCall::Instances, None).await.map_err(models::refused)? {
        WardenReply::Instances(statuses) => Ok(statuses),
        _ => Err(models::out_of_place()),
    }
}

/// What all processes took of the machine since the warden began, by its clock and by the kernel's count.
async fn machine(call: &Call) -> Result<Share, ApiError> {
    match call.state.warden.call(WardenCall::Machine, None).await.map_err(models::refused)? {
        WardenReply::Machine(spent) => Ok(spent.into()),
        _ => Err(models::out_of_place()),
    }
}

async fn view(call: &Call) -> Result<View, ApiError> {
    call.state.pool.view().await.map_err(|lost| ApiError::unavailable(lost.to_string(), 1))
}
