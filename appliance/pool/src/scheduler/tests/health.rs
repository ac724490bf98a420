//! Functions that fail, and runners that say nothing.

use super::*;
use crate::scheduler::{endings::DYING_MAX, health::SILENCE_MAX};

const SECOND: Duration = Duration::from_secs(1);

fn wake_fails(scheduler: &mut Scheduler, now: Instant, wake: WakeId) -> Vec<Effect> {
    let result = Err(WardenError::LoadFailed { reason: "broken".to_owned() });
    scheduler.handle(now, Input::Woken { wake, result })
}

fn fails(events: &flume::Receiver<Event>) -> Failed {
    match events.drain().last() {
        Some(Event::Failed(failed)) => failed,
        other => panic!("{other:?}"),
    }
}

/// A function whose wakes failed so often.
fn failing(times: u64) -> (Scheduler, Instant) {
    let (mut scheduler, now) = (Scheduler::new(2, u64::MAX), Instant::now());
    scheduler.handle(now, Input::Configure(Box::new(config(4))));
    for wake in 1..=times {
        scheduler.try_again(&name());
        let (effects, events) = submit(&mut scheduler, now, wake);
        assert!(matches!(effects[..], [Effect::Wake { .. }]), "{effects:?}");
        wake_fails(&mut scheduler, now, wake);
        assert!(matches!(fails(&events), Failed::WakeFailed(_)));
    }
    (scheduler, now)
}

#[test]
fn what_failed_once_is_tried_again_at_once_and_what_failed_twice_is_not() {
    let (mut scheduler, now) = failing(1);
    let (effects, _) = submit(&mut scheduler, now, 9);
    assert!(matches!(effects[..], [Effect::Wake { .. }]), "{effects:?}");
    wake_fails(&mut scheduler, now, 2);
    let (effects, events) = submit(&mut scheduler, now, 10);
    assert!(effects.is_empty(), "{effects:?}");
    let reason = "the runner could not load the model: broken".to_owned();
    assert_eq!(fails(&events), Failed::Failing { failures: 2, reason, retry_after_s: 1 });
    assert_eq!(scheduler.next_due(), Some(now + SECOND));
    scheduler.tick(now + SECOND);
    let (effects, _) = submit(&mut scheduler, now + SECOND, 11);
    assert!(matches!(effects[..], [Effect::Wake { .. }]), "its time is over: {effects:?}");
}

#[test]
fn pauses_double_up_to_a_minute() {
    for (times, seconds) in [(2, 1), (3, 2), (4, 4), (8, 60), (40, 60)] {
        let (mut scheduler, now) = failing(times);
        let (_, events) = submit(&mut scheduler, now, 99);
        assert!(matches!(fails(&events), Failed::Failing { retry_after_s, .. } if retry_after_s == seconds), "{times}");
    }
}

#[test]
fn an_answer_forgives_and_an_operator_does_not_wait() {
    let (mut scheduler, now) = failing(3);
    let (effects, _wake) = submit_work(&mut scheduler, now, 8, Work::Wake);
    assert!(matches!(effects[..], [Effect::Wake { .. }]), "{effects:?}");
    wake(&mut scheduler, now, 4, 7);
    let (_, _events) = submit(&mut scheduler, now, 9);
    scheduler.handle(now, Input::Said { instance: 7, message: FromRunner::Rendered { id: 9, text: String::new() } });
    let due = scheduler.next_due();
    scheduler.handle(now, Input::Exited { instance: 7, cause: ExitCause::Signal(11) });
    let (effects, _) = submit(&mut scheduler, now, 10);
    assert!(matches!(effects[..], [Effect::Wake { .. }]), "it has failed once: {effects:?}");
    assert!(due.is_some_and(|due| due >= now + SECOND * 60), "no pause is left over");
}

#[test]
fn a_crash_loop_turns_away_who_waits() {
    let (mut scheduler, now, first) = running(4);
    let (_, second) = submit(&mut scheduler, now, 2);
    let died = |instance| Input::Exited { instance, cause: ExitCause::Signal(11) };
    scheduler.handle(now, died(7));
    wake(&mut scheduler, now, 2, 8);
    assert!(scheduler.handle(now, died(8)).is_empty());
    assert!(matches!(fails(&first), Failed::InstanceLost { .. }));
    assert!(matches!(fails(&second), Failed::Failing { failures: 2, retry_after_s: 1, .. }));
    assert!(scheduler.jobs.is_empty());
}

#[test]
fn a_runner_that_is_silent_over_its_text_hangs() {
    let (mut scheduler, now, _) = running(4);
    let text = FromRunner::Rendered { id: 1, text: String::new() };
    scheduler.handle(now, Input::Said { instance: 7, message: text });
    let generate = turns::story();
    let (_, events) = submit_work(&mut scheduler, now, 2, generate);
    let due = now + SILENCE_MAX;
    assert_eq!(scheduler.next_due(), Some(due));
    scheduler.handle(due - SECOND, Input::Said { instance: 7, message: FromRunner::Alive });
    assert!(scheduler.tick(due).is_empty(), "it was heard of");
    let due = due - SECOND + SILENCE_MAX;
    assert_eq!(scheduler.next_due(), Some(due));
    assert_eq!(scheduler.tick(due), [Effect::Stop(7)]);
    scheduler.handle(due, Input::Exited { instance: 7, cause: ExitCause::Stopped });
    assert!(matches!(events.drain().last(), Some(Event::Dispatched(_))), "nobody saw anything: it is tried elsewhere");
}

#[test]
fn a_runner_that_is_nothing_but_alive_is_stopped() {
    let (mut scheduler, now, _events) = running(4);
    let alive = || Input::Said { instance: 7, message: FromRunner::Alive };
    for _ in 0..16 {
        assert!(scheduler.handle(now, alive()).is_empty());
    }
    assert_eq!(scheduler.handle(now, alive()), [Effect::Stop(7)]);
}

#[test]
fn a_runner_that_closes_its_socket_and_lives_is_ended() {
    let (mut scheduler, now, _events) = running(4);
    assert!(scheduler.handle(now, Input::Lost { instance: 7, fault: None }).is_empty(), "it may be dying");
    let due = now + DYING_MAX;
    assert_eq!(scheduler.next_due(), Some(due));
    assert_eq!(scheduler.tick(due), [Effect::Stop(7)]);
    let effects = scheduler.handle(due, Input::Exited { instance: 7, cause: ExitCause::Stopped });
    assert!(matches!(effects[..], [Effect::Wake { .. }]), "nobody saw anything, it is tried elsewhere: {effects:?}");
}

#[test]
fn nothing_is_left_of_an_instance_whose_socket_closed_as_it_ended() {
    let (mut scheduler, now, _events) = running(4);
    let message = FromRunner::Rendered { id: 1, text: String::new() };
    scheduler.handle(now, Input::Said { instance: 7, message });
    scheduler.handle(now, Input::Lost { instance: 7, fault: None });
    scheduler.handle(now, Input::Exited { instance: 7, cause: ExitCause::Stopped });
    assert_eq!(scheduler.timers.iter().map(|(_, timer)| timer).collect::<Vec<_>>(), [&Timer::Park(name())]);
}

#[test]
fn a_failed_extra_wake_costs_nobody_his_place() {
    let (mut scheduler, now) = (Scheduler::new(2, u64::MAX), Instant::now());
    scheduler.handle(now, Input::Configure(Box::new(FunctionConfig { instances_max: 2, ..config(4) })));
    let (_, _first) = submit(&mut scheduler, now, 1);
    wake(&mut scheduler, now, 1, 7);
    let (effects, second) = submit(&mut scheduler, now, 2);
    assert!(matches!(effects[..], [Effect::Send { .. }, ..]) || effects.is_empty(), "a core is asked for: {effects:?}");
    scheduler.handle(now, Input::Said { instance: 7, message: FromRunner::Threads { count: 1 } });
    let result = Err(WardenError::InstancesMax { limit: 1 });
    let effects = scheduler.handle(now, Input::Woken { wake: 2, result });
    assert!(effects.iter().all(|effect| !matches!(effect, Effect::Wake { .. })), "not again at once: {effects:?}");
    assert!(second.is_empty(), "it waits for the one that is up");
    let answer = FromRunner::Rendered { id: 1, text: String::new() };
    scheduler.handle(now, Input::Said { instance: 7, message: answer });
    assert!(matches!(second.try_recv(), Ok(Event::Dispatched(_))));
}

#[test]
fn a_wake_by_hand_that_waits_for_memory_does_not_wait_for_ever() {
    let (mut scheduler, now) = (Scheduler::new(2, 2 << 20), Instant::now());
    scheduler.handle(now, Input::Configure(Box::new(config(4))));
    let mut other = config(4);
    other.spec.function = "g".parse().unwrap();
    scheduler.handle(now, Input::Configure(Box::new(other)));
    let (_, _first) = submit(&mut scheduler, now, 1);
    wake(&mut scheduler, now, 1, 7);
    let (_, events) = submit_to(&mut scheduler, now, "g".parse().unwrap(), 2, Work::Wake, Terms::default());
    let message = FromRunner::Threads { count: 1 };
    let gives = [Effect::Cores { instance: 7, cores: [0].into() }];
    assert_eq!(scheduler.handle(now, Input::Said { instance: 7, message }), gives, "a core, but no memory");
    scheduler.tick(now + RESERVE_WAIT);
    assert!(matches!(fails(&events), Failed::QueueTimeout { waited_ms: 60_000, .. }));
}

#[test]
fn who_is_tried_again_after_a_removal_takes_nobodys_place() {
    let (mut scheduler, now, _first) = running(4);
    scheduler.handle(now, Input::Remove(name()));
    scheduler.handle(now, Input::Configure(Box::new(config(4))));
    let (_, second) = submit(&mut scheduler, now, 2);
    scheduler.handle(now, Input::Exited { instance: 7, cause: ExitCause::Signal(9) });
    assert_eq!(scheduler.functions[&name()].waiting.len(), 2);
    drop(second);
}
