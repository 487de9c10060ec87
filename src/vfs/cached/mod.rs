//! A tree that remembers another one, which is far away: names and attributes for as long as the other
//! tells what changes ([`Tree::is_live`]), else for a moment; files are read ahead and written behind. It
//! keeps the ids of the tree underneath, and of file content what is on its way and, if it is told to, what fits
//! on a disk.
//!
//! What it promises (close-to-open): a file that is opened shows what was there when the one who wrote it
//! had closed it; what is written is on the tree when `flush` returns, or `flush` says why not.

mod ahead;
mod behind;
mod clock;
mod disk;
mod file;
mod meta;
mod pages;
mod tree;

use super::caller::Caller;
use super::watchers::Watchers;
use super::{Cx, Event, Handle, NodeId, Tree, Watch, Who};
use crate::base::{Deadline, Error, Pool, Result, Timer};
use ahead::Budget;
use behind::Behind;
pub use disk::{Disk, DiskStatus};
use file::OpenFile;
use meta::{Meta, Until};
use pages::Pages;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

/// Threads that read ahead and write behind, of all trees of a program.
const THREADS: usize = 6;
const QUEUE_MAX: usize = 256;

#[derive(Clone, Copy, Debug)]
pub struct CacheOptions {
    /// Memory for all that is remembered or on its way, about.
    pub bytes: usize,
    /// How old names and attributes may be where the tree does not tell what changes.
    pub ttl: Duration,
    /// For each call made in the background.
    pub timeout_ms: u64,
}

impl Default for CacheOptions {
    fn default() -> CacheOptions {
        CacheOptions { bytes: 64 << 20, ttl: Duration::from_secs(1), timeout_ms: 15_000 }
    }
}

/// What the cached trees of a program share: the threads, and what may be on its way at a time.
#[derive(Clone)]
pub struct Workers {
    options: CacheOptions,
    disk: Option<Arc<Disk>>,
    pool: Arc<Pool>,
    timer: Timer,
    ahead: Arc<Budget>,
    behind: Arc<Budget>,
    /// Of files that came with their opening, until they are read.
    contents: Arc<Budget>,
}

impl Workers {
    /// Errors: the host's, which has no thread left.
    pub fn start(options: CacheOptions, timer: Timer) -> Result<Workers> {
        Ok(Workers {
            options,
            disk: None,
            pool: Pool::start("cache", THREADS, QUEUE_MAX)?,
            timer,
            ahead: Budget::new(options.bytes / 4),
            behind: Budget::new(options.bytes / 4),
            contents: Budget::new(options.bytes / 16),
        })
    }

    /// Keeps what is read on a disk, too.
    #[must_use]
    pub fn with_disk(self, disk: Option<Arc<Disk>>) -> Workers {
        Workers { disk, ..self }
    }

    pub fn stop(&self) {
        self.pool.stop();
        if let Some(disk) = &self.disk {
            disk.stop();
        }
    }
}

/// How a cache does, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStatus {
    pub hits: u64,
    pub misses: u64,
    /// Events end what is remembered; else time does.
    pub live: bool,
    /// Of all cached trees of the program.
    pub read_ahead_bytes: usize,
    pub write_behind_bytes: usize,
    pub bytes_max: usize,
}

pub struct Cached {
    inner: Arc<dyn Tree>,
    /// What the tree is called on the disk, where its files are kept.
    source: Option<String>,
    workers: Workers,
    meta: Meta,
    behind: Arc<Behind>,
    pages: Arc<Pages>,
    sender: OnceLock<Arc<dyn behind::Sender>>,
    files: RwLock<HashMap<Handle, Arc<OpenFile>>>,
    watchers: Watchers,
    /// Calls made for our own callers: they know what they did, and hear of it from us.
    own: Caller,
    /// Writes that were told to the watchers when they were taken.
    sending: Caller,
    background: Arc<Who>,
    /// Subscription to the tree underneath.
    watch: OnceLock<Watch>,
}

impl Cached {
    pub fn new(inner: Arc<dyn Tree>, workers: Workers) -> Arc<Cached> {
        Cached::of(None, inner, workers)
    }

    /// As [`Cached::new`]; with a `source`, which no other tree has, its files are kept on the workers' disk,
    /// if they have one.
    pub fn of(source: Option<String>, inner: Arc<dyn Tree>, workers: Workers) -> Arc<Cached> {
        let cached = Arc::new(Cached {
            source,
            meta: Meta::new(workers.options.bytes / 2, workers.options.ttl),
            behind: Arc::default(),
            pages: Arc::default(),
            sender: OnceLock::new(),
            files: RwLock::default(),
            watchers: Watchers::default(),
            own: Caller::unique(),
            sending: Caller::unique(),
            background: Arc::new(Who { principal: "cache".into(), ..Who::default() }),
            watch: OnceLock::new(),
            inner,
            workers,
        });
        let weak = Arc::downgrade(&cached);
        let _ = cached.sender.set(Arc::new(file::Delivery(weak.clone())));
        let sink = move |event| {
            if let Some(cached) = weak.upgrade() {
                cached.heard(&event);
            }
        };
        if let Ok(watch) = cached.inner.watch(Arc::new(sink)) {
            let _ = cached.watch.set(watch);
        }
        cached
    }

    pub fn status(&self) -> CacheStatus {
        let (hits, misses) = self.meta.counts();
        CacheStatus {
            hits,
            misses,
            live: self.inner.is_live(),
            read_ahead_bytes: self.workers.ahead.used(),
            write_behind_bytes: self.workers.behind.used(),
            bytes_max: self.workers.options.bytes,
        }
    }

    /// An event of the tree underneath.
    fn heard(&self, event: &Event) {
        if self.sending.is_here() {
            return;
        }
        if !self.own.is_here() {
            self.meta.heard(event);
        }
        self.watchers.announce(std::slice::from_ref(event));
    }

    fn until(&self) -> Until {
        self.meta.until(self.inner.is_live())
    }

    /// A file that the tree does not know any more is not looked for here again.
    fn known<T>(&self, node: NodeId, outcome: Result<T>) -> Result<T> {
        outcome.inspect_err(|e: &Error| {
            if e.errno() == libc::ESTALE {
                self.meta.forget(node);
            }
        })
    }

    fn file(&self, handle: Handle) -> Option<Arc<OpenFile>> {
        self.files.read().unwrap_or_else(PoisonError::into_inner).get(&handle).cloned()
    }

    fn background(&self) -> Cx {
        let deadline = Deadline::after_ms(self.workers.options.timeout_ms);
        Cx::new(self.background.clone(), deadline)
    }
}
