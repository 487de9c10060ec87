//! How much is recorded of what costs nobody anything to repeat: refusals, connections, reads. The first
//! few of a kind are recorded as they are; of the rest only how many there were. A flood cannot push out
//! what was recorded before it, and needs no more memory than this.

use super::record::{Entry, Outcome};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long alike events are counted together.
pub const WINDOW: Duration = Duration::from_secs(300);
/// Kinds that are told apart within a window, of refusals and of the rest each.
const KINDS_MAX: usize = 128;

/// What is recorded within a window, at most.
struct Limit {
    all: usize,
    /// Of one kind.
    same: usize,
}

/// Anybody can be refused; to connect takes a token.
const REFUSALS: Limit = Limit { all: 100, same: 8 };
const OTHERS: Limit = Limit { all: 400, same: 24 };

/// What is alike: from where, who, what, and how it ended.
#[derive(PartialEq, Eq, Hash)]
struct Kind {
    host: Option<String>,
    principal: Option<String>,
    control_type: String,
    error_code: Option<String>,
}

impl Kind {
    fn of(entry: &Entry) -> Kind {
        let host = entry.peer.as_deref().and_then(|peer| peer.rsplit_once(':'));
        Kind {
            host: host.map(|(host, _)| host.to_owned()),
            principal: entry.principal.clone(),
            control_type: entry.control_type.clone(),
            error_code: entry.error_code.clone(),
        }
    }
}

#[derive(Default)]
struct Seen {
    recorded: usize,
    /// The last that was not recorded, which counts them all.
    left_out: Option<Entry>,
}

/// What was seen within the window.
#[derive(Default)]
struct Share {
    kinds: HashMap<Kind, Seen>,
    recorded: usize,
    /// Left out, of kinds that are not told apart.
    beyond: u64,
}

impl Share {
    /// The entry, if it is to be recorded as it is.
    fn admit(&mut self, entry: Entry, limit: &Limit) -> Option<Entry> {
        let kind = Kind::of(&entry);
        if self.kinds.len() >= KINDS_MAX && !self.kinds.contains_key(&kind) {
            self.beyond += 1;
            return None;
        }
        let seen = self.kinds.entry(kind).or_default();
        if self.recorded < limit.all && seen.recorded < limit.same {
            self.recorded += 1;
            seen.recorded += 1;
            return Some(entry);
        }
        let before = seen.left_out.as_ref().map_or(0, |e| e.left_out);
        seen.left_out = Some(Entry { left_out: before + 1, ..entry });
        None
    }

    fn has_left_out(&self) -> bool {
        self.beyond > 0 || self.kinds.values().any(|seen| seen.left_out.is_some())
    }
}

/// What waits to be written, and what was left out of it.
pub struct Window {
    waiting: Vec<Entry>,
    since: Instant,
    refusals: Share,
    others: Share,
}

impl Window {
    pub fn new() -> Window {
        Window {
            waiting: Vec::new(),
            since: Instant::now(),
            refusals: Share::default(),
            others: Share::default(),
        }
    }

    /// True if the entry will be recorded as it is.
    pub fn note(&mut self, entry: Entry, now: Instant) -> bool {
        self.turn(now);
        let admitted = match entry.result {
            Outcome::Error => self.refusals.admit(entry, &REFUSALS),
            Outcome::Ok => self.others.admit(entry, &OTHERS),
        };
        let is_admitted = admitted.is_some();
        self.waiting.extend(admitted);
        is_admitted
    }

    /// Begins another window when this one is over.
    pub fn turn(&mut self, now: Instant) {
        if now.saturating_duration_since(self.since) >= WINDOW {
            self.end(now);
        }
    }

    /// Ends the window: what was left out is told now.
    pub fn end(&mut self, now: Instant) {
        self.since = now;
        let shares = [std::mem::take(&mut self.refusals), std::mem::take(&mut self.others)];
        let beyond = shares.iter().map(|s| s.beyond).sum();
        let kinds = shares.into_iter().flat_map(|s| s.kinds.into_values());
        let mut left_out: Vec<_> = kinds.filter_map(|seen| seen.left_out).collect();
        left_out.sort_by_key(|e| e.timestamp_ms);
        self.waiting.extend(left_out);
        if beyond > 0 {
            self.waiting.push(Entry { left_out: beyond, ..Entry::new("audit.left_out") });
        }
    }

    /// What is to be written now.
    pub fn take(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.waiting)
    }

    /// So many could not be stored.
    pub fn lost(&mut self, n: u64) {
        self.others.beyond += n;
    }

    /// When what was left out is to be told, if there is something.
    pub fn due(&self) -> Option<Instant> {
        let counts = self.refusals.has_left_out() || self.others.has_left_out();
        counts.then(|| self.since + WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Code;

    fn refusal(host: usize) -> Entry {
        let peer = Some(([127, 0, (host >> 8) as u8, host as u8], 7).into());
        Entry::new("connection.refused").from(peer).failed(Code::Forbidden)
    }

    #[test]
    fn of_a_flood_the_first_are_recorded_and_the_rest_are_counted() {
        let (mut window, now) = (Window::new(), Instant::now());
        let admitted = (0..1000).filter(|_| window.note(refusal(1), now)).count();
        assert_eq!((admitted, window.take().len()), (REFUSALS.same, REFUSALS.same));
        assert!(window.note(refusal(2), now), "another's is not hidden by it");
        assert!(window.due().is_some());
        window.turn(now + WINDOW);
        let told = window.take();
        assert_eq!((told.len(), told[1].left_out), (2, 1000 - REFUSALS.same as u64));
        assert_eq!(told[1].control_type, "connection.refused");
        assert!(window.due().is_none() && window.note(refusal(1), now + WINDOW));
    }

    #[test]
    fn a_flood_from_everywhere_is_bounded_and_counted_in_full() {
        let (mut window, now) = (Window::new(), Instant::now());
        let admitted = (0..5000).filter(|host| window.note(refusal(*host), now)).count();
        assert_eq!(admitted, REFUSALS.all);
        assert!(window.note(Entry::new("connection.accepted"), now), "those with a token go on");
        window.end(now);
        let told = window.take();
        assert!(told.len() <= REFUSALS.all + KINDS_MAX + 2, "{}", told.len());
        let counted: u64 = told.iter().map(|e| e.left_out).sum();
        assert_eq!(counted, (5000 - REFUSALS.all) as u64);
        window.lost(3);
        window.end(now);
        assert_eq!(window.take()[0].left_out, 3);
    }
}
