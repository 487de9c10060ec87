//! One connection of the node protocol: hello first (spec: fs 3), then requests, many at once. Those of
//! one open file keep their order; a read that must wait is parked; a lock that is taken is tried again
//! later; neither holds a thread.

use super::door::{Door, Entry};
use super::exports::Exports;
use super::files;
use super::held::{self, Held, Sessions, Turn};
use super::job::{Asked, Job};
use super::lease::Lease;
use crate::base::{Cancel, Code, Error, Gauge, Lanes, Pool, Requests, Result, Timer};
use crate::net::{Conn, InFlight, Limits, Message};
use crate::vfs::{Caller, FileKind, Handle, OpenFlags, Watch};
use crate::wire::Envelope;
use crate::wire::fs::{
    self, Call, Ext, Failure, Fault, Framing, Hello, HelloReply, Op, Reply, Request, Slot,
    decode_bin,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Reads that wait for something to read, and locks that others hold, of one session. They hold no thread and
/// no place among the requests in flight, or the request that gives them up could not be read.
const PARKED_MAX: usize = 256;

/// The lane of hellos and of what comes while one is under way; files are numbered from 1.
const HELLO_LANE: u64 = 0;

/// Of WebSocket: policy.
const EXPIRED_CODE: u16 = 1008;

/// What all sessions of a program share.
pub struct Server {
    pub pool: Arc<Pool>,
    /// What becomes of requests that threads carry out.
    pub requests: Arc<Requests>,
    pub(super) timer: Timer,
    pub(super) sessions: Sessions,
    pub(super) open_files: Gauge,
}

impl Server {
    /// Comes after the process has raised its limit of open files.
    pub fn new(pool: Arc<Pool>, timer: Timer) -> Server {
        let (requests, sessions) = (Arc::default(), Sessions::default());
        Server { pool, requests, timer, sessions, open_files: held::open_files() }
    }
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
    events: Mutex<Events>,
    pub(super) parked: Gauge,
    /// Tells its own changes from those of others.
    pub(super) caller: Caller,
}

#[derive(Default)]
struct State {
    ready: Option<Arc<Ready>>,
    /// Messages in the lane of hellos.
    in_order: usize,
    watch: Option<Watch>,
    running: HashMap<u64, Running>,
    last_running: u64,
    lease: Option<Lease>,
    closed: bool,
}

/// What was pushed to the client.
#[derive(Default)]
struct Events {
    seq: u64,
    /// Some could not be queued: the client has to forget everything.
    lost: bool,
}

struct Running {
    h: Option<u64>,
    /// It takes effect whatever becomes of the connection.
    numbered: bool,
    /// A request that may wait long, and is given up when its file is closed.
    cancel: Cancel,
}

/// What the hello settled.
pub(super) struct Ready {
    pub held: Arc<Held>,
    pub subscribed: bool,
    pub ext: Option<Ext>,
}

impl Ready {
    pub fn exports(&self) -> &Exports {
        &self.held.exports
    }

    fn session_name(&self) -> Option<&str> {
        self.ext.as_ref()?.session.as_deref()
    }

    pub fn negotiated(&self, op: Op) -> bool {
        self.ext.as_ref().is_some_and(|e| e.has(op))
    }

    pub fn framing(&self) -> Framing {
        self.ext.as_ref().map_or(Framing::Text, |e| e.framing)
    }
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
        let (state, events) = (Mutex::default(), Mutex::default());
        let parked = Gauge::new(PARKED_MAX, "requests waiting in this session");
        let caller = Caller::unique();
        Arc::new(Session { server, door, conn, limits, lanes, state, events, parked, caller })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a message; never blocks. What is wrong with it is answered, and ends the connection where
    /// the spec says so.
    pub fn message(self: &Arc<Session>, message: Message) {
        let framing = self.lock().ready.as_ref().map_or(Framing::Text, |ready| ready.framing());
        let decoded = decode(message, framing);
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
            Queued { session: self.clone(), message: Some(decoded), _in_flight: self.conn.begin() };
        if let Err((e, turn)) = self.lanes.hand(Some(HELLO_LANE), turn, Queued::run) {
            turn.refuse(&e);
        }
    }

    fn take(self: &Arc<Session>, decoded: Result<Request, Fault>) {
        match decoded {
            Ok(request) => self.request(request),
            Err(fault) => {
                let first = self.lock().ready.is_none();
                // Whatever is wrong with it, it is no hello.
                let e = match first && !fault.close {
                    true => hello_first(),
                    false => Error::new(Code::Invalid, fault.message),
                };
                self.fail(fault.tag, &e, fault.close || first);
            }
        }
    }

    fn request(self: &Arc<Session>, request: Request) {
        let ready = self.lock().ready.clone();
        let Request { tag, slot, .. } = request;
        match (request.call, ready) {
            (Call::Hello(hello), _) => self.hello(tag, &hello),
            (call, Some(ready)) => {
                let op = call.op();
                if op.is_extension() && !ready.negotiated(op) {
                    let e = Error::new(Code::Invalid, "UnsupportedType");
                    return self.fail(tag, &e, true);
                }
                self.start(tag, slot, call, ready);
            }
            (_, None) => self.fail(tag, &hello_first(), true),
        }
    }

    pub(super) fn fail(&self, tag: Option<u32>, e: &Error, close: bool) {
        self.server.requests.errors.note(e.code);
        let _ = self.conn.send(Failure::new(tag, e).encode());
        if close {
            self.conn.close(None, "");
        }
    }

    fn hello(self: &Arc<Session>, tag: Option<u32>, hello: &Hello) {
        let entry = match self.door.enter(hello) {
            Ok(entry) => entry,
            Err(e) => return self.fail(tag, &e, true),
        };
        let ready = self.lock().ready.clone();
        if ready.is_some_and(|r| !r.exports().has_rights_of(&entry.exports)) {
            let e = Error::new(Code::Eperm, "AuthFailed: other rights need another connection");
            return self.fail(tag, &e, true);
        }
        let name = entry.name.clone();
        let Some((ready, first)) = self.settle(&entry, hello) else { return };
        self.lease(entry.expires_at_s);
        let reply = HelloReply::Node {
            name,
            version: env!("CARGO_PKG_VERSION").into(),
            caps: ready.exports().caps(),
            ext: ready.ext.clone(),
        };
        if first {
            self.conn.set_limits(self.limits);
            self.watch(ready.exports());
        }
        let _ = self.conn.send(Reply::Hello(reply).encode(Op::Hello, tag, Framing::Text));
    }

    /// What the hello comes to, and whether it is the connection's first. Files that are open stay open: a
    /// later hello only changes the subscription. `None` when the connection has ended.
    fn settle(self: &Arc<Session>, entry: &Entry, hello: &Hello) -> Option<(Arc<Ready>, bool)> {
        let mut ext = hello.ext.as_ref().map(|offered| offered.accept(&Ext::all()));
        let old = self.lock().ready.clone();
        let held = match &old {
            Some(old) => old.held.clone(),
            None => {
                let name = ext.as_ref().and_then(|e| e.session.clone());
                let sessions = &self.server.sessions;
                let (held, resumed) = sessions.claim(&self.server, self, name.as_deref(), entry);
                if let Some(ext) = &mut ext {
                    ext.resumed = resumed;
                }
                held
            }
        };
        let first = old.is_none();
        let ext = ext.or_else(|| old.and_then(|old| old.ext.clone()));
        let subscribed = hello.subscribe_invalidations || ext.is_none() && self.door.tells_all();
        let ready = Arc::new(Ready { held, subscribed, ext });
        let mut s = self.lock();
        if s.closed {
            drop(s);
            self.part(&ready);
            return None;
        }
        s.ready = Some(ready.clone());
        Some((ready, first))
    }

    /// Ends the connection when what let it in does.
    fn lease(self: &Arc<Session>, expires_at_s: Option<u64>) {
        let Some(expires_at_s) = expires_at_s else { return };
        let weak = Arc::downgrade(self);
        let end = move || {
            if let Some(session) = weak.upgrade() {
                session.conn.close(Some(EXPIRED_CODE), "the grant has expired");
                // Nobody hears what comes of it.
                session.give_up(|r| !r.numbered);
            }
        };
        let lease = Lease::start(self.server.timer.clone(), expires_at_s, Arc::new(end));
        let mut s = self.lock();
        let spent = match s.closed {
            true => Some(lease),
            false => s.lease.replace(lease),
        };
        drop((s, spent));
    }

    fn part(self: &Arc<Session>, ready: &Ready) {
        self.server.sessions.part(&self.server, self, ready.session_name(), &ready.held);
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
        let Some(ready) = self.lock().ready.clone() else { return };
        // Old clients hear of their own changes even when they have not subscribed (spec: fs 6); ours
        // know them by the reply.
        let wanted = match (self.caller.is_here(), &ready.ext) {
            (true, ext) => ext.is_none(),
            (false, _) => ready.subscribed,
        };
        if !wanted {
            return;
        }
        // One at a time, so that they go out in the order of their numbers.
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if event != fs::Event::Resync && !events.lost {
            events.lost = !self.push(&mut events.seq, &ready, &event);
            return;
        }
        // The client has to forget everything, told in words that it knows.
        let all = match ready.ext {
            Some(_) => vec![fs::Event::Resync],
            None => {
                let roots = ready.exports().list().unwrap_or_default();
                roots.iter().map(|e| fs::Event::All { node: e.root, generation: None }).collect()
            }
        };
        events.lost = !all.iter().all(|e| self.push(&mut events.seq, &ready, e));
    }

    fn push(&self, seq: &mut u64, ready: &Ready, event: &fs::Event) -> bool {
        let number = ready.ext.as_ref().map(|_| *seq + 1);
        let queued = self.conn.push(Message::text(event.encode(number))).is_ok();
        *seq += u64::from(queued);
        queued
    }

    fn start(
        self: &Arc<Session>,
        tag: Option<u32>,
        slot: Option<Slot>,
        call: Call,
        ready: Arc<Ready>,
    ) {
        // Numbers mean something in a session that has a name.
        let slot = slot.filter(|_| ready.session_name().is_some());
        if let Some(slot) = slot {
            match ready.held.begin(slot, (Arc::downgrade(self), tag)) {
                Ok(Turn::First) => {}
                Ok(Turn::Running) => return,
                Ok(Turn::Known(outcome)) => {
                    return self.answer(tag, call.op(), ready.framing(), &outcome);
                }
                Err(e) => return self.fail(tag, &e, false),
            }
        }
        if let Call::Close { h } = call {
            self.give_up(|r| r.h == Some(h));
        }
        // Compressing takes too long for the thread of many connections.
        if ready.framing() != Framing::Lz4
            && let Some(reply) = files::at_hand(&ready, &call)
        {
            return self.answer(tag, call.op(), ready.framing(), &Ok(reply));
        }
        let (h, cancel) = (call.handle(), Cancel::new());
        let key = {
            let mut s = self.lock();
            if s.closed {
                return;
            }
            s.last_running += 1;
            let key = s.last_running;
            let numbered = slot.is_some();
            s.running.insert(key, Running { h, numbered, cancel: cancel.clone() });
            key
        };
        let rid = slot.map(|slot| slot.rid);
        Job::new(self, Asked { tag, key, rid }, call, ready, cancel).submit(h);
    }

    /// Sends what became of a request.
    pub(super) fn answer(
        &self,
        tag: Option<u32>,
        op: Op,
        framing: Framing,
        outcome: &Result<Reply>,
    ) {
        let frame = match outcome {
            Ok(reply) => reply.encode(op, tag, framing),
            Err(e) => Failure::new(tag, e).encode(),
        };
        let _ = self.conn.send(frame);
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

    /// The connection is gone: gives up what runs, unless it bears a number, and parts with what is
    /// held.
    pub fn closed(self: &Arc<Session>) {
        let (ready, watch, lease) = {
            let mut s = self.lock();
            s.closed = true;
            (s.ready.clone(), s.watch.take(), s.lease.take())
        };
        drop((watch, lease));
        self.give_up(|r| !r.numbered);
        if let Some(ready) = ready {
            self.part(&ready);
        }
    }
}

fn hello_first() -> Error {
    Error::invalid("acheron.t_fs_hello must be negotiated first")
}

fn decode(message: Message, framing: Framing) -> Result<Request, Fault> {
    match message {
        Message::Text(text) => match Envelope::parse(&text) {
            Ok(envelope) => Request::decode(&envelope),
            Err(m) => Err(Fault { tag: m.tag, message: m.fault.into(), close: true }),
        },
        Message::Binary(frame) => {
            let unsupported =
                |message: &str| Fault { tag: None, message: message.into(), close: false };
            let (head, meta, data) = decode_bin(&frame, framing)
                .map_err(|e| unsupported(&format!("unsupported websocket opcode: {e}")))?;
            let meta = std::str::from_utf8(&meta).map_err(|_| unsupported("meta is not UTF-8"))?;
            Request::decode_bin(&head, meta, data)
        }
    }
}

/// A message that waits for its place among hellos.
struct Queued {
    session: Arc<Session>,
    message: Option<Result<Request, Fault>>,
    _in_flight: InFlight,
}

impl Queued {
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

impl Drop for Queued {
    fn drop(&mut self) {
        self.session.lock().in_order -= 1;
        if std::thread::panicking() {
            self.session.fail(None, &Error::new(Code::Eio, "internal error"), true);
        }
    }
}
