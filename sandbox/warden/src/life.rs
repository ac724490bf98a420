//! What a process takes of the machine, from its lease to its end, by this side's clock and the kernel's counters.
//!
//! ```text
//!  lease ──▶ told ──▶ told … ──▶ end       each part is told once, and added to the sum of all
//! ```
//! Invariant: parts follow each other without a gap or an overlap, so that what is told adds up to the lives.

use sandbox_wire::warden::Spent;
use std::time::{Duration, Instant};

/// A life, and how much of it is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    since: Instant,
    told_us: u64,
    /// What its process had used when the last part was told, and when it was last read, µs.
    told_cpu_us: u64,
    cpu_us: u64,
    /// CPU time of earlier processes of this lease, whose counters are gone, µs.
    before_us: u64,
    /// Memory that its process is held to, and that it was last seen to use, bytes.
    reserved_bytes: u64,
    used_bytes: u64,
}

impl Life {
    /// One that begins. Until its limit is known it reserves nothing, which it can use nothing of.
    pub(crate) fn begin(since: Instant) -> Self {
        Self { since, told_us: 0, told_cpu_us: 0, cpu_us: 0, before_us: 0, reserved_bytes: 0, used_bytes: 0 }
    }

    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// It is held to so many bytes, from its beginning.
    pub(crate) fn reserve(&mut self, bytes: u64) {
        self.reserved_bytes = bytes;
    }

    /// The kernel counts so much. CPU time never shrinks; of memory nothing is known where none is given.
    pub(crate) fn read(&mut self, cpu_us: u64, used_bytes: Option<u64>) {
        self.cpu_us = self.cpu_us.max(self.before_us + cpu_us);
        self.used_bytes = used_bytes.unwrap_or(self.used_bytes);
    }

    /// Its process is gone, and this was the kernel's last count: another's begins at nothing.
    pub(crate) fn process_gone(&mut self, cpu_us: u64) {
        self.read(cpu_us, None);
        self.before_us = self.cpu_us;
    }

    /// CPU time of the parts that are told, µs.
    pub(crate) fn told_cpu_us(&self) -> u64 {
        self.told_cpu_us
    }

    /// What was taken until `now` and is not told.
    pub(crate) fn untold(&self, now: Instant) -> Spent {
        let us = self.until_us(now) - self.told_us;
        let over = |bytes: u64| u128::from(us) * u128::from(bytes);
        let (reserved_byte_us, used_byte_us) = (over(self.reserved_bytes), over(self.used_bytes));
        Spent { us, cpu_us: self.cpu_us - self.told_cpu_us, reserved_byte_us, used_byte_us }
    }

    /// The same, which is told now.
    pub(crate) fn tell(&mut self, now: Instant) -> Spent {
        let spent = self.untold(now);
        (self.told_us, self.told_cpu_us) = (self.until_us(now), self.cpu_us);
        spent
    }

    /// It is another's from that moment on, up to which all that it was is told; the other began with a call that it did not
    /// know of. What was told behind the call stays told.
    pub(crate) fn goes_on_as(self, other: Life) -> Self {
        let told = self.since + Duration::from_micros(self.told_us);
        let told_us = told.saturating_duration_since(other.since).as_micros() as u64;
        Self { since: other.since, told_us, ..self }
    }

    fn until_us(&self, now: Instant) -> u64 {
        (now.saturating_duration_since(self.since).as_micros() as u64).max(self.told_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_told_adds_up_to_the_life(
            bytes in 0..1_u64 << 40,
            parts in prop::collection::vec((0..10_000_000_u64, 0..1_000_u64), 1..20),
        ) {
            let since = Instant::now();
            let (mut life, mut sum) = (Life::begin(since), Spent::default());
            life.reserve(bytes);
            let (mut now, mut cpu_us) = (since, 0);
            for (ns, us) in parts {
                now += Duration::from_nanos(ns);
                cpu_us += us;
                life.read(cpu_us, Some(1));
                sum.add(life.tell(now));
                prop_assert_eq!(life.untold(now), Spent::default());
            }
            let us = now.duration_since(since).as_micros();
            prop_assert_eq!((u128::from(sum.us), sum.cpu_us, sum.used_byte_us), (us, cpu_us, us));
            prop_assert_eq!(sum.reserved_byte_us, us * u128::from(bytes));
        }
    }

    #[test]
    fn a_second_process_of_a_lease_counts_from_nothing() {
        let since = Instant::now();
        let mut life = Life::begin(since);
        life.read(30, None);
        life.process_gone(40);
        life.read(5, None);
        life.process_gone(7);
        assert_eq!(life.tell(since).cpu_us, 47);
    }

    #[test]
    fn a_spare_ends_where_a_call_begins_and_what_it_used_is_not_the_calls() {
        let since = Instant::now();
        let ms = |ms| since + Duration::from_millis(ms);
        let mut spare = Life::begin(since);
        spare.reserve(3);
        spare.read(40, Some(1));
        let call = Life::begin(ms(7));
        assert_eq!(
            spare.tell(call.since()),
            Spent { us: 7_000, cpu_us: 40, reserved_byte_us: 21_000, used_byte_us: 7_000 }
        );
        let mut instance = spare.goes_on_as(call);
        assert_eq!(instance.told_cpu_us(), 40);
        instance.read(65, None);
        assert_eq!(instance.tell(ms(9)), Spent { us: 2_000, cpu_us: 25, reserved_byte_us: 6_000, used_byte_us: 2_000 });
    }
}
