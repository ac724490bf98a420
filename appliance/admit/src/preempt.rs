//! What running batch gives up for interactive requests that wait, and when it gets it back. Pure.
//!
//! ```text
//!  waits for a slot   ─▶ has it at once: an instance counts only what is interactive ([`crate::next_step`])
//!  waits for a core   ─▶ an instance that runs batch only: Pause
//!  nobody waits for cores, an instance has paused batch and nothing else, cores free: Resume
//! ```
//!
//! Each takes effect within one step of the runner. What is paused keeps its slot until who is interactive needs that; then
//! it is fed again what it has lost of its text when it goes on.
//!
//! Memory is not had by a pause: who waits for that keeps no batch from going on, since its end is what frees memory.
//!
//! Invariants: nothing is paused that does not help; what is paused is resumed when cores are free and nobody waits for them.

use crate::{Class, Free, Function, Instance, Want};

/// What to do; indices are those of the arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preemption {
    /// Have all batch of this instance, which runs nothing else, compute nothing.
    Pause {
        /// Which function.
        function: usize,
        /// Which of its instances.
        instance: usize,
    },
    /// Have all batch of this instance compute again.
    Resume {
        /// Which function.
        function: usize,
        /// Which of its instances.
        instance: usize,
    },
}

/// The next thing to do for what waits, where [`crate::next_step`] finds nothing for what is interactive. `functions` are
/// all that have requests or instances.
pub fn next_preemption(functions: &[Function], mut free: Free) -> Option<Preemption> {
    let somebody = |f: &usize| functions[*f].class == Class::Interactive && functions[*f].oldest.is_some();
    let mut order: Vec<usize> = (0..functions.len()).filter(somebody).collect();
    order.sort_by_key(|&f| functions[f].oldest);
    for function in order {
        match functions[function].wants(free.cores) {
            Want::Nothing | Want::Slot(_) => {}
            Want::Wake if functions[function].wake_bytes > free.bytes => free.bytes = 0,
            // Who waits for cores longest gets them next, and whatever is free is kept for it.
            Want::Idle(_) | Want::Wake => return pause(functions, free.cores),
        }
    }
    resume(functions, free.cores)
}

fn pause(functions: &[Function], cores_free: u32) -> Option<Preemption> {
    let mut batch = instances(functions).filter(|(_, _, i)| i.is_leased() && i.busy == i.batch);
    let (function, instance, _) = batch.next().filter(|_| cores_free == 0)?;
    Some(Preemption::Pause { function, instance })
}

fn resume(functions: &[Function], cores_free: u32) -> Option<Preemption> {
    let waits =
        |(_, _, i): &(usize, usize, &Instance)| i.paused > 0 && i.busy == i.batch && (i.is_leased() || cores_free > 0);
    let (function, instance, _) = instances(functions).find(waits)?;
    Some(Preemption::Resume { function, instance })
}

fn instances(functions: &[Function]) -> impl Iterator<Item = (usize, usize, &Instance)> {
    let each = |(function, f): (usize, &Function)| (function, f.instances.len());
    functions.iter().enumerate().map(each).flat_map(move |(function, count)| {
        (0..count).map(move |instance| (function, instance, &functions[function].instances[instance]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Step, next_step};
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    fn instance(slots: u32, interactive: u32, batch: u32) -> Instance {
        Instance { slots, busy: interactive + batch, batch, paused: 0, found: 0 }
    }

    /// Memory is no concern.
    fn cores(cores: u32) -> Free {
        Free { cores, surplus: 0, bytes: u64::MAX }
    }

    fn function(waiting: usize, instances: Vec<Instance>) -> Function {
        Function {
            class: Class::Interactive,
            oldest: (waiting > 0).then(Instant::now),
            waiting,
            first: waiting,
            wake_bytes: 10,
            waking: 0,
            slots: 1,
            instances_max: 1,
            instances,
        }
    }

    #[test]
    fn batch_of_others_is_paused_for_a_core() {
        let wants = function(1, vec![instance(1, 0, 0)]);
        let batch = function(0, vec![instance(2, 0, 1)]);
        assert_eq!(
            next_preemption(&[batch.clone(), wants.clone()], cores(0)),
            Some(Preemption::Pause { function: 0, instance: 0 })
        );
        let mixed = function(0, vec![instance(2, 1, 1)]);
        assert_eq!(next_preemption(&[mixed, wants.clone()], cores(0)), None, "somebody runs there");
        assert_eq!(next_preemption(&[batch, wants], cores(1)), None, "one is free");
    }

    #[test]
    fn paused_batch_goes_on_when_nobody_wants_its_cores() {
        let paused = function(0, vec![Instance { paused: 1, ..instance(2, 0, 1) }]);
        let alone = std::slice::from_ref(&paused);
        assert_eq!(next_preemption(alone, cores(2)), Some(Preemption::Resume { function: 0, instance: 0 }));
        assert_eq!(next_preemption(alone, cores(0)), None, "no core");
        let wants = function(1, vec![instance(1, 0, 0)]);
        assert_eq!(next_preemption(&[paused, wants], cores(1)), None, "it is kept for somebody");
        let beside = function(0, vec![Instance { paused: 1, ..instance(2, 1, 1) }]);
        assert_eq!(next_preemption(&[beside], cores(2)), None, "somebody runs beside it");
    }

    #[test]
    fn who_waits_for_memory_keeps_no_batch_from_going_on() {
        let paused = function(0, vec![Instance { paused: 1, ..instance(2, 0, 1) }]);
        let wants = function(1, vec![]);
        let resume = Some(Preemption::Resume { function: 0, instance: 0 });
        assert_eq!(next_preemption(&[paused.clone(), wants.clone()], Free { bytes: 9, ..cores(2) }), resume);
        assert_eq!(next_preemption(&[paused, wants], Free { bytes: 10, ..cores(2) }), None, "it is woken next");
    }

    fn leased(functions: &[Function]) -> u32 {
        let busy = |f: &Function| f.instances.iter().filter(|i| i.is_leased()).count() + f.waking;
        functions.iter().map(|f| busy(f) as u32).sum()
    }

    prop_compose! {
        fn any_instance()(slots in 1u32..4, interactive in 0u32..3, batch in 0u32..3, paused: bool) -> Instance {
            let interactive = interactive.min(slots);
            let batch = batch.min(slots);
            let paused = if paused || interactive > 0 { batch } else { 0 };
            Instance { paused, ..instance(slots, interactive, batch) }
        }
    }

    prop_compose! {
        fn any_function()(
            age in 0u64..100, waiting in 0usize..4, batch: bool,
            instances in prop::collection::vec(any_instance(), 0..3),
        ) -> Function {
            let base = Instant::now();
            Function {
                class: if batch { Class::Batch } else { Class::Interactive },
                oldest: (waiting > 0).then(|| base + Duration::from_millis(age)),
                instances_max: 3,
                ..function(waiting, instances)
            }
        }
    }

    proptest! {
        /// Steps and room taken as the pool takes them come to an end, never lease more cores than there are, and end with
        /// nothing interactive waiting for a core that batch computes on, where pausing all batch would do.
        #[test]
        fn what_is_interactive_comes_first(
            mut functions in prop::collection::vec(any_function(), 1..4),
            spare in 0u32..4,
        ) {
            let all = leased(&functions) + spare;
            let mut ended = false;
            for _ in 0..500 {
                let free = all - leased(&functions);
                let step = next_step(&functions, cores(free));
                let urgent = step.is_some_and(|step| {
                    let (Step::Dispatch { function, .. }
                    | Step::Wake { function }
                    | Step::Share { function }
                    | Step::MakeRoom { function }) = step;
                    functions[function].class == Class::Interactive
                });
                let room = if urgent { None } else { next_preemption(&functions, cores(free)) };
                match (room, step) {
                    (Some(Preemption::Pause { function, instance }), _) => {
                        let i = &mut functions[function].instances[instance];
                        prop_assert!(i.is_leased());
                        i.paused = i.batch;
                    }
                    (Some(Preemption::Resume { function, instance }), _) => {
                        let i = &mut functions[function].instances[instance];
                        prop_assert!(i.paused > 0);
                        i.paused = 0;
                    }
                    (None, Some(Step::Wake { function })) => functions[function].waking += 1,
                    (None, Some(Step::Dispatch { function, instance })) => {
                        let f = &mut functions[function];
                        (f.waiting, f.first) = (f.waiting - 1, f.first - 1);
                        f.oldest = f.oldest.filter(|_| f.waiting > 0);
                        let (class, i) = (f.class, &mut f.instances[instance]);
                        i.busy += 1;
                        match class {
                            Class::Batch => i.batch += 1,
                            Class::Interactive => i.paused = i.batch,
                        }
                    }
                    (None, None | Some(Step::MakeRoom { .. } | Step::Share { .. })) => {
                        ended = true;
                        break;
                    }
                }
                prop_assert!(leased(&functions) <= all);
            }
            prop_assert!(ended, "it goes round in circles");
            let free = all - leased(&functions);
            let pausable = instances(&functions).any(|(_, _, i)| i.is_leased() && i.busy == i.batch);
            let oldest = functions.iter().filter(|f| f.class == Class::Interactive && f.oldest.is_some());
            if let Some(f) = oldest.min_by_key(|f| f.oldest)
                && matches!(f.wants(free), Want::Idle(_) | Want::Wake)
            {
                prop_assert!(free == 0 && !pausable);
            }
        }
    }
}
