//! Writing behind: writes are taken at once, joined to larger ones, and sent while the writer goes on. They
//! reach the tree in the order they were made wherever they overlap. What fails is told at the file's next
//! `flush` or `fsync`; whoever wants to see a file's content or attributes drains it first.

use super::Workers;
use super::ahead::Share;
use crate::base::{Cancel, Deadline, Error, Notify, Result};
use crate::vfs::{Handle, NodeId};
use bytes::{Bytes, BytesMut};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A write is sent when it has grown to this, if nobody asks earlier; larger ones are cut. It is what the caches of
/// a processor hold until it is passed on.
const SEGMENT: usize = 256 << 10;
/// A write is sent after this, if nobody asks earlier.
const SWEEP: Duration = Duration::from_millis(200);
/// Writes of one file on their way at a time.
const FLYING_MAX: usize = 4;

/// Sends one write; the outcome is the sender's to remember.
pub trait Sender: Send + Sync {
    fn send(&self, node: NodeId, handle: Handle, offset: u64, data: Bytes);
}

/// Files with writes on their way.
#[derive(Default)]
pub struct Behind {
    files: Mutex<HashMap<NodeId, Arc<Dirty>>>,
    /// What is not ripe will be seen to.
    sweeping: AtomicBool,
}

#[derive(Default)]
struct Dirty {
    state: Mutex<State>,
    moved: Notify,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Segment>,
    flying: Vec<(u64, u64)>,
    /// A worker has been asked to see to the queue.
    called: bool,
}

struct Segment {
    handle: Handle,
    at: u64,
    len: usize,
    parts: Vec<Bytes>,
    _shares: Vec<Share>,
}

impl Segment {
    fn end(&self) -> u64 {
        self.at + self.len as u64
    }

    fn data(mut self) -> (Bytes, Vec<Share>) {
        if self.parts.len() == 1
            && let Some(one) = self.parts.pop()
        {
            return (one, self._shares);
        }
        let mut all = BytesMut::with_capacity(self.len);
        self.parts.iter().for_each(|part| all.extend_from_slice(part));
        (all.freeze(), self._shares)
    }
}

impl State {
    /// Queues a write: behind the last one as a part of it, or in pieces of its own.
    fn put(&mut self, handle: Handle, mut at: u64, mut data: Bytes, mut share: Share) {
        while !data.is_empty() {
            let part = data.split_to(data.len().min(SEGMENT));
            let (len, share) = (part.len(), share.split(part.len()));
            match self.queue.back_mut() {
                Some(last)
                    if last.handle == handle && last.end() == at && last.len + len <= SEGMENT =>
                {
                    last.len += len;
                    last.parts.push(part);
                    last._shares.push(share);
                }
                _ => {
                    let (parts, _shares) = (vec![part], vec![share]);
                    self.queue.push_back(Segment { handle, at, len, parts, _shares });
                }
            }
            at += len as u64;
        }
    }

    /// There is something to send before anybody asks for it.
    fn is_ripe(&self) -> bool {
        self.queue.len() > 1 || self.queue.front().is_some_and(|q| q.len >= SEGMENT)
    }
}

impl Dirty {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next write that may go: the first, unless one that it overlaps is still on its way.
    fn next(&self) -> Option<Segment> {
        let mut s = self.lock();
        let first = s.queue.front()?;
        let (at, end) = (first.at, first.end());
        let clash = s.flying.iter().any(|(from, to)| at < *to && *from < end);
        if clash || s.flying.len() >= FLYING_MAX {
            return None;
        }
        s.flying.push((at, end));
        s.queue.pop_front()
    }

    /// Sends the next write, if one may go.
    fn send_one(&self, node: NodeId, sender: &dyn Sender) -> bool {
        let Some(segment) = self.next() else { return false };
        let (handle, at, end) = (segment.handle, segment.at, segment.end());
        /// Makes room also when the sender panics.
        struct Landed<'a>(&'a Dirty, (u64, u64));
        impl Drop for Landed<'_> {
            fn drop(&mut self) {
                let mut s = self.0.lock();
                if let Some(n) = s.flying.iter().position(|f| *f == self.1) {
                    s.flying.swap_remove(n);
                }
                drop(s);
                self.0.moved.notify();
            }
        }
        let _landed = Landed(self, (at, end));
        let (data, _shares) = segment.data();
        sender.send(node, handle, at, data);
        true
    }
}

impl Behind {
    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Dirty>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_dirty(&self, node: NodeId) -> bool {
        self.lock().contains_key(&node)
    }

    /// Takes a write, or hands it back when too much is on its way already.
    pub fn write(
        self: &Arc<Behind>,
        node: NodeId,
        handle: Handle,
        at: u64,
        data: Bytes,
        workers: &Workers,
        sender: &Arc<dyn Sender>,
    ) -> std::result::Result<(), Bytes> {
        let Some(share) = workers.behind.take(data.len()) else { return Err(data) };
        let call = {
            let mut files = self.lock();
            let dirty = files.entry(node).or_default().clone();
            let mut s = dirty.lock();
            s.put(handle, at, data, share);
            let call = s.is_ripe() && !s.called;
            s.called |= call;
            drop(s);
            call.then_some(dirty)
        };
        if let Some(dirty) = call {
            self.call(node, dirty, workers, sender);
        }
        self.sweep_later(workers, sender);
        Ok(())
    }

    /// Has a worker send what is ripe, and further workers help while there is more.
    fn call(
        self: &Arc<Behind>,
        node: NodeId,
        dirty: Arc<Dirty>,
        workers: &Workers,
        sender: &Arc<dyn Sender>,
    ) {
        let (this, sender, again) = (self.clone(), sender.clone(), workers.clone());
        let held = dirty.clone();
        let work = move || {
            dirty.lock().called = false;
            loop {
                let more = {
                    let mut s = dirty.lock();
                    let more = s.is_ripe();
                    let help =
                        more && s.queue.len() > 1 && !s.called && s.flying.len() + 1 < FLYING_MAX;
                    s.called |= help;
                    if help {
                        drop(s);
                        this.call(node, dirty.clone(), &again, &sender);
                    }
                    more
                };
                if !more || !dirty.send_one(node, &*sender) {
                    break;
                }
            }
            this.tidy(node);
        };
        if workers.pool.submit(work).is_err() {
            // Nobody is free: the writer sends it himself when he drains.
            held.lock().called = false;
        }
    }

    /// What was written a while ago is sent, also when its writer neither writes on nor closes.
    fn sweep_later(self: &Arc<Behind>, workers: &Workers, sender: &Arc<dyn Sender>) {
        if self.sweeping.swap(true, Ordering::AcqRel) {
            return;
        }
        let (this, workers_then, sender) = (self.clone(), workers.clone(), sender.clone());
        let due = move || {
            let (swept, workers, sender2) = (this.clone(), workers_then.clone(), sender.clone());
            let sweep = move || swept.sweep(&workers, &sender2);
            if workers_then.pool.submit(sweep).is_err() {
                // Nobody is free now.
                this.sweeping.store(false, Ordering::Release);
                this.sweep_later(&workers_then, &sender);
            }
        };
        workers.timer.at(Instant::now() + SWEEP, Box::new(due));
    }

    fn sweep(self: &Arc<Behind>, workers: &Workers, sender: &Arc<dyn Sender>) {
        self.sweeping.store(false, Ordering::Release);
        let nodes: Vec<_> = self.lock().iter().map(|(n, d)| (*n, d.clone())).collect();
        for (node, dirty) in nodes {
            while dirty.send_one(node, &**sender) {}
            self.tidy(node);
        }
        if !self.lock().is_empty() {
            self.sweep_later(workers, sender);
        }
    }

    /// Files that have something on its way.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.lock().keys().copied().collect()
    }

    /// Forgets a file that has nothing on its way.
    fn tidy(&self, node: NodeId) {
        let mut files = self.lock();
        let clean = files.get(&node).is_some_and(|d| {
            let s = d.lock();
            s.queue.is_empty() && s.flying.is_empty()
        });
        if clean {
            files.remove(&node);
        }
    }

    /// Sends what there is of a file and waits until all of it has been answered. Errors: `timeout`,
    /// `cancelled`; those of the writes are the sender's to tell.
    pub fn drain(
        &self,
        node: NodeId,
        sender: &dyn Sender,
        deadline: Deadline,
        cancel: &Cancel,
    ) -> Result<()> {
        let Some(dirty) = self.lock().get(&node).cloned() else { return Ok(()) };
        loop {
            let seen = dirty.moved.seen();
            if dirty.send_one(node, sender) {
                continue;
            }
            {
                let s = dirty.lock();
                if s.queue.is_empty() && s.flying.is_empty() {
                    break;
                }
            }
            dirty.moved.wait(seen, Deadline::never()).block(deadline, cancel).map_err(|e| {
                let text = format!("writes that are still on their way: {}", e.message);
                Error::new(e.code, text)
            })?;
        }
        self.tidy(node);
        Ok(())
    }
}
