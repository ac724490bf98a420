//! What a key may do.

use appliance_admit::limit::Limits;
use appliance_price::Budget;
use appliance_types::{FunctionName, KeyName, ProjectName};
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;

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
    /// How much it may use; all there is where there is no limit, as in files of before there were any.
    #[serde(default)]
    pub rates: Rates,
    /// The project whose budget it draws on too, if there is one.
    #[serde(default)]
    pub project: Option<ProjectName>,
    /// What it may spend; all it likes where there is no budget. One that is set later goes before it.
    #[serde(default)]
    pub budget: Option<Budget>,
    /// When it was made, seconds since the Unix epoch.
    pub created_unix_s: u64,
}

/// How much a key may use, and how much of the box is its when others want it too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rates {
    /// Requests a minute.
    pub rpm: Option<NonZeroU32>,
    /// Tokens a minute, of prompts and answers.
    pub tpm: Option<NonZeroU32>,
    /// Requests at once, waiting ones included.
    pub concurrency: Option<NonZeroU32>,
    /// Turns that it gets for each turn of a key of weight 1, while both wait.
    pub weight: Weight,
}

/// A key's share beside others: 1 to [`WEIGHT_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Weight(u32);

/// Most weight of a key.
pub const WEIGHT_MAX: u32 = 1000;

/// What a key is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Deploys functions, makes keys, and calls.
    Admin,
    /// Calls functions.
    #[default]
    User,
    /// Reads metrics, and what it is itself; nothing else.
    Telemetry,
}

impl Rates {
    /// The limits among them.
    pub fn limits(&self) -> Limits {
        let number = |limit: Option<NonZeroU32>| limit.map(NonZeroU32::get);
        Limits { rpm: number(self.rpm), tpm: number(self.tpm), concurrency: number(self.concurrency) }
    }
}

impl Weight {
    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(1)
    }
}

impl TryFrom<u32> for Weight {
    type Error = String;

    fn try_from(weight: u32) -> Result<Self, String> {
        let known = (1..=WEIGHT_MAX).contains(&weight);
        known.then_some(Self(weight)).ok_or_else(|| format!("a weight is 1 to {WEIGHT_MAX}, not {weight}"))
    }
}

impl From<Weight> for u32 {
    fn from(weight: Weight) -> Self {
        weight.0
    }
}

impl Key {
    /// Whether it may use the operator's endpoints.
    pub fn is_admin(&self) -> bool {
        self.kind == Kind::Admin
    }

    /// Whether it may read metrics.
    pub fn may_read_metrics(&self) -> bool {
        matches!(self.kind, Kind::Admin | Kind::Telemetry)
    }

    /// Whether it may call `function`.
    pub fn may_call(&self, function: &FunctionName) -> bool {
        self.kind != Kind::Telemetry && self.functions.as_ref().is_none_or(|functions| functions.contains(function))
    }
}
