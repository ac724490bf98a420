//! Which server a command talks to, and with which key and CA.
//!
//! ```text
//!  --server URL   + --key-file + --ca               a server anywhere
//!  --data DIR     DIR/{address,admin.key,tls/ca.pem}  a server on this machine; the environment is not asked
//!  EMBER_SERVER   + EMBER_KEY + EMBER_CA
//!  EMBER_DATA     as --data; without it ./ember-data, emberd's own default
//! ```
//! The first line that applies decides; `--key-file` and `--ca` replace single parts of it, and so do `EMBER_KEY` and
//! `EMBER_CA` below the first two.
//!
//! Invariant: the admin key of a data folder is only ever sent to the server of that folder.

use crate::{args::TargetArgs, error::Error};
use std::{
    ffi::OsString,
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

const DATA_DEFAULT: &str = "ember-data";

/// A server and who asks it.
#[derive(Debug, PartialEq)]
pub(crate) struct Target {
    /// `https://HOST:PORT`, without a slash at the end.
    pub(crate) url: String,
    pub(crate) key: String,
    pub(crate) ca: PathBuf,
}

/// The variables that choose a server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    pub(crate) data: Option<PathBuf>,
    pub(crate) server: Option<String>,
    pub(crate) key: Option<String>,
    pub(crate) ca: Option<PathBuf>,
}

impl Environment {
    pub(crate) fn of_process() -> Self {
        let value = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
        let text = |name| value(name).map(|value| value.to_string_lossy().into_owned());
        Self {
            data: value("EMBER_DATA").map(Into::into),
            server: text("EMBER_SERVER"),
            key: text("EMBER_KEY"),
            ca: value("EMBER_CA").map(Into::into),
        }
    }
}

/// Finds the server that flags and environment name, and reads its address and key.
pub(crate) fn resolve(args: &TargetArgs, environment: &Environment) -> Result<Target, Error> {
    match (&args.server, &args.data) {
        (Some(_), Some(_)) => Err(Error::Usage("give either --data or --server: both name a server".into())),
        (Some(url), None) => remote(url, args, environment),
        (None, Some(dir)) => local(dir, args, &Environment::default()),
        (None, None) => match &environment.server {
            Some(url) => remote(url, args, environment),
            None => local(environment.data.as_deref().unwrap_or(Path::new(DATA_DEFAULT)), args, environment),
        },
    }
}

fn remote(url: &str, args: &TargetArgs, environment: &Environment) -> Result<Target, Error> {
    let key = key(args, environment)?.ok_or_else(|| missing(url, "key", "--key-file FILE", "EMBER_KEY"))?;
    let ca = ca(args, environment).ok_or_else(|| missing(url, "CA", "--ca FILE", "EMBER_CA"))?;
    Ok(Target { url: https(url)?, key, ca })
}

fn local(dir: &Path, args: &TargetArgs, environment: &Environment) -> Result<Target, Error> {
    let address = dir.join("address");
    if !address.exists() {
        return Err(Error::NoServer { dir: dir.into() });
    }
    let url = https(&reachable(&read(&address)?))?;
    let key = match key(args, environment)? {
        Some(key) => key,
        None => read(&dir.join("admin.key"))?,
    };
    let ca = ca(args, environment).unwrap_or_else(|| dir.join("tls/ca.pem"));
    Ok(Target { url, key, ca })
}

fn key(args: &TargetArgs, environment: &Environment) -> Result<Option<String>, Error> {
    match (&args.key_file, &environment.key) {
        (Some(file), _) => read(file).map(Some),
        (None, Some(key)) if Path::new(key).is_file() => read(Path::new(key)).map(Some),
        (None, key) => Ok(key.clone()),
    }
}

fn ca(args: &TargetArgs, environment: &Environment) -> Option<PathBuf> {
    args.ca.clone().or_else(|| environment.ca.clone())
}

fn missing(url: &str, what: &str, flag: &str, variable: &str) -> Error {
    Error::Usage(format!("no {what} for {url}: give {flag}, or set {variable}"))
}

fn read(path: &Path) -> Result<String, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
    Ok(text.trim().to_owned())
}

/// An address that can be dialled: a server that listens everywhere is here too.
fn reachable(address: &str) -> String {
    let address = address.trim_start_matches("https://");
    match address.parse::<SocketAddr>() {
        Ok(everywhere) if everywhere.ip().is_unspecified() => {
            let here = if everywhere.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            SocketAddr::new(here, everywhere.port()).to_string()
        }
        _ => address.to_owned(),
    }
}

fn https(address: &str) -> Result<String, Error> {
    let address = address.trim_end_matches('/');
    match address.split_once("://") {
        None => Ok(format!("https://{address}")),
        Some(("https", _)) => Ok(address.to_owned()),
        Some((scheme, _)) => {
            Err(Error::Usage(format!("`{scheme}` is no way to reach a server: use https://HOST:PORT")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_dir(address: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("address"), format!("{address}\n")).unwrap();
        fs::write(dir.path().join("admin.key"), "admin\n").unwrap();
        fs::write(dir.path().join("other.key"), "other\n").unwrap();
        dir
    }

    fn elsewhere() -> Environment {
        Environment {
            server: Some("https://box:1".into()),
            key: Some("env".into()),
            ca: Some("env.pem".into()),
            data: None,
        }
    }

    #[test]
    fn a_data_folder_names_server_key_and_ca() {
        let dir = data_dir("127.0.0.1:8443");
        let args = TargetArgs { data: Some(dir.path().into()), ..Default::default() };
        let target = resolve(&args, &elsewhere()).unwrap();
        let expected =
            Target { url: "https://127.0.0.1:8443".into(), key: "admin".into(), ca: dir.path().join("tls/ca.pem") };
        assert_eq!(target, expected, "a flag beats the environment, all of it");
        let other = TargetArgs { key_file: Some(dir.path().join("other.key")), ..args };
        assert_eq!(resolve(&other, &elsewhere()).unwrap().key, "other");
    }

    #[test]
    fn the_environment_names_a_server() {
        let target = resolve(&TargetArgs::default(), &elsewhere()).unwrap();
        assert_eq!(target, Target { url: "https://box:1".into(), key: "env".into(), ca: "env.pem".into() });
        let dir = data_dir("0.0.0.0:9");
        let environment = Environment { data: Some(dir.path().into()), ..Default::default() };
        let target = resolve(&TargetArgs::default(), &environment).unwrap();
        assert_eq!((target.url.as_str(), target.key.as_str()), ("https://127.0.0.1:9", "admin"));
        let by_file = Environment { key: Some(dir.path().join("other.key").display().to_string()), ..environment };
        assert_eq!(resolve(&TargetArgs::default(), &by_file).unwrap().key, "other");
    }

    #[test]
    fn a_remote_server_never_gets_a_local_key() {
        let dir = data_dir("127.0.0.1:8443");
        let args = TargetArgs { server: Some("https://box:1".into()), ..Default::default() };
        let environment = Environment { data: Some(dir.path().into()), ..Default::default() };
        assert!(matches!(resolve(&args, &environment), Err(Error::Usage(_))));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let both = TargetArgs { server: Some("https://b".into()), data: Some("d".into()), ..Default::default() };
        assert!(matches!(resolve(&both, &Environment::default()), Err(Error::Usage(_))));
        let plain = Environment { server: Some("http://box:1".into()), ..elsewhere() };
        assert!(matches!(resolve(&TargetArgs::default(), &plain), Err(Error::Usage(_))));
        let nowhere = TargetArgs { data: Some("/nonexistent".into()), ..Default::default() };
        assert!(matches!(resolve(&nowhere, &Environment::default()), Err(Error::NoServer { .. })));
    }

    #[test]
    fn addresses_become_urls() {
        assert_eq!(https(&reachable("[::]:8443")).unwrap(), "https://[::1]:8443");
        assert_eq!(https("https://h:1/").unwrap(), "https://h:1");
        assert_eq!(https(&reachable("https://0.0.0.0:1")).unwrap(), "https://127.0.0.1:1");
        assert_eq!(https(&reachable("10.0.0.0:80")).unwrap(), "https://10.0.0.0:80");
    }
}
