//! Reading the audit log: newest first through a filter, and the whole of it to see that nothing but this
//! program has changed it.

use super::record::{Link, Record, hash, parse};
use super::{ANCHOR, Audit, Chain, HEAD, Outcome, PAGE, key, page};
use crate::base::{Result, ResultExt};
use crate::store::{self, KvRead, Versioned};
use std::fmt;
use std::sync::PoisonError;

/// Where the chain does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub id: u64,
    pub reason: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {}: {}", self.id, self.reason)
    }
}

/// What a look at the whole chain has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Records that hold, from the oldest.
    pub records: u64,
    /// The newest record.
    pub last_id: u64,
    /// Its hash: who keeps it elsewhere can tell later whether the log up to here is still the same.
    pub hash: String,
    pub broken: Option<Broken>,
}

/// Which records are asked for; all of what is given has to fit.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub agent_id: Option<String>,
    pub principal: Option<String>,
    pub control_type: Option<String>,
    pub result: Option<Outcome>,
    pub code: Option<String>,
    /// An id that the record is about, of whatever kind.
    pub about: Option<String>,
    pub since_ms: Option<i64>,
    pub until_ms: Option<i64>,
    pub after_id: Option<u64>,
    pub before_id: Option<u64>,
}

impl Filter {
    fn admits(&self, record: &Record) -> bool {
        let Record { id, entry, .. } = record;
        fn fits<T: PartialEq>(asked: &Option<T>, found: Option<&T>) -> bool {
            asked.as_ref().is_none_or(|asked| Some(asked) == found)
        }
        fits(&self.agent_id, entry.agent_id.as_ref())
            && fits(&self.principal, entry.principal.as_ref())
            && fits(&self.control_type, Some(&entry.control_type))
            && fits(&self.result, Some(&entry.result))
            && fits(&self.code, entry.error_code.as_ref())
            && self.about.as_ref().is_none_or(|id| entry.is_about(id))
            && self.since_ms.is_none_or(|at| entry.timestamp_ms >= at)
            && self.until_ms.is_none_or(|at| entry.timestamp_ms <= at)
            && self.after_id.is_none_or(|after| *id > after)
            && self.before_id.is_none_or(|before| *id < before)
    }
}

/// Larger ids were never given out: with a record a microsecond they last for centuries.
const ID_MAX: u64 = 1 << 53;

/// A link as it is stored; `None` as well for one that cannot be right.
pub(super) fn link(kv: &dyn KvRead, key: &str) -> Result<Option<Link>> {
    let row = kv.get(key)?;
    let link = row.and_then(|row| serde_json::from_slice::<Link>(&row.value).ok());
    Ok(link.filter(|l| l.id < ID_MAX))
}

fn row_id(row: &Versioned) -> Option<u64> {
    let (_, digits) = row.key.rsplit_once('/')?;
    u64::from_str_radix(digits, 16).ok().filter(|id| *id < ID_MAX)
}

/// Where the chain ends, and what is wrong with its end. Ids of records that somebody has put behind it,
/// or has taken away, are not given out again.
pub(super) fn ending(kv: &dyn KvRead) -> Result<(Chain, Option<Broken>)> {
    let head = link(kv, HEAD)?;
    // Without an end all there is has to be looked at.
    let rows = match &head {
        Some(head) => kv.range(&page(head.id))?,
        None => kv.range("audit/row/")?,
    };
    let last = rows.last().and_then(|row| Some(Link { id: row_id(row)?, hash: hash(&row.value) }));
    let (end, broken) = match (head, last) {
        (Some(head), Some(last)) if last == head => (head, None),
        (Some(head), Some(last)) if last.id == head.id => {
            let broken = Broken { id: head.id, reason: CHANGED.into() };
            (head, Some(broken))
        }
        (Some(head), Some(last)) if last.id > head.id => {
            (last, Some(Broken { id: head.id + 1, reason: "it was added".into() }))
        }
        (Some(head), last) => {
            let id = last.map_or(head.id, |l| l.id + 1);
            (head, Some(Broken { id, reason: "it is missing".into() }))
        }
        (None, Some(last)) => {
            let reason = "the mark of the newest record is missing".into();
            (last.clone(), Some(Broken { id: last.id, reason }))
        }
        (None, None) => (Link::genesis(), None),
    };
    Ok((Chain { end, stored: store::Chain::default() }, broken))
}

impl Audit {
    /// Those that a filter admits, newest first, with their hashes; what was noted is written before, if
    /// it can be. Errors: `storage_error`.
    pub fn tail(&self, filter: &Filter, limit: usize) -> Result<Vec<(Record, String)>> {
        if let Err(e) = self.flush() {
            log::warn!("the audit log could not be written: {e}");
        }
        tail(&*self.kv, filter, limit)
    }

    /// Looks at every record up to the newest one that is stored. Errors: `storage_error`.
    pub fn verify(&self) -> Result<Verified> {
        let _pruning = self.pruning.read().unwrap_or_else(PoisonError::into_inner);
        verify(&*self.kv)
    }
}

/// Those that a filter admits, newest first, with their hashes. Errors: `storage_error`.
pub fn tail(kv: &dyn KvRead, filter: &Filter, limit: usize) -> Result<Vec<(Record, String)>> {
    let mut found = Vec::new();
    let newest = link(kv, HEAD)?.map_or(0, |l| l.id);
    let oldest = link(kv, ANCHOR)?.map_or(0, |l| l.id) + 1;
    let from = filter.before_id.map_or(newest, |id| id.saturating_sub(1).min(newest));
    let to = filter.after_id.map_or(oldest, |id| id.saturating_add(1).max(oldest));
    let mut number = from / PAGE;
    while found.len() < limit && number >= to / PAGE && from >= to {
        for row in kv.range(&page(number * PAGE))?.iter().rev() {
            // One that cannot be read is told by `verify`.
            let Ok(record) = parse(&row.value) else { continue };
            if found.len() < limit && filter.admits(&record) {
                found.push((record, hash(&row.value)));
            }
        }
        let Some(before) = number.checked_sub(1) else { break };
        number = before;
    }
    Ok(found)
}

/// Looks at every record of a log that nothing is added to meanwhile. Errors: `storage_error`.
pub fn verify_at_rest(kv: &dyn KvRead) -> Result<Verified> {
    let (_, broken) = ending(kv)?;
    let verified = verify(kv)?;
    Ok(Verified { broken: verified.broken.or(broken), ..verified })
}

/// Looks at every record from the anchor to the end. Errors: `storage_error`.
fn verify(kv: &dyn KvRead) -> Result<Verified> {
    let head = link(kv, HEAD)?.unwrap_or_else(Link::genesis);
    let anchor = link(kv, ANCHOR)?.unwrap_or_else(Link::genesis);
    let mut end = anchor.clone();
    let mut broken = None;
    while end.id < head.id && broken.is_none() {
        let rows = kv.range(&page(end.id + 1)).context("the audit log")?;
        let last = (((end.id + 1) / PAGE + 1) * PAGE - 1).min(head.id);
        broken = follow(anchor.id, &mut end, last, &rows).err();
    }
    if broken.is_none() && end != head {
        broken = Some(Broken { id: head.id, reason: CHANGED.into() });
    }
    let records = broken.as_ref().map_or(end.id, |b| b.id - 1).saturating_sub(anchor.id);
    Ok(Verified { records, last_id: head.id, hash: head.hash, broken })
}

const CHANGED: &str = "it is not the one that was written";

/// Goes on from `end` to the record `last` through the rows of one page. Errors: the first record that
/// does not hold.
fn follow(
    anchor: u64,
    end: &mut Link,
    last: u64,
    rows: &[Versioned],
) -> std::result::Result<(), Broken> {
    while end.id < last {
        let id = end.id + 1;
        let broken = |id, reason: String| Broken { id, reason };
        let row = rows.binary_search_by(|row| row.key.as_str().cmp(&key(id)));
        let row = &rows[row.map_err(|_| broken(id, "it is missing".into()))?];
        let record = parse(&row.value).map_err(|e| broken(id, e.message.into_owned()))?;
        if record.prev != end.hash {
            // That one was changed which this one followed, unless that is seen no more.
            return Err(broken(if end.id > anchor { end.id } else { id }, CHANGED.into()));
        }
        if record.id != id {
            return Err(broken(id, format!("it calls itself {}", record.id)));
        }
        *end = Link { id, hash: hash(&row.value) };
    }
    Ok(())
}
