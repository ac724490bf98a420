//! Instances of several functions on few cores.

use super::*;
use crate::{
    job::{Event, FunctionConfig, Terms, Work},
    scheduler::{Input, Ticket},
};
use appliance_scale::hold::Term;
use appliance_types::{ModelDigest, Task, Tier};
use proptest::prelude::*;
use sandbox_wire::{
    runner::{FromRunner, ModelInfo},
    warden::{Awake, RunnerSpec, WakeParts},
};
use std::{collections::BTreeMap, time::Duration};

fn name(function: u64) -> FunctionName {
    format!("f{function}").parse().unwrap()
}

fn config(function: u64, cpus: u32) -> FunctionConfig {
    let spec = RunnerSpec {
        function: name(function),
        model: ModelDigest::from_bytes([0; 32]),
        task: Task::Chat,
        memory_bytes: 1,
        reserved_bytes: None,
        cpus,
        context_tokens: 64,
        slots: 1,
        system: None,
    };
    let hour = Duration::from_secs(3600);
    FunctionConfig {
        spec,
        instances_min: 0,
        instances_max: 1,
        queue_max: 100,
        queue_timeout: hour,
        keep_warm: Term::Exactly(hour),
        park: Term::Exactly(hour),
        provisioned: Vec::new(),
        timeout: hour,
    }
}

/// A scheduler whose functions each have an idle instance of the same number, and what the runners know.
struct World {
    scheduler: Scheduler,
    now: Instant,
    cores: u32,
    /// Threads that each runner uses.
    threads: BTreeMap<InstanceId, u32>,
    /// What each was told and has not looked at yet.
    told: BTreeMap<InstanceId, Vec<ToRunner>>,
    /// What each works on.
    running: BTreeMap<InstanceId, Ticket>,
    tickets: Ticket,
    events: Vec<flume::Receiver<Event>>,
}

impl World {
    fn new(cores: u32, wants: &[u32]) -> Self {
        let (scheduler, now) = (Scheduler::new(cores, u64::MAX), Instant::now());
        let (threads, told, running) = Default::default();
        let mut world = Self { scheduler, now, cores, threads, told, running, tickets: 0, events: Vec::new() };
        for (function, cpus) in (0..).zip(wants) {
            world.put(Input::Configure(Box::new(config(function, *cpus))));
            world.submit(function, Work::Wake);
            let model = ModelInfo { slots: 1, ..ModelInfo::default() };
            let (tier, threads) = (Tier::Parked, (*cpus).min(cores));
            let awake = Awake {
                instance: function,
                tier,
                wake_us: 1,
                parts: WakeParts::default(),
                cpu_before_us: 0,
                threads,
                image_bytes: 0,
                model,
            };
            world.threads.insert(function, threads);
            world.put(Input::Woken { wake: function + 1, result: Ok(awake) });
        }
        world
    }

    fn put(&mut self, input: Input) {
        for effect in self.scheduler.handle(self.now, input) {
            if let Effect::Send { instance, message } = effect {
                self.told.entry(instance).or_default().push(message);
            }
        }
        let scheduler = &self.scheduler;
        let leases = scheduler.instances.values().filter(|i| scheduler.computes(i)).map(|i| &i.cores);
        let mut held = CoreSet::new();
        for Cores { lease, on, .. } in leases {
            assert_eq!(on.len() as u32, *lease);
            assert!(on.iter().all(|core| *core < self.cores && held.insert(*core)), "{on:?} {held:?}");
        }
    }

    fn submit(&mut self, function: u64, work: Work) {
        let (sender, events) = flume::bounded(4);
        self.events.push(events);
        self.tickets += 1;
        let (ticket, function) = (self.tickets, name(function));
        self.put(Input::Submit {
            ticket,
            function,
            work,
            terms: Terms::default(),
            tab: std::sync::Arc::default(),
            events: sender,
        });
    }

    fn ask(&mut self, function: u64) {
        self.submit(function, Work::Detokenize(vec![1]));
    }

    /// A runner looks at all that it was told.
    fn listen(&mut self, runner: InstanceId) {
        for message in self.told.remove(&runner).unwrap_or_default() {
            match message {
                ToRunner::Threads { count } => {
                    self.threads.insert(runner, count);
                    self.put(Input::Said { instance: runner, message: FromRunner::Threads { count } });
                }
                ToRunner::Detokenize { id, .. } => drop(self.running.insert(runner, id)),
                other => panic!("{other:?}"),
            }
            let used: u32 = self.running.keys().map(|runner| self.threads[runner]).sum();
            assert!(used <= self.cores, "{used} threads compute on {} cores", self.cores);
        }
    }

    fn answer(&mut self, runner: InstanceId) {
        if let Some(id) = self.running.remove(&runner) {
            let message = FromRunner::Rendered { id, text: String::new() };
            self.put(Input::Said { instance: runner, message });
        }
    }

    fn listen_all(&mut self) {
        while let Some((&runner, _)) = self.told.iter().find(|(_, told)| !told.is_empty()) {
            self.listen(runner);
        }
    }

    fn computing(&self) -> Vec<(InstanceId, u32)> {
        self.running.keys().map(|runner| (*runner, self.threads[runner])).collect()
    }
}

#[test]
fn who_is_alone_has_all_and_two_have_half_each() {
    let mut world = World::new(2, &[2, 2]);
    world.ask(0);
    world.listen_all();
    assert_eq!(world.computing(), [(0, 2)]);
    world.ask(1);
    assert!(!world.told.contains_key(&1), "it waits until a core is free");
    world.listen_all();
    assert_eq!(world.computing(), [(0, 1), (1, 1)]);
    world.answer(0);
    world.listen_all();
    assert_eq!(world.computing(), [(1, 2)], "what is free is used");
}

#[test]
fn cores_go_back_and_forth_and_who_is_alone_is_never_moved() {
    let mut world = World::new(2, &[2, 2]);
    let on = |world: &World, id| world.scheduler.instances[&id].cores.on.iter().copied().collect::<Vec<_>>();
    for runner in [0, 1, 0] {
        world.ask(runner);
        world.listen_all();
        assert_eq!(on(&world, runner), [0, 1]);
        world.answer(runner);
    }
    world.ask(0);
    world.listen_all();
    world.ask(1);
    world.listen_all();
    assert_eq!((on(&world, 0), on(&world, 1)), (vec![0], vec![1]));
    world.answer(0);
    assert_eq!((on(&world, 0), on(&world, 1)), (vec![0, 1], vec![0, 1]), "who is at rest may begin anywhere");
    world.listen_all();
}

#[test]
fn who_wants_less_leaves_the_rest() {
    let mut world = World::new(8, &[2, 8, 8]);
    (0..3).for_each(|function| world.ask(function));
    world.listen_all();
    assert_eq!(world.computing(), [(0, 2), (1, 3), (2, 3)]);
}

#[test]
fn more_than_there_are_cores_take_turns() {
    let mut world = World::new(2, &[2, 2, 2]);
    (0..3).for_each(|function| world.ask(function));
    world.listen_all();
    assert_eq!(world.computing(), [(0, 1), (1, 1)]);
    world.answer(1);
    world.listen_all();
    assert_eq!(world.computing(), [(0, 1), (2, 1)]);
}

#[test]
fn a_runner_that_keeps_its_cores_or_takes_more_loses_its_instance() {
    let mut world = World::new(2, &[2, 2]);
    world.ask(0);
    world.listen_all();
    world.ask(1);
    let due = world.now + crate::scheduler::HANG_GRACE;
    assert!(world.scheduler.tick(due).contains(&Effect::Stop(0)));

    let mut world = World::new(2, &[1]);
    let message = FromRunner::Threads { count: 2 };
    assert_eq!(world.scheduler.handle(world.now, Input::Said { instance: 0, message }), [Effect::Stop(0)]);
}

proptest! {
    /// Whatever is asked, and whenever runners listen: never more threads compute than there are cores (checked each time
    /// that one listens), and everybody is served.
    #[test]
    fn cores_are_never_oversubscribed_and_nobody_starves(
        cores in 1_u32..5, wants in prop::collection::vec(1_u32..6, 1..5),
        events in prop::collection::vec((0_u8..3, 0_u64..5), 1..80),
    ) {
        let mut world = World::new(cores, &wants);
        for (event, which) in events {
            let which = which % wants.len() as u64;
            match event {
                0 => world.ask(which),
                1 => world.listen(which),
                _ => world.answer(which),
            }
        }
        for _ in 0..1000 {
            world.listen_all();
            let Some(&runner) = world.running.keys().next() else { break };
            world.answer(runner);
        }
        let stuck = || world.scheduler.instances.iter().map(|(id, i)| (*id, i.running.clone(), i.cores.clone())).collect::<Vec<_>>();
        prop_assert!(world.scheduler.jobs.is_empty(), "{:?}", stuck());
        prop_assert_eq!(world.scheduler.free(0).cores, cores);
    }
}
