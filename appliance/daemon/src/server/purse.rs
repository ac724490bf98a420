//! A request's part of the budgets that it draws on: its key's, its project's and its function's.
//!
//! ```text
//!  ask: the worst that it can cost ─▶ Purse ─▶ it runs, and ends where the money does ─▶ settle: what it cost
//! ```
//!
//! Invariants: what is not granted is not charged; a [`Purse`] is settled once, at the latest by its drop. The accounts
//! are one for all cores, and locked to count, never while something is waited for. At the start they are told what the
//! ledger knows was spent.

use super::{
    functions::Function,
    handler::{Call, unix_ms},
    state::State,
};
use appliance_admit::Class;
use appliance_api::ApiError;
use appliance_price::{Accounts, Alarm, Budget, Exhausted, Grant, Level, Measured, Owner, Prices, Stake, Standing};
use appliance_price::{amount_text, calendar};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Longest wake that is reserved for; one that takes longer is not charged past it.
const WAKE_US_MAX: u64 = 60_000_000;
/// When to ask again where money may come back.
const RETRY_AFTER_S: u64 = 1;

/// All accounts, and how often a budget was reached since the start.
#[derive(Default)]
pub(super) struct Purses {
    accounts: Mutex<Accounts>,
    /// Soft limits reached.
    pub(super) soft_reached: AtomicU64,
    /// Budgets used up.
    pub(super) hard_reached: AtomicU64,
    /// Requests refused for want of money.
    pub(super) refused: AtomicU64,
}

/// Tokens that a request may use at most.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tokens {
    pub(super) prompts: u32,
    pub(super) answers: u32,
}

/// What one request was granted.
pub(super) struct Purse {
    state: Arc<State>,
    grant: Option<Grant>,
    least_nanos: u64,
}

impl Purses {
    /// Counts what was spent before the start.
    pub(super) fn remember(&self, owner: Owner, at_unix_ms: u64, nanos: u64) {
        self.lock().remember(unix_ms(), owner, at_unix_ms, nanos);
    }

    /// How an account stands within its budget.
    pub(super) fn standing(&self, owner: &Owner, budget: &Budget) -> Standing {
        self.lock().standing(unix_ms(), owner, budget.period)
    }

    fn tell(&self, alarms: &[Alarm]) {
        for Alarm { owner, budget, level, spent_nanos } in alarms {
            let (what, count) = match level {
                Level::Soft => ("the soft limit of a budget is reached", &self.soft_reached),
                Level::Hard => ("a budget is used up", &self.hard_reached),
            };
            count.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%owner, %budget, spent = amount_text(*spent_nanos), "{what}");
        }
    }

    /// A panic while counting left no count half made.
    fn lock(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Purse {
    /// Asks for what `call` may cost, calling `function` at `prices`.
    ///
    /// # Errors
    /// 429, with the budget and when there is money again.
    pub(super) fn ask(call: &Call, function: &Function, prices: &Prices, tokens: Tokens) -> Result<Self, ApiError> {
        let least_nanos = prices.cost_nanos(&least(function));
        let worst_nanos = worst(call, function, tokens).map(|used| prices.cost_nanos(&used)).into_iter().max();
        let purses = &call.state.purses;
        let stakes = stakes(call, function);
        let asked = purses.lock().reserve(unix_ms(), stakes, worst_nanos.unwrap_or(u64::MAX), least_nanos);
        let grant = asked.map_err(|exhausted| {
            purses.refused.fetch_add(1, Ordering::Relaxed);
            told(&exhausted)
        })?;
        Ok(Self { state: Arc::clone(&call.state), grant: Some(grant), least_nanos })
    }

    /// The most that may be charged, nano-units; `None` where there is no budget.
    pub(super) fn cap_nanos(&self) -> Option<u64> {
        self.grant.as_ref().and_then(|grant| grant.cap_nanos)
    }

    /// The request ended and cost so much.
    pub(super) fn settle(&mut self, cost_nanos: u64) {
        let Some(grant) = self.grant.take() else { return };
        let purses = &self.state.purses;
        let alarms = purses.lock().settle(unix_ms(), grant, cost_nanos, self.least_nanos);
        purses.tell(&alarms);
    }
}

impl Drop for Purse {
    fn drop(&mut self) {
        self.settle(0);
    }
}

/// Whom a request draws on. A budget that was set by hand goes before the one that a key was made with.
fn stakes(call: &Call, function: &Function) -> Vec<Stake> {
    let key = &call.caller.key;
    let budgets = &call.state.budgets;
    let stake = |owner: Owner, own: Option<Budget>| Stake { budget: budgets.get(&owner).or(own), owner };
    let project = key.project.clone().map(|project| stake(Owner::Project(project), None));
    let of_key = stake(Owner::Key(key.name.clone()), key.budget);
    let of_function = stake(Owner::Function(function.manifest.name.clone()), None);
    [Some(of_key), project, Some(of_function)].into_iter().flatten().collect()
}

/// What a request uses at least: it is begun, and takes a millisecond.
fn least(function: &Function) -> Measured {
    Measured { begun: true, work_us: 1, memory_bytes: function.lease_bytes(), ..Measured::default() }
}

/// What it uses at worst: the whole of its time, all tokens; its prompt computed, or cached should that cost more.
fn worst(call: &Call, function: &Function, tokens: Tokens) -> [Measured; 2] {
    let limits = &function.manifest.limits;
    let timeout = Duration::from_millis(limits.timeout_ms);
    let work = call.asked.left().map_or(timeout, |left| left.min(timeout));
    let work_us = u64::try_from(work.as_micros()).unwrap_or(u64::MAX);
    let computed = Measured {
        begun: true,
        wake_us: WAKE_US_MAX,
        work_us,
        cpu_us: work_us.saturating_mul(limits.cpus.into()),
        memory_bytes: limits.memory_bytes,
        tokens_in: tokens.prompts,
        tokens_cached: 0,
        tokens_out: tokens.answers,
        batch: call.asked.class() == Class::Batch,
    };
    [computed, Measured { tokens_in: 0, tokens_cached: tokens.prompts, ..computed }]
}

fn told(exhausted: &Exhausted) -> ApiError {
    let Exhausted { owner, budget, spent_nanos, reserved_nanos, spent_up, resets_unix_ms } = exhausted;
    let (spent, reserved) = (amount_text(*spent_nanos), amount_text(*reserved_nanos));
    if !spent_up {
        let message = format!(
            "the budget of {owner}, {budget}, has {spent} spent and {reserved} reserved by requests that run; try again \
             when they have ended"
        );
        return ApiError::rate_limit(message, RETRY_AFTER_S).because("budget_reserved");
    }
    let begins = calendar::in_words(*resets_unix_ms);
    let message = format!("the budget of {owner}, {budget}, is used up: {spent} is spent; it begins anew at {begins}");
    ApiError::insufficient_quota(message, resets_unix_ms.saturating_sub(unix_ms()).div_ceil(1_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exhausted(spent_up: bool) -> Exhausted {
        Exhausted {
            owner: "key:app".parse().unwrap(),
            budget: "5.00/month".parse().unwrap(),
            spent_nanos: 4_999_999_999,
            reserved_nanos: 0,
            spent_up,
            resets_unix_ms: unix_ms() + 3_600_000,
        }
    }

    #[test]
    fn who_has_no_money_is_told_until_when() {
        let error = told(&exhausted(true));
        assert_eq!((error.status, error.code), (429, Some("insufficient_quota")));
        assert!(error.retry_after_s.is_some_and(|seconds| (3_590..=3_600).contains(&seconds)), "{error:?}");
        assert!(["key:app", "5.00/month", "4.999999999", "UTC"].iter().all(|word| error.message.contains(word)));
    }

    #[test]
    fn money_that_may_come_back_is_worth_another_try() {
        let error = told(&exhausted(false));
        assert_eq!((error.code, error.retry_after_s), (Some("rate_limit_exceeded"), Some(1)));
    }
}
