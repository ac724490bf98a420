//! `ember deploy`: a manifest and its model, from files here to a function there.
//!
//! ```text
//!  parse the manifest ─▶ hash its model ─▶ in the store? ─no─▶ send it ─▶ put the function ─▶ callable
//! ```
//! Everything up to the hash happens without the server.

use crate::{args::Deploy, client::Client, error::Error, function, model, output};
use appliance_config::{Manifest, ModelReference};
use appliance_types::ModelDigest;
use std::{
    fs,
    path::{Path, PathBuf},
};

pub(crate) fn deploy(deploy: Deploy, client: impl FnOnce() -> Result<Client, Error>) -> Result<(), Error> {
    let text =
        fs::read_to_string(&deploy.manifest).map_err(|source| Error::Read { path: deploy.manifest.clone(), source })?;
    let manifest = parse(&deploy.manifest, &text)?;
    let source = source(&deploy.manifest, &manifest.model)?;
    let client = client()?;
    if let (Some(file), digest) = &source {
        model::add(&client, file, *digest)?;
    }
    output::note(&format!("loading `{}` ...", manifest.name));
    let digest = format!("sha256:{}", source.1);
    let headers = [("content-type", "application/toml"), ("x-ember-model", digest.as_str())];
    let reply = client.put_text(&function::path(&manifest.name), &headers, &text)?;
    output::print(deploy.listing, &reply, || Ok(format!("deployed {} at {}", manifest.name, client.url())))
}

fn parse(path: &Path, text: &str) -> Result<Manifest, Error> {
    Manifest::parse(text).map_err(|error| {
        Error::Manifest(format!("{}:{}:{}: {}", path.display(), error.line, error.column, error.message))
    })
}

/// The model's digest, and the file to send where the manifest names one.
fn source(manifest: &Path, model: &ModelReference) -> Result<(Option<PathBuf>, ModelDigest), Error> {
    match model {
        ModelReference::Digest(digest) => Ok((None, *digest)),
        ModelReference::Path(path) => {
            let file = manifest.parent().unwrap_or(Path::new("")).join(path);
            let digest = model::digest(&file)?;
            Ok((Some(file), digest))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_error_names_file_line_and_column() {
        let text = "name = \"a\"\nmodel = \"m.gguf\"\ncolour = 1\n";
        let error = parse(Path::new("a.toml"), text).unwrap_err().to_string();
        assert!(error.starts_with("a.toml:3:1: "), "{error}");
    }

    #[test]
    fn a_model_path_starts_at_the_manifest() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("m.gguf"), "GGUF").unwrap();
        let model = ModelReference::Path("m.gguf".into());
        let (file, _) = source(&dir.path().join("a.toml"), &model).unwrap();
        assert_eq!(file, Some(dir.path().join("m.gguf")));
        assert!(source(Path::new("a.toml"), &model).is_err());
    }
}
