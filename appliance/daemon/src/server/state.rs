//! What all cores share.

use super::{
    functions::{Function, Functions},
    tenants::Tenants,
};
use crate::{exit::Failure, setup::ServerFiles};
use appliance_api::Prices;
use appliance_config::ServeConfig;
use appliance_keys::KeyStore;
use appliance_pool::{Pool, Warden};
use sandbox_wire::warden::RunnerSpec;
use std::{path::Path, sync::Arc};

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
}

impl State {
    /// Opens keys and functions, and tells the pool of the functions.
    pub(super) fn open(
        files: &ServerFiles,
        config: &ServeConfig,
        inference_cores: u32,
        pool: Pool,
        warden: Warden,
    ) -> Result<Arc<Self>, Failure> {
        let keys = KeyStore::open(Path::new(files.keys)).map_err(|error| Failure::Service(error.to_string()))?;
        let functions = Functions::load(Path::new(files.functions)).map_err(Failure::of("read", files.functions))?;
        for function in functions.all().values() {
            pool.configure(function.config());
        }
        let request_bytes_max = usize::try_from(config.limits.request_bytes).unwrap_or(usize::MAX);
        let prices = Prices::default();
        Ok(Arc::new(Self {
            keys,
            tenants: Tenants::new(),
            functions,
            pool,
            warden,
            prices,
            request_bytes_max,
            inference_cores,
        }))
    }

    /// What instances of `function` are started with, by the pool or by hand.
    pub(super) fn spec(&self, function: &Function) -> RunnerSpec {
        function.config().spec_on(self.inference_cores)
    }
}
