//! What all cores share.

use super::{
    functions::{Function, Functions},
    tenants::Tenants,
};
use crate::{exit::Failure, setup::ServerFiles};
use appliance_api::Prices;
use appliance_config::ServeConfig;
use appliance_keys::KeyStore;
use appliance_ledger::{SendError, Sender};
use appliance_pool::{Pool, Warden};
use appliance_types::Record;
use sandbox_wire::warden::RunnerSpec;
use std::{
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
    pub(super) prices: Prices,
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
    ) -> Result<Arc<Self>, Failure> {
        let keys = KeyStore::open(Path::new(files.keys)).map_err(|error| Failure::Service(error.to_string()))?;
        let functions = Functions::load(Path::new(files.functions)).map_err(Failure::of("read", files.functions))?;
        for function in functions.all().values() {
            pool.configure(function.config());
        }
        let request_bytes_max = usize::try_from(config.limits.request_bytes).unwrap_or(usize::MAX);
        let prices = Prices::default();
        let records_lost = AtomicU64::new(0);
        Ok(Arc::new(Self {
            keys,
            tenants: Tenants::new(),
            functions,
            pool,
            warden,
            prices,
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
