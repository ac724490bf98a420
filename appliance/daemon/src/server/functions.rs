//! Deployed functions: kept as one manifest file each, read by all cores through one pointer, changed by operators.
//!
//! ```text
//!  PUT ─▶ parse ─▶ snapshot taken in the real sandbox ─▶ NAME.toml, atomically ─▶ map swapped ─▶ pool told
//!                  (or a trial wake, without one)
//! ```
//! Either costs a load of the model, and is why a function that is deployed can be called: a model that llama.cpp
//! cannot load, or that does not fit its memory, fails the deploy with the runner's own reason. A function that loads
//! and of which no snapshot can be taken is deployed all the same, and woken cold.
//!
//! Invariants: a stored manifest names its model by digest and spells out every default that has a value, so that it means
//! the same after an update; file, map and pool change in the same order, whoever else deploys.

use super::{
    body,
    generation::refused,
    handler::{Call, unix_s},
    instances, models,
    reply::{self, Answered, Reply},
    snapshots,
};
use crate::files::{self, Access};
use appliance_admit::memory::reservation;
use appliance_api::{
    ApiError,
    model::{Model, list_reply},
};
use appliance_config::{ConfigError, KEEP_WARM_MS_MAX, Manifest, ModelReference, PARK_MS_MAX};
use appliance_edge::Request;
use appliance_pool::{Failed, FunctionConfig, Reservation};
use appliance_runtime::unblock;
use appliance_scale::hold::{self, Term};
use appliance_types::{FunctionName, ModelDigest};
use arc_swap::ArcSwap;
use http::HeaderMap;
use nix::unistd::geteuid;
use sandbox_wire::warden::{Call as WardenCall, Reply as WardenReply, RunnerSpec, SnapshotEntry, WardenError};
use serde::Serialize;
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

/// Most functions.
const FUNCTIONS_MAX: usize = 1024;
/// Longest manifest: the longest system prompt, escaped, and all else.
const MANIFEST_BYTES_MAX: usize = 256 << 10;
/// Names the model of a manifest that was written with a path.
const MODEL_HEADER: &str = "x-ember-model";

/// A function that can be called.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Function {
    pub(super) manifest: Manifest,
    pub(super) model: ModelDigest,
    /// What each of its instances reserves, where its needs were measured; else that is `limits.memory`.
    pub(super) reserved_bytes: Option<u64>,
    pub(super) deployed_unix_s: u64,
}

/// By name.
pub(super) type FunctionMap = BTreeMap<FunctionName, Arc<Function>>;

/// All functions.
pub(super) struct Functions {
    folder: PathBuf,
    all: ArcSwap<FunctionMap>,
    /// Held while a change is made, so that changes follow each other.
    change: Mutex<()>,
}

impl Function {
    /// What the pool is told of it.
    pub(super) fn config(&self) -> FunctionConfig {
        let scale = &self.manifest.scale;
        FunctionConfig {
            spec: self.spec(),
            instances_min: scale.min as usize,
            instances_max: scale.max as usize,
            queue_max: scale.queue as usize,
            queue_timeout: Duration::from_millis(scale.queue_timeout_ms),
            keep_warm: term(scale.keep_warm_ms, hold::RUNNING_LEAST, KEEP_WARM_MS_MAX),
            park: term(scale.park_ms, Duration::ZERO, PARK_MS_MAX),
            provisioned: scale.provisioned.clone(),
            timeout: Duration::from_millis(self.manifest.limits.timeout_ms),
        }
    }

    /// The same, of which this was measured.
    pub(super) fn measured(mut self, needs_bytes: Option<u64>) -> Self {
        let limits = &self.manifest.limits;
        self.reserved_bytes = needs_bytes.map(|needs| reservation(needs, limits.request_bytes, limits.memory_bytes));
        self
    }

    /// What each of its instances reserves, and what its requests are billed for, bytes.
    pub(super) fn lease_bytes(&self) -> u64 {
        self.spec().lease_bytes()
    }

    fn spec(&self) -> RunnerSpec {
        let Manifest { name, task, limits, scale, prompt, .. } = &self.manifest;
        RunnerSpec {
            function: name.clone(),
            model: self.model,
            task: *task,
            memory_bytes: limits.memory_bytes,
            reserved_bytes: self.reserved_bytes,
            cpus: limits.cpus,
            context_tokens: limits.context_tokens,
            slots: scale.concurrency,
            system: prompt.system.clone(),
        }
    }
}

/// As it is written, or as it pays up to `most_ms`.
fn term(written_ms: Option<u64>, least: Duration, most_ms: u64) -> Term {
    match written_ms {
        Some(ms) => Term::Exactly(Duration::from_millis(ms)),
        None => Term::Within { least, most: Duration::from_millis(most_ms) },
    }
}

impl Functions {
    /// Reads the manifests in `folder`; `needs` says what was measured of one. One that cannot be used is left where it is,
    /// logged, and not served.
    pub(super) fn load(folder: &Path, needs: impl Fn(&Function) -> Option<u64>) -> io::Result<Self> {
        let mut all = FunctionMap::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "toml") {
                continue;
            }
            match read(&path) {
                Ok(function) => {
                    let measured = needs(&function);
                    all.insert(function.manifest.name.clone(), Arc::new(function.measured(measured)));
                }
                Err(reason) => tracing::error!(file = %path.display(), %reason, "this function is not served"),
            }
        }
        Ok(Self { folder: folder.to_owned(), all: ArcSwap::from_pointee(all), change: Mutex::new(()) })
    }

    /// All of them, as they are now.
    pub(super) fn all(&self) -> Arc<FunctionMap> {
        self.all.load_full()
    }

    /// The one of this name.
    pub(super) fn get(&self, name: &str) -> Option<Arc<Function>> {
        self.all.load().get(name).cloned()
    }

    /// Stores a function and shows it; `then` runs before any other change. Writes a file: not for a serving core.
    fn put(&self, function: Function, then: impl FnOnce(&Function)) -> Result<(), ApiError> {
        let _turn = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = FunctionMap::clone(&self.all.load());
        let name = function.manifest.name.clone();
        if all.len() >= FUNCTIONS_MAX && !all.contains_key(&name) {
            return Err(ApiError::conflict(format!("there are {FUNCTIONS_MAX} functions, which is the most")));
        }
        let manifest = Manifest { model: ModelReference::Digest(function.model), ..function.manifest.clone() };
        let access = Access { id: geteuid().as_raw(), mode: 0o600 };
        let path = self.path(&name);
        files::replace(&path, manifest.to_toml().as_bytes(), access).map_err(storage("write", &path))?;
        then(&function);
        all.insert(name, Arc::new(function));
        self.all.store(Arc::new(all));
        Ok(())
    }

    /// Removes a function; `then` runs before any other change. Removes a file: not for a serving core.
    fn remove(&self, name: &FunctionName, then: impl FnOnce()) -> Result<(), ApiError> {
        let _turn = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = FunctionMap::clone(&self.all.load());
        all.remove(name).ok_or_else(|| missing(name.as_str()))?;
        let path = self.path(name);
        files::remove(&path).map_err(storage("remove", &path))?;
        self.all.store(Arc::new(all));
        then();
        Ok(())
    }

    /// Writes the names of all into `file`, a line each, for who asks later what served now. Writes a file: not for a serving
    /// core.
    pub(super) fn note(&self, file: &Path) -> io::Result<()> {
        let names: String = self.all.load().keys().map(|name| format!("{name}\n")).collect();
        files::replace(file, names.as_bytes(), Access { id: geteuid().as_raw(), mode: 0o600 })
    }

    fn path(&self, name: &FunctionName) -> PathBuf {
        self.folder.join(format!("{name}.toml"))
    }
}

/// `GET /v1/models`: what this key may call.
pub(super) fn as_models(call: &Call) -> Reply {
    let all = call.state.functions.all();
    let mine = all.values().filter(|function| call.caller.key.may_call(&function.manifest.name));
    let models: Vec<_> = mine.map(|function| model(function)).collect();
    reply::json_bytes(list_reply(&models))
}

/// `GET /v1/models/{id}`
pub(super) fn as_model(call: &Call, id: &str) -> Answered {
    let function = call.function(id)?;
    Ok(reply::json_bytes(model(&function).reply()))
}

/// `GET /ember/v1/functions`
pub(super) async fn list(call: &Call) -> Answered {
    let (up, stored) = (instances::by_function(call).await?, models::stored(call).await?);
    let snapshots = snapshots::by_function(call).await?;
    let all = call.state.functions.all();
    let rows = all.values().map(|function| {
        let instances = up.get(&function.manifest.name).map_or(0, Vec::len);
        let bytes = stored.iter().find(|entry| entry.digest == function.model).map(|entry| entry.bytes);
        json!({
            "name": function.manifest.name,
            "model": format!("sha256:{}", function.model),
            "model_bytes": bytes,
            "task": function.manifest.task,
            "tier": snapshots::tier(instances, snapshots.get(&function.manifest.name)),
            "instances": instances,
            "max": function.manifest.scale.max,
            "memory_bytes": function.manifest.limits.memory_bytes,
            "reserved_bytes": function.lease_bytes(),
            "deployed_unix_s": function.deployed_unix_s,
        })
    });
    Ok(reply::list(&rows.collect::<Vec<_>>()))
}

/// `GET /ember/v1/functions/{name}`
pub(super) async fn show(call: &Call, name: &str) -> Answered {
    let function = find(call, name)?;
    let (up, snapshots) = (instances::by_function(call).await?, snapshots::by_function(call).await?);
    let snapshot = snapshots.get(&function.manifest.name);
    let up = up.get(&function.manifest.name).map_or(&[][..], |up| &up[..]);
    Ok(reply::json(&json!({
        "name": function.manifest.name,
        "model": format!("sha256:{}", function.model),
        "tier": snapshots::tier(up.len(), snapshot),
        "instances": up.len(),
        "failing": instances::failing(call, &function.manifest.name).await?,
        "snapshot": snapshot,
        "reserved_bytes": function.lease_bytes(),
        "reservation_is_measured": function.reserved_bytes.is_some(),
        "deployed_unix_s": function.deployed_unix_s,
        "manifest": function.manifest,
        "model_info": up.first().map(|instance| &*instance.model),
    })))
}

/// What a deploy says of the function's snapshot.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
enum Snapshot {
    Taken { file_bytes: u64, parked_bytes: u64, needs_bytes: u64 },
    Failed { reason: String },
    Skipped,
}

impl Snapshot {
    /// Memory that it takes now.
    fn parked_bytes(&self) -> u64 {
        match self {
            Self::Taken { parked_bytes, .. } => *parked_bytes,
            Self::Failed { .. } | Self::Skipped => 0,
        }
    }

    /// What was measured of an instance.
    fn needs_bytes(&self) -> Option<u64> {
        match self {
            Self::Taken { needs_bytes, .. } => Some(*needs_bytes).filter(|bytes| *bytes > 0),
            Self::Failed { .. } | Self::Skipped => None,
        }
    }
}

/// Memory for an instance of a function, and for its snapshot, that an operator's command makes.
///
/// # Errors
/// There is not so much, ever or now.
pub(super) async fn reserve(call: &Call, function: &Function) -> Result<Reservation, ApiError> {
    let stored = models::stored(call).await?;
    let model = stored.iter().find(|entry| entry.digest == function.model);
    // One that is not there is told of by whoever looks for it next.
    let bytes = model.map_or(0, |entry| entry.bytes);
    call.state.pool.reserve(function.config().spec, bytes).await.map_err(|failed| match failed {
        Failed::TooLarge { .. } => ApiError::unprocessable(failed.to_string()),
        failed => refused(failed),
    })
}

/// `PUT /ember/v1/functions/{name}`: the body is a manifest, the header `x-ember-model` its model's digest. With
/// `?snapshot=false` no snapshot is taken.
pub(super) async fn deploy(call: &Call, name: &str, request: Request) -> Answered {
    let header = model_header(&request.head.headers)?;
    let wanted = wants_snapshot(request.head.uri.query())?;
    let text = body::whole(request, MANIFEST_BYTES_MAX).await?;
    let text = std::str::from_utf8(&text).map_err(|_| ApiError::unprocessable("the manifest is not UTF-8"))?;
    let manifest = Manifest::parse(text).map_err(wrong_manifest)?;
    if manifest.name.as_str() != name {
        let message = format!("the manifest's name is `{}`, the path's is `{name}`", manifest.name);
        return Err(ApiError::invalid_request(message));
    }
    let model = model_of(&manifest, header)?;
    let manifest = Manifest { model: ModelReference::Digest(model), ..manifest };
    let function = Function { manifest, model, reserved_bytes: None, deployed_unix_s: unix_s() };
    let reservation = reserve(call, &function).await?;
    let snapshot = prove(call, call.state.spec(&function), wanted).await?;
    let function = function.measured(snapshot.needs_bytes());
    let reserved_bytes = function.lease_bytes();

    let (state, name) = (Arc::clone(&call.state), function.manifest.name.clone());
    let put = unblock(move || state.functions.put(function, |function| state.pool.configure(function.config()))).await;
    if let Err(error) = put {
        forget_unless_deployed(call, &name).await;
        return Err(error);
    }
    call.state.pool.hold(name.clone(), snapshot.parked_bytes());
    drop(reservation);
    match &snapshot {
        Snapshot::Failed { reason } => tracing::warn!(function = %name, %model, reason, "deployed without a snapshot"),
        snapshot => tracing::info!(function = %name, %model, ?snapshot, "deployed"),
    }
    Ok(reply::json(&json!({
        "name": name,
        "model": format!("sha256:{model}"),
        "snapshot": snapshot,
        "reserved_bytes": reserved_bytes,
    })))
}

/// `DELETE /ember/v1/functions/{name}`
pub(super) async fn remove(call: &Call, name: &str) -> Answered {
    let name = find(call, name)?.manifest.name.clone();
    let (state, removed) = (Arc::clone(&call.state), name.clone());
    unblock(move || state.functions.remove(&removed, || state.pool.remove(removed.clone()))).await?;
    instances::until_gone(call, &name).await?;
    snapshots::discard(call, &name).await.map_err(|error| {
        let message = error.message;
        ApiError { message: format!("function `{name}` is removed, its snapshot is not: {message}"), ..error }
    })?;
    tracing::info!(function = %name, "removed");
    Ok(reply::nothing())
}

/// The function of this name, for an operator.
pub(super) fn find(call: &Call, name: &str) -> Result<Arc<Function>, ApiError> {
    call.state.functions.get(name).ok_or_else(|| missing(name))
}

fn missing(name: &str) -> ApiError {
    ApiError::not_found(format!("no function `{name}`; `ember ls` lists those there are"))
}

fn model(function: &Function) -> Model<'_> {
    Model::new(function.manifest.name.as_str(), function.deployed_unix_s)
}

fn read(path: &Path) -> Result<Function, String> {
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    if metadata.len() > MANIFEST_BYTES_MAX as u64 {
        return Err(format!("it is longer than {MANIFEST_BYTES_MAX} bytes"));
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let manifest = Manifest::parse(&text).map_err(|error| error.to_string())?;
    if path.file_stem().is_none_or(|stem| stem != manifest.name.as_str()) {
        return Err(format!("its name is `{}`", manifest.name));
    }
    let ModelReference::Digest(model) = manifest.model else {
        return Err("its model is not given as sha256:HEX".to_owned());
    };
    let modified = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    Ok(Function { manifest, model, reserved_bytes: None, deployed_unix_s: modified.unwrap_or_default().as_secs() })
}

fn model_header(headers: &HeaderMap) -> Result<Option<ModelDigest>, ApiError> {
    let wrong = || ApiError::invalid_request(format!("header {MODEL_HEADER}: expected sha256:HEX"));
    let Some(value) = headers.get(MODEL_HEADER) else { return Ok(None) };
    match value.to_str().ok().and_then(|text| text.parse().ok()) {
        Some(ModelReference::Digest(digest)) => Ok(Some(digest)),
        _ => Err(wrong()),
    }
}

fn model_of(manifest: &Manifest, header: Option<ModelDigest>) -> Result<ModelDigest, ApiError> {
    match (&manifest.model, header) {
        (ModelReference::Digest(named), Some(header)) if *named != header => {
            Err(ApiError::invalid_request(format!("the manifest's model and header {MODEL_HEADER} differ")))
        }
        (ModelReference::Digest(digest), _) => Ok(*digest),
        (ModelReference::Path(_), Some(digest)) => Ok(digest),
        (ModelReference::Path(path), None) => Err(ApiError::unprocessable(format!(
            "`model`: {path} is a path, which means nothing here; add the model (`ember model add`) and name it \
             sha256:HEX, or deploy with `ember deploy`, which does both"
        ))),
    }
}

fn wants_snapshot(query: Option<&str>) -> Result<bool, ApiError> {
    match query {
        None | Some("" | "snapshot=true") => Ok(true),
        Some("snapshot=false") => Ok(false),
        Some(other) => {
            Err(ApiError::invalid_request(format!("query `{other}`: expected snapshot=true or snapshot=false")))
        }
    }
}

/// Loads the model once, within the function's limits, and leaves a snapshot where one is wanted and can be taken.
async fn prove(call: &Call, spec: RunnerSpec, wanted: bool) -> Result<Snapshot, ApiError> {
    if !wanted {
        let name = spec.function.clone();
        // Of another manifest, or what would be restored in place of a load.
        snapshots::discard(call, &name).await?;
        try_out(call, spec).await?;
        // What the wake has left.
        snapshots::discard(call, &name).await?;
        return Ok(Snapshot::Skipped);
    }
    match call.state.warden.call(WardenCall::SnapshotTake(spec.clone()), None).await {
        Ok(WardenReply::SnapshotTaken(entry)) => {
            let SnapshotEntry { file_bytes, parked_bytes, needs_bytes, .. } = entry;
            Ok(Snapshot::Taken { file_bytes, parked_bytes, needs_bytes })
        }
        Ok(_) => Err(models::out_of_place()),
        Err(error) if may_work_cold(&error) => {
            try_out(call, spec).await.map(|()| Snapshot::Failed { reason: error.to_string() })
        }
        Err(error) => Err(models::refused(error)),
    }
}

/// Whether a function may work of which no snapshot could be taken for this.
fn may_work_cold(error: &WardenError) -> bool {
    matches!(
        error,
        WardenError::CaptureFailed { .. } | WardenError::SnapshotInvalid { .. } | WardenError::Storage { .. }
    )
}

/// Leaves no snapshot of a function that could not be stored.
async fn forget_unless_deployed(call: &Call, name: &FunctionName) {
    if call.state.functions.get(name.as_str()).is_none()
        && let Err(error) = snapshots::discard(call, name).await
    {
        tracing::warn!(function = %name, %error, "cannot remove the snapshot of a function that is not deployed");
    }
}

/// Starts an instance and ends it again.
async fn try_out(call: &Call, spec: RunnerSpec) -> Result<(), ApiError> {
    match call.state.warden.call(WardenCall::Wake(spec), None).await {
        Ok(WardenReply::Awake(awake)) => {
            let stop = WardenCall::Stop { instance: awake.instance };
            match call.state.warden.call(stop, None).await {
                // It may have ended by itself, since nobody holds its socket.
                Ok(_) | Err(WardenError::InstanceMissing { .. }) => Ok(()),
                Err(error) => Err(models::refused(error)),
            }
        }
        Ok(_) => Err(models::out_of_place()),
        Err(error) => Err(models::refused(error)),
    }
}

fn wrong_manifest(error: ConfigError) -> ApiError {
    ApiError::unprocessable(format!("the manifest is wrong at {error}"))
}

fn storage(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ApiError {
    let path = path.display().to_string();
    move |error| ApiError::internal(format!("cannot {action} {path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000007";

    fn function(name: &str) -> Function {
        let manifest = Manifest::parse(&format!("name = \"{name}\"\nmodel = \"{DIGEST}\"\n")).unwrap();
        let ModelReference::Digest(model) = manifest.model else { panic!("a digest") };
        Function { manifest, model, reserved_bytes: None, deployed_unix_s: 0 }
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let functions = Functions::load(folder.path(), |_| None).unwrap();
        let mut told = Vec::new();
        for name in ["a", "b"] {
            functions.put(function(name), |function| told.push(function.manifest.name.to_string())).unwrap();
        }
        functions.remove(&"a".parse().unwrap(), || told.push("-a".to_owned())).unwrap();
        assert_eq!(told, ["a", "b", "-a"]);
        assert_eq!(functions.remove(&"a".parse().unwrap(), || ()).unwrap_err().status, 404);

        let noted = folder.path().join("noted");
        functions.note(&noted).unwrap();
        assert_eq!(fs::read_to_string(&noted).unwrap(), "b\n");
        let again = Functions::load(folder.path(), |_| None).unwrap();
        assert_eq!(again.all().keys().map(FunctionName::as_str).collect::<Vec<_>>(), ["b"]);
        assert_eq!(again.get("b").unwrap().config(), functions.get("b").unwrap().config());
        assert!(again.get("b").unwrap().deployed_unix_s > 0);
    }

    #[test]
    fn the_longest_system_prompt_fits_what_the_warden_takes() {
        assert_eq!(appliance_config::SYSTEM_BYTES_MAX, sandbox_wire::warden::SYSTEM_BYTES_MAX);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = function("a").manifest.to_toml();
        fs::write(folder.path().join("other.toml"), &manifest).unwrap();
        fs::write(folder.path().join("broken.toml"), "name = ").unwrap();
        fs::write(folder.path().join("path.toml"), "name = \"path\"\nmodel = \"m.gguf\"\n").unwrap();
        fs::write(folder.path().join("a.toml"), manifest).unwrap();
        assert_eq!(Functions::load(folder.path(), |_| None).unwrap().all().len(), 1);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
    }

    #[test]
    fn a_deploy_takes_a_snapshot_unless_told() {
        for (query, wanted) in [(None, true), (Some("snapshot=true"), true), (Some("snapshot=false"), false)] {
            assert_eq!(wants_snapshot(query), Ok(wanted), "{query:?}");
        }
        for query in ["snapshot", "snapshot=no", "snapshots=false", "snapshot=false&x=1"] {
            assert_eq!(wants_snapshot(Some(query)).unwrap_err().status, 400, "{query}");
        }
    }

    #[test]
    fn what_a_deploy_says_of_a_snapshot_is_plain() {
        let json = |snapshot: &Snapshot| serde_json::to_value(snapshot).unwrap();
        let taken = Snapshot::Taken { file_bytes: 9, parked_bytes: 0, needs_bytes: 7 };
        let expected = json!({"state": "taken", "file_bytes": 9, "parked_bytes": 0, "needs_bytes": 7});
        assert_eq!(json(&taken), expected);
        assert_eq!(json(&Snapshot::Failed { reason: "x".into() }), json!({"state": "failed", "reason": "x"}));
        assert_eq!(json(&Snapshot::Skipped), json!({"state": "skipped"}));
    }

    #[test]
    fn a_model_that_cannot_be_loaded_fails_a_deploy_and_a_snapshot_that_cannot_be_taken_does_not() {
        let function: FunctionName = "f".parse().unwrap();
        let (digest, reason) = (ModelDigest::from_bytes([0; 32]), "x".to_owned());
        for error in [
            WardenError::ModelMissing { digest },
            WardenError::LoadFailed { reason: reason.clone() },
            WardenError::LoadTimeout { limit_ms: 1 },
            WardenError::InstancesMax { limit: 1 },
            WardenError::BadRequest { reason: reason.clone() },
        ] {
            assert!(!may_work_cold(&error), "{error}");
        }
        assert!(may_work_cold(&WardenError::CaptureFailed { function, reason }));
    }

    #[test]
    fn a_model_is_named_by_manifest_or_header() {
        let digest = function("a").model;
        let path = Manifest::parse("name = \"a\"\nmodel = \"m.gguf\"\n").unwrap();
        assert_eq!(model_of(&path, Some(digest)), Ok(digest));
        assert_eq!(model_of(&path, None).unwrap_err().status, 422);
        assert_eq!(model_of(&function("a").manifest, None), Ok(digest));
        let other = ModelDigest::from_bytes([1; 32]);
        assert_eq!(model_of(&function("a").manifest, Some(other)).unwrap_err().status, 400);
    }
}
