//! S3 and S4: what a second instance costs in memory, and a snapshot on disk; and as a picture beside S3, what one function
//! after the other takes, each with a program of its own or in one Ember.
//!
//! S3 sums `Pss` of `smaps_rollup` over every process of a side: emberd with its children, and the llama-servers. Both
//! sides run one thread an instance, so that two are at work on a machine of two cores, and each instance has answered.

use crate::{
    chat::{Answer, Chat, MODEL},
    ember::Ember,
    error::Error,
    figure::{Bar, Context, Figure, Measured, Picture, Side, interleave},
    http_client::in_thread,
    llama_server::{LlamaServer, Warmup},
    load::Load,
    waterfall::{PEER, SERVER, Waterfall},
};
use std::{fs, path::Path};

const ROUNDS: usize = 5;
/// An answer that takes long enough for another instance to be woken meanwhile, and one that is soon done.
const LONG_TOKENS: u32 = 256;
const SHORT_TOKENS: u32 = 8;
/// Functions whose memory is drawn.
const FUNCTIONS: [&str; 8] = [MODEL, "bench-2", "bench-3", "bench-4", "bench-5", "bench-6", "bench-7", "bench-8"];

/// S3.
pub(crate) struct SecondInstance;

/// S4.
pub(crate) struct SnapshotSize;

impl Figure for SecondInstance {
    fn name(&self) -> &'static str {
        "S3"
    }

    fn title(&self) -> &'static str {
        "memory (PSS) that a second instance adds ÷ a second llama-server"
    }

    fn bar(&self) -> Bar {
        Bar::AtMost(0.20)
    }

    fn measure(&self, context: &Context) -> Result<Measured, Error> {
        let load = Load { threads: Some(1), instances: 2, ..Load::of(1, 2048)? };
        let ember = Ember::start(&context.model, load)?;
        let first = LlamaServer::start(&context.model, load, Warmup::Default)?;
        let ours = || second_instance_mib(&ember);
        let peer = || second_server_mib(&first, &context.model, load);
        let samples = interleave(context.rounds(ROUNDS), ours, peer)?;
        let ours = Side { label: "ember, a second instance".into(), samples: samples.0 };
        let peer = Side { label: format!("a second {}", first.label), samples: samples.1 };
        drop((ember, first));
        let functions = if context.smoke { 1 } else { FUNCTIONS.len() };
        let pictures = vec![density(&context.model, &FUNCTIONS[..functions])?];
        Ok(Measured { pictures, ..Measured::new("MiB", ours, peer) })
    }
}

/// Memory of as many functions of one model, each of which has answered and is held.
fn density(model: &Path, functions: &[&'static str]) -> Result<Picture, Error> {
    let load = Load { threads: Some(1), ..Load::of(1, 2048)? };
    let ember = Ember::start(model, load)?;
    functions.iter().skip(1).try_for_each(|function| ember.deploy(function, model, load))?;
    functions.iter().try_for_each(|function| ember.store_of(function))?;
    let mut bars = Waterfall::new("MiB");
    let deployed = format!("Ember: {} deployed, 0 held", functions.len());
    bars.add(SERVER, &[(&deployed, ember.process.family_pss_mib()?)]);
    let mut servers = Vec::new();
    for (before, function) in functions.iter().enumerate() {
        Chat { model: function, ..chat(SHORT_TOKENS) }.ask_in_thread(&ember.server)?;
        let server = LlamaServer::start(model, load, Warmup::Default)?;
        chat(SHORT_TOKENS).ask_in_thread(&server.server)?;
        servers.push(server);
        let held = before + 1;
        if held.is_power_of_two() {
            let theirs = servers.iter().map(|server| server.process.family_pss_mib()).sum::<Result<f64, _>>()?;
            bars.add(SERVER, &[(&format!("{held} held: Ember"), ember.process.family_pss_mib()?)]);
            bars.add(PEER, &[(&format!("{held} × llama-server"), theirs)]);
        }
    }
    Ok(bars.picture("density.svg", "Memory (PSS) of functions of one model, each held after an answer"))
}

/// The second instance answers while the first is busy, as its function may have two, each doing one thing at a time.
fn second_instance_mib(ember: &Ember) -> Result<f64, Error> {
    ember.park()?;
    chat(LONG_TOKENS).ask_in_thread(&ember.server)?.receipt("parked")?;
    let before = ember.process.family_pss_mib()?;
    let restores = ember.restores()?.len();
    let (long, short) = in_thread(None, async || {
        let (long, server) = (chat(LONG_TOKENS), ember.server.clone());
        let busy = tokio::spawn(async move { long.ask(&server).await });
        // The first comes first: its head is there before anything is asked of the second.
        tokio::task::yield_now().await;
        let short = chat(SHORT_TOKENS).ask(&ember.server).await?;
        Ok((busy.await.map_err(Error::setup)??, short))
    })?;
    let after = ember.process.family_pss_mib()?;
    if ember.restores()?.len() != restores + 1 || is_empty(&long) || is_empty(&short) {
        return Err(Error::setup("two requests at once were not answered by two instances"));
    }
    Ok(after - before)
}

fn second_server_mib(first: &LlamaServer, model: &Path, load: Load) -> Result<f64, Error> {
    chat(LONG_TOKENS).ask_in_thread(&first.server)?;
    let before = first.process.family_pss_mib()?;
    let second = LlamaServer::start(model, load, Warmup::Default)?;
    chat(SHORT_TOKENS).ask_in_thread(&second.server)?;
    Ok(first.process.family_pss_mib()? + second.process.family_pss_mib()? - before)
}

fn chat(tokens: u32) -> Chat {
    Chat {
        model: MODEL,
        system: None,
        prompt: "Tell a long story about a lighthouse keeper and the sea.".into(),
        tokens,
    }
}

fn is_empty(answer: &Answer) -> bool {
    answer.completion_tokens() == 0
}

impl Figure for SnapshotSize {
    fn name(&self) -> &'static str {
        "S4"
    }

    fn title(&self) -> &'static str {
        "a snapshot's bytes, with all that is kept beside it ÷ its GGUF's"
    }

    fn bar(&self) -> Bar {
        Bar::AtMost(0.15)
    }

    fn measure(&self, context: &Context) -> Result<Measured, Error> {
        let ember = Ember::start(&context.model, Load::of(1, 2048)?)?;
        let files = ember.snapshot_files()?;
        let sizes: Result<Vec<_>, _> = files.iter().map(|file| mib(file)).collect();
        let ours = Side { label: format!("ember, {} file(s)", files.len()), samples: vec![sizes?.iter().sum()] };
        let peer = Side { label: "GGUF".into(), samples: vec![mib(&context.model)?] };
        Ok(Measured::new("MiB", ours, peer))
    }
}

fn mib(file: &Path) -> Result<f64, Error> {
    let metadata = fs::metadata(file).map_err(|source| Error::File { path: file.into(), source })?;
    Ok(metadata.len() as f64 / f64::from(1 << 20))
}
