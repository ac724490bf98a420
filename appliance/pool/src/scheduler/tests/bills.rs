//! What requests are billed when runners lie, die, or outlive their callers. Time is the server's, whatever they say.

use super::*;
use crate::tab::Used;
use sandbox_wire::runner::{Constraint, FinishReason, Finished, Generate, Prompt, Sampling};

const CAP: u64 = 1 << 20;

fn generate() -> Work {
    Work::Generate(Box::new(Generate {
        prompt: Prompt::Text("x".to_owned()),
        sampling: Sampling::greedy(),
        stop: Vec::new(),
        tokens_max: 20,
        deadline_ms: 60_000,
        constraint: Constraint::None,
        tools: None,
        logprobs: None,
        tenant: None,
    }))
}

struct Machine {
    scheduler: Scheduler,
    now: Instant,
}

impl Machine {
    /// A function of one slot, and nothing up.
    fn new() -> Self {
        let (mut scheduler, now) = (Scheduler::new(2, u64::MAX), Instant::now());
        scheduler.handle(now, Input::Configure(Box::new(config(8))));
        Self { scheduler, now }
    }

    fn passes(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    fn put(&mut self, input: Input) {
        self.scheduler.handle(self.now, input);
    }

    fn submit(&mut self, ticket: Ticket) -> (Arc<Tab>, flume::Receiver<Event>) {
        let (tab, work) = (Arc::<Tab>::default(), generate());
        let (sender, events) = flume::bounded(work.replies_max() + 3);
        let terms = Terms { key: Some("k".parse().unwrap()), ..Terms::default() };
        self.put(Input::Submit { ticket, function: name(), work, terms, tab: Arc::clone(&tab), events: sender });
        (tab, events)
    }

    fn woken(&mut self, wake: WakeId, instance: InstanceId) {
        super::wake(&mut self.scheduler, self.now, wake, instance);
    }

    fn says(&mut self, instance: InstanceId, message: FromRunner) {
        self.put(Input::Said { instance, message });
    }

    fn system(&mut self) -> System {
        self.scheduler.settle_all(self.now);
        *self.scheduler.books.of(&name())
    }
}

/// Nothing was fed, produced, or took any time.
fn nothing(reason: FinishReason) -> Finished {
    Finished { reason, prompt_tokens: 0, cached_tokens: 0, completion_tokens: 0, prefill_us: 0, decode_us: 0 }
}

fn piece(id: Ticket) -> FromRunner {
    FromRunner::Text { id, text: Text { text: "several letters".to_owned(), tokens: 0, logprobs: Vec::new() } }
}

fn times(used: Used) -> (u64, u64) {
    (used.wake.us / 1_000, used.run.us / 1_000)
}

#[test]
fn a_runner_that_claims_nothing_or_everything_changes_no_bill() {
    for claim in [0, u32::MAX] {
        let mut machine = Machine::new();
        let (tab, events) = machine.submit(1);
        machine.passes(30);
        machine.woken(1, 7);
        machine.says(7, FromRunner::Started { id: 1, prompt_tokens: claim, cached_tokens: claim });
        (0..5).for_each(|_| {
            machine.passes(100);
            machine.says(7, piece(1));
        });
        let us = u64::from(claim) * 1_000;
        let finished =
            Finished { completion_tokens: claim, prefill_us: us, decode_us: us, ..nothing(FinishReason::Stop) };
        machine.says(7, FromRunner::Finished { id: 1, finished });
        assert!(events.try_iter().last().is_some_and(|e| matches!(e, Event::Reply(m) if m.is_last())));
        machine.passes(250);
        let used = tab.close(machine.now);
        assert_eq!(times(used), (30, 500), "final when its end is told");
        assert_eq!(used.total().reserved_byte_us, 530_000 * u128::from(CAP));
        assert_eq!((machine.system().idle.us, machine.system().life.us), (250_000, 780_000));
    }
}

#[test]
fn two_that_wait_for_a_wake_share_it_and_the_second_runs_alone() {
    let mut machine = Machine::new();
    let (first, _first) = machine.submit(1);
    machine.passes(20);
    let (second, _second) = machine.submit(2);
    machine.passes(20);
    machine.woken(1, 7);
    machine.passes(10);
    machine.says(7, FromRunner::Finished { id: 1, finished: nothing(FinishReason::Stop) });
    machine.passes(5);
    machine.says(7, FromRunner::Finished { id: 2, finished: nothing(FinishReason::Stop) });
    // They waited 40 ms and 20 ms for 40 ms of waking.
    assert_eq!(times(first.close(machine.now)), (26, 10));
    assert_eq!(times(second.close(machine.now)), (13, 5));
}

#[test]
fn what_is_tried_again_is_paid_once_and_the_dead_instance_by_the_box() {
    let mut machine = Machine::new();
    let (tab, _events) = machine.submit(1);
    machine.passes(30);
    machine.woken(1, 7);
    machine.passes(50);
    machine.put(Input::Exited { instance: 7, cause: ExitCause::Signal(9) });
    machine.passes(40);
    machine.woken(2, 8);
    machine.passes(60);
    machine.says(8, FromRunner::Finished { id: 1, finished: nothing(FinishReason::Stop) });
    assert_eq!(times(tab.close(machine.now)), (40, 60));
    let system = machine.system();
    assert_eq!((system.waste.us, system.idle.us, system.life.us), (80_000, 0, 180_000));
}

#[test]
fn a_caller_that_leaves_pays_until_then_and_the_box_for_the_rest() {
    let mut machine = Machine::new();
    let (tab, events) = machine.submit(1);
    machine.woken(1, 7);
    machine.passes(70);
    assert_eq!(times(tab.close(machine.now)), (0, 70));
    drop(events);
    machine.put(Input::Cancel(1));
    machine.passes(30);
    machine.says(7, FromRunner::Finished { id: 1, finished: nothing(FinishReason::Cancelled) });
    let system = machine.system();
    assert_eq!((system.waste.us, system.idle.us, system.life.us), (30_000, 0, 100_000));
}
