//! A core's counts, and those of all cores together.
//!
//! A shard is a lock on a line of its own that its core takes when a request ends; the only other who ever takes it is a
//! scrape, to copy what is there. Functions have counts of their own up to [`FUNCTIONS_MAX`]; the counts of those beyond, and
//! of those that were removed, go on as one, so that sums over all functions never fall.

use crate::histogram::{DURATION_S, FIRST_TOKEN_S, Histogram, PER_TOKEN_S, TOKENS, WAIT_S};
use appliance_types::{FunctionName, Outcome, Record, Stage, Tier};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Functions that are told apart.
pub const FUNCTIONS_MAX: usize = 256;

/// What was asked of a model, in OpenTelemetry's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Messages in, text out.
    Chat,
    /// A prompt in, text out.
    TextCompletion,
    /// Text in, vectors out.
    Embeddings,
    /// Something that computes nothing, such as tokens of a text.
    Other,
}

impl Operation {
    /// The value of `gen_ai_operation_name`; none where there is no such operation.
    pub(crate) const fn name(self) -> Option<&'static str> {
        match self {
            Self::Chat => Some("chat"),
            Self::TextCompletion => Some("text_completion"),
            Self::Embeddings => Some("embeddings"),
            Self::Other => None,
        }
    }
}

/// What is known of a request's end beside its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// What was asked.
    pub operation: Operation,
    /// From when it came to its end, µs.
    pub took_us: u64,
    /// Prompts of it of which a runner claimed more, or less, than can be.
    pub claims_corrected: u64,
}

/// What one core counts.
#[derive(Clone, Debug)]
pub struct Shard(Arc<Line>);

/// Lines of its own, so that counting on one core costs the others nothing.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line(Mutex<Counts>);

/// The shards of all cores.
#[derive(Clone, Debug)]
pub struct Shards(Vec<Shard>);

/// What was counted since the server began.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    pub(crate) functions: BTreeMap<FunctionName, Series>,
    /// Of functions that are not told apart.
    pub(crate) others: Series,
    pub(crate) first_token: BTreeMap<Tier, Histogram>,
    pub(crate) wake_wait: BTreeMap<Tier, Histogram>,
    /// By whether it was batch.
    pub(crate) queue_wait: BTreeMap<bool, Histogram>,
    pub(crate) refusals: BTreeMap<&'static str, u64>,
    /// By [`stage_name`].
    pub(crate) entries: BTreeMap<&'static str, u64>,
    pub(crate) ring_pauses: u64,
    pub(crate) ring_full: u64,
    pub(crate) dropped: u64,
}

/// What was counted of one function.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Series {
    pub(crate) requests: BTreeMap<(Tier, &'static str), u64>,
    /// By what came of it where it was not answered in full.
    pub(crate) duration: BTreeMap<(Operation, Option<&'static str>), Histogram>,
    pub(crate) first_token: BTreeMap<Operation, Histogram>,
    pub(crate) per_token: BTreeMap<Operation, Histogram>,
    pub(crate) tokens_in: BTreeMap<Operation, Histogram>,
    pub(crate) tokens_out: BTreeMap<Operation, Histogram>,
    pub(crate) tokens_cached: u64,
    pub(crate) cost_nanos: u64,
    pub(crate) instance_us: u64,
    pub(crate) cpu_us: u64,
    pub(crate) reserved_byte_ms: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) budget_reached: u64,
    pub(crate) claims_corrected: u64,
}

impl Shards {
    /// Empty shards for so many cores.
    pub fn new(cores: usize) -> Self {
        Self((0..cores).map(|_| Shard(Arc::default())).collect())
    }

    /// One a core.
    pub fn iter(&self) -> impl Iterator<Item = &Shard> {
        self.0.iter()
    }

    /// What all cores have counted. Those of `deployed` are told apart from now on, as far as that goes.
    pub fn merged(&self, is_deployed: impl Fn(&FunctionName) -> bool) -> Counts {
        let mut all = Counts::default();
        for Shard(line) in &self.0 {
            let counts = {
                let mut counts = line.lock();
                counts.fold_removed(&is_deployed);
                counts.clone()
            };
            all.add(counts);
        }
        all
    }
}

impl Shard {
    /// A request that reached a function has ended.
    pub fn ended(&self, record: &Record, ended: Ended) {
        self.0.lock().ended(record, ended);
    }

    /// A request was answered with an error instead; `reason` is a word of ours.
    pub fn refused(&self, reason: &'static str) {
        *self.0.lock().refusals.entry(reason).or_default() += 1;
    }

    /// An entry is in the ring.
    pub fn entered(&self, stage: Stage) {
        *self.0.lock().entries.entry(stage_name(stage)).or_default() += 1;
    }

    /// A request waits a little for room in the ring.
    pub fn ring_paused(&self) {
        self.0.lock().ring_pauses += 1;
    }

    /// One that has waited was turned away, there being no room in the ring.
    pub fn ring_full(&self) {
        self.0.lock().ring_full += 1;
    }

    /// What a request used could not be told to the ledger. Nothing calls for this to happen.
    pub fn dropped(&self) {
        self.0.lock().dropped += 1;
    }
}

impl Line {
    /// A panic while counting leaves a count too low, and nothing worse.
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn ended(&mut self, record: &Record, ended: Ended) {
        let first_token_s = (record.outcome == Outcome::Completed).then(|| first_token_s(record)).flatten();
        if let Some(seconds) = first_token_s {
            observe(&mut self.first_token, record.tier, FIRST_TOKEN_S, seconds);
        }
        if record.wake_us > 0 {
            observe(&mut self.wake_wait, record.tier, WAIT_S, seconds(record.wake_us));
        }
        observe(&mut self.queue_wait, record.batch, WAIT_S, seconds(record.queue_us));
        self.series(&record.function).ended(record, ended, first_token_s);
    }

    fn series(&mut self, function: &FunctionName) -> &mut Series {
        if !self.functions.contains_key(function) {
            if self.functions.len() >= FUNCTIONS_MAX {
                return &mut self.others;
            }
            self.functions.insert(function.clone(), Series::default());
        }
        self.functions.get_mut(function).expect("it was there, or is now")
    }

    /// What functions that are gone have done is told as one.
    fn fold_removed(&mut self, is_deployed: impl Fn(&FunctionName) -> bool) {
        let others = &mut self.others;
        self.functions.retain(|function, series| {
            let stays = is_deployed(function);
            if !stays {
                others.add(std::mem::take(series));
            }
            stays
        });
    }

    fn add(&mut self, more: Self) {
        for (function, series) in more.functions {
            self.series(&function).add(series);
        }
        self.others.add(more.others);
        add_histograms(&mut self.first_token, more.first_token);
        add_histograms(&mut self.wake_wait, more.wake_wait);
        add_histograms(&mut self.queue_wait, more.queue_wait);
        add_numbers(&mut self.refusals, more.refusals);
        add_numbers(&mut self.entries, more.entries);
        self.ring_pauses += more.ring_pauses;
        self.ring_full += more.ring_full;
        self.dropped += more.dropped;
    }
}

impl Series {
    fn ended(
        &mut self,
        record: &Record,
        Ended { operation, took_us, claims_corrected }: Ended,
        first_token_s: Option<f64>,
    ) {
        let outcome = outcome_name(record.outcome);
        *self.requests.entry((record.tier, outcome)).or_default() += 1;
        self.tokens_cached += u64::from(record.tokens_cached);
        self.cost_nanos += record.cost_nanos;
        self.instance_us += record.share_us + record.wake_share_us;
        self.cpu_us += record.cpu_us;
        self.reserved_byte_ms += record.reserved_byte_ms;
        self.bytes_in += record.bytes_in;
        self.bytes_out += record.bytes_out;
        self.budget_reached += u64::from(record.budget_reached);
        self.claims_corrected += claims_corrected;
        if operation == Operation::Other {
            return;
        }
        let error = (record.outcome != Outcome::Completed).then_some(outcome);
        observe(&mut self.duration, (operation, error), DURATION_S, seconds(took_us));
        observe(&mut self.tokens_in, operation, TOKENS, record.tokens_in.into());
        observe(&mut self.tokens_out, operation, TOKENS, record.tokens_out.into());
        let Some(first) = first_token_s else { return };
        observe(&mut self.first_token, operation, FIRST_TOKEN_S, first);
        if record.tokens_out > 1 {
            let each = (seconds(took_us) - first).max(0.0) / f64::from(record.tokens_out - 1);
            observe(&mut self.per_token, operation, PER_TOKEN_S, each);
        }
    }

    fn add(&mut self, more: Self) {
        add_numbers(&mut self.requests, more.requests);
        add_histograms(&mut self.duration, more.duration);
        add_histograms(&mut self.first_token, more.first_token);
        add_histograms(&mut self.per_token, more.per_token);
        add_histograms(&mut self.tokens_in, more.tokens_in);
        add_histograms(&mut self.tokens_out, more.tokens_out);
        self.tokens_cached += more.tokens_cached;
        self.cost_nanos += more.cost_nanos;
        self.instance_us += more.instance_us;
        self.cpu_us += more.cpu_us;
        self.reserved_byte_ms += more.reserved_byte_ms;
        self.bytes_in += more.bytes_in;
        self.bytes_out += more.bytes_out;
        self.budget_reached += more.budget_reached;
        self.claims_corrected += more.claims_corrected;
    }
}

fn first_token_s(record: &Record) -> Option<f64> {
    (record.first_text_us > 0).then(|| seconds(record.first_text_us))
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn observe<K: Ord>(map: &mut BTreeMap<K, Histogram>, key: K, bounds: &'static [f64], value: f64) {
    map.entry(key).or_insert_with(|| Histogram::new(bounds)).observe(value);
}

fn add_histograms<K: Ord>(all: &mut BTreeMap<K, Histogram>, more: BTreeMap<K, Histogram>) {
    for (key, histogram) in more {
        match all.get_mut(&key) {
            Some(sum) => sum.add(&histogram),
            None => drop(all.insert(key, histogram)),
        }
    }
}

fn add_numbers<K: Ord>(all: &mut BTreeMap<K, u64>, more: BTreeMap<K, u64>) {
    more.into_iter().for_each(|(key, count)| *all.entry(key).or_default() += count);
}

const fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::Refused => "refused",
        Outcome::Cancelled => "cancelled",
        Outcome::DeadlineExceeded => "deadline_exceeded",
        Outcome::RunnerFailed => "runner_failed",
        Outcome::Failed => "failed",
        Outcome::Interrupted => "interrupted",
    }
}

const fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Open => "open",
        Stage::Progress => "progress",
        Stage::Closed => "closed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use appliance_types::RequestId;

    fn record(function: &str) -> Record {
        Record {
            outcome: Outcome::Completed,
            tier: Tier::Parked,
            first_text_us: 50_000,
            tokens_in: 20,
            tokens_out: 11,
            cost_nanos: 7,
            ..Record::new(RequestId::from_random(1), "app".parse().unwrap(), function.parse().unwrap())
        }
    }

    const CHAT: Ended = Ended { operation: Operation::Chat, took_us: 1_050_000, claims_corrected: 0 };

    #[test]
    fn cores_count_by_themselves_and_are_summed() {
        let shards = Shards::new(3);
        for shard in shards.iter() {
            shard.ended(&record("a"), CHAT);
            shard.refused("queue_full");
            shard.entered(Stage::Closed);
        }
        let all = shards.merged(|_| true);
        let series = &all.functions["a"];
        assert_eq!(series.requests[&(Tier::Parked, "completed")], 3);
        assert_eq!((series.cost_nanos, series.tokens_out[&Operation::Chat].sum()), (21, 33.0));
        let each = series.per_token[&Operation::Chat].sum() / 3.0;
        assert!((each - 0.1).abs() < 1e-9, "a second for ten tokens after the first: {each}");
        assert_eq!((all.refusals["queue_full"], all.entries["closed"]), (3, 3));
    }

    #[test]
    fn what_failed_has_no_first_token_of_a_success() {
        let shards = Shards::new(1);
        let shard = shards.iter().next().unwrap();
        shard.ended(&Record { outcome: Outcome::Cancelled, ..record("a") }, CHAT);
        shard.ended(&record("a"), Ended { operation: Operation::Other, ..CHAT });
        let series = &shards.merged(|_| true).functions["a"];
        assert!(series.first_token.is_empty() && series.per_token.is_empty());
        assert_eq!(series.duration.keys().collect::<Vec<_>>(), [&(Operation::Chat, Some("cancelled"))]);
    }

    #[test]
    fn functions_are_told_apart_up_to_a_number_and_sums_never_fall() {
        let shards = Shards::new(2);
        let cores: Vec<_> = shards.iter().collect();
        for number in 0..2 * FUNCTIONS_MAX {
            cores[number % 2].ended(&record(&format!("f{number}")), CHAT);
        }
        let total = |counts: &Counts| -> u64 {
            counts.functions.values().chain([&counts.others]).map(|series| series.cost_nanos).sum()
        };
        let all = shards.merged(|_| true);
        assert_eq!((all.functions.len(), total(&all)), (FUNCTIONS_MAX, 14 * FUNCTIONS_MAX as u64));
        let removed = shards.merged(|function| function.as_str() == "f0");
        assert_eq!((removed.functions.len(), total(&removed)), (1, total(&all)));
        assert_eq!(total(&shards.merged(|_| true)), total(&all), "it stays so");
    }
}
