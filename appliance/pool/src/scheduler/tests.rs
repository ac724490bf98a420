//! The scheduler without warden or runner: inputs in, effects and events out.

use super::{look::WAKES_TOLD_MAX, *};
use crate::job::{HeldView, QueueView, WakeView, WakesView};
use appliance_scale::hold::Term;
use appliance_types::{ModelDigest, Task};
use sandbox_wire::{
    runner::{Failure, Text},
    warden::WakeParts,
};

mod bills;
mod health;
mod turns;

const PARK: Duration = Duration::from_secs(100);

fn name() -> FunctionName {
    "f".parse().unwrap()
}

fn config(queue_max: usize) -> FunctionConfig {
    let spec = RunnerSpec {
        function: name(),
        model: ModelDigest::from_bytes([0; 32]),
        task: Task::Chat,
        memory_bytes: 1 << 20,
        reserved_bytes: None,
        cpus: 2,
        context_tokens: 64,
        slots: 1,
        system: None,
    };
    let second = Duration::from_secs(1);
    FunctionConfig {
        spec,
        instances_min: 0,
        instances_max: 1,
        queue_max,
        queue_timeout: second,
        keep_warm: Term::Exactly(second * 60),
        park: Term::Exactly(PARK),
        provisioned: Vec::new(),
        timeout: second * 900,
    }
}

fn submit(scheduler: &mut Scheduler, now: Instant, ticket: Ticket) -> (Vec<Effect>, flume::Receiver<Event>) {
    submit_work(scheduler, now, ticket, Work::Detokenize(vec![1]))
}

fn submit_work(
    scheduler: &mut Scheduler,
    now: Instant,
    ticket: Ticket,
    work: Work,
) -> (Vec<Effect>, flume::Receiver<Event>) {
    submit_on(scheduler, now, ticket, work, Terms::default())
}

fn submit_on(
    scheduler: &mut Scheduler,
    now: Instant,
    ticket: Ticket,
    work: Work,
    terms: Terms,
) -> (Vec<Effect>, flume::Receiver<Event>) {
    submit_to(scheduler, now, name(), ticket, work, terms)
}

fn submit_to(
    scheduler: &mut Scheduler,
    now: Instant,
    function: FunctionName,
    ticket: Ticket,
    work: Work,
    terms: Terms,
) -> (Vec<Effect>, flume::Receiver<Event>) {
    let (sender, events) = flume::bounded(work.events_max());
    (
        scheduler.handle(now, Input::Submit { ticket, function, work, terms, tab: Arc::default(), events: sender }),
        events,
    )
}

fn wake(scheduler: &mut Scheduler, now: Instant, wake: WakeId, instance: InstanceId) -> Vec<Effect> {
    wake_from(scheduler, now, Tier::Cold, wake, instance)
}

fn wake_from(scheduler: &mut Scheduler, now: Instant, tier: Tier, wake: WakeId, instance: InstanceId) -> Vec<Effect> {
    let model = ModelInfo { slots: 1, ..ModelInfo::default() };
    let wake_us = scheduler.wakes.get(&wake).map_or(0, |wake| (now - wake.began).as_micros() as u64);
    let awake = Awake {
        instance,
        tier,
        wake_us,
        parts: WakeParts::default(),
        cpu_before_us: 0,
        threads: 2,
        image_bytes: 0,
        model,
    };
    scheduler.handle(now, Input::Woken { wake, result: Ok(awake) })
}

/// A function with one instance, number 7, that runs request 1.
fn running(queue_max: usize) -> (Scheduler, Instant, flume::Receiver<Event>) {
    let (mut scheduler, now) = (Scheduler::new(2, u64::MAX), Instant::now());
    scheduler.handle(now, Input::Configure(Box::new(config(queue_max))));
    let (effects, events) = submit(&mut scheduler, now, 1);
    assert!(matches!(effects[..], [Effect::Wake { wake: 1, .. }]), "{effects:?}");
    let effects = wake(&mut scheduler, now, 1, 7);
    assert!(matches!(effects[..], [Effect::Send { instance: 7, .. }]), "{effects:?}");
    assert!(matches!(events.try_recv(), Ok(Event::Dispatched(d)) if d.tier == Tier::Cold));
    (scheduler, now, events)
}

#[test]
fn a_function_that_is_not_deployed_is_refused() {
    let (effects, events) = submit(&mut Scheduler::new(2, u64::MAX), Instant::now(), 1);
    assert!(effects.is_empty());
    assert_eq!(events.try_recv(), Ok(Event::Failed(Failed::NoFunction)));
}

#[test]
fn the_next_request_runs_when_the_first_has_ended() {
    let (mut scheduler, now, first) = running(4);
    let (effects, _second) = submit(&mut scheduler, now, 2);
    assert!(effects.is_empty(), "one slot: {effects:?}");
    let message = FromRunner::Rendered { id: 1, text: "x".to_owned() };
    let effects = scheduler.handle(now, Input::Said { instance: 7, message: message.clone() });
    assert_eq!(first.try_recv(), Ok(Event::Reply(message)));
    assert!(matches!(effects[..], [Effect::Send { instance: 7, message: ToRunner::Detokenize { id: 2, .. } }]));
}

#[test]
fn a_full_queue_refuses_and_a_long_wait_ends() {
    let (mut scheduler, now, _first) = running(1);
    let (_, second) = submit(&mut scheduler, now, 2);
    let (_, third) = submit(&mut scheduler, now, 3);
    assert!(matches!(third.try_recv(), Ok(Event::Failed(Failed::QueueFull { queue_max: 1, .. }))));
    assert!(second.try_recv().is_err(), "it waits");
    scheduler.tick(now + Duration::from_secs(1));
    assert!(matches!(second.try_recv(), Ok(Event::Failed(Failed::QueueTimeout { waited_ms: 1000, .. }))));
}

#[test]
fn an_instance_that_died_silent_is_replaced_once() {
    let (mut scheduler, now, events) = running(4);
    let died = |instance| Input::Exited { instance, cause: ExitCause::Signal(9) };
    let effects = scheduler.handle(now, died(7));
    assert!(matches!(effects[..], [Effect::Wake { wake: 2, .. }]), "{effects:?}");
    wake(&mut scheduler, now, 2, 8);
    assert!(matches!(events.try_recv(), Ok(Event::Dispatched(_))));
    assert!(scheduler.handle(now, died(8)).is_empty());
    assert!(matches!(events.try_recv(), Ok(Event::Failed(Failed::InstanceLost { .. }))));
}

#[test]
fn an_instance_that_needs_more_than_was_measured_is_replaced_by_one_with_all_of_its_cap() {
    const MEASURED: u64 = 1 << 19;
    let (mut scheduler, now) = (Scheduler::new(2, 3 << 20), Instant::now());
    let mut config = config(4);
    config.spec.reserved_bytes = Some(MEASURED);
    let cap = config.spec.memory_bytes;
    scheduler.handle(now, Input::Configure(Box::new(config)));
    let (_, events) = submit(&mut scheduler, now, 1);
    wake(&mut scheduler, now, 1, 7);
    assert!(matches!(events.try_recv(), Ok(Event::Dispatched(d)) if d.memory_bytes == MEASURED));

    let died = |instance, limit_bytes| Input::Exited { instance, cause: ExitCause::OutOfMemory { limit_bytes } };
    let effects = scheduler.handle(now, died(7, MEASURED));
    assert!(matches!(&effects[..], [Effect::Wake { wake: 2, spec }] if spec.lease_bytes() == cap), "{effects:?}");
    wake(&mut scheduler, now, 2, 8);
    assert!(matches!(events.try_recv(), Ok(Event::Dispatched(d)) if d.memory_bytes == cap), "nobody saw anything");
    assert!(scheduler.handle(now, died(8, cap)).is_empty(), "there is no more");
    assert!(matches!(events.try_recv(), Ok(Event::Failed(Failed::InstanceLost { .. }))));
}

#[test]
fn a_load_that_needs_more_than_was_measured_is_tried_with_all_of_its_cap() {
    let (mut scheduler, now) = (Scheduler::new(2, 3 << 20), Instant::now());
    let mut config = config(4);
    config.spec.reserved_bytes = Some(1 << 19);
    let cap = config.spec.memory_bytes;
    scheduler.handle(now, Input::Configure(Box::new(config)));
    submit(&mut scheduler, now, 1);
    let cause = ExitCause::OutOfMemory { limit_bytes: 1 << 19 };
    scheduler.handle(now, Input::Woken { wake: 1, result: Err(WardenError::DiedLoading { cause }) });
    let (effects, _) = submit(&mut scheduler, now, 2);
    assert!(matches!(&effects[..], [Effect::Wake { wake: 2, spec }] if spec.lease_bytes() == cap), "{effects:?}");
}

#[test]
fn an_instance_that_outlasts_a_deadline_is_stopped_and_its_request_not_tried_again() {
    let (mut scheduler, now, events) = running(4);
    let due = now + Duration::from_secs(900) + HANG_GRACE;
    assert_eq!(scheduler.next_due(), Some(due));
    assert_eq!(scheduler.tick(due), [Effect::Stop(7)]);
    assert!(scheduler.handle(due, Input::Exited { instance: 7, cause: ExitCause::Stopped }).is_empty());
    assert!(
        matches!(events.try_recv(), Ok(Event::Failed(Failed::InstanceLost { reason })) if reason.contains("deadline"))
    );
}

#[test]
fn a_wake_waits_for_the_load_alone() {
    let (mut scheduler, now) = (Scheduler::new(2, u64::MAX), Instant::now());
    scheduler.handle(now, Input::Configure(Box::new(config(0))));
    let (effects, cold) = submit_work(&mut scheduler, now, 1, Work::Wake);
    assert!(matches!(effects[..], [Effect::Wake { wake: 1, .. }]), "{effects:?}");
    let later = now + Duration::from_secs(60);
    assert!(scheduler.tick(later).is_empty() && cold.try_recv().is_err(), "no queue's limit holds");
    wake(&mut scheduler, later, 1, 7);
    assert!(matches!(cold.try_recv(), Ok(Event::Dispatched(d)) if d.tier == Tier::Cold && d.wake_us == 60_000_000));

    let _busy = submit(&mut scheduler, later, 2);
    let (_, warm) = submit_work(&mut scheduler, later, 3, Work::Wake);
    assert!(matches!(warm.try_recv(), Ok(Event::Dispatched(d)) if d.tier == Tier::Running), "a busy instance is up");
}

#[test]
fn an_instance_killed_for_its_memory_is_not_tried_again() {
    let (mut scheduler, now, events) = running(4);
    let cause = ExitCause::OutOfMemory { limit_bytes: 1 << 20 };
    assert!(scheduler.handle(now, Input::Exited { instance: 7, cause }).is_empty());
    assert!(
        matches!(events.try_recv(), Ok(Event::Failed(Failed::InstanceLost { reason })) if reason.contains("limit of 1 MiB"))
    );
}

#[test]
fn a_runner_that_speaks_of_a_strange_request_is_stopped() {
    let (mut scheduler, now, _events) = running(4);
    let text = Text { text: "x".to_owned(), tokens: 1, logprobs: Vec::new() };
    let effects = scheduler.handle(now, Input::Said { instance: 7, message: FromRunner::Text { id: 99, text } });
    assert_eq!(effects, [Effect::Stop(7)]);
}

#[test]
fn a_cancelled_request_is_told_to_the_runner_and_frees_its_slot_at_its_last_message() {
    let (mut scheduler, now, _events) = running(4);
    let effects = scheduler.handle(now, Input::Cancel(1));
    assert_eq!(effects, [Effect::Send { instance: 7, message: ToRunner::Cancel { id: 1 } }]);
    let failure = Failure::Internal { message: "x".to_owned() };
    scheduler.handle(now, Input::Said { instance: 7, message: FromRunner::Failed { id: 1, failure } });
    assert!(scheduler.jobs.is_empty());
    assert!(scheduler.instances[&7].running.is_empty());
}

#[test]
fn an_idle_instance_stops_after_keep_warm_and_no_timer_is_left() {
    let (mut scheduler, now, _events) = running(4);
    let message = FromRunner::Rendered { id: 1, text: String::new() };
    scheduler.handle(now, Input::Said { instance: 7, message });
    assert_eq!(scheduler.next_due(), Some(now + Duration::from_secs(60)));
    assert_eq!(scheduler.tick(now + Duration::from_secs(60)), [Effect::Stop(7)]);
    assert_eq!(scheduler.next_due(), None);
}

#[test]
fn requests_learn_where_the_wake_they_waited_for_found_their_function() {
    for tier in [Tier::Cold, Tier::Stored, Tier::Parked] {
        let (mut scheduler, now) = (Scheduler::new(2, u64::MAX), Instant::now());
        scheduler.handle(now, Input::Configure(Box::new(config(4))));
        let (_, first) = submit(&mut scheduler, now, 1);
        let (_, second) = submit(&mut scheduler, now, 2);
        let later = now + Duration::from_millis(30);
        wake_from(&mut scheduler, later, tier, 1, 7);
        let (_, third) = submit(&mut scheduler, later, 3);
        for ticket in [1, 2] {
            let message = FromRunner::Rendered { id: ticket, text: String::new() };
            scheduler.handle(later, Input::Said { instance: 7, message });
        }
        let found = |events: &flume::Receiver<Event>| match events.try_recv() {
            Ok(Event::Dispatched(how)) => (how.tier, how.wake_us),
            other => panic!("{other:?}"),
        };
        assert_eq!(found(&first), (tier, 30_000));
        assert_eq!(found(&second), (tier, 30_000), "it waited for the same wake");
        assert_eq!(found(&third), (Tier::Running, 0));
    }
}

/// A function whose only instance is gone at the instant given.
fn held() -> (Scheduler, Instant) {
    let (mut scheduler, now, _events) = running(4);
    let message = FromRunner::Rendered { id: 1, text: String::new() };
    scheduler.handle(now, Input::Said { instance: 7, message });
    let gone = now + Duration::from_secs(61);
    assert_eq!(scheduler.tick(gone), [Effect::Stop(7)]);
    assert!(scheduler.handle(gone, Input::Exited { instance: 7, cause: ExitCause::Stopped }).is_empty());
    (scheduler, gone)
}

fn look(scheduler: &mut Scheduler, now: Instant) -> View {
    let (sender, views) = flume::bounded(1);
    assert!(scheduler.handle(now, Input::List(sender)).is_empty(), "looking does nothing");
    views.try_recv().unwrap()
}

#[test]
fn who_looks_sees_what_waits_and_is_held_and_moves_no_timer() {
    let (mut scheduler, now, _events) = running(9);
    let _waits = submit(&mut scheduler, now, 2);
    let view = look(&mut scheduler, now);
    assert_eq!(view.queues, [QueueView { function: name(), interactive: 1, batch: 0 }]);
    assert_eq!((view.cores, view.waking, view.wakes_failed), ([2, 2], 0, 0));
    assert_eq!(view.memory, [u64::MAX, u64::MAX, 1 << 20]);
    let wakes = WakesView { count: 1, ..WakesView::default() };
    assert_eq!(view.wakes, [(Tier::Cold, wakes)].into());
    let later = look(&mut scheduler, now + Duration::from_secs(3)).wakes_latest;
    let ago = Duration::from_secs(3);
    let latest = WakeView { function: name(), tier: Tier::Cold, ago, parts: WakeParts::default(), handover_us: 0 };
    assert_eq!(later, [latest]);

    let (mut scheduler, gone) = held();
    let due = scheduler.next_due();
    (1..9).for_each(|second| drop(look(&mut scheduler, gone + Duration::from_secs(second))));
    assert_eq!(scheduler.next_due(), due);
}

#[test]
fn the_latest_wakes_are_told_and_no_more_than_that() {
    let (mut tally, now, second) = (Tally::default(), Instant::now(), Duration::from_secs(1));
    let parts = |find_us| WakeParts { find_us, process_us: 2, ready_us: 3 };
    let awake = |find_us| Awake {
        instance: 1,
        tier: Tier::Stored,
        wake_us: 900_000,
        parts: parts(find_us),
        cpu_before_us: 0,
        threads: 1,
        image_bytes: 0,
        model: ModelInfo::default(),
    };
    for wake in 0..WAKES_TOLD_MAX as u64 + 3 {
        tally.woke(now, &name(), &awake(wake), second);
    }
    let latest = tally.latest(now + second);
    let newest = WakeView {
        function: name(),
        tier: Tier::Stored,
        ago: second,
        parts: parts(WAKES_TOLD_MAX as u64 + 2),
        handover_us: 100_000,
    };
    assert_eq!((latest.len(), latest.first()), (WAKES_TOLD_MAX, Some(&newest)));
}

#[test]
fn a_function_that_nobody_calls_is_stored_once() {
    let (mut scheduler, gone) = held();
    assert_eq!(scheduler.next_due(), Some(gone + PARK));
    let (sender, views) = flume::bounded(1);
    scheduler.handle(gone + PARK / 4, Input::List(sender));
    let held = HeldView { function: name(), store_in: PARK * 3 / 4, wake_p50_ms: Some(0) };
    let view = views.try_recv().unwrap();
    assert_eq!((view.instances, view.held, view.failing), (Vec::new(), vec![held], Vec::new()));
    assert_eq!(view.system, scheduler.books.all());
    assert!(scheduler.tick(gone + PARK - Duration::from_millis(1)).is_empty());
    assert_eq!(scheduler.tick(gone + PARK), [Effect::Store(name())]);
    assert_eq!(scheduler.next_due(), None);
}

#[test]
fn a_call_keeps_a_function_from_being_stored() {
    let (mut scheduler, gone) = held();
    let (effects, events) = submit(&mut scheduler, gone + PARK / 2, 2);
    assert!(matches!(effects[..], [Effect::Wake { wake: 2, .. }]), "{effects:?}");
    assert!(scheduler.tick(gone + PARK).is_empty(), "it is waking");
    assert!(matches!(events.try_recv(), Ok(Event::Failed(Failed::QueueTimeout { .. }))));

    let failed = Err(WardenError::LoadTimeout { limit_ms: 1 });
    assert!(scheduler.handle(gone + PARK, Input::Woken { wake: 2, result: failed }).is_empty());
    assert_eq!(scheduler.next_due(), Some(gone + PARK * 2), "it is held as before");
}

#[test]
fn a_function_that_the_warden_was_made_to_hold_is_stored_too() {
    let (mut scheduler, now) = (Scheduler::new(2, u64::MAX), Instant::now());
    scheduler.handle(now, Input::Configure(Box::new(config(4))));
    assert_eq!(scheduler.next_due(), None, "nothing is held for a function that was never up");
    scheduler.handle(now, Input::Hold(name(), 0));
    scheduler.handle(now, Input::Configure(Box::new(config(5))));
    assert_eq!(scheduler.tick(now + PARK), [Effect::Store(name())]);

    let (mut scheduler, now, _events) = running(4);
    let due = scheduler.next_due();
    scheduler.handle(now, Input::Hold(name(), 0));
    assert_eq!(scheduler.next_due(), due, "an instance is up");
}

#[test]
fn no_timer_is_left_of_a_function_that_was_removed() {
    let (mut scheduler, gone) = held();
    assert!(scheduler.handle(gone, Input::Remove(name())).is_empty());
    assert_eq!(scheduler.next_due(), None);
}
