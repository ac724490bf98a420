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

use crate::{
    chat::{Chat, MODEL},
    ember::Ember,
    error::Error,
    figure::{Bar, Context, Figure, Measured, Side, interleave},
    http_client::{Server, in_thread},
    llama_server::{LlamaServer, Warmup},
    load::Load,
};
use std::time::Instant;

const ROUNDS: usize = 9;
pub(crate) const TOKENS: u32 = 128;
/// Fewer tokens than these make no rate.
pub(crate) const TOKENS_MIN: u32 = 16;
pub(crate) const PROMPT: &str = "Tell a long story about a lighthouse keeper and the sea, with many details.";
/// Streams of S6.
const STREAMS: usize = 8;

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
            chat(PROMPT.into(), tokens).ask(server).await?.tokens_per_second(TOKENS_MIN)
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
    let tokens = if context.smoke { TOKENS_MIN + 1 } else { TOKENS };
    let peer = LlamaServer::start(&context.model, load, Warmup::Default)?;
    let ours = Ember::start(&context.model, load)?;
    let rate = |server: &Server| in_thread(None, async || measure(server, load.streams, tokens).await);
    // Woken, and its pages touched, before anything counts.
    rate(&ours.server)?;
    rate(&peer.server)?;
    let samples = interleave(context.rounds(ROUNDS), || rate(&ours.server), || rate(&peer.server))?;
    let ours = Side { label: "ember".into(), samples: samples.0 };
    Ok(Measured::new("tokens/s", ours, Side { label: peer.label.clone(), samples: samples.1 }))
}

/// Tokens of `streams` answers, of different questions, by the time it took to get them all.
async fn at_once(server: &Server, streams: usize, tokens: u32) -> Result<f64, Error> {
    let began = Instant::now();
    let asking = (0..streams).map(|n| {
        let server = server.clone();
        let chat = chat(format!("{PROMPT} Its number is {n}."), tokens);
        tokio::spawn(async move { chat.ask(&server).await })
    });
    let mut produced = 0;
    for asked in asking.collect::<Vec<_>>() {
        produced += asked.await.map_err(Error::setup)??.completion_tokens();
    }
    Ok(f64::from(produced) / began.elapsed().as_secs_f64())
}

fn chat(prompt: String, tokens: u32) -> Chat {
    Chat { model: MODEL, system: None, prompt, tokens }
}
