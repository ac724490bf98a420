//! S1 and S2: how soon a function that is not running answers.
//!
//! ```text
//!  S1  ask ─▶ restore ─▶ prefill ─▶ first piece    ÷    ask ─▶ prefill ─▶ first piece
//!  S2  connect ─▶ ask ─▶ decode, restore ─▶ …      ÷    exec llama-server ─▶ load ─▶ ask ─▶ …
//! ```
//! S1's clock starts when the request is sent, on a connection that is open. S2's starts with our connection, TLS and all,
//! and with the peer's exec; the peer runs without the warm-up that it would do by default, since that costs it time.
//! Neither has seen the question before, as each round asks another. `-disk` drops the page cache before each sample, and
//! `-prompt` begins every chat with a system prompt.

use crate::{
    chat::{Answer, Chat, MODEL, Receipt, ms},
    ember::Ember,
    error::Error,
    figure::{Bar, Context, Figure, Measured, Side, interleave, median},
    llama_server::{LlamaServer, Warmup},
    load::Load,
    steps::Restored,
    waterfall::{PEER, SERVER, Waterfall, of_wake},
};
use nix::unistd::sync;
use std::{cell::RefCell, fs, path::Path, time::Instant};

const ROUNDS_PARKED: usize = 25;
const ROUNDS_STORED: usize = 11;
const TOKENS: u32 = 8;
/// About 512 tokens.
const SYSTEM: &str = include_str!("system.txt");
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

/// S1.
pub(crate) struct FromParked;

/// S2, four times.
pub(crate) struct FromStored {
    name: &'static str,
    title: &'static str,
    is_cached: bool,
    system: Option<&'static str>,
}

pub(crate) const FROM_STORED: [FromStored; 4] = [
    FromStored {
        name: "S2",
        title: "first token from stored ÷ llama-server from exec, page cache hot",
        is_cached: true,
        system: None,
    },
    FromStored {
        name: "S2-disk",
        title: "first token from stored ÷ llama-server from exec, page cache dropped",
        is_cached: false,
        system: None,
    },
    FromStored {
        name: "S2-prompt",
        title: "first token from stored ÷ llama-server from exec, long system prompt, page cache hot",
        is_cached: true,
        system: Some(SYSTEM),
    },
    FromStored {
        name: "S2-prompt-disk",
        title: "first token from stored ÷ llama-server from exec, long system prompt, page cache dropped",
        is_cached: false,
        system: Some(SYSTEM),
    },
];

impl Figure for FromParked {
    fn name(&self) -> &'static str {
        "S1"
    }

    fn title(&self) -> &'static str {
        "first token from parked, with a spare ÷ first token of a running instance"
    }

    fn bar(&self) -> Bar {
        Bar::AtMost(1.05)
    }

    fn measure(&self, context: &Context) -> Result<Measured, Error> {
        let ember = Ember::start(&context.model, Load::of(1, 2048)?)?;
        let wakes = Wakes::new(&ember, "parked");
        let running_prefills_ms = RefCell::new(Vec::new());
        let parked = |round| {
            ember.park()?;
            wakes.first_piece_ms(&chat(round, None), |answer| answer.asked)
        };
        let running = |round| {
            // Its memory is touched and its threads are up before it counts.
            chat(round, Some("And now for something else.")).ask_in_thread(&ember.server)?;
            let answer = chat(round, None).ask_in_thread(&ember.server)?;
            running_prefills_ms.borrow_mut().push(answer.receipt("running")?.prefill_ms);
            answer.first_piece_ms(answer.asked)
        };
        parked(0)?;
        wakes.forget();
        let samples = in_rounds(context.rounds(ROUNDS_PARKED), parked, running)?;
        let ours = Side { label: "ember, parked".into(), samples: samples.0 };
        let peer = Side { label: "ember, running".into(), samples: samples.1 };
        let note = format!("median prefill of the running instance, ms: {:.2}", median(&running_prefills_ms.take()));
        wakes.explain("S1", Measured { notes: vec![note], ..Measured::new("ms", ours, peer) })
    }
}

/// Between a model of 135 and one of 270 million weights.
const SMALL_BYTES_MAX: u64 = 150_000_000;

impl Figure for FromStored {
    fn name(&self) -> &'static str {
        self.name
    }

    fn title(&self) -> &'static str {
        self.title
    }

    fn bar(&self) -> Bar {
        Bar::AtMost(0.25)
    }

    /// The larger a model, the longer its peer loads it.
    fn bar_for(&self, model_bytes: u64) -> Bar {
        if model_bytes > SMALL_BYTES_MAX { Bar::AtMost(0.10) } else { self.bar() }
    }

    fn measure(&self, context: &Context) -> Result<Measured, Error> {
        let load = Load { system: self.system, ..Load::of(1, 2048)? };
        let ember = Ember::start(&context.model, load)?;
        let wakes = Wakes::new(&ember, "stored");
        let (label, loads_ms) = (RefCell::new(String::new()), RefCell::new(Vec::new()));
        let stored = |round| {
            self.level(&ember)?;
            wakes.first_piece_ms(&chat(round, None), |answer| answer.began)
        };
        let peer = |round| {
            self.level(&ember)?;
            let server = LlamaServer::start(&context.model, load, Warmup::None)?;
            let answer = Chat { system: self.system, ..chat(round, None) }.ask_in_thread(&server.server)?;
            wakes.agree(answer.prompt_tokens())?;
            label.replace(format!("{}, from exec", server.label));
            loads_ms.borrow_mut().push(ms(answer.began - server.began));
            answer.first_piece_ms(server.began)
        };
        stored(0)?;
        peer(0)?;
        wakes.forget();
        let samples = in_rounds(context.rounds(ROUNDS_STORED), stored, peer)?;
        let floor = wakes.prefill_ms() / median(&samples.1);
        let note = format!("of the ratio, {floor:.2} is the prompt's prefill, which no wake can leave out");
        let both = wakes.beside(median(&loads_ms.take()), median(&samples.1));
        let title = format!("{}: from nothing in memory to the first token, medians", self.name);
        let pictures = vec![both.picture(&format!("first-token-{}.svg", self.name), &title)];
        let ours = Side { label: "ember, stored".into(), samples: samples.0 };
        let peer = Side { label: label.take(), samples: samples.1 };
        wakes.explain(self.name, Measured { notes: vec![note], pictures, ..Measured::new("ms", ours, peer) })
    }
}

impl FromStored {
    /// What each sample starts from: nothing of the model in use, and in the page cache what is meant to be.
    fn level(&self, ember: &Ember) -> Result<(), Error> {
        ember.store()?;
        if self.is_cached { Ok(()) } else { drop_page_cache() }
    }
}

fn drop_page_cache() -> Result<(), Error> {
    sync();
    fs::write(DROP_CACHES, "3").map_err(|source| Error::File { path: Path::new(DROP_CACHES).into(), source })
}

/// The same question for both sides of a round.
fn chat(round: usize, other: Option<&str>) -> Chat {
    let prompt = other.map_or_else(|| format!("What is the number {} good for?", 100 + round), str::to_owned);
    Chat { model: MODEL, system: None, prompt, tokens: TOKENS }
}

/// [`interleave`] of sides that are told the round.
fn in_rounds(
    rounds: usize,
    ours: impl Fn(usize) -> Result<f64, Error>,
    peer: impl Fn(usize) -> Result<f64, Error>,
) -> Result<(Vec<f64>, Vec<f64>), Error> {
    let (mut our_rounds, mut peer_rounds) = (0.., 0..);
    let next = |rounds: &mut std::ops::RangeFrom<usize>| rounds.next().expect("rounds are few");
    interleave(rounds, || ours(next(&mut our_rounds)), || peer(next(&mut peer_rounds)))
}

/// Wakes by a request, and what Ember said of each.
struct Wakes<'a> {
    ember: &'a Ember,
    tier: &'static str,
    seen: RefCell<Vec<Wake>>,
}

struct Wake {
    first_piece_ms: f64,
    connect_ms: f64,
    prompt_tokens: u32,
    receipt: Receipt,
    restored: Restored,
    waterfall: Waterfall,
}

impl<'a> Wakes<'a> {
    fn new(ember: &'a Ember, tier: &'static str) -> Self {
        Self { ember, tier, seen: RefCell::default() }
    }

    fn forget(&self) {
        self.seen.take();
    }

    fn first_piece_ms(&self, chat: &Chat, since: impl Fn(&Answer) -> Instant) -> Result<f64, Error> {
        let answer = chat.ask_in_thread(&self.ember.server)?;
        let (receipt, restored) = (answer.receipt(self.tier)?, self.ember.last_restore()?);
        let first_piece_ms = answer.first_piece_ms(since(&answer))?;
        let waterfall = of_wake(&answer, since(&answer), receipt, &restored)?;
        let (connect_ms, prompt_tokens) = (ms(answer.asked - answer.began), answer.prompt_tokens());
        self.seen.borrow_mut().push(Wake { first_piece_ms, connect_ms, prompt_tokens, receipt, restored, waterfall });
        Ok(first_piece_ms)
    }

    /// The median prefill.
    fn prefill_ms(&self) -> f64 {
        median(&self.seen.borrow().iter().map(|wake| wake.receipt.prefill_ms).collect::<Vec<_>>())
    }

    /// Where the time of both sides went: of the peer, until it listened, and until its first token.
    fn beside(&self, peer_load_ms: f64, peer_first_ms: f64) -> Waterfall {
        let seen = self.seen.borrow();
        let middle = |of: fn(&Wake) -> f64| median(&seen.iter().map(of).collect::<Vec<_>>());
        let (connect_ms, wake_ms) = (middle(|wake| wake.connect_ms), middle(|wake| wake.receipt.wake_ms));
        let prefill_ms = middle(|wake| wake.first_piece_ms) - connect_ms - wake_ms;
        let mut both = Waterfall::new("ms");
        let ours =
            [("Ember: connect, TLS", connect_ms), ("restore a snapshot", wake_ms), ("prompt, first token", prefill_ms)];
        both.add(SERVER, &ours);
        both.add(
            PEER,
            &[("llama-server: start, load", peer_load_ms), ("prompt, first token", peer_first_ms - peer_load_ms)],
        );
        both
    }

    /// Both sides must have read as many tokens.
    fn agree(&self, prompt_tokens: u32) -> Result<(), Error> {
        match self.seen.borrow().last().map(|wake| wake.prompt_tokens) {
            Some(ours) if ours != prompt_tokens => {
                Err(Error::setup(format!("the peer read {prompt_tokens} tokens of prompt, Ember {ours}")))
            }
            _ => Ok(()),
        }
    }

    /// Adds where the time went, and the wake in the middle as a picture.
    fn explain(&self, figure: &str, mut measured: Measured) -> Result<Measured, Error> {
        let mut wakes = self.seen.take();
        let middle = |of: fn(&Wake) -> f64| median(&wakes.iter().map(of).collect::<Vec<_>>());
        measured.notes.push(format!(
            "medians of the wakes, ms: first token {:.2}, wake {:.2} (restore {:.2}), queue {:.2}, prefill {:.2}; prompt {} tokens",
            middle(|wake| wake.first_piece_ms),
            middle(|wake| wake.receipt.wake_ms),
            middle(|wake| wake.restored.total_ms()),
            middle(|wake| wake.receipt.queue_ms),
            middle(|wake| wake.receipt.prefill_ms),
            middle(|wake| f64::from(wake.prompt_tokens)),
        ));
        wakes.sort_by(|a, b| a.first_piece_ms.total_cmp(&b.first_piece_ms));
        let half = wakes.len() / 2;
        let wake = wakes.get(half).ok_or_else(|| Error::setup("no wake was seen"))?;
        let title = format!("{figure}: a wake from {}, the one in the middle", self.tier);
        measured.pictures.push(wake.waterfall.picture(&format!("wake-{figure}.svg"), &title));
        Ok(measured)
    }
}
