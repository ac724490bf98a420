//! When children start and end: pure, so that every order of events can be tested.
//!
//! Server and warden are one unit: a server that starts anew knows no instances, and instances without a server are of
//! no use, so neither outlives the other. The ledger is a unit of its own.
//!
//! ```text
//!                 start_at                         a child ended, none is left
//!  Waiting ──────────────────▶ Up ─────────────────────────────────────────────▶ Waiting (back-off)
//!     │                        │ a child ended, another is left                      ▲
//!     │                        ▼                                                     │
//!     │                      Ending ── kill_at: kill ──▶ … the last one ended ───────┘
//!     │ stop                   │ stop: the same, but ─────────────────────────────▶ Stopped
//!     └─────────────────────────────────────────────────────────────────────────▶ Stopped
//! ```
//!
//! To stop: the server is told, and has the drain; its end closes the warden's socket, upon which the warden ends all
//! instances and itself; then the ledger is told, which appends what is queued. Each has a deadline, then is killed.
//! When both units are stopped the supervisor ends. A server whose warden died is killed at once: it can do nothing; while
//! it stops it ends by itself, or is killed soon.
//!
//! The delay before a start doubles with each failure in a row; a unit that was up for [`STEADY`] has none behind it.

use crate::control::Role;
use std::time::{Duration, Instant};

/// First delay before a start.
const DELAY_MIN: Duration = Duration::from_millis(100);
/// A unit that was up this long was not broken.
const STEADY: Duration = Duration::from_secs(30);
/// What the warden gets to end its instances, and the ledger to append what is queued.
const GRACE: Duration = Duration::from_secs(10);
/// What the server gets past the drain to cut what is left.
const CUT: Duration = Duration::from_secs(2);

/// Children that live and die together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Warden and server.
    Service,
    /// The ledger.
    Ledger,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Time went by.
    Time,
    /// A child ended, or could not be started.
    Ended(Role),
    /// The supervisor is to end; running requests get this long.
    Stop {
        /// The drain.
        drain: Duration,
    },
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start all children of a unit.
    Start(Unit),
    /// Tell a child to end by itself.
    Tell(Role),
    /// Kill a child.
    Kill(Role),
    /// End: no child is left.
    Finish,
}

/// Both units.
#[derive(Debug)]
pub(crate) struct Machine {
    service: Members,
    ledger: Members,
    stopping: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting { start_at: Instant },
    Up { since: Instant },
    Ending { since: Instant, kill_at: Option<Instant> },
    Stopped,
}

#[derive(Debug)]
struct Members {
    unit: Unit,
    state: State,
    alive: Vec<Role>,
    failures: u32,
    delay_max: Duration,
}

impl Machine {
    /// Both units are to be started now, and whenever they ended after `delay_max` at most.
    pub(crate) fn new(delay_max: Duration, now: Instant) -> Self {
        let [service, ledger] = [Unit::Service, Unit::Ledger].map(|unit| Members::new(unit, delay_max, now));
        Self { service, ledger, stopping: false }
    }

    /// Takes an event, and says what to do, in order.
    pub(crate) fn on(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Time => self.due(now),
            Event::Ended(role) => self.ended(role, now),
            Event::Stop { drain } => self.stop(drain, now),
        }
    }

    /// When [`Event::Time`] is due next; `None`: nothing waits for time.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        [&self.service, &self.ledger].into_iter().filter_map(Members::wake_at).min()
    }

    /// Failures in a row of the unit that `role` belongs to.
    pub(crate) fn failures(&self, role: Role) -> u32 {
        if role == Role::Ledger { self.ledger.failures } else { self.service.failures }
    }

    fn due(&mut self, now: Instant) -> Vec<Action> {
        // The ledger first: it does not depend on the others, and they send to it.
        [&mut self.ledger, &mut self.service].into_iter().flat_map(|members| members.due(now)).collect()
    }

    fn ended(&mut self, role: Role, now: Instant) -> Vec<Action> {
        let stopping = self.stopping;
        let members = if role == Role::Ledger { &mut self.ledger } else { &mut self.service };
        let mut actions = members.ended(role, stopping, now);
        actions.extend(self.progress(now));
        actions
    }

    fn stop(&mut self, drain: Duration, now: Instant) -> Vec<Action> {
        if std::mem::replace(&mut self.stopping, true) {
            return Vec::new();
        }
        let mut actions = self.service.stop(Role::Server, now + drain + CUT, now);
        actions.extend(self.progress(now));
        actions
    }

    /// The next step of a stop, once the service is gone: the ledger, then the end.
    fn progress(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.stopping && self.service.state == State::Stopped {
            actions.extend(self.ledger.stop(Role::Ledger, now + GRACE, now));
            if self.ledger.state == State::Stopped {
                actions.push(Action::Finish);
            }
        }
        actions
    }
}

impl Members {
    fn new(unit: Unit, delay_max: Duration, now: Instant) -> Self {
        Self { unit, state: State::Waiting { start_at: now }, alive: Vec::new(), failures: 0, delay_max }
    }

    fn wake_at(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { start_at } => Some(start_at),
            State::Ending { kill_at, .. } => kill_at,
            State::Up { .. } | State::Stopped => None,
        }
    }

    fn due(&mut self, now: Instant) -> Vec<Action> {
        if self.wake_at().is_none_or(|at| now < at) {
            return Vec::new();
        }
        match self.state {
            State::Waiting { .. } => {
                self.state = State::Up { since: now };
                self.alive = self.unit.roles().to_vec();
                vec![Action::Start(self.unit)]
            }
            State::Ending { since, .. } => {
                self.state = State::Ending { since, kill_at: None };
                self.alive.iter().copied().map(Action::Kill).collect()
            }
            State::Up { .. } | State::Stopped => Vec::new(),
        }
    }

    fn ended(&mut self, role: Role, stopping: bool, now: Instant) -> Vec<Action> {
        self.alive.retain(|alive| *alive != role);
        let since = match self.state {
            State::Up { since } | State::Ending { since, .. } => since,
            State::Waiting { .. } | State::Stopped => return Vec::new(),
        };
        match (self.alive.as_slice(), stopping) {
            ([], true) => self.state = State::Stopped,
            ([], false) => self.wait(now.saturating_duration_since(since), now),
            ([Role::Server], false) => {
                self.state = State::Ending { since, kill_at: None };
                return vec![Action::Kill(Role::Server)];
            }
            // The server closes the warden's socket in the midst of its own end, which takes a little longer.
            ([Role::Server], true) => self.state = State::Ending { since, kill_at: Some(now + CUT) },
            _ => self.state = State::Ending { since, kill_at: Some(now + GRACE) },
        }
        Vec::new()
    }

    fn wait(&mut self, up: Duration, now: Instant) {
        self.failures = if up >= STEADY { 1 } else { self.failures.saturating_add(1) };
        self.state = State::Waiting { start_at: now + delay(self.failures).min(self.delay_max) };
    }

    /// Tells `first` to end, if it is there; a unit that is ending already goes on doing so.
    fn stop(&mut self, first: Role, kill_at: Instant, now: Instant) -> Vec<Action> {
        match self.state {
            State::Waiting { .. } => self.state = State::Stopped,
            State::Up { since } => {
                self.state = State::Ending { since, kill_at: Some(kill_at.max(now)) };
                return vec![Action::Tell(first)];
            }
            State::Ending { .. } | State::Stopped => {}
        }
        Vec::new()
    }
}

impl Unit {
    /// The children of the unit, in the order in which they are started.
    pub(crate) const fn roles(self) -> &'static [Role] {
        match self {
            Self::Service => &[Role::Warden, Role::Server],
            Self::Ledger => &[Role::Ledger],
        }
    }
}

/// The delay before the next start after `failures` in a row, if there is no end to it.
fn delay(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    DELAY_MIN * 2_u32.pow(doublings)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY_MAX: Duration = Duration::from_secs(5);

    /// A machine and its clock.
    struct Run {
        machine: Machine,
        now: Instant,
    }

    impl Run {
        fn started() -> Self {
            let now = Instant::now();
            let mut run = Self { machine: Machine::new(DELAY_MAX, now), now };
            assert_eq!(run.on(Event::Time), [Action::Start(Unit::Ledger), Action::Start(Unit::Service)]);
            run
        }

        fn on(&mut self, event: Event) -> Vec<Action> {
            self.machine.on(event, self.now)
        }

        /// Lets time pass to what is due next; returns how long that took and what to do.
        fn wake(&mut self) -> (Duration, Vec<Action>) {
            let at = self.machine.wake_at().unwrap();
            let passed = at - self.now;
            self.now = at;
            (passed, self.on(Event::Time))
        }
    }

    const DRAIN: Event = Event::Stop { drain: Duration::from_secs(10) };

    #[test]
    fn delays_double_up_to_five_seconds() {
        let ms: Vec<u128> = (1..9).map(|failures| delay(failures).min(DELAY_MAX).as_millis()).collect();
        assert_eq!(ms, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        assert!(delay(u32::MAX) > DELAY_MAX);
    }

    #[test]
    fn a_server_that_dies_takes_the_warden_along() {
        let mut run = Run::started();
        assert_eq!(run.on(Event::Ended(Role::Server)), [], "the warden sees the end of its socket");
        assert_eq!(run.on(Event::Ended(Role::Warden)), []);
        assert_eq!(run.wake(), (DELAY_MIN, vec![Action::Start(Unit::Service)]));
    }

    #[test]
    fn a_warden_that_does_not_end_is_killed() {
        let mut run = Run::started();
        run.on(Event::Ended(Role::Server));
        assert_eq!(run.wake(), (GRACE, vec![Action::Kill(Role::Warden)]));
        assert_eq!(run.machine.wake_at(), None);
        run.on(Event::Ended(Role::Warden));
        assert_eq!(run.wake(), (DELAY_MIN, vec![Action::Start(Unit::Service)]));
    }

    #[test]
    fn a_warden_that_dies_has_the_server_killed() {
        let mut run = Run::started();
        assert_eq!(run.on(Event::Ended(Role::Warden)), [Action::Kill(Role::Server)]);
        run.on(Event::Ended(Role::Server));
        assert_eq!(run.wake().1, [Action::Start(Unit::Service)]);
    }

    #[test]
    fn the_ledger_starts_alone_and_failures_add_up_until_it_is_steady() {
        let mut run = Run::started();
        for expected in [DELAY_MIN, DELAY_MIN * 2, DELAY_MIN * 4] {
            assert_eq!(run.on(Event::Ended(Role::Ledger)), []);
            assert_eq!(run.wake(), (expected, vec![Action::Start(Unit::Ledger)]));
        }
        run.now += STEADY;
        run.on(Event::Ended(Role::Ledger));
        assert_eq!(run.wake(), (DELAY_MIN, vec![Action::Start(Unit::Ledger)]));
    }

    #[test]
    fn a_stop_goes_server_warden_ledger() {
        let mut run = Run::started();
        assert_eq!(run.on(DRAIN), [Action::Tell(Role::Server)]);
        assert_eq!(run.on(DRAIN), [], "told once");
        assert_eq!(run.on(Event::Ended(Role::Server)), []);
        assert_eq!(run.on(Event::Ended(Role::Warden)), [Action::Tell(Role::Ledger)]);
        assert_eq!(run.on(Event::Ended(Role::Ledger)), [Action::Finish]);
    }

    #[test]
    fn a_stop_has_a_deadline_at_every_step() {
        let mut run = Run::started();
        run.on(DRAIN);
        let (waited, killed) = run.wake();
        assert_eq!((waited, killed.len()), (Duration::from_secs(10) + CUT, 2), "both: the drain is over");
        run.on(Event::Ended(Role::Warden));
        assert_eq!(run.on(Event::Ended(Role::Server)), [Action::Tell(Role::Ledger)]);
        assert_eq!(run.wake(), (GRACE, vec![Action::Kill(Role::Ledger)]));
        assert_eq!(run.on(Event::Ended(Role::Ledger)), [Action::Finish]);
    }

    #[test]
    fn a_server_that_stops_may_end_after_its_warden() {
        let mut run = Run::started();
        run.on(DRAIN);
        assert_eq!(run.on(Event::Ended(Role::Warden)), []);
        assert_eq!(run.on(Event::Ended(Role::Server)), [Action::Tell(Role::Ledger)]);

        let mut run = Run::started();
        run.on(DRAIN);
        run.on(Event::Ended(Role::Warden));
        assert_eq!(run.wake(), (CUT, vec![Action::Kill(Role::Server)]), "one that does not is killed");
    }

    #[test]
    fn a_stop_does_not_start_what_is_down() {
        let mut run = Run::started();
        run.on(Event::Ended(Role::Ledger));
        run.on(Event::Ended(Role::Server));
        run.on(Event::Ended(Role::Warden));
        assert_eq!(run.on(DRAIN), [Action::Finish]);
        assert_eq!(run.machine.wake_at(), None);
    }

    #[test]
    fn a_stop_while_the_service_is_going_down_waits_for_it() {
        let mut run = Run::started();
        run.on(Event::Ended(Role::Server));
        assert_eq!(run.on(DRAIN), []);
        assert_eq!(run.on(Event::Ended(Role::Warden)), [Action::Tell(Role::Ledger)]);
    }
}
