//! Ember as an operator runs it: `emberd serve` on a data folder of its own, one function deployed by `ember`.

use crate::{
    chat::MODEL as FUNCTION,
    error::Error,
    http_client::{Server, tls},
    load::Load,
    process::{Process, Says, run},
    steps::Restored,
};
use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

/// What it logs: with each restore's steps.
const LOG_FILTER: &str = "info,sandbox_warden::spawner=debug";

/// Where data folders are made: on a disk, as `/tmp` need not be, and open to Ember's users, as a home need not be.
const ON_DISK: &str = "/var/tmp";

/// A running appliance.
pub(crate) struct Ember {
    pub(crate) server: Server,
    // Dropped in this order: the server stops before its folder goes.
    pub(crate) process: Process,
    data: tempfile::TempDir,
}

impl Ember {
    pub(crate) fn start(model: &Path, load: Load) -> Result<Self, Error> {
        let data = tempfile::tempdir_in(ON_DISK).map_err(Error::setup)?;
        let mut command = Command::new(sibling("emberd")?);
        command.args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json", "--data"]).arg(data.path());
        let log = File::create(log(data.path())).map_err(Error::setup)?;
        command.env("EMBER_LOG", LOG_FILTER).stderr(log);
        let ready = |line: &str| line.strip_prefix("ready https://")?.parse::<SocketAddr>().ok();
        let (process, address) = Process::start(command, Says::Stdout, ready)?;
        deploy(data.path(), FUNCTION, model, load)?;
        let authorization = format!("Bearer {}", read(&data.path().join("admin.key"))?.trim());
        let tls = tls(&read(&data.path().join("tls/ca.pem"))?)?;
        let server = Server { address, tls: Some(tls), authorization: Some(authorization) };
        Ok(Self { server, process, data })
    }

    /// Deploys another function.
    pub(crate) fn deploy(&self, function: &str, model: &Path, load: Load) -> Result<(), Error> {
        deploy(self.data.path(), function, model, load)
    }

    /// Leaves the function in memory as a snapshot.
    pub(crate) fn park(&self) -> Result<(), Error> {
        self.ember("park", FUNCTION)
    }

    /// Leaves the function on disk as a snapshot.
    pub(crate) fn store(&self) -> Result<(), Error> {
        self.store_of(FUNCTION)
    }

    /// Leaves that function so.
    pub(crate) fn store_of(&self, function: &str) -> Result<(), Error> {
        self.ember("stop", function)
    }

    fn ember(&self, command: &str, function: &str) -> Result<(), Error> {
        let mut ember = Command::new(sibling("ember")?);
        ember.args([command, function, "--data"]).arg(self.data.path());
        run(ember)
    }

    /// Every restore so far, as logged.
    pub(crate) fn restores(&self) -> Result<Vec<Restored>, Error> {
        Ok(read(&log(self.data.path()))?.lines().filter_map(Restored::of_log).collect())
    }

    pub(crate) fn last_restore(&self) -> Result<Restored, Error> {
        self.restores()?.pop().ok_or_else(|| Error::setup("Ember's log has no restore"))
    }

    /// The function's snapshot, and whatever else is kept beside it.
    pub(crate) fn snapshot_files(&self) -> Result<Vec<PathBuf>, Error> {
        let folder = self.data.path().join("snapshots");
        let entries = fs::read_dir(&folder).map_err(|source| Error::File { path: folder, source })?;
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        Ok(paths.filter(|path| path.file_name().is_some_and(|name| name != ".key")).collect())
    }
}

fn log(data: &Path) -> PathBuf {
    data.join("bench.log")
}

fn deploy(data: &Path, function: &str, model: &Path, load: Load) -> Result<(), Error> {
    let model = fs::canonicalize(model).map_err(|source| Error::File { path: model.into(), source })?;
    let Load { threads, streams, context_tokens, instances, system } = load;
    let prompt = system.map_or_else(String::new, |system| format!("[prompt]\nsystem = {system:?}\n"));
    let cpus = threads.map_or_else(String::new, |threads| format!("cpus = {threads}\n"));
    let manifest = format!(
        "name = {function:?}\nmodel = {model:?}\n[limits]\nmemory = \"4GiB\"\n{cpus}context = {context_tokens}\n[scale]\nmax = {instances}\nconcurrency = {streams}\nkeep_warm = \"1h\"\n{prompt}"
    );
    let path = data.join("bench.toml");
    fs::write(&path, manifest).map_err(|source| Error::File { path: path.clone(), source })?;
    let mut command = Command::new(sibling("ember")?);
    command.arg("deploy").arg(path).arg("--data").arg(data);
    run(command)
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::File { path: path.into(), source })
}

/// A program that was built together with this one.
pub(crate) fn sibling(name: &str) -> Result<PathBuf, Error> {
    Ok(std::env::current_exe().map_err(Error::setup)?.with_file_name(name))
}
