//! Lanes keep the requests of one fid, handle or connection in order, on a pool, while others overtake them.

use super::pool::{self, Job};
use super::{Error, Pool, Result};
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Runs jobs on a pool so that those with the same key follow each other in the order given, and
/// those with different keys, or none, run side by side. Clones share the lanes.
pub struct Lanes<K> {
    pool: Arc<Pool>,
    busy: Arc<Mutex<HashMap<K, Lane>>>,
}

impl<K> Clone for Lanes<K> {
    fn clone(&self) -> Lanes<K> {
        Lanes { pool: self.pool.clone(), busy: self.busy.clone() }
    }
}

/// A key's jobs, as long as one runs or is held.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<Job>,
    turn: Turn,
}

/// How it stands with the first job of a lane.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Turn {
    #[default]
    Runs,
    /// It runs, and somebody holds its place.
    RunsHeld,
    /// It has run, and the next one comes when its place is let go.
    Held,
}

/// A job's place in its lane: what comes behind it waits until this is dropped, be it long after the job
/// has run.
#[must_use]
pub struct Place<K: Eq + Hash + Clone + Send + 'static> {
    lanes: Lanes<K>,
    key: K,
}

impl<K: Eq + Hash + Clone + Send + 'static> Drop for Place<K> {
    fn drop(&mut self) {
        let next = {
            let mut busy = self.lanes.lock();
            let Some(lane) = busy.get_mut(&self.key) else { return };
            let was = std::mem::take(&mut lane.turn);
            if was != Turn::Held {
                return;
            }
            let next = lane.waiting.pop_front();
            if next.is_none() {
                busy.remove(&self.key);
            }
            next
        };
        if let Some(job) = next {
            let (lanes, key) = (self.lanes.clone(), self.key.clone());
            self.lanes.pool.resume(Box::new(move || lanes.run(&key, job)));
        }
    }
}

impl<K: Eq + Hash + Clone + Send + 'static> Lanes<K> {
    pub fn new(pool: Arc<Pool>) -> Lanes<K> {
        Lanes { pool, busy: Arc::default() }
    }

    /// Whether nothing of this key is queued, runs or is held.
    pub fn is_free(&self, key: &K) -> bool {
        !self.lock().contains_key(key)
    }

    /// Errors: `queue_saturated`. The caller bounds how many jobs of one key it has in flight.
    pub fn submit(&self, key: Option<K>, job: impl FnOnce() + Send + 'static) -> Result<()> {
        let Some(key) = key else { return self.pool.submit(job) };
        let mut busy = self.lock();
        if let Some(lane) = busy.get_mut(&key) {
            lane.waiting.push_back(Box::new(job));
            return Ok(());
        }
        // The lane is entered before the job can run, and left again if the pool refuses it.
        busy.insert(key.clone(), Lane::default());
        // A worker that starts at once would find it locked.
        drop(busy);
        let (lanes, runs) = (self.clone(), key.clone());
        let submitted = self.pool.submit(move || lanes.run(&runs, Box::new(job)));
        if submitted.is_err() {
            // What came into the lane meanwhile goes with it.
            let _refused = self.lock().remove(&key);
        }
        submitted
    }

    /// For a job that runs in the lane of `key`: keeps its place beyond its end.
    pub fn hold(&self, key: K) -> Place<K> {
        if let Some(lane) = self.lock().get_mut(&key) {
            lane.turn = Turn::RunsHeld;
        }
        Place { lanes: self.clone(), key }
    }

    /// Hands `value` to `run` on the pool, or gives it back with the error when there is no room.
    pub fn hand<T: Send + 'static>(
        &self,
        key: Option<K>,
        value: T,
        run: impl FnOnce(T) + Send + 'static,
    ) -> Result<(), (Error, T)> {
        // A refused job is dropped with all it holds; the slot keeps the value out of that.
        let slot = Arc::new(Mutex::new(Some(value)));
        let take =
            |slot: &Mutex<Option<T>>| slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        let taken = slot.clone();
        let submitted = self.submit(key, move || {
            if let Some(value) = take(&taken) {
                run(value);
            }
        });
        match submitted {
            Ok(()) => Ok(()),
            Err(e) => Err((e, take(&slot).expect("a job that was refused did not run"))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Lane>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a lane's first job, and those behind it up to one that is held.
    fn run(&self, key: &K, first: Job) {
        let mut next = Some(first);
        while let Some(job) = next {
            pool::run(self.pool.name, job);
            let mut busy = self.lock();
            next = match busy.get_mut(key) {
                Some(lane) if lane.turn == Turn::RunsHeld => {
                    lane.turn = Turn::Held;
                    return;
                }
                Some(lane) => lane.waiting.pop_front(),
                None => None,
            };
            if next.is_none() {
                busy.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Code;
    use std::sync::mpsc;

    #[test]
    fn one_key_stays_in_order_while_another_overtakes() {
        let pool = Pool::start("test", 2, 64).unwrap();
        let lanes = Lanes::new(pool.clone());
        let (tx, rx) = mpsc::channel();
        let (hold, held) = mpsc::channel::<()>();
        lanes.submit(Some(1), move || held.recv().unwrap()).unwrap();
        for n in 0..50 {
            let tx = tx.clone();
            lanes.submit(Some(1), move || tx.send((1, n)).unwrap()).unwrap();
        }
        let tx2 = tx.clone();
        lanes.submit(Some(2), move || tx2.send((2, 0)).unwrap()).unwrap();
        assert_eq!(rx.recv().unwrap(), (2, 0));
        hold.send(()).unwrap();
        let got: Vec<_> = rx.iter().take(50).collect();
        assert_eq!(got, (0..50).map(|n| (1, n)).collect::<Vec<_>>());
        pool.stop();
        assert!(lanes.busy.lock().unwrap().is_empty());
        let (e, back) = lanes.hand(Some(3), "mine", |_| ()).unwrap_err();
        assert_eq!((e.code, back), (Code::QueueSaturated, "mine"));
    }

    #[test]
    fn what_is_behind_a_held_place_waits_until_it_is_let_go() {
        let pool = Pool::start("test", 2, 1).unwrap();
        let lanes = Lanes::new(pool.clone());
        let (tx, rx) = mpsc::channel();
        let (hold, held) = mpsc::channel();
        let (own, first) = (lanes.clone(), tx.clone());
        let job = move || {
            hold.send(own.hold(1)).unwrap();
            first.send(1).unwrap();
        };
        lanes.submit(Some(1), job).unwrap();
        for n in [2, 3] {
            let tx = tx.clone();
            lanes.submit(Some(1), move || tx.send(n).unwrap()).unwrap();
        }
        let place = held.recv().unwrap();
        assert_eq!(rx.recv().unwrap(), 1);
        let (other, tx4) = (mpsc::channel(), tx.clone());
        let done = other.0;
        lanes.submit(Some(2), move || done.send(tx4.send(4)).unwrap()).unwrap();
        other.1.recv().unwrap().unwrap();
        drop(place);
        assert_eq!(rx.iter().take(3).collect::<Vec<_>>(), [4, 2, 3]);
        pool.stop();
        // One that is let go while its job runs, and one whose lane is empty.
        let pool = Pool::start("test", 1, 4).unwrap();
        let lanes = Lanes::new(pool.clone());
        let own = lanes.clone();
        lanes.submit(Some(1), move || drop(own.hold(1))).unwrap();
        lanes.submit(Some(1), move || tx.send(5).unwrap()).unwrap();
        assert_eq!(rx.recv().unwrap(), 5);
        let (own, (hold, held)) = (lanes.clone(), mpsc::channel());
        lanes.submit(Some(2), move || hold.send(own.hold(2)).unwrap()).unwrap();
        let place = held.recv().unwrap();
        pool.stop();
        assert!(!lanes.is_free(&2));
        drop(place);
        assert!(lanes.is_free(&1) && lanes.is_free(&2));
    }
}
