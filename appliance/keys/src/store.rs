//! The keys of one device.
//!
//! **Constant time.** What is presented is hashed with the device's secret before it is compared with anything. Keys
//! are found by the first 8 bytes of that hash, and the whole hash is then compared in constant time. How long the
//! search takes depends on those 8 bytes alone, which nobody without the secret can predict or steer, so a guess's
//! timing tells nothing about a key, not even after many.
//!
//! **At once.** All cores read one snapshot behind an atomic pointer. A change swaps it after the file is on disk;
//! every [`KeyStore::authenticate`] that begins after [`KeyStore::revoke`] has returned sees the swap.

use crate::{Key, KeyError, KeyText, Kind, Owner, ParseKeyError, Rates, file::Folder, text::secret_of};
use appliance_admit::limit::{Limiter, Limits};
use appliance_price::Budget;
use appliance_types::{FunctionName, KeyName, ProjectName};
use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};
use subtle::ConstantTimeEq as _;

/// Most keys.
pub const KEYS_MAX: usize = 10_000;
/// Name of the key in `admin.key`.
pub const ADMIN_NAME: &str = "admin";

const KEYS_FILE: &str = "keys.json";
const SECRET_FILE: &str = "device.secret";
const VERSION: u32 = 1;

/// The keys; one for all cores.
pub struct KeyStore {
    folder: Folder,
    device_secret: [u8; 32],
    keys: ArcSwap<Snapshot>,
    /// Held while a change is made, so that changes follow each other.
    change: Mutex<()>,
}

/// What a new key is to be: `{"name":…,"kind":…,"functions":[…]}`, a field nobody knows being an error, since it could
/// be a limit that would not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// What it goes by.
    pub name: KeyName,
    /// What it is for; to call functions, unless said.
    #[serde(default)]
    pub kind: Kind,
    /// The functions it may call; all where there is no list.
    #[serde(default)]
    pub functions: Option<Vec<FunctionName>>,
    /// How much it may use; all there is, unless said.
    #[serde(default)]
    pub rates: Rates,
    /// The project whose budget it draws on too; none, unless said.
    #[serde(default)]
    pub project: Option<ProjectName>,
    /// What it may spend; all it likes, unless said.
    #[serde(default)]
    pub budget: Option<Budget>,
}

/// A key that was presented.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The key.
    pub key: Arc<Key>,
    /// What it has used of its limits, where it has any: the same for every request of the key, on every core. Locked
    /// for as long as it takes to count.
    pub limiter: Option<Arc<Mutex<Limiter>>>,
}

/// Why a presented text opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthorized {
    /// It is no key of any Ember.
    #[error(transparent)]
    NotAKey(#[from] ParseKeyError),
    /// It could be a key, but is none of this device's.
    #[error("this key is unknown here: it was revoked, or belongs to another Ember")]
    Unknown,
}

/// A key's hash as it is at rest.
#[derive(Clone, Copy, PartialEq, Eq)]
struct KeyHash([u8; 32]);

#[derive(Clone)]
struct Entry {
    hash: KeyHash,
    caller: Caller,
}

/// All keys, by [`KeyHash::slot`].
#[derive(Clone, Default)]
struct Snapshot(HashMap<u64, Entry>);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysFile {
    version: u32,
    keys: Vec<StoredKey>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredKey {
    key: Arc<Key>,
    hash: String,
}

impl KeyStore {
    /// Opens the keys in the folder `path`, which exists; makes the device's secret if there is none.
    ///
    /// # Errors
    /// A file cannot be read, or does not hold what it should.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        Self::open_folder(Folder { path: path.to_owned(), owner: None })
    }

    /// The same, for root on behalf of `owner`, to whom all files then belong.
    ///
    /// # Errors
    /// As for [`KeyStore::open`].
    pub fn open_as(path: &Path, owner: Owner) -> Result<Self, KeyError> {
        Self::open_folder(Folder { path: path.to_owned(), owner: Some(owner) })
    }

    /// The key that `presented` is the text of.
    ///
    /// # Errors
    /// It opens nothing.
    pub fn authenticate(&self, presented: &str) -> Result<Caller, Unauthorized> {
        let hash = self.hash(&secret_of(presented)?);
        let keys = self.keys.load();
        let found = keys.0.get(&hash.slot()).filter(|entry| bool::from(entry.hash.0.ct_eq(&hash.0)));
        found.map(|entry| entry.caller.clone()).ok_or(Unauthorized::Unknown)
    }

    /// Makes a key. Its text is returned here and never again. Writes a file: not for a serving core.
    ///
    /// # Errors
    /// The name is taken, there are too many, or the file cannot be written.
    pub fn create(&self, new: NewKey, now_unix_s: u64) -> Result<KeyText, KeyError> {
        let NewKey { name, kind, functions, rates, project, budget } = new;
        if kind == Kind::Admin && functions.is_some() {
            return Err(KeyError::AdminWithFunctions);
        }
        if budget.is_some_and(|budget| budget.soft_nanos.is_some_and(|soft| soft > budget.hard_nanos)) {
            return Err(KeyError::SoftAboveHard);
        }
        let text = KeyText::random().map_err(KeyError::Random)?;
        let key = Key { name, kind, functions, rates, project, budget, created_unix_s: now_unix_s };
        self.change(|keys| {
            if keys.find(&key.name).is_some() {
                return Err(KeyError::Exists(key.name));
            }
            keys.insert(self.hash(text.secret()), key)
        })?;
        Ok(text)
    }

    /// Ends a key: from this call's return on it opens nothing. Writes a file: not for a serving core.
    ///
    /// # Errors
    /// There is no such key, it is the admin key, or the file cannot be written; the key then still works.
    pub fn revoke(&self, name: &KeyName) -> Result<(), KeyError> {
        if name.as_str() == ADMIN_NAME {
            return Err(KeyError::Admin);
        }
        self.change(|keys| match keys.remove(name) {
            true => Ok(()),
            false => Err(KeyError::Missing(name.clone())),
        })
    }

    /// All keys, by name.
    pub fn list(&self) -> Vec<Arc<Key>> {
        let mut keys: Vec<_> = self.keys.load().0.values().map(|entry| entry.caller.key.clone()).collect();
        keys.sort_by(|a, b| a.name.cmp(&b.name));
        keys
    }

    /// Sees to it that the admin key is the one in `existing`, the text of `admin.key`, or a new one. Returns the text
    /// that `admin.key` has to hold. A start cut short between the two is made good by the next.
    ///
    /// # Errors
    /// `existing` is no key's text (`path` is named), or the file cannot be written.
    pub fn ensure_admin(&self, path: &Path, existing: Option<&str>, now_unix_s: u64) -> Result<KeyText, KeyError> {
        let text = match existing {
            Some(text) => admin_text(path, text)?,
            None => KeyText::random().map_err(KeyError::Random)?,
        };
        if !self.authenticate(text.as_str()).is_ok_and(|caller| caller.key.is_admin()) {
            let name: KeyName = ADMIN_NAME.parse().expect("`admin` is a name");
            let (kind, rates, created_unix_s) = (Kind::Admin, Rates::default(), now_unix_s);
            let key = Key { name, kind, functions: None, rates, project: None, budget: None, created_unix_s };
            self.change(|keys| {
                keys.remove(&key.name);
                keys.insert(self.hash(text.secret()), key)
            })?;
        }
        Ok(text)
    }

    fn open_folder(folder: Folder) -> Result<Self, KeyError> {
        let keys = match folder.read(KEYS_FILE)? {
            None => Snapshot::default(),
            Some(bytes) => Snapshot::from_json(&bytes)
                .map_err(|reason| KeyError::Corrupt { path: folder.path.join(KEYS_FILE), reason })?,
        };
        let device_secret = device_secret(&folder, keys.0.len())?;
        Ok(Self { folder, device_secret, keys: ArcSwap::from_pointee(keys), change: Mutex::new(()) })
    }

    fn hash(&self, secret: &[u8; 32]) -> KeyHash {
        KeyHash(*blake3::keyed_hash(&self.device_secret, secret).as_bytes())
    }

    /// Changes a copy, stores it, and only then shows it.
    fn change(&self, edit: impl FnOnce(&mut Snapshot) -> Result<(), KeyError>) -> Result<(), KeyError> {
        // The lock guards no data, so a panic under it left nothing half changed.
        let _turn = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keys = Snapshot::clone(&self.keys.load());
        edit(&mut keys)?;
        self.folder.replace(KEYS_FILE, &keys.to_json())?;
        self.keys.store(Arc::new(keys));
        Ok(())
    }
}

impl Caller {
    fn new(key: Key) -> Self {
        let limits = key.rates.limits();
        let limited = limits != Limits::default();
        Self { key: Arc::new(key), limiter: limited.then(|| Arc::new(Mutex::new(Limiter::new(limits)))) }
    }
}

impl KeyHash {
    /// Where the key is found: enough of the hash that two keys never meet.
    fn slot(&self) -> u64 {
        u64::from_le_bytes(*self.0.first_chunk().expect("a hash has 32 bytes"))
    }
}

impl Snapshot {
    fn find(&self, name: &KeyName) -> Option<&Entry> {
        self.0.values().find(|entry| entry.caller.key.name == *name)
    }

    fn insert(&mut self, hash: KeyHash, key: Key) -> Result<(), KeyError> {
        if self.0.len() >= KEYS_MAX {
            return Err(KeyError::Full);
        }
        self.0.insert(hash.slot(), Entry { hash, caller: Caller::new(key) });
        Ok(())
    }

    fn remove(&mut self, name: &KeyName) -> bool {
        let before = self.0.len();
        self.0.retain(|_, entry| entry.caller.key.name != *name);
        self.0.len() < before
    }

    fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let unreadable = |error: &dyn std::fmt::Display| {
            format!("not a file of keys ({error}); restore it from a copy, or remove it to start with no keys")
        };
        let file: KeysFile = serde_json::from_slice(bytes).map_err(|error| unreadable(&error))?;
        if file.version != VERSION {
            return Err(format!("version {} of the format; this Ember reads version {VERSION}", file.version));
        }
        let mut keys = Self::default();
        for StoredKey { key, hash } in file.keys {
            let hash = blake3::Hash::from_hex(&hash).map_err(|error| unreadable(&error))?;
            if keys.find(&key.name).is_some() {
                return Err(unreadable(&format_args!("two keys are named `{}`", key.name)));
            }
            keys.insert(KeyHash(*hash.as_bytes()), Arc::unwrap_or_clone(key)).map_err(|error| unreadable(&error))?;
        }
        Ok(keys)
    }

    fn to_json(&self) -> Vec<u8> {
        let mut entries: Vec<_> = self.0.values().collect();
        entries.sort_by(|a, b| a.caller.key.name.cmp(&b.caller.key.name));
        let stored = |entry: &Entry| StoredKey {
            key: entry.caller.key.clone(),
            hash: blake3::Hash::from_bytes(entry.hash.0).to_hex().to_string(),
        };
        let file = KeysFile { version: VERSION, keys: entries.into_iter().map(stored).collect() };
        serde_json::to_vec_pretty(&file).expect("keys are strings and numbers")
    }
}

fn admin_text(path: &Path, text: &str) -> Result<KeyText, KeyError> {
    text.trim_end().parse().map_err(|error: ParseKeyError| KeyError::Corrupt {
        path: path.to_owned(),
        reason: format!("{error}; remove the file to get a new admin key"),
    })
}

/// The device's secret. A new one is made only where no key is lost by it.
fn device_secret(folder: &Folder, keys: usize) -> Result<[u8; 32], KeyError> {
    let corrupt = |reason: String| KeyError::Corrupt { path: folder.path.join(SECRET_FILE), reason };
    match folder.read(SECRET_FILE)? {
        Some(bytes) => <[u8; 32]>::try_from(&bytes[..])
            .map_err(|_| corrupt(format!("{} bytes instead of 32; restore it from a copy", bytes.len()))),
        None if keys > 0 => Err(corrupt(format!(
            "it is missing, and without it none of the {keys} keys in `{KEYS_FILE}` opens anything; restore it from a \
             copy, or remove `{KEYS_FILE}` as well"
        ))),
        None => {
            let mut secret = [0; 32];
            getrandom::fill(&mut secret).map_err(KeyError::Random)?;
            folder.replace(SECRET_FILE, &secret)?;
            Ok(secret)
        }
    }
}

#[cfg(test)]
mod tests;
