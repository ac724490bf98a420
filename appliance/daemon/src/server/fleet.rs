//! The box as its fleet sees it: what the telemetry listener (`appliance/listener`) is served with and shows beside the ledger.

use super::{functions::Function, handler, metrics, reply::Reply, state::State};
use crate::{
    exit::Failure,
    setup::ServerFiles,
    telemetry_files::{NAME, read_boots},
};
use appliance_edge::{Certificates, Edge, Request, authority::Signer};
use appliance_listener::{Shown, Teller};
use appliance_price::Prices;
use nix::sys::{statvfs::statvfs, utsname::uname};
use serde_json::{Map, Value, json};
use std::{fs, path::Path, sync::Arc};

/// Telemetry's own edge and what it is served with.
pub(super) struct Fleet {
    pub(super) edge: Edge,
    pub(super) certificates: Arc<Certificates>,
    signer: Signer,
    name: String,
}

impl Fleet {
    /// Reads what the supervisor has made.
    pub(super) fn open(files: &ServerFiles) -> Result<Self, Failure> {
        let folder = Path::new(files.telemetry);
        let certificates = Arc::new(certificates(folder)?);
        let authority = read(&folder.join("clients.pem"))?;
        let edge = appliance_listener::edge(&authority, Arc::clone(&certificates)).map_err(Failure::of_tls)?;
        let signer =
            Signer::load(&read(&folder.join("box.key"))?).map_err(|error| Failure::Service(error.to_string()))?;
        Ok(Self { edge, certificates, signer, name: read(&folder.join(NAME))? })
    }

    /// Serves a renewed certificate.
    pub(super) fn reload(certificates: &Certificates, files: &ServerFiles) -> Result<(), Failure> {
        let (chain, key) = pems(Path::new(files.telemetry))?;
        certificates.swap(&chain, &key).map_err(Failure::of_tls)
    }

    /// Who answers.
    pub(super) fn teller(self, state: Arc<State>) -> Teller<Standing> {
        Teller::new(self.name, self.signer, state.ledger.clone(), Standing(state))
    }
}

fn certificates(folder: &Path) -> Result<Certificates, Failure> {
    let (chain, key) = pems(folder)?;
    Certificates::load(&chain, &key).map_err(Failure::of_tls)
}

fn pems(folder: &Path) -> Result<(String, String), Failure> {
    Ok((read(&folder.join("server.pem"))?, read(&folder.join("server.key"))?))
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(Failure::of("read", path))
}

/// How this box stands.
pub(super) struct Standing(Arc<State>);

impl Shown for Standing {
    async fn metrics(&self, request: &Request) -> Reply {
        metrics::written(&self.0, request).await
    }

    async fn inventory(&self) -> Map<String, Value> {
        let tiers = metrics::tiers_now(&self.0).await;
        let tier = |name: &str| tiers.iter().flatten().find(|at| at.function.as_str() == name).map(|at| at.tier);
        let functions = self.0.functions.all();
        let function = |function: &Arc<Function>| {
            let name = function.manifest.name.as_str();
            json!({
                "name": name,
                "tier": tier(name),
                "task": function.manifest.task,
                "model": function.model,
                "memory_bytes": function.manifest.limits.memory_bytes,
                "deployed_unix_s": function.deployed_unix_s,
            })
        };
        let functions: Vec<_> = functions.values().map(function).collect();
        let boots = fs::read_to_string("telemetry/boots").unwrap_or_default();
        let prices: Vec<Prices> = self.0.prices.load().versions().iter().map(|prices| **prices).collect();
        let fields = [
            ("version", env!("CARGO_PKG_VERSION").into()),
            ("slot", Value::Null),
            ("hardware", hardware()),
            ("disk", disk()),
            ("functions", functions.into()),
            ("prices", json!(prices)),
            ("boots", json!(read_boots(&boots))),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn unix_ms(&self) -> u64 {
        handler::unix_ms()
    }
}

fn hardware() -> Value {
    let line = |path: &str, name: &str| {
        let text = fs::read_to_string(path).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'))?.1.trim().to_owned();
        Some(value)
    };
    // Not those of this thread, which keeps to one.
    let cores = fs::read_to_string("/proc/cpuinfo").ok();
    let cores = cores.map(|text| text.lines().filter(|line| line.starts_with("processor")).count());
    let kernel = uname().ok().map(|name| name.release().to_string_lossy().into_owned());
    json!({
        "cpu": line("/proc/cpuinfo", "model name"),
        "cores": cores,
        "memory": line("/proc/meminfo", "MemTotal"),
        "kernel": kernel,
        "machine": std::env::consts::ARCH,
    })
}

fn disk() -> Value {
    statvfs(".").map_or(Value::Null, |disk| {
        let bytes = |blocks: u64| blocks.saturating_mul(disk.fragment_size());
        json!({ "total_bytes": bytes(disk.blocks()), "free_bytes": bytes(disk.blocks_available()) })
    })
}
