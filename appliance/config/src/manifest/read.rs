//! Text to manifest: the keys, their ranges, and how they depend on each other.

use super::{
    CONCURRENCY_MAX, CONTEXT_TOKENS_MAX, CONTEXT_TOKENS_MIN, Limits, Manifest, ModelReference, PROVISIONED_MAX, Prompt,
    REQUEST_BYTES_MAX, SYSTEM_BYTES_MAX, Scale,
};
use crate::{
    ConfigError,
    section::{Schema, Section, duration, list, number, parsed, size, text},
};
use appliance_types::{Provisioned, Task, Weekday};
use std::ops::RangeInclusive;
use toml::de::{DeTable, DeValue};

const SCHEMA: Schema = &[
    ("", &["name", "model", "task", "limits", "scale", "prompt"]),
    ("limits", &["memory", "cpus", "context", "output_tokens", "timeout", "request_bytes"]),
    ("scale", &["min", "max", "concurrency", "keep_warm", "park", "queue", "queue_timeout", "provisioned"]),
    ("scale.provisioned", &["from", "to", "days", "min"]),
    ("prompt", &["system"]),
];

const DAY_MS: u64 = 86_400_000;
const MEMORY_BYTES: RangeInclusive<u64> = 1 << 20..=1 << 42;
const REQUEST_BYTES: RangeInclusive<u64> = 1 << 10..=REQUEST_BYTES_MAX;
const CPUS: RangeInclusive<u32> = 1..=1024;
const INSTANCES_MAX: u32 = 64;
const QUEUE_MAX: u32 = 1 << 16;

pub(super) fn manifest(text: &str) -> Result<Manifest, ConfigError> {
    let table = DeTable::parse(text).map_err(|error| ConfigError::syntax(text, &error))?;
    let top = Section::top(text, table.get_ref(), SCHEMA)?;
    let task = top.get("task", &task)?.unwrap_or_default();
    Ok(Manifest {
        name: top.require("name", &parsed)?,
        model: top.require("model", &model)?,
        task,
        limits: limits(&top.section("limits")?)?,
        scale: scale(&top.section("scale")?)?,
        prompt: prompt(&top.section("prompt")?, task)?,
    })
}

fn limits(section: &Section<'_>) -> Result<Limits, ConfigError> {
    let default = Limits::default();
    let context = CONTEXT_TOKENS_MIN..=CONTEXT_TOKENS_MAX;
    Ok(Limits {
        memory_bytes: section.get("memory", &size(MEMORY_BYTES))?.unwrap_or(default.memory_bytes),
        cpus: section.get("cpus", &number(CPUS))?.unwrap_or(default.cpus),
        context_tokens: section.get("context", &number(context))?.unwrap_or(default.context_tokens),
        output_tokens: section.get("output_tokens", &number(1..=CONTEXT_TOKENS_MAX))?.unwrap_or(default.output_tokens),
        timeout_ms: section.get("timeout", &duration(1..=DAY_MS))?.unwrap_or(default.timeout_ms),
        request_bytes: section.get("request_bytes", &size(REQUEST_BYTES))?.unwrap_or(default.request_bytes),
    })
}

fn scale(section: &Section<'_>) -> Result<Scale, ConfigError> {
    let default = Scale::default();
    let idle = || duration(0..=365 * DAY_MS);
    let scale = Scale {
        min: section.get("min", &number(0..=INSTANCES_MAX))?.unwrap_or(default.min),
        max: section.get("max", &number(1..=INSTANCES_MAX))?.unwrap_or(default.max),
        concurrency: section.get("concurrency", &number(1..=CONCURRENCY_MAX))?.unwrap_or(default.concurrency),
        keep_warm_ms: section.get("keep_warm", &idle())?,
        park_ms: section.get("park", &idle())?,
        queue: section.get("queue", &number(0..=QUEUE_MAX))?.unwrap_or(default.queue),
        queue_timeout_ms: section.get("queue_timeout", &duration(1..=DAY_MS))?.unwrap_or(default.queue_timeout_ms),
        provisioned: Vec::new(),
    };
    if scale.min > scale.max {
        return Err(section.error("min", format!("`min`: {} is above `max`, which is {}", scale.min, scale.max)));
    }
    let windows = section.sections("provisioned", "scale.provisioned", PROVISIONED_MAX)?;
    let provisioned = windows.iter().map(|window| provisioned(window, scale.max)).collect::<Result<_, _>>()?;
    Ok(Scale { provisioned, ..scale })
}

fn provisioned(section: &Section<'_>, instances_max: u32) -> Result<Provisioned, ConfigError> {
    let window = Provisioned {
        from: section.require("from", &parsed)?,
        to: section.require("to", &parsed)?,
        days: section.get("days", &list)?.unwrap_or_else(|| Weekday::ALL.to_vec()),
        min: section.require("min", &number(1..=INSTANCES_MAX))?,
    };
    if window.min > instances_max {
        let message = format!("`min`: {} is above the function's `max`, which is {instances_max}", window.min);
        return Err(section.error("min", message));
    }
    if window.from == window.to {
        let message = "`to`: the same as `from`; a whole day is \"00:00\" to \"24:00\"";
        return Err(section.error("to", message));
    }
    if window.days.is_empty() {
        return Err(section.error("days", "`days`: none; leave it out for every day"));
    }
    Ok(window)
}

fn prompt(section: &Section<'_>, task: Task) -> Result<Prompt, ConfigError> {
    let system = section.get("system", &system)?;
    if system.is_some() && task != Task::Chat {
        return Err(section.error("system", format!("`system`: task `{task}` has no messages to put it before")));
    }
    Ok(Prompt { system })
}

fn task(value: &DeValue<'_>) -> Result<Task, String> {
    match text(value)?.as_str() {
        "chat" => Ok(Task::Chat),
        "completion" => Ok(Task::Completion),
        "embedding" => Ok(Task::Embedding),
        other => Err(format!("`{}` is not a task: use chat, completion or embedding", other.escape_debug())),
    }
}

fn model(value: &DeValue<'_>) -> Result<ModelReference, String> {
    match parsed(value)? {
        ModelReference::Path(path) if path.is_empty() || path.contains('\0') => {
            Err("expected a path, or `sha256:` and 64 hexadecimal digits".to_owned())
        }
        model => Ok(model),
    }
}

fn system(value: &DeValue<'_>) -> Result<String, String> {
    let text = text(value)?;
    if text.len() > SYSTEM_BYTES_MAX {
        return Err(format!("{} bytes; the longest system prompt is {SYSTEM_BYTES_MAX}", text.len()));
    }
    Ok(text)
}
