//! Whether another instance fits into memory, and which idle ones give way to it. Pure.
//!
//! ```text
//!  total ─┬─ leases    what each instance, up or waking, may use of its own ([`reservation`]); its cgroup holds it to that
//!         ├─ weights   each model once, while an instance of it is up or waking
//!         ├─ images    of functions that are held in memory, each once however many instances share it
//!         └─ free      what a wake may take
//! ```
//!
//! Who gives way is chosen by greedy-dual: who was called least, is woken again soonest, and frees most goes first; each
//! that went raises the bar for those that stay untouched (P. Cao and S. Irani, Cost-Aware WWW Proxy Caching Algorithms,
//! 1997; with frequencies, L. Cherkasova, 1998). Invariants: what was said to fit fits beside all that is held; nobody
//! gives way to what would not fit even then, and nobody more than is needed.

/// Memory that functions share, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// Of that, what may be held now: less while the host is short of memory.
    pub usable: u64,
    /// What is held, also by those that are leaving.
    pub held: u64,
    /// Of what is held, what is being given back.
    pub leaving: u64,
}

/// Something idle that could give way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Idle {
    /// What that would free, bytes.
    pub bytes: u64,
    /// What it is worth, by [`credit`].
    pub credit: f64,
}

/// What an instance reserves that needs `needs_bytes` before any request, takes requests of up to `request_bytes`, and may
/// use up to `cap_bytes`.
///
/// What it needs is all memory that it may write to, the KV cache at full context in each slot and the scratch of the
/// largest step included, touched or not. What comes with requests is added: their texts, of which tokenizers make over a
/// hundred times as much, and what answers are made with.
pub fn reservation(needs_bytes: u64, request_bytes: u64, cap_bytes: u64) -> u64 {
    let requests = request_bytes.saturating_mul(TOKENIZED);
    let spare = (needs_bytes / NEEDS_PER_SPARE).saturating_add(SPARE_BYTES);
    let all = needs_bytes.saturating_add(requests).saturating_add(spare);
    all.checked_next_multiple_of(GRAIN_BYTES).unwrap_or(all).min(cap_bytes)
}

/// Bytes that tokenizing takes for each byte of a text: 133 were measured, of a single word of 1 MB.
const TOKENIZED: u64 = 160;
/// Samplers, grammars and log-probabilities of all slots: an eighth of what is needed anyway, and something.
const NEEDS_PER_SPARE: u64 = 8;
const SPARE_BYTES: u64 = 16 << 20;
/// Two captures of a function differ by some pages, and are not to differ in what is billed.
const GRAIN_BYTES: u64 = 16 << 20;

/// Whether there is room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Room {
    /// There is.
    Fits,
    /// There will be, once these of the idle ones have gone.
    Evict(Vec<usize>),
    /// There may be, once something that is busy or leaving has ended.
    Wait,
    /// There never is.
    Never,
}

impl Memory {
    /// What a wake may take.
    pub fn free(&self) -> u64 {
        self.usable.saturating_sub(self.held)
    }

    /// Whether `need` more bytes can be had.
    pub fn room(&self, need: u64, idle: &[Idle]) -> Room {
        if need > self.total {
            return Room::Never;
        }
        if need <= self.free() {
            return Room::Fits;
        }
        match self.lacking(need) {
            0 => Room::Wait,
            lacking => victims(lacking, idle).map_or(Room::Wait, Room::Evict),
        }
    }

    /// What is to go, or as much of it as there is, so that no more is held than may be.
    pub fn excess(&self, idle: &[Idle]) -> Vec<usize> {
        let all = idle.iter().fold(0_u64, |sum, idle| sum.saturating_add(idle.bytes));
        victims(self.lacking(0).min(all), idle).unwrap_or_default()
    }

    /// What there is too little of, once all that is leaving has left.
    fn lacking(&self, need: u64) -> u64 {
        self.held.saturating_add(need).saturating_sub(self.usable).saturating_sub(self.leaving)
    }
}

/// What something idle is worth: its function was called `calls` times since it was last evicted, waking it again takes
/// `wake_us` longer than if it stays, and it holds `bytes`. `bar` is the worth of the last that gave way when it was
/// last called.
pub fn credit(bar: f64, calls: u64, wake_us: u64, bytes: u64) -> f64 {
    bar + calls.max(1) as f64 * wake_us.max(1) as f64 / bytes.max(1) as f64
}

/// The least worth whose bytes make up `lacking`; `None` where all together do not.
fn victims(lacking: u64, idle: &[Idle]) -> Option<Vec<usize>> {
    let mut order: Vec<usize> = (0..idle.len()).collect();
    order.sort_by(|&a, &b| idle[a].credit.total_cmp(&idle[b].credit));
    let mut freed = 0_u64;
    let mut chosen = Vec::new();
    for index in order {
        if freed >= lacking {
            break;
        }
        freed = freed.saturating_add(idle[index].bytes);
        chosen.push(index);
    }
    if freed < lacking {
        return None;
    }
    // The most worth among them first: those that turned out not to be needed stay.
    for at in (0..chosen.len()).rev() {
        let without = freed - idle[chosen[at]].bytes;
        if without >= lacking {
            freed = without;
            chosen.remove(at);
        }
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn idle(bytes: u64, credit: f64) -> Idle {
        Idle { bytes, credit }
    }

    #[test]
    fn what_is_reserved_is_what_was_measured_and_what_requests_bring() {
        const MIB: u64 = 1 << 20;
        assert_eq!(reservation(175 * MIB, MIB, 1024 * MIB), 384 * MIB);
        assert_eq!(reservation(176 * MIB, MIB, 1024 * MIB), 384 * MIB, "some pages more are no other bill");
        assert_eq!(reservation(175 * MIB, MIB / 16, 1024 * MIB), 224 * MIB);
        assert_eq!(reservation(900 * MIB, MIB, 1024 * MIB), 1024 * MIB, "never past the cap");
        assert_eq!(reservation(u64::MAX, u64::MAX, u64::MAX), u64::MAX);
    }

    #[test]
    fn what_is_called_often_and_slow_to_wake_stays() {
        let memory = Memory { total: 100, usable: 100, held: 90, leaving: 0 };
        let (rare, often) = (credit(0.0, 1, 1_000, 30), credit(0.0, 50, 1_000, 30));
        let (small, slow) = (credit(0.0, 1, 1_000, 3), credit(0.0, 1, 90_000, 30));
        assert!(rare < often && rare < small && rare < slow);
        assert_eq!(memory.room(20, &[idle(30, often), idle(30, rare), idle(30, slow)]), Room::Evict(vec![1]));
        assert!(credit(often, 1, 1_000, 30) > often, "who was called since is worth more than who went");
    }

    #[test]
    fn nobody_goes_in_vain() {
        let memory = Memory { total: 100, usable: 100, held: 90, leaving: 0 };
        assert_eq!(memory.room(10, &[idle(30, 0.0)]), Room::Fits);
        assert_eq!(memory.room(101, &[idle(90, 0.0)]), Room::Never);
        assert_eq!(memory.room(80, &[idle(30, 0.0)]), Room::Wait, "not even all would do");
        assert_eq!(Memory { leaving: 10, ..memory }.room(20, &[idle(30, 0.0)]), Room::Wait, "enough is leaving");
        assert_eq!(memory.room(30, &[idle(1, 0.0), idle(30, 1.0)]), Room::Evict(vec![1]), "one is enough");
    }

    #[test]
    fn what_is_held_beyond_what_may_be_goes_as_far_as_it_can() {
        let short = Memory { total: 100, usable: 60, held: 90, leaving: 0 };
        assert_eq!(short.excess(&[idle(30, 2.0), idle(30, 1.0)]), [1]);
        assert_eq!(short.excess(&[idle(10, 2.0), idle(10, 1.0)]), [1, 0]);
        assert_eq!(Memory { leaving: 30, ..short }.excess(&[idle(10, 1.0)]), []);
    }

    proptest! {
        #[test]
        fn what_is_evicted_makes_room_and_no_more(
            usable in 0_u64..1000, short in 0_u64..100, held in 0_u64..1500, leaving in 0_u64..200, need in 1_u64..1200,
            holders in prop::collection::vec((0_u64..300, 0.0_f64..10.0), 0..8),
        ) {
            let idle: Vec<_> = holders.into_iter().map(|(bytes, credit)| Idle { bytes, credit }).collect();
            let memory = Memory { total: usable + short, usable, held, leaving: leaving.min(held) };
            let fits = |freed: u64| held + need <= usable + memory.leaving + freed;
            match memory.room(need, &idle) {
                Room::Fits => prop_assert!(held + need <= usable),
                Room::Never => prop_assert!(need > usable + short),
                Room::Wait => prop_assert!(fits(0) || !fits(idle.iter().map(|i| i.bytes).sum())),
                Room::Evict(chosen) => {
                    let freed: u64 = chosen.iter().map(|&c| idle[c].bytes).sum();
                    prop_assert!(fits(freed));
                    prop_assert!(chosen.iter().all(|&c| !fits(freed - idle[c].bytes)), "each is needed");
                }
            }
        }
    }
}
