//! Manifest to canonical text: every key that has a value, in the order of the documentation, in the greatest whole units.

use super::{Limits, Manifest, Scale};
use crate::unit::{duration_text, size_text};
use appliance_types::Provisioned;
use std::fmt::Write as _;

pub(super) fn manifest(manifest: &Manifest) -> String {
    let Manifest { name, model, task, limits, scale, prompt } = manifest;
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{line}").expect("a String takes any text");
    line(format!("name = \"{name}\""));
    line(format!("model = {}", quoted(&model.to_string())));
    line(format!("task = \"{task}\""));
    line(limits_text(limits));
    line(scale_text(scale));
    if let Some(system) = &prompt.system {
        line(format!("\n[prompt]\nsystem = {}", quoted(system)));
    }
    text
}

fn limits_text(limits: &Limits) -> String {
    let Limits { memory_bytes, cpus, context_tokens, output_tokens, timeout_ms, request_bytes } = limits;
    format!(
        "\n[limits]\nmemory = {}\ncpus = {cpus}\ncontext = {context_tokens}\noutput_tokens = {output_tokens}\n\
         timeout = \"{}\"\nrequest_bytes = {}",
        size(*memory_bytes),
        duration_text(*timeout_ms),
        size(*request_bytes),
    )
}

fn scale_text(scale: &Scale) -> String {
    let Scale { min, max, concurrency, keep_warm_ms, park_ms, queue, queue_timeout_ms, provisioned } = scale;
    let time = |key, ms: &Option<u64>| ms.map_or_else(String::new, |ms| format!("{key} = \"{}\"\n", duration_text(ms)));
    format!(
        "\n[scale]\nmin = {min}\nmax = {max}\nconcurrency = {concurrency}\n{}{}queue = {queue}\n\
         queue_timeout = \"{}\"{}",
        time("keep_warm", keep_warm_ms),
        time("park", park_ms),
        duration_text(*queue_timeout_ms),
        provisioned.iter().map(window_text).collect::<String>(),
    )
}

fn window_text(window: &Provisioned) -> String {
    let Provisioned { from, to, days, min } = window;
    let days: Vec<_> = days.iter().map(|day| format!("\"{day}\"")).collect();
    let days = days.join(", ");
    format!("\n\n[[scale.provisioned]]\nfrom = \"{from}\"\nto = \"{to}\"\ndays = [{days}]\nmin = {min}")
}

/// A size with its unit, in quotes; plain bytes are a TOML integer.
fn size(bytes: u64) -> String {
    let text = size_text(bytes);
    if text.ends_with("iB") { format!("\"{text}\"") } else { text }
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}
