//! What requests are billed when runners lie, die, or outlive their callers. Time is the server's, whatever they say.

use super::*;
use crate::tab::Used;
use sandbox_wire::runner::{Constraint, FinishReason, Finished, Generate, Message, Prompt, Role, Sampling, Tenant};

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
        self.submit_work(ticket, generate())
    }

    fn submit_work(&mut self, ticket: Ticket, work: Work) -> (Arc<Tab>, flume::Receiver<Event>) {
        let tab = Arc::<Tab>::default();
        let (sender, events) = flume::bounded(work.events_max());
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

fn started(id: Ticket, prompt_tokens: u32, cached_tokens: u32) -> FromRunner {
    FromRunner::Started { id, prompt_tokens, cached_tokens }
}

/// What was heard of the prompt's tokens, and whether it had to be corrected.
fn heard(events: &flume::Receiver<Event>) -> (Vec<(u32, u32)>, bool) {
    let all: Vec<_> = events.try_iter().collect();
    let counts = all.iter().filter_map(|event| match event {
        Event::Reply(FromRunner::Started { prompt_tokens, cached_tokens, .. }) => {
            Some((*prompt_tokens, *cached_tokens))
        }
        Event::Reply(FromRunner::Finished { finished, .. }) => Some((finished.prompt_tokens, finished.cached_tokens)),
        _ => None,
    });
    (counts.collect(), all.contains(&Event::Corrected))
}

#[test]
fn what_was_found_in_the_cache_was_asked_there_before() {
    let mut machine = Machine::new();
    machine.scheduler.handle(machine.now, Input::Configure(Box::new(config(1))));
    let words = |first: &str| format!("{first} {}", "word ".repeat(39));
    let mut ask = |ticket, prompt: &str, tokens, cached| {
        let Work::Generate(mut generate) = generate() else { unreachable!("it is text") };
        generate.tenant = Some(Tenant(1));
        generate.prompt = Prompt::Chat(vec![Message::new(Role::User, prompt)]);
        let (_tab, events) = machine.submit_work(ticket, Work::Generate(generate));
        if ticket == 1 {
            machine.woken(1, 7);
        }
        machine.says(7, started(ticket, tokens, cached));
        let finished = Finished { prompt_tokens: 0, ..nothing(FinishReason::Stop) };
        machine.says(7, FromRunner::Finished { id: ticket, finished });
        heard(&events)
    };
    let same = |claim| vec![claim; 2];
    assert_eq!(ask(1, &words("Tell"), 50, 49), (same((50, 10)), true), "nobody asked: its 40 words were computed");
    assert_eq!(ask(2, &words("Tell"), 50, 49), (same((50, 49)), true), "but its end claims none");
    assert_eq!(ask(3, &words("Sing"), 50, 49), (same((50, 26)), true), "24 words are after the 16 of a mark");
    assert_eq!(ask(4, &words("Sing"), 10, 0), (same((40, 0)), true), "and are 40 with those");
}

#[test]
fn who_answers_what_it_has_not_begun_or_begins_twice_is_stopped() {
    for said in [[started(1, 1, 0), started(1, 1, 0)], [FromRunner::Alive, piece(1)]] {
        let mut machine = Machine::new();
        let (_tab, _events) = machine.submit(1);
        machine.woken(1, 7);
        let effects = said.map(|message| machine.scheduler.handle(machine.now, Input::Said { instance: 7, message }));
        assert_eq!(effects, [vec![], vec![Effect::Stop(7)]]);
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
