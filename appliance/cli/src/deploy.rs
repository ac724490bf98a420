//! `ember deploy`: a manifest and its model, from files here to a function there.
//!
//! ```text
//!  parse the manifest ─▶ hash its model ─▶ in the store? ─no─▶ send it ─▶ put the function ─▶ callable, snapshot taken
//! ```
//! Everything up to the hash happens without the server.

use crate::{args::Deploy, client::Client, error::Error, function, model, output};
use appliance_config::{Manifest, ModelReference};
use appliance_types::{FunctionName, ModelDigest};
use serde_json::Value;
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
    let digest = format!("sha256:{}", source.1);
    let headers = [("content-type", "application/toml"), ("x-ember-model", digest.as_str())];
    let act = if deploy.no_snapshot { "loading" } else { "loading and taking a snapshot of" };
    let message = format!("{act} `{}` ...", manifest.name);
    let path = path(&manifest.name, deploy.no_snapshot);
    let reply = output::waiting(&message, || client.put_text(&path, &headers, &text))?;
    if let Some(warning) = warning(&reply, &manifest.name) {
        output::note(&warning);
    }
    output::print(deploy.listing, &reply, || Ok(format!("deployed {} at {}", manifest.name, client.url())))
}

fn path(function: &FunctionName, no_snapshot: bool) -> String {
    format!("{}{}", function::path(function), if no_snapshot { "?snapshot=false" } else { "" })
}

/// What is said when the server could not take the snapshot that was wanted.
fn warning(reply: &Value, function: &FunctionName) -> Option<String> {
    let snapshot = &reply["snapshot"];
    let reason = snapshot["reason"].as_str().filter(|_| snapshot["state"] == "failed")?;
    Some(format!(
        "warning: `{function}` has no snapshot, so that a wake loads its model: {reason}\n  \
         try again with `ember snapshot create {function}`"
    ))
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
    use serde_json::json;

    #[test]
    fn a_manifest_error_names_file_line_and_column() {
        let text = "name = \"a\"\nmodel = \"m.gguf\"\ncolour = 1\n";
        let error = parse(Path::new("a.toml"), text).unwrap_err().to_string();
        assert!(error.starts_with("a.toml:3:1: "), "{error}");
    }

    #[test]
    fn a_snapshot_is_left_out_only_where_that_was_asked_for() {
        let function = "a".parse().unwrap();
        assert_eq!(path(&function, false), "/ember/v1/functions/a");
        assert_eq!(path(&function, true), "/ember/v1/functions/a?snapshot=false");
    }

    #[test]
    fn a_snapshot_that_could_not_be_taken_is_warned_of() {
        let function = "a".parse().unwrap();
        let failed = json!({"snapshot": {"state": "failed", "reason": "no room"}});
        let said = warning(&failed, &function).unwrap();
        assert!(said.contains("`a`") && said.contains("no room"), "{said}");
        for fine in
            [json!({"snapshot": {"state": "taken", "file_bytes": 1}}), json!({"snapshot": {"state": "skipped"}})]
        {
            assert_eq!(warning(&fine, &function), None, "{fine}");
        }
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
