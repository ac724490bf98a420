//! The scheduler on a clock of its own, for whoever wants to know what the server would do without a server.
//!
//! Time is what the caller says, counted from the beginning. What the scheduler wants done comes back as [`Act`]s, and
//! whoever drives it says what became of them. Each request is one that a runner answers with a single message.

use crate::{
    job::{Event, Failed, FunctionConfig, Terms, Work},
    scheduler::{Effect, Input, Rules, Scheduler, Ticket},
};
use appliance_scale::hold::Price;
use appliance_types::{FunctionName, KeyName, ModelDigest, Task, Tier};
use sandbox_wire::{
    runner::{FromRunner, ModelInfo, ToRunner},
    warden::{Awake, ExitCause, InstanceId, RunnerSpec, WakeParts, WardenError},
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// What differs between policies, apart from the functions' own terms.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// What memory is worth; where it is worth nothing, all is held for the longest that it may be.
    pub price: Price,
    /// What was wanted within that is kept.
    pub scale_down_delay: Duration,
    /// Functions that wake faster than that are not woken ahead.
    pub ahead_over: Duration,
}

impl Default for Policy {
    /// The server's.
    fn default() -> Self {
        let Rules { price, scale_down_delay, ahead_over } = Rules::default();
        Self { price, scale_down_delay, ahead_over }
    }
}

/// What the scheduler wants done, or tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// Wake an instance; answered by [`Simulation::woken`].
    Wake {
        /// The wake's number.
        wake: u64,
        /// Whose instance.
        function: FunctionName,
    },
    /// Run a request; answered by [`Simulation::finished`].
    Run {
        /// The request.
        ticket: u64,
        /// Where.
        instance: u64,
        /// Where the request found its function.
        tier: Tier,
    },
    /// End an instance; answered by [`Simulation::exited`].
    Stop(u64),
    /// Give a function's memory back; answered by [`Simulation::stored`].
    Store(FunctionName),
    /// A request is not served.
    Refused(u64, Failed),
}

/// The scheduler, driven by hand.
#[derive(Debug)]
pub struct Simulation {
    scheduler: Scheduler,
    began: Instant,
    waiting: BTreeMap<Ticket, flume::Receiver<Event>>,
}

impl Simulation {
    /// A server of nothing with so many inference cores and bytes, that begins at `unix_s`.
    pub fn new(cores: u32, memory_bytes: u64, unix_s: u64, policy: Policy) -> Self {
        let Policy { price, scale_down_delay, ahead_over } = policy;
        let rules = Rules { price, scale_down_delay, ahead_over };
        let began = Instant::now();
        let mut scheduler = Scheduler::new(cores, memory_bytes).with_rules(rules);
        scheduler.set_wall(began, unix_s);
        Self { scheduler, began, waiting: BTreeMap::new() }
    }

    /// Deploys a function at the beginning, whose model has `weight_bytes`.
    pub fn configure(&mut self, config: FunctionConfig, weight_bytes: u64) -> Vec<Act> {
        self.scheduler.learn(config.spec.model, weight_bytes);
        self.put(Duration::ZERO, Input::Configure(Box::new(config)))
    }

    /// A request of a key comes.
    pub fn submit(&mut self, at: Duration, ticket: u64, function: FunctionName, key: Option<KeyName>) -> Vec<Act> {
        let (work, terms) = (Work::Detokenize(Vec::new()), Terms { key, ..Terms::default() });
        let (events, receiver) = flume::bounded(work.events_max());
        self.waiting.insert(ticket, receiver);
        self.put(at, Input::Submit { ticket, function, work, terms, tab: Arc::default(), events })
    }

    /// A wake has made an instance that does `slots` requests at once, and found its function in `tier`.
    pub fn woken(&mut self, at: Duration, wake: u64, woken: Woken) -> Vec<Act> {
        let Woken { instance, tier, slots, image_bytes } = woken;
        let model = ModelInfo { slots, ..ModelInfo::default() };
        let awake = Awake {
            instance,
            tier,
            wake_us: 0,
            parts: WakeParts::default(),
            cpu_before_us: 0,
            threads: 0,
            image_bytes,
            model,
        };
        self.put(at, Input::Woken { wake, result: Ok(awake) })
    }

    /// An operator has a function's instances end.
    pub fn stop(&mut self, at: Duration, function: FunctionName) -> Vec<Act> {
        self.put(at, Input::Retire(function))
    }

    /// An operator has a function of so many bytes held in memory.
    pub fn hold(&mut self, at: Duration, function: FunctionName, image_bytes: u64) -> Vec<Act> {
        self.put(at, Input::Hold(function, image_bytes))
    }

    /// A wake has failed.
    pub fn wake_failed(&mut self, at: Duration, wake: u64) -> Vec<Act> {
        let reason = "simulated".to_owned();
        self.put(at, Input::Woken { wake, result: Err(WardenError::LoadFailed { reason }) })
    }

    /// A request has run.
    pub fn finished(&mut self, at: Duration, ticket: u64, instance: InstanceId) -> Vec<Act> {
        let message = FromRunner::Rendered { id: ticket, text: String::new() };
        self.put(at, Input::Said { instance, message })
    }

    /// An instance that was to end has ended.
    pub fn exited(&mut self, at: Duration, instance: u64) -> Vec<Act> {
        self.put(at, Input::Exited { instance, cause: ExitCause::Stopped })
    }

    /// A function that was to be stored is.
    pub fn stored(&mut self, at: Duration, function: FunctionName) -> Vec<Act> {
        self.put(at, Input::Stored(function))
    }

    /// When [`tick`](Self::tick) wants to be called.
    pub fn next_due(&self) -> Option<Duration> {
        self.scheduler.next_due().map(|due| due.saturating_duration_since(self.began))
    }

    /// Lets the scheduler do what is due.
    pub fn tick(&mut self, at: Duration) -> Vec<Act> {
        let effects = self.scheduler.tick(self.began + at);
        self.acts(at, effects)
    }

    fn put(&mut self, at: Duration, input: Input) -> Vec<Act> {
        let effects = self.scheduler.handle(self.began + at, input);
        self.acts(at, effects)
    }

    fn acts(&mut self, at: Duration, effects: Vec<Effect>) -> Vec<Act> {
        let mut acts = Vec::new();
        let mut told = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send { instance, message: ToRunner::Threads { count } } => told.push((instance, count)),
                effect => acts.extend(self.act(effect)),
            }
        }
        // A runner gives cores back as soon as it is told to.
        for (instance, count) in told {
            acts.extend(self.put(at, Input::Said { instance, message: FromRunner::Threads { count } }));
        }
        acts.extend(self.waiting.extract_if(.., |_, events| !events.is_empty()).filter_map(|(ticket, events)| {
            match events.try_recv() {
                Ok(Event::Failed(failed)) => Some(Act::Refused(ticket, failed)),
                _ => None,
            }
        }));
        acts
    }

    fn act(&mut self, effect: Effect) -> Option<Act> {
        match effect {
            Effect::Wake { wake, spec } => Some(Act::Wake { wake, function: spec.function }),
            Effect::Send { instance, message: ToRunner::Detokenize { id: ticket, .. } } => {
                match self.waiting.remove(&ticket)?.try_recv() {
                    Ok(Event::Dispatched(how)) => Some(Act::Run { ticket, instance, tier: how.tier }),
                    _ => None,
                }
            }
            Effect::Send { .. } | Effect::Cores { .. } => None,
            Effect::Stop(instance) => Some(Act::Stop(instance)),
            Effect::Store(function) => Some(Act::Store(function)),
        }
    }
}

/// An instance that woke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Woken {
    /// Its number.
    pub instance: u64,
    /// Where its wake found the function.
    pub tier: Tier,
    /// Requests that it does at once.
    pub slots: u32,
    /// Bytes of the function's image.
    pub image_bytes: u64,
}

/// A function for simulations: its name, a model of its own, and what its instances may use.
pub fn spec(function: FunctionName, number: u32, memory_bytes: u64, cpus: u32, slots: u32) -> RunnerSpec {
    let mut model = [0; 32];
    model[..4].copy_from_slice(&number.to_le_bytes());
    RunnerSpec {
        function,
        model: ModelDigest::from_bytes(model),
        task: Task::Chat,
        memory_bytes,
        reserved_bytes: None,
        cpus,
        context_tokens: 2048,
        slots,
        system: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use appliance_scale::hold::Term;

    const SECOND: Duration = Duration::from_secs(1);

    fn config(keep_warm: Term, instances_max: usize) -> FunctionConfig {
        FunctionConfig {
            spec: spec("f".parse().unwrap(), 0, 1 << 20, 1, 1),
            instances_min: 0,
            instances_max,
            queue_max: 8,
            queue_timeout: SECOND * 30,
            keep_warm,
            park: Term::Exactly(SECOND * 100),
            provisioned: Vec::new(),
            timeout: SECOND * 900,
        }
    }

    fn simulation(config: FunctionConfig, policy: Policy) -> Simulation {
        let mut simulation = Simulation::new(4, 1 << 30, 0, policy);
        simulation.configure(config, 94 << 20);
        simulation
    }

    fn woken(instance: u64) -> Woken {
        Woken { instance, tier: Tier::Stored, slots: 1, image_bytes: 20 << 20 }
    }

    #[test]
    fn a_request_goes_all_the_way_and_nothing_ticks_in_between() {
        let mut simulation = simulation(config(Term::Exactly(SECOND * 60), 4), Policy::default());
        let function: FunctionName = "f".parse().unwrap();
        let acts = simulation.submit(SECOND, 1, function.clone(), None);
        assert_eq!(acts, [Act::Wake { wake: 1, function: function.clone() }]);
        let acts = simulation.woken(SECOND * 2, 1, woken(7));
        assert_eq!(acts, [Act::Run { ticket: 1, instance: 7, tier: Tier::Stored }]);
        assert_eq!(simulation.finished(SECOND * 3, 1, 7), []);
        assert_eq!(simulation.next_due(), Some(SECOND * 63));
        assert_eq!(simulation.tick(SECOND * 63), [Act::Stop(7)]);
        assert_eq!(simulation.exited(SECOND * 63, 7), []);
        assert_eq!(simulation.next_due(), Some(SECOND * 163));
        assert_eq!(simulation.tick(SECOND * 163), [Act::Store(function.clone())]);
        assert_eq!(simulation.stored(SECOND * 163, function), []);
        assert_eq!(simulation.next_due(), None);
    }

    #[test]
    fn a_request_that_waits_too_long_is_refused() {
        let mut simulation = simulation(config(Term::Exactly(SECOND), 1), Policy::default());
        simulation.submit(SECOND, 1, "f".parse().unwrap(), None);
        let acts = simulation.tick(SECOND * 31);
        assert!(matches!(acts[..], [Act::Refused(1, Failed::QueueTimeout { .. })]), "{acts:?}");
    }
}
