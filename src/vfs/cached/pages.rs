//! Pages of directories asked for ahead: whoever has read one page will read the next, which is under way
//! meanwhile. A page is handed out once, and only if nothing was told of the directory since it was asked
//! for.

use super::Workers;
use super::ahead::Share;
use super::meta::{Since, Until, is_fresh};
use crate::base::{Cancel, Deadline, Notify, Result};
use crate::vfs::{DirPage, NodeId, PageLimit, ReadDir};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pages that nobody has come for yet, of all directories of a tree.
const PAGES_MAX: usize = 8;
/// How long a page waits for somebody to come for it.
const KEPT: Duration = Duration::from_secs(5);

/// A page, when it was asked for, and how long it may be believed.
pub struct Came {
    pub since: Since,
    pub until: Until,
    pub page: DirPage,
}

#[derive(Default)]
pub struct Pages {
    /// Oldest first.
    waiting: Mutex<VecDeque<Waiting>>,
    came: Notify,
}

struct Waiting {
    dir: NodeId,
    cookie: u64,
    /// `None` while it is on its way.
    came: Option<Came>,
    _share: Share,
}

impl Pages {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page at `at`, if it was asked for ahead, waiting for it if it is on its way. `None`: ask the
    /// tree. Errors: the deadline's, and `cancelled`.
    pub fn take(&self, at: &ReadDir, deadline: Deadline, cancel: &Cancel) -> Result<Option<Came>> {
        loop {
            let seen = self.came.seen();
            {
                let mut waiting = self.lock();
                let Some(n) = position(&waiting, at.dir, at.cookie) else { return Ok(None) };
                if waiting[n].came.is_some() {
                    let found = waiting.remove(n).and_then(|w| w.came);
                    let fresh = |c: &Came| {
                        is_fresh(c.until) && c.page.entries.len() <= at.limit.entries.max(1)
                    };
                    return Ok(found.filter(fresh));
                }
            }
            self.came.wait(seen, Deadline::never()).block(deadline, cancel)?;
        }
    }

    /// Has `fetch` ask for the page at `at` in the background. What fails is asked for again by whoever
    /// comes for it.
    pub fn ask(
        self: &Arc<Pages>,
        at: &ReadDir,
        workers: &Workers,
        fetch: impl FnOnce() -> Result<Came> + Send + 'static,
    ) {
        let Some(share) = workers.ahead.take(PageLimit::DEFAULT.bytes) else { return };
        let (dir, cookie) = (at.dir, at.cookie);
        {
            let mut waiting = self.lock();
            if position(&waiting, dir, cookie).is_some() {
                return;
            }
            if waiting.len() >= PAGES_MAX {
                // Its walker has gone elsewhere.
                waiting.pop_front();
            }
            waiting.push_back(Waiting { dir, cookie, came: None, _share: share });
        }
        let weak = Arc::downgrade(self);
        let end = move || {
            if let Some(pages) = weak.upgrade() {
                pages.drop_page(dir, cookie);
            }
        };
        workers.timer.at(Instant::now() + KEPT, Box::new(end));
        let owed = Owed { pages: self.clone(), dir, cookie, came: None };
        // A full queue drops the work, and with it what is owed.
        let _ = workers.pool.submit(move || owed.give(fetch()));
    }

    fn drop_page(&self, dir: NodeId, cookie: u64) {
        let mut waiting = self.lock();
        if let Some(n) = position(&waiting, dir, cookie) {
            waiting.remove(n);
        }
    }
}

fn position(waiting: &VecDeque<Waiting>, dir: NodeId, cookie: u64) -> Option<usize> {
    waiting.iter().position(|w| (w.dir, w.cookie) == (dir, cookie))
}

/// Puts a page in its place, or takes the place away, whatever becomes of the work.
struct Owed {
    pages: Arc<Pages>,
    dir: NodeId,
    cookie: u64,
    came: Option<Came>,
}

impl Owed {
    fn give(mut self, fetched: Result<Came>) {
        self.came = fetched.ok();
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        let mut waiting = self.pages.lock();
        if let Some(n) = position(&waiting, self.dir, self.cookie) {
            match self.came.take() {
                Some(came) => waiting[n].came = Some(came),
                None => drop(waiting.remove(n)),
            }
        }
        drop(waiting);
        self.pages.came.notify();
    }
}
