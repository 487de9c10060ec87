//! One connection of the node protocol: hello first (spec: fs 3), then requests, many at once. Those of
//! one open file keep their order; a read that must wait is parked; a lock that is taken is tried again
//! later; neither holds a thread.

use super::cursor::Cursors;
use super::exports::Exports;
use super::job::{CALL_TIMEOUT_MS, Job};
use crate::base::{Cancel, Code, Deadline, Error, Gauge, Lanes, Pool, Result, Timer, id};
use crate::net::{Conn, InFlight, Limits, Message};
use crate::vfs::{Cx, FileKind, Handle, OpenFlags, Watch, Who};
use crate::wire::Envelope;
use crate::wire::fs::{
    self, Call, Ext, Failure, Fault, Hello, HelloReply, Op, Reply, Request, decode_bin,
};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Open files of one session.
const HANDLES_MAX: usize = 65_536;

/// Reads that wait for something to read, of one session. They hold no thread and no place among the
/// requests in flight, or the request that gives them up could not be read.
const PARKED_MAX: usize = 256;

/// Requests taken before the hello is answered.
const EARLY_MAX: usize = 16;
/// The lane of hellos and of what comes while one is under way; files are numbered from 1.
const HELLO_LANE: u64 = 0;

/// What a client's connection may use until its hello is answered.
pub fn limits_before_hello() -> Limits {
    Limits { max_inflight: EARLY_MAX, ..Limits::unauthenticated() }
}

/// What it may use then. Silence is no fault: old clients read only while they wait for a reply, and
/// answer no pings meanwhile.
pub(super) fn limits_after_hello() -> Limits {
    Limits { idle: Limits::NEVER, ..Limits::default() }
}

/// Decides who may come in, and what he finds. Called on the pool: it may block.
pub trait Door: Send + Sync {
    /// Errors: `AuthMissing` and `AuthFailed` (spec: fs 3.1), or what else bars the way.
    fn enter(&self, hello: &Hello) -> Result<Entry>;
}

pub struct Entry {
    pub exports: Arc<Exports>,
    pub who: Who,
    /// The node's name for the hello reply.
    pub name: String,
}

/// What all sessions of a program share.
pub struct Server {
    pub pool: Arc<Pool>,
    pub timer: Timer,
}

/// An open file of a session.
#[derive(Clone)]
pub(super) struct Open {
    pub export: usize,
    pub handle: Handle,
    pub kind: FileKind,
    pub flags: OpenFlags,
}

pub struct Session {
    pub(super) server: Arc<Server>,
    door: Arc<dyn Door>,
    pub(super) conn: Conn,
    /// What the connection may use once the hello is answered.
    limits: Limits,
    pub(super) lanes: Lanes<u64>,
    state: Mutex<State>,
    /// Events could not be queued: the client has to forget everything.
    lost_events: AtomicBool,
    pub(super) parked: Gauge,
}

#[derive(Default)]
struct State {
    ready: Option<Arc<Ready>>,
    /// Messages in the lane of hellos.
    in_order: usize,
    watch: Option<Watch>,
    handles: HashMap<u64, Open>,
    last_handle: u64,
    running: HashMap<u64, Running>,
    last_running: u64,
    cursors: Cursors,
    closed: bool,
}

struct Running {
    h: Option<u64>,
    /// A request that may wait long, and is given up when its file is closed.
    cancel: Cancel,
}

/// What the hello settled.
pub(super) struct Ready {
    pub exports: Arc<Exports>,
    pub who: Arc<Who>,
    pub subscribed: bool,
    pub ext: Option<Ext>,
}

impl Ready {
    pub fn negotiated(&self, op: Op) -> bool {
        self.ext.as_ref().is_some_and(|e| e.has(op))
    }

    pub fn bin(&self) -> bool {
        self.ext.as_ref().is_some_and(|e| e.bin)
    }
}

thread_local! {
    /// The session whose request this thread carries out: it hears of its own changes even when it has
    /// not subscribed (spec: fs 6).
    pub(super) static CURRENT: Cell<u64> = const { Cell::new(0) };
}

impl Session {
    /// `limits`: what the connection may use once its hello is answered.
    pub fn new(
        server: Arc<Server>,
        door: Arc<dyn Door>,
        conn: Conn,
        limits: Limits,
    ) -> Arc<Session> {
        let lanes = Lanes::new(server.pool.clone());
        let (state, lost_events) = (Mutex::default(), AtomicBool::new(false));
        let parked = Gauge::new(PARKED_MAX, "reads waiting in this session");
        Arc::new(Session { server, door, conn, limits, lanes, state, lost_events, parked })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a message; never blocks. What is wrong with it is answered, and ends the connection where
    /// the spec says so.
    pub fn message(self: &Arc<Session>, message: Message) {
        let decoded = decode(message);
        let is_hello = matches!(&decoded, Ok(Request { call: Call::Hello(_), .. }));
        let in_order = {
            let mut s = self.lock();
            let in_order = is_hello || s.ready.is_none() || s.in_order > 0;
            s.in_order += usize::from(in_order);
            in_order
        };
        if !in_order {
            return self.take(decoded);
        }
        let turn =
            Turn { session: self.clone(), message: Some(decoded), _in_flight: self.conn.begin() };
        if let Err((e, turn)) = self.lanes.hand(Some(HELLO_LANE), turn, Turn::run) {
            turn.refuse(&e);
        }
    }

    fn take(self: &Arc<Session>, decoded: Result<Request, Fault>) {
        match decoded {
            Ok(request) => self.request(request),
            Err(fault) => {
                let first = self.lock().ready.is_none();
                let e = Error::new(Code::Invalid, fault.message);
                self.fail(fault.tag, &e, fault.close || first);
            }
        }
    }

    fn request(self: &Arc<Session>, request: Request) {
        let ready = self.lock().ready.clone();
        match (request.call, ready) {
            (Call::Hello(hello), _) => self.hello(request.tag, &hello),
            (call, Some(ready)) => {
                let op = call.op();
                if op.is_extension() && !ready.negotiated(op) {
                    let e = Error::new(Code::Invalid, "UnsupportedType");
                    return self.fail(request.tag, &e, true);
                }
                self.start(request.tag, call, ready);
            }
            (_, None) => {
                let e = Error::invalid("acheron.t_fs_hello must be negotiated first");
                self.fail(request.tag, &e, true);
            }
        }
    }

    pub(super) fn fail(&self, tag: Option<u32>, e: &Error, close: bool) {
        let _ = self.conn.send(Failure::new(tag, e).encode().into());
        if close {
            self.conn.close(None, "");
        }
    }

    fn hello(self: &Arc<Session>, tag: Option<u32>, hello: &Hello) {
        let entry = match self.door.enter(hello) {
            Ok(entry) => entry,
            Err(e) => return self.fail(tag, &e, true),
        };
        let who = Who { session: id::random_u53(), ..entry.who };
        let ready = Arc::new(Ready {
            exports: entry.exports,
            who: Arc::new(who),
            subscribed: hello.subscribe_invalidations,
            ext: hello.ext.as_ref().map(|offered| offered.accept(&Ext::all())),
        });
        let reply = HelloReply::Node {
            name: entry.name,
            version: env!("CARGO_PKG_VERSION").into(),
            caps: ready.exports.caps(),
            ext: ready.ext.clone(),
        };
        let first = {
            let mut s = self.lock();
            if s.closed {
                return;
            }
            let first = s.ready.is_none();
            // Files that are open stay open: a later hello only changes the subscription.
            s.ready = Some(match s.ready.take() {
                Some(old) => Arc::new(Ready {
                    exports: old.exports.clone(),
                    who: old.who.clone(),
                    subscribed: ready.subscribed,
                    ext: ready.ext.clone().or_else(|| old.ext.clone()),
                }),
                None => ready.clone(),
            });
            first
        };
        if first {
            self.conn.set_limits(self.limits);
            self.watch(&ready.exports);
        }
        let _ = self.conn.send(Reply::Hello(reply).encode(Op::Hello, tag, false).into());
    }

    fn watch(self: &Arc<Session>, exports: &Exports) {
        let session = Arc::downgrade(self);
        let watch = exports.watch(Arc::new(move |event| {
            if let Some(session) = session.upgrade() {
                session.event(event);
            }
        }));
        let mut s = self.lock();
        if s.closed {
            drop(s);
            return;
        }
        s.watch = Some(watch);
    }

    fn event(&self, event: fs::Event) {
        let own = CURRENT.get() == self.conn.id();
        let Some(ready) = self.lock().ready.clone() else { return };
        if !own && !ready.subscribed {
            return;
        }
        if event == fs::Event::Resync || self.lost_events.load(Ordering::Acquire) {
            return self.resync(&ready);
        }
        if self.conn.push(Message::text(event.encode())).is_err() {
            self.lost_events.store(true, Ordering::Release);
        }
    }

    /// Tells the client to forget everything, in words that it knows.
    fn resync(&self, ready: &Ready) {
        let events = match ready.ext {
            Some(_) => vec![fs::Event::Resync],
            None => {
                let roots = ready.exports.list().unwrap_or_default();
                roots.iter().map(|e| fs::Event::All { node: e.root, generation: None }).collect()
            }
        };
        let queued = events.iter().all(|e| self.conn.push(Message::text(e.encode())).is_ok());
        self.lost_events.store(!queued, Ordering::Release);
    }

    fn start(self: &Arc<Session>, tag: Option<u32>, call: Call, ready: Arc<Ready>) {
        if let Call::Close { h } = call {
            self.give_up(|r| r.h == Some(h));
        }
        let (h, cancel) = (call.handle(), Cancel::new());
        let key = {
            let mut s = self.lock();
            if s.closed {
                return;
            }
            s.last_running += 1;
            let key = s.last_running;
            s.running.insert(key, Running { h, cancel: cancel.clone() });
            key
        };
        Job::new(self, tag, key, call, ready, cancel).submit(h);
    }

    /// A request has been answered.
    pub(super) fn ended(&self, key: u64) {
        self.lock().running.remove(&key);
    }

    fn give_up(&self, which: impl Fn(&Running) -> bool) {
        let s = self.lock();
        let found: Vec<_> =
            s.running.values().filter(|r| which(r)).map(|r| r.cancel.clone()).collect();
        drop(s);
        found.iter().for_each(Cancel::cancel);
    }

    /// The connection is gone: gives up what runs, and closes what is open, locks with it.
    pub fn closed(self: &Arc<Session>) {
        let (ready, handles, watch) = {
            let mut s = self.lock();
            s.closed = true;
            let handles = std::mem::take(&mut s.handles);
            (s.ready.clone(), handles, s.watch.take())
        };
        drop(watch);
        self.give_up(|_| true);
        let Some(ready) = ready.filter(|_| !handles.is_empty()) else { return };
        let release = Arc::new(Mutex::new(handles));
        let work = {
            let (ready, release) = (ready.clone(), release.clone());
            move || release_all(&ready, &release)
        };
        if self.server.pool.submit(work).is_err() {
            // The pool is full or has stopped. Leaving files open and locked is worse than a short
            // wait on this thread.
            release_all(&ready, &release);
        }
    }

    /// Gives an open file its number. Errors: ENFILE.
    pub(super) fn keep(&self, open: Open) -> Result<u64> {
        let mut s = self.lock();
        if s.closed {
            return Err(Error::new(Code::Cancelled, "the session has ended"));
        }
        if s.handles.len() >= HANDLES_MAX {
            let message = format!("this session has {HANDLES_MAX} files open");
            return Err(Error::from_errno(libc::ENFILE, message));
        }
        s.last_handle += 1;
        let h = s.last_handle;
        s.handles.insert(h, open);
        Ok(h)
    }

    pub(super) fn opened(&self, h: u64) -> Result<Open> {
        let found = self.lock().handles.get(&h).cloned();
        found.ok_or_else(|| Error::new(Code::Ebadf, "unknown handle"))
    }

    pub(super) fn forget(&self, h: u64) -> Result<Open> {
        let found = self.lock().handles.remove(&h);
        found.ok_or_else(|| Error::new(Code::Ebadf, "unknown handle"))
    }

    pub(super) fn cursor(&self, dir: u64, at: u64) -> Option<u64> {
        self.lock().cursors.find(dir, at)
    }

    pub(super) fn keep_cursor(&self, dir: u64, start: u64, cookies: Vec<u64>) {
        self.lock().cursors.keep(dir, start, cookies);
    }
}

fn release_all(ready: &Ready, handles: &Mutex<HashMap<u64, Open>>) {
    let handles = std::mem::take(&mut *handles.lock().unwrap_or_else(PoisonError::into_inner));
    let cx = Cx::new(ready.who.clone(), Deadline::after_ms(CALL_TIMEOUT_MS));
    for open in handles.into_values() {
        let Ok(export) = ready.exports.get(open.export) else { continue };
        if let Err(e) = export.tree.release(&cx, open.handle) {
            log::debug!("closing a file of a lost session: {e}");
        }
    }
}

fn decode(message: Message) -> Result<Request, Fault> {
    match message {
        Message::Text(text) => match Envelope::parse(&text) {
            Ok(envelope) => Request::decode(&envelope),
            Err(m) => Err(Fault { tag: m.tag, message: m.fault.into(), close: true }),
        },
        Message::Binary(frame) => {
            let unsupported =
                |message: &str| Fault { tag: None, message: message.into(), close: false };
            let (head, meta, data) = decode_bin(&frame)
                .map_err(|e| unsupported(&format!("unsupported websocket opcode: {e}")))?;
            let meta = std::str::from_utf8(&meta).map_err(|_| unsupported("meta is not UTF-8"))?;
            Request::decode_bin(&head, meta, data)
        }
    }
}

/// A message that waits for its turn among hellos.
struct Turn {
    session: Arc<Session>,
    message: Option<Result<Request, Fault>>,
    _in_flight: InFlight,
}

impl Turn {
    fn run(mut self) {
        if let Some(message) = self.message.take() {
            self.session.take(message);
        }
    }

    fn refuse(mut self, e: &Error) {
        let tag = match self.message.take() {
            Some(Ok(request)) => request.tag,
            Some(Err(fault)) => fault.tag,
            None => None,
        };
        self.session.fail(tag, e, false);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.session.lock().in_order -= 1;
        if std::thread::panicking() {
            self.session.fail(None, &Error::new(Code::Eio, "internal error"), true);
        }
    }
}
