//! The scheduler under a warden that answers in any order.

use super::*;
use crate::{
    job::{Event, FunctionConfig, Terms, Work},
    scheduler::{Input, Ticket, WakeId},
};
use appliance_scale::hold::Term;
use appliance_types::Task;
use proptest::prelude::*;
use sandbox_wire::{
    runner::{FromRunner, ModelInfo, ToRunner},
    warden::{Awake, ExitCause, WakeParts},
};

const MODEL_BYTES: u64 = 10;
const LEASE: u64 = 20;
const IMAGE: u64 = 4;

fn name(function: usize) -> FunctionName {
    format!("f{function}").parse().unwrap()
}

fn spec(function: usize) -> RunnerSpec {
    // Two and two share a model.
    let model = ModelDigest::from_bytes([function as u8 / 2; 32]);
    RunnerSpec {
        function: name(function),
        model,
        task: Task::Chat,
        memory_bytes: LEASE,
        reserved_bytes: None,
        cpus: 1,
        context_tokens: 64,
        slots: 1,
        system: None,
    }
}

fn config(function: usize) -> FunctionConfig {
    let second = Duration::from_secs(1);
    FunctionConfig {
        spec: spec(function),
        instances_min: 0,
        instances_max: 2,
        queue_max: 100,
        queue_timeout: second * 1000,
        keep_warm: Term::Exactly(second * 2000),
        park: Term::Exactly(second * 3000),
        provisioned: Vec::new(),
        timeout: second * 900,
    }
}

/// A scheduler, and a warden with runners that do what they are told to when they are told to.
struct World {
    scheduler: Scheduler,
    now: Instant,
    wakes: Vec<(WakeId, FunctionName)>,
    running: Vec<(InstanceId, Ticket)>,
    stopping: Vec<InstanceId>,
    storing: Vec<FunctionName>,
    jobs: Vec<flume::Receiver<Event>>,
    instances: InstanceId,
}

impl World {
    fn new(memory: u64, functions: usize) -> Self {
        let mut scheduler = Scheduler::new(2, memory);
        let now = Instant::now();
        for function in 0..functions {
            scheduler.learn(spec(function).model, MODEL_BYTES);
            scheduler.handle(now, Input::Configure(Box::new(config(function))));
        }
        Self {
            scheduler,
            now,
            wakes: Vec::new(),
            running: Vec::new(),
            stopping: Vec::new(),
            storing: Vec::new(),
            jobs: Vec::new(),
            instances: 0,
        }
    }

    fn put(&mut self, input: Input) {
        for effect in self.scheduler.handle(self.now, input) {
            match effect {
                super::super::Effect::Wake { wake, spec } => self.wakes.push((wake, spec.function)),
                super::super::Effect::Send { instance, message: ToRunner::Detokenize { id, .. } } => {
                    self.running.push((instance, id));
                }
                super::super::Effect::Send { .. } | super::super::Effect::Cores { .. } => {}
                super::super::Effect::Stop(instance) => self.stopping.push(instance),
                super::super::Effect::Store(function) => self.storing.push(function),
            }
        }
        let Memory { usable, held, .. } = self.scheduler.memory();
        assert!(held <= usable, "{held} of {usable} bytes are held");
    }

    fn ask(&mut self, function: usize) {
        let (sender, events) = flume::bounded(4);
        let ticket = self.jobs.len() as Ticket;
        self.jobs.push(events);
        let work = Work::Detokenize(vec![1]);
        self.put(Input::Submit {
            ticket,
            function: name(function),
            work,
            terms: Terms::default(),
            tab: std::sync::Arc::default(),
            events: sender,
        });
    }

    fn woken(&mut self, which: usize) {
        let (wake, _) = self.wakes.remove(which);
        self.instances += 1;
        let model = ModelInfo { slots: 1, ..ModelInfo::default() };
        let (instance, tier) = (self.instances, Tier::Stored);
        let awake = Awake {
            instance,
            tier,
            wake_us: 1,
            parts: WakeParts::default(),
            cpu_before_us: 0,
            threads: 1,
            image_bytes: IMAGE,
            model,
        };
        self.put(Input::Woken { wake, result: Ok(awake) });
    }

    fn answered(&mut self, which: usize) {
        let (instance, id) = self.running.remove(which);
        self.put(Input::Said { instance, message: FromRunner::Rendered { id, text: String::new() } });
    }

    fn exited(&mut self, which: usize) {
        let instance = self.stopping.remove(which);
        self.put(Input::Exited { instance, cause: ExitCause::Stopped });
    }

    fn stored(&mut self, which: usize) {
        let function = self.storing.remove(which);
        self.put(Input::Stored(function));
    }

    /// The next thing that somebody does, of those that wait to be done; `false` when there is none.
    fn act(&mut self, choice: usize) -> bool {
        let lengths = [self.wakes.len(), self.running.len(), self.stopping.len(), self.storing.len()];
        let Some(mut at) = choice.checked_rem(lengths.iter().sum()) else { return false };
        let acts = [Self::woken, Self::answered, Self::exited, Self::stored];
        for (length, act) in lengths.into_iter().zip(acts) {
            if at < length {
                act(self, at);
                return true;
            }
            at -= length;
        }
        unreachable!("the choice is within the sum")
    }

    fn reserve(&mut self, id: HoldId, function: usize) -> flume::Receiver<Result<(), Failed>> {
        let (reply, granted) = flume::bounded(1);
        self.put(Input::Reserve { id, spec: Box::new(spec(function)), model_bytes: MODEL_BYTES, reply });
        granted
    }

    fn last(&self, job: usize) -> Option<Event> {
        self.jobs[job].drain().last()
    }
}

/// What one instance takes, with its model and an image that is not known yet.
const WHOLE: u64 = MODEL_BYTES + LEASE + LEASE / 2;

#[test]
fn an_idle_instance_and_its_image_give_way() {
    let mut world = World::new(WHOLE, 4);
    world.ask(0);
    world.woken(0);
    world.answered(0);
    world.ask(2);
    assert!(world.wakes.is_empty() && world.stopping == [1], "the idle one goes first");
    world.exited(0);
    while world.act(0) {}
    assert!(matches!(world.last(1), Some(Event::Reply(_))));
    assert_eq!(world.scheduler.functions[&name(0)].image.state, ImageState::None, "it needed that too");
}

#[test]
fn who_is_busy_does_not_give_way() {
    let mut world = World::new(WHOLE + 5, 4);
    world.ask(0);
    world.woken(0);
    world.ask(2);
    assert!(world.stopping.is_empty() && world.wakes.is_empty());
    while world.act(0) {}
    assert!(matches!(world.last(1), Some(Event::Reply(_))));
}

#[test]
fn a_model_is_counted_once() {
    let mut world = World::new(WHOLE + WHOLE - MODEL_BYTES, 2);
    world.ask(0);
    world.ask(1);
    assert_eq!(world.wakes.len(), 2);
    assert_eq!(world.scheduler.memory().free(), 0);
}

#[test]
fn what_is_on_disk_only_takes_nothing_and_its_wake_what_it_may() {
    let mut world = World::new(2 * WHOLE, 1);
    world.put(Input::Hold(name(0), 0));
    world.put(Input::Storing(name(0)));
    assert_eq!(world.scheduler.memory().held, 0);
    world.put(Input::Stored(name(0)));
    world.ask(0);
    assert_eq!(world.scheduler.memory().held, WHOLE, "its image is not known to be nothing");
    world.woken(0);
    assert_eq!(world.scheduler.memory().held, MODEL_BYTES + LEASE + IMAGE);
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    let mut world = World::new(WHOLE - 1, 1);
    world.ask(0);
    let (need_bytes, total_bytes) = (WHOLE, WHOLE - 1);
    assert_eq!(world.last(0), Some(Event::Failed(Failed::TooLarge { need_bytes, total_bytes })));
    let refused = world.reserve(1, 0).try_recv();
    assert_eq!(refused, Ok(Err(Failed::TooLarge { need_bytes, total_bytes })));
}

#[test]
fn an_operator_waits_for_memory_and_nobody_takes_it_from_him() {
    let mut world = World::new(WHOLE + 5, 4);
    world.ask(0);
    world.woken(0);
    let granted = world.reserve(1, 2);
    world.ask(3);
    assert!(granted.is_empty() && world.wakes.is_empty());
    world.answered(0);
    assert_eq!(world.stopping, [1]);
    world.exited(0);
    while granted.is_empty() {
        assert!(world.act(0));
    }
    assert!(world.wakes.is_empty(), "what is granted is held");
    world.put(Input::Release(1));
    while world.act(0) {}
    assert!(matches!(world.last(1), Some(Event::Reply(_))));
}

#[test]
fn an_operator_does_not_wait_for_ever() {
    let mut world = World::new(WHOLE + 5, 4);
    world.ask(0);
    let granted = world.reserve(1, 2);
    let due = world.scheduler.next_due().unwrap();
    assert_eq!(due, world.now + super::super::RESERVE_WAIT);
    world.scheduler.tick(due);
    assert!(matches!(granted.try_recv(), Ok(Err(Failed::QueueTimeout { waited_ms: 60_000, .. }))));
}

#[test]
fn what_is_idle_gives_way_while_the_host_is_short_of_memory() {
    let mut world = World::new(2 * WHOLE, 4);
    for function in [0, 2] {
        world.ask(function);
        world.woken(0);
        world.answered(0);
    }
    let free = world.scheduler.memory().free();
    let effects = world.scheduler.handle(world.now, Input::Pressed(50));
    assert!(effects.contains(&super::super::Effect::Stop(1)), "who was called first: {effects:?}");
    let later = world.now + PRESSURE_LASTS;
    assert_eq!(world.scheduler.next_due(), Some(later));
    world.scheduler.tick(later);
    assert_eq!(world.scheduler.memory().free(), free, "it is over");
}

proptest! {
    /// Whatever is asked, and in whatever order the warden and the runners do their part: what is held fits (checked at
    /// every step), and everybody is answered in the end.
    #[test]
    fn memory_is_never_overcommitted_and_nobody_starves(
        memory in WHOLE..4 * WHOLE,
        events in prop::collection::vec((0_usize..8, any::<usize>()), 1..120),
    ) {
        let mut world = World::new(memory, 4);
        let mut held = None;
        for (event, choice) in events {
            match event {
                0..4 => world.ask(event),
                4 if held.is_none() => held = Some(world.reserve(HoldId::MAX, choice % 4)),
                5 if held.take().is_some() => world.put(Input::Release(HoldId::MAX)),
                _ => drop(world.act(choice)),
            }
        }
        world.put(Input::Release(HoldId::MAX));
        while world.act(0) {}
        for job in 0..world.jobs.len() {
            prop_assert!(matches!(world.last(job), Some(Event::Reply(_))), "request {}", job);
        }
    }
}
