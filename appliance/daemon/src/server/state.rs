//! What all cores share.

use super::{
    drain::Service,
    functions::{Function, Functions},
    handler::unix_ms,
    metrics::Telemetry,
    purse::Purses,
    tenants::Tenants,
    usage::Turns,
};
use crate::{exit::Failure, setup::ServerFiles};
use appliance_config::ServeConfig;
use appliance_keys::{BudgetStore, KeyStore};
use appliance_ledger::{
    Client,
    query::{Answer, Dimension, Filter, PAGE_ROWS_MAX, Query, QueryError},
};
use appliance_meter::Producer;
use appliance_pool::{Pool, Warden};
use appliance_price::{Book, Owner, Period, Prices};
use appliance_types::ModelDigest;
use arc_swap::ArcSwap;
use futures_lite::future::block_on;
use sandbox_wire::{
    runner::ModelInfo,
    warden::{Call as WardenCall, Reply as WardenReply, RunnerSpec},
};
use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// How long the ledger has at the start to take what the last server left, and to say what was spent.
const LEDGER_WAIT: Duration = Duration::from_secs(20);
/// Most models remembered.
const LOADED_MAX: usize = 1024;
const LEDGER_PAUSE: Duration = Duration::from_millis(5);

/// What all cores share; nothing in it is waited for.
pub(super) struct State {
    pub(super) keys: KeyStore,
    pub(super) tenants: Tenants,
    pub(super) functions: Functions,
    pub(super) pool: Pool,
    pub(super) warden: Warden,
    pub(super) prices: ArcSwap<Book>,
    /// The certificate of the CA that callers are to trust.
    pub(super) authority_pem: ArcSwap<String>,
    pub(super) budgets: BudgetStore,
    pub(super) purses: Purses,
    /// Answers what was used.
    pub(super) ledger: Client,
    /// Keys that ask it about themselves.
    pub(super) own_questions: Turns,
    /// What is counted and watched.
    pub(super) telemetry: Telemetry,
    /// Whether the box is in service.
    pub(super) service: Service,
    /// What instances said of their models since the server began.
    loaded: Mutex<HashMap<ModelDigest, Arc<ModelInfo>>>,
    /// Longest body of a request that is read whole.
    pub(super) request_bytes_max: usize,
    /// Cores that instances may compute on.
    inference_cores: u32,
}

impl State {
    /// Opens keys and functions, and tells the pool of the functions.
    pub(super) fn open(
        files: &ServerFiles,
        config: &ServeConfig,
        inference_cores: u32,
        pool: Pool,
        warden: Warden,
        ledger: Client,
        telemetry: Telemetry,
    ) -> Result<Arc<Self>, Failure> {
        let keys = KeyStore::open(Path::new(files.keys)).map_err(|error| Failure::Service(error.to_string()))?;
        let needs = |function: &Function| needs(&warden, function.config().spec_on(inference_cores));
        let functions = Functions::load(Path::new(files.functions), needs);
        let functions = functions.map_err(Failure::of("read", files.functions))?;
        for function in functions.all().values() {
            pool.configure(function.config());
        }
        let request_bytes_max = usize::try_from(config.limits.request_bytes).unwrap_or(usize::MAX);
        let prices = ArcSwap::from_pointee(read_prices(files)?);
        let authority_pem = ArcSwap::from_pointee(read_authority(files)?);
        let budgets = BudgetStore::open(Path::new(files.keys)).map_err(|error| Failure::Service(error.to_string()))?;
        Ok(Arc::new(Self {
            keys,
            tenants: Tenants::new(),
            functions,
            pool,
            warden,
            prices,
            authority_pem,
            budgets,
            purses: Purses::default(),
            ledger,
            own_questions: Turns::default(),
            telemetry,
            service: Service::default(),
            loaded: Mutex::default(),
            request_bytes_max,
            inference_cores,
        }))
    }

    /// An instance says this of its model.
    pub(super) fn saw(&self, digest: ModelDigest, info: &Arc<ModelInfo>) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.len() >= LOADED_MAX && !loaded.contains_key(&digest) {
            loaded.clear();
        }
        loaded.entry(digest).or_insert_with(|| Arc::clone(info));
    }

    /// What an instance said of a model.
    pub(super) fn seen(&self, digest: ModelDigest) -> Option<Arc<ModelInfo>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).cloned()
    }

    /// What instances of `function` are started with, by the pool or by hand.
    pub(super) fn spec(&self, function: &Function) -> RunnerSpec {
        function.config().spec_on(self.inference_cores)
    }

    /// The prices of a request that came at `unix_ms`.
    pub(super) fn prices_at(&self, unix_ms: u64) -> Arc<Prices> {
        Arc::clone(self.prices.load().at(unix_ms))
    }

    /// Takes the CA's certificate anew, or keeps the one in use.
    pub(super) fn reload_authority(&self, files: &ServerFiles) {
        match read_authority(files) {
            Ok(pem) => self.authority_pem.store(Arc::new(pem)),
            Err(error) => tracing::error!(%error, "the CA that callers are shown stays"),
        }
    }

    /// Takes the price book anew, or keeps the one in use.
    pub(super) fn reload_prices(&self, files: &ServerFiles) {
        match read_prices(files) {
            Ok(book) if book.currency() != self.prices.load().currency() => {
                tracing::error!("the currency changes at a restart only; the prices in use stay");
            }
            Ok(book) => {
                tracing::info!(versions = book.versions().len(), "prices reloaded");
                self.prices.store(Arc::new(book));
            }
            Err(error) => tracing::error!(%error, "the prices in use stay"),
        }
    }

    /// Tells the accounts what was spent in this month before this start, what the last server left in its rings included.
    pub(super) fn remember_spent(&self, rings: &mut [Producer]) -> Result<(), Failure> {
        let until = Instant::now() + LEDGER_WAIT;
        while !rings.iter_mut().all(Producer::is_drained) {
            if Instant::now() >= until {
                return Err(Failure::Service("the ledger does not take what the last server left".to_owned()));
            }
            thread::sleep(LEDGER_PAUSE);
        }
        let now = unix_ms();
        let (day, month) = (Period::Day.start_ms(now), Period::Month.start_ms(now));
        for by in [Dimension::Key, Dimension::Project, Dimension::Function] {
            let today: HashMap<_, _> = self.spent(by, day, until)?.into_iter().collect();
            for (group, all) in self.spent(by, month, until)? {
                let new = today.get(&group).copied().unwrap_or(0);
                if let Some(owner) = owner(by, &group) {
                    self.purses.remember(owner.clone(), month, all.saturating_sub(new));
                    self.purses.remember(owner, day, new);
                }
            }
        }
        Ok(())
    }

    /// What each key or function has spent since then, nano-units.
    fn spent(&self, by: Dimension, since_unix_ms: u64, until: Instant) -> Result<Vec<(String, u64)>, Failure> {
        let (mut spent, mut after) = (Vec::new(), None);
        loop {
            let filter = Filter { since_unix_ms, ..Filter::default() };
            match block_on(self.ledger.ask(Query::Usage { filter, by, after: after.clone(), limit: PAGE_ROWS_MAX })) {
                Ok(Answer::Usage { rows, next }) => {
                    spent.extend(rows.into_iter().map(|row| (row.group, row.totals.cost_nanos)));
                    match next {
                        Some(next) => after = Some(next),
                        None => return Ok(spent),
                    }
                }
                Err(QueryError::Restarted | QueryError::Busy) if Instant::now() < until => thread::sleep(LEDGER_PAUSE),
                Err(error) => return Err(Failure::Service(format!("what was spent is not known: {error}"))),
                Ok(_) => return Err(Failure::Bug("the ledger answered another question".to_owned())),
            }
        }
    }
}

/// What was measured of a function, by the snapshot that it would be woken from.
fn needs(warden: &Warden, spec: RunnerSpec) -> Option<u64> {
    match block_on(warden.call(WardenCall::Needs(spec), None)) {
        Ok(WardenReply::Needs(bytes)) => bytes,
        // Its model may be gone: it is told of when somebody calls.
        other => {
            tracing::debug!(?other, "nothing is known of what a function needs");
            None
        }
    }
}

fn read_prices(files: &ServerFiles) -> Result<Book, Failure> {
    let text = fs::read_to_string(files.prices).map_err(Failure::of("read", files.prices))?;
    appliance_config::prices(&text).map_err(|source| Failure::Config { file: files.prices.into(), source })
}

fn read_authority(files: &ServerFiles) -> Result<String, Failure> {
    fs::read_to_string(files.authority).map_err(Failure::of("read", files.authority))
}

/// Whose budget the spending of this group counts to; nobody's where it names none.
fn owner(by: Dimension, group: &str) -> Option<Owner> {
    match by {
        Dimension::Key => group.parse().ok().map(Owner::Key),
        Dimension::Project => group.parse().ok().map(Owner::Project),
        _ => group.parse().ok().map(Owner::Function),
    }
}
