//! A core's coarse clock: thousands of deadlines, one timer, and nothing to pay for setting one but a store.
//!
//! Time is counted in ticks. A tick looks at every deadline and wakes whoever waits for one that has passed, so arming and
//! disarming, which happen several times a request, touch no timer. A core that stalls counts fewer ticks, so its clients
//! are not blamed for it. With no deadline alive the clock stands still and the core sleeps.
//!
//! All of it is `Send + Sync` because hyper asks that of timers; in fact it stays on one core and no lock is contended.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

const NEVER: u64 = u64::MAX;

/// A handle of the core's clock.
#[derive(Clone, Debug)]
pub(crate) struct Clock(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    tick: Duration,
    now: AtomicU64,
    deadlines: Mutex<Vec<Weak<Deadline>>>,
    /// Waits for the first deadline.
    keeper: Mutex<Option<Waker>>,
}

/// A point in time that moves with every [`arm`](Deadline::arm).
#[derive(Debug)]
pub(crate) struct Deadline {
    due: AtomicU64,
    waiter: Mutex<Option<Waker>>,
    /// A deadline that passes when this one does.
    parent: Option<Arc<Deadline>>,
}

impl Clock {
    pub(crate) fn new(tick: Duration) -> Self {
        let (deadlines, keeper) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Shared { tick, now: AtomicU64::new(1), deadlines, keeper }))
    }

    /// A deadline that is not armed.
    pub(crate) fn deadline(&self) -> Arc<Deadline> {
        self.register(None)
    }

    /// A deadline that is not armed, and that makes `parent` pass with it.
    pub(crate) fn deadline_of(&self, parent: &Arc<Deadline>) -> Arc<Deadline> {
        self.register(Some(Arc::clone(parent)))
    }

    /// The tick at which `duration` has surely passed.
    pub(crate) fn after(&self, duration: Duration) -> u64 {
        let ticks = duration.as_nanos().div_ceil(self.0.tick.as_nanos().max(1));
        self.0.now.load(Relaxed).saturating_add(u64::try_from(ticks).unwrap_or(NEVER)).saturating_add(1)
    }

    /// Ticks for ever, with pauses while no deadline is alive. `each` tick comes before those whose deadline it is.
    pub(crate) async fn keep(&self, each: impl Fn()) {
        loop {
            std::future::poll_fn(|cx| self.poll_needed(cx)).await;
            appliance_runtime::sleep(self.0.tick).await;
            each();
            self.advance();
        }
    }

    /// One tick.
    pub(crate) fn advance(&self) {
        let now = self.0.now.fetch_add(1, Relaxed) + 1;
        self.each(|deadline| {
            if deadline.due.load(Relaxed) <= now {
                deadline.pass();
            }
        });
    }

    /// Wakes whoever waits for any deadline, passed or not.
    pub(crate) fn wake_all(&self) {
        self.each(Deadline::wake);
    }

    /// Makes every deadline pass.
    pub(crate) fn pass_all(&self) {
        self.each(Deadline::pass);
    }

    fn register(&self, parent: Option<Arc<Deadline>>) -> Arc<Deadline> {
        let deadline = Arc::new(Deadline { due: AtomicU64::new(NEVER), waiter: Mutex::default(), parent });
        lock(&self.0.deadlines).push(Arc::downgrade(&deadline));
        if let Some(keeper) = lock(&self.0.keeper).take() {
            keeper.wake();
        }
        deadline
    }

    /// Calls `act` for every deadline alive, without the lock, and forgets those that are not.
    fn each(&self, act: impl FnMut(&Deadline)) {
        let mut alive = Vec::new();
        lock(&self.0.deadlines).retain(|deadline| match deadline.upgrade() {
            Some(deadline) => {
                alive.push(deadline);
                true
            }
            None => false,
        });
        alive.iter().map(Arc::as_ref).for_each(act);
    }

    fn poll_needed(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !lock(&self.0.deadlines).is_empty() {
            return Poll::Ready(());
        }
        *lock(&self.0.keeper) = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Deadline {
    /// Passes at tick `due`, and not at the one set before.
    pub(crate) fn arm(&self, due: u64) {
        self.due.store(due, Relaxed);
    }

    /// Passes no more.
    pub(crate) fn disarm(&self) {
        self.due.store(NEVER, Relaxed);
    }

    pub(crate) fn is_armed(&self) -> bool {
        self.due.load(Relaxed) != NEVER
    }

    /// Passes now, with its parent.
    pub(crate) fn pass(&self) {
        self.due.store(0, Relaxed);
        self.wake();
        if let Some(parent) = &self.parent {
            parent.pass();
        }
    }

    /// Ready when the clock has found the deadline passed.
    pub(crate) fn poll_passed(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.due.load(Relaxed) == 0 {
            return Poll::Ready(());
        }
        let mut waiter = lock(&self.waiter);
        if !waiter.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waiter = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    fn wake(&self) {
        if let Some(waiter) = lock(&self.waiter).take() {
            waiter.wake();
        }
    }
}

/// Nothing is left half done under these locks, so a panic elsewhere does not spoil what they guard.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// hyper's timer.
impl hyper::rt::Timer for Clock {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        let deadline = self.deadline();
        deadline.arm(self.after(duration));
        Box::pin(Sleep(deadline))
    }

    fn sleep_until(&self, instant: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep(instant.saturating_duration_since(Instant::now()))
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn hyper::rt::Sleep>>, instant: Instant) {
        match sleep.as_mut().downcast_mut_pin::<Sleep>() {
            Some(sleep) => sleep.0.arm(self.after(instant.saturating_duration_since(Instant::now()))),
            None => *sleep = self.sleep_until(instant),
        }
    }
}

struct Sleep(Arc<Deadline>);

impl hyper::rt::Sleep for Sleep {}

impl Future for Sleep {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_passed(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(250);

    fn passed(deadline: &Deadline) -> bool {
        deadline.poll_passed(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_deadline_passes_when_its_time_surely_has_and_not_before() {
        let clock = Clock::new(TICK);
        let deadline = clock.deadline();
        deadline.arm(clock.after(Duration::from_millis(251)));
        for _ in 0..2 {
            clock.advance();
            assert!(!passed(&deadline));
        }
        clock.advance();
        assert!(passed(&deadline));
    }

    #[test]
    fn what_is_disarmed_or_moved_does_not_pass() {
        let clock = Clock::new(TICK);
        let (disarmed, moved) = (clock.deadline(), clock.deadline());
        disarmed.arm(clock.after(TICK));
        moved.arm(clock.after(TICK));
        disarmed.disarm();
        moved.arm(clock.after(10 * TICK));
        for _ in 0..5 {
            clock.advance();
        }
        assert!(!passed(&disarmed) && !passed(&moved));
    }

    #[test]
    fn a_parent_passes_with_its_child_and_the_dropped_are_forgotten() {
        let clock = Clock::new(TICK);
        let parent = clock.deadline();
        let child = clock.deadline_of(&parent);
        child.arm(clock.after(TICK));
        drop(clock.deadline());
        clock.advance();
        assert_eq!(lock(&clock.0.deadlines).len(), 2);
        clock.advance();
        assert!(passed(&parent));
    }
}
