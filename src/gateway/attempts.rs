//! Attempts by address, so that tokens cannot be guessed, nor the plane filled, at speed. The memory that
//! strangers can take here is bounded.

use crate::base::origin;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub const WINDOW: Duration = Duration::from_secs(10);
/// Addresses remembered.
const ADDRESSES_MAX: usize = 4096;

/// Counts attempts within windows.
pub struct Attempts {
    max: u32,
    seen: Mutex<HashMap<IpAddr, (u32, Instant)>>,
}

/// What a count came to.
#[must_use]
pub struct Counted(bool);

impl Counted {
    pub fn too_many(self) -> bool {
        self.0
    }
}

impl Attempts {
    pub fn new(max: u32) -> Arc<Attempts> {
        Arc::new(Attempts { max, seen: Mutex::default() })
    }

    pub fn count(&self, peer: IpAddr) -> Counted {
        let peer = origin::of(peer);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= ADDRESSES_MAX {
            seen.retain(|_, (_, since)| since.elapsed() < WINDOW);
        }
        if seen.len() >= ADDRESSES_MAX && !seen.contains_key(&peer) {
            return Counted(true);
        }
        let entry = seen.entry(peer).or_insert((0, Instant::now()));
        if entry.1.elapsed() >= WINDOW {
            *entry = (0, Instant::now());
        }
        entry.0 = entry.0.saturating_add(1);
        Counted(entry.0 > self.max)
    }

    pub fn too_many(&self, peer: IpAddr) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let found = seen.get(&origin::of(peer));
        found.is_some_and(|(n, since)| *n > self.max && since.elapsed() < WINDOW)
    }

    /// The attempts of one peer, for those who count them later.
    pub fn of(self: &Arc<Attempts>, peer: SocketAddr) -> Peer {
        Peer { attempts: self.clone(), addr: peer }
    }
}

/// One peer, and where its attempts are counted.
pub struct Peer {
    attempts: Arc<Attempts>,
    pub addr: SocketAddr,
}

impl Peer {
    pub fn count(&self) {
        let _ = self.attempts.count(self.addr.ip());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    #[test]
    fn an_address_that_keeps_failing_is_kept_out_for_a_while() {
        let attempts = Attempts::new(3);
        let (a, b) = ([127, 0, 0, 1].into(), [127, 0, 0, 2].into());
        assert!((0..3).all(|_| !attempts.count(a).too_many()) && attempts.count(a).too_many());
        assert!(attempts.too_many(a) && !attempts.too_many(b));
        assert!(attempts.too_many("::ffff:127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn a_network_of_addresses_is_one_and_the_memory_is_bounded() {
        let attempts = Attempts::new(3);
        let host = |n: u128| IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) | n));
        assert!((0..3).all(|n| !attempts.count(host(n)).too_many()));
        assert!(attempts.count(host(3)).too_many() && attempts.too_many(host(99)));
        assert!(!attempts.too_many(host(1 << 64)));
        for n in 0..2 * ADDRESSES_MAX as u128 {
            let _ = attempts.count(host(n << 64));
        }
        assert_eq!(attempts.seen.lock().unwrap().len(), ADDRESSES_MAX);
    }
}
