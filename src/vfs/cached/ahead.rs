//! Reading ahead: a file that is read from front to back is asked for before its reader gets there, in
//! large pieces, several at a time. Random reads are left alone. What was read is not kept: that is
//! the kernel's business.

use super::Workers;
use super::meta::Edition;
use crate::base::{Cancel, Deadline, Error, Notify, Result};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Asked for at a time: what the caches of a processor hold until it is passed on.
const PIECE: u32 = 256 << 10;
/// How far ahead: so many times what the reader has read in order, and at most so many bytes.
const WINDOW_TIMES: u64 = 4;
const WINDOW_MAX: u64 = 8 << 20;
/// A reader that comes this far from where the last read ended still reads in order: the kernel asks
/// for several pieces at once, and not always the first one first. In reads, and in bytes.
const SLACK_READS: u64 = 16;
const SLACK: u64 = 2 << 20;

/// Bytes asked for ahead, over all files.
pub struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    pub fn new(max: usize) -> Arc<Budget> {
        Arc::new(Budget { used: AtomicUsize::new(0), max })
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub fn take(self: &Arc<Budget>, n: usize) -> Option<Share> {
        let room = |used: usize| (used + n <= self.max).then_some(used + n);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).ok()?;
        Some(Share(self.clone(), n))
    }
}

/// A part of a budget; dropping it gives it back.
pub struct Share(Arc<Budget>, usize);

impl Share {
    /// A part of it, at most all.
    pub fn split(&mut self, n: usize) -> Share {
        let n = n.min(self.1);
        self.1 -= n;
        Share(self.0.clone(), n)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.used.fetch_sub(self.1, Ordering::AcqRel);
    }
}

/// Reads `len` bytes at an offset from the tree: fewer at the file's end.
pub type Fetch = Arc<dyn Fn(u64, u32) -> Result<Bytes> + Send + Sync>;

/// What is read ahead of one open file.
#[derive(Default)]
pub struct Ahead {
    state: Mutex<State>,
    came: Notify,
}

#[derive(Default)]
struct State {
    /// Where the reader has read in order, from and to, and how much of it in how many reads.
    from: u64,
    next: u64,
    bytes: u64,
    reads: u32,
    /// Ascending, without gaps.
    pieces: VecDeque<Piece>,
    /// What readers wait for, from and to: later ones that the kernel sends meanwhile take nothing away.
    awaited: Vec<(u64, u64)>,
    /// Pieces of an earlier run are not mistaken for those of this one.
    run: u64,
    /// Which content the pieces are of.
    edition: Option<Edition>,
    /// The file's end has come with one of them.
    at_end: bool,
}

struct Piece {
    at: u64,
    len: u64,
    /// `None` while it is on its way.
    data: Option<Result<Bytes>>,
    taken: u64,
    _share: Share,
}

impl Piece {
    /// Bytes that have come, or will: fewer than were asked for where the file ends.
    fn come(&self) -> u64 {
        match &self.data {
            Some(Ok(data)) => data.len() as u64,
            _ => self.len,
        }
    }
}

impl State {
    fn restart(&mut self) {
        self.pieces.clear();
        self.run += 1;
        (self.bytes, self.reads, self.at_end) = (0, 0, false);
    }

    /// Notes a read: of the run so far, or of a new one.
    fn note(&mut self, offset: u64, len: u64) {
        let slack = SLACK.min(SLACK_READS * len);
        let near = offset.saturating_add(slack) >= self.next && offset <= self.next + slack;
        if !near {
            self.restart();
        }
        if self.reads == 0 {
            (self.from, self.next) = (offset, offset);
        }
        self.from = self.from.min(offset);
        self.next = self.next.max(offset.saturating_add(len));
        self.bytes = self.bytes.saturating_add(len);
        self.reads = self.reads.saturating_add(1);
    }

    /// How far to read ahead. Whoever begins where the file does is believed sooner to read in order. Where
    /// most is left out, as the kernel does with what it has when it fills the gaps between random reads,
    /// nothing is to be gained.
    fn window(&self) -> u64 {
        let believed = self.reads >= if self.from == 0 { 2 } else { 3 };
        let dense = self.bytes > (self.next - self.from) / 2;
        let window = self.bytes.saturating_mul(WINDOW_TIMES).min(WINDOW_MAX);
        if believed && dense { window } else { 0 }
    }

    /// A reader begins or ends to wait.
    fn awaits(&mut self, range: (u64, u64), before: bool, after: bool) {
        match (before, after) {
            (false, true) => self.awaited.push(range),
            (true, false) => {
                let place = self.awaited.iter().position(|r| *r == range);
                place.map(|n| self.awaited.swap_remove(n));
            }
            _ => {}
        }
    }

    /// Lets go of what was read, and of what the reader has left behind.
    fn forget(&mut self) {
        let State { pieces, awaited, next, .. } = self;
        pieces.retain(|p| {
            let end = p.at + p.len;
            let is_awaited = || awaited.iter().any(|(from, to)| p.at < *to && *from < end);
            p.taken < p.come() && (end + SLACK > *next || is_awaited())
        });
    }

    fn end(&self) -> Option<u64> {
        self.pieces.back().map(|p| p.at + p.len)
    }
}

impl Ahead {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file's whole content, which came before anybody has read; less than `max` bytes, so that its end shows.
    pub fn begin(&self, edition: Edition, content: Bytes, max: u64, share: Share) {
        let mut s = self.lock();
        s.restart();
        s.edition = Some(edition);
        s.at_end = true;
        let (len, data) = (max.max(content.len() as u64 + 1), Some(Ok(content)));
        s.pieces.push_back(Piece { at: 0, len, data, taken: 0, _share: share });
    }

    /// The bytes at `offset`, if they were asked for ahead, waiting for them if they are on their way; and
    /// goes on reading ahead, up to `size`, where that is known. `None`: ask the tree.
    pub fn read(
        self: &Arc<Ahead>,
        (offset, len): (u64, u32),
        (edition, size): (Option<Edition>, Option<u64>),
        workers: &Workers,
        fetch: &Fetch,
        deadline: Deadline,
        cancel: &Cancel,
    ) -> Result<Option<Bytes>> {
        {
            let mut s = self.lock();
            if s.edition != edition || edition.is_none() {
                s.restart();
                s.edition = edition;
            }
            s.note(offset, len.into());
        }
        let found = self.take(offset, u64::from(len), deadline, cancel)?;
        self.go_on(size.unwrap_or(u64::MAX), workers, fetch);
        Ok(found)
    }

    fn take(
        &self,
        offset: u64,
        len: u64,
        deadline: Deadline,
        cancel: &Cancel,
    ) -> Result<Option<Bytes>> {
        let range = (offset, offset + len);
        let mut waits = false;
        loop {
            let seen = self.came.seen();
            let mut s = self.lock();
            let gathered = s.gather(offset, len);
            let goes_on = matches!(gathered, Gathered::OnItsWay);
            s.awaits(range, waits, goes_on);
            waits = goes_on;
            match gathered {
                Gathered::Nothing => return Ok(None),
                Gathered::Bytes(bytes) => return Ok(Some(bytes)),
                Gathered::Failed(e) => {
                    s.restart();
                    return Err(e);
                }
                Gathered::OnItsWay => drop(s),
            }
            let came = self.came.wait(seen, Deadline::never()).block(deadline, cancel);
            came.inspect_err(|_| self.lock().awaits(range, true, false))?;
        }
    }

    /// Asks for more, if the reader reads in order, up to where the file is known to end.
    fn go_on(self: &Arc<Ahead>, end: u64, workers: &Workers, fetch: &Fetch) {
        loop {
            let (at, len, run) = {
                let mut s = self.lock();
                s.forget();
                let at = s.end().unwrap_or(s.next).max(s.next);
                if s.at_end || at >= (s.next + s.window()).min(end) {
                    return;
                }
                // A gap would keep what lies behind it from being found in order.
                if s.end().is_some_and(|end| end < at) {
                    s.pieces.clear();
                }
                // Pieces lie as those on a disk do.
                let len = PIECE - (at % u64::from(PIECE)) as u32;
                let Some(share) = workers.ahead.take(len as usize) else { return };
                s.pieces.push_back(Piece {
                    at,
                    len: len.into(),
                    data: None,
                    taken: 0,
                    _share: share,
                });
                (at, len, s.run)
            };
            let (this, fetch) = (self.clone(), fetch.clone());
            let work = move || this.came(run, at, fetch(at, len));
            if workers.pool.submit(work).is_err() {
                let mut s = self.lock();
                s.pieces.retain(|p| p.at != at);
                return;
            }
        }
    }

    fn came(&self, run: u64, at: u64, data: Result<Bytes>) {
        let mut s = self.lock();
        if s.run == run
            && let Some(piece) = s.pieces.iter_mut().find(|p| p.at == at)
        {
            piece.data = Some(data);
            let short = piece.come() < piece.len;
            s.at_end |= short;
        }
        drop(s);
        self.came.notify();
    }
}

enum Gathered {
    Nothing,
    OnItsWay,
    Bytes(Bytes),
    Failed(Error),
}

impl State {
    fn gather(&mut self, offset: u64, len: u64) -> Gathered {
        let end = offset + len;
        let Some(first) = self.pieces.iter().position(|p| p.at <= offset && offset < p.at + p.len)
        else {
            return Gathered::Nothing;
        };
        let mut parts: Vec<(usize, Bytes)> = Vec::new();
        let mut at = offset;
        for (n, piece) in self.pieces.iter().enumerate().skip(first) {
            if at >= end || piece.at > at {
                break;
            }
            let data = match &piece.data {
                None => return Gathered::OnItsWay,
                Some(Err(e)) => return Gathered::Failed(e.clone()),
                Some(Ok(data)) => data,
            };
            let from = ((at - piece.at) as usize).min(data.len());
            let to = ((end.min(piece.at + piece.len) - piece.at) as usize).min(data.len());
            parts.push((n, data.slice(from..to)));
            at = piece.at + to as u64;
            if (data.len() as u64) < piece.len {
                // The file ends here.
                at = end;
            }
        }
        // Behind what was asked for: the tree knows.
        if at < end {
            return Gathered::Nothing;
        }
        for (n, part) in &parts {
            let piece = &mut self.pieces[*n];
            piece.taken += part.len() as u64;
        }
        if let [(_, one)] = &parts[..] {
            return Gathered::Bytes(one.clone());
        }
        let mut all = BytesMut::with_capacity(len as usize);
        parts.iter().for_each(|(_, part)| all.extend_from_slice(part));
        Gathered::Bytes(all.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Timer;
    use crate::vfs::CacheOptions;
    use std::sync::RwLock;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    /// How many bytes are on their way ahead, at most, while so many at a time are read at these offsets.
    fn asked_ahead(len: u64, offsets: impl IntoIterator<Item = u64>) -> u64 {
        let timer = Timer::start().unwrap();
        let workers = Workers::start(CacheOptions::default(), timer.clone()).unwrap();
        let fetch: Fetch = Arc::new(|_, len| Ok(vec![0; len as usize].into()));
        let ahead = Arc::new(Ahead::default());
        let used = offsets.into_iter().map(|at| {
            let known = (Some(Edition::default()), None);
            let (deadline, cancel) = (Deadline::after_ms(60_000), Cancel::new());
            ahead.read((at, len as u32), known, &workers, &fetch, deadline, &cancel).unwrap();
            workers.ahead.used() as u64
        });
        let most = used.max().unwrap();
        workers.stop();
        timer.stop();
        most
    }

    #[test]
    fn what_is_read_ahead_is_in_proportion_to_what_was_read_in_order() {
        let read = 128 * KIB;
        let in_order = |n: u64| asked_ahead(read, (0..n).map(|i| MIB + i * read));
        assert_eq!(in_order(2), 0);
        let few = in_order(3);
        let most = 3 * read * WINDOW_TIMES + u64::from(PIECE);
        assert!((3 * read..=most).contains(&few), "{few} bytes ahead of three reads");
        assert!(asked_ahead(read, [0, read]) > 0, "from the beginning of a file");
    }

    #[test]
    fn reads_with_gaps_between_them_are_left_alone() {
        assert_eq!(asked_ahead(4 * KIB, (0..1000).map(|i| i * 12 * KIB)), 0);
        assert_eq!(asked_ahead(4 * KIB, (0..1000).map(|i| i * 7 % 1000 * MIB)), 0);
    }

    #[test]
    fn what_a_reader_waits_for_is_not_given_up_when_later_reads_come_before_it() {
        let timer = Timer::start().unwrap();
        let workers = Workers::start(CacheOptions::default(), timer.clone()).unwrap();
        let (gate, asked) = (Arc::new(RwLock::new(())), Arc::new(Mutex::new(Vec::new())));
        let fetch: Fetch = {
            let (gate, asked) = (gate.clone(), asked.clone());
            Arc::new(move |at, len| {
                asked.lock().unwrap().push(at);
                if at / MIB == 2 {
                    drop(gate.read().unwrap());
                }
                Ok(vec![(at / MIB) as u8; len as usize].into())
            })
        };
        let ahead = Arc::new(Ahead::default());
        let read = |at: u64| {
            let known = (Some(Edition::default()), None);
            let (deadline, cancel) = (Deadline::after_ms(60_000), Cancel::new());
            let got =
                ahead.read((at, MIB as u32), known, &workers, &fetch, deadline, &cancel).unwrap();
            got.map(|bytes| (bytes.len() as u64, bytes[0], bytes[bytes.len() - 1]))
        };
        // As a kernel asks that was told of a sequential reader: a mebibyte each, several at once.
        let shut = gate.write().unwrap();
        assert_eq!((read(0), read(MIB)), (None, None));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| read(2 * MIB));
            while ahead.lock().awaited.is_empty() {
                std::thread::yield_now();
            }
            assert_eq!(read(4 * MIB), Some((MIB, 4, 4)));
            drop(shut);
            assert_eq!(first.join().unwrap(), Some((MIB, 2, 2)));
        });
        assert!(ahead.lock().awaited.is_empty());
        workers.stop();
        timer.stop();
        let mut asked = asked.lock().unwrap().clone();
        asked.sort_unstable();
        assert!(asked.is_sorted_by(|a, b| a < b), "asked twice: {asked:?}");
    }
}
