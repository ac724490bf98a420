//! Who is connected: caps for the process and for one address, shared by all cores, and what was counted.
//!
//! A [`Permit`] stands for one connection and gives its place back when dropped. The addresses lie in shards, so that
//! cores seldom meet; a lock is held for one look-up.

use crate::Limits;
use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

const SHARDS: usize = 16;

/// What happened since the process began, and who is connected now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections alive.
    pub connections: u64,
    /// Connections accepted and kept.
    pub accepted: u64,
    /// Connections closed at once, for a cap.
    pub refused: u64,
    /// Handshakes that failed or took too long.
    pub handshakes_failed: u64,
    /// Connections cut for a deadline or at the end of a drain.
    pub cut: u64,
    /// Requests given to handlers.
    pub requests: u64,
    /// Handlers that panicked.
    pub panics: u64,
}

/// One thing counted.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn increment(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// The connections of the process.
#[derive(Debug)]
pub(crate) struct Census {
    connections_max: usize,
    per_address_max: usize,
    handshakes_max: usize,
    connections: AtomicUsize,
    handshakes: AtomicUsize,
    hasher: RandomState,
    addresses: [Mutex<HashMap<Address, usize>>; SHARDS],
    pub(crate) accepted: Counter,
    pub(crate) refused: Counter,
    pub(crate) handshakes_failed: Counter,
    pub(crate) cut: Counter,
    pub(crate) requests: Counter,
    pub(crate) panics: Counter,
}

/// What counts as one client: an IPv4 address, or the /64 that one IPv6 customer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Address(IpAddr);

/// The place of one connection.
#[derive(Debug)]
pub(crate) struct Permit {
    census: Arc<Census>,
    address: Address,
}

/// The place of one handshake.
#[derive(Debug)]
pub(crate) struct HandshakePermit(Arc<Census>);

impl Census {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            connections_max: limits.connections_max,
            per_address_max: limits.connections_per_address_max,
            handshakes_max: limits.handshakes_max,
            connections: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            hasher: RandomState::new(),
            addresses: Default::default(),
            accepted: Counter::default(),
            refused: Counter::default(),
            handshakes_failed: Counter::default(),
            cut: Counter::default(),
            requests: Counter::default(),
            panics: Counter::default(),
        }
    }

    /// Places for a connection and its handshake, or `None` when a cap is met.
    pub(crate) fn admit(self: &Arc<Self>, peer: SocketAddr) -> Option<(Permit, HandshakePermit)> {
        let admitted = self.connection(peer).zip(self.handshake());
        let counter = if admitted.is_some() { &self.accepted } else { &self.refused };
        counter.increment();
        admitted
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            connections: self.connections.load(Relaxed) as u64,
            accepted: self.accepted.0.load(Relaxed),
            refused: self.refused.0.load(Relaxed),
            handshakes_failed: self.handshakes_failed.0.load(Relaxed),
            cut: self.cut.0.load(Relaxed),
            requests: self.requests.0.load(Relaxed),
            panics: self.panics.0.load(Relaxed),
        }
    }

    fn connection(self: &Arc<Self>, peer: SocketAddr) -> Option<Permit> {
        take_place(&self.connections, self.connections_max)?;
        let address = Address::of(peer);
        let mut shard = self.shard(address);
        let live = shard.entry(address).or_insert(0);
        if *live >= self.per_address_max {
            self.connections.fetch_sub(1, Relaxed);
            return None;
        }
        *live += 1;
        Some(Permit { census: Arc::clone(self), address })
    }

    fn handshake(self: &Arc<Self>) -> Option<HandshakePermit> {
        take_place(&self.handshakes, self.handshakes_max)?;
        Some(HandshakePermit(Arc::clone(self)))
    }

    fn shard(&self, address: Address) -> MutexGuard<'_, HashMap<Address, usize>> {
        let shard = self.hasher.hash_one(address) as usize % SHARDS;
        self.addresses[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take_place(taken: &AtomicUsize, max: usize) -> Option<usize> {
    taken.fetch_update(Relaxed, Relaxed, |taken| (taken < max).then_some(taken + 1)).ok()
}

impl Address {
    fn of(peer: SocketAddr) -> Self {
        Self(match peer.ip().to_canonical() {
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
            address => address,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.census.connections.fetch_sub(1, Relaxed);
        let mut shard = self.census.shard(self.address);
        match shard.get_mut(&self.address) {
            Some(live) if *live > 1 => *live -= 1,
            _ => drop(shard.remove(&self.address)),
        }
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        self.0.handshakes.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn census(connections: usize, per_address: usize, handshakes: usize) -> Arc<Census> {
        Arc::new(Census::new(&Limits {
            connections_max: connections,
            connections_per_address_max: per_address,
            handshakes_max: handshakes,
            ..Limits::default()
        }))
    }

    fn peer(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), 1)
    }

    #[test]
    fn places_are_capped_and_given_back() {
        let census = census(3, 2, 8);
        let first = census.admit(peer("192.0.2.1")).unwrap();
        let _second = census.admit(peer("::ffff:192.0.2.1")).unwrap();
        assert!(census.admit(peer("192.0.2.1")).is_none(), "two of one address");
        let _other = census.admit(peer("192.0.2.2")).unwrap();
        assert!(census.admit(peer("192.0.2.3")).is_none(), "three in all");
        drop(first);
        assert!(census.admit(peer("192.0.2.1")).is_some());
        let counts = census.counts();
        assert_eq!((counts.connections, counts.accepted, counts.refused), (2, 4, 2));
    }

    #[test]
    fn an_ipv6_customer_is_one_client() {
        let census = census(9, 1, 9);
        let _first = census.admit(peer("2001:db8::1")).unwrap();
        assert!(census.admit(peer("2001:db8::ffff:1")).is_none());
        assert!(census.admit(peer("2001:db8:0:1::1")).is_some());
    }

    #[test]
    fn handshakes_have_a_cap_of_their_own_and_a_refusal_holds_no_place() {
        let census = census(9, 9, 1);
        let (permit, handshake) = census.admit(peer("192.0.2.1")).unwrap();
        assert!(census.admit(peer("192.0.2.1")).is_none());
        assert_eq!(census.counts().connections, 1);
        drop(handshake);
        assert!(census.admit(peer("192.0.2.1")).is_some());
        drop(permit);
        assert!(census.addresses.iter().all(|shard| shard.lock().unwrap().is_empty()));
    }
}
