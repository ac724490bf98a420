//! All that the pool knows and decides. Pure: `now` and an input go in, effects and events come out.
//!
//! ```text
//!  job       Waiting ──dispatch──▶ Running ──last message──▶ gone
//!              │  ▲                   │ instance died before its first text: once
//!              │  └───────────────────┘
//!              └─ cancel, queue timeout, wake failed, function removed ─▶ gone
//!
//!  instance  (waking) ──Woken──▶ up ──keep_warm, retired──▶ (stopping) ──Exited──▶ gone
//!                                 └──EOF, broke protocol, hung──▶ (dying) ──┘
//!
//!  function  held in memory ──the last instance gone or no wake, and no call, for `park`──▶ stored
//! ```
//!
//! Invariants: an instance leaves only by `Exited`, which the warden sends once for each; a job's slot is free when its
//! last message came; every timer of something that is gone has been removed; what is held fits into memory ([`memory`]).
//! What it does without being asked is in [`scale`].

mod account;
mod claims;
mod cores;
mod endings;
mod health;
mod jobs;
mod look;
mod memory;
mod preempt;
mod scale;
mod terms;
mod tiers;
mod work;

use crate::claims::Claim;
use crate::job::{Dispatched, Event, Failed, FunctionConfig, Terms, View, Waits, Work, midway_bytes};
use crate::seen::Seen;
use crate::tab::Tab;
pub use account::System;
use account::{Account, Books};
pub(crate) use account::{Reading, Sensor};
use appliance_admit::{
    self as admit, Class, Step,
    cores::CoreSet,
    queue::{Place, Queue},
    route::{Begun, Trail},
};
use appliance_types::{FunctionName, KeyName, ModelDigest, Tier};
use cores::Cores;
use health::{Health, Heard};
use jobs::Told;
use look::Tally;
pub(crate) use memory::HoldId;
use memory::{Image, Ledger, Worth};
use preempt::{Hold, is_urgent};
use sandbox_wire::{
    runner::{FromRunner, ModelInfo, ToRunner},
    warden::{Awake, ExitCause, InstanceId, Liver, RunnerSpec, Spent, WardenError},
};
pub(crate) use scale::Rules;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

/// A submission's number, and its id in frames.
pub(crate) type Ticket = u64;
/// A wake's number.
pub(crate) type WakeId = u64;

/// Time that a runner has to answer a cancel or a deadline before it counts as hung: a step of a large model on one core
/// takes many seconds.
const HANG_GRACE: Duration = Duration::from_secs(30);
/// Longest that an operator's command waits for memory.
const RESERVE_WAIT: Duration = Duration::from_secs(60);

/// What happened.
#[derive(Debug)]
pub(crate) enum Input {
    Configure(Box<FunctionConfig>),
    Remove(FunctionName),
    Retire(FunctionName),
    /// The warden was made to hold the function in memory, of which it takes so many bytes.
    Hold(FunctionName, u64),
    /// The warden is about to hold the function on disk only.
    Storing(FunctionName),
    /// It does.
    Stored(FunctionName),
    /// Memory is wanted for an instance that is not the pool's.
    Reserve {
        id: HoldId,
        spec: Box<RunnerSpec>,
        model_bytes: u64,
        reply: flume::Sender<Result<(), Failed>>,
    },
    /// It is wanted no more.
    Release(HoldId),
    /// The kernel says how short the host is of memory, in % of time lost.
    Pressed(u64),
    Submit {
        ticket: Ticket,
        function: FunctionName,
        work: Work,
        terms: Terms,
        tab: Arc<Tab>,
        events: flume::Sender<Event>,
    },
    Cancel(Ticket),
    /// Where a submission waits; no answer when it does not.
    Place {
        ticket: Ticket,
        reply: flume::Sender<Waits>,
    },
    List(flume::Sender<View>),
    Woken {
        wake: WakeId,
        result: Result<Awake, WardenError>,
    },
    Said {
        instance: InstanceId,
        message: FromRunner,
    },
    /// The connection to an instance ended or broke.
    Lost {
        instance: InstanceId,
        fault: Option<String>,
    },
    Exited {
        instance: InstanceId,
        cause: ExitCause,
    },
    /// What of the machine was taken, by an instance before its exit, or by the box's own processes.
    Lived {
        who: Liver,
        spent: Spent,
    },
}

/// What to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Effect {
    Wake {
        wake: WakeId,
        spec: Box<RunnerSpec>,
    },
    Send {
        instance: InstanceId,
        message: ToRunner,
    },
    /// Its lease is of these cores from now on.
    Cores {
        instance: InstanceId,
        cores: CoreSet,
    },
    Stop(InstanceId),
    /// The function's memory is wanted for others.
    Store(FunctionName),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Queue(Ticket),
    Run(Ticket),
    Idle(InstanceId),
    Yield(InstanceId),
    Silent(InstanceId),
    Dying(InstanceId),
    Again(FunctionName),
    Park(FunctionName),
    Scale,
}

#[derive(Debug)]
struct Function {
    config: FunctionConfig,
    generation: u64,
    waiting: Queue<Option<KeyName>, Ticket>,
    slots: u32,
    service: Option<Duration>,
    wakes_ms: VecDeque<u64>,
    image: Image,
    worth: Worth,
    health: Health,
    /// When it goes to disk, should nobody call; `None` while it is up or waking, or is on disk already.
    held_until: Option<Instant>,
    past: scale::Past,
}

#[derive(Debug)]
struct Wake {
    function: FunctionName,
    generation: u64,
    cores: Cores,
    memory_bytes: u64,
    weights: ModelDigest,
    began: Instant,
}

#[derive(Debug)]
struct Instance {
    function: FunctionName,
    generation: u64,
    cores: Cores,
    slots: u32,
    memory_bytes: u64,
    weights: ModelDigest,
    model: Arc<ModelInfo>,
    /// Where its wake found the function.
    woken_from: Tier,
    up_since: Instant,
    heard: Heard,
    woke_in: Duration,
    running: Vec<Ticket>,
    /// What it has of conversations.
    begun: Begun,
    /// What it was asked.
    seen: Seen,
    idle_stop: Option<Instant>,
    /// Takes nothing more: it is being stopped, or is lost.
    ending: bool,
    /// When it is ended, its socket being closed, should it not have died of that.
    dies_by: Option<Instant>,
    blame: Option<String>,
    account: Account,
}

#[derive(Debug)]
struct Job {
    function: FunctionName,
    work: Work,
    terms: Terms,
    tab: Arc<Tab>,
    events: flume::Sender<Event>,
    /// Beginnings of its prompt, where its function may have several instances.
    trail: Trail,
    /// Its place in the queue, also when it has left it.
    place: Place,
    came: Instant,
    /// Whether an instance was up when it came.
    found_up: bool,
    state: State,
    timer: Option<Instant>,
    retried: bool,
    /// Whether it ever was given a slot.
    had_slot: bool,
    /// Tokens of its prompt, once its instance has begun with it.
    claim: Option<Claim>,
    /// Whether who follows it was told that its runner claims what cannot be.
    corrected: bool,
    cancelled: bool,
    bytes_left: usize,
    spoke: bool,
    hold: Hold,
    /// It was paused when its time was up, and goes on to hear that from its runner.
    overdue: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Running { instance: InstanceId, since: Instant },
}

/// The pool's state.
#[derive(Debug)]
pub(crate) struct Scheduler {
    cores: u32,
    generations: u64,
    wake_ids: WakeId,
    functions: BTreeMap<FunctionName, Function>,
    wakes: HashMap<WakeId, Wake>,
    instances: BTreeMap<InstanceId, Instance>,
    jobs: HashMap<Ticket, Job>,
    timers: BTreeSet<(Instant, Timer)>,
    /// How many of the jobs are batch.
    batch: usize,
    ledger: Ledger,
    effects: Vec<Effect>,
    rules: Rules,
    /// What the wall clock showed, and when.
    wall: Option<(Instant, u64)>,
    scale_due: Option<Instant>,
    sensor: Sensor,
    books: Books,
    tally: Tally,
}

impl Scheduler {
    /// A pool of nothing, on `cores` inference cores and `memory` bytes.
    pub(crate) fn new(cores: u32, memory: u64) -> Self {
        Self {
            cores,
            ledger: Ledger::new(memory),
            generations: 0,
            wake_ids: 0,
            functions: BTreeMap::new(),
            wakes: HashMap::new(),
            instances: BTreeMap::new(),
            jobs: HashMap::new(),
            timers: BTreeSet::new(),
            batch: 0,
            effects: Vec::new(),
            rules: Rules::default(),
            wall: None,
            scale_due: None,
            sensor: Sensor::default(),
            books: Books::default(),
            tally: Tally::default(),
        }
    }

    /// When [`tick`](Self::tick) wants to be called.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due).into_iter().chain(self.ledger.next_due()).min()
    }

    /// Learns the length of a model's file.
    pub(crate) fn learn(&mut self, model: ModelDigest, bytes: u64) {
        self.ledger.learn(model, bytes);
    }

    /// Takes what happened; gives what to do.
    pub(crate) fn handle(&mut self, now: Instant, input: Input) -> Vec<Effect> {
        let frees_nothing = is_midway(&input) && self.batch == 0;
        let moved = self.moved_by(&input);
        match input {
            Input::Configure(config) => self.configure(now, *config),
            Input::Remove(function) => self.remove(now, &function),
            Input::Retire(function) => {
                self.retire(now, &function);
                self.stopped_by_hand(&function);
            }
            Input::Hold(function, bytes) => {
                self.held_by_hand(&function);
                self.hold_image(now, &function, bytes);
            }
            Input::Storing(function) => self.storing(&function),
            Input::Stored(function) => self.stored(&function),
            Input::Reserve { id, spec, model_bytes, reply } => self.reserve(now, id, &spec, model_bytes, reply),
            Input::Release(id) => self.release(id),
            Input::Pressed(percent) => self.pressed(now, percent),
            Input::Submit { ticket, function, work, terms, tab, events } => {
                self.submit(now, ticket, function, work, terms, Told { tab, events })
            }
            Input::Cancel(ticket) => self.cancel(now, ticket),
            Input::Place { ticket, reply } => drop(self.waits(ticket).map(|waits| reply.try_send(waits))),
            Input::List(reply) => {
                self.settle_all(now);
                drop(reply.try_send(self.list(now)));
            }
            Input::Woken { wake, result } => self.woken(now, wake, result),
            Input::Said { instance, message } => self.said(now, instance, message),
            Input::Lost { instance, fault } => self.lost(now, instance, fault),
            Input::Exited { instance, cause } => self.exited(now, instance, &cause),
            Input::Lived { who, spent } => self.lived(who, spent),
        }
        if frees_nothing && self.effects.is_empty() {
            return Vec::new();
        }
        self.advance(now);
        if let Some(function) = moved {
            self.follow(now, &function);
        }
        std::mem::take(&mut self.effects)
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<Effect> {
        while let Some((_, timer)) = self.timers.first().cloned().filter(|(due, _)| *due <= now) {
            self.timers.pop_first();
            match timer {
                Timer::Queue(ticket) => self.queue_timeout(now, ticket),
                Timer::Run(ticket) => self.hung(now, ticket),
                Timer::Idle(instance) => self.idle(now, instance),
                Timer::Yield(id) => self.blame(id, "it did not give cores back in time".to_owned()),
                Timer::Park(function) => self.store(function),
                Timer::Silent(id) => self.silent(now, id),
                Timer::Dying(id) => self.outlives(id),
                Timer::Again(function) => self.try_again(&function),
                Timer::Scale => self.look(now),
            }
        }
        self.memory_tick(now);
        self.advance(now);
        self.plan(now);
        std::mem::take(&mut self.effects)
    }

    fn configure(&mut self, now: Instant, config: FunctionConfig) {
        let name = config.spec.function.clone();
        self.generations += 1;
        let generation = self.generations;
        let fresh = Function {
            slots: 1,
            generation,
            waiting: Queue::after(generation << 32),
            service: None,
            wakes_ms: VecDeque::new(),
            image: Image::default(),
            worth: Worth::default(),
            health: Health::default(),
            held_until: None,
            past: scale::Past::default(),
            config,
        };
        match self.functions.get_mut(&name) {
            Some(old) => {
                let waiting = std::mem::take(&mut old.waiting);
                let past = std::mem::take(&mut old.past).redeployed();
                let (held_until, image, worth) = (old.held_until, old.image, old.worth);
                *old = Function { waiting, held_until, image, worth, past, ..fresh };
            }
            None => drop(self.functions.insert(name.clone(), fresh)),
        }
        self.retire(now, &name);
    }

    fn remove(&mut self, now: Instant, name: &FunctionName) {
        self.unhold(name);
        let Some(function) = self.functions.remove(name) else { return };
        for ticket in function.waiting.iter() {
            self.fail(ticket, Failed::NoFunction);
        }
        self.retire(now, name);
    }

    /// Ends the function's instances, those at work when they are done.
    fn retire(&mut self, now: Instant, name: &FunctionName) {
        let ids: Vec<_> = self.instances.iter().filter(|(_, i)| i.function == *name).map(|(id, _)| *id).collect();
        for id in ids {
            let instance = self.instances.get_mut(&id).expect("listed above");
            instance.generation = 0;
            if instance.running.is_empty() {
                self.stop(id);
            }
            // Nothing else is given to it that would end a pause.
            self.resume_all(now, id);
        }
    }

    fn is_up(&self, name: &FunctionName) -> bool {
        self.instances.values().any(|i| i.function == *name && self.takes_work(i))
    }

    fn takes_work(&self, instance: &Instance) -> bool {
        let current = self.functions.get(&instance.function).is_some_and(|f| f.generation == instance.generation);
        current && !instance.ending
    }

    fn said(&mut self, now: Instant, from: InstanceId, mut message: FromRunner) {
        self.heard(now, from);
        if message == FromRunner::Alive {
            self.settle_due(now, from);
            if !self.is_alive(now, from) {
                self.blame(from, "it says too often that it is alive".to_owned());
            }
            return;
        }
        if let FromRunner::Threads { count } = message {
            if !self.threads(from, count) {
                self.blame(from, "it computes on more cores than it may".to_owned());
            }
            return;
        }
        let job = message.id().and_then(|ticket| Some((ticket, self.jobs.get_mut(&ticket)?)));
        let Some((ticket, job)) =
            job.filter(|(_, job)| matches!(job.state, State::Running { instance, .. } if instance == from))
        else {
            return self.blame(from, "it spoke of a request that it does not have".to_owned());
        };
        job.spoke |= matches!(message, FromRunner::Text { .. });
        match job.bytes_left.checked_sub(midway_bytes(&message)) {
            Some(left) => job.bytes_left = left,
            None => return self.blame(from, "it said more than was asked for".to_owned()),
        }
        if let Err(why) = self.believe(from, ticket, &mut message) {
            return self.blame(from, why.to_owned());
        }
        let last = message.is_last();
        self.count(now, from, ticket, &message);
        if last {
            // Its bill is final before its end is told.
            self.leave_work(now, from, ticket);
        }
        let Some(job) = self.jobs.get_mut(&ticket) else { return };
        match job.events.try_send(Event::Reply(message)) {
            Err(flume::TrySendError::Full(_)) => self.blame(from, "it said more than was asked for".to_owned()),
            // Gone without its cancel only while that is on its way.
            _ if last => self.done(now, ticket, from),
            _ => {}
        }
    }

    fn done(&mut self, now: Instant, ticket: Ticket, from: InstanceId) {
        let Some(job) = self.forget(ticket) else { return };
        let (serves, function) = (job.work != Work::Wake, self.functions.get_mut(&job.function));
        if let (State::Running { since, .. }, Some(function), true) = (job.state, function, serves) {
            let took = now - since;
            function.service = Some(function.service.map_or(took, |mean| (mean * 7 + took) / 8));
        }
        if serves {
            self.works(&job.function);
        }
        self.rest(now, from);
    }

    /// Takes every step that can be taken now.
    fn advance(&mut self, now: Instant) {
        loop {
            // Operators go first: what they wait for is not taken by a wake.
            let wanted = self.ledger.is_wanted() && self.grant();
            let names: Vec<_> =
                self.functions.iter().filter(|(_, f)| !f.waiting.is_empty()).map(|(n, _)| n.clone()).collect();
            let views: Vec<_> = names.iter().map(|name| self.view(name, &self.functions[name])).collect();
            if names.is_empty() && self.batch == 0 {
                return self.spread_cores();
            }
            let bytes = if wanted { 0 } else { self.memory().free() };
            let free = self.free(bytes);
            let step = admit::next_step(&views, free);
            if self.batch > 0 && !step.is_some_and(|step| is_urgent(&views, step)) && self.preempt(now, free) {
                continue;
            }
            match step {
                None => return self.spread_cores(),
                Some(Step::Share { function }) => {
                    return self.share_cores(now, self.want(&self.functions[&names[function]].config));
                }
                Some(Step::MakeRoom { .. }) if wanted => return,
                Some(Step::MakeRoom { function }) => {
                    if !self.make_room(&names[function]) {
                        return;
                    }
                }
                Some(Step::Wake { function }) => self.wake(now, &names[function]),
                Some(Step::Dispatch { function, instance }) => {
                    let id = self.ready(&names[function]).nth(instance).map(|(id, _)| *id).expect("as in the view");
                    self.dispatch(now, &names[function], id);
                }
            }
        }
    }

    fn ready<'a>(&'a self, name: &'a FunctionName) -> impl Iterator<Item = (&'a InstanceId, &'a Instance)> {
        self.instances.iter().filter(move |(_, i)| i.function == *name && self.takes_work(i))
    }

    fn view(&self, name: &FunctionName, function: &Function) -> admit::Function {
        let waking = self.wakes.values().filter(|w| w.function == *name && w.generation == function.generation);
        let class = function.waiting.class().unwrap_or_default();
        let next = function.waiting.next().and_then(|ticket| self.jobs.get(&ticket));
        let found = |instance: &Instance| next.map_or(0, |job| instance.begun.found(&job.trail));
        admit::Function {
            class,
            oldest: function.waiting.oldest(class).and_then(|ticket| self.jobs.get(&ticket)).map(|job| job.came),
            waiting: function.waiting.len(),
            first: function.waiting.count(class),
            wake_bytes: self.wake_bytes(function),
            waking: waking.count(),
            slots: function.slots,
            instances_max: if function.health.backs_off() { 0 } else { function.config.instances_max },
            instances: self.ready(name).map(|(_, i)| self.instance_view(i, found(i))).collect(),
        }
    }

    /// Cores that an instance can use.
    fn want(&self, config: &FunctionConfig) -> u32 {
        config.threads_on(self.cores)
    }

    fn wake(&mut self, now: Instant, name: &FunctionName) {
        let function = &self.functions[name];
        let want = self.want(&function.config);
        let cores = Cores::new(self.lease(name, want), want, self.cores);
        self.wake_ids += 1;
        let (memory_bytes, weights) = (function.config.spec.lease_bytes(), function.config.spec.model);
        let generation = function.generation;
        let wake = Wake { function: name.clone(), generation, cores, memory_bytes, weights, began: now };
        let spec = Box::new(function.config.spec_on(self.cores));
        self.wakes.insert(self.wake_ids, wake);
        if let Some(function) = self.functions.get_mut(name) {
            function.image.hold(None);
        }
        self.unhold(name);
        self.effects.push(Effect::Wake { wake: self.wake_ids, spec });
    }

    fn dispatch(&mut self, now: Instant, name: &FunctionName, id: InstanceId) {
        self.take_cores(id);
        let function = self.functions.get_mut(name).expect("has a waiting job");
        let ticket = function.waiting.pop().expect("has a waiting job");
        let timeout = function.config.timeout;
        self.join_work(now, id, ticket);
        let instance = self.instances.get_mut(&id).expect("chosen from those that are ready");
        let job = self.jobs.get_mut(&ticket).expect("a waiting job exists");
        let waited = now - job.came;
        let wake = if instance.up_since > job.came { waited.min(instance.woke_in) } else { Duration::ZERO };
        let dispatched = Dispatched {
            tier: if job.found_up { Tier::Running } else { instance.woken_from },
            queue_us: (waited - wake).as_micros() as u64,
            wake_us: wake.as_micros() as u64,
            memory_bytes: instance.memory_bytes,
            model: Arc::clone(&instance.model),
        };
        drop(job.events.try_send(Event::Dispatched(dispatched)));
        job.state = State::Running { instance: id, since: now };
        job.had_slot = true;
        job.claim = None;
        instance.running.push(ticket);
        instance.begun.begin(&job.trail, instance.slots as usize);
        let is_text = matches!(job.work, Work::Generate(_));
        match job.message(now, ticket) {
            Some(message) => {
                let limit = job.run_limit(now, timeout);
                if job.terms.class == Class::Interactive {
                    self.pause(now, id);
                }
                self.effects.push(Effect::Send { instance: id, message });
                self.clear_idle(id);
                if is_text {
                    self.listen(now, id);
                }
                self.set_timer(ticket, Timer::Run(ticket), now + limit + HANG_GRACE);
            }
            None => {
                self.leave_work(now, id, ticket);
                self.done(now, ticket, id);
            }
        }
    }
}

impl Function {
    /// When a slot may be free for a newcomer.
    fn retry_after_s(&self) -> u64 {
        let mean = self.service.unwrap_or(Duration::from_secs(1));
        let ahead = self.waiting.len() as u32 / self.slots.max(1) + 1;
        (mean * ahead).as_secs().clamp(1, 120)
    }

    fn wake_p50_ms(&self) -> Option<u64> {
        let mut sorted: Vec<_> = self.wakes_ms.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }
}

/// Whether an input is a runner's in the middle of its work, which frees nothing that somebody could wait for. There are as
/// many as tokens.
fn is_midway(input: &Input) -> bool {
    let midway = |message: &FromRunner| {
        matches!(message, FromRunner::Text { .. } | FromRunner::Started { .. } | FromRunner::Alive)
    };
    matches!(input, Input::Said { message, .. } if midway(message))
}

#[cfg(test)]
mod tests;
