//! `ember run`: one question, its answer on stdout as it is made, and its receipt on stderr.
//!
//! An interrupt ends the process and with it the connection, which is how the server learns to stop working.

use crate::{args::Run, client::Client, error::Error, output, sse::Events};
use appliance_api::Receipt;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Write};

/// The data of the event that ends every whole stream.
const DONE: &str = "[DONE]";

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Complaint>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Option<Delta>,
    text: Option<String>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
}

#[derive(Deserialize)]
struct Complaint {
    message: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    prompt_tokens_details: Option<Details>,
    ember: Option<Receipt>,
}

#[derive(Clone, Debug, Deserialize)]
struct Details {
    cached_tokens: u32,
}

/// What a stream leaves when it has ended well.
#[derive(Default)]
struct End {
    usage: Option<Usage>,
    finish_reason: Option<String>,
}

pub(crate) fn run(client: &Client, run: &Run) -> Result<(), Error> {
    let path = if run.raw { "/v1/completions" } else { "/v1/chat/completions" };
    let reply = client.post_streaming(path, &request(run))?;
    let reader = BufReader::new(reply.into_body().into_reader());
    let end = stream(reader, &mut io::stdout().lock(), client)?;
    if end.finish_reason.as_deref() == Some("length") {
        output::note("(cut at the limit of tokens; --max-tokens allows more, as far as the function does)");
    }
    if let (true, Some(usage)) = (run.verbose, end.usage) {
        output::note(&report(&usage));
    }
    Ok(())
}

fn request(run: &Run) -> Value {
    let mut request = json!({
        "model": run.function,
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    if run.raw {
        request["prompt"] = json!(run.prompt);
    } else {
        request["messages"] = messages(run);
    }
    let optional = [
        ("max_tokens", run.max_tokens.map(Value::from)),
        ("temperature", run.temperature.map(Value::from)),
        ("seed", run.seed.map(Value::from)),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            request[name] = value;
        }
    }
    request
}

fn messages(run: &Run) -> Value {
    let system = run.system.iter().map(|content| json!({ "role": "system", "content": content }));
    system.chain([json!({ "role": "user", "content": run.prompt })]).collect()
}

/// Copies an answer from `reader` to `out`, piece by piece.
fn stream(reader: impl BufRead, out: &mut impl Write, client: &Client) -> Result<End, Error> {
    let mut events = Events::new(reader);
    let mut end = End::default();
    let mut ends_line = true;
    while let Some(data) = events.next().map_err(|error| Error::BrokeOff(error.to_string()))? {
        if data == DONE {
            if !ends_line {
                writeln!(out)?;
            }
            return Ok(end);
        }
        let chunk: Chunk = client.parsed(&data)?;
        for text in accept(chunk, &mut end)? {
            out.write_all(text.as_bytes()).and_then(|()| out.flush())?;
            ends_line = text.ends_with('\n');
        }
    }
    Err(Error::BrokeOff("the connection ended before the answer did".into()))
}

/// Takes a chunk's texts, and keeps what it says about the end.
fn accept(chunk: Chunk, end: &mut End) -> Result<Vec<String>, Error> {
    if let Some(complaint) = chunk.error {
        return Err(Error::BrokeOff(complaint.message));
    }
    end.usage = chunk.usage.or(end.usage.take());
    let mut texts = Vec::new();
    for choice in chunk.choices {
        end.finish_reason = choice.finish_reason.or(end.finish_reason.take());
        texts.extend(choice.text.or(choice.delta.and_then(|delta| delta.content)).filter(|text| !text.is_empty()));
    }
    Ok(texts)
}

/// Where the time went and what it cost, a line each.
fn report(usage: &Usage) -> String {
    let cached = usage.prompt_tokens_details.as_ref().map_or(0, |details| details.cached_tokens);
    let fed = usage.prompt_tokens.saturating_sub(cached);
    let Some(receipt) = &usage.ember else {
        return format!("prefill  {fed} tokens\ndecode   {} tokens", usage.completion_tokens);
    };
    let lines = [
        ("tier", receipt.tier.to_string()),
        ("queue", format!("{:.1} ms", receipt.queue_ms)),
        ("wake", format!("{:.1} ms", receipt.wake_ms)),
        ("prefill", format!("{}{}", rate(fed, receipt.prefill_ms), from_cache(cached))),
        ("decode", rate(usage.completion_tokens, receipt.decode_ms)),
        ("billed", format!("{} ms of {} MiB", receipt.billed_ms, receipt.memory_mib)),
        ("cost", output::money(receipt.cost_nanos, &receipt.currency)),
        ("request", receipt.request_id.to_string()),
    ];
    lines.map(|(name, value)| format!("{name:8} {value}")).join("\n")
}

fn rate(tokens: u32, ms: f64) -> String {
    let per_second = if ms > 0.0 { f64::from(tokens) * 1_000.0 / ms } else { 0.0 };
    format!("{tokens} tokens in {ms:.1} ms, {per_second:.1} tokens/s")
}

fn from_cache(tokens: u32) -> String {
    if tokens == 0 { String::new() } else { format!(", and {tokens} from the cache") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Target;

    fn run_args() -> Run {
        Run {
            function: "f".parse().unwrap(),
            prompt: "hi".into(),
            system: None,
            raw: false,
            max_tokens: None,
            temperature: None,
            seed: None,
            verbose: false,
        }
    }

    /// A client that is never asked: its CA is a certificate nobody has.
    fn client() -> Client {
        Client::connect_with(&Target { url: "https://localhost:1".into(), key: "k".into(), ca: "ca".into() }, vec![])
    }

    fn answer(text: &str) -> (String, Result<End, Error>) {
        let mut out = Vec::new();
        let end = stream(text.as_bytes(), &mut out, &client());
        (String::from_utf8(out).unwrap(), end)
    }

    #[test]
    fn only_what_was_asked_for_is_sent() {
        let plain = request(&run_args());
        assert_eq!(plain["messages"], json!([{"role": "user", "content": "hi"}]));
        assert_eq!((&plain["seed"], &plain["max_tokens"]), (&Value::Null, &Value::Null));
        let full = Run { system: Some("s".into()), seed: Some(7), temperature: Some(0.0), ..run_args() };
        let full = request(&full);
        assert_eq!(full["messages"][0], json!({"role": "system", "content": "s"}));
        assert_eq!((&full["seed"], &full["temperature"]), (&json!(7), &json!(0.0)));
        let raw = request(&Run { raw: true, ..run_args() });
        assert_eq!((&raw["prompt"], &raw["messages"]), (&json!("hi"), &Value::Null));
    }

    #[test]
    fn an_answer_is_copied_and_its_end_kept() {
        let (text, end) = answer(concat!(
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],\"usage\":null}\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"},\"finish_reason\":null}]}\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"lo\"},\"finish_reason\":null}]}\n\n",
            "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\n",
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5}}\n\n",
            "data: [DONE]\n\n",
        ));
        let end = end.unwrap();
        assert_eq!((text.as_str(), end.finish_reason.as_deref()), ("Hello\n", Some("length")));
        assert_eq!(report(&end.usage.unwrap()), "prefill  3 tokens\ndecode   2 tokens");
    }

    #[test]
    fn a_broken_answer_is_an_error() {
        let (text, end) = answer("data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":null}]}\n\n");
        assert_eq!(text, "a");
        assert!(matches!(end, Err(Error::BrokeOff(_))));
        let (_, end) = answer("data: {\"error\":{\"message\":\"the runner died\"}}\n\n");
        assert!(matches!(end, Err(Error::BrokeOff(message)) if message == "the runner died"));
        assert!(matches!(answer("data: nonsense\n\n").1, Err(Error::Reply { .. })));
    }

    #[test]
    fn a_receipt_reads_as_lines() {
        let usage = json!({"prompt_tokens": 30, "completion_tokens": 60, "total_tokens": 90,
            "prompt_tokens_details": {"cached_tokens": 10},
            "ember": {"request_id": "req-123456789abcdef00fedcba987654321", "tier": "cold", "queue_ms": 0.0,
                "wake_ms": 130.25, "prefill_ms": 20.0, "decode_ms": 500.0, "billed_ms": 651, "memory_mib": 1024,
                "gib_ms": 651.0, "cost_nanos": 11051, "currency": "USD"}});
        let text = report(&serde_json::from_value(usage).unwrap());
        let expected = [
            "tier     cold",
            "queue    0.0 ms",
            "wake     130.2 ms",
            "prefill  20 tokens in 20.0 ms, 1000.0 tokens/s, and 10 from the cache",
            "decode   60 tokens in 500.0 ms, 120.0 tokens/s",
            "billed   651 ms of 1024 MiB",
            "cost     0.000011051 USD",
            "request  req-123456789abcdef00fedcba987654321",
        ];
        assert_eq!(text, expected.join("\n"));
    }
}
