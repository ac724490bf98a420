//! Who of a function's waiting requests is next: keys take turns by weight, within a class. Pure.
//!
//! ```text
//!  push(key, class) ─▶ [interactive  A1 B1 A2 A3 …]  ── pop: the smallest tag, interactive before batch ──▶ Ticket
//!                      [batch        C1 C2 …      ]                                              restore ◀──┘
//! ```
//!
//! This is start-time fair queueing. Virtual time is the tag of the request that was taken last; a request's tag is
//! virtual time or the end of its key's request before it, whichever is later, and it ends a turn of `1 / weight` later.
//! Of equal tags the key goes first that was served longest ago. So beside one other key of its weight, a key that has one
//! request at a time waits for the end of one request at most, however many the other has waiting; and over any stretch in
//! which two keys wait throughout, their turns differ from their weights by a turn.
//!
//! A turn is one request: a request's length is not known before it has ended, and what it may use at most says little
//! about what it uses. Batch is served only when nothing interactive waits.
//!
//! Invariants: within a key requests leave in the order in which they came; what is kept of a key that has nothing waiting
//! is forgotten once its turn is past. Left out: a bound, which the owner sees to with [`Queue::last`].

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

/// One turn of a key of weight 1, in virtual time: divisible by the common weights.
const TURN: u64 = 720_720;

/// Who waits for the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Somebody: served before all batch.
    #[default]
    Interactive,
    /// Nobody for now: served when nothing interactive waits or runs, and stopped for what comes.
    Batch,
}

/// A request's place, to give it back by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    class: Class,
    tag: u64,
    arrival: u64,
    /// Length of its turn.
    turn: u64,
}

impl Place {
    /// The class that it waits in.
    pub fn class(&self) -> Class {
        self.class
    }
}

/// The waiting requests of one function: tickets `T` of keys `K`.
#[derive(Debug)]
pub struct Queue<K, T> {
    waiting: BTreeMap<Place, (K, T)>,
    lanes: [Lane<K, T>; 2],
    arrivals: u64,
    served: u64,
}

/// What is kept of a class.
#[derive(Debug)]
struct Lane<K, T> {
    /// Virtual time.
    now: u64,
    /// Those that wait, by when they came.
    waiting: BTreeMap<u64, T>,
    /// Of each key whose last turn ends later than `now`.
    turns: HashMap<K, Turn>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    /// The end of its last request's turn.
    end: u64,
    /// Which of the requests served was its last; 0 for none.
    served: u64,
}

impl<K, T> Default for Queue<K, T> {
    fn default() -> Self {
        let lane = || Lane { now: 0, waiting: BTreeMap::new(), turns: HashMap::new() };
        Self { waiting: BTreeMap::new(), lanes: [lane(), lane()], arrivals: 0, served: 0 }
    }
}

impl<K, T> Queue<K, T> {
    /// An empty queue whose places are after `arrival`: of two queues that follow each other under one name, a request of
    /// the first can be restored into the second and takes nobody's place.
    pub fn after(arrival: u64) -> Self {
        Self { arrivals: arrival, ..Self::default() }
    }
}

impl<K: Clone + Eq + Hash, T: Copy> Queue<K, T> {
    /// Adds a request of `key`, whose turns come `weight` times as often as those of weight 1.
    pub fn push(&mut self, key: &K, weight: u32, class: Class, ticket: T) -> Place {
        let lane = &mut self.lanes[class as usize];
        let (tag, turn) = (lane.next_tag(key), (TURN / u64::from(weight.max(1))).max(1));
        lane.turns.entry(key.clone()).or_default().end = tag + turn;
        self.arrivals += 1;
        let place = Place { class, tag, arrival: self.arrivals, turn };
        self.restore(place, key, ticket);
        place
    }

    /// Takes the request that is next.
    pub fn pop(&mut self) -> Option<T> {
        let place = self.first()?;
        let (key, ticket) = self.waiting.remove(&place)?;
        self.served += 1;
        self.lanes[place.class as usize].serve(place, &key, self.served);
        Some(ticket)
    }

    /// Gives a request of `key` that was taken its place again.
    pub fn restore(&mut self, place: Place, key: &K, ticket: T) {
        self.lanes[place.class as usize].waiting.insert(place.arrival, ticket);
        self.waiting.insert(place, (key.clone(), ticket));
    }

    /// Removes a request that waits. Its turn is its key's again, unless others of the key wait behind it.
    pub fn remove(&mut self, place: &Place) {
        let Some((key, _)) = self.waiting.remove(place) else { return };
        let of_key = self.waiting.iter().filter(|(other, (k, _))| other.class == place.class && *k == key);
        let end = of_key.map(|(other, _)| other.tag + other.turn).max().unwrap_or(place.tag);
        let lane = &mut self.lanes[place.class as usize];
        lane.waiting.remove(&place.arrival);
        if let Some(turn) = lane.turns.get_mut(&key) {
            turn.end = turn.end.min(end);
        }
    }

    /// The class of the request that is next.
    pub fn class(&self) -> Option<Class> {
        self.waiting.first_key_value().map(|(place, _)| place.class)
    }

    /// The request that would be served last, of those that `may` be turned away.
    pub fn last(&self, may: impl Fn(T) -> bool) -> Option<T> {
        let may = self.waiting.iter().filter(|(_, (_, ticket))| may(*ticket));
        may.max_by_key(|(place, (key, _))| self.rank(place, key)).map(|(_, (_, ticket))| *ticket)
    }

    /// The request of `class` that came first of those that wait.
    pub fn oldest(&self, class: Class) -> Option<T> {
        self.lanes[class as usize].waiting.values().next().copied()
    }

    /// Requests before the one of `key` at `place`, if nothing else comes.
    pub fn ahead(&self, place: &Place, key: &K) -> usize {
        let rank = self.rank(place, key);
        self.waiting.iter().filter(|(place, (key, _))| self.rank(place, key) < rank).count()
    }

    /// Requests before one that would come now.
    pub fn ahead_of_new(&self, key: &K, class: Class) -> usize {
        let tag = self.lanes[class as usize].next_tag(key);
        self.ahead(&Place { class, tag, arrival: u64::MAX, turn: 0 }, key)
    }

    /// Requests of `class` that wait.
    pub fn count(&self, class: Class) -> usize {
        self.lanes[class as usize].waiting.len()
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// All that wait, the next one first.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.waiting.values().map(|(_, ticket)| *ticket)
    }

    /// The one that [`pop`](Self::pop) gives next.
    pub fn next(&self) -> Option<T> {
        self.waiting.get(&self.first()?).map(|(_, ticket)| *ticket)
    }

    fn first(&self) -> Option<Place> {
        let first = *self.waiting.first_key_value()?.0;
        let ties = self.waiting.iter().take_while(|(place, _)| (place.class, place.tag) == (first.class, first.tag));
        ties.min_by_key(|(place, (key, _))| self.rank(place, key)).map(|(place, _)| *place)
    }

    /// The order in which requests are served.
    fn rank(&self, place: &Place, key: &K) -> (Class, u64, u64, u64) {
        let turn = self.lanes[place.class as usize].turns.get(key);
        (place.class, place.tag, turn.map_or(0, |turn| turn.served), place.arrival)
    }
}

impl<K: Clone + Eq + Hash, T> Lane<K, T> {
    fn next_tag(&self, key: &K) -> u64 {
        self.turns.get(key).map_or(self.now, |turn| self.now.max(turn.end))
    }

    fn serve(&mut self, place: Place, key: &K, number: u64) {
        self.waiting.remove(&place.arrival);
        self.now = self.now.max(place.tag);
        if let Some(turn) = self.turns.get_mut(key) {
            turn.served = number;
        }
        let now = self.now;
        self.turns.retain(|_, turn| turn.end > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INTERACTIVE: Class = Class::Interactive;
    const BATCH: Class = Class::Batch;

    fn all(queue: &mut Queue<char, u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn one_key_is_served_in_order() {
        let mut queue = Queue::default();
        (0..5).for_each(|n| {
            queue.push(&'a', 1, INTERACTIVE, n);
        });
        assert_eq!(all(&mut queue), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_key_that_comes_anew_is_next_however_many_another_has_waiting() {
        let mut queue = Queue::default();
        (0..100).for_each(|n| {
            queue.push(&'a', 1, INTERACTIVE, n);
        });
        assert_eq!(queue.pop(), Some(0));
        assert_eq!(queue.ahead_of_new(&'b', INTERACTIVE), 0);
        assert_eq!(queue.ahead_of_new(&'a', INTERACTIVE), 99);
        let place = queue.push(&'b', 1, INTERACTIVE, 1000);
        assert_eq!((queue.ahead(&place, &'b'), queue.pop()), (0, Some(1000)));
        assert_eq!(queue.pop(), Some(1));
    }

    #[test]
    fn turns_follow_weights() {
        let mut queue = Queue::default();
        (0..6).for_each(|n| {
            queue.push(&'a', 2, INTERACTIVE, n);
        });
        (10..13).for_each(|n| {
            queue.push(&'b', 1, INTERACTIVE, n);
        });
        assert_eq!(all(&mut queue), [0, 10, 1, 11, 2, 3, 12, 4, 5]);
    }

    #[test]
    fn batch_waits_for_all_that_is_interactive() {
        let mut queue = Queue::default();
        queue.push(&'a', 1000, BATCH, 1);
        (2..5).for_each(|n| {
            queue.push(&'b', 1, INTERACTIVE, n);
        });
        assert_eq!((queue.count(BATCH), queue.count(INTERACTIVE), queue.oldest(BATCH)), (1, 3, Some(1)));
        assert_eq!(all(&mut queue), [2, 3, 4, 1]);
    }

    #[test]
    fn a_request_that_is_given_back_is_next_again() {
        let mut queue = Queue::default();
        let places: Vec<_> = (0..3).map(|n| queue.push(&'a', 1, INTERACTIVE, n)).collect();
        assert_eq!((queue.pop(), queue.pop()), (Some(0), Some(1)));
        queue.restore(places[0], &'a', 0);
        assert_eq!((queue.class(), queue.ahead(&places[2], &'a')), (Some(INTERACTIVE), 1));
        queue.remove(&places[0]);
        assert_eq!(all(&mut queue), [2]);
    }

    #[test]
    fn who_floods_is_turned_away_first() {
        let mut queue = Queue::default();
        (0..3).for_each(|n| {
            queue.push(&'a', 1, INTERACTIVE, n);
        });
        queue.push(&'b', 1, INTERACTIVE, 10);
        assert_eq!(queue.last(|_| true), Some(2));
        assert_eq!(queue.last(|n| n == 10), Some(10));
        queue.push(&'b', 1, BATCH, 11);
        assert_eq!(queue.last(|_| true), Some(11));
    }

    #[test]
    fn a_request_that_leaves_unserved_costs_its_key_no_turn() {
        let mut queue = Queue::default();
        queue.push(&'a', 1, INTERACTIVE, 0);
        for n in 1..100 {
            let refused = queue.push(&'a', 1, INTERACTIVE, n);
            queue.remove(&refused);
        }
        (200..203).for_each(|n| {
            queue.push(&'b', 1, INTERACTIVE, n);
        });
        queue.push(&'a', 1, INTERACTIVE, 100);
        assert_eq!(all(&mut queue), [0, 200, 100, 201, 202]);
    }

    #[test]
    fn what_is_past_is_forgotten() {
        let mut queue = Queue::default();
        for key in 0..1_000_u32 {
            queue.push(&key, 1, INTERACTIVE, key);
            queue.push(&key, 1, BATCH, key);
        }
        while queue.pop().is_some() {}
        queue.push(&0, 1, INTERACTIVE, 0);
        queue.push(&0, 1, INTERACTIVE, 0);
        while queue.pop().is_some() {}
        assert!(queue.lanes[0].turns.len() <= 2, "{}", queue.lanes[0].turns.len());
    }

    /// What happens to a queue: a request of key `k` comes (weights 1, 2, 3, 4), or one is taken.
    fn events() -> impl Strategy<Value = Vec<Option<u32>>> {
        prop::collection::vec(prop::option::weighted(0.6, 0u32..4), 1..300)
    }

    proptest! {
           /// Each key's requests leave once and in order; a key that has had nothing waiting is overtaken by each other key
           /// at most as often as that key's weight says, and once more.
           #[test]
           fn a_newcomer_waits_for_a_turn_of_each_other_key_at_most(events in events()) {
               let mut queue = Queue::default();
               let mut came: Vec<Vec<u32>> = vec![Vec::new(); 4];
               let mut left: Vec<Vec<u32>> = vec![Vec::new(); 4];
               // For each key that began to wait: how often each other has been served since.
               let mut overtaken: HashMap<u32, [u32; 4]> = HashMap::new();
               for (number, event) in events.into_iter().enumerate() {
                   let number = number as u32;
                   match event {
                       Some(key) => {
                           let fresh = queue.lanes[0].turns.get(&key).is_none_or(|turn| turn.end <= queue.lanes[0].now);
                           if fresh {
                               overtaken.insert(key, [0; 4]);
                           }
                           queue.push(&key, key + 1, INTERACTIVE, (key, number));
                           came[key as usize].push(number);
                       }
                       None => {
                           let Some((key, number)) = queue.pop() else { continue };
                           left[key as usize].push(number);
                           overtaken.remove(&key);
                           for others in overtaken.values_mut() {
                               others[key as usize] += 1;
                               prop_assert!(others[key as usize] <= 1, "{key} was served twice before a newcomer");
                           }
                       }
                   }
               }
               while let Some((key, number)) = queue.pop() {
                   left[key as usize].push(number);
               }
               prop_assert_eq!(came, left);
           }

           /// Requests of a key that has one at a time wait for one service time at most, of whoever has the slot when they
        /// come, whatever another key floods the queue with.
        #[test]
        fn a_flood_delays_another_key_by_one_service_time_at_most(
            flood in prop::collection::vec(0u64..50, 1..200),
            quiet in prop::collection::vec(0u64..50, 1..50),
            service in 1u64..20,
        ) {
            let mut queue = Queue::default();
            let (mut flood, mut quiet) = (flood.into_iter().peekable(), quiet.into_iter());
            let (mut now, mut slot_free_at, mut flooded) = (0, 0, 0);
            // A quiet request comes so long after the end of the one before.
            let mut comes = quiet.next();
            let mut came = 0;
            while comes.is_some() || !queue.is_empty() {
                while let Some(gap) = flood.next_if(|gap| flooded + gap / 10 <= now) {
                    flooded += gap / 10;
                    queue.push(&'f', 1, INTERACTIVE, 'f');
                }
                if comes == Some(now) {
                    queue.push(&'q', 1, INTERACTIVE, 'q');
                    (came, comes) = (now, None);
                }
                if slot_free_at <= now && let Some(key) = queue.pop() {
                    slot_free_at = now + service;
                    if key == 'q' {
                        prop_assert!(now - came <= service, "waited {} with a service time of {service}", now - came);
                        comes = quiet.next().map(|gap| slot_free_at + gap);
                    }
                }
                now += 1;
            }
        }

        /// While keys wait throughout, turns by weight are equal to within one turn of each.
           #[test]
           fn turns_are_by_weight(weights in prop::collection::vec(1u32..10, 2..5), taken in 1usize..200) {
               let mut queue = Queue::default();
               for (key, weight) in weights.iter().enumerate() {
                   (0..taken).for_each(|_| {
    queue.push(&key, *weight, INTERACTIVE, key);
    });
               }
               let mut turns = vec![0u32; weights.len()];
               (0..taken).for_each(|_| turns[queue.pop().unwrap()] += 1);
               let spent = |key: usize| f64::from(turns[key]) / f64::from(weights[key]);
               for a in 0..weights.len() {
                   for b in 0..weights.len() {
                       let a_turn_of_each = 1.0 / f64::from(weights[a]) + 1.0 / f64::from(weights[b]);
                       prop_assert!((spent(a) - spent(b)).abs() <= a_turn_of_each + 1e-9, "{turns:?} by {weights:?}");
                   }
               }
           }
       }
}
