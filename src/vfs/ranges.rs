//! Who holds which bytes of one file: the rules of fcntl(2) without a file. It knows neither descriptors
//! nor how anybody waits; its owner asks first ([`Ranges::clash`]) and then sets.

use super::{Handle, LockKind, Range};
use std::collections::BTreeMap;

/// Ends at every file's end, as a lock without a length does.
pub const TO_THE_END: u64 = u64::MAX;

/// An owner of locks: locks of one never bar its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    pub session: u64,
    pub owner: u64,
}

/// How much of a lock there is, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Free,
    Shared,
    Exclusive,
}

impl From<LockKind> for Level {
    fn from(kind: LockKind) -> Level {
        match kind {
            LockKind::Unlock => Level::Free,
            LockKind::Shared => Level::Shared,
            LockKind::Exclusive => Level::Exclusive,
        }
    }
}

/// Bytes that one owner holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub range: Range,
    pub level: Level,
    pub holder: Holder,
    /// Through which they were locked; they go when it is closed.
    pub handle: Handle,
}

/// The locks of one file. Those of one owner never overlap.
#[derive(Clone, Debug, Default)]
pub struct Ranges(Vec<Held>);

/// A piece of the file, and the strongest lock on it before and after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub range: Range,
    pub before: Level,
    pub after: Level,
}

impl Ranges {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What keeps `wanted` from being granted: the first such lock in the file.
    pub fn clash(&self, wanted: &Held) -> Option<Held> {
        let bars = |h: &&Held| {
            h.holder != wanted.holder
                && overlap(h.range, wanted.range)
                && match wanted.level {
                    Level::Free => false,
                    Level::Shared => h.level == Level::Exclusive,
                    Level::Exclusive => true,
                }
        };
        self.0.iter().filter(bars).min_by_key(|h| h.range.start).copied()
    }

    /// Gives the owner exactly this lock on these bytes, whatever it held there.
    pub fn set(&mut self, new: Held) {
        let mut kept = Vec::with_capacity(self.0.len() + 2);
        let mut merged = new;
        for held in self.0.drain(..) {
            if held.holder != new.holder || !touch(held.range, new.range) {
                kept.push(held);
            } else if held.level == new.level && held.handle == new.handle {
                merged.range.start = merged.range.start.min(held.range.start);
                merged.range.end = merged.range.end.max(held.range.end);
            } else {
                kept.extend(outside(held, new.range));
            }
        }
        if new.level != Level::Free {
            kept.push(merged);
        }
        self.0 = kept;
    }

    /// Takes away what was locked through a handle.
    pub fn release(&mut self, handle: Handle) {
        self.0.retain(|h| h.handle != handle);
    }

    /// What a change of the table comes to within `within`, piece by piece in the order of the file.
    pub fn changes(&self, after: &Ranges, within: Range) -> Vec<Change> {
        /// Shared and exclusive locks, before and after.
        type Counts = [[i64; 2]; 2];
        let mut edges = BTreeMap::from([(within.start, Counts::default())]);
        for (side, table) in [self, after].into_iter().enumerate() {
            for held in table.0.iter().filter(|h| overlap(h.range, within)) {
                let of = usize::from(held.level == Level::Exclusive);
                edges.entry(held.range.start.max(within.start)).or_default()[side][of] += 1;
                if held.range.end < within.end {
                    edges.entry(held.range.end + 1).or_default()[side][of] -= 1;
                }
            }
        }
        let level = |[shared, exclusive]: [i64; 2]| match (shared, exclusive) {
            (_, 1..) => Level::Exclusive,
            (1.., _) => Level::Shared,
            _ => Level::Free,
        };
        let mut counts = Counts::default();
        let mut changes: Vec<Change> = Vec::new();
        for (start, step) in edges {
            for (side, of) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                counts[side][of] += step[side][of];
            }
            let (before, after) = (level(counts[0]), level(counts[1]));
            match changes.last_mut() {
                Some(last) if (last.before, last.after) == (before, after) => {}
                last => {
                    if let Some(last) = last {
                        last.range.end = start - 1;
                    }
                    let range = Range { start, end: within.end };
                    changes.push(Change { range, before, after });
                }
            }
        }
        changes.retain(|c| c.before != c.after);
        changes
    }
}

fn overlap(a: Range, b: Range) -> bool {
    a.start <= b.end && b.start <= a.end
}

/// Whether two ranges overlap or lie side by side.
fn touch(a: Range, b: Range) -> bool {
    a.start <= b.end.saturating_add(1) && b.start <= a.end.saturating_add(1)
}

/// What is left of a lock outside `range`.
fn outside(held: Held, range: Range) -> impl Iterator<Item = Held> {
    let piece = |start, end| Held { range: Range { start, end }, ..held };
    let before = (held.range.start < range.start)
        .then(|| piece(held.range.start, held.range.end.min(range.start - 1)));
    let behind = (held.range.end > range.end)
        .then(|| piece(held.range.start.max(range.end + 1), held.range.end));
    before.into_iter().chain(behind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES: u64 = 12;

    /// For each byte, what each of three owners holds there.
    type Bytes = [[Level; BYTES as usize + 1]; 3];

    fn holder(owner: usize) -> Holder {
        Holder { session: 0, owner: owner as u64 }
    }

    /// The last byte of the model stands for all that follow.
    fn last(end: u64) -> u64 {
        if end >= BYTES { TO_THE_END } else { end }
    }

    fn wanted() -> impl Strategy<Value = (usize, Held)> {
        let level = prop::sample::select(vec![Level::Free, Level::Shared, Level::Exclusive]);
        (0..3usize, 0..=BYTES, 0..=BYTES, level, 0..2u64).prop_map(|(owner, a, b, level, h)| {
            let range = Range { start: a.min(b), end: last(a.max(b)) };
            (owner, Held { range, level, holder: holder(owner), handle: Handle(h) })
        })
    }

    fn strongest(bytes: &Bytes, at: usize) -> Level {
        bytes.iter().map(|b| b[at]).max().unwrap()
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_map_of_bytes(
            steps in prop::collection::vec(wanted(), 1..40)
        ) {
            let mut table = Ranges::default();
            let mut bytes: Bytes = [[Level::Free; BYTES as usize + 1]; 3];
            for (owner, new) in steps {
                let span = new.range.start as usize..=new.range.end.min(BYTES) as usize;
                let barred = span.clone().any(|at| {
                    let others = (0..3).filter(|o| *o != owner).map(|o| bytes[o][at]).max().unwrap();
                    match new.level {
                        Level::Free => false,
                        Level::Shared => others == Level::Exclusive,
                        Level::Exclusive => others != Level::Free,
                    }
                });
                prop_assert_eq!(table.clash(&new).is_some(), barred);
                if barred {
                    continue;
                }
                let (before, old) = (table.clone(), bytes);
                table.set(new);
                bytes[owner][span].fill(new.level);

                let changes = before.changes(&table, Range { start: 0, end: TO_THE_END });
                for at in 0..=BYTES {
                    let told = changes.iter().find(|c| (c.range.start..=c.range.end).contains(&at));
                    let (was, is) = (strongest(&old, at as usize), strongest(&bytes, at as usize));
                    prop_assert_eq!(told.map(|c| (c.before, c.after)), (was != is).then_some((was, is)));
                }
            }
            for h in [0, 1] {
                table.release(Handle(h));
            }
            prop_assert!(table.is_empty());
        }
    }

    #[test]
    fn neighbours_of_one_owner_are_one_lock() {
        let mut table = Ranges::default();
        let lock = |start, end| Held {
            range: Range { start, end },
            level: Level::Shared,
            holder: holder(0),
            handle: Handle(1),
        };
        table.set(lock(0, 4));
        table.set(lock(10, TO_THE_END));
        assert_eq!(table.len(), 2);
        table.set(lock(5, 9));
        assert_eq!(table.0, [lock(0, TO_THE_END)]);
    }
}
