//! What a key may use: requests and tokens a minute, and requests at once. Pure: `now` and values in, decision out.
//!
//! ```text
//!  ask(tokens at worst) ─┬▶ Refused: which limit, and when there is room again
//!                        └▶ running ── settle(reserved, used) ──▶ gone; what was reserved and not used is back
//! ```
//!
//! A limit of `n` a minute is a bucket of `n` that refills evenly (the generic cell rate algorithm, counted in integers):
//! in any stretch of time at most `n` and what refills in it is granted, so after a pause of a minute `n` at once.
//!
//! Invariants: a request that is refused has taken nothing; what is granted by [`Limiter::ask`] is settled once. Tokens
//! are estimated before they are counted, so a bucket may end up in debt, which later requests wait for; what is reported
//! is never below zero. Left out: budgets of money.

use std::time::{Duration, Instant};

const MINUTE_NS: u128 = 60_000_000_000;
/// Assumed of a request until one was measured.
const SERVICE_UNKNOWN: Duration = Duration::from_secs(1);

/// The limits of a key; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests a minute.
    pub rpm: Option<u32>,
    /// Tokens a minute, of prompts and answers.
    pub tpm: Option<u32>,
    /// Requests at once, waiting ones included.
    pub concurrency: Option<u32>,
}

/// Which limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Requests a minute.
    Rpm,
    /// Tokens a minute.
    Tpm,
    /// Requests at once.
    Concurrency,
}

/// A request is more than its key may use now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The limit that it meets.
    pub limit: Limit,
    /// How much that allows.
    pub allowed: u32,
    /// When there is room, if nothing else comes; `None`: never, the request alone is more than is allowed.
    pub retry_after: Option<Duration>,
}

/// How a bucket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What it holds when it is full.
    pub limit: u32,
    /// What can be taken now.
    pub remaining: u32,
    /// When it is full again, if nothing is taken.
    pub reset: Duration,
}

/// A key's use of its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limiter {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    concurrency: Option<u32>,
    running: u32,
    service: Option<Duration>,
}

impl Limiter {
    /// Nothing used yet.
    pub fn new(limits: Limits) -> Self {
        let Limits { rpm, tpm, concurrency } = limits;
        Self { requests: rpm.map(Bucket::new), tokens: tpm.map(Bucket::new), concurrency, running: 0, service: None }
    }

    /// Takes one request that may use `tokens` at worst.
    ///
    /// # Errors
    /// The limit that it meets; nothing is taken then.
    pub fn ask(&mut self, now: Instant, tokens: u32) -> Result<(), Refused> {
        self.check_concurrency()?;
        let refused = |limit| move |(allowed, retry_after)| Refused { limit, allowed, retry_after };
        check(self.requests.as_mut(), now, 1).map_err(refused(Limit::Rpm))?;
        check(self.tokens.as_mut(), now, tokens).map_err(refused(Limit::Tpm))?;
        self.requests.iter_mut().for_each(|bucket| bucket.take(1));
        self.tokens.iter_mut().for_each(|bucket| bucket.take(tokens));
        self.running += 1;
        Ok(())
    }

    /// A request that was granted with `reserved` tokens `took` ago has ended, having used `used`.
    pub fn settle(&mut self, now: Instant, reserved: u32, used: u32, took: Duration) {
        self.running = self.running.saturating_sub(1);
        self.service = Some(self.service.map_or(took, |mean| (mean * 7 + took) / 8));
        if let Some(bucket) = &mut self.tokens {
            bucket.drain(now);
            bucket.give_back(reserved, used, took);
            bucket.take(used.saturating_sub(reserved));
        }
    }

    /// How the bucket of requests stands, where there is one.
    pub fn requests(&self, now: Instant) -> Option<Standing> {
        self.requests.as_ref().map(|bucket| bucket.standing(now))
    }

    /// How the bucket of tokens stands, where there is one.
    pub fn tokens(&self, now: Instant) -> Option<Standing> {
        self.tokens.as_ref().map(|bucket| bucket.standing(now))
    }

    fn check_concurrency(&self) -> Result<(), Refused> {
        match self.concurrency {
            Some(allowed) if self.running >= allowed => {
                let one_ends = self.service.unwrap_or(SERVICE_UNKNOWN) / self.running.max(1);
                let retry_after = (allowed > 0).then_some(one_ends);
                Err(Refused { limit: Limit::Concurrency, allowed, retry_after })
            }
            _ => Ok(()),
        }
    }
}

fn check(bucket: Option<&mut Bucket>, now: Instant, cost: u32) -> Result<(), (u32, Option<Duration>)> {
    let Some(bucket) = bucket else { return Ok(()) };
    bucket.drain(now);
    match bucket.wait(cost) {
        Some(Duration::ZERO) => Ok(()),
        wait => Err((bucket.limit, wait)),
    }
}

/// What was taken leaks away at `limit` a minute. Levels are in units of 1/[`MINUTE_NS`], so that a nanosecond leaks a
/// whole number of them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bucket {
    limit: u32,
    level: u128,
    /// When `level` was right; `None` before the first use.
    at: Option<Instant>,
}

impl Bucket {
    fn new(limit: u32) -> Self {
        Self { limit, level: 0, at: None }
    }

    fn capacity(&self) -> u128 {
        scaled(self.limit)
    }

    /// The level at `now`; that of the last use for a `now` before it.
    fn level(&self, now: Instant) -> u128 {
        let elapsed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.level.saturating_sub(elapsed.as_nanos() * u128::from(self.limit))
    }

    fn drain(&mut self, now: Instant) {
        self.level = self.level(now);
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
    }

    /// How long until `cost` can be taken; `None`: it never can.
    fn wait(&self, cost: u32) -> Option<Duration> {
        let over = (self.level + scaled(cost)).saturating_sub(self.capacity());
        (cost <= self.limit).then(|| self.leaks(over))
    }

    fn take(&mut self, cost: u32) {
        self.level += scaled(cost);
    }

    /// Of what was taken `ago`, all that was not used and cannot have leaked since.
    fn give_back(&mut self, taken: u32, used: u32, ago: Duration) {
        let unleaked = scaled(taken).saturating_sub(ago.as_nanos() * u128::from(self.limit));
        self.level = self.level.saturating_sub(unleaked.min(scaled(taken.saturating_sub(used))));
    }

    fn standing(&self, now: Instant) -> Standing {
        let level = self.level(now);
        let remaining = self.capacity().saturating_sub(level) / MINUTE_NS;
        let remaining = u32::try_from(remaining).expect("no more than the limit, which is one");
        Standing { limit: self.limit, remaining, reset: self.leaks(level) }
    }

    /// How long `level` takes to leak away.
    fn leaks(&self, level: u128) -> Duration {
        match self.limit {
            0 => Duration::ZERO,
            limit => Duration::from_nanos(u64::try_from(level.div_ceil(u128::from(limit))).unwrap_or(u64::MAX)),
        }
    }
}

fn scaled(cost: u32) -> u128 {
    u128::from(cost) * MINUTE_NS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rpm(limit: u32) -> Limiter {
        Limiter::new(Limits { rpm: Some(limit), ..Limits::default() })
    }

    fn tpm(limit: u32) -> Limiter {
        Limiter::new(Limits { tpm: Some(limit), ..Limits::default() })
    }

    #[test]
    fn without_limits_all_pass() {
        let (mut limiter, now) = (Limiter::new(Limits::default()), Instant::now());
        (0..1000).for_each(|_| limiter.ask(now, u32::MAX).unwrap());
        assert_eq!((limiter.requests(now), limiter.tokens(now)), (None, None));
    }

    #[test]
    fn a_limit_of_none_never_grants_and_says_so() {
        let now = Instant::now();
        let none = Limits { rpm: Some(0), ..Limits::default() };
        let never = |limit| Err(Refused { limit, allowed: 0, retry_after: None });
        assert_eq!(Limiter::new(none).ask(now + SECOND * 3600, 0), never(Limit::Rpm));
        let none = Limits { concurrency: Some(0), ..Limits::default() };
        assert_eq!(Limiter::new(none).ask(now, 0), never(Limit::Concurrency));
        assert_eq!(tpm(0).ask(now, 1), never(Limit::Tpm));
        assert_eq!(tpm(0).ask(now, 0), Ok(()));
    }

    #[test]
    fn a_limit_of_one_grants_one_a_minute() {
        let (mut limiter, now) = (rpm(1), Instant::now());
        assert_eq!(limiter.requests(now), Some(Standing { limit: 1, remaining: 1, reset: Duration::ZERO }));
        assert_eq!(limiter.ask(now, 0), Ok(()));
        assert_eq!(limiter.requests(now), Some(Standing { limit: 1, remaining: 0, reset: SECOND * 60 }));
        let refused = Refused { limit: Limit::Rpm, allowed: 1, retry_after: Some(SECOND * 50) };
        assert_eq!(limiter.ask(now + SECOND * 10, 0), Err(refused));
        assert_eq!(limiter.ask(now + SECOND * 60, 0), Ok(()));
    }

    #[test]
    fn requests_at_once_are_counted_until_they_end() {
        let limits = Limits { concurrency: Some(2), ..Limits::default() };
        let (mut limiter, now) = (Limiter::new(limits), Instant::now());
        assert_eq!((limiter.ask(now, 0), limiter.ask(now, 0)), (Ok(()), Ok(())));
        let refused = Refused { limit: Limit::Concurrency, allowed: 2, retry_after: Some(SECOND / 2) };
        assert_eq!(limiter.ask(now, 0), Err(refused));
        limiter.settle(now, 0, 0, SECOND * 8);
        assert_eq!(limiter.ask(now, 0), Ok(()));
        assert_eq!(limiter.ask(now, 0).unwrap_err().retry_after, Some(SECOND * 4), "by the measured time");
    }

    #[test]
    fn tokens_are_reserved_at_worst_and_settled_to_what_was_used() {
        let (mut limiter, now) = (tpm(600), Instant::now());
        let too_much = Refused { limit: Limit::Tpm, allowed: 600, retry_after: None };
        assert_eq!(limiter.ask(now, 601), Err(too_much));
        assert_eq!(limiter.ask(now, 600), Ok(()));
        assert_eq!(limiter.ask(now, 10).unwrap_err().retry_after, Some(SECOND));
        limiter.settle(now, 600, 100, Duration::ZERO);
        assert_eq!(limiter.tokens(now), Some(Standing { limit: 600, remaining: 500, reset: SECOND * 10 }));
        assert_eq!(limiter.ask(now, 500), Ok(()));
        limiter.settle(now, 500, 1100, Duration::ZERO);
        assert_eq!(limiter.tokens(now), Some(Standing { limit: 600, remaining: 0, reset: SECOND * 120 }), "a debt");
        assert_eq!(limiter.ask(now, 1).unwrap_err().retry_after, Some(SECOND * 60 + SECOND / 10));
    }

    #[test]
    fn a_request_that_meets_its_second_limit_has_not_taken_of_its_first() {
        let limits = Limits { rpm: Some(5), tpm: Some(5), concurrency: Some(1) };
        let (mut limiter, now) = (Limiter::new(limits), Instant::now());
        assert_eq!(limiter.ask(now, 6).unwrap_err().limit, Limit::Tpm);
        assert_eq!(limiter.requests(now).unwrap().remaining, 5);
        assert_eq!(limiter.ask(now, 5), Ok(()));
    }

    proptest! {
        /// In any stretch of time no more is granted than the burst and what refills in it.
        #[test]
        fn the_rate_holds_in_every_window(
            limit in 0u32..50,
            gaps_ms in prop::collection::vec(0u64..5_000, 1..200),
        ) {
            let (mut limiter, base) = (rpm(limit), Instant::now());
            let mut at_ms = 0;
            let mut granted = Vec::new();
            for gap in gaps_ms {
                at_ms += gap;
                if limiter.ask(base + Duration::from_millis(at_ms), 0).is_ok() {
                    granted.push(at_ms);
                }
            }
            for (first, from) in granted.iter().enumerate() {
                for (last, to) in granted.iter().enumerate().skip(first) {
                    let within = (last - first + 1) as u64;
                    prop_assert!(within <= u64::from(limit) + (to - from) * u64::from(limit) / 60_000);
                }
            }
        }

        /// A refused request is granted at the time that it was told, and not a millisecond before.
        #[test]
        fn retry_after_is_exact(limit in 1u32..100_000, costs in prop::collection::vec(1u32..2_000, 1..60)) {
            let (mut limiter, mut now) = (tpm(limit), Instant::now());
            for cost in costs {
                let Err(refused) = limiter.ask(now, cost) else { continue };
                match refused.retry_after {
                    None => prop_assert!(cost > limit),
                    Some(wait) => {
                        let early = now + wait.saturating_sub(Duration::from_millis(1));
                        prop_assert!(early == now || limiter.clone().ask(early, cost).is_err());
                        now += wait;
                        prop_assert_eq!(limiter.ask(now, cost), Ok(()));
                    }
                }
            }
        }

        /// Used tokens keep to the rate as well, however late a request is settled.
        #[test]
        fn the_rate_holds_for_what_is_used(
            limit in 1u32..300,
            steps in prop::collection::vec((0u32..300, 0u32..300, 0u64..20_000, 0usize..4), 1..80),
        ) {
            let (mut limiter, base) = (tpm(limit), Instant::now());
            let (mut at_ms, mut running, mut used_at) = (0, Vec::new(), Vec::new());
            for (reserve, used, gap_ms, which) in steps {
                at_ms += gap_ms;
                let now = base + Duration::from_millis(at_ms);
                if which < running.len() {
                    let (granted_ms, reserved): (u64, u32) = running.remove(which);
                    let used = used.min(reserved);
                    limiter.settle(now, reserved, used, Duration::from_millis(at_ms - granted_ms));
                    used_at.push((granted_ms, used));
                }
                if limiter.ask(now, reserve).is_ok() {
                    running.push((at_ms, reserve));
                }
            }
            for (from, _) in &used_at {
                for (to, _) in used_at.iter().filter(|(to, _)| to >= from) {
                    let within: u64 = used_at.iter().filter(|(at, _)| (from..=to).contains(&at)).map(|(_, n)| u64::from(*n)).sum();
                    prop_assert!(within <= u64::from(limit) + (to - from) * u64::from(limit) / 60_000);
                }
            }
        }

        /// However requests are settled, what is reported stays within the limit and nothing runs below zero.
        #[test]
        fn settling_never_goes_below_zero(
            limit in 0u32..1_000,
            steps in prop::collection::vec((0u32..1_500, 0u32..3_000, 0u64..30_000, any::<bool>()), 1..100),
        ) {
            let limits = Limits { tpm: Some(limit), concurrency: Some(3), ..Limits::default() };
            let (mut limiter, mut now) = (Limiter::new(limits), Instant::now());
            let mut running = Vec::new();
            for (reserve, used, gap_ms, end) in steps {
                now += Duration::from_millis(gap_ms);
                if limiter.ask(now, reserve).is_ok() {
                    running.push(reserve);
                }
                if end && let Some(reserved) = running.pop() {
                    limiter.settle(now, reserved, used, Duration::from_millis(gap_ms));
                }
                prop_assert!(running.len() <= 3);
                let standing = limiter.tokens(now).unwrap();
                prop_assert!(standing.remaining <= limit);
            }
            let count = running.len();
            running.into_iter().for_each(|reserved| limiter.settle(now, reserved, 0, Duration::ZERO));
            prop_assert_eq!(limiter.running, 0, "of {} that ran", count);
            let later = now + SECOND * 60 * 10_000;
            prop_assert_eq!(limiter.tokens(later).unwrap().remaining, limit, "debts are paid");
        }
    }
}
