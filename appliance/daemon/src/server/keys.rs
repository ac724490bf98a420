//! API keys, made and revoked by an operator; and what a key may learn of itself. A change writes a file, hence runs off
//! the serving core.

use super::{
    body, budgets,
    handler::{Call, unix_s},
    reply::{self, Answered, Reply},
};
use appliance_api::ApiError;
use appliance_edge::Request;
use appliance_keys::{KeyError, NewKey};
use appliance_runtime::unblock;
use appliance_types::KeyName;
use serde_json::json;
use std::sync::Arc;

/// Longest description of a key: a list of many functions.
const NEW_KEY_BYTES_MAX: usize = 128 << 10;

/// `POST /ember/v1/keys`: the reply holds the key's text, which is never shown again.
pub(super) async fn create(call: &Call, request: Request) -> Answered {
    let body = body::json(request, NEW_KEY_BYTES_MAX).await?;
    let new: NewKey = serde_json::from_slice(&body).map_err(|error| ApiError::invalid_request(error.to_string()))?;
    let (state, name, functions, rates) = (Arc::clone(&call.state), new.name.clone(), new.functions.clone(), new.rates);
    let (project, budget) = (new.project.clone(), new.budget);
    let text = unblock(move || state.keys.create(new, unix_s())).await.map_err(refused)?;
    tracing::info!(key = %name, "key created");
    Ok(reply::json(&json!({
        "name": name,
        "functions": functions,
        "rates": rates,
        "project": project,
        "budget": budget,
        "key": text.as_str(),
    })))
}

/// `GET /ember/v1/key`: the key that asks, by itself.
pub(super) fn own(call: &Call) -> Reply {
    let key = &call.caller.key;
    reply::json(&json!({
        "name": key.name,
        "kind": key.kind,
        "functions": key.functions,
        "rates": key.rates,
        "project": key.project,
        "budget": budgets::of_key(&call.state, key),
        "currency": call.state.prices.load().currency(),
    }))
}

/// `DELETE /ember/v1/keys/{name}`: from the reply on the key opens nothing.
pub(super) async fn revoke(call: &Call, name: &str) -> Answered {
    let name: KeyName = name.parse().map_err(|_| ApiError::not_found(format!("no key is named `{name}`")))?;
    let (state, revoked) = (Arc::clone(&call.state), name.clone());
    unblock(move || state.keys.revoke(&revoked)).await.map_err(refused)?;
    tracing::info!(key = %name, "key revoked");
    Ok(reply::nothing())
}

pub(super) fn refused(error: KeyError) -> ApiError {
    let message = error.to_string();
    match error {
        KeyError::Exists(_) | KeyError::Admin | KeyError::Full | KeyError::BudgetsFull => ApiError::conflict(message),
        KeyError::Missing(_) => ApiError::not_found(message),
        KeyError::SoftAboveHard => ApiError::invalid_param("soft_nanos", message),
        KeyError::AdminWithFunctions => ApiError::invalid_param("functions", message),
        KeyError::File { .. } | KeyError::Corrupt { .. } | KeyError::Random(_) => ApiError::internal(message),
    }
}
