//! How much of a box could still take work, as a load balancer is told it. Pure.
//!
//! ```text
//!  share of cores on which nothing computes ─┐
//!  share of memory that is free or gives way ─┴▶ the lesser ─▶ ÷ (1 + requests that wait) ─▶ 1 to 100 %
//! ```
//! Invariants: more work never raises it; it is never 0, which HAProxy takes for a drain: a box that is full still queues,
//! and says itself whom it does not take. Left out: which function is asked for, since who asks knows neither models nor
//! instances; so what a full box has free in the slots of instances that are up counts for nothing here.

/// How a box stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headroom {
    /// Cores for inference.
    pub cores: u32,
    /// Instances that compute or wake, each on one of them at least.
    pub computing: u32,
    /// Memory for functions, bytes.
    pub memory_bytes: u64,
    /// Of that, what is free, and what idle instances and images would give back.
    pub free_bytes: u64,
    /// Requests that wait.
    pub waiting: usize,
}

impl Headroom {
    /// The weight, of 100 for a box on which nothing runs.
    pub fn percent(self) -> u8 {
        let cores = share(self.cores.saturating_sub(self.computing).into(), self.cores.into());
        let memory = share(self.free_bytes, self.memory_bytes);
        let waiting = u64::try_from(self.waiting).unwrap_or(u64::MAX);
        (cores.min(memory) / waiting.saturating_add(1)).clamp(1, 100) as u8
    }
}

/// `part` of `all`, in %.
fn share(part: u64, all: u64) -> u64 {
    (u128::from(part.min(all)) * 100 / u128::from(all.max(1))) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IDLE: Headroom = Headroom { cores: 4, computing: 0, memory_bytes: 8 << 30, free_bytes: 8 << 30, waiting: 0 };

    #[test]
    fn the_scarcer_of_cores_and_memory_counts() {
        assert_eq!(IDLE.percent(), 100);
        assert_eq!(Headroom { computing: 1, ..IDLE }.percent(), 75);
        assert_eq!(Headroom { computing: 1, free_bytes: 2 << 30, ..IDLE }.percent(), 25);
    }

    #[test]
    fn who_waits_is_ahead_of_who_comes() {
        assert_eq!(Headroom { waiting: 1, ..IDLE }.percent(), 50);
        assert_eq!(Headroom { waiting: 3, computing: 2, ..IDLE }.percent(), 12);
    }

    #[test]
    fn a_full_box_is_told_from_a_drained_one() {
        for full in [
            Headroom { computing: 9, ..IDLE },
            Headroom { free_bytes: 0, ..IDLE },
            Headroom { waiting: usize::MAX, ..IDLE },
            Headroom { cores: 0, memory_bytes: 0, ..IDLE },
        ] {
            assert_eq!(full.percent(), 1, "{full:?}");
        }
    }

    proptest! {
        #[test]
        fn more_work_never_raises_it(
            cores in 0..64_u32, computing in 0..64_u32, memory in any::<u64>(), free in any::<u64>(), waiting in any::<usize>(),
        ) {
            let box_ = Headroom { cores, computing, memory_bytes: memory, free_bytes: free, waiting };
            let busier = Headroom {
                computing: computing + 1, free_bytes: free / 2, waiting: waiting.saturating_add(1), ..box_
            };
            prop_assert!((1..=100).contains(&box_.percent()));
            prop_assert!(busier.percent() <= box_.percent());
        }
    }
}
