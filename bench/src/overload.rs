//! `bench overload`: what callers see when requests come faster than they can be answered.
//!
//! ```text
//!  capacity: as many callers as slots, each asking again when it was answered       ─▶ answers/s
//!  a level:  requests due at random times (Poisson) of level × capacity, whether or not others were answered
//!
//!  due ─────▶ sent ─────▶ first piece ──▶ piece ──▶ … ──▶ end
//!  └── first token ──────────────┘ └ gap ─┘                        all counted from when it was due
//! ```
//! Times count from when a request was due, not from when it could be sent, so that a server that stalls cannot hide it
//! by stalling its callers (G. Tene's "coordinated omission"). Every request ends as answered, refused (429, 503), turned
//! away after its stream had begun, or failed;
//! memory is that of Ember and all its children, before and after.
//!
//! A refusal is told three times, since callers, server and inference share the cores: as its caller met it; what it took in the
//! server, by the server's own clock (`server-timing`); and how long its caller had waited for a core meanwhile, as the kernel
//! counts it (`schedstat`). What is left of the first is the network, and the server's waiting for a core.

use crate::{
    chat::{Chat, MODEL, ms},
    ember::Ember,
    error::Error,
    http_client::{Server, in_thread},
    load::Load,
};
use fastrand::Rng;
use std::{
    fmt,
    path::Path,
    time::{Duration, Instant},
};

const SLOTS: usize = 4;
const TOKENS: u32 = 24;
const LEVELS: [f64; 3] = [0.5, 0.8, 4.0];
const SEED: u64 = 1;

/// One level, as it came out.
struct Level {
    load: f64,
    asked: usize,
    answered: usize,
    refused: usize,
    turned_away: usize,
    failed: usize,
    /// Of those answered, ms.
    first: Vec<f64>,
    gaps: Vec<f64>,
    /// Of those refused, from when they were sent, ms.
    refusals: Vec<f64>,
    /// What they took in the server, ms.
    in_server: Vec<f64>,
    /// What their caller waited for a core meanwhile, ms.
    waits: Vec<f64>,
    memory_mib: (f64, f64),
}

/// How a request ended.
enum Ended {
    Answered {
        first: f64,
        gaps: Vec<f64>,
    },
    Refused {
        took: f64,
        in_server: f64,
        waited: f64,
    },
    /// Refused after its stream had begun, since it waited.
    TurnedAway,
    Failed(String),
}

/// Measures and prints a line a level.
///
/// # Errors
/// Ember could not be started, or does not answer at all.
pub(crate) fn run(model: &Path, seconds: u64) -> Result<(), Error> {
    let ember = Ember::start(model, Load { threads: None, ..Load::of(SLOTS, 512)? })?;
    let span = Duration::from_secs(seconds);
    let server = &ember.server;
    // Woken, and its pages touched, before anything counts.
    in_thread(None, async || capacity(server, Duration::from_secs(2)).await)?;
    let capacity = in_thread(None, async || capacity(server, span / 2).await)?;
    println!("capacity {capacity:.2} answers/s of {TOKENS} tokens, {SLOTS} at once");
    println!(
        "{:>5} {:>6} {:>8} {:>7} {:>11} {:>6}  first token p50 p99 ms   gap p50 p99 ms   refusal p50 p99 ms   in server p50 p99 ms   caller's wait p50 p99 ms   memory MiB",
        "load", "asked", "answered", "refused", "turned away", "failed"
    );
    for load in LEVELS {
        let before = ember.process.family_pss_mib()?;
        let mut level = in_thread(None, async || level(server, load, load * capacity, span).await)?;
        level.memory_mib = (before, ember.process.family_pss_mib()?);
        println!("{level}");
    }
    Ok(())
}

/// Answers a second of as many callers as there are slots.
async fn capacity(server: &Server, span: Duration) -> Result<f64, Error> {
    let began = Instant::now();
    let callers = (0..SLOTS).map(|caller| {
        let server = server.clone();
        tokio::spawn(async move {
            let mut answers = 0_usize;
            while began.elapsed() < span {
                chat(caller * 1000 + answers).ask(&server).await?;
                answers += 1;
            }
            Ok::<_, Error>(answers)
        })
    });
    let mut answers = 0;
    for caller in callers.collect::<Vec<_>>() {
        answers += caller.await.map_err(Error::setup)??;
    }
    Ok(answers as f64 / began.elapsed().as_secs_f64())
}

async fn level(server: &Server, load: f64, rate: f64, span: Duration) -> Result<Level, Error> {
    let began = Instant::now();
    let (mut due, mut random, mut asking) = (Duration::ZERO, Rng::with_seed(SEED), Vec::new());
    while due < span {
        let (server, number, due_at) = (server.clone(), asking.len(), began + due);
        asking.push(tokio::spawn(async move {
            tokio::time::sleep_until(due_at.into()).await;
            ask(&server, number, due_at).await
        }));
        due += Duration::from_secs_f64(exponential(&mut random) / rate);
    }
    let mut level = Level {
        load,
        asked: asking.len(),
        answered: 0,
        refused: 0,
        turned_away: 0,
        failed: 0,
        first: Vec::new(),
        gaps: Vec::new(),
        refusals: Vec::new(),
        in_server: Vec::new(),
        waits: Vec::new(),
        memory_mib: (0.0, 0.0),
    };
    for asked in asking {
        match asked.await.map_err(Error::setup)? {
            Ended::Answered { first, gaps } => {
                level.answered += 1;
                level.first.push(first);
                level.gaps.extend(gaps);
            }
            Ended::Refused { took, in_server, waited } => {
                level.refused += 1;
                level.refusals.push(took);
                level.in_server.push(in_server);
                level.waits.push(waited);
            }
            Ended::TurnedAway => level.turned_away += 1,
            Ended::Failed(reason) => {
                level.failed += 1;
                eprintln!("a request failed: {reason}");
            }
        }
    }
    Ok(level)
}

async fn ask(server: &Server, number: usize, due: Instant) -> Ended {
    let connected = match server.connect().await {
        Ok(connection) => connection,
        Err(error) => return Ended::Failed(error.to_string()),
    };
    let (sent, waited) = (Instant::now(), waited_for_a_core_ms());
    match chat(number).ask_over(connected, server).await {
        Ok((answer, gaps)) => match answer.first_piece_ms(due) {
            Ok(first) => Ended::Answered { first, gaps },
            Err(_) if answer.error.as_deref() == Some("unavailable") => Ended::TurnedAway,
            Err(error) => Ended::Failed(format!("{error}; it ended with {:?}", answer.error)),
        },
        Err(Error::Status { status: 429 | 503, took_ms: Some(in_server), .. }) => {
            Ended::Refused { took: ms(sent.elapsed()), in_server, waited: waited_for_a_core_ms() - waited }
        }
        Err(error) => Ended::Failed(error.to_string()),
    }
}

/// What this thread, which is all callers, has waited for a core since it began, ms; 0 where the kernel does not count it.
fn waited_for_a_core_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').nth(1).and_then(|ns| ns.parse::<f64>().ok()).unwrap_or_default() / 1e6
}

fn chat(number: usize) -> Chat {
    let prompt = format!("Tell a story about lighthouse number {number}.");
    Chat { model: MODEL, system: None, prompt, tokens: TOKENS }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pair = |samples: &[f64]| format!("{:.1} {:.1}", quantile(samples, 0.5), quantile(samples, 0.99));
        write!(
            f,
            "{:>4.0}% {:>6} {:>8} {:>7} {:>11} {:>6}  {:>22}   {:>14}   {:>18}   {:>20}   {:>24}   {:.0} -> {:.0}",
            self.load * 100.0,
            self.asked,
            self.answered,
            self.refused,
            self.turned_away,
            self.failed,
            pair(&self.first),
            pair(&self.gaps),
            pair(&self.refusals),
            pair(&self.in_server),
            pair(&self.waits),
            self.memory_mib.0,
            self.memory_mib.1,
        )
    }
}

/// The sample below which a share of them is; 0 of none.
fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// A time between two requests, of mean 1, as independent callers make them.
fn exponential(random: &mut Rng) -> f64 {
    -(1.0 - random.f64()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!((quantile(&samples, 0.5), quantile(&samples, 0.99), quantile(&samples, 1.0)), (50.0, 99.0, 100.0));
        assert_eq!((quantile(&[7.0], 0.5), quantile(&[], 0.5)), (7.0, 0.0));
    }

    #[test]
    fn intervals_have_the_mean_that_was_asked_for() {
        let mut random = Rng::with_seed(SEED);
        let mean = (0..100_000).map(|_| exponential(&mut random)).sum::<f64>() / 100_000.0;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
    }
}
