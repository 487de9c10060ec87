//! How many connections of one origin nobody has let in yet: without a bound, one host that connects and
//! says nothing takes the room of all others. No policy on who is let in.

use crate::base::origin;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections of one origin that have not proved who they are; one more is answered 503.
pub const STRANGERS_MAX: usize = 1_000;

#[derive(Clone, Default)]
pub(super) struct Strangers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of them; dropping it makes room.
pub(super) struct Stranger {
    all: Strangers,
    origin: IpAddr,
}

impl Strangers {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` when there are enough from there.
    pub fn enter(&self, peer: IpAddr) -> Option<Stranger> {
        let origin = origin::of(peer);
        let mut all = self.lock();
        let count = all.entry(origin).or_default();
        if *count >= STRANGERS_MAX {
            return None;
        }
        *count += 1;
        Some(Stranger { all: self.clone(), origin })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(count) = all.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_origin_does_not_take_the_room_of_others() {
        let strangers = Strangers::default();
        let (bad, good) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mut held: Vec<_> = (0..STRANGERS_MAX).map(|_| strangers.enter(bad).unwrap()).collect();
        assert!(strangers.enter(bad).is_none());
        assert!(strangers.enter(good).is_some());
        held.pop();
        assert!(strangers.enter(bad).is_some());
        held.clear();
        assert!(strangers.lock().is_empty());
    }
}
