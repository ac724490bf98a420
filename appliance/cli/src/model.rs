//! `ember model`: the server's store of GGUF files, each named by its SHA-256.
//!
//! Invariant: a file is read twice at most, once to learn its name and once to send it, and not sent when it is there. What is
//! at a URL goes through here and nowhere else; the store learns its name as it comes, and keeps nothing that is not whole,
//! is no model, or has another digest than was asked for.

use crate::{
    args::Model,
    client::Client,
    error::Error,
    fetch::{self, Fetch, is_url},
    output,
};
use appliance_types::ModelDigest;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

const MODELS: &str = "/ember/v1/models";
/// Pieces in which a file is hashed.
const BUFFER_BYTES: usize = 1 << 20;
/// What every model begins with. The store checks far more; this spares sending what it would refuse at once.
const MAGIC: &[u8] = b"GGUF";

#[derive(Deserialize)]
struct Row {
    sha256: ModelDigest,
    bytes: u64,
}

pub(crate) fn command(command: Model, client: impl FnOnce() -> Result<Client, Error>) -> Result<(), Error> {
    match command {
        Model::Add { from, sha256, listing } => {
            let reply = match from.to_str().filter(|text| is_url(text)) {
                Some(url) => fetch(url, sha256, client)?,
                None => {
                    let digest = checked_digest(&from, sha256)?;
                    add(&client()?, &from, digest)?
                }
            };
            output::print(listing, &reply, || Ok(reply["sha256"].as_str().unwrap_or_default().to_owned()))
        }
        Model::Ls(listing) => {
            let client = client()?;
            let data = output::data(client.get(MODELS)?);
            output::print(listing, &data, || {
                let rows: Vec<Row> = client.typed(&data)?;
                let cells = rows.iter().map(|row| [row.sha256.to_string(), output::bytes(row.bytes)]);
                Ok(output::table(["SHA256", "SIZE"], cells))
            })
        }
        Model::Rm { sha256 } => {
            client()?.delete(&format!("{MODELS}/{sha256}"))?;
            output::note(&format!("removed model {sha256}"));
            Ok(())
        }
    }
}

/// Has what is at a URL go into the store, unless it is there.
fn fetch(
    url: &str,
    wanted: Option<ModelDigest>,
    client: impl FnOnce() -> Result<Client, Error>,
) -> Result<Value, Error> {
    fetch::check_url(url, wanted.is_some())?;
    let client = client()?;
    if let Some(known) = wanted.map(|digest| known(&client, digest)).transpose()?.flatten() {
        return Ok(known);
    }
    let mut fetch = Fetch::begin(url)?;
    let mut begin = [0; MAGIC.len()];
    if fetch.read_exact(&mut begin).is_err() || begin != MAGIC {
        return Err(fetch.failure().unwrap_or_else(|| Error::NotAModel { path: url.into() }));
    }
    let bytes = fetch.announced_bytes();
    let bar = progress("fetching", Path::new(url), bytes);
    let wanted = wanted.map(|digest| digest.to_string());
    let digest = wanted.iter().map(|digest| ("x-ember-sha256", digest.as_str()));
    let headers: Vec<_> = [("content-type", "application/octet-stream")].into_iter().chain(digest).collect();
    let reply = client.put_stream(MODELS, &headers, bytes, &mut bar.wrap_read(begin.chain(&mut fetch)));
    bar.finish_and_clear();
    // Where the source broke off, the server saw a body that was cut: whose fault that is only we know.
    match fetch.failure() {
        Some(failure) => Err(failure),
        None => reply,
    }
}

fn checked_digest(file: &Path, wanted: Option<ModelDigest>) -> Result<ModelDigest, Error> {
    let got = digest(file)?;
    match wanted {
        Some(wanted) if wanted != got => Err(Error::WrongDigest { path: file.into(), wanted, got }),
        _ => Ok(got),
    }
}

/// Puts `file` into the store unless it is there.
pub(crate) fn add(client: &Client, file: &Path, digest: ModelDigest) -> Result<Value, Error> {
    known(client, digest)?.map_or_else(|| upload(client, file, digest), Ok)
}

/// What the store would say of a model that it has.
fn known(client: &Client, digest: ModelDigest) -> Result<Option<Value>, Error> {
    let stored: Vec<Row> = client.typed(&output::data(client.get(MODELS)?))?;
    let row = stored.iter().find(|row| row.sha256 == digest);
    Ok(row.map(|row| json!({ "sha256": digest, "bytes": row.bytes })))
}

/// The file's name in the store.
pub(crate) fn digest(path: &Path) -> Result<ModelDigest, Error> {
    let unreadable = |source| Error::Read { path: path.into(), source };
    let (file, bytes) = open(path)?;
    let bar = progress("hashing", path, bytes);
    let mut hasher = Sha256::new();
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, bar.wrap_read(file));
    if !reader.fill_buf().map_err(unreadable)?.starts_with(MAGIC) {
        return Err(Error::NotAModel { path: path.into() });
    }
    loop {
        let piece = reader.fill_buf().map_err(unreadable)?;
        if piece.is_empty() {
            break;
        }
        hasher.update(piece);
        let length = piece.len();
        reader.consume(length);
    }
    bar.finish_and_clear();
    Ok(ModelDigest::from_bytes(hasher.finalize().into()))
}

fn upload(client: &Client, path: &Path, digest: ModelDigest) -> Result<Value, Error> {
    let (file, bytes) = open(path)?;
    let bar = progress("sending", path, bytes);
    let digest = digest.to_string();
    let headers = [("content-type", "application/octet-stream"), ("x-ember-sha256", digest.as_str())];
    let reply = client.put_stream(MODELS, &headers, bytes, &mut bar.wrap_read(file));
    bar.finish_and_clear();
    reply
}

fn open(path: &Path) -> Result<(File, u64), Error> {
    let opened = File::open(path).and_then(|file| match file.metadata()? {
        metadata if metadata.is_file() => Ok((file, metadata.len())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    });
    opened.map_err(|source| Error::Read { path: path.into(), source })
}

/// A bar on stderr; hidden where that is no terminal.
fn progress(act: &'static str, path: &Path, bytes: u64) -> ProgressBar {
    let template = "{prefix} {msg} {bar:30} {percent:>3}% {binary_bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).expect("a constant template that a test draws");
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    ProgressBar::new(bytes).with_style(style).with_prefix(act).with_message(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_is_named_by_its_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "GGUFabc").unwrap();
        let expected = "23087cd7c7b269c4552f0bd250e0f42c736ae0387c17ce3c3a49c47bfdc763b8";
        let digest = digest(file.path()).unwrap();
        assert_eq!(digest.to_string(), expected);
        let other = Some(ModelDigest::from_bytes([0; 32]));
        assert!(matches!(checked_digest(file.path(), other), Err(Error::WrongDigest { .. })));
        assert_eq!(checked_digest(file.path(), Some(digest)).unwrap(), digest);
    }

    #[test]
    fn only_regular_files_that_begin_as_models_are_models() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(digest(file.path()), Err(Error::NotAModel { .. })));
        fs::write(file.path(), "GGU").unwrap();
        assert!(matches!(digest(file.path()), Err(Error::NotAModel { .. })));
        assert!(matches!(digest(Path::new("/dev/null")), Err(Error::Read { .. })));
        assert!(matches!(digest(Path::new("/nonexistent")), Err(Error::Read { .. })));
    }
}
