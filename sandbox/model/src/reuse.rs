//! Which slot an answer gets, and what of its prompt is found there: pure.
//!
//! ```text
//!           begin                    end, with what it left
//!  Empty ──────────▶ Busy ──────────────────────────────────▶ Kept { tenant, tokens }
//!    ▲                │ end, with nothing                       │ begin: the same tenant goes on there, or it is the
//!    └────────────────┘                                         ▼ least recently used when no slot is empty
//!                                                              Busy
//! ```
//!
//! A conversation goes on in the slot of its last turn. A prompt that shares only the beginning of what is kept (a second
//! conversation under the same instructions) takes another slot and shares that beginning, so that the first stays whole.
//! The next [`REUSE_REQUESTS`] requests find what was kept, so that the server can hold what is claimed to be found against
//! what it asked.
//!
//! Invariants: what is kept is compared with prompts of its own tenant only; which slot anybody else gets depends on which
//! slots are free and when they were last used, never on what they hold. The last token of a prompt is never found: it must
//! be fed for its logits.

use sandbox_wire::runner::{REUSE_REQUESTS, Tenant};

/// The slots of a cache, numbered from 0.
#[derive(Clone, Debug)]
pub(crate) struct Slots<T> {
    slots: Vec<Slot<T>>,
    /// Counts what was kept, so that the least recently used can be told.
    kept: u64,
    /// Counts what was begun.
    begun: u64,
}

#[derive(Clone, Debug)]
enum Slot<T> {
    Empty,
    Busy,
    Kept { left: Left<T>, at: u64 },
}

/// What an answer left computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Left<T> {
    /// Whose it is.
    pub(crate) tenant: Tenant,
    /// The prompt, and what was produced of the answer.
    pub(crate) tokens: Vec<T>,
    /// Length of the prompt.
    pub(crate) prompt: usize,
    /// What [`Slots::begin`] gave when the answer was begun first.
    pub(crate) since: u64,
}

/// A slot, and where the beginning of the prompt is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The slot to take. What it holds is to be removed, but for what is found in it.
    pub(crate) slot: usize,
    /// Where the first tokens of the prompt are, if longer than what every chat begins with.
    pub(crate) found: Option<Found>,
}

/// Tokens that are computed already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// In which slot.
    pub(crate) slot: usize,
    /// How many.
    pub(crate) tokens: usize,
}

impl<T: Clone + PartialEq> Slots<T> {
    /// So many empty slots.
    pub(crate) fn new(count: usize) -> Self {
        Self { slots: (0..count).map(|_| Slot::Empty).collect(), kept: 0, begun: 0 }
    }

    /// The slot for a prompt of which `shared` tokens are at hand anyway; `None` when every slot has an answer.
    pub(crate) fn choose(&self, tenant: Option<Tenant>, prompt: &[T], shared: usize) -> Option<Choice> {
        let longest = tenant.and_then(|tenant| self.longest(tenant, prompt)).filter(|(found, _)| found.tokens > shared);
        match longest {
            Some((found, true)) => Some(Choice { slot: found.slot, found: Some(found) }),
            longest => self.vacant().map(|slot| Choice { slot, found: longest.map(|(found, _)| found) }),
        }
    }

    /// An answer is made there from now on. Gives how many were begun so far.
    pub(crate) fn begin(&mut self, slot: usize) -> u64 {
        self.begun += 1;
        self.slots[slot] = Slot::Busy;
        self.begun
    }

    /// The answer there has ended, and left this.
    pub(crate) fn end(&mut self, slot: usize, left: Option<Left<T>>) {
        self.slots[slot] = match left {
            None => Slot::Empty,
            Some(left) => {
                self.kept += 1;
                Slot::Kept { left, at: self.kept }
            }
        };
    }

    /// Empties the slots that hold what ended answers left, if no answer is being made. Gives which they were.
    pub(crate) fn forget(&mut self) -> Vec<usize> {
        if self.slots.iter().any(|slot| matches!(slot, Slot::Busy)) {
            return Vec::new();
        }
        let kept = |slot: &usize| matches!(self.slots[*slot], Slot::Kept { .. });
        let forgotten: Vec<usize> = (0..self.slots.len()).filter(kept).collect();
        self.slots.fill(Slot::Empty);
        forgotten
    }

    /// The longest beginning of a prompt that its tenant left, and whether the prompt goes on where that ended.
    fn longest(&self, tenant: Tenant, prompt: &[T]) -> Option<(Found, bool)> {
        let serves = |left: &Left<T>| self.begun.saturating_sub(left.since) < REUSE_REQUESTS as u64;
        let own = self.slots.iter().enumerate().filter_map(|(slot, kept)| match kept {
            Slot::Kept { left, at } if left.tenant == tenant && serves(left) => Some((slot, left, at)),
            _ => None,
        });
        let found = own.map(|(slot, left, at)| {
            let tokens = common(&left.tokens, prompt).min(prompt.len().saturating_sub(1));
            (Found { slot, tokens }, tokens + 1 >= left.prompt, at)
        });
        found.max_by_key(|(found, _, at)| (found.tokens, **at)).map(|(found, goes_on, _)| (found, goes_on))
    }

    /// The first empty slot, or else the one that was used least recently.
    fn vacant(&self) -> Option<usize> {
        let age = |slot: &Slot<T>| match slot {
            Slot::Empty => Some(0),
            Slot::Busy => None,
            Slot::Kept { at, .. } => Some(*at),
        };
        let free = self.slots.iter().enumerate().filter_map(|(slot, held)| Some((age(held)?, slot)));
        free.min().map(|(_, slot)| slot)
    }
}

/// Length of the beginning that two sequences share.
pub(crate) fn common<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANN: Option<Tenant> = Some(Tenant(1));
    const BOB: Option<Tenant> = Some(Tenant(2));

    /// Slots in which answers to these prompts were made one beside the other, and left their prompts and a word.
    fn kept(count: usize, answers: &[(Option<Tenant>, &str)]) -> Slots<u8> {
        let mut slots = Slots::new(count);
        for (slot, (tenant, prompt)) in answers.iter().enumerate() {
            slots.begin(slot);
            slots.end(slot, left(*tenant, prompt));
        }
        slots
    }

    fn left(tenant: Option<Tenant>, prompt: &str) -> Option<Left<u8>> {
        tenant.map(|tenant| Left {
            tenant,
            tokens: format!("{prompt}yes").into_bytes(),
            prompt: prompt.len(),
            since: u64::MAX,
        })
    }

    /// The slot, where the beginning is found, and how long it is.
    fn choose(slots: &Slots<u8>, tenant: Option<Tenant>, prompt: &str) -> Option<(usize, Option<(usize, usize)>)> {
        let choice = slots.choose(tenant, prompt.as_bytes(), 2)?;
        Some((choice.slot, choice.found.map(|found| (found.slot, found.tokens))))
    }

    #[test]
    fn common_beginnings() {
        assert_eq!(common(&[1, 2, 3], &[1, 2, 4, 5]), 2);
        assert_eq!(common(&[1, 2], &[1, 2, 3]), 2);
        assert_eq!(common::<u8>(&[], &[1]), 0);
    }

    #[test]
    fn a_conversation_goes_on_in_its_slot() {
        let slots = kept(3, &[(BOB, "s:hello?"), (ANN, "s:hello?")]);
        assert_eq!(choose(&slots, ANN, "s:hello?yes, and then?"), Some((1, Some((1, 11)))), "its next turn");
        assert_eq!(choose(&slots, ANN, "s:hello?no, said it"), Some((1, Some((1, 8)))), "another answer was sent");
        assert_eq!(choose(&slots, ANN, "s:hello?"), Some((1, Some((1, 7)))), "asked again: the last token is fed");
    }

    #[test]
    fn a_second_conversation_leaves_the_first_whole() {
        let slots = kept(3, &[(ANN, "s:be brief. hello?")]);
        assert_eq!(choose(&slots, ANN, "s:be brief. why?"), Some((1, Some((0, 12)))));
        let one = kept(1, &[(ANN, "s:be brief. hello?")]);
        assert_eq!(choose(&one, ANN, "s:be brief. why?"), Some((0, Some((0, 12)))), "no slot is left");
    }

    #[test]
    fn the_longest_beginning_is_found() {
        let slots = kept(4, &[(ANN, "s:a"), (ANN, "s:abcd"), (ANN, "s:abc")]);
        assert_eq!(choose(&slots, ANN, "s:abcdyes!"), Some((1, Some((1, 9)))));
        assert_eq!(choose(&slots, ANN, "s:abcyes!"), Some((2, Some((2, 8)))));
        assert_eq!(choose(&slots, ANN, "s:zz"), Some((3, None)), "no more than every chat begins with");
    }

    #[test]
    fn nothing_is_found_for_others() {
        let slots = kept(3, &[(ANN, "s:hello?")]);
        for other in [BOB, None] {
            assert_eq!(choose(&slots, other, "s:hello?yes, and then?"), Some((1, None)));
        }
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let mut slots = kept(3, &[(ANN, "s:one"), (BOB, "s:two"), (ANN, "s:three")]);
        assert_eq!(choose(&slots, BOB, "s:x"), Some((0, None)));
        slots.begin(0);
        assert_eq!(choose(&slots, BOB, "s:x"), Some((1, None)));
        slots.end(0, left(ANN, "s:one"));
        assert_eq!(choose(&slots, BOB, "s:x"), Some((1, None)), "the first was used since");
        slots.begin(1);
        slots.end(1, None);
        slots.begin(2);
        assert_eq!(choose(&slots, ANN, "s:three"), Some((1, None)), "a slot at work is not looked at");
        slots.begin(1);
        slots.begin(0);
        assert_eq!(choose(&slots, ANN, "s:three"), None);
    }

    #[test]
    fn all_is_forgotten_when_nobody_is_at_work() {
        let mut slots = kept(3, &[(ANN, "s:one"), (BOB, "s:two")]);
        slots.begin(2);
        assert_eq!(slots.forget(), [0; 0]);
        assert!(choose(&slots, ANN, "s:one").is_some_and(|(_, found)| found.is_some()));
        slots.end(2, None);
        assert_eq!(slots.forget(), [0, 1]);
        assert_eq!(choose(&slots, ANN, "s:one"), Some((0, None)));
    }

    /// A request: whose, what, whether it ends before the next begins, and whether it leaves anything.
    type Request = (u128, Vec<u8>, bool, bool);

    fn requests() -> impl Strategy<Value = Vec<Request>> {
        let prompt = prop::collection::vec(0_u8..3, 1..8);
        prop::collection::vec((0_u128..3, prompt, any::<bool>(), any::<bool>()), 1..40)
    }

    /// Plays requests on three slots; `look` sees every decision before it is taken.
    fn play(requests: &[Request], look: impl Fn(&Slots<u8>, &Request, Option<Choice>)) {
        let mut slots = Slots::new(3);
        let mut running = Vec::new();
        for request in requests {
            let (tenant, prompt, ends, _) = request;
            let choice = slots.choose((*tenant > 0).then_some(Tenant(*tenant)), prompt, 1);
            look(&slots, request, choice);
            match choice {
                Some(Choice { slot, .. }) => {
                    slots.begin(slot);
                    running.push((slot, request));
                }
                None => running.drain(..).for_each(|(slot, _)| slots.end(slot, None)),
            }
            if let Some((slot, (tenant, prompt, _, leaves))) = running.pop_if(|_| *ends) {
                let left =
                    Left { tenant: Tenant(*tenant), tokens: prompt.clone(), prompt: prompt.len(), since: u64::MAX };
                slots.end(slot, Some(left).filter(|_| *leaves && *tenant > 0));
            }
        }
    }

    #[test]
    fn what_was_begun_long_ago_is_not_found() {
        let found = |requests| {
            let mut slots = Slots::new(2);
            let since = slots.begin(0);
            // Given another slot on its way, it is as old as when it was begun.
            slots.begin(1);
            slots.end(0, None);
            slots.end(1, left(ANN, "s:hello?").map(|left| Left { since, ..left }));
            for _ in 2..=requests {
                slots.begin(0);
            }
            choose(&slots, ANN, "s:hello?yes").and_then(|(_, found)| found)
        };
        assert_eq!(found(REUSE_REQUESTS - 1), Some((1, 10)));
        assert_eq!(found(REUSE_REQUESTS), None);
    }

    proptest! {
        #[test]
        fn what_is_found_is_the_tenants_own_and_the_prompts_beginning(requests in requests()) {
            play(&requests, |slots, (tenant, prompt, ..), choice| {
                let Some(Choice { slot, found }) = choice else { return };
                assert!(!matches!(slots.slots[slot], Slot::Busy), "a slot at work was given away");
                let Some(found) = found else { return };
                assert!(found.tokens > 1 && found.tokens < prompt.len());
                match &slots.slots[found.slot] {
                    Slot::Kept { left, .. } => {
                        assert_eq!(left.tenant, Tenant(*tenant));
                        assert_eq!(left.tokens[..found.tokens], prompt[..found.tokens]);
                    }
                    other => panic!("found in {other:?}"),
                }
            });
        }

        /// The worst that others can have said is just what is asked now.
        #[test]
        fn what_others_hold_decides_nothing(requests in requests()) {
            play(&requests, |slots, (tenant, prompt, ..), choice| {
                let mut echoing = slots.clone();
                for slot in &mut echoing.slots {
                    match slot {
                        Slot::Kept { left, .. } if left.tenant != Tenant(*tenant) => {
                            (left.tokens, left.prompt) = (prompt.repeat(2), prompt.len());
                        }
                        _ => {}
                    }
                }
                assert_eq!(echoing.choose((*tenant > 0).then_some(Tenant(*tenant)), prompt, 1), choice);
            });
        }
    }
}
