//! What is asked of the pool, and what comes back.

use crate::scheduler::System;
use appliance_admit::{Class, route::Trail};
use appliance_scale::hold::Term;
use appliance_types::{FunctionName, KeyName, Provisioned, Tier};
use sandbox_wire::{
    runner::{FromRunner, Generate, Id, Message, ModelInfo, Prompt, Tenant, Text, ToRunner, TokenLogprob, TopLogprob},
    warden::{InstanceId, RunnerSpec, WakeParts, WardenError},
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// Most requests that wait or run at once, over all functions.
pub const JOBS_MAX: usize = 8192;

/// What the pool needs to know of a function.
#[derive(Clone, Debug, PartialEq)]
pub struct FunctionConfig {
    /// What its instances are started with.
    pub spec: RunnerSpec,
    /// Instances kept when nobody calls.
    pub instances_min: usize,
    /// Most instances.
    pub instances_max: usize,
    /// Most requests that wait.
    pub queue_max: usize,
    /// Longest that one waits.
    pub queue_timeout: Duration,
    /// How long an instance stays up without a request.
    pub keep_warm: Term,
    /// How long it is held in memory without an instance and without a request; then on disk only.
    pub park: Term,
    /// Windows of the week in which more instances are kept.
    pub provisioned: Vec<Provisioned>,
    /// Longest that a request runs.
    pub timeout: Duration,
}

impl FunctionConfig {
    /// What its instances are started with where `cores` may compute. A snapshot fits this, and nothing else.
    pub fn spec_on(&self, cores: u32) -> RunnerSpec {
        RunnerSpec { cpus: self.threads_on(cores), ..self.spec.clone() }
    }

    pub(crate) fn threads_on(&self, cores: u32) -> u32 {
        self.spec.cpus.clamp(1, cores)
    }
}

/// Whose a request is, and how it may wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The key; `None` for the box's own.
    pub key: Option<KeyName>,
    /// Turns of the key for each of a key of weight 1.
    pub weight: u32,
    /// Who waits for the answer.
    pub class: Class,
    /// When it is of no use any more, waiting and running.
    pub deadline: Option<Instant>,
}

impl Default for Terms {
    fn default() -> Self {
        Self { key: None, weight: 1, class: Class::Interactive, deadline: None }
    }
}

/// Where a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// 1 is next.
    pub position: usize,
    /// When it may have its slot, by measured wakes and service times.
    pub estimate: Duration,
}

/// What a request wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Text.
    Generate(Box<Generate>),
    /// A vector.
    Embed {
        /// The text or tokens.
        input: Prompt,
        /// Take as much of it as fits the context, rather than refuse it.
        truncate: bool,
    },
    /// Tokens of a text.
    Tokenize {
        /// The text.
        text: String,
        /// Add the model's begin and end tokens.
        add_special: bool,
        /// Read special tokens' text as those tokens.
        parse_special: bool,
    },
    /// Text of tokens.
    Detokenize(Vec<u32>),
    /// Messages rendered with the model's template.
    ApplyTemplate(Vec<Message>),
    /// Nothing: only that an instance be up. Ends with its [`Event::Dispatched`].
    Wake,
}

impl Work {
    /// The frame that asks a runner for it; `None` for [`Work::Wake`].
    pub(crate) fn message(&self, id: Id) -> Option<ToRunner> {
        Some(match self.clone() {
            Work::Generate(generate) => ToRunner::Generate { id, generate },
            Work::Embed { input, truncate } => ToRunner::Embed { id, input, truncate },
            Work::Tokenize { text, add_special, parse_special } => {
                ToRunner::Tokenize { id, text, add_special, parse_special }
            }
            Work::Detokenize(tokens) => ToRunner::Detokenize { id, tokens },
            Work::ApplyTemplate(messages) => ToRunner::ApplyTemplate { id, messages },
            Work::Wake => return None,
        })
    }

    /// The beginnings of its prompt, message by message, by which its next turn is found.
    pub(crate) fn trail(&self) -> Trail {
        let Work::Generate(generate) = self else { return Trail::default() };
        let Some(Tenant(tenant)) = generate.tenant else { return Trail::default() };
        match &generate.prompt {
            Prompt::Chat(messages) => {
                Trail::new(tenant, messages.iter().map(|message| (message.role, &message.content, &message.name)))
            }
            Prompt::Text(text) => Trail::new(tenant, [text]),
            Prompt::Tokens(tokens) => Trail::new(tenant, [tokens]),
        }
    }

    /// Most that who follows it hears: a dispatch, at most one more after a retry, one correction, what the runner says, and one
    /// failure.
    pub(crate) fn events_max(&self) -> usize {
        self.replies_max() + 4
    }

    /// Most messages that a runner may answer with.
    fn replies_max(&self) -> usize {
        match self {
            // Each token makes one piece at most; held-back text may make one more; then the start and the end.
            Work::Generate(generate) => generate.tokens_max as usize + 3,
            _ => 1,
        }
    }

    /// Most bytes that the pieces of an answer may hold.
    pub(crate) fn reply_bytes_max(&self) -> usize {
        const TOKEN_BYTES_MAX: usize = 1 << 10;
        match self {
            Work::Generate(generate) => {
                let for_token = TOKEN_BYTES_MAX * (1 + generate.logprobs.map_or(0, |top| 1 + usize::from(top)));
                for_token.saturating_mul(generate.tokens_max as usize + 1)
            }
            _ => usize::MAX,
        }
    }
}

/// Bytes that a message holds here which is not the last of its request.
pub(crate) fn midway_bytes(message: &FromRunner) -> usize {
    match message {
        FromRunner::Text { text, .. } => piece_bytes(text),
        FromRunner::Started { .. } => size_of::<FromRunner>(),
        _ => 0,
    }
}

fn piece_bytes(text: &Text) -> usize {
    let top = |top: &TopLogprob| size_of::<TopLogprob>() + top.bytes.len();
    let token = |t: &TokenLogprob| size_of::<TokenLogprob>() + t.bytes.len() + t.top.iter().map(top).sum::<usize>();
    size_of::<Text>() + text.text.len() + text.logprobs.iter().map(token).sum::<usize>()
}

/// What a submission hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A slot of an instance is its own. Comes again when an instance died before the first token and another took over:
    /// what was said before is void.
    Dispatched(Dispatched),
    /// What the runner claimed of the prompt's tokens cannot be: the reply that follows says what can. Once at most.
    Corrected,
    /// What the runner says; ends with a message whose `is_last` holds.
    Reply(FromRunner),
    /// It will not be served; nothing more comes.
    Failed(Failed),
}

/// How a request came to its instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatched {
    /// Where the function was found: running where an instance was up when the request came, else where the wake of
    /// its instance found it.
    pub tier: Tier,
    /// Time waiting for a slot, µs.
    pub queue_us: u64,
    /// Time waiting for the instance to wake, µs.
    pub wake_us: u64,
    /// Memory reserved for the instance, bytes.
    pub memory_bytes: u64,
    /// What is loaded in it.
    pub model: Arc<ModelInfo>,
}

/// Why a request is not served.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failed {
    /// No such function, or it was removed.
    #[error("the function is not deployed")]
    NoFunction,
    /// Its queue is full.
    #[error("the function's queue of {queue_max} is full")]
    QueueFull {
        /// Most that wait.
        queue_max: usize,
        /// When to try again, by measured service times, s.
        retry_after_s: u64,
    },
    /// Its deadline would pass while it waits.
    #[error("its turn comes in about {estimate_ms} ms, and its deadline is in {left_ms} ms")]
    DeadlineTooSoon {
        /// Least time until its turn, by measured wakes and service times.
        estimate_ms: u64,
        /// Time left.
        left_ms: u64,
        /// When to try again, s.
        retry_after_s: u64,
    },
    /// The box has more requests than it takes.
    #[error("{JOBS_MAX} requests are waiting or running, which is the most")]
    Overloaded,
    /// It waited too long.
    #[error("no room came free within {waited_ms} ms")]
    QueueTimeout {
        /// How long it waited.
        waited_ms: u64,
        /// When to try again, by measured service times, s.
        retry_after_s: u64,
    },
    /// No instance of it fits into the memory that there is.
    #[error(
        "an instance of the function needs {} MiB with its model, and functions have {} MiB on this machine; lower \
         `limits.memory` or raise `memory` in emberd's configuration", need_bytes >> 20, total_bytes >> 20
    )]
    TooLarge {
        /// What it needs, bytes.
        need_bytes: u64,
        /// What there is for all functions, bytes.
        total_bytes: u64,
    },
    /// It failed again and again, and is not woken for now.
    #[error("the function fails, {failures} times in a row so far, and is tried again in {retry_after_s} s: {reason}")]
    Failing {
        /// How often in a row.
        failures: u32,
        /// What happened last.
        reason: String,
        /// When it is tried again, s.
        retry_after_s: u64,
    },
    /// No instance could be woken.
    #[error("the function could not be woken: {0}")]
    WakeFailed(WardenError),
    /// Its instance died, hung, or broke protocol.
    #[error("the instance was lost: {reason}")]
    InstanceLost {
        /// What ended it.
        reason: String,
    },
}

/// What there is, for lists.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Instances that are up.
    pub instances: Vec<InstanceView>,
    /// Functions without one that may be held in memory.
    pub held: Vec<HeldView>,
    /// Functions that fail, and are not woken for now.
    pub failing: Vec<FailingView>,
    /// What nobody is billed for, by function, since the server began.
    pub system: BTreeMap<FunctionName, System>,
    /// Functions for which requests wait.
    pub queues: Vec<QueueView>,
    /// Instances that are being woken.
    pub waking: usize,
    /// Cores for inference, and of these leased.
    pub cores: [u32; 2],
    /// Memory for functions: all, what of it is usable, what is held; bytes.
    pub memory: [u64; 3],
    /// Of what is held, what is idle and would give way to a wake; bytes.
    pub memory_idle: u64,
    /// Wakes since the server began, by where they found their functions.
    pub wakes: BTreeMap<Tier, WakesView>,
    /// The latest wakes, the last one first.
    pub wakes_latest: Vec<WakeView>,
    /// Wakes that gave no instance.
    pub wakes_failed: u64,
}

/// One wake, for lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WakeView {
    /// What was woken.
    pub function: FunctionName,
    /// Where it was found.
    pub tier: Tier,
    /// How long ago it was up.
    pub ago: Duration,
    /// What it took the warden.
    pub parts: WakeParts,
    /// From the warden to here, and whatever lay between, µs.
    pub handover_us: u64,
}

/// Requests that wait for a function, for lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueView {
    /// The function.
    pub function: FunctionName,
    /// Those that somebody waits for.
    pub interactive: usize,
    /// The others.
    pub batch: usize,
}

/// Wakes from one tier, for lists; sums, µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WakesView {
    /// How many.
    pub count: u64,
    /// Looking for a snapshot and decoding it.
    pub find_us: u64,
    /// Making a process.
    pub process_us: u64,
    /// Making it ready.
    pub ready_us: u64,
    /// From the warden to here, and whatever lay between.
    pub handover_us: u64,
}

/// A function that fails again and again, for lists.
#[derive(Clone, Debug, PartialEq)]
pub struct FailingView {
    /// The function.
    pub function: FunctionName,
    /// How often in a row.
    pub failures: u32,
    /// What happened last.
    pub reason: String,
    /// When it is tried again.
    pub retry_in: Duration,
}

/// A function that the warden may hold in memory, for lists.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldView {
    /// The function.
    pub function: FunctionName,
    /// When it is stored if nobody calls.
    pub store_in: Duration,
    /// Median of the function's wakes, ms.
    pub wake_p50_ms: Option<u64>,
}

/// An instance, for lists.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceView {
    /// Its number.
    pub instance: InstanceId,
    /// Whose it is.
    pub function: FunctionName,
    /// Memory that it reserves, bytes.
    pub memory_bytes: u64,
    /// Cores that it computes on when busy.
    pub threads: u32,
    /// Requests that it can run at once.
    pub slots: u32,
    /// Requests that it runs.
    pub slots_busy: u32,
    /// When it stops if nobody calls; `None` when it is busy or kept.
    pub idle_stop_in: Option<Duration>,
    /// Median of the function's wakes, ms.
    pub wake_p50_ms: Option<u64>,
    /// What is loaded in it.
    pub model: Arc<ModelInfo>,
}
