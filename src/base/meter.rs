//! What is counted of requests while they are answered: totals, errors by code, and how long it took, in
//! fixed buckets. Atomics only: who counts never waits. How it is shown is others' business.

use super::Code;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Total(AtomicU64);

impl Total {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the buckets, in microseconds: from what is answered out of memory to what a model
/// thinks about. What took longer is in one more bucket.
pub const BOUNDS_US: [u64; 16] = [
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    5_000_000,
    30_000_000,
    120_000_000,
];

/// How long things took.
#[derive(Debug, Default)]
pub struct Times {
    buckets: [Total; BOUNDS_US.len() + 1],
    sum_us: Total,
}

/// [`Times`] at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// How many took no longer than each of [`BOUNDS_US`].
    pub within: [u64; BOUNDS_US.len()],
    pub count: u64,
    pub sum_us: u64,
}

impl Times {
    pub fn note(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.buckets[BOUNDS_US.partition_point(|bound| *bound < us)].add(1);
        self.sum_us.add(us);
    }

    pub fn read(&self) -> Spread {
        let mut count = 0;
        let within = std::array::from_fn(|n| {
            count += self.buckets[n].get();
            count
        });
        let count = count + self.buckets[BOUNDS_US.len()].get();
        Spread { within, count, sum_us: self.sum_us.get() }
    }
}

/// Errors by code.
#[derive(Debug)]
pub struct Errors([Total; Code::ALL.len()]);

impl Default for Errors {
    fn default() -> Errors {
        Errors(std::array::from_fn(|_| Total::default()))
    }
}

impl Errors {
    pub fn note(&self, code: Code) {
        self.0[code as usize].add(1);
    }

    /// Those that have happened.
    pub fn read(&self) -> impl Iterator<Item = (Code, u64)> {
        let counts = Code::ALL.iter().map(|code| (*code, self.0[*code as usize].get()));
        counts.filter(|(_, n)| *n > 0)
    }
}

/// What became of requests of one kind.
#[derive(Debug, Default)]
pub struct Requests {
    pub times: Times,
    pub errors: Errors,
}

impl Requests {
    /// One was answered. `since`: when it came; `None` where it waited for what others do, which says
    /// nothing about this program.
    pub fn done(&self, since: Option<Instant>, error: Option<Code>) {
        if let Some(since) = since {
            self.times.note(since.elapsed());
        }
        if let Some(code) = error {
            self.errors.note(code);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_the_bucket_that_bounds_it_and_in_all_above() {
        let times = Times::default();
        for us in [0, 100, 101, 1_000_000, 120_000_000, 120_000_001] {
            times.note(Duration::from_micros(us));
        }
        let read = times.read();
        assert_eq!((read.within[0], read.within[1], read.within[15]), (2, 3, 5));
        assert_eq!((read.count, read.sum_us), (6, 241_000_202));
        assert!(read.within.is_sorted() && BOUNDS_US.is_sorted());
    }

    #[test]
    fn codes_are_numbered_as_in_their_table() {
        let errors = Errors::default();
        Code::ALL.iter().for_each(|code| errors.note(*code));
        errors.note(Code::Refused);
        let read: Vec<_> = errors.read().collect();
        assert_eq!(read.iter().map(|r| r.0).collect::<Vec<_>>(), Code::ALL);
        assert_eq!(read.last(), Some(&(Code::Refused, 2)));
    }
}
