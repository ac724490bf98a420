//! Budgets, shown, set and removed by an operator. Changes write a file, hence run off the serving core.

use super::{
    body,
    handler::{Call, unix_ms},
    keys,
    reply::{self, Answered},
    state::State,
};
use appliance_api::ApiError;
use appliance_edge::Request;
use appliance_keys::Key;
use appliance_price::{Budget, Owner};
use appliance_runtime::unblock;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// Longest budget: three numbers.
const BODY_BYTES_MAX: usize = 1 << 10;

/// `GET /ember/v1/budgets`: all there are, with what is spent of them.
pub(super) fn list(call: &Call) -> Answered {
    let (state, all) = (&call.state, all(&call.state));
    let rows = all.iter().map(|(owner, budget)| row(state, owner, budget));
    Ok(reply::list(&rows.collect::<Vec<Value>>()))
}

/// A budget, and what is spent of it.
fn row(state: &State, owner: &Owner, budget: &Budget) -> Value {
    let standing = state.purses.standing(owner, budget);
    json!({
        "of": owner.to_string(),
        "hard_nanos": budget.hard_nanos,
        "soft_nanos": budget.soft_nanos,
        "period": budget.period,
        "spent_nanos": standing.spent_nanos,
        "reserved_nanos": standing.reserved_nanos,
        "resets_unix_ms": budget.period.next_ms(unix_ms()),
        "currency": state.prices.load().currency(),
    })
}

/// The budget of one key, if it has one.
pub(super) fn of_key(state: &State, key: &Key) -> Option<Value> {
    let owner = Owner::Key(key.name.clone());
    let budget = state.budgets.all().get(&owner).copied().or(key.budget)?;
    Some(row(state, &owner, &budget))
}

/// All budgets: those that keys were made with, and those that were set since.
pub(super) fn all(state: &State) -> BTreeMap<Owner, Budget> {
    let of_keys = state.keys.list().into_iter().filter_map(|key| Some((Owner::Key(key.name.clone()), key.budget?)));
    let mut all: BTreeMap<Owner, Budget> = of_keys.collect();
    all.extend(state.budgets.all().iter().map(|(owner, budget)| (owner.clone(), *budget)));
    all
}

/// `PUT /ember/v1/budgets/{key|project|function}/{name}`
pub(super) async fn set(call: &Call, kind: &str, name: &str, request: Request) -> Answered {
    let owner = owner(kind, name)?;
    let body = body::json(request, BODY_BYTES_MAX).await?;
    let budget: Budget = serde_json::from_slice(&body).map_err(|error| ApiError::invalid_request(error.to_string()))?;
    let (state, of) = (Arc::clone(&call.state), owner.clone());
    unblock(move || state.budgets.set(of, budget)).await.map_err(keys::refused)?;
    tracing::info!(%owner, %budget, "budget set");
    Ok(reply::json(&json!({ "of": owner.to_string(), "budget": budget })))
}

/// `DELETE /ember/v1/budgets/{key|project|function}/{name}`
pub(super) async fn remove(call: &Call, kind: &str, name: &str) -> Answered {
    let owner = owner(kind, name)?;
    let (state, of) = (Arc::clone(&call.state), owner.clone());
    match unblock(move || state.budgets.remove(&of)).await.map_err(keys::refused)? {
        true => Ok(reply::nothing()),
        false => {
            Err(ApiError::not_found(format!("no budget is set for {owner}; `ember budget ls` lists those there are")))
        }
    }
}

fn owner(kind: &str, name: &str) -> Result<Owner, ApiError> {
    format!("{kind}:{name}")
        .parse()
        .map_err(|error: appliance_price::ParseOwnerError| ApiError::not_found(error.to_string()))
}
