//! What to do next with waiting requests: run one, wake an instance, or leave them waiting. Pure: values in, decision out.
//!
//! ```text
//!  oldest request first ─▶ a free slot in a busy instance ───────────▶ Dispatch   (costs no core more)
//!  interactive before    ├▶ an idle instance, a core free ───────────▶ Dispatch
//!  batch                 ├▶ more waiting than will wake, a core free ▶ Wake
//!                        ├▶ the same, but no memory for it ──────────▶ MakeRoom   (nobody younger gets memory either)
//!                        ├▶ no core free, a busy one has several ────▶ Share
//!                        └▶ no core: nobody younger gets one either, and no batch gets anything
//! ```
//!
//! Of several instances that could, the one takes a request that has most of its prompt ([`route`]), an idle one only where a
//! core is free for it. Which of a function's requests is its next is [`queue`]'s to say, what batch gives up for what is interactive
//! [`preempt`]'s, and what a key may use [`limit`]'s. Batch never runs beside interactive requests in an instance: it is
//! paused while they run, and gives up its slots where they need those. It leaves one free where there are several, so that
//! who comes next need not take one.
//!
//! Why cores are leased: ggml's threads spin at barriers, so two busy instances with more threads than cores run many
//! times slower than one. An instance is busy on one core at least and has its share of all ([`cores`]). Invariants: the
//! threads of busy and of waking instances never exceed the cores; nothing is woken that does not fit into memory
//! ([`memory`]).

pub mod cores;
pub mod headroom;
pub mod limit;
pub mod memory;
pub mod preempt;
pub mod queue;
pub mod route;

pub use queue::Class;

use std::time::Instant;

/// A function with requests to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// The class of its next request.
    pub class: Class,
    /// When the oldest waiting request of that class came; `None` when none waits.
    pub oldest: Option<Instant>,
    /// Requests that wait.
    pub waiting: usize,
    /// Of these, requests of the class of the next.
    pub first: usize,
    /// Memory that another instance takes, bytes.
    pub wake_bytes: u64,
    /// Instances being woken.
    pub waking: usize,
    /// Slots that each of those will have, as far as known.
    pub slots: u32,
    /// Most instances.
    pub instances_max: usize,
    /// Instances that take requests.
    pub instances: Vec<Instance>,
}

/// An instance that takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Requests that it can run at once.
    pub slots: u32,
    /// Requests that it has, batch that gave up its slot included.
    pub busy: u32,
    /// Of these, batch.
    pub batch: u32,
    /// Of the batch, those that are paused: they compute nothing.
    pub paused: u32,
    /// Of how many parts of the function's next request it has computed the beginning ([`route::Begun::found`]).
    pub found: usize,
}

/// What to do; indices are those of the arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Give the function's oldest request to this instance.
    Dispatch {
        /// Which function.
        function: usize,
        /// Which of its instances.
        instance: usize,
    },
    /// Start another instance of the function.
    Wake {
        /// Which function.
        function: usize,
    },
    /// Have busy instances give cores back, for the function; there is nothing else to do.
    Share {
        /// Which function.
        function: usize,
    },
    /// Have something idle give way, so that the function can be woken; there is nothing else to do.
    MakeRoom {
        /// Which function.
        function: usize,
    },
}

/// What nobody holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// Cores that are not leased.
    pub cores: u32,
    /// Cores that busy instances hold beyond one each.
    pub surplus: u32,
    /// Memory that is not held, bytes.
    pub bytes: u64,
}

/// The next thing to do; `None` when all that waits has to wait.
pub fn next_step(functions: &[Function], mut free: Free) -> Option<Step> {
    let mut lacking = None;
    let mut order: Vec<usize> = (0..functions.len()).filter(|&f| functions[f].oldest.is_some()).collect();
    order.sort_by_key(|&f| (functions[f].class, functions[f].oldest));
    let mut somebody_waits = false;
    for function in order {
        let class = functions[function].class;
        if class == Class::Batch && somebody_waits {
            return lacking;
        }
        match functions[function].wants(free.cores) {
            Want::Slot(instance) => return Some(Step::Dispatch { function, instance }),
            Want::Nothing => {}
            Want::Idle(_) | Want::Wake if free.cores == 0 => {
                somebody_waits |= class == Class::Interactive;
                if free.surplus > 0 {
                    lacking.get_or_insert(Step::Share { function });
                }
            }
            Want::Idle(instance) => return Some(Step::Dispatch { function, instance }),
            Want::Wake if functions[function].wake_bytes <= free.bytes => return Some(Step::Wake { function }),
            Want::Wake => {
                free.bytes = 0;
                lacking.get_or_insert(Step::MakeRoom { function });
            }
        }
    }
    lacking
}

/// Whether a function's queue, of `queue_max` at most, has room for the requests that wait. Those that a waking instance
/// is being woken for are not in it.
pub fn queue_has_room(function: &Function, queue_max: usize) -> bool {
    let served_soon = function.waking * function.slots as usize;
    function.waiting <= queue_max.saturating_add(served_soon)
}

/// What would serve a function's oldest request.
enum Want {
    /// A slot of a busy instance: takes no core more.
    Slot(usize),
    /// An idle instance: takes its cores.
    Idle(usize),
    /// A new instance: takes its cores from the wake on.
    Wake,
    /// To wait for a slot.
    Nothing,
}

impl Function {
    fn wants(&self, cores_free: u32) -> Want {
        let found = |at: Option<usize>| at.map(|at| self.instances[at].found);
        let (shared, idle) = (self.best(true), self.best(false));
        match (shared, idle) {
            (Some(_), Some(idle)) if cores_free > 0 && found(Some(idle)) > found(shared) => return Want::Idle(idle),
            (Some(shared), _) => return Want::Slot(shared),
            (None, Some(idle)) => return Want::Idle(idle),
            (None, None) => {}
        }
        let will_be_served = self.waking * self.slots as usize;
        let may_grow = self.instances.len() + self.waking < self.instances_max;
        if may_grow && self.first > will_be_served { Want::Wake } else { Want::Nothing }
    }

    /// Of the instances that take its next request and compute, or do not, the first that has most of it.
    fn best(&self, leased: bool) -> Option<usize> {
        let takes = |i: &Instance| i.is_leased() == leased && i.takes(self.class);
        let able = self.instances.iter().enumerate().filter(|(_, i)| takes(i));
        able.max_by_key(|(at, i)| (i.found, std::cmp::Reverse(*at))).map(|(at, _)| at)
    }
}

impl Instance {
    /// Whether it computes, on cores of its own.
    fn is_leased(&self) -> bool {
        self.busy > self.paused
    }

    fn takes(&self, class: Class) -> bool {
        let batch_slots = self.slots.saturating_sub(1).max(1);
        match class {
            Class::Interactive => self.busy - self.batch < self.slots,
            Class::Batch => self.busy == self.batch && self.paused == 0 && self.busy < batch_slots.min(self.slots),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn function(waiting: usize, instances: &[(u32, u32)]) -> Function {
        Function {
            class: Class::Interactive,
            oldest: (waiting > 0).then(Instant::now),
            waiting,
            first: waiting,
            wake_bytes: 10,
            waking: 0,
            slots: 1,
            instances_max: 1,
            instances: instances.iter().map(|&(slots, busy)| instance(slots, busy)).collect(),
        }
    }

    fn instance(slots: u32, busy: u32) -> Instance {
        Instance { slots, busy, batch: 0, paused: 0, found: 0 }
    }

    /// Memory is no concern.
    fn cores(cores: u32) -> Free {
        Free { cores, surplus: 0, bytes: u64::MAX }
    }

    #[test]
    fn a_cold_function_wakes_once() {
        let mut cold = function(1, &[]);
        assert_eq!(next_step(&[cold.clone()], cores(2)), Some(Step::Wake { function: 0 }));
        cold.waking = 1;
        assert_eq!(next_step(&[cold], cores(0)), None);
    }

    #[test]
    fn what_does_not_fit_is_made_room_for_and_nobody_younger_takes_it() {
        let older = function(1, &[]);
        let mut younger = Function { wake_bytes: 1, ..older.clone() };
        younger.oldest = older.oldest.map(|t| t + Duration::from_millis(1));
        let free = Free { cores: 4, surplus: 0, bytes: 9 };
        assert_eq!(next_step(&[younger.clone(), older.clone()], free), Some(Step::MakeRoom { function: 1 }));
        assert_eq!(next_step(&[younger.clone(), older], Free { bytes: 10, ..free }), Some(Step::Wake { function: 1 }));
        let idle = Function { instances: function(1, &[(1, 0)]).instances, ..younger };
        let older = Function { oldest: idle.oldest.map(|t| t - Duration::from_millis(1)), ..function(1, &[]) };
        let dispatch = Step::Dispatch { function: 1, instance: 0 };
        assert_eq!(next_step(&[older, idle], free), Some(dispatch), "it takes no memory");
    }

    #[test]
    fn a_busy_instance_is_filled_before_an_idle_one_starts() {
        let f = function(1, &[(4, 0), (4, 1)]);
        assert_eq!(next_step(&[f], cores(2)), Some(Step::Dispatch { function: 0, instance: 1 }));
    }

    #[test]
    fn the_oldest_gets_the_core_and_the_next_what_others_have_too_much_of() {
        let older = function(1, &[(1, 0)]);
        let mut younger = function(1, &[(1, 0)]);
        younger.oldest = older.oldest.map(|t| t + Duration::from_millis(1));
        let both = [younger, older];
        assert_eq!(next_step(&both, cores(1)), Some(Step::Dispatch { function: 1, instance: 0 }));
        assert_eq!(next_step(&both, cores(0)), None);
        assert_eq!(next_step(&both, Free { surplus: 1, ..cores(0) }), Some(Step::Share { function: 1 }));
    }

    #[test]
    fn a_slot_that_costs_no_core_is_taken_while_older_ones_wait_for_cores() {
        let older = function(1, &[(1, 0)]);
        let mut younger = function(1, &[(2, 1)]);
        younger.oldest = older.oldest.map(|t| t + Duration::from_millis(1));
        assert_eq!(next_step(&[older, younger], cores(0)), Some(Step::Dispatch { function: 1, instance: 0 }));
    }

    #[test]
    fn batch_comes_last_and_gets_nothing_while_somebody_waits_for_cores() {
        let somebody = function(1, &[(1, 0)]);
        let mut batch = function(1, &[(3, 1)]);
        (batch.class, batch.instances[0].batch) = (Class::Batch, 1);
        batch.oldest = somebody.oldest.map(|t| t - Duration::from_secs(1));
        assert_eq!(next_step(&[batch.clone(), somebody.clone()], cores(0)), None);
        assert_eq!(next_step(&[batch.clone(), somebody], cores(1)), Some(Step::Dispatch { function: 1, instance: 0 }));
        assert_eq!(next_step(&[batch], cores(0)), Some(Step::Dispatch { function: 0, instance: 0 }));
    }

    #[test]
    fn a_conversation_goes_on_where_its_beginning_is() {
        let dispatch = |instance| Some(Step::Dispatch { function: 0, instance });
        let mut f = function(1, &[(2, 1), (2, 1), (2, 0), (2, 0)]);
        assert_eq!(next_step(&[f.clone()], cores(1)), dispatch(0));
        f.instances[1].found = 2;
        assert_eq!(next_step(&[f.clone()], cores(1)), dispatch(1), "both compute");
        f.instances[3].found = 4;
        assert_eq!(next_step(&[f.clone()], cores(1)), dispatch(3), "a core is free");
        assert_eq!(next_step(&[f.clone()], cores(0)), dispatch(1), "nobody waits for a core for it");
        f.instances[3].busy = 2;
        assert_eq!(next_step(&[f], cores(1)), dispatch(1), "nor for a slot");
    }

    #[test]
    fn batch_is_in_nobodys_way() {
        let mut full = function(1, &[(2, 2)]);
        assert_eq!(next_step(&[full.clone()], cores(2)), None);
        full.instances[0].batch = 1;
        assert_eq!(next_step(&[full], cores(2)), Some(Step::Dispatch { function: 0, instance: 0 }));
    }

    #[test]
    fn batch_leaves_a_slot_and_runs_beside_nobody() {
        let mut batch = function(1, &[(3, 2)]);
        (batch.class, batch.instances[0].batch) = (Class::Batch, 2);
        assert_eq!(next_step(&[batch.clone()], cores(2)), None, "the last slot is for somebody");
        batch.instances[0] = instance(3, 1);
        assert_eq!(next_step(&[batch.clone()], cores(2)), None, "somebody runs");
        batch.instances[0] = instance(1, 0);
        assert_eq!(next_step(&[batch], cores(2)), Some(Step::Dispatch { function: 0, instance: 0 }));
    }

    #[test]
    fn a_queue_of_none_still_takes_the_request_that_wakes_the_function() {
        let mut f = function(1, &[]);
        f.waking = 1;
        assert!(queue_has_room(&f, 0));
        f.waiting = 2;
        assert!(!queue_has_room(&f, 0));
        assert!(queue_has_room(&f, 1));
    }

    prop_compose! {
        fn any_function()(
            batch in any::<bool>(), age in 0u64..100, waiting in 0usize..5, slots in 1u32..4,
            instances_max in 1usize..4, wake_bytes in 0u64..40, busy in prop::collection::vec(0u32..4, 0..4),
        ) -> Function {
            let base = Instant::now();
            let instances: Vec<_> =
                busy.into_iter().take(instances_max).map(|b| instance(slots, b.min(slots))).collect();
            let class = if batch { Class::Batch } else { Class::Interactive };
            Function {
                class, oldest: (waiting > 0).then(|| base + Duration::from_millis(age)),
                waiting, first: waiting, wake_bytes, waking: 0, slots, instances_max, instances,
            }
        }
    }

    fn leased(functions: &[Function]) -> u32 {
        functions.iter().map(|f| (f.waking + f.instances.iter().filter(|i| i.busy > 0).count()) as u32).sum()
    }

    proptest! {
        /// Steps taken until there are none: cores, memory and slots hold, and work never waits beside what could do it.
        #[test]
        fn steps_never_oversubscribe(
            mut functions in prop::collection::vec(any_function(), 1..5), spare in 0u32..6, mut bytes in 0u64..100,
        ) {
            let cores = leased(&functions) + spare;
            for _ in 0..200 {
                match next_step(&functions, Free { cores: cores - leased(&functions), surplus: 0, bytes }) {
                    None => break,
                    Some(Step::Share { .. }) => prop_assert!(false, "nobody has too many"),
                    Some(Step::MakeRoom { function }) => {
                        prop_assert!(functions[function].wake_bytes > bytes);
                        break;
                    }
                    Some(Step::Wake { function }) => {
                        functions[function].waking += 1;
                        prop_assert!(functions[function].wake_bytes <= bytes);
                        bytes -= functions[function].wake_bytes;
                    }
                    Some(Step::Dispatch { function, instance }) => {
                        let f = &mut functions[function];
                        f.waiting -= 1;
                        f.first -= 1;
                        f.oldest = f.oldest.filter(|_| f.waiting > 0);
                        f.instances[instance].busy += 1;
                        f.instances[instance].batch += u32::from(f.class == Class::Batch);
                    }
                }
                prop_assert!(leased(&functions) <= cores);
                for f in &functions {
                    prop_assert!(f.instances.len() + f.waking <= f.instances_max.max(f.instances.len()));
                    prop_assert!(f.instances.iter().all(|i| i.busy - i.batch <= i.slots && i.batch <= i.slots));
                }
            }
            let left = next_step(&functions, Free { cores: cores - leased(&functions), surplus: 0, bytes });
            prop_assert!(matches!(left, None | Some(Step::MakeRoom { .. })), "{:?}", left);
            for f in functions.iter().filter(|f| f.waiting > 0 && f.class == Class::Interactive) {
                prop_assert!(f.instances.iter().all(|i| i.busy == 0 || i.busy == i.slots));
            }
        }
    }
}
