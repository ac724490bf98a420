//! Ember as an operator runs it: `emberd serve` on a data folder of its own, one function deployed by `ember`.

use super::Load;
use crate::{
    error::Error,
    http_client::{Server, tls},
    process::{Process, Says, run},
};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

/// The function's name, and with it the API's `model`.
pub(super) const FUNCTION: &str = "bench";

/// A running appliance.
pub(super) struct Ember {
    pub(super) server: Server,
    // Dropped in this order: the server stops before its folder goes.
    _process: Process,
    _data: tempfile::TempDir,
}

impl Ember {
    pub(super) fn start(model: &Path, load: Load) -> Result<Self, Error> {
        let data = tempfile::tempdir().map_err(Error::setup)?;
        let mut command = Command::new(sibling("emberd")?);
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data.path());
        let ready = |line: &str| line.strip_prefix("ready https://")?.parse::<SocketAddr>().ok();
        let (process, address) = Process::start(command, Says::Stdout, ready)?;
        deploy(data.path(), model, load)?;
        let authorization = format!("Bearer {}", read(&data.path().join("admin.key"))?.trim());
        let tls = tls(&read(&data.path().join("tls/ca.pem"))?)?;
        let server = Server { address, tls: Some(tls), authorization: Some(authorization) };
        Ok(Self { server, _process: process, _data: data })
    }
}

fn deploy(data: &Path, model: &Path, load: Load) -> Result<(), Error> {
    let model = fs::canonicalize(model).map_err(|source| Error::File { path: model.into(), source })?;
    let Load { threads, streams, context_tokens } = load;
    let manifest = format!(
        "name = {FUNCTION:?}\nmodel = {model:?}\n[limits]\nmemory = \"4GiB\"\ncpus = {threads}\ncontext = {context_tokens}\n[scale]\nconcurrency = {streams}\nkeep_warm = \"1h\"\n"
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
fn sibling(name: &str) -> Result<PathBuf, Error> {
    Ok(std::env::current_exe().map_err(Error::setup)?.with_file_name(name))
}
