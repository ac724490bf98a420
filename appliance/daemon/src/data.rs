//! The data folder: what lies where, and whose it is.
//!
//! ```text
//!  DIR/            root     0755   made, or taken over when it is root's and nobody else may write to it
//!  ├── lock        root     0644   flock held by the supervisor; holds its pid
//!  ├── address     root     0644   ADDR:PORT, there while requests are answered
//!  ├── admin.key   root     0600
//!  ├── update-floor root    0644   on an appliance: the highest version that was ever trusted
//!  ├── preload/    root     0755   on an appliance: what came with its image and is not deployed yet, NAME.toml
//!  ├── prices.toml root     0644   the price book, made once, then the operator's
//!  ├── telemetry/  root     0755   box.key, server.key are the server's; the rest as in tls/: telemetry_files.rs
//!  ├── tls/        root     0755   ca.pem 0644, ca.key 0600, server.pem 0644; server.key 0600 is the server's
//!  ├── models/     root     0755   the warden's store
//!  ├── snapshots/  root     0700   the warden's, with the key that seals them
//!  ├── server/     server   0700   keys.json, device.secret, functions/NAME.toml; served: what served at the last update
//!  └── ledger/     ledger   0700   segments: 00000001.log, …
//! ```
//!
//! Invariants: only the holder of the lock changes anything here; root never works inside a folder of another uid by a
//! name that this uid could exchange (`appliance_keys` guards its own files likewise). Wrong owners and modes below
//! `DIR` are set right and logged. `DIR` itself is refused when it belongs to somebody else or others may write to it,
//! since then nothing below it is safe, and when it would have to be changed although it holds something unknown.

use crate::{
    exit::Failure,
    files::{self, Access},
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// User and group of the warden and the supervisor.
pub(crate) const ROOT_ID: u32 = 0;
/// First of the ids that belong to Ember, far above those that systems give out.
pub(crate) const BASE_ID: u32 = 2_000_000_000;
/// User and group of the server.
pub(crate) const SERVER_ID: u32 = BASE_ID + 1;
/// User and group of the ledger.
pub(crate) const LEDGER_ID: u32 = BASE_ID + 2;

const FOLDER_MODE: u32 = 0o755;
const FOLDERS: [(&str, Access); 6] = [
    (TELEMETRY, Access { id: ROOT_ID, mode: FOLDER_MODE }),
    (TLS, Access { id: ROOT_ID, mode: FOLDER_MODE }),
    (MODELS, Access { id: ROOT_ID, mode: FOLDER_MODE }),
    (SNAPSHOTS, Access { id: ROOT_ID, mode: 0o700 }),
    (SERVER, Access { id: SERVER_ID, mode: 0o700 }),
    (LEDGER, Access { id: LEDGER_ID, mode: 0o700 }),
];
/// What a fleet knows the box by.
pub(crate) const TELEMETRY: &str = "telemetry";
/// Certificates and their keys.
pub(crate) const TLS: &str = "tls";
/// The warden's store.
pub(crate) const MODELS: &str = "models";
/// The warden's snapshots.
pub(crate) const SNAPSHOTS: &str = "snapshots";
/// The highest version of the appliance that was ever trusted.
pub(crate) const UPDATE_FLOOR: &str = "update-floor";
/// What came with the appliance's image, until it is deployed.
pub(crate) const PRELOAD: &str = "preload";
/// The ledger's folder.
pub(crate) const LEDGER: &str = "ledger";
const SERVER: &str = "server";
const LOCK: &str = "lock";
pub(crate) const ADDRESS: &str = "address";
pub(crate) const ADMIN_KEY: &str = "admin.key";

pub(crate) const PRICES: &str = "prices.toml";

/// Readable by everyone.
pub(crate) const PUBLIC: Access = Access { id: ROOT_ID, mode: 0o644 };
/// Root's own.
pub(crate) const PRIVATE: Access = Access { id: ROOT_ID, mode: 0o600 };

/// The data folder, locked.
#[derive(Debug)]
pub(crate) struct Data {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Data {
    /// Makes or takes over the folder, locks it, and sees to it that everything below is there and as it should be.
    pub(crate) fn open(path: &str) -> Result<Self, Failure> {
        let path = std::path::absolute(path).map_err(|source| Failure::io("find", path, source))?;
        take_over(&path)?;
        let lock = lock(&path)?;
        for stale in [path.join(ADDRESS), path.join(TELEMETRY).join(ADDRESS)] {
            files::remove(&stale).map_err(|source| Failure::io("remove", &stale, source))?;
        }
        for (name, access) in FOLDERS {
            let folder = path.join(name);
            let changed = files::ensure_folder(&folder, access).map_err(|e| Failure::io("make", &folder, e))?;
            warn_if(changed, &folder);
        }
        Ok(Self { path, _lock: lock })
    }

    /// Sees to it that the folders above let others through: server and ledger are not root, and SQLite and the warden's
    /// runners open files by absolute paths.
    pub(crate) fn require_reachable(&self) -> Result<(), Failure> {
        for folder in self.path.ancestors().skip(1) {
            let mode = fs::metadata(folder).map_err(|source| Failure::io("look at", folder, source))?.mode();
            if mode & 0o001 == 0 {
                let (data, folder) = (self.path.display(), folder.display());
                let reason = format!(
                    "{data}: {folder} lets nobody but its owner through (mode {:03o}), and the server is not its owner; \
                     name another folder with --data, or run `chmod o+x {folder}`",
                    mode & 0o777
                );
                return Err(Failure::Unusable(reason));
            }
        }
        Ok(())
    }

    /// Its absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Tells the cgroups of this folder from those of others, and is the same at every start.
    pub(crate) fn tag(&self) -> String {
        format!("{:08x}", crc32c::crc32c(self.path.as_os_str().as_encoded_bytes()))
    }

    /// Sees to it that there is an admin key that the server knows.
    pub(crate) fn ensure_admin_key(&self) -> Result<(), Failure> {
        let path = self.path.join(ADMIN_KEY);
        let existing = files::read(&path).map_err(|source| Failure::io("read", &path, source))?;
        if existing.is_some() {
            let changed = files::ensure_file(&path, PRIVATE).map_err(|e| Failure::io("protect", &path, e))?;
            warn_if(changed, &path);
        }
        let owner = appliance_keys::Owner { uid: SERVER_ID, gid: SERVER_ID };
        let keys = appliance_keys::KeyStore::open_as(&self.path.join(SERVER), owner).map_err(unusable)?;
        let text = keys.ensure_admin(&path, existing.as_deref(), unix_now_s()).map_err(unusable)?;
        if existing.is_none() {
            let line = format!("{}\n", text.as_str());
            files::replace(&path, line.as_bytes(), PRIVATE).map_err(|e| Failure::io("write", &path, e))?;
        }
        Ok(())
    }

    /// Sees to it that there are prices, and that they can be read.
    pub(crate) fn ensure_prices(&self) -> Result<(), Failure> {
        let path = self.path.join(PRICES);
        let Some(text) = files::read(&path).map_err(|source| Failure::io("read", &path, source))? else {
            let made = files::replace(&path, appliance_config::PRICES_DEFAULT.as_bytes(), PUBLIC);
            return made.map_err(|source| Failure::io("write", &path, source));
        };
        let changed = files::ensure_file(&path, PUBLIC).map_err(|source| Failure::io("open", &path, source))?;
        warn_if(changed, &path);
        appliance_config::prices(&text).map(drop).map_err(|source| Failure::Config { file: path, source })
    }

    /// Says where requests are answered.
    pub(crate) fn write_address(&self, address: std::net::SocketAddr) -> Result<(), Failure> {
        let path = self.path.join(ADDRESS);
        files::replace(&path, format!("{address}\n").as_bytes(), PUBLIC).map_err(|e| Failure::io("write", &path, e))
    }

    /// Says where telemetry is answered.
    pub(crate) fn write_telemetry_address(&self, address: std::net::SocketAddr) -> Result<(), Failure> {
        let path = self.path.join(TELEMETRY).join(ADDRESS);
        files::replace(&path, format!("{address}\n").as_bytes(), PUBLIC).map_err(|e| Failure::io("write", &path, e))
    }

    /// Takes both back.
    pub(crate) fn remove_address(&self) -> Result<(), Failure> {
        for path in [self.path.join(ADDRESS), self.path.join(TELEMETRY).join(ADDRESS)] {
            files::remove(&path).map_err(|source| Failure::io("remove", &path, source))?;
        }
        Ok(())
    }
}

fn unusable(error: appliance_keys::KeyError) -> Failure {
    match error {
        appliance_keys::KeyError::File { action, path, source } => Failure::io(action, path, source),
        other => Failure::Unusable(other.to_string()),
    }
}

fn unix_now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn warn_if(changed: bool, path: &Path) {
    if changed {
        tracing::warn!(path = %path.display(), "owner or mode was wrong and has been set right");
    }
}

fn take_over(path: &Path) -> Result<(), Failure> {
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path).map_err(|e| Failure::io("make", path, e))?;
    let failed = |source| Failure::io("look at", path, source);
    let metadata = fs::metadata(path).map_err(failed)?;
    let empty = fs::read_dir(path).map_err(failed)?.next().is_none();
    let ours = empty || path.join(LOCK).exists();
    match verdict(metadata.uid(), metadata.mode() & 0o7777, ours) {
        Verdict::Fine => Ok(()),
        Verdict::Open => {
            tracing::info!(path = %path.display(), "opened the data folder to Ember's own users: mode 0755");
            let mode = fs::Permissions::from_mode(FOLDER_MODE);
            fs::set_permissions(path, mode).map_err(|source| Failure::io("chmod", path, source))
        }
        Verdict::Refuse(reason) => Err(Failure::Unusable(format!("data folder {} {reason}", path.display()))),
    }
}

/// What to do with `DIR` as it was found.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    /// Set its mode, so that other uids can go through it.
    Open,
    Refuse(&'static str),
}

fn verdict(owner: u32, mode: u32, ours: bool) -> Verdict {
    match (owner, mode) {
        (owner, _) if owner != ROOT_ID => Verdict::Refuse("must belong to root: `chown root` it"),
        (_, mode) if mode & 0o022 != 0 => Verdict::Refuse("can be written to by others: `chmod go-w` it"),
        (_, mode) if mode & 0o011 == 0o011 => Verdict::Fine,
        _ if ours => Verdict::Open,
        _ => Verdict::Refuse("is closed to other users and holds other things: `chmod 755` it, or choose another"),
    }
}

/// Locks a data folder against other emberds.
pub(crate) fn lock(data: &Path) -> Result<Flock<File>, Failure> {
    let path = data.join(LOCK);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(&path);
    let file = open.map_err(|source| Failure::io("open", &path, source))?;
    let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(file, errno)| match errno {
        Errno::EWOULDBLOCK => Failure::Locked { data: data.to_owned(), pid: holder(file) },
        errno => Failure::io("lock", &path, errno),
    })?;
    note_holder(&mut lock).map_err(|source| Failure::io("write", &path, source))?;
    Ok(lock)
}

fn note_holder(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    writeln!(lock, "{}", std::process::id())
}

fn holder(file: File) -> String {
    match io::read_to_string(file) {
        Ok(text) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path) -> Result<Data, Failure> {
        Data::open(folder.to_str().unwrap())
    }

    #[test]
    fn a_folder_is_taken_only_when_that_is_safe() {
        assert_eq!(verdict(0, 0o755, false), Verdict::Fine);
        assert_eq!(verdict(0, 0o700, true), Verdict::Open);
        assert!(matches!(verdict(0, 0o700, false), Verdict::Refuse(_)));
        assert!(matches!(verdict(0, 0o1777, true), Verdict::Refuse(_)));
        assert!(matches!(verdict(1000, 0o755, true), Verdict::Refuse(_)));
    }

    #[test]
    fn a_folder_above_that_lets_nobody_through_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let data = open(&parent.path().join("a")).unwrap();
        fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let refused = data.require_reachable().unwrap_err().to_string();
        let named = format!("chmod o+x {}", parent.path().display());
        assert!(refused.contains(&named) && refused.contains("mode 700"), "{refused}");
        fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o711)).unwrap();
        data.require_reachable().unwrap();
    }

    #[test]
    fn the_layout_is_made_and_kept() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let key = |data: &Data| {
            data.ensure_admin_key().unwrap();
            fs::read_to_string(path.join("admin.key")).unwrap()
        };
        let first = key(&open(&path).unwrap());
        fs::set_permissions(path.join("server"), fs::Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(path.join("admin.key"), fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(path.join("address"), "stale").unwrap();
        assert_eq!(key(&open(&path).unwrap()), first);

        let found = |name: &str| {
            let metadata = fs::metadata(path.join(name)).unwrap();
            (metadata.uid(), metadata.mode() & 0o7777)
        };
        assert_eq!(found("."), (0, 0o755));
        assert_eq!(found("admin.key"), (0, 0o600));
        assert_eq!(found("server"), (SERVER_ID, 0o700));
        assert_eq!(found("server/device.secret"), (SERVER_ID, 0o600));
        assert_eq!(found("ledger"), (LEDGER_ID, 0o700));
        assert!(!path.join("address").exists());
    }

    #[test]
    fn a_locked_folder_names_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let _held = open(folder.path()).unwrap();
        let failure = open(folder.path()).unwrap_err();
        let pid = std::process::id().to_string();
        assert!(matches!(&failure, Failure::Locked { pid: named, .. } if *named == pid), "{failure}");
    }

    #[test]
    fn a_folder_has_one_tag() {
        let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let tag = |folder: &tempfile::TempDir| open(folder.path()).unwrap().tag();
        assert_eq!(tag(&first), tag(&first));
        assert_ne!(tag(&first), tag(&second));
        assert!(tag(&first).len() == 8 && tag(&first).bytes().all(|byte| byte.is_ascii_hexdigit()));
    }

    #[test]
    fn the_address_comes_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let data = open(folder.path()).unwrap();
        data.write_address(([127, 0, 0, 1], 8443).into()).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("address")).unwrap(), "127.0.0.1:8443\n");
        data.remove_address().unwrap();
        assert!(!folder.path().join("address").exists());
    }
}
