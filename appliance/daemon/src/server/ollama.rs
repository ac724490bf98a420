//! Ollama's listings: the functions that a key may call, as Ollama's models. Text and vectors are `inference`'s.

use super::{
    body,
    functions::Function,
    handler::{Call, unix_s},
    instances, models,
    reply::{self, Answered, Reply},
};
use appliance_api::ollama::{self, Details, Loaded, Shown, Tag};
use appliance_edge::Request;
use appliance_types::Task;
use sandbox_wire::warden::ModelEntry;
use std::{sync::Arc, time::Duration};

/// How far away the end is of an instance that is busy or kept.
const KEPT: Duration = Duration::from_secs(365 * 24 * 3_600);

/// `GET /api/tags`
pub(super) async fn tags(call: &Call) -> Answered {
    let stored = models::stored(call).await?;
    let mine = mine(call);
    let tags: Vec<_> = mine.iter().map(|function| tag(call, function, &stored)).collect();
    Ok(reply::json_bytes(ollama::tags_reply(&tags)))
}

/// `GET /api/ps`
pub(super) async fn ps(call: &Call) -> Answered {
    let (stored, up) = (models::stored(call).await?, instances::by_function(call).await?);
    let (statuses, mine, now) = (instances::statuses(call).await?, mine(call), unix_s());
    let loaded = mine.iter().filter_map(|function| {
        let last = up.get(&function.manifest.name)?.iter().map(|view| view.idle_stop_in.unwrap_or(KEPT)).max()?;
        let of = || statuses.iter().filter(|status| status.function == function.manifest.name);
        let shared = of().map(|status| status.shared_bytes).max().unwrap_or(0);
        Some(Loaded {
            tag: tag(call, function, &stored),
            memory_bytes: of().map(|status| status.private_bytes).sum::<u64>() + shared,
            expires_unix_s: now + last.as_secs(),
            context_tokens: function.manifest.limits.context_tokens,
        })
    });
    Ok(reply::json_bytes(ollama::loaded_reply(&loaded.collect::<Vec<_>>())))
}

/// `POST /api/show`
pub(super) async fn show(call: &Call, request: Request) -> Answered {
    let body = body::whole(request, call.state.request_bytes_max).await?;
    let function = call.function(&ollama::show(&body)?)?;
    let (stored, info) = (models::stored(call).await?, call.state.seen(function.model));
    let shown = Shown {
        tag: tag(call, &function, &stored),
        info: info.as_deref(),
        context_tokens: function.manifest.limits.context_tokens,
        system: function.manifest.prompt.system.as_deref(),
        embeds: function.manifest.task == Task::Embedding,
    };
    Ok(reply::json_bytes(ollama::show_reply(&shown)))
}

/// `GET /api/version`
pub(super) fn version() -> Reply {
    reply::json_bytes(ollama::version_reply(env!("CARGO_PKG_VERSION")))
}

fn mine(call: &Call) -> Vec<Arc<Function>> {
    let all = call.state.functions.all();
    all.values().filter(|function| call.caller.key.may_call(&function.manifest.name)).cloned().collect()
}

fn tag<'f>(call: &Call, function: &'f Function, stored: &[ModelEntry]) -> Tag<'f> {
    let entry = stored.iter().find(|entry| entry.digest == function.model);
    Tag {
        function: function.manifest.name.as_str(),
        deployed_unix_s: function.deployed_unix_s,
        bytes: entry.map_or(0, |entry| entry.bytes),
        digest: function.model.to_string(),
        details: Details::new(call.state.seen(function.model).as_deref()),
    }
}
