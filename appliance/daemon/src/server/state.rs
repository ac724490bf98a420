//! What all cores share.

use super::{
    functions::{Function, Functions},
    handler::unix_ms,
    purse::Purses,
    tenants::Tenants,
    usage::{Past, Seen},
};
use crate::{exit::Failure, setup::ServerFiles};
use appliance_config::ServeConfig;
use appliance_keys::{BudgetStore, KeyStore};
use appliance_ledger::{SendError, Sender};
use appliance_pool::{Pool, Warden};
use appliance_price::{Book, Owner, Prices};
use appliance_types::Record;
use arc_swap::ArcSwap;
use sandbox_wire::warden::RunnerSpec;
use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// What all cores share; nothing in it is waited for.
pub(super) struct State {
    pub(super) keys: KeyStore,
    pub(super) tenants: Tenants,
    pub(super) functions: Functions,
    pub(super) pool: Pool,
    pub(super) warden: Warden,
    pub(super) prices: ArcSwap<Book>,
    pub(super) budgets: BudgetStore,
    pub(super) purses: Purses,
    pub(super) past: Past,
    /// Longest body of a request that is read whole.
    pub(super) request_bytes_max: usize,
    /// Cores that instances may compute on.
    inference_cores: u32,
    ledger: Sender,
    /// Records that the ledger did not take.
    records_lost: AtomicU64,
}

impl State {
    /// Opens keys and functions, and tells the pool of the functions.
    pub(super) fn open(
        files: &ServerFiles,
        config: &ServeConfig,
        inference_cores: u32,
        pool: Pool,
        warden: Warden,
        ledger: Sender,
        past: File,
    ) -> Result<Arc<Self>, Failure> {
        let keys = KeyStore::open(Path::new(files.keys)).map_err(|error| Failure::Service(error.to_string()))?;
        let functions = Functions::load(Path::new(files.functions)).map_err(Failure::of("read", files.functions))?;
        for function in functions.all().values() {
            pool.configure(function.config());
        }
        let request_bytes_max = usize::try_from(config.limits.request_bytes).unwrap_or(usize::MAX);
        let prices = ArcSwap::from_pointee(read_prices(files)?);
        let budgets = BudgetStore::open(Path::new(files.keys)).map_err(|error| Failure::Service(error.to_string()))?;
        let (past, purses) = (Past::new(past), Purses::default());
        remember(&past, &keys, &purses).map_err(Failure::of("read", "the ledger"))?;
        let records_lost = AtomicU64::new(0);
        Ok(Arc::new(Self {
            keys,
            tenants: Tenants::new(),
            functions,
            pool,
            warden,
            prices,
            budgets,
            purses,
            past,
            request_bytes_max,
            inference_cores,
            ledger,
            records_lost,
        }))
    }

    /// What instances of `function` are started with, by the pool or by hand.
    pub(super) fn spec(&self, function: &Function) -> RunnerSpec {
        function.config().spec_on(self.inference_cores)
    }

    /// The prices of a request that came at `unix_ms`.
    pub(super) fn prices_at(&self, unix_ms: u64) -> Arc<Prices> {
        Arc::clone(self.prices.load().at(unix_ms))
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

    /// Hands a record to the ledger. One that cannot be taken is logged in full, so that it is not lost to the bill.
    pub(super) fn record(&self, record: &Record) {
        match self.ledger.send(record) {
            Ok(()) => {}
            Err(error @ (SendError::Full | SendError::Closed(_) | SendError::Unfit(_))) => {
                let lost = self.records_lost.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::error!(%error, lost, ?record, "the ledger did not take a record");
            }
        }
    }
}

fn read_prices(files: &ServerFiles) -> Result<Book, Failure> {
    let text = fs::read_to_string(files.prices).map_err(Failure::of("read", files.prices))?;
    appliance_config::prices(&text).map_err(|source| Failure::Config { file: files.prices.into(), source })
}

/// Tells the accounts what was spent before, in this month.
fn remember(past: &Past, keys: &KeyStore, purses: &Purses) -> io::Result<()> {
    let projects: HashMap<_, _> = keys.list().iter().map(|key| (key.name.clone(), key.project.clone())).collect();
    let month_ms = appliance_price::Period::Month.start_ms(unix_ms());
    past.scan(|record| {
        let spent = |owner| purses.remember(owner, record.ended_unix_ms, record.cost_nanos);
        if record.ended_unix_ms >= month_ms && record.cost_nanos > 0 {
            if let Some(Some(project)) = projects.get(&record.key) {
                spent(Owner::Project(project.clone()));
            }
            spent(Owner::Key(record.key.clone()));
            spent(Owner::Function(record.function.clone()));
        }
        Seen::More
    })
}
