//! `GET /metrics`: what all cores have counted, and how the box stands, for Prometheus.
//!
//! The pool and the warden are asked, briefly and at once; what they do not say in time is left out, and `ember_part_up` says
//! so: a box that is in trouble is still to be seen. Nothing here calls a function or touches its timers. Writing the page
//! takes a while, hence is done off the serving core.

use super::{
    budgets,
    handler::{Call, unix_ms},
    reply::{self, Answered},
    snapshots,
    state::State,
};
use crate::exit::Failure;
use appliance_api::ApiError;
use appliance_edge::{Edge, ReplyBody, Request};
use appliance_meter::{RingError, Watch};
use appliance_pool::{View, WakesView};
use appliance_runtime::{timeout, unblock};
use appliance_telemetry::{self as telemetry, Format, Shard, Shards, Standing};
use appliance_types::{FunctionName, Tier};
use http::header;
use nix::sys::statvfs::statvfs;
use sandbox_wire::warden::{Call as WardenCall, InstanceStatus, Reply as WardenReply, SnapshotEntry};
use std::{
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

/// How long the pool and the warden have to say how they stand.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Most budgets with series of their own.
const BUDGETS_MAX: usize = 256;

/// What is counted and watched; one for all cores.
pub(super) struct Telemetry {
    shards: Shards,
    rings: Vec<Watch>,
    edge: Edge,
    started_unix_s: f64,
}

impl Telemetry {
    /// Watches `rings`, one a core, and the connections of `edge`.
    pub(super) fn new(edge: Edge, rings: &[OwnedFd]) -> Result<Self, Failure> {
        let rings = rings.iter().map(Watch::attach).collect::<Result<Vec<_>, RingError>>();
        let rings = rings.map_err(|error| Failure::Service(error.to_string()))?;
        let started_unix_s = unix_ms() as f64 / 1e3;
        Ok(Self { shards: Shards::new(rings.len()), rings, edge, started_unix_s })
    }

    /// Where each core counts.
    pub(super) fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.shards.iter()
    }
}

/// `GET /metrics`, with an admin or telemetry key.
pub(super) async fn page(call: &Call, request: &Request) -> Answered {
    let key = &call.caller.key;
    if !key.may_read_metrics() {
        return Err(ApiError::permission(format!("the key `{}` is neither an admin nor a telemetry key", key.name)));
    }
    Ok(written(&call.state, request).await)
}

/// The page, in the format that a request accepts.
pub(super) async fn written(state: &Arc<State>, request: &Request) -> reply::Reply {
    let accept = request.head.headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let format = Format::accepted(Some(&accept.collect::<Vec<_>>().join(",")));
    let (standing, state) = (standing(state).await, Arc::clone(state));
    let page = unblock(move || {
        let functions = state.functions.all();
        let counts = state.telemetry.shards.merged(|function| functions.contains_key(function.as_str()));
        telemetry::render(counts, standing, format)
    });
    reply::with_type(format.content_type(), ReplyBody::Full(page.await.into()))
}

/// Where all functions stand now; none where pool or warden do not say.
pub(super) async fn tiers_now(state: &State) -> Option<Vec<telemetry::FunctionTier>> {
    standing(state).await.functions
}

/// How the box stands now.
async fn standing(state: &State) -> Standing {
    let view = timeout(ANSWER_MAX, state.pool.view()).await.ok().and_then(Result::ok);
    let warden = timeout(ANSWER_MAX, of_warden(state)).await.ok().flatten();
    let mut standing = base(state);
    standing.silent.extend(view.is_none().then_some("pool"));
    standing.silent.extend(warden.is_none().then_some("warden"));
    if let (Some(view), Some((_, snapshots))) = (&view, &warden) {
        standing.functions = Some(tiers(state, view, snapshots));
    }
    if let Some((statuses, snapshots)) = &warden {
        standing.sandboxes = Some(statuses.len() as u64);
        standing.snapshots = Some(telemetry::Snapshots {
            count: snapshots.len() as u64,
            file_bytes: snapshots.iter().map(|entry| entry.file_bytes).sum(),
            parked_bytes: snapshots.iter().map(|entry| entry.parked_bytes).sum(),
        });
    }
    if let Some(view) = view {
        of_pool(view, &mut standing);
    }
    standing
}

/// What is known without asking anybody.
fn base(state: &State) -> Standing {
    let telemetry = &state.telemetry;
    let all = budgets::all(state);
    let budget = |(owner, budget): (&appliance_price::Owner, &appliance_price::Budget)| {
        let standing = state.purses.standing(owner, budget);
        telemetry::Budget {
            of: owner.to_string(),
            period: budget.period.to_string(),
            limit_nanos: budget.hard_nanos,
            spent_nanos: standing.spent_nanos,
            reserved_nanos: standing.reserved_nanos,
        }
    };
    let ring = |ring: &Watch| {
        let fill = ring.fill();
        telemetry::Ring { used: fill.used, capacity: fill.capacity }
    };
    let free = statvfs(".").ok().map(|disk| disk.blocks_available().saturating_mul(disk.fragment_size()));
    Standing {
        version: env!("CARGO_PKG_VERSION"),
        started_unix_s: telemetry.started_unix_s,
        snapshots_retired: state.warden.snapshots_retired(),
        rings: telemetry.rings.iter().map(ring).collect(),
        ledger: telemetry::Ledger { low: state.ledger.is_low(), free_bytes: free },
        budgets: all.iter().take(BUDGETS_MAX).map(budget).collect(),
        budgets_total: all.len() as u64,
        budget_alarms_soft: state.purses.soft_reached.load(Relaxed),
        budget_alarms_hard: state.purses.hard_reached.load(Relaxed),
        budget_refusals: state.purses.refused.load(Relaxed),
        currency: state.prices.load().currency().to_string(),
        connections: connections(&telemetry.edge),
        ..Standing::default()
    }
}

fn connections(edge: &Edge) -> telemetry::Connections {
    let counts = edge.counts();
    telemetry::Connections {
        open: counts.connections,
        accepted: counts.accepted,
        refused: counts.refused,
        cut: counts.cut,
        handshakes_failed: counts.handshakes_failed,
        requests: counts.requests,
        panics: counts.panics,
    }
}

async fn of_warden(state: &State) -> Option<(Vec<InstanceStatus>, Vec<SnapshotEntry>)> {
    let WardenReply::Instances(statuses) = state.warden.call(WardenCall::Instances, None).await.ok()? else {
        return None;
    };
    match state.warden.call(WardenCall::Snapshots, None).await.ok()? {
        WardenReply::Snapshots(snapshots) => Some((statuses, snapshots)),
        _ => None,
    }
}

fn tiers(state: &State, view: &View, snapshots: &[SnapshotEntry]) -> Vec<telemetry::FunctionTier> {
    let tier = |function: &FunctionName| {
        let instances = view.instances.iter().filter(|instance| instance.function == *function).count();
        snapshots::tier(instances, snapshots.iter().find(|entry| entry.function == *function))
    };
    let all = state.functions.all();
    all.keys().map(|function| telemetry::FunctionTier { function: function.clone(), tier: tier(function) }).collect()
}

fn of_pool(view: View, standing: &mut Standing) {
    let busy = view.instances.iter().filter(|instance| instance.slots_busy > 0).count() as u64;
    let sum = |slots: fn(&appliance_pool::InstanceView) -> u32| {
        view.instances.iter().map(|instance| u64::from(slots(instance))).sum()
    };
    standing.instances = Some(telemetry::Instances {
        busy,
        idle: view.instances.len() as u64 - busy,
        waking: view.waking as u64,
        slots: sum(|instance| instance.slots),
        slots_busy: sum(|instance| instance.slots_busy),
    });
    let [total, leased] = view.cores.map(u64::from);
    standing.cores = Some(telemetry::Cores { total, leased });
    let [total, usable, leased] = view.memory;
    standing.memory = Some(telemetry::Memory { total, usable, leased });
    standing.wakes = view.wakes.iter().map(|(tier, wakes)| of_wakes(*tier, wakes)).collect();
    standing.wakes_failed = view.wakes_failed;
    let queue = |queue: appliance_pool::QueueView| telemetry::Queue {
        function: queue.function,
        interactive: queue.interactive as u64,
        batch: queue.batch as u64,
    };
    standing.queues = view.queues.into_iter().map(queue).collect();
}

fn of_wakes(tier: Tier, wakes: &WakesView) -> telemetry::Wakes {
    let WakesView { count, find_us, process_us, ready_us, handover_us } = *wakes;
    let parts_us = vec![("find", find_us), ("process", process_us), ("ready", ready_us), ("handover", handover_us)];
    telemetry::Wakes { tier, count, parts_us }
}
