//! What the scheduler does by itself: instances kept, woken ahead and sent away, and the time that each tier is held.
//!
//! ```text
//!  every input but a piece of text ──▶ follow: concurrency, gaps ──▶ plan: when to look again
//!                                                                         │ 250 ms while it may change something,
//!                                                                         │ a window's edge, a second after a try
//!  stop what is too much ◀── look ◀───────────────────────────────────────┘
//!  wake what is missing  ◀──┘
//! ```
//!
//! Invariants: where nothing runs and no window of the week nears, nothing ticks; what the manifest writes is obeyed; an
//! instance is woken unasked only where cores and memory are free and nobody waits for them. Waking ahead is for functions
//! whose wake takes longer than a tick: a shorter one, begun when a request finds no slot, is over before a tick would
//! have seen the need.

use super::{Function, Input, InstanceId, Scheduler, Timer};
use appliance_scale::{
    Bounds, Gaps, Kpa, TICK,
    hold::{self, Costs, Hold, Price},
    schedule,
};
use appliance_types::FunctionName;
use sandbox_wire::runner::FromRunner;
use std::time::{Duration, Instant};

/// Between two tries to have as many instances as are kept.
const RETRY: Duration = Duration::from_secs(1);
/// Longest until a window's edge is looked for again: the wall clock may have been set.
const EDGE_WAIT_MAX: Duration = Duration::from_secs(3600);
/// Share of its model's bytes that an image takes which is not known yet: about that of the two models in which it was
/// measured.
const IMAGE_SHARE: u64 = 4;

/// What holds for all functions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// What memory is worth.
    pub(crate) price: Price,
    /// What was wanted within that is kept.
    pub(crate) scale_down_delay: Duration,
    /// Functions that wake faster than that are not woken ahead.
    pub(crate) ahead_over: Duration,
}

impl Default for Rules {
    /// A millisecond of a caller's time is worth 200 MiB·s: twelve dollars an hour, with memory at Lambda's list price.
    fn default() -> Self {
        Self { price: Price(0.005), scale_down_delay: Duration::from_secs(15), ahead_over: TICK }
    }
}

/// A function's past, as far as it decides.
#[derive(Debug, Default)]
pub(super) struct Past {
    kpa: Option<Kpa>,
    gaps: Gaps,
    /// Requests that run or wait.
    concurrency: u32,
    idle_since: Option<Instant>,
    last_wake: Option<Duration>,
    /// When it was last woken to have as many instances as are kept.
    tried: Option<Instant>,
    /// It was stopped by hand: nothing is kept up until it is called.
    stopped: bool,
    /// An operator has moved it, to memory too: it stays there for the longest, until it is called.
    moved: bool,
    /// Instances that were kept when that was last looked at.
    kept: usize,
}

impl Past {
    /// What is left of it when its function is deployed again.
    pub(super) fn redeployed(self) -> Self {
        Self { stopped: false, tried: None, ..self }
    }

    /// A wake took so long.
    pub(super) fn woke(&mut self, took: Duration) {
        self.last_wake = Some(took);
    }

    fn may_try_at(&self) -> Option<Instant> {
        self.tried.map(|tried| tried + RETRY)
    }

    fn follow(&mut self, now: Instant, concurrency: u32, delay: Duration) {
        self.kpa.get_or_insert_with(|| Kpa::new(now, delay)).observe(now, concurrency);
        let called = concurrency > self.concurrency;
        self.stopped &= !called;
        self.moved &= !called;
        match (self.concurrency, concurrency) {
            (0, 1..) => {
                if let Some(since) = self.idle_since.take() {
                    self.gaps.record(now.saturating_duration_since(since));
                }
            }
            (1.., 0) => self.idle_since = Some(now),
            _ => {}
        }
        self.concurrency = concurrency;
    }
}

impl Scheduler {
    /// Same, by other rules than the server's.
    pub(crate) fn with_rules(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }

    /// Says what the wall clock shows at `now`, seconds since 1970.
    pub(crate) fn set_wall(&mut self, now: Instant, unix_s: u64) {
        self.wall = Some((now, unix_s));
    }

    /// The function that an input moves; `None` for pieces of text, of which there are many, and for what moves none.
    pub(super) fn moved_by(&self, input: &Input) -> Option<FunctionName> {
        let of = |id: &InstanceId| self.instances.get(id).map(|instance| instance.function.clone());
        match input {
            Input::Configure(config) => Some(config.spec.function.clone()),
            Input::Remove(name) | Input::Retire(name) | Input::Hold(name, _) => Some(name.clone()),
            Input::Submit { function, .. } => Some(function.clone()),
            Input::Cancel(ticket) => self.jobs.get(ticket).map(|job| job.function.clone()),
            Input::Woken { wake, .. } => self.wakes.get(wake).map(|wake| wake.function.clone()),
            Input::Said { message: FromRunner::Text { .. } | FromRunner::Started { .. }, .. } => None,
            Input::Said { instance, .. } | Input::Lost { instance, .. } | Input::Exited { instance, .. } => {
                of(instance)
            }
            Input::Stored(name) | Input::Storing(name) => Some(name.clone()),
            Input::Lived { .. } => None,
            Input::Place { .. } | Input::List(_) | Input::Reserve { .. } | Input::Release(_) | Input::Pressed(_) => {
                None
            }
        }
    }

    /// Takes note of what a function does now, and of when to look again.
    pub(super) fn follow(&mut self, now: Instant, name: &FunctionName) {
        let running: usize = self.instances.values().filter(|i| i.function == *name).map(|i| i.running.len()).sum();
        let delay = self.rules.scale_down_delay;
        if let Some(function) = self.functions.get_mut(name) {
            let concurrency = (running + function.waiting.len()) as u32;
            function.past.follow(now, concurrency, delay);
        }
        self.plan(now);
    }

    /// Nothing is kept up of a function that was stopped by hand.
    pub(super) fn stopped_by_hand(&mut self, name: &FunctionName) {
        if let Some(function) = self.functions.get_mut(name) {
            function.past.stopped = true;
            function.past.moved = true;
        }
    }

    /// An operator has it held in memory.
    pub(super) fn held_by_hand(&mut self, name: &FunctionName) {
        if let Some(function) = self.functions.get_mut(name) {
            function.past.moved = true;
        }
    }

    /// For how long a function is held from now on, if nobody calls.
    pub(super) fn holding(&self, name: &FunctionName) -> Hold {
        let Some(function) = self.functions.get(name) else {
            return Hold { running: Duration::ZERO, parked: Duration::ZERO };
        };
        let config = &function.config;
        hold::choose(&function.past.gaps, &self.costs(function), self.rules.price, config.keep_warm, config.park)
    }

    /// For how long a function without an instance is held in memory. One that lost its instance before its time of running
    /// was over has what was left of that too.
    pub(super) fn parking(&self, now: Instant, name: &FunctionName) -> Duration {
        let Hold { running, parked } = self.holding(name);
        match self.functions.get(name) {
            Some(function) if function.past.moved => function.config.park.most(),
            Some(function) if !function.config.park.is_exact() => {
                let idle =
                    function.past.idle_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
                parked + running.saturating_sub(idle)
            }
            _ => parked,
        }
    }

    /// What it costs to wake a function and to hold it. An instance's own memory, beside its image and its model, is left
    /// out: it is small (S3), and what is promised to it is taken back when others need it.
    fn costs(&self, function: &Function) -> Costs {
        let weights = self.length(&function.config.spec.model);
        let parked_bytes = function.image.known().unwrap_or(weights / IMAGE_SHARE);
        let (parked_wake, stored_wake) = function.worth.wakes();
        Costs { parked_wake, stored_wake, running_bytes: weights + parked_bytes, parked_bytes }
    }

    /// Instances that are kept now, called or not.
    pub(super) fn instances_kept(&self, now: Instant, function: &Function) -> usize {
        if function.past.stopped {
            return 0;
        }
        let config = &function.config;
        let in_window = self.unix_s(now).map_or(0, |unix_s| schedule::min_at(&config.provisioned, unix_s));
        config.instances_min.max(in_window as usize).min(config.instances_max)
    }

    /// Looks at every function that may need more instances or fewer.
    pub(super) fn look(&mut self, now: Instant) {
        self.scale_due = None;
        let moving: Vec<_> =
            self.functions.iter().filter(|(_, f)| f.may_move()).map(|(name, _)| name.clone()).collect();
        for name in moving {
            self.scale(now, &name);
        }
    }

    fn scale(&mut self, now: Instant, name: &FunctionName) {
        let (up, waking) = self.present(name);
        let function = self.functions.get(name).expect("listed by the caller");
        let kept = self.instances_kept(now, function);
        let bounds = Bounds { min: kept as u32, max: function.config.instances_max as u32 };
        let (slots, exact) = (function.slots, function.config.keep_warm.is_exact());
        let past = &mut self.functions.get_mut(name).expect("looked up above").past;
        past.kept = kept;
        let kpa = past.kpa.as_mut();
        let wanted = kpa.map_or(bounds.min, |kpa| kpa.desired(now, up as u32, slots, bounds)) as usize;
        if up + waking < kept {
            self.keep_up(now, name, kept - up - waking);
        } else if wanted > up + waking {
            self.wake_ahead(now, name, wanted - up - waking);
        } else if !exact {
            self.send_away(name, up.saturating_sub(wanted.max(kept).max(1)));
        }
        if up > kept {
            self.rest_again(now, name);
        }
    }

    /// Wakes what the manifest keeps up, at most once a second.
    fn keep_up(&mut self, now: Instant, name: &FunctionName, missing: usize) {
        let function = self.functions.get_mut(name).expect("looked up by the caller");
        if function.past.may_try_at().is_some_and(|at| at > now) {
            return;
        }
        function.past.tried = Some(now);
        self.wake_up_to(now, name, missing);
    }

    fn wake_ahead(&mut self, now: Instant, name: &FunctionName, missing: usize) {
        if self.pays_ahead(&self.functions[name].past) {
            self.wake_up_to(now, name, missing);
        }
    }

    fn pays_ahead(&self, past: &Past) -> bool {
        past.last_wake.is_some_and(|took| took >= self.rules.ahead_over)
    }

    /// Wakes as many as there is room for that nobody waits for.
    fn wake_up_to(&mut self, now: Instant, name: &FunctionName, missing: usize) {
        let someone_waits = self.functions.values().any(|function| !function.waiting.is_empty());
        if someone_waits || self.ledger.is_wanted() || self.functions[name].health.backs_off() {
            return;
        }
        for _ in 0..missing {
            if self.free(0).cores == 0 || self.wake_bytes(&self.functions[name]) > self.memory().free() {
                return;
            }
            self.wake(now, name);
        }
    }

    /// Stops so many of those that are idle, the one that would stop first before the others.
    fn send_away(&mut self, name: &FunctionName, surplus: usize) {
        let idle = self.ready(name).filter(|(_, i)| i.running.is_empty());
        let mut idle: Vec<_> = idle.map(|(id, i)| (i.idle_stop, *id)).collect();
        idle.sort_unstable();
        for (_, id) in idle.into_iter().take(surplus) {
            self.stop(id);
        }
    }

    /// Those that were kept and are not any more stop when nobody calls, as all others do.
    fn rest_again(&mut self, now: Instant, name: &FunctionName) {
        let kept = self.ready(name).filter(|(_, i)| i.running.is_empty() && i.idle_stop.is_none());
        let kept: Vec<_> = kept.map(|(id, _)| *id).collect();
        for id in kept {
            self.rest(now, id);
        }
    }

    /// Sets the time at which to look again, or none.
    pub(super) fn plan(&mut self, now: Instant) {
        let moving = self.functions.iter().filter(|(_, function)| function.may_move());
        let due = moving.filter_map(|(name, function)| self.look_at(now, name, function)).min();
        // A tick that is set already is not put off by what happens before it.
        let due = match (due, self.scale_due) {
            (Some(due), Some(set)) if set > now => Some(due.min(set)),
            (due, _) => due,
        };
        if due != self.scale_due {
            if let Some(set) = std::mem::replace(&mut self.scale_due, due) {
                self.timers.remove(&(set, Timer::Scale));
            }
            self.timers.extend(due.map(|due| (due, Timer::Scale)));
        }
    }

    fn look_at(&self, now: Instant, name: &FunctionName, function: &Function) -> Option<Instant> {
        let (up, waking) = self.present(name);
        let (config, past) = (&function.config, &function.past);
        let kept = self.instances_kept(now, function);
        let at_work = past.concurrency > 0 || waking > 0;
        let decides = !config.keep_warm.is_exact();
        let may_wake = at_work && (decides || self.pays_ahead(past));
        let ticks = config.instances_max > 1 && (may_wake || decides && up > kept.max(1));
        let retry = (up + waking < kept).then(|| past.may_try_at().unwrap_or(now).max(now));
        [ticks.then(|| now + TICK), retry, self.next_edge(now, function)].into_iter().flatten().min()
    }

    /// When a window of the function begins or ends.
    fn next_edge(&self, now: Instant, function: &Function) -> Option<Instant> {
        let unix_s = self.unix_s(now)?;
        let next = schedule::next_change(&function.config.provisioned, unix_s)?;
        Some(now + Duration::from_secs(next - unix_s).min(EDGE_WAIT_MAX))
    }

    fn unix_s(&self, now: Instant) -> Option<u64> {
        let (at, unix_s) = self.wall?;
        Some(unix_s.saturating_add(now.saturating_duration_since(at).as_secs()))
    }

    /// Instances that take requests, and those that will.
    fn present(&self, name: &FunctionName) -> (usize, usize) {
        let generation = self.functions.get(name).map(|function| function.generation);
        let waking = self.wakes.values().filter(|w| w.function == *name && Some(w.generation) == generation);
        (self.ready(name).count(), waking.count())
    }
}

impl Function {
    /// Whether it may ever have more instances than one that a request wakes.
    fn may_move(&self) -> bool {
        let config = &self.config;
        config.instances_max > 1 || config.instances_min > 0 || !config.provisioned.is_empty()
    }
    /// Instances that do not give way: those that were kept when that was last looked at.
    pub(super) fn kept(&self) -> usize {
        self.past.kept.max(self.config.instances_min)
    }
}

#[cfg(test)]
mod tests;
