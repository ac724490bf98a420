//! What is answered: the server process, from an accepted connection to the last byte of a reply.
//!
//! ```text
//!  edge ─▶ handler ─▶ route ─▶ key ─┬▶ inference ─▶ generation ─▶ pool ─▶ runner      model endpoints
//!          (one a core)             │       └▶ meter ─▶ desk ─▶ ring ─▶ ledger
//!                                   ├▶ functions, models, instances, snapshots, keys, updates ─▶ warden   operator's endpoints
//!                                   └▶ budgets, usage ─▶ purse, ledger
//! ```
//!
//! Life: `run` starts one executor a core, each serving its own listener; the pool's task lives on the first. It ends
//! when the supervisor says so, or at once when the warden is gone: all instances went with it, and whoever waits is cut
//! off. The supervisor starts both again.
//!
//! Invariants: cores share [`State`] and nothing else; every request that reaches a function makes one record, also one
//! that its client left; nothing here runs as root or trusts a runner. Left out: limits of connections (the edge),
//! queues and instances (the pool), shapes of requests and replies (`appliance-api`).

mod allowance;
mod body;
mod budgets;
mod desk;
mod functions;
mod generation;
mod handler;
mod inference;
mod instances;
mod keys;
mod meter;
mod models;
mod purse;
mod reply;
mod report;
mod route;
mod snapshots;
mod state;
mod tenants;
mod terms;
mod updates;
mod usage;

use crate::{
    control::{Order, Orders},
    exit::Failure,
    resources::resources,
    setup::{ServerFiles, ServerSetup},
};
use appliance_config::{EdgeLimits, ServeConfig};
use appliance_edge::{Certificates, Edge, Limits};
use appliance_ledger::Client;
use appliance_meter::{Producer, RingError};
use appliance_pool::{Inputs, Resources, Warden};
use appliance_runtime::{available_cores, run_per_core, spawn_owned};
use desk::Desk;
use handler::{Server, random};
use state::State;
use std::{
    fs,
    net::TcpListener,
    rc::Rc,
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

/// Serves until told to stop.
///
/// # Errors
/// It could not begin, or a part that it cannot do without ended.
pub(crate) fn run(setup: ServerSetup) -> Result<(), Failure> {
    let ServerSetup { listeners, address, warden, rings, bell, questions, ready, orders, config, files } = setup;
    let certificates = Arc::new(certificates(&files)?);
    let edge = Edge::new(Arc::clone(&certificates), limits(&config.limits)).map_err(Failure::of_tls)?;
    let end = End { edge: edge.clone(), fault: Arc::default() };

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
    let state = State::open(&files, &config, resources.cores, pool, warden.clone(), ledger.clone())?;
    state.remember_spent(&mut producers)?;

    let mut driver = Some(Driver { inputs, warden, resources, end: end.clone() });
    let mut served = listeners.into_iter().zip(producers);
    let (alive, all_ended) = flume::bounded(0);
    let running = run_per_core(&cores[..served.len().min(cores.len())], "server", |_| {
        let (served, driver) = (served.next(), driver.take());
        let core = Core { edge: edge.clone(), state: Arc::clone(&state), ledger: ledger.clone(), alive: alive.clone() };
        let all_ended = all_ended.clone();
        move || core.serve(served, driver, all_ended)
    });
    let running = running.map_err(|error| Failure::Service(error.to_string()))?;
    drop(alive);
    follow(orders, end.clone(), certificates, Arc::clone(&state), files, config)?;
    ready.announce().map_err(Failure::of("speak to", "the supervisor"))?;
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
    edge: Edge,
    fault: Arc<OnceLock<&'static str>>,
}

impl End {
    fn because(&self, fault: &'static str, within: Duration) {
        let _first_counts = self.fault.set(fault);
        self.edge.drain(within);
    }
}

/// What drives the pool, on one core.
struct Driver {
    inputs: Inputs,
    warden: Warden,
    resources: Resources,
    end: End,
}

impl Driver {
    async fn run(self) {
        let Self { inputs, warden, resources, end } = self;
        if appliance_runtime::catch_unwind(appliance_pool::run(inputs, warden, resources)).await.is_err() {
            end.because("the pool panicked", Duration::ZERO);
        }
    }
}

/// One core's share.
struct Core {
    edge: Edge,
    state: Arc<State>,
    ledger: Client,
    /// Dropped when this core serves no more.
    alive: flume::Sender<()>,
}

impl Core {
    /// Serves its listener, writing to its ring, and drives the pool where that is this core's: until no core serves any more.
    async fn serve(
        self,
        served: Option<(TcpListener, Producer)>,
        driver: Option<Driver>,
        all_ended: flume::Receiver<()>,
    ) {
        let pool = driver.map(|driver| spawn_owned(driver.run()));
        if let Some((listener, producer)) = served {
            match self.edge.serve(listener, Rc::new(Server::new(self.state, Desk::new(producer, self.ledger)))).await {
                Ok(served) => tracing::debug!(served.draining, served.cut, "drained"),
                Err(error) => tracing::error!(%error, "cannot serve"),
            }
        }
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
    certificates: Arc<Certificates>,
    state: Arc<State>,
    files: ServerFiles,
    mut config: ServeConfig,
) -> Result<(), Failure> {
    let follow = move || {
        loop {
            match orders.next() {
                Ok(Order::Reload(fresh)) => {
                    reload(&certificates, &files);
                    state.reload_prices(&files);
                    let of_start =
                        |config: &ServeConfig| (config.limits.clone(), config.inference_cores, config.memory_bytes);
                    if of_start(&fresh) != of_start(&config) {
                        tracing::warn!("`limits`, `inference_cores` and `memory` change at the next start only");
                    }
                    config = *fresh;
                }
                Ok(Order::Stop) => return end.edge.drain(Duration::from_millis(config.drain_ms)),
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

fn reload(certificates: &Certificates, files: &ServerFiles) {
    let swapped = read_pem(files).and_then(|(chain, key)| certificates.swap(&chain, &key).map_err(Failure::of_tls));
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
