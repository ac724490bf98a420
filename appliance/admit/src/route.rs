//! Which instance a conversation goes on in: the one that has the beginning of its prompt computed. Pure.
//!
//! ```text
//!  turn 1   s u1            ──▶ instance 8 keeps  [s u1]
//!  turn 2   s u1 a1 u2      ──▶ its trail is [s] [s u1] [s u1 a1] [s u1 a1 u2]: instance 8 has the second
//! ```
//!
//! A prompt's [`Trail`] is a number for each of its beginnings, message by message, which whose it is goes into: what one
//! tenant asked is found by no other. An instance remembers the last prompts that it began, as many as it has slots, which
//! is what a runner keeps. Left out: what a runner has in fact, which only it knows; a prompt of one text, which is found
//! only when it is asked again; two that share the beginning alone. A number that two prompts share costs one of them time.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
};

/// The beginnings of a prompt, the shortest first; empty for one that is not to be found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trail(Vec<u64>);

impl Trail {
    /// That of `tenant`'s prompt of these parts.
    pub fn new(tenant: impl Hash, parts: impl IntoIterator<Item: Hash>) -> Self {
        let mut hasher = DefaultHasher::new();
        tenant.hash(&mut hasher);
        let number = |part: _| {
            Hash::hash(&part, &mut hasher);
            hasher.finish()
        };
        Self(parts.into_iter().map(number).collect())
    }
}

/// The prompts that an instance began last.
#[derive(Clone, Debug, Default)]
pub struct Begun(VecDeque<u64>);

impl Begun {
    /// It begins another; it keeps `slots` of them. Who goes on takes the place of the turn before.
    pub fn begin(&mut self, trail: &Trail, slots: usize) {
        let Some(whole) = trail.0.last() else { return };
        self.0.retain(|kept| !trail.0.contains(kept));
        self.0.push_back(*whole);
        while self.0.len() > slots {
            self.0.pop_front();
        }
    }

    /// Of how many parts of a prompt the beginning is here.
    pub fn found(&self, trail: &Trail) -> usize {
        trail.0.iter().rposition(|beginning| self.0.contains(beginning)).map_or(0, |at| at + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(slots: usize, prompts: &[(char, &[&str])]) -> Begun {
        let mut begun = Begun::default();
        prompts.iter().for_each(|(tenant, parts)| begun.begin(&Trail::new(tenant, *parts), slots));
        begun
    }

    #[test]
    fn the_next_turn_is_where_the_last_one_was() {
        let here = begun(2, &[('a', &["s", "one"])]);
        assert_eq!(here.found(&Trail::new('a', ["s", "one", "yes", "two"])), 2);
        assert_eq!(here.found(&Trail::new('a', ["s", "one"])), 2, "asked again");
        assert_eq!(here.found(&Trail::new('a', ["s", "other", "yes", "two"])), 0);
        assert_eq!(here.found(&Trail::new('b', ["s", "one", "yes", "two"])), 0, "another's");
        assert_eq!(here.found(&Trail::default()), 0);
    }

    #[test]
    fn as_many_are_remembered_as_there_are_slots_and_a_conversation_takes_one() {
        let all: [(char, &[&str]); 4] = [('a', &["x"]), ('a', &["y"]), ('a', &["x", "yes", "z"]), ('b', &["w"])];
        let here = begun(2, &all);
        assert_eq!(here.0.len(), 2);
        let found = |tenant, parts: &[&str]| here.found(&Trail::new(tenant, parts));
        assert_eq!((found('a', &["x", "yes", "z", "no"]), found('a', &["y"]), found('b', &["w", "1"])), (3, 0, 1));
        let talk = begun(2, &[('a', &["y"]), ('a', &["x"]), ('a', &["x", "yes", "z"])]);
        assert_eq!(talk.found(&Trail::new('a', ["y", "yes"])), 1, "one conversation, one slot");
    }
}
