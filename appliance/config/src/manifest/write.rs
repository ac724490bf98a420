//! Manifest to canonical text: every key, in the order of the documentation, in the greatest whole units.

use super::{Limits, Manifest, Scale};
use crate::unit::{duration_text, size_text};
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
    let Scale { min, max, concurrency, keep_warm_ms, park_ms, queue, queue_timeout_ms } = scale;
    format!(
        "\n[scale]\nmin = {min}\nmax = {max}\nconcurrency = {concurrency}\nkeep_warm = \"{}\"\npark = \"{}\"\n\
         queue = {queue}\nqueue_timeout = \"{}\"",
        duration_text(*keep_warm_ms),
        duration_text(*park_ms),
        duration_text(*queue_timeout_ms),
    )
}

/// A size with its unit, in quotes; plain bytes are a TOML integer.
fn size(bytes: u64) -> String {
    let text = size_text(bytes);
    if text.ends_with("iB") { format!("\"{text}\"") } else { text }
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}
