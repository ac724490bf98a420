//! A warden and runners that only take time, and the memory that they hold.
//!
//! ```text
//!  requests, what is under way ──the next of both──▶ simulate::Simulation ──Act──▶ under way: a wake, a run, an end
//!                                                         └── its own timers ◀──────────────┘
//! ```
//!
//! Invariants: what happens at one time happens in the order in which it was begun; memory is counted up to the last
//! request, so that a policy which holds things longer than the trace lasts is not charged for what others never face.

use crate::{
    costs::{Costs, Machine},
    policy::Named,
    report::{Report, Tally},
    trace::{Request, Trace, Work},
    turns::Order,
};
use appliance_pool::{
    FunctionConfig,
    simulate::{self, Act, Simulation, Woken},
};
use appliance_types::{FunctionName, KeyName, Tier};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::Duration,
};

/// 2026-01-05, a Monday, at midnight.
const BEGINS_UNIX_S: u64 = 1_767_571_200;

/// Something under way, that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Wake { wake: u64, function: u32, tier: Tier },
    Run { ticket: u64, instance: u64 },
    Exit { instance: u64 },
}

/// A function as the warden sees it.
#[derive(Clone, Debug)]
struct Function {
    snapshot: bool,
    image: bool,
    waking: u32,
    instances: u32,
    busy: u32,
    /// Memory is counted up to here.
    counted: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Instance {
    function: u32,
    running: u32,
}

struct World<'w> {
    trace: &'w Trace,
    machine: &'w Machine,
    costs: &'w Costs,
    simulation: Simulation,
    now: Duration,
    begun: u64,
    under_way: BinaryHeap<Reverse<(Duration, u64, End)>>,
    functions: Vec<Function>,
    instances: HashMap<u64, Instance>,
    instances_made: u64,
    tally: Tally,
}

/// What a policy costs on a trace, of whose waiting requests the next is taken in some order.
pub(crate) fn run(trace: &Trace, machine: &Machine, costs: &Costs, policy: &Named, order: Order) -> Report {
    let mut world = World::new(trace, machine, costs, policy);
    for function in 0..trace.functions {
        let acts = world.simulation.configure(config(function, machine, policy), costs.weight_bytes);
        world.take(acts);
    }
    for (ticket, request) in trace.requests.iter().enumerate() {
        world.pass_until(request.at);
        let key = (order == Order::Turns && !trace.keys.is_empty()).then(|| key(request.key));
        let acts = world.simulation.submit(request.at, ticket as u64, name(request.function), key);
        world.take(acts);
    }
    world.finish()
}

fn name(function: u32) -> FunctionName {
    format!("f{function}").parse().expect("a letter and digits are a name")
}

/// A key by its number, since a trace may call it what it likes.
fn key(key: u32) -> KeyName {
    format!("k{key}").parse().expect("a letter and digits are a name")
}

fn config(function: u32, machine: &Machine, policy: &Named) -> FunctionConfig {
    FunctionConfig {
        spec: simulate::spec(name(function), function, machine.lease_bytes, machine.cpus, machine.slots),
        instances_min: 0,
        instances_max: machine.instances_max as usize,
        queue_max: machine.queue_max as usize,
        queue_timeout: machine.queue_timeout,
        keep_warm: policy.running,
        park: policy.parked,
        provisioned: Vec::new(),
        timeout: Duration::from_secs(86_400),
    }
}

impl<'w> World<'w> {
    fn new(trace: &'w Trace, machine: &'w Machine, costs: &'w Costs, policy: &Named) -> Self {
        // A deploy takes a snapshot.
        let deployed =
            Function { snapshot: true, image: false, waking: 0, instances: 0, busy: 0, counted: Duration::ZERO };
        Self {
            trace,
            machine,
            costs,
            simulation: Simulation::new(machine.cores, machine.memory_bytes, BEGINS_UNIX_S, policy.policy),
            now: Duration::ZERO,
            begun: 0,
            under_way: BinaryHeap::new(),
            functions: vec![deployed; trace.functions as usize],
            instances: HashMap::new(),
            instances_made: 0,
            tally: Tally::new(policy.name, trace),
        }
    }

    /// Does all that happens up to `end`.
    fn pass_until(&mut self, end: Duration) {
        while let Some(next) = self.next().filter(|next| *next <= end) {
            self.step(next);
        }
        self.now = end;
    }

    /// When something happens by itself.
    fn next(&self) -> Option<Duration> {
        let ends = self.under_way.peek().map(|Reverse((at, ..))| *at);
        [ends, self.simulation.next_due()].into_iter().flatten().min()
    }

    fn step(&mut self, at: Duration) {
        self.now = self.now.max(at);
        let acts = match self.under_way.peek() {
            Some(Reverse((ends, ..))) if *ends <= at => {
                let Some(Reverse((.., end))) = self.under_way.pop() else { return };
                self.end(end)
            }
            _ => self.simulation.tick(self.now),
        };
        self.take(acts);
    }

    /// Lets all that waits or runs come to its end.
    fn finish(mut self) -> Report {
        let last = self.now;
        while self.tally.is_open() {
            let Some(next) = self.next() else { break };
            self.step(next);
        }
        for function in 0..self.functions.len() as u32 {
            self.count(function, last);
        }
        self.tally.report()
    }

    fn begin(&mut self, takes: Duration, end: End) {
        self.begun += 1;
        self.under_way.push(Reverse((self.now + takes, self.begun, end)));
    }

    fn take(&mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Wake { wake, function } => self.wake(wake, number(&function)),
                Act::Run { ticket, instance, tier } => self.run(ticket, instance, tier),
                Act::Stop(instance) => self.begin(self.costs.stop, End::Exit { instance }),
                Act::Store(function) => {
                    self.change(number(&function), |f| f.image = false);
                    let acts = self.simulation.stored(self.now, function);
                    self.take(acts);
                }
                Act::Refused(ticket, _) => self.tally.refused(self.trace.requests[ticket as usize].key),
            }
        }
    }

    fn wake(&mut self, wake: u64, function: u32) {
        let state = &self.functions[function as usize];
        let (tier, takes) = match (state.image, state.snapshot) {
            (true, _) => (Tier::Parked, self.costs.parked_wake),
            (false, true) => (Tier::Stored, self.costs.stored_wake),
            (false, false) => (Tier::Cold, self.costs.cold_wake),
        };
        self.change(function, |f| f.waking += 1);
        self.begin(takes, End::Wake { wake, function, tier });
    }

    fn run(&mut self, ticket: u64, id: u64, tier: Tier) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        instance.running += 1;
        let (function, first) = (instance.function, instance.running == 1);
        self.change(function, |f| f.busy += u32::from(first));
        let Request { at, key, work, .. } = self.trace.requests[ticket as usize];
        let (to_first_token, takes) = self.times(work);
        self.tally.served(tier, key, self.now - at, to_first_token);
        self.begin(takes, End::Run { ticket, instance: id });
    }

    /// From a request's beginning to its first token, and to its end.
    fn times(&self, work: Work) -> (Duration, Duration) {
        match work {
            Work::Tokens { prompt, output } => {
                let first = self.costs.prefill_token * prompt;
                (first, first + self.costs.decode_token * output)
            }
            Work::Time(time) => (Duration::ZERO, time),
            Work::Unknown => (Duration::ZERO, self.costs.service),
        }
    }

    fn end(&mut self, end: End) -> Vec<Act> {
        match end {
            End::Wake { wake, function, tier } => {
                self.change(function, |f| {
                    (f.waking, f.instances) = (f.waking - 1, f.instances + 1);
                    (f.image, f.snapshot) = (true, true);
                });
                self.instances_made += 1;
                let instance = self.instances_made;
                self.instances.insert(instance, Instance { function, running: 0 });
                self.tally.woken();
                let woken = Woken { instance, tier, slots: self.machine.slots, image_bytes: self.costs.image_bytes };
                self.simulation.woken(self.now, wake, woken)
            }
            End::Run { ticket, instance } => {
                if let Some(Instance { function, running }) = self.instances.get_mut(&instance) {
                    *running -= 1;
                    let (function, idle) = (*function, *running == 0);
                    self.change(function, |f| f.busy -= u32::from(idle));
                }
                self.tally.finished();
                self.simulation.finished(self.now, ticket, instance)
            }
            End::Exit { instance } => {
                if let Some(gone) = self.instances.remove(&instance) {
                    self.change(gone.function, |f| f.instances -= 1);
                }
                self.simulation.exited(self.now, instance)
            }
        }
    }

    fn change(&mut self, function: u32, change: impl FnOnce(&mut Function)) {
        self.count(function, self.now);
        change(&mut self.functions[function as usize]);
    }

    /// Counts what a function has held until now.
    fn count(&mut self, function: u32, until: Duration) {
        let until = until.min(self.trace.length());
        let state = &mut self.functions[function as usize];
        let time = until.saturating_sub(state.counted);
        state.counted += time;
        let (held, wasted) = state.bytes(self.costs);
        self.tally.held(held, wasted, time);
    }
}

impl Function {
    /// What it holds, and how much of that does nothing for anybody.
    fn bytes(&self, costs: &Costs) -> (u64, u64) {
        let present = self.instances + self.waking;
        // One that is parked has a spare.
        let own = costs.own_bytes * u64::from(if self.image { present.max(1) } else { present });
        let image = if self.image || present > 0 { costs.image_bytes } else { 0 };
        let weights = if present > 0 { costs.weight_bytes } else { 0 };
        let at_work = self.busy + self.waking;
        let idle = costs.own_bytes * u64::from(present.saturating_sub(at_work));
        let held = own + image + weights;
        (held, if at_work > 0 { idle } else { held })
    }
}

fn number(function: &FunctionName) -> u32 {
    function.as_str()[1..].parse().expect("it was named by this file")
}
