//! What is answered: the server process, from an accepted connection to the last byte of a reply.
//!
//! ```text
//!  edge ─▶ handler ─▶ route ─▶ key ─┬▶ inference ─▶ generation ─▶ pool ─▶ runner      model endpoints
//!          (one a core)             │       └▶ meter ─▶ desk ─▶ ring ─▶ ledger
//!                                   ├▶ ollama's listings, functions, models, instances, snapshots, keys, updates ─▶ warden   operator's endpoints
//!                                   ├▶ budgets, usage ─▶ purse, ledger
//!                                   ├▶ drain
//!                                   └▶ metrics ─▶ each core's shard, pool, warden, rings
//! ```
//!
//! A fleet is answered on a socket and an edge of its own: [`fleet`]; a load balancer on one without: [`agent`].
//!
//! Life: `run` starts one executor a core, each serving its own listener; the pool's task lives on the first. It ends
//! when the supervisor says so, or at once when the warden is gone: all instances went with it, and whoever waits is cut
//! off. The supervisor starts both again.
//!
//! Invariants: cores share [`State`] and nothing else; every request that reaches a function makes one record, also one
//! that its client left; nothing here runs as root or trusts a runner. Left out: limits of connections (the edge),
//! queues and instances (the pool), shapes of requests and replies (`appliance-api`).

mod agent;
mod allowance;
mod assets;
mod body;
mod budgets;
mod desk;
mod drain;
mod fleet;
mod functions;
mod generation;
mod handler;
mod inference;
mod instances;
mod keys;
mod meter;
mod metrics;
mod models;
mod ollama;
mod purse;
mod reply;
mod report;
mod route;
mod snapshots;
mod state;
mod tenants;
mod terms;
mod updates;
mod urgency;
mod usage;

use crate::{
    control::{Order, Orders, Speaker},
    exit::Failure,
    resources::resources,
    setup::{ServerFiles, ServerSetup},
};
use appliance_config::{EdgeLimits, ServeConfig};
use appliance_edge::{Certificates, Edge, Limits};
use appliance_ledger::Client;
use appliance_listener::Teller;
use appliance_meter::{Producer, RingError};
use appliance_pool::{Inputs, Resources, Warden};
use appliance_runtime::{available_cores, run_per_core, spawn_owned};
use appliance_telemetry::Shard;
use desk::Desk;
use fleet::{Fleet, Standing};
use handler::{Server, random};
use metrics::Telemetry;
use sandbox_kernel::pressure::MemoryPressure;
use state::State;
use std::{
    fs,
    net::TcpListener,
    rc::Rc,
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};
use urgency::Urgency;

/// Serves until told to stop.
///
/// # Errors
/// It could not begin, or a part that it cannot do without ended.
pub(crate) fn run(setup: ServerSetup) -> Result<(), Failure> {
    let ServerSetup {
        listeners,
        telemetry_listener,
        agent_listener,
        address,
        warden,
        rings,
        bell,
        questions,
        pressure,
        speaker,
        orders,
        config,
        files,
    } = setup;
    let certificates = Arc::new(certificates(&files)?);
    let edge = Edge::new(Arc::clone(&certificates), limits(&config.limits)).map_err(Failure::of_tls)?;
    let fleet = telemetry_listener.map(|listener| Ok::<_, Failure>((listener, Fleet::open(&files)?))).transpose()?;
    let edges: Vec<_> = [edge.clone()].into_iter().chain(fleet.iter().map(|(_, fleet)| fleet.edge.clone())).collect();
    let end = End { edges, fault: Arc::default() };

    let for_warden = end.clone();
    let warden = Warden::connect(warden, move || for_warden.because("the warden is gone", Duration::ZERO));
    let warden = warden.map_err(Failure::of("speak to", "the warden"))?;
    let (pool, inputs) = appliance_pool::pool();
    let cores = available_cores().map_err(Failure::of("count", "the cores"))?;
    let resources = resources(&config)?;
    let ledger = Client::connect(questions).map_err(Failure::of("ask", "the ledger"))?;
    let boot = random() as u64;
    let bell = || bell.try_clone().map_err(Failure::of("duplicate", "the ledger's bell"));
    let produce =
        |ring| Producer::attach(ring, bell()?, boot).map_err(|error: RingError| Failure::Service(error.to_string()));
    let mut producers = rings.iter().map(produce).collect::<Result<Vec<_>, _>>()?;
    let telemetry = Telemetry::new(edge.clone(), &rings)?;
    let state = State::open(&files, &config, resources.cores, pool, warden.clone(), ledger.clone(), telemetry)?;
    state.remember_spent(&mut producers)?;

    let of_telemetry = fleet.as_ref().map(|(_, fleet)| Arc::clone(&fleet.certificates));
    let certificates = AllCertificates { of_requests: certificates, of_telemetry };
    let mut telling = fleet.map(|(listener, fleet)| {
        let edge = fleet.edge.clone();
        Telling { listener, edge, teller: fleet.teller(Arc::clone(&state)) }
    });
    let mut agent = agent_listener;
    let mut driver = Some(Driver { inputs, warden, resources, pressure, end: end.clone() });
    let shards: Vec<_> = state.telemetry.shards().cloned().collect();
    let served = listeners.into_iter().zip(producers).zip(shards);
    let mut served = served.map(|((listener, producer), shard)| Served { listener, producer, shard });
    let (alive, all_ended) = flume::bounded(0);
    let running = run_per_core(&cores[..served.len().min(cores.len())], "server", |_| {
        let asides = Asides { driver: driver.take(), telling: telling.take(), agent: agent.take() };
        let served = served.next();
        let core = Core {
            edge: edge.clone(),
            state: Arc::clone(&state),
            ledger: ledger.clone(),
            speaker: speaker.clone(),
            alive: alive.clone(),
        };
        let all_ended = all_ended.clone();
        move || core.serve(served, asides, all_ended)
    });
    let running = running.map_err(|error| Failure::Service(error.to_string()))?;
    drop(alive);
    follow(orders, end.clone(), certificates, Arc::clone(&state), files, config)?;
    speaker.is_ready().map_err(Failure::of("speak to", "the supervisor"))?;
    tracing::info!(%address, cores = cores.len(), functions = state.functions.all().len(), "serving");

    let panicked = running.join().iter().any(Option::is_none);
    match end.fault.get() {
        Some(fault) => Err(Failure::Service((*fault).to_owned())),
        None if panicked => Err(Failure::Bug("a core's task panicked".to_owned())),
        None => Ok(()),
    }
}

/// How the server ends: by a drain, and for a reason unless it was told to.
#[derive(Clone)]
struct End {
    edges: Vec<Edge>,
    fault: Arc<OnceLock<&'static str>>,
}

impl End {
    fn because(&self, fault: &'static str, within: Duration) {
        let _first_counts = self.fault.set(fault);
        self.drain(within);
    }

    fn drain(&self, within: Duration) {
        self.edges.iter().for_each(|edge| edge.drain(within));
    }
}

/// The certificates that can be swapped.
struct AllCertificates {
    of_requests: Arc<Certificates>,
    of_telemetry: Option<Arc<Certificates>>,
}

/// What telemetry is answered with, on one core.
struct Telling {
    listener: TcpListener,
    edge: Edge,
    teller: Teller<Standing>,
}

impl Telling {
    async fn run(self) {
        if let Err(error) = self.edge.serve(self.listener, Rc::new(self.teller)).await {
            tracing::error!(%error, "cannot serve telemetry");
        }
    }
}

/// What drives the pool, on one core.
struct Driver {
    inputs: Inputs,
    warden: Warden,
    resources: Resources,
    pressure: Option<MemoryPressure>,
    end: End,
}

impl Driver {
    async fn run(self) {
        let Self { inputs, warden, resources, pressure, end } = self;
        if appliance_runtime::catch_unwind(appliance_pool::run(inputs, warden, resources, pressure)).await.is_err() {
            end.because("the pool panicked", Duration::ZERO);
        }
    }
}

/// What the first core does beside its share.
struct Asides {
    driver: Option<Driver>,
    telling: Option<Telling>,
    agent: Option<TcpListener>,
}

/// What one core serves, and where it says and counts what it did.
struct Served {
    listener: TcpListener,
    producer: Producer,
    shard: Shard,
}

/// One core's share.
struct Core {
    edge: Edge,
    state: Arc<State>,
    ledger: Client,
    speaker: Speaker,
    /// Dropped when this core serves no more.
    alive: flume::Sender<()>,
}

impl Core {
    /// Serves its listener, writing to its ring, and drives the pool where that is this core's: until no core serves any more.
    async fn serve(self, served: Option<Served>, asides: Asides, all_ended: flume::Receiver<()>) {
        let pool = asides.driver.map(|driver| spawn_owned(driver.run()));
        let telemetry = asides.telling.map(|telling| spawn_owned(telling.run()));
        let agent = asides.agent.map(|listener| spawn_owned(agent::answer(listener, Arc::clone(&self.state))));
        if let Some(Served { listener, producer, shard }) = served {
            let desk = Desk::new(producer, self.ledger, shard);
            match self.edge.serve(listener, Rc::new(Server::new(self.state, desk, Urgency::begin(self.speaker)))).await
            {
                Ok(served) => tracing::debug!(served.draining, served.cut, "drained"),
                Err(error) => tracing::error!(%error, "cannot serve"),
            }
        }
        if let Some(telemetry) = telemetry {
            let _drained = telemetry.await;
        }
        drop(agent);
        drop(self.alive);
        if let Some(pool) = pool {
            let _disconnected = all_ended.recv_async().await;
            pool.cancel().await;
        }
    }
}

/// Follows the supervisor's orders on a thread of its own, up to the last.
fn follow(
    mut orders: Orders,
    end: End,
    certificates: AllCertificates,
    state: Arc<State>,
    files: ServerFiles,
    mut config: ServeConfig,
) -> Result<(), Failure> {
    let follow = move || {
        loop {
            match orders.next() {
                Ok(Order::Reload(fresh)) => {
                    reload(&certificates, &files);
                    state.reload_authority(&files);
                    state.reload_prices(&files);
                    let of_start = |config: &ServeConfig| {
                        let pressure = config.memory_pressure.clone();
                        (config.limits.clone(), config.inference_cores, config.memory_bytes, pressure)
                    };
                    if of_start(&fresh) != of_start(&config) {
                        tracing::warn!(
                            "`limits`, `inference_cores`, `memory` and `memory_pressure` change at the next start only"
                        );
                    }
                    config = *fresh;
                }
                Ok(Order::Stop) => {
                    state.service.stop();
                    return end.drain(Duration::from_millis(config.drain_ms));
                }
                Err(error) => {
                    tracing::error!(%error, "no orders any more");
                    return end.because("the supervisor cannot be heard", Duration::from_millis(config.drain_ms));
                }
            }
        }
    };
    thread::Builder::new().name("orders".into()).spawn(follow).map_err(Failure::of("start", "a thread"))?;
    Ok(())
}

fn reload(certificates: &AllCertificates, files: &ServerFiles) {
    let of_requests = &certificates.of_requests;
    let swapped = read_pem(files).and_then(|(chain, key)| of_requests.swap(&chain, &key).map_err(Failure::of_tls));
    let of_telemetry = certificates.of_telemetry.as_ref();
    let swapped = swapped.and_then(|()| of_telemetry.map_or(Ok(()), |known| Fleet::reload(known, files)));
    match swapped {
        Ok(()) => tracing::info!("certificate reloaded"),
        Err(error) => tracing::error!(%error, "the certificate in use stays"),
    }
}

fn certificates(files: &ServerFiles) -> Result<Certificates, Failure> {
    let (chain, key) = read_pem(files)?;
    Certificates::load(&chain, &key).map_err(Failure::of_tls)
}

fn read_pem(files: &ServerFiles) -> Result<(String, String), Failure> {
    let read = |path: &'static str| fs::read_to_string(path).map_err(Failure::of("read", path));
    Ok((read(files.certificate)?, read(files.certificate_key)?))
}

fn limits(config: &EdgeLimits) -> Limits {
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    Limits {
        connections_max: config.connections as usize,
        connections_per_address_max: config.connections_per_address as usize,
        handshake_timeout: Duration::from_millis(config.handshake_timeout_ms),
        head_timeout: Duration::from_millis(config.header_timeout_ms),
        body_timeout: Duration::from_millis(config.body_timeout_ms),
        idle_timeout: Duration::from_millis(config.idle_timeout_ms),
        head_bytes_max: size(config.header_bytes),
        headers_max: config.headers as usize,
        body_bytes_max: size(config.request_bytes),
        streams_max: config.streams,
        ..Limits::default()
    }
}
