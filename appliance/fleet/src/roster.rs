//! Which boxes there are: `boxes.json` in the fleet's folder, written whole or not at all.
//!
//! ```text
//!  FLEET/
//!  ├── boxes.json              name, address, and whom to trust where that is not the fleet's CA
//!  ├── ca.pem, ca.key          the fleet's CA, made with the first enrolment
//!  ├── client.pem, client.key  shown to boxes by `pull`, and by Prometheus
//!  ├── lock                    held by who changes any of these
//!  ├── boxes/NAME/             what a box is given: enrol.rs
//!  └── fleet.db                what was pulled: store.rs
//! ```
//!
//! Invariant: who changes something holds the lock from before it reads what is there until the change is on the disk, so that
//! no change of two at once is lost. Readers need none: each file is replaced whole.

use crate::{Address, BoxName};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Most boxes of a fleet.
pub const BOXES_MAX: usize = 10_000;
/// Longest file of the roster.
const FILE_BYTES_MAX: u64 = 16 << 20;
const FILE: &str = "boxes.json";

/// A box of the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// What it is called; its certificate must hold this name.
    pub name: BoxName,
    /// Where it tells.
    pub address: Address,
    /// The CA of its certificate; the fleet's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The certificate that is shown to it; the fleet's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// The key of that certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// Why the roster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RosterError {
    /// A file cannot be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file is none.
    #[error("`{}` is no list of boxes: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What was met.
        reason: String,
    },
    /// There are too many.
    #[error("a fleet has {BOXES_MAX} boxes at most")]
    Full,
    /// There is none of this name.
    #[error("no box is called `{0}`")]
    NoSuchBox(BoxName),
}

/// The boxes, and the folder that they are kept in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    folder: PathBuf,
    members: Vec<Member>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    boxes: Vec<Member>,
}

impl Roster {
    /// The roster in `folder`; without boxes where there is none yet.
    ///
    /// # Errors
    /// [`RosterError`].
    pub fn open(folder: &Path) -> Result<Self, RosterError> {
        let path = folder.join(FILE);
        let mut text = String::new();
        let read = File::open(&path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { folder: folder.to_owned(), members: vec![] });
            }
            Err(source) => return Err(RosterError::Io { action: "read", path, source }),
        }
        match serde_json::from_str::<Document>(&text) {
            Ok(document) if document.boxes.len() > BOXES_MAX => Err(RosterError::Full),
            Ok(document) => Ok(Self { folder: folder.to_owned(), members: document.boxes }),
            Err(error) => Err(RosterError::Unreadable { path, reason: error.to_string() }),
        }
    }

    /// The fleet's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The boxes, by name.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The box of a name.
    ///
    /// # Errors
    /// [`RosterError::NoSuchBox`].
    pub fn member(&self, name: &BoxName) -> Result<&Member, RosterError> {
        self.members.iter().find(|member| member.name == *name).ok_or_else(|| RosterError::NoSuchBox(name.clone()))
    }

    /// Puts a box in, in place of the one of its name, and keeps the roster.
    ///
    /// # Errors
    /// [`RosterError`].
    pub fn put(&mut self, member: Member) -> Result<(), RosterError> {
        self.change(|roster| {
            roster.members.retain(|other| other.name != member.name);
            if roster.members.len() >= BOXES_MAX {
                return Err(RosterError::Full);
            }
            let at = roster.members.partition_point(|other| other.name < member.name);
            roster.members.insert(at, member);
            Ok(())
        })
    }

    /// Takes a box out, and keeps the roster. What was pulled of it stays.
    ///
    /// # Errors
    /// [`RosterError`].
    pub fn remove(&mut self, name: &BoxName) -> Result<(), RosterError> {
        self.member(name)?;
        self.change(|roster| {
            roster.member(name)?;
            roster.members.retain(|member| member.name != *name);
            Ok(())
        })
    }

    /// The files of CA, certificate and key that are used for a box.
    pub fn credentials(&self, member: &Member) -> [PathBuf; 3] {
        let or = |given: &Option<PathBuf>, own: &str| given.clone().unwrap_or_else(|| self.folder.join(own));
        [or(&member.ca, "ca.pem"), or(&member.cert, "client.pem"), or(&member.key, "client.key")]
    }

    /// Changes what is there now, which may be another than when it was read, and keeps it.
    fn change(&mut self, change: impl FnOnce(&mut Self) -> Result<(), RosterError>) -> Result<(), RosterError> {
        let _lock = lock(&self.folder)?;
        let mut roster = Self::open(&self.folder)?;
        change(&mut roster)?;
        roster.write()?;
        *self = roster;
        Ok(())
    }

    fn write(&self) -> Result<(), RosterError> {
        let document = Document { boxes: self.members.clone() };
        let text = serde_json::to_string_pretty(&document).expect("text and numbers") + "\n";
        replace(&self.folder.join(FILE), text.as_bytes(), 0o644)
    }
}

/// Makes the fleet's folder, and waits until nobody else changes what is in it; held until it is dropped.
pub(crate) fn lock(folder: &Path) -> Result<File, RosterError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| RosterError::Io { action, path, source }
    };
    fs::create_dir_all(folder).map_err(failed("make", folder))?;
    let path = folder.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(failed("open", &path))?;
    file.lock().map_err(failed("lock", &path))?;
    Ok(file)
}

/// Writes a file beside its place, and moves it there when it is whole and on the disk. Under the lock: the place beside it is
/// the same for all.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), RosterError> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let written = match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh),
    };
    written
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&fresh, path))
        .and_then(|()| File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all())
        .map_err(|source| RosterError::Io { action: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn member(name: &str) -> Member {
        Member { name: name.parse().unwrap(), address: "a:1".parse().unwrap(), ca: None, cert: None, key: None }
    }

    #[test]
    fn boxes_are_kept_by_name_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("fleet");
        let mut roster = Roster::open(&folder).unwrap();
        for name in ["b", "a", "c", "b"] {
            roster.put(member(name)).unwrap();
        }
        let given = Member { ca: Some("/ca".into()), ..member("b") };
        roster.put(given.clone()).unwrap();
        roster.remove(&"c".parse().unwrap()).unwrap();
        assert!(matches!(roster.remove(&"c".parse().unwrap()), Err(RosterError::NoSuchBox(_))));
        let again = Roster::open(&folder).unwrap();
        assert_eq!(again, roster);
        assert_eq!(again.members(), [member("a"), given.clone()]);
        assert_eq!(again.credentials(&given), ["/ca".into(), folder.join("client.pem"), folder.join("client.key")]);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "nothing is left beside it and the lock");
    }

    #[test]
    fn what_many_change_at_once_is_all_there() {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<_> = (0..24).map(|number| format!("shop-{number:02}")).collect();
        thread::scope(|scope| {
            for name in &names {
                let folder = folder.path();
                scope.spawn(move || {
                    let mut roster = Roster::open(folder).unwrap();
                    roster.put(member(name)).unwrap();
                    roster.put(member(&format!("{name}-gone"))).unwrap();
                    roster.remove(&format!("{name}-gone").parse().unwrap()).unwrap();
                });
            }
        });
        let roster = Roster::open(folder.path()).unwrap();
        assert!(roster.members().iter().map(|member| member.name.as_str()).eq(names.iter().map(String::as_str)));
    }

    #[test]
    fn a_file_that_is_none_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["", "[]", r#"{"boxes": [{"name": "A", "address": "a:1"}]}"#, r#"{"boxes": [], "more": 1}"#] {
            fs::write(folder.path().join(FILE), text).unwrap();
            let error = Roster::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains("boxes.json"), "{error}");
        }
    }
}
