//! S5 and S6: decode rate of one stream, and of eight at once, Ember through HTTPS ÷ llama-server, both with the same GGUF
//! and as many threads.
//!
//! ```text
//!  request ─▶ … ─▶ first piece ─▶ … ─▶ last piece ─▶ usage
//!                  └────────── seconds ──────────┘      S5: completion_tokens − 1 intervals
//!  └─ eight requests ────────── seconds ─── the last of them ends ─┘   S6: all completion_tokens
//! ```
//! Both sides get the same chats at temperature 0 and stream them. S5's rate is what the client sees between the first and
//! the last piece, so wake and prefill are not in it (other figures have them); S6's has the prefill of all eight.

mod ember;
mod llama_server;

use crate::{
    error::Error,
    figure::{Bar, Context, Figure, Measured, Side, interleave},
    http_client::{Server, in_thread},
};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::json;
use std::{thread, time::Instant};

const ROUNDS: usize = 9;
const TOKENS: u32 = 128;
/// Fewer tokens than these make no rate.
const TOKENS_MIN: u32 = 16;
const PROMPT: &str = "Tell a long story about a lighthouse keeper and the sea, with many details.";
/// Streams of S6.
const STREAMS: usize = 8;

/// What both servers are to do at once, and how long each may get.
#[derive(Clone, Copy, Debug)]
struct Load {
    threads: usize,
    streams: usize,
    context_tokens: u32,
}

impl Load {
    fn of(streams: usize, context_tokens: u32) -> Result<Self, Error> {
        let threads = thread::available_parallelism().map_err(Error::setup)?.get();
        Ok(Self { threads, streams, context_tokens })
    }
}

/// S5.
pub(crate) struct DecodeRate;

/// S6.
pub(crate) struct SharedDecodeRate;

impl Figure for DecodeRate {
    fn name(&self) -> &'static str {
        "S5"
    }

    fn title(&self) -> &'static str {
        "decode rate of one stream, through HTTPS ÷ llama-server"
    }

    fn bar(&self) -> Bar {
        Bar::AtLeast(0.97)
    }

    fn measure(&self, context: &Context) -> Result<Measured, Error> {
        compare(context, Load::of(1, 2048)?, async |server, _, tokens| {
            stream(server, PROMPT, tokens).await?.tokens_per_second()
        })
    }
}

impl Figure for SharedDecodeRate {
    fn name(&self) -> &'static str {
        "S6"
    }

    fn title(&self) -> &'static str {
        "tokens/s of eight streams at once, through HTTPS ÷ llama-server -np 8"
    }

    fn bar(&self) -> Bar {
        Bar::AtLeast(1.0)
    }

    fn measure(&self, context: &Context) -> Result<Measured, Error> {
        compare(context, Load::of(STREAMS, 512)?, async |server, streams, tokens| {
            at_once(server, streams, tokens).await
        })
    }
}

/// Runs both servers, and measures them in turns.
fn compare(
    context: &Context,
    load: Load,
    measure: impl AsyncFn(&Server, usize, u32) -> Result<f64, Error> + Sync,
) -> Result<Measured, Error> {
    let (rounds, tokens) = if context.smoke { (1, TOKENS_MIN + 1) } else { (ROUNDS, TOKENS) };
    let peer = llama_server::LlamaServer::start(&context.model, load)?;
    let ours = ember::Ember::start(&context.model, load)?;
    let rate = |server: &Server| in_thread(None, async || measure(server, load.streams, tokens).await);
    // Woken, and its pages touched, before anything counts.
    rate(&ours.server)?;
    rate(&peer.server)?;
    let samples = interleave(rounds, || rate(&ours.server), || rate(&peer.server))?;
    Ok(Measured {
        unit: "tokens/s",
        ours: Side { label: "ember".into(), samples: samples.0 },
        peer: Side { label: peer.label.clone(), samples: samples.1 },
    })
}

/// Tokens of `streams` answers, of different questions, by the time it took to get them all.
async fn at_once(server: &Server, streams: usize, tokens: u32) -> Result<f64, Error> {
    let began = Instant::now();
    let asking = (0..streams).map(|n| {
        let server = server.clone();
        tokio::spawn(async move { stream(&server, &format!("{PROMPT} Its number is {n}."), tokens).await })
    });
    let mut produced = 0;
    for asked in asking.collect::<Vec<_>>() {
        produced += asked.await.map_err(Error::setup)??.completion_tokens.unwrap_or(0);
    }
    Ok(f64::from(produced) / began.elapsed().as_secs_f64())
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Delta,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    completion_tokens: u32,
}

/// What a stream has shown so far.
#[derive(Default)]
struct Progress {
    /// When the first and the last piece of text came.
    pieces: Option<(Instant, Instant)>,
    completion_tokens: Option<u32>,
}

impl Progress {
    /// Takes one line of the stream, read at `now`.
    fn line(&mut self, line: &[u8], now: Instant) {
        let Some(data) = line.strip_prefix(b"data: ") else { return };
        let Ok(chunk) = serde_json::from_slice::<Chunk>(data) else { return };
        let has_text = |choice: &Choice| choice.delta.content.as_ref().is_some_and(|text| !text.is_empty());
        if chunk.choices.iter().any(has_text) {
            let first = self.pieces.map_or(now, |(first, _)| first);
            self.pieces = Some((first, now));
        }
        self.completion_tokens = chunk.usage.map(|usage| usage.completion_tokens).or(self.completion_tokens);
    }

    fn tokens_per_second(&self) -> Result<f64, Error> {
        match (self.pieces, self.completion_tokens) {
            (Some((first, last)), Some(tokens)) if tokens >= TOKENS_MIN && last > first => {
                Ok(f64::from(tokens - 1) / (last - first).as_secs_f64())
            }
            (_, tokens) => Err(Error::setup(format!("a stream of {tokens:?} tokens makes no rate"))),
        }
    }
}

async fn stream(server: &Server, prompt: &str, tokens: u32) -> Result<Progress, Error> {
    let request = json!({
        "model": ember::FUNCTION,
        "messages": [{ "role": "user", "content": prompt }],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    let mut connection = server.connect().await?;
    let mut body = connection.post("/v1/chat/completions", Bytes::from(request.to_string())).await?.into_body();
    let (mut progress, mut unread) = (Progress::default(), Vec::new());
    while let Some(frame) = body.frame().await {
        let now = Instant::now();
        unread.extend_from_slice(&frame.map_err(|error| server.failed(error))?.into_data().unwrap_or_default());
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            progress.line(line.trim_ascii_end(), now);
        }
    }
    Ok(progress)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_rate_is_between_first_and_last_piece() {
        let start = Instant::now();
        let mut progress = Progress::default();
        let mut at = |ms, line: &str| progress.line(line.as_bytes(), start + Duration::from_millis(ms));
        at(0, r#"data: {"choices":[{"delta":{"role":"assistant","content":""}}],"usage":null}"#);
        at(100, r#"data: {"choices":[{"delta":{"content":"a"}}]}"#);
        at(300, r#"data: {"choices":[{"delta":{"content":"b"}}]}"#);
        at(1_100, r#"data: {"choices":[{"delta":{"content":"c"}}]}"#);
        at(1_200, r#"data: {"choices":[{"delta":{}}]}"#);
        at(1_200, r#"data: {"choices":[],"usage":{"completion_tokens":101}}"#);
        at(1_300, "data: [DONE]");
        assert!((progress.tokens_per_second().unwrap() - 100.0).abs() < 1e-9);
        assert!(Progress::default().tokens_per_second().is_err());
    }
}
