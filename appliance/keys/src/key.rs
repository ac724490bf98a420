//! What a key may do.

use appliance_types::{FunctionName, KeyName};
use serde::{Deserialize, Serialize};

/// A key, as far as anyone but its holder knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// What it goes by in lists and bills.
    pub name: KeyName,
    /// What it is for.
    pub kind: Kind,
    /// The functions it may call; all where there is no list.
    pub functions: Option<Vec<FunctionName>>,
    /// When it was made, seconds since the Unix epoch.
    pub created_unix_s: u64,
}

/// What a key is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Deploys functions, makes keys, and calls.
    Admin,
    /// Calls functions.
    #[default]
    User,
}

impl Key {
    /// Whether it may use the operator's endpoints.
    pub fn is_admin(&self) -> bool {
        self.kind == Kind::Admin
    }

    /// Whether it may call `function`.
    pub fn may_call(&self, function: &FunctionName) -> bool {
        self.functions.as_ref().is_none_or(|functions| functions.contains(function))
    }
}
