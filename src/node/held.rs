//! What a client holds: its open files, and the replies that it may ask for again. Where the client named
//! a session, this outlives the connection: whoever comes back within [`GRACE_MS`] under that name finds
//! its files and locks as they were, and a request that was sent twice takes effect once.

use super::cursor::Cursors;
use super::door::Entry;
use super::exports::Exports;
use super::session::{Open, Server, Session};
use crate::base::{Code, Counted, Deadline, Error, Gauge, Lanes, Result, TimerKey, id};
use crate::vfs::{Cx, Who};
use crate::wire::fs::{Reply, Slot};
use nix::sys::resource::{Resource, getrlimit};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long files and locks wait for a client whose connection was lost.
const GRACE_MS: u64 = 30_000;
/// Open files of one session.
const HANDLES_MAX: usize = 65_536;
/// Of the descriptors that the process may have, those that can be clients' open files; the others are for
/// connections and for what is open only for a moment.
const DESCRIPTORS_SHARE: (u64, u64) = (3, 4);
/// Replies kept of one session, far more than its client has requests in flight.
const REPLIES_MAX: usize = 1024;
/// Sessions that wait for their client.
const PARKED_MAX: usize = 1024;
/// Shorter names could be guessed.
const NAME_MIN: usize = 16;
/// Time to close the files of a session that has ended.
const RELEASE_MS: u64 = 40_000;

/// Counts the open files of all sessions of a program.
pub(super) fn open_files() -> Gauge {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let share = limit / DESCRIPTORS_SHARE.1 * DESCRIPTORS_SHARE.0;
    Gauge::new(usize::try_from(share).unwrap_or(usize::MAX), "open files")
}

pub(super) struct Held {
    pub who: Arc<Who>,
    pub exports: Arc<Exports>,
    /// Requests of one open file keep their order.
    pub lanes: Lanes<u64>,
    files: Mutex<Files>,
    /// Open files of all sessions.
    all_files: Gauge,
    replies: Mutex<Replies>,
}

#[derive(Default)]
struct Files {
    open: HashMap<u64, (Open, Counted)>,
    last: u64,
    cursors: Cursors,
    ended: bool,
}

#[derive(Default)]
struct Replies {
    ack: u64,
    known: BTreeMap<u64, Known>,
}

enum Known {
    /// Under way; those who sent it again want the reply too.
    Running(Vec<Asker>),
    Done(Result<Reply>),
}

/// Who waits for a reply: a connection, and the tag there.
pub(super) type Asker = (Weak<Session>, Option<u32>);

/// What is to be done with a request that bears a number.
pub(super) enum Turn {
    /// It comes for the first time.
    First,
    /// It was carried out, with this outcome.
    Known(Result<Reply>),
    /// It is being carried out; the reply will come.
    Running,
}

impl Held {
    fn new(server: &Server, entry: &Entry) -> Arc<Held> {
        let who = Who { session: id::random_u53(), ..entry.who.clone() };
        Arc::new(Held {
            who: Arc::new(who),
            exports: entry.exports.clone(),
            lanes: Lanes::new(server.pool.clone()),
            files: Mutex::default(),
            all_files: server.open_files.clone(),
            replies: Mutex::default(),
        })
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replies(&self) -> MutexGuard<'_, Replies> {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an open file its number. A session may have as many files open as are left for others, so
    /// that none can take them all. Errors: ENFILE.
    pub fn keep(&self, open: Open) -> Result<u64> {
        let mut f = self.files();
        if f.ended {
            return Err(Error::new(Code::Cancelled, "the session has ended"));
        }
        let (have, room) = (f.open.len(), HANDLES_MAX.min(self.all_files.free()));
        let full = || {
            let message = format!("this session has {have} files open; close some first");
            Error::from_errno(libc::ENFILE, message)
        };
        if have >= room {
            return Err(full());
        }
        let counted = self.all_files.enter().map_err(|_| full())?;
        f.last += 1;
        let h = f.last;
        f.open.insert(h, (open, counted));
        Ok(h)
    }

    pub fn opened(&self, h: u64) -> Result<Open> {
        let found = self.files().open.get(&h).map(|(open, _)| open.clone());
        found.ok_or_else(|| Error::new(Code::Ebadf, "unknown handle"))
    }

    pub fn forget(&self, h: u64) -> Result<Open> {
        let found = self.files().open.remove(&h).map(|(open, _)| open);
        found.ok_or_else(|| Error::new(Code::Ebadf, "unknown handle"))
    }

    pub fn cursor(&self, dir: u64, at: u64) -> Option<u64> {
        self.files().cursors.find(dir, at)
    }

    pub fn keep_cursor(&self, dir: u64, start: u64, cookies: Vec<u64>) {
        self.files().cursors.keep(dir, start, cookies);
    }

    /// Errors: EINVAL for a number whose reply was given up.
    pub fn begin(&self, slot: Slot, asker: Asker) -> Result<Turn> {
        let mut r = self.replies();
        if slot.ack > r.ack {
            r.ack = slot.ack;
            r.known = r.known.split_off(&slot.ack);
        }
        if slot.rid < r.ack {
            return Err(Error::invalid("rid: its reply has been acknowledged"));
        }
        if let Some(known) = r.known.get_mut(&slot.rid) {
            return Ok(match known {
                Known::Done(outcome) => Turn::Known(outcome.clone()),
                Known::Running(askers) => {
                    askers.push(asker);
                    Turn::Running
                }
            });
        }
        if r.known.len() >= REPLIES_MAX {
            r.known.pop_first();
        }
        r.known.insert(slot.rid, Known::Running(Vec::new()));
        Ok(Turn::First)
    }

    /// A request has ended; returns who asked for it again meanwhile. What was refused unseen (EAGAIN,
    /// or given up before it began) is not remembered: it may be tried anew.
    pub fn answered(&self, rid: u64, outcome: &Result<Reply>) -> Vec<Asker> {
        let mut r = self.replies();
        let unseen =
            outcome.as_ref().is_err_and(|e| e.errno() == libc::EAGAIN || e.code == Code::Cancelled);
        let before = match unseen {
            true => r.known.remove(&rid),
            // Acknowledged while it ran: nobody will ask.
            false => {
                let done = Known::Done(outcome.clone().map(Reply::without_content));
                r.known.get_mut(&rid).map(|k| std::mem::replace(k, done))
            }
        };
        match before {
            Some(Known::Running(askers)) => askers,
            _ => Vec::new(),
        }
    }

    /// Closes what is open, locks with it.
    fn release(&self) {
        let open = {
            let mut f = self.files();
            f.ended = true;
            std::mem::take(&mut f.open)
        };
        let cx = Cx::new(self.who.clone(), Deadline::after_ms(RELEASE_MS));
        for (open, _counted) in open.into_values() {
            let Ok(export) = self.exports.get(open.export) else { continue };
            if let Err(e) = export.tree.release(&cx, open.handle) {
                log::debug!("closing a file of a lost session: {e}");
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.files().open.is_empty()
    }
}

/// The sessions that clients named.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<String, Named>>);

struct Named {
    held: Arc<Held>,
    /// The connection that has it now, or had it last.
    session: Weak<Session>,
    /// When it is given up, while it has none.
    parked: Option<TimerKey>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Named>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a client finds that says hello: what it held, under a name that it gave before, or nothing
    /// yet. True if it was resumed.
    pub fn claim(
        &self,
        server: &Server,
        session: &Arc<Session>,
        name: Option<&str>,
        entry: &Entry,
    ) -> (Arc<Held>, bool) {
        let Some(name) = name.filter(|n| n.len() >= NAME_MIN) else {
            return (Held::new(server, entry), false);
        };
        let mut all = self.lock();
        let known = all.get_mut(name).filter(|n| {
            // The same client, and nobody who learned the name.
            let who = Who { session: n.held.who.session, ..entry.who.clone() };
            *n.held.who == who && n.held.exports.is_alike(&entry.exports)
        });
        if let Some(named) = known {
            if let Some(key) = named.parked.take() {
                server.timer.cancel(key);
            }
            let before = std::mem::replace(&mut named.session, Arc::downgrade(session));
            let held = named.held.clone();
            drop(all);
            // The old connection may not have noticed that it is dead.
            if let Some(old) = before.upgrade() {
                old.conn.close(None, "");
            }
            return (held, true);
        }
        let held = Held::new(server, entry);
        let named = Named { held: held.clone(), session: Arc::downgrade(session), parked: None };
        if !all.contains_key(name) {
            all.insert(name.to_owned(), named);
        }
        (held, false)
    }

    /// The connection is gone: what it held waits for its client, or ends.
    pub fn part(
        &self,
        server: &Arc<Server>,
        session: &Arc<Session>,
        name: Option<&str>,
        held: &Arc<Held>,
    ) {
        let mut all = self.lock();
        let named = name.and_then(|n| all.get_mut(n)).filter(|n| Arc::ptr_eq(&n.held, held));
        let Some(named) = named else {
            drop(all);
            return end(server, held.clone());
        };
        if !std::ptr::eq(named.session.as_ptr(), Arc::as_ptr(session)) {
            // Another connection has taken it over.
            return;
        }
        let name = name.unwrap_or_default().to_owned();
        let (weak, gone) = (Arc::downgrade(server), name.clone());
        let when = Instant::now() + Duration::from_millis(GRACE_MS);
        named.parked = Some(server.timer.at(
            when,
            Box::new(move || {
                if let Some(server) = weak.upgrade() {
                    server.sessions.give_up(&server, &gone);
                }
            }),
        ));
        // Those that hold nothing wait only while there is room.
        let parked = all.values().filter(|n| n.parked.is_some()).count();
        if parked > PARKED_MAX {
            let victim = all
                .iter()
                .filter(|(_, n)| n.parked.is_some())
                .min_by_key(|(_, n)| (!n.held.is_idle(), n.parked))
                .map(|(name, _)| name.clone());
            drop(all);
            if let Some(victim) = victim {
                self.give_up(server, &victim);
            }
        }
    }

    fn give_up(&self, server: &Arc<Server>, name: &str) {
        let mut all = self.lock();
        if all.get(name).is_some_and(|n| n.parked.is_some())
            && let Some(named) = all.remove(name)
        {
            drop(all);
            if let Some(key) = named.parked {
                server.timer.cancel(key);
            }
            end(server, named.held);
        }
    }
}

fn end(server: &Server, held: Arc<Held>) {
    if held.is_idle() {
        return held.release();
    }
    let work = held.clone();
    if server.pool.submit(move || work.release()).is_err() {
        // The pool is full or has stopped. Leaving files open and locked is worse than a short wait
        // on this thread.
        held.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Pool, Timer};
    use crate::vfs::{FileKind, Handle, OpenFlags};

    #[test]
    fn no_session_can_take_all_open_files() {
        let timer = Timer::start().unwrap();
        let pool = Pool::start("files", 1, 8).unwrap();
        let server =
            Server { open_files: Gauge::new(8, "open files"), ..Server::new(pool, timer.clone()) };
        let entry = Entry {
            exports: Arc::default(),
            who: Who::default(),
            name: "n".into(),
            expires_at_s: None,
        };
        let session = || Held::new(&server, &entry);
        let open =
            || Open { export: 0, handle: Handle(1), kind: FileKind::Plain, flags: OpenFlags::READ };
        let fill = |held: &Held| (0..).take_while(|_| held.keep(open()).is_ok()).count();
        let (a, b, c) = (session(), session(), session());
        assert_eq!([fill(&a), fill(&b), fill(&c)], [4, 2, 1]);
        let e = a.keep(open()).unwrap_err();
        assert!(e.errno() == libc::ENFILE && e.message.contains("has 4 files open"), "{e}");
        // What is closed, or was held by one that is gone, is there again.
        b.forget(1).unwrap();
        assert_eq!(fill(&b), 1);
        a.release();
        assert_eq!(server.open_files.free(), 5);
        timer.stop();
    }
}
