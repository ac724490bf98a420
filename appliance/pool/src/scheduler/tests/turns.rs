//! Whose turn it is: keys, classes and deadlines.

use super::*;
use sandbox_wire::{
    runner::{Constraint, FinishReason, Finished, Generate, Message, Prompt, Role, Sampling, Tenant},
    warden::WakeParts,
};

fn of(key: &str) -> Terms {
    Terms { key: Some(key.parse().unwrap()), ..Terms::default() }
}

fn batch(key: &str) -> Terms {
    Terms { class: Class::Batch, ..of(key) }
}

pub(super) fn story() -> Work {
    Work::Generate(Box::new(Generate {
        prompt: Prompt::Text("x".to_owned()),
        sampling: Sampling::greedy(),
        stop: Vec::new(),
        tokens_max: 100,
        deadline_ms: 900_000,
        constraint: Constraint::None,
        tools: None,
        logprobs: None,
        tenant: None,
    }))
}

fn said(scheduler: &mut Scheduler, now: Instant, instance: InstanceId, message: FromRunner) -> Vec<Effect> {
    scheduler.handle(now, Input::Said { instance, message })
}

fn ends(scheduler: &mut Scheduler, now: Instant, instance: InstanceId, id: Ticket) -> Vec<Effect> {
    said(scheduler, now, instance, finished(id, FinishReason::Stop))
}

fn finished(id: Ticket, reason: FinishReason) -> FromRunner {
    let (prompt_tokens, cached_tokens, completion_tokens, prefill_us, decode_us) = (1, 0, 1, 1, 1);
    let finished = Finished { reason, prompt_tokens, cached_tokens, completion_tokens, prefill_us, decode_us };
    FromRunner::Finished { id, finished }
}

fn text(id: Ticket) -> FromRunner {
    FromRunner::Text { id, text: Text { text: "x".to_owned(), tokens: 1, logprobs: Vec::new() } }
}

fn started(id: Ticket) -> FromRunner {
    FromRunner::Started { id, prompt_tokens: 1, cached_tokens: 0 }
}

fn send(instance: InstanceId, message: ToRunner) -> Effect {
    Effect::Send { instance, message }
}

/// The request that the one effect begins.
fn begun(effects: &[Effect]) -> Ticket {
    match effects {
        [Effect::Send { message: ToRunner::Generate { id, .. }, .. }] => *id,
        other => panic!("{other:?}"),
    }
}

/// What was told, all taken.
fn told(events: &flume::Receiver<Event>) -> Vec<Event> {
    events.try_iter().collect()
}

/// A function with instance 7 of `slots` up, which runs nothing.
fn idle(slots: u32, queue_max: usize) -> (Scheduler, Instant) {
    let (mut scheduler, now) = (Scheduler::new(2, u64::MAX), Instant::now());
    add(&mut scheduler, now, "f", 1, 7, slots, queue_max);
    (scheduler, now)
}

fn add(
    scheduler: &mut Scheduler,
    now: Instant,
    function: &str,
    wake: WakeId,
    instance: InstanceId,
    slots: u32,
    queue_max: usize,
) {
    let function: FunctionName = function.parse().unwrap();
    let mut config = config(queue_max);
    config.spec.function = function.clone();
    config.spec.slots = slots;
    scheduler.handle(now, Input::Configure(Box::new(config)));
    submit_to(scheduler, now, function, 1_000 + wake, Work::Wake, Terms::default());
    let model = ModelInfo { slots, ..ModelInfo::default() };
    let awake = Awake {
        instance,
        tier: Tier::Cold,
        wake_us: 1,
        parts: WakeParts::default(),
        cpu_before_us: 0,
        image_bytes: 1,
        threads: 2,
        model,
    };
    scheduler.handle(now, Input::Woken { wake, result: Ok(awake) });
}

#[test]
fn a_key_that_floods_is_one_turn_ahead_at_most() {
    let (mut scheduler, now) = idle(1, 100);
    let mut submit = |ticket, key| submit_on(&mut scheduler, now, ticket, story(), of(key));
    assert_eq!(begun(&submit(0, "flood").0), 0);
    let _flood: Vec<_> = (1..50).map(|ticket| submit(ticket, "flood").1).collect();
    let (_, _first) = submit(100, "quiet");
    let (_, _second) = submit(101, "quiet");
    let mut order = Vec::new();
    let mut running = 0;
    for _ in 0..5 {
        running = begun(&ends(&mut scheduler, now, 7, running));
        order.push(running);
    }
    assert_eq!(order, [100, 1, 101, 2, 3]);
}

#[test]
fn a_full_queue_turns_away_who_filled_it() {
    let (mut scheduler, now) = idle(1, 2);
    let mut submit = |ticket, key| submit_on(&mut scheduler, now, ticket, story(), of(key)).1;
    let (_running, _first, last) = (submit(0, "flood"), submit(1, "flood"), submit(2, "flood"));
    let quiet = submit(100, "quiet");
    assert_eq!(told(&quiet), []);
    assert!(matches!(told(&last)[..], [Event::Failed(Failed::QueueFull { queue_max: 2, .. })]));
    assert!(matches!(told(&submit(3, "flood"))[..], [Event::Failed(Failed::QueueFull { .. })]));
    assert_eq!(begun(&ends(&mut scheduler, now, 7, 0)), 100);
}

#[test]
fn a_request_that_waits_learns_where() {
    let (mut scheduler, now) = idle(1, 100);
    let events: Vec<_> = (0..4).map(|t| submit_on(&mut scheduler, now, t, story(), of("a")).1).collect();
    let place = |scheduler: &mut Scheduler, ticket| {
        let (reply, waits) = flume::bounded(1);
        scheduler.handle(now, Input::Place { ticket, reply });
        waits.try_recv().ok()
    };
    assert_eq!(place(&mut scheduler, 0), None, "it runs");
    let second = Duration::from_secs(1);
    assert_eq!(place(&mut scheduler, 3), Some(Waits { position: 3, estimate: second * 3 }), "nothing measured yet");
    ends(&mut scheduler, now + second * 5, 7, 0);
    assert_eq!(place(&mut scheduler, 3), Some(Waits { position: 2, estimate: second * 10 }));
    drop(events);
}

#[test]
fn interactive_finds_a_slot_and_batch_goes_on_afterwards() {
    let (mut scheduler, now) = idle(2, 100);
    let (effects, first) = submit_on(&mut scheduler, now, 1, story(), batch("a"));
    assert_eq!(begun(&effects), 1);
    assert!(submit_on(&mut scheduler, now, 2, story(), batch("a")).0.is_empty(), "a slot is left free");
    said(&mut scheduler, now, 7, started(1));
    said(&mut scheduler, now, 7, text(1));

    let (effects, _somebody) = submit_on(&mut scheduler, now, 3, story(), of("b"));
    assert_eq!(effects[0], send(7, ToRunner::Pause { id: 1 }));
    assert_eq!(begun(&effects[1..]), 3);
    assert_eq!(ends(&mut scheduler, now, 7, 3), [send(7, ToRunner::Resume { id: 1 })]);
    assert_eq!(begun(&ends(&mut scheduler, now, 7, 1)), 2);
    assert!(matches!(told(&first)[..], [Event::Dispatched(_), Event::Reply(_), Event::Reply(_), Event::Reply(_)]));
}

#[test]
fn batch_gives_up_its_only_slot_and_goes_on_afterwards() {
    let (mut scheduler, now) = idle(1, 0);
    let (_, events) = submit_on(&mut scheduler, now, 1, story(), batch("a"));
    said(&mut scheduler, now, 7, started(1));
    said(&mut scheduler, now, 7, text(1));
    let (effects, _somebody) = submit_on(&mut scheduler, now, 2, story(), of("b"));
    assert_eq!(effects[0], send(7, ToRunner::Pause { id: 1 }));
    assert_eq!(begun(&effects[1..]), 2);
    let (_, other) = submit_on(&mut scheduler, now, 3, story(), of("b"));
    assert!(matches!(told(&other)[..], [Event::Failed(Failed::QueueFull { .. })]), "there is one slot for all that is");
    assert_eq!(ends(&mut scheduler, now, 7, 2), [send(7, ToRunner::Resume { id: 1 })]);
    said(&mut scheduler, now, 7, text(1));
    ends(&mut scheduler, now, 7, 1);
    assert!(matches!(told(&events)[..], [Event::Dispatched(_), .., Event::Reply(FromRunner::Finished { .. })]));
    assert!(scheduler.jobs.is_empty() && scheduler.batch == 0);
}

#[test]
fn a_conversation_goes_on_in_the_instance_that_has_it() {
    let talk = |tenant, said: &[&str]| {
        let Work::Generate(mut generate) = story() else { unreachable!() };
        let user = |content: &&str| Message {
            role: Role::User,
            content: (*content).to_owned(),
            name: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
        };
        generate.prompt = Prompt::Chat(said.iter().map(user).collect());
        generate.tenant = Some(Tenant(tenant));
        Work::Generate(generate)
    };
    let (mut scheduler, now) = (Scheduler::new(4, u64::MAX), Instant::now());
    let mut config = config(100);
    (config.spec.slots, config.spec.cpus, config.instances_max) = (1, 1, 2);
    scheduler.handle(now, Input::Configure(Box::new(config)));
    let mut events = Vec::new();
    for (ticket, said, instance) in [(1, "x", 7), (2, "y", 8)] {
        events.push(submit_on(&mut scheduler, now, ticket, talk(1, &[said]), of("a")).1);
        wake(&mut scheduler, now, ticket, instance);
    }
    for ticket in [1, 2] {
        ends(&mut scheduler, now, 6 + ticket, ticket);
    }
    let chosen = |scheduler: &mut Scheduler, ticket, tenant, said: &[&str]| {
        let (effects, _events) = submit_on(scheduler, now, ticket, talk(tenant, said), of("a"));
        let sent = |effect: &Effect| match effect {
            Effect::Send { instance, message: ToRunner::Generate { .. } } => Some(*instance),
            _ => None,
        };
        let instance = effects.iter().find_map(sent).expect("it runs");
        ends(scheduler, now, instance, ticket);
        instance
    };
    assert_eq!(chosen(&mut scheduler, 3, 1, &["y", "yes", "more"]), 8, "its own");
    assert_eq!(chosen(&mut scheduler, 4, 2, &["y", "yes", "more"]), 7, "another's is nobody's");
    assert_eq!(chosen(&mut scheduler, 5, 1, &["y", "yes", "more", "no", "why"]), 8);
}

#[test]
fn batch_lends_its_cores_to_another_function() {
    let (mut scheduler, now) = idle(2, 100);
    add(&mut scheduler, now, "g", 2, 8, 2, 100);
    submit_on(&mut scheduler, now, 1, story(), batch("a"));
    said(&mut scheduler, now, 7, started(1));
    said(&mut scheduler, now, 7, text(1));
    let other = || "g".parse().unwrap();
    let (effects, _somebody) = submit_to(&mut scheduler, now, other(), 2, story(), of("b"));
    assert_eq!(effects[0], send(7, ToRunner::Pause { id: 1 }));
    assert_eq!(begun(&effects[1..]), 2);
    let (effects, _later) = submit_to(&mut scheduler, now, other(), 3, story(), batch("b"));
    assert!(effects.is_empty(), "batch waits for who is interactive");
    let mut effects = ends(&mut scheduler, now, 8, 2);
    let kept: Vec<_> = effects.extract_if(.., |effect| matches!(effect, Effect::Cores { .. })).collect();
    assert_eq!(kept, [(7, 0), (8, 1)].map(|(instance, core)| Effect::Cores { instance, cores: [core].into() }));
    let both = [ToRunner::Threads { count: 1 }, ToRunner::Resume { id: 1 }].map(|message| send(7, message));
    assert_eq!(effects[..2], both, "paused before waiting");
    assert_eq!(begun(&effects[3..]), 3, "with a core each");
}

#[test]
fn paused_batch_ends_with_its_time_and_not_with_its_instance() {
    let (mut scheduler, now) = idle(2, 100);
    submit_on(&mut scheduler, now, 1, story(), batch("a"));
    submit_on(&mut scheduler, now, 2, story(), of("b"));
    let due = now + Duration::from_secs(900) + HANG_GRACE;
    scheduler.handle(due - Duration::from_secs(1), Input::Cancel(2));
    said(&mut scheduler, due - Duration::from_secs(1), 7, FromRunner::Alive);
    assert_eq!(scheduler.tick(due), [send(7, ToRunner::Resume { id: 1 })]);
    said(&mut scheduler, due, 7, finished(1, FinishReason::Deadline));
    assert!(!scheduler.jobs.contains_key(&1) && scheduler.instances.contains_key(&7));
}

#[test]
fn paused_batch_of_a_function_that_changed_runs_to_its_end() {
    let (mut scheduler, now) = idle(2, 100);
    submit_on(&mut scheduler, now, 1, story(), batch("a"));
    submit_on(&mut scheduler, now, 2, story(), of("b"));
    let effects = scheduler.handle(now, Input::Configure(Box::new(config(100))));
    assert_eq!(effects, [send(7, ToRunner::Resume { id: 1 })]);
}

#[test]
fn a_deadline_ends_the_wait_and_cuts_the_run() {
    let (mut scheduler, now) = idle(1, 100);
    let ms = Duration::from_millis;
    let hurried = |left| Terms { deadline: Some(now + left), ..of("a") };
    let (effects, _running) = submit_on(&mut scheduler, now, 1, story(), hurried(ms(5_000)));
    assert!(matches!(&effects[..], [Effect::Send { message: ToRunner::Generate { generate, .. }, .. }]
        if generate.deadline_ms == 5_000));
    assert!(scheduler.timers.contains(&(now + ms(5_000) + HANG_GRACE, Timer::Run(1))));
    let (_, waiting) = submit_on(&mut scheduler, now, 2, story(), hurried(ms(300)));
    scheduler.tick(now + ms(300));
    assert!(matches!(told(&waiting)[..], [Event::Failed(Failed::QueueTimeout { waited_ms: 300, .. })]));
}

#[test]
fn a_deadline_that_passes_before_its_turn_is_refused_at_once() {
    let (mut scheduler, now) = idle(1, 100);
    let second = Duration::from_secs(1);
    let mut later = now;
    let hurried = |now: Instant, left| Terms { deadline: Some(now + left), ..of("a") };
    let (_, _measured) = submit_on(&mut scheduler, later, 1, story(), of("a"));
    later += second * 4;
    ends(&mut scheduler, later, 7, 1);
    let (_, _running) = submit_on(&mut scheduler, later, 2, story(), of("a"));
    let (_, next) = submit_on(&mut scheduler, later, 3, story(), hurried(later, second));
    assert_eq!(told(&next), [], "a slot may come free at any time");
    let (_, after) = submit_on(&mut scheduler, later, 4, story(), hurried(later, second));
    let refused = Failed::DeadlineTooSoon { estimate_ms: 4_000, left_ms: 1_000, retry_after_s: 8 };
    assert_eq!(told(&after), [Event::Failed(refused)]);
    let (_, patient) = submit_on(&mut scheduler, later, 5, story(), hurried(later, second * 5));
    assert_eq!(told(&patient), []);
}
