//! What the scheduler does by itself, and that it does nothing where nothing is to be done.

use super::*;
use crate::{
    job::FunctionConfig,
    simulate::{Act, Policy, Simulation, Woken, spec},
};
use appliance_scale::hold::Term;
use appliance_types::{Provisioned, Tier, Weekday};

const SECOND: Duration = Duration::from_secs(1);
const FREE: Term = Term::Within { least: Duration::from_secs(10), most: Duration::from_secs(60) };

fn name() -> FunctionName {
    "f".parse().unwrap()
}

fn config(instances_max: usize) -> FunctionConfig {
    FunctionConfig {
        spec: spec(name(), 0, 1 << 20, 1, 1),
        instances_min: 0,
        instances_max,
        queue_max: 64,
        queue_timeout: SECOND * 30,
        keep_warm: FREE,
        park: Term::Within { least: Duration::ZERO, most: SECOND * 900 },
        provisioned: Vec::new(),
        timeout: SECOND * 900,
    }
}

/// A simulation whose wakes take the given time and whose requests end when they are told to.
struct World {
    simulation: Simulation,
    now: Duration,
    wake: Duration,
    waking: Vec<(Duration, u64)>,
    up: Vec<u64>,
    running: Vec<(u64, u64)>,
    stored: usize,
    tickets: u64,
    wakes: u64,
}

impl World {
    fn new(config: FunctionConfig, wake: Duration) -> Self {
        // Wednesday, 1970-01-07, at midnight.
        let mut simulation = Simulation::new(16, 1 << 30, 6 * 86_400, Policy::default());
        let acts = simulation.configure(config, 94 << 20);
        let mut world = Self {
            simulation,
            now: Duration::ZERO,
            wake,
            waking: Vec::new(),
            up: Vec::new(),
            running: Vec::new(),
            stored: 0,
            tickets: 0,
            wakes: 0,
        };
        world.take(acts);
        world
    }

    fn take(&mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Wake { wake, .. } => self.waking.push((self.now + self.wake, wake)),
                Act::Run { ticket, instance, .. } => self.running.push((ticket, instance)),
                Act::Stop(instance) => {
                    self.up.retain(|up| *up != instance);
                    let acts = self.simulation.exited(self.now, instance);
                    self.take(acts);
                }
                Act::Store(function) => {
                    self.stored += 1;
                    let acts = self.simulation.stored(self.now, function);
                    self.take(acts);
                }
                Act::Refused(ticket, failed) => panic!("{ticket}: {failed}"),
            }
        }
    }

    /// Lets time pass.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let woken = self.waking.iter().map(|(at, _)| *at).min();
            let due = self.simulation.next_due();
            let Some(next) = [woken, due].into_iter().flatten().min().filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            let acts = if woken == Some(next) {
                let first = self.waking.iter().position(|(at, _)| *at == next).unwrap();
                let (_, wake) = self.waking.remove(first);
                self.wakes += 1;
                self.up.push(self.wakes);
                let woken = Woken { instance: self.wakes, tier: Tier::Stored, slots: 1, image_bytes: 20 << 20 };
                self.simulation.woken(self.now, wake, woken)
            } else {
                self.simulation.tick(self.now)
            };
            self.take(acts);
        }
        self.now = end;
    }

    fn ask(&mut self) {
        self.tickets += 1;
        let acts = self.simulation.submit(self.now, self.tickets, name(), None);
        self.take(acts);
    }

    fn answer_all(&mut self) {
        for (ticket, instance) in std::mem::take(&mut self.running) {
            let acts = self.simulation.finished(self.now, ticket, instance);
            self.take(acts);
        }
    }
}

const FAST: Duration = Duration::from_millis(120);
const DEAR: Duration = Duration::from_millis(900);

#[test]
fn a_function_of_one_instance_never_ticks() {
    let mut world = World::new(config(1), FAST);
    assert_eq!(world.simulation.next_due(), None);
    world.ask();
    world.pass(SECOND);
    assert!(world.simulation.next_due().unwrap() > SECOND * 29, "the request's own limits alone");
    world.answer_all();
    assert!(world.simulation.next_due().unwrap() >= world.now + SECOND * 10);
}

#[test]
fn instances_that_a_burst_left_go_before_their_time_and_the_ticks_with_them() {
    let mut world = World::new(config(4), FAST);
    (0..4).for_each(|_| world.ask());
    world.pass(SECOND);
    assert_eq!(world.up.len(), 4);
    world.answer_all();
    world.pass(SECOND * 9);
    assert_eq!(world.up.len(), 4, "the burst is not forgotten yet");
    world.pass(SECOND * 200);
    assert_eq!((world.up.len(), world.stored), (0, 0), "it is parked");
    world.pass(SECOND * 900);
    assert_eq!((world.stored, world.simulation.next_due()), (1, None));
}

#[test]
fn a_function_whose_wake_is_dear_is_woken_ahead() {
    for (wake, expected) in [(FAST, 1), (DEAR, 2)] {
        let mut world = World::new(config(2), wake);
        world.ask();
        world.pass(SECOND * 10);
        assert_eq!(world.up.len(), expected, "one slot of one is more than seventy percent");
    }
}

#[test]
fn what_is_kept_is_woken_at_once_and_again_after_it_was_lost() {
    let mut world = World::new(FunctionConfig { instances_min: 2, ..config(3) }, FAST);
    world.pass(SECOND / 2);
    assert_eq!(world.up.len(), 2);
    let lost = world.up.remove(0);
    let acts = world.simulation.exited(world.now, lost);
    world.take(acts);
    world.pass(SECOND * 2);
    assert_eq!(world.up.len(), 2);
    world.pass(SECOND * 10_000);
    assert_eq!((world.up.len(), world.simulation.next_due()), (2, None), "nothing ticks while all are there");
}

#[test]
fn what_was_stopped_by_hand_stays_so_until_it_is_called() {
    let mut world = World::new(FunctionConfig { instances_min: 2, ..config(3) }, FAST);
    world.pass(SECOND);
    world.ask();
    let acts = world.simulation.stop(world.now, name());
    world.take(acts);
    world.pass(SECOND);
    world.answer_all();
    world.pass(SECOND * 100);
    assert_eq!(world.up.len(), 0, "also after what ran has ended");
    world.ask();
    world.pass(SECOND);
    world.answer_all();
    world.pass(SECOND * 100);
    assert_eq!(world.up.len(), 2);
}

#[test]
fn a_kept_instance_that_cannot_be_woken_is_tried_again_after_longer_and_longer_pauses() {
    let mut world = World::new(FunctionConfig { instances_min: 1, ..config(1) }, FAST);
    let mut tries = 0;
    for _ in 0..400 {
        world.now += Duration::from_millis(25);
        let acts = world.simulation.tick(world.now);
        for act in acts {
            let Act::Wake { wake, .. } = act else { panic!("{act:?}") };
            tries += 1;
            let acts = world.simulation.wake_failed(world.now, wake);
            assert_eq!(acts, []);
        }
    }
    assert_eq!(tries, 5, "in ten seconds: at once, after 1 s, and after pauses of 1, 2 and 4 s");
}

#[test]
fn a_window_of_the_week_wakes_and_lets_go() {
    let [from, to] = ["08:00", "09:00"].map(|time| time.parse().unwrap());
    let window = Provisioned { from, to, days: vec![Weekday::Wed], min: 2 };
    let mut world = World::new(FunctionConfig { provisioned: vec![window], ..config(4) }, FAST);
    world.pass(SECOND * (8 * 3600 - 1));
    assert_eq!(world.up.len(), 0);
    world.pass(SECOND * 2);
    assert_eq!(world.up.len(), 2);
    world.pass(SECOND * 3590);
    assert_eq!(world.up.len(), 2);
    world.pass(SECOND * 100);
    assert_eq!(world.up.len(), 0);
    world.pass(SECOND * 86_400);
    assert_eq!((world.up.len(), world.wakes), (0, 2), "not on Thursday");
}

#[test]
fn a_function_called_every_five_minutes_does_not_run_in_between_and_stays_parked() {
    let mut world = World::new(config(1), FAST);
    for _ in 0..20 {
        world.ask();
        world.pass(SECOND);
        world.answer_all();
        world.pass(SECOND * 299);
    }
    assert_eq!((world.wakes, world.stored), (20, 0));
    world.ask();
    world.pass(SECOND);
    world.answer_all();
    world.pass(SECOND * 10);
    assert_eq!(world.up.len(), 0, "ten seconds are enough");
}

#[test]
fn what_is_parked_before_its_time_is_not_stored_before_that_would_have_been() {
    let chatter = || {
        let mut world = World::new(config(1), FAST);
        for _ in 0..20 {
            world.ask();
            world.pass(SECOND);
            world.answer_all();
            world.pass(SECOND);
        }
        world
    };
    let mut world = chatter();
    let lost = world.up.pop().unwrap();
    let acts = world.simulation.exited(world.now, lost);
    world.take(acts);
    world.pass(SECOND * 8);
    assert_eq!(world.stored, 0, "it would still run");
    world.pass(SECOND * 2);
    assert_eq!(world.stored, 1, "nobody was ever away for so long");

    let mut world = chatter();
    let acts = world.simulation.stop(world.now, name());
    world.take(acts);
    let acts = world.simulation.hold(world.now, name(), 20 << 20);
    world.take(acts);
    world.pass(SECOND * 899);
    assert_eq!(world.stored, 0, "an operator parked it");
    world.pass(SECOND * 2);
    assert_eq!(world.stored, 1);
}
