//! S7: tokens/s of two functions that are busy at once, through HTTPS ÷ two llama-servers with the same GGUF, as they come
//! and as somebody tuned them by hand: one thread each.
//!
//! ```text
//!  function 1  └─ a request ──────── seconds ─── it ends ─┘
//!  function 2  └─ a request ──────── seconds ─── the last of both ends ─┘     all completion_tokens
//! ```
//! Ember is given nothing but the two functions. All four servers are up all the time; only one pair has work.

use crate::{
    chat::{Chat, MODEL},
    decode::{PROMPT, TOKENS, TOKENS_MIN},
    ember::Ember,
    error::Error,
    figure::{Bar, Context, Figure, Measured, Side, interleave},
    http_client::{Server, in_thread},
    llama_server::{LlamaServer, Warmup},
    load::Load,
};
use std::time::Instant;

const ROUNDS: usize = 7;
/// Both functions.
const FUNCTIONS: [&str; 2] = [MODEL, "bench-other"];

/// Against what S7 is measured.
#[derive(Clone, Copy)]
pub(crate) struct Together {
    name: &'static str,
    title: &'static str,
    bar: f64,
    peer_threads: Option<usize>,
}

/// Both lines of S7.
pub(crate) const BOTH: [Together; 2] = [
    Together {
        name: "S7",
        title: "tokens/s of two functions busy at once ÷ two llama-servers with default threads",
        bar: 3.0,
        peer_threads: None,
    },
    Together {
        name: "S7-tuned",
        title: "tokens/s of two functions busy at once ÷ two llama-servers of one thread each",
        bar: 0.95,
        peer_threads: Some(1),
    },
];

impl Figure for Together {
    fn name(&self) -> &'static str {
        self.name
    }

    fn title(&self) -> &'static str {
        self.title
    }

    fn bar(&self) -> Bar {
        Bar::AtLeast(self.bar)
    }

    fn measure(&self, context: &Context) -> Result<Measured, Error> {
        let tokens = if context.smoke { TOKENS_MIN + 1 } else { TOKENS };
        let load = Load { threads: None, ..Load::of(1, 2048)? };
        let ember = Ember::start(&context.model, load)?;
        ember.deploy(FUNCTIONS[1], &context.model, load)?;
        let peer = || LlamaServer::start(&context.model, Load { threads: self.peer_threads, ..load }, Warmup::Default);
        let peers = [peer()?, peer()?];
        let (ours, theirs) = ([&ember.server; 2], [&peers[0].server, &peers[1].server]);
        let rate = |servers: [&Server; 2]| in_thread(None, async || at_once(servers, tokens).await);
        // Woken, and its pages touched, before anything counts.
        rate(ours)?;
        rate(theirs)?;
        let samples = interleave(context.rounds(ROUNDS), || rate(ours), || rate(theirs))?;
        let ours = Side { label: "ember".into(), samples: samples.0 };
        let label = format!("two of {}", peers[0].label);
        Ok(Measured::new("tokens/s", ours, Side { label, samples: samples.1 }))
    }
}

/// Tokens of an answer from each server, by the time it took to get both.
async fn at_once(servers: [&Server; 2], tokens: u32) -> Result<f64, Error> {
    let began = Instant::now();
    let asking = servers.into_iter().zip(FUNCTIONS).map(|(server, model)| {
        let (server, chat) = (server.clone(), Chat { model, system: None, prompt: PROMPT.into(), tokens });
        tokio::spawn(async move { chat.ask(&server).await })
    });
    let mut produced = 0;
    for asked in asking.collect::<Vec<_>>() {
        produced += asked.await.map_err(Error::setup)??.completion_tokens();
    }
    Ok(f64::from(produced) / began.elapsed().as_secs_f64())
}
