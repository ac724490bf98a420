//! `emberd preload`: deploys what came with the appliance's image, each function once, as an operator would.
//!
//! ```text
//!  DIR/preload/NAME.toml ─┬─ NAME is served: it was deployed, or an operator has another of this name ─┐
//!                         ├─ its model is not in the store: an operator removed it ────────────────────┼─▶ the file goes
//!                         └─ PUT /ember/v1/functions/NAME ─┬─ deployed ────────────────────────────────┘
//!                                  ▲ later │ busy ◀────────┤
//!                                  └───────┘               └─ refused, or no time is left ─▶ it stays for the next start
//! ```
//! A function whose file is gone is the operator's: what he removes or deploys anew stays so. The image has put the model
//! into the store already, under its digest. Snapshots are taken here, as they belong to this kernel and this processor.
//!
//! PID 1 of the appliance runs it beside the service, once a start.

use crate::{
    arguments::Preload,
    data::PRELOAD,
    exit::Failure,
    files,
    own::{Body, Refused, Service},
};
use appliance_config::{Manifest, ModelReference};
use serde_json::Value;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

/// Longest for a listing.
const REQUEST_MAX: Duration = Duration::from_secs(100);
/// Between two tries of what may do better later.
const PAUSE: Duration = Duration::from_secs(2);
/// Functions that are looked at in one start.
const FUNCTIONS_MAX: usize = 1024;
/// Longest manifest that is read, as that which is taken by the server.
const MANIFEST_BYTES_MAX: u64 = 256 << 10;

/// What is to be done with a function that came along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// There is one of its name.
    IsServed,
    /// Its model is not there.
    HasNoModel,
    /// It is to be deployed.
    Deploy,
}

/// Deploys all that is left to deploy.
pub(crate) fn run(flags: &Preload) -> Result<(), Failure> {
    let data = Path::new(&flags.data);
    let waiting = waiting(&data.join(PRELOAD));
    if waiting.is_empty() {
        return Ok(());
    }
    let service = reach(data, Instant::now() + Duration::from_secs(flags.within))?;
    let faults: Vec<_> = waiting.iter().filter_map(|path| settle(&service, path).err()).collect();
    match faults.as_slice() {
        [] => Ok(()),
        [fault] => Err(Failure::Service(format!("preload: {fault}"))),
        [fault, more @ ..] => Err(Failure::Service(format!("preload: {fault}, and {} more failed", more.len()))),
    }
}

/// Manifests that are left, by name.
fn waiting(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect();
    files.sort();
    files.truncate(FUNCTIONS_MAX);
    files
}

/// The service, once it answers.
fn reach(data: &Path, until: Instant) -> Result<Service, Failure> {
    loop {
        let reached = Service::find(data, until).and_then(|service| {
            let answered = service.ask("/health", None, REQUEST_MAX);
            answered.map(|_| service).map_err(|refused| Failure::Service(format!("preload: {refused}")))
        });
        match reached {
            Err(_) if Instant::now() + PAUSE < until => sleep(PAUSE),
            reached => return reached,
        }
    }
}

/// Deploys the function at `path`, or finds out that it is not to be; its file goes then.
fn settle(service: &Service, path: &Path) -> Result<(), String> {
    let said = |reason: &dyn ToString| format!("{}: {}", path.display(), reason.to_string());
    let text = read(path).map_err(|reason| said(&reason))?;
    let manifest = Manifest::parse(&text).map_err(|error| said(&error))?;
    let listed = |of: &str| service.list(of, REQUEST_MAX).map_err(|refused| said(&refused));
    let (functions, models) = (listed("/ember/v1/functions")?, listed("/ember/v1/models")?);
    let name = &manifest.name;
    match fate(&manifest, &functions, &models) {
        Fate::IsServed => tracing::info!(function = %name, "came with the image, and is there already"),
        Fate::HasNoModel => tracing::info!(function = %name, "came with the image; its model was removed"),
        Fate::Deploy => {
            deploy(service, &format!("/ember/v1/functions/{name}"), &text).map_err(|refused| said(&refused))?;
            tracing::info!(function = %name, "came with the image, and is deployed now");
        }
    }
    forget(path).map_err(|failure| said(&failure))
}

fn read(path: &Path) -> Result<String, String> {
    let bytes = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if bytes > MANIFEST_BYTES_MAX {
        return Err(format!("it is longer than {MANIFEST_BYTES_MAX} bytes"));
    }
    fs::read_to_string(path).map_err(|error| error.to_string())
}

fn fate(manifest: &Manifest, functions: &[Value], models: &[Value]) -> Fate {
    let ModelReference::Digest(digest) = &manifest.model else { return Fate::Deploy };
    if functions.iter().any(|function| function["name"] == manifest.name.as_str()) {
        Fate::IsServed
    } else if models.iter().any(|model| model["sha256"] == digest.to_string()) {
        Fate::Deploy
    } else {
        Fate::HasNoModel
    }
}

/// Again and again while it is told that there is no room or no time for it just now.
fn deploy(service: &Service, path: &str, text: &str) -> Result<(), Refused> {
    loop {
        match service.ask(path, Some(Body::Manifest(text)), Duration::MAX) {
            Err(refused) if may_do_better(&refused) && service.left() > PAUSE => sleep(PAUSE),
            answered => return answered.map(drop),
        }
    }
}

fn may_do_better(refused: &Refused) -> bool {
    matches!(refused, Refused::Silent(_) | Refused::Status(429 | 502..=504, _))
}

/// Removes a file for good.
fn forget(path: &Path) -> Result<(), Failure> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let removed = files::remove(path).and_then(|()| File::open(folder)?.sync_all());
    removed.map_err(|source| Failure::io("remove", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_left_is_found_by_name() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["b.toml", "a.toml", "a.toml.new"] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        assert_eq!(waiting(folder.path()), ["a.toml", "b.toml"].map(|file| folder.path().join(file)));
        forget(&folder.path().join("a.toml")).unwrap();
        assert_eq!(waiting(folder.path()).len(), 1);
        assert!(waiting(&folder.path().join("absent")).is_empty());
    }

    #[test]
    fn what_an_operator_has_done_stays() {
        let digest = "0000000000000000000000000000000000000000000000000000000000000007";
        let manifest = Manifest::parse(&format!("name = \"a\"\nmodel = \"sha256:{digest}\"\n")).unwrap();
        let (other, both) = ([json!({ "name": "b" })], [json!({ "name": "b" }), json!({ "name": "a" })]);
        let model = [json!({ "sha256": digest, "bytes": 1 })];
        assert_eq!(fate(&manifest, &other, &model), Fate::Deploy);
        assert_eq!(fate(&manifest, &both, &model), Fate::IsServed);
        assert_eq!(fate(&manifest, &[], &[]), Fate::HasNoModel);
    }

    #[test]
    fn what_is_busy_is_asked_again_and_what_is_wrong_is_not() {
        let refused = |status| Refused::Status(status, String::new());
        assert!([429, 503].into_iter().all(|status| may_do_better(&refused(status))));
        assert!(may_do_better(&Refused::Silent("timeout".to_owned())));
        assert!(![200, 400, 401, 409, 422, 500].into_iter().any(|status| may_do_better(&refused(status))));
    }

    #[test]
    fn with_nothing_left_nobody_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        run(&Preload { data: folder.path().to_str().unwrap().to_owned(), within: 1 }).unwrap();
        fs::create_dir(folder.path().join(PRELOAD)).unwrap();
        fs::write(folder.path().join(PRELOAD).join("a.toml"), "").unwrap();
        let error = run(&Preload { data: folder.path().to_str().unwrap().to_owned(), within: 1 }).unwrap_err();
        assert!(error.to_string().contains("address"), "{error}");
    }
}
