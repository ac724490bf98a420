//! API keys: made, kept as keyed hashes, looked up on every request, revoked at once.
//!
//! ```text
//!  supervisor (root)                           server (own uid)
//!  open_as(DIR/server, uid) ─▶ device.secret ─▶ open(DIR/server)
//!  ensure_admin(admin.key) ──▶ keys.json ─────▶ authenticate ◀── every core, one snapshot
//!        └▶ text for DIR/admin.key              create | revoke ─▶ keys.json, then the snapshot
//! ```
//!
//! Invariants: the text of a key is nowhere but with its holder (and, for the admin key, in root's `admin.key`); at
//! rest there is its BLAKE3 hash, keyed by a secret of this device, so that neither a copied `keys.json` nor a table of
//! hashes made elsewhere helps to find one. `keys.json` is written and synced before a change shows, and is always
//! either the old file or the new. What a key has used of its limits a minute is in memory, once for all cores, and is
//! gone with the key. Time comes in as an argument. What it has spent is
//! not known here: `budgets.json` says what may be spent by whom.

mod budgets;
mod file;
mod key;
mod store;
mod text;

pub use budgets::{BUDGETS_MAX, BudgetStore};
pub use file::Owner;
pub use key::{Key, Kind, Rates, WEIGHT_MAX, Weight};
pub use store::{ADMIN_NAME, Caller, KEYS_MAX, KeyStore, NewKey, Unauthorized};
pub use text::{KeyText, ParseKeyError};

use appliance_types::KeyName;
use std::{io, path::PathBuf};

/// Why keys could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file system failed.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The name is taken.
    #[error("a key named `{0}` exists already; revoke it first or choose another name")]
    Exists(KeyName),
    /// No key of this name.
    #[error("no key is named `{0}`; `ember key ls` lists those there are")]
    Missing(KeyName),
    /// The admin key is root's to replace.
    #[error(
        "the key `admin` cannot be revoked: to replace it, remove `admin.key` from the data folder and restart emberd"
    )]
    Admin,
    /// There are as many keys as there may be.
    #[error("there are {max} keys, which is the most; revoke some", max = KEYS_MAX)]
    Full,
    /// There are as many budgets as there may be.
    #[error("there are {max} budgets, which is the most; remove some", max = BUDGETS_MAX)]
    BudgetsFull,
    /// A soft limit above the hard one would never be heard of.
    #[error("the soft limit is above the budget")]
    SoftAboveHard,
    /// An admin key with a list of functions would promise a limit that does not hold.
    #[error("an admin key may call every function; leave out the list")]
    AdminWithFunctions,
    /// The kernel gave no random bytes.
    #[error("no random bytes: {0}")]
    Random(getrandom::Error),
}
