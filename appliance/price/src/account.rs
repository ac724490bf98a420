//! What was spent, and what may be: reserved before a request runs, settled when it has ended.
//!
//! ```text
//!  reserve(worst case) ─┬▶ Exhausted: whose budget, and when there is money again
//!                       └▶ Grant ── runs, and stops at the grant ── settle(cost ≤ grant) ─▶ spent; alarms
//! ```
//!
//! A request draws on up to three accounts at once: its key's, its project's, its function's. Each may have a budget.
//! Where the worst case does not fit, what is left is granted, down to the least that a request costs.
//!
//! Invariants: within a period `spent + reserved ≤ hard`, unless the budget was made smaller; a request that is refused
//! has reserved nothing; each grant is settled once. A request counts in the period that it ends in, so a period begins
//! with what is reserved then. The wall clock may go back: then what was spent stays, and no budget is had twice.

use crate::{
    budget::{Budget, Period},
    calendar,
};
use appliance_types::{FunctionName, KeyName, ProjectName};
use std::{collections::HashMap, fmt, str::FromStr};

/// Who pays.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// A key.
    Key(KeyName),
    /// All keys of a project.
    Project(ProjectName),
    /// All that call a function.
    Function(FunctionName),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(name) => write!(f, "key:{name}"),
            Self::Project(name) => write!(f, "project:{name}"),
            Self::Function(name) => write!(f, "function:{name}"),
        }
    }
}

/// Why a text names no owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseOwnerError(String);

impl fmt::Display for ParseOwnerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ParseOwnerError {}

impl FromStr for Owner {
    type Err = ParseOwnerError;
    fn from_str(text: &str) -> Result<Self, ParseOwnerError> {
        let form = format!("`{text}` is not key:NAME, project:NAME or function:NAME");
        let (kind, name) = text.split_once(':').ok_or_else(|| ParseOwnerError(form.clone()))?;
        let wrong = |error: &dyn fmt::Display| ParseOwnerError(error.to_string());
        match kind {
            "key" => name.parse().map(Self::Key).map_err(|error| wrong(&error)),
            "project" => name.parse().map(Self::Project).map_err(|error| wrong(&error)),
            "function" => name.parse().map(Self::Function).map_err(|error| wrong(&error)),
            _ => Err(ParseOwnerError(form)),
        }
    }
}

/// An account that a request draws on, with its budget if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stake {
    /// Whose account.
    pub owner: Owner,
    /// What it may spend.
    pub budget: Option<Budget>,
}

/// What a request may cost.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a grant that is not settled stays reserved"]
pub struct Grant {
    stakes: Vec<Stake>,
    reserved_nanos: u64,
    /// The most that may be charged, nano-units; `None` where nobody has a budget.
    pub cap_nanos: Option<u64>,
}

/// There is not enough left for any request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// Whose account.
    pub owner: Owner,
    /// Its budget.
    pub budget: Budget,
    /// What was spent in this period, nano-units.
    pub spent_nanos: u64,
    /// What requests that run have reserved, nano-units: where that is why there is nothing left, some may come back.
    pub reserved_nanos: u64,
    /// Whether there is nothing left even when all of that comes back.
    pub spent_up: bool,
    /// When the next period begins, milliseconds since the Unix epoch.
    pub resets_unix_ms: u64,
}

/// How far a budget is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The soft limit is reached.
    Soft,
    /// Nothing is left.
    Hard,
}

/// A budget reached a level, for the first time in a period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// Whose account.
    pub owner: Owner,
    /// Its budget.
    pub budget: Budget,
    /// What it reached.
    pub level: Level,
    /// What is spent, nano-units.
    pub spent_nanos: u64,
}

/// How an account stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Spent in the period, nano-units.
    pub spent_nanos: u64,
    /// Reserved by what runs, nano-units.
    pub reserved_nanos: u64,
}

/// The accounts of all who ever paid since the start, whether they have a budget or not: so one that is made later counts
/// what was spent before. There are as many as there were keys, projects and functions.
#[derive(Clone, Debug, Default)]
pub struct Accounts(HashMap<Owner, Account>);

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    day: Tally,
    month: Tally,
    reserved: u64,
}

/// What was spent in one period.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// Which, counted from 1970.
    number: u64,
    spent: u64,
    told: Option<Level>,
}

impl Tally {
    /// Begins a new period, unless it is the same or an earlier one.
    fn advance(&mut self, number: u64) {
        if number > self.number {
            *self = Self::default();
        }
        self.number = number;
    }
}

impl Account {
    fn advance(&mut self, now_unix_ms: u64) {
        self.day.advance(calendar::day(now_unix_ms));
        self.month.advance(calendar::month(now_unix_ms));
    }

    fn tally(&mut self, period: Period) -> &mut Tally {
        match period {
            Period::Day => &mut self.day,
            Period::Month => &mut self.month,
        }
    }

    fn left(&mut self, budget: &Budget) -> u64 {
        let used = self.tally(budget.period).spent.saturating_add(self.reserved);
        budget.hard_nanos.saturating_sub(used)
    }

    /// The level that is reached and was not told of in this period.
    fn untold(&mut self, budget: &Budget, least_nanos: u64) -> Option<Level> {
        let tally = self.tally(budget.period);
        let hard = tally.spent.saturating_add(least_nanos) > budget.hard_nanos || tally.spent >= budget.hard_nanos;
        let soft = budget.soft_nanos.is_some_and(|soft| tally.spent >= soft);
        let level = if hard { Some(Level::Hard) } else { soft.then_some(Level::Soft) };
        let untold = level.filter(|level| tally.told.is_none_or(|told| told < *level));
        tally.told = untold.or(tally.told);
        untold
    }
}

impl Accounts {
    /// Counts what was spent before the start, at `at_unix_ms`, if that is in a period that is not over.
    pub fn remember(&mut self, now_unix_ms: u64, owner: Owner, at_unix_ms: u64, nanos: u64) {
        let account = self.account(now_unix_ms, &owner);
        if calendar::day(at_unix_ms) >= account.day.number {
            account.day.spent = account.day.spent.saturating_add(nanos);
        }
        if calendar::month(at_unix_ms) >= account.month.number {
            account.month.spent = account.month.spent.saturating_add(nanos);
        }
    }

    /// Reserves `worst_nanos`, or what is left; not less than `least_nanos`.
    ///
    /// # Errors
    /// The first account that has not so much; then nothing is reserved.
    pub fn reserve(
        &mut self,
        now_unix_ms: u64,
        stakes: Vec<Stake>,
        worst_nanos: u64,
        least_nanos: u64,
    ) -> Result<Grant, Exhausted> {
        let mut granted = worst_nanos.max(least_nanos);
        let mut capped = false;
        for Stake { owner, budget } in &stakes {
            let account = self.account(now_unix_ms, owner);
            let Some(budget) = budget else { continue };
            let left = account.left(budget);
            if left < least_nanos.max(1) {
                return Err(exhausted(account, owner, budget, now_unix_ms, least_nanos));
            }
            (granted, capped) = (granted.min(left), true);
        }
        for Stake { owner, .. } in &stakes {
            let account = self.account(now_unix_ms, owner);
            account.reserved = account.reserved.saturating_add(granted);
        }
        Ok(Grant { stakes, reserved_nanos: granted, cap_nanos: capped.then_some(granted) })
    }

    /// A request ended and cost `cost_nanos`, of which no more than the grant counts. `least_nanos` is what another one
    /// would cost at least. Returns the levels that are reached by it.
    pub fn settle(&mut self, now_unix_ms: u64, grant: Grant, cost_nanos: u64, least_nanos: u64) -> Vec<Alarm> {
        let cost = grant.cap_nanos.map_or(cost_nanos, |cap| cost_nanos.min(cap));
        let mut alarms = Vec::new();
        for Stake { owner, budget } in grant.stakes {
            let account = self.account(now_unix_ms, &owner);
            account.reserved = account.reserved.saturating_sub(grant.reserved_nanos);
            account.day.spent = account.day.spent.saturating_add(cost);
            account.month.spent = account.month.spent.saturating_add(cost);
            let Some(budget) = budget else { continue };
            if let Some(level) = account.untold(&budget, least_nanos) {
                let spent_nanos = account.tally(budget.period).spent;
                alarms.push(Alarm { owner, budget, level, spent_nanos });
            }
        }
        alarms
    }

    /// How an account stands in a period.
    pub fn standing(&self, now_unix_ms: u64, owner: &Owner, period: Period) -> Standing {
        let Some(mut account) = self.0.get(owner).copied() else { return Standing::default() };
        account.advance(now_unix_ms);
        Standing { spent_nanos: account.tally(period).spent, reserved_nanos: account.reserved }
    }

    fn account(&mut self, now_unix_ms: u64, owner: &Owner) -> &mut Account {
        if !self.0.contains_key(owner) {
            self.0.insert(owner.clone(), Account::default());
        }
        let account = self.0.get_mut(owner).expect("it is there, or was just put there");
        account.advance(now_unix_ms);
        account
    }
}

fn exhausted(account: &mut Account, owner: &Owner, budget: &Budget, now_unix_ms: u64, least_nanos: u64) -> Exhausted {
    let (spent_nanos, reserved_nanos) = (account.tally(budget.period).spent, account.reserved);
    Exhausted {
        owner: owner.clone(),
        budget: *budget,
        spent_nanos,
        reserved_nanos,
        spent_up: budget.hard_nanos.saturating_sub(spent_nanos) < least_nanos.max(1),
        resets_unix_ms: budget.period.next_ms(now_unix_ms),
    }
}

#[cfg(test)]
mod tests;
