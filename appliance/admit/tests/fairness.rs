//! One key floods a function, another asks now and then: what the other waits, by the server's own queue in virtual time.
//!
//! ```text
//!  flood ─ four times what the slots can do ─┐                        ┌ slot ┐
//!  quiet ─ one at a time, irregular gaps ────┴▶ Queue, 64 at most ──▶ └ slot ┘  each busy for one service time
//! ```
//!
//! First come, first served is the same queue with all requests under one key. Left out: wakes, and pauses of batch, which
//! only shorten the wait. The table: `cargo test --release --locked -p appliance-admit --test fairness -- --nocapture`.

use appliance_admit::queue::{Class, Place, Queue};
use std::collections::HashMap;

const SERVICE_MS: u64 = 1_000;
const QUEUE_MAX: usize = 64;
const QUIET_REQUESTS: u64 = 500;

#[derive(Clone, Copy)]
struct Load {
    slots: usize,
    /// Whether there is one, and its class.
    flood: Option<Class>,
    /// Whether keys take turns.
    turns: bool,
}

#[derive(Debug)]
struct Waits {
    sorted_ms: Vec<u64>,
    refused: u64,
}

impl Waits {
    fn p(&self, percent: usize) -> u64 {
        let rank = (self.sorted_ms.len() * percent).div_ceil(100);
        self.sorted_ms.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// What the quiet key's requests wait; always the same.
fn waits(load: Load) -> Waits {
    let (mut queue, mut places) = (Queue::default(), HashMap::<u64, (Place, bool)>::new());
    let mut free_at = vec![0; load.slots];
    let mut waits = Waits { sorted_ms: Vec::new(), refused: 0 };
    let (mut asked, mut quiet_comes, mut quiet_came, mut ticket) = (0, Some(10_000), 0, 0);
    let flood_gap_ms = SERVICE_MS / (4 * load.slots as u64);
    for now in 0.. {
        let floods = load.flood.filter(|_| now % flood_gap_ms == 0).map(|class| (class, false));
        let quiet = quiet_comes.take_if(|at| *at <= now).map(|_| (Class::Interactive, true));
        for (class, is_quiet) in floods.into_iter().chain(quiet) {
            ticket += 1;
            let key = u8::from(is_quiet && load.turns);
            let place = queue.push(&key, 1, class, ticket);
            places.insert(ticket, (place, is_quiet));
            if is_quiet {
                (asked, quiet_came) = (asked + 1, now);
            }
        }
        let mut ended_at = None;
        while let Some(slot) = free_at.iter_mut().find(|at| **at <= now) {
            let Some(taken) = queue.pop() else { break };
            *slot = now + SERVICE_MS;
            if places.remove(&taken).is_some_and(|(_, is_quiet)| is_quiet) {
                waits.sorted_ms.push(now - quiet_came);
                ended_at = Some(*slot);
            }
        }
        while queue.len() > QUEUE_MAX {
            let Some((place, is_quiet)) = queue.last(|_| true).and_then(|last| places.remove(&last)) else { break };
            queue.remove(&place);
            if is_quiet {
                (waits.refused, ended_at) = (waits.refused + 1, Some(now));
            }
        }
        if let Some(at) = ended_at {
            if asked == QUIET_REQUESTS {
                break;
            }
            quiet_comes = Some(at + 1 + asked * 7_919 % 1_501);
        }
    }
    waits.sorted_ms.sort_unstable();
    waits
}

#[test]
fn a_flood_raises_another_keys_p99_by_one_service_time_at_most() {
    println!("SLOTS  FLOOD        ORDER  P50 ms  P99 ms  REFUSED");
    for slots in [1, 4] {
        let alone = waits(Load { slots, flood: None, turns: true });
        assert_eq!((alone.p(99), alone.refused), (0, 0));
        for (name, class) in [("interactive", Class::Interactive), ("batch", Class::Batch)] {
            let [turns, fifo] = [true, false].map(|turns| waits(Load { slots, flood: Some(class), turns }));
            for (order, waits) in [("turns", &turns), ("fifo", &fifo)] {
                println!("{slots:<6} {name:<12} {order:<6} {:<7} {:<7} {}", waits.p(50), waits.p(99), waits.refused);
            }
            assert_eq!((turns.sorted_ms.len() as u64, turns.refused), (QUIET_REQUESTS, 0));
            assert!(turns.p(100) <= alone.p(100) + SERVICE_MS, "{turns:?}");
            if class == Class::Interactive {
                let suffers = fifo.refused > 0 || fifo.p(99) > 10 * SERVICE_MS;
                assert!(suffers, "without turns the flood is felt, or this shows nothing: {fifo:?}");
            }
        }
    }
}
