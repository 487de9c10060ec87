//! Many requests in flight on one connection: correlates replies with requests by a tag. It knows
//! only where the tag stands in a message, and that from its user.

use super::{Closed, Conn, DialOptions, Handler, Message, Net, Outgoing, WsUrl};
use crate::base::{Cancel, Code, Deadline, Error, Notify, Result, Timer, TimerKey};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// A request without a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    pub error: Error,
    /// The peer may have got the request, and may have carried it out. Where this is false it
    /// certainly has not, and trying again elsewhere is safe.
    pub sent: bool,
}

impl From<CallError> for Error {
    fn from(e: CallError) -> Error {
        e.error
    }
}

/// What comes in on a dialled [`Mux`]. Called on the I/O thread or that of a caller: it must not block.
pub trait Inbound: Send {
    /// The tag of a reply; `None` for what was not asked for. A protocol whose ids are strings
    /// puts the tag into them.
    fn tag(&mut self, message: &Message) -> Option<u32>;
    /// A message without a tag.
    fn event(&mut self, _message: Message) {}
    /// The end; every waiting call has been answered.
    fn lost(&mut self, _reason: &Closed) {}
}

type Done = Box<dyn FnOnce(Result<Message, CallError>) + Send>;

/// The requesting end of a connection. Clones share it; dropping the last closes the connection.
#[derive(Clone)]
pub struct Mux(Arc<Inner>);

struct Inner {
    conn: OnceLock<Conn>,
    timer: Timer,
    inflight_max: usize,
    table: Mutex<Table>,
    /// Notified when a full table has room again.
    room: Notify,
}

struct Table {
    next: u32,
    waiting: HashMap<u32, Waiting>,
    lost: Option<Error>,
}

struct Waiting {
    done: Done,
    timer: Option<TimerKey>,
    /// Where the request begins in the outgoing stream, once it is queued.
    at: Option<u64>,
}

impl Mux {
    /// For a connection that is made otherwise: give it to [`Mux::attach`], and every reply to
    /// [`Mux::deliver`], and its end to [`Mux::lose`]. At most `inflight_max` requests wait.
    pub fn new(inflight_max: usize, timer: Timer) -> Mux {
        Mux(Arc::new(Inner {
            conn: OnceLock::new(),
            timer,
            inflight_max: inflight_max.max(1),
            table: Mutex::new(Table { next: 1, waiting: HashMap::new(), lost: None }),
            room: Notify::default(),
        }))
    }

    /// Connects and serves replies until the connection ends. Errors: as [`Net::dial`].
    pub fn dial(
        net: &Net,
        url: &WsUrl,
        options: &DialOptions,
        deadline: Deadline,
        inflight_max: usize,
        inbound: Box<dyn Inbound>,
    ) -> Result<Mux> {
        let mux = Mux::new(inflight_max, net.timer().clone());
        let client = Client { mux: Arc::downgrade(&mux.0), inbound };
        let conn = net.dial(url, options, deadline, Box::new(client))?;
        mux.attach(&conn);
        Ok(mux)
    }

    /// The connection to send on; only the first counts.
    pub fn attach(&self, conn: &Conn) {
        let _ = self.0.conn.set(conn.clone());
    }

    pub fn conn(&self) -> Option<&Conn> {
        self.0.conn.get()
    }

    /// False once calls fail at once.
    pub fn is_open(&self) -> bool {
        self.0.lock().lost.is_none() && self.conn().is_some_and(Conn::is_open)
    }

    /// Requests waiting for their reply.
    pub fn in_flight(&self) -> usize {
        self.0.lock().waiting.len()
    }

    /// Sends what `build` makes of a free tag, and waits for the reply; while too many requests
    /// are in flight, first for one of them to end. Errors: `unavailable` when the connection is
    /// lost, `timeout`, `cancelled`; a reply that comes later is dropped.
    pub fn call<M: Into<Outgoing>>(
        &self,
        build: impl FnOnce(u32) -> M,
        deadline: Deadline,
        cancel: &Cancel,
    ) -> Result<Message, CallError> {
        let (answered, slot) = (Notify::default(), Arc::new(Mutex::new(None)));
        let seen = answered.seen();
        let done: Done = Box::new({
            let (answered, slot) = (answered.clone(), slot.clone());
            move |reply| {
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(reply);
                answered.notify();
            }
        });
        let tag = self.reserve(done, deadline, cancel)?;
        self.send(tag, build(tag).into())?;
        let is_answered = || slot.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if let Some(conn) = self.conn() {
            conn.lead(is_answered);
        }
        let waited = answered.wait(seen, Deadline::never()).block(deadline, cancel);
        if waited.is_err() {
            self.0.remove(tag);
        }
        // A reply that came in the last moment still counts.
        let reply = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (reply, waited) {
            (Some(reply), _) => reply,
            (None, Err(error)) => Err(CallError { error, sent: true }),
            (None, Ok(())) => Err(CallError { error: lost_waiter(), sent: true }),
        }
    }

    /// Sends a request and returns; `done` gets the reply, or the error when the deadline passes or
    /// the connection ends, on the I/O, the timer or another caller's thread: it must not block. It is not called when
    /// this errs: `unavailable`, `queue_saturated` when too many are in flight. The tag is for
    /// [`Mux::abandon`].
    pub fn start<M: Into<Outgoing>>(
        &self,
        build: impl FnOnce(u32) -> M,
        deadline: Deadline,
        done: impl FnOnce(Result<Message, CallError>) + Send + 'static,
    ) -> Result<u32, CallError> {
        let tag = match self.0.lock().insert(Box::new(done), self.0.inflight_max) {
            Ok(tag) => tag,
            Err((error, _)) => return Err(CallError { error, sent: false }),
        };
        let inner = Arc::downgrade(&self.0);
        let expire = move || {
            if let Some(waiting) = inner.upgrade().and_then(|inner| inner.remove(tag)) {
                let error = Error::new(Code::Timeout, "no reply in time");
                (waiting.done)(Err(CallError { error, sent: true }));
            }
        };
        let key = self.0.timer.at(deadline.instant(), Box::new(expire));
        if let Some(waiting) = self.0.lock().waiting.get_mut(&tag) {
            waiting.timer = Some(key);
        }
        self.send(tag, build(tag).into())?;
        Ok(tag)
    }

    /// Sends a request that is not answered. Errors: `unavailable`.
    pub fn tell(&self, message: impl Into<Outgoing>) -> Result<()> {
        self.conn().ok_or_else(no_connection)?.send(message)
    }

    /// Forgets a request; its reply will be dropped, its callback is not called. False when it was
    /// answered before.
    pub fn abandon(&self, tag: u32) -> bool {
        self.0.remove(tag).is_some()
    }

    /// Gives a reply to whoever waits for it; false when nobody does.
    pub fn deliver(&self, tag: u32, reply: Message) -> bool {
        let Some(waiting) = self.0.remove(tag) else { return false };
        (waiting.done)(Ok(reply));
        true
    }

    /// The connection has ended: fails all that wait, and all calls to come.
    pub fn lose(&self, reason: &Closed) {
        self.0.lose(&reason.error());
    }

    /// A tag for `done`; waits while too many requests are in flight.
    fn reserve(
        &self,
        mut done: Done,
        deadline: Deadline,
        cancel: &Cancel,
    ) -> Result<u32, CallError> {
        loop {
            let seen = self.0.room.seen();
            let refused = self.0.lock().insert(done, self.0.inflight_max);
            let error = match refused {
                Ok(tag) => return Ok(tag),
                Err((error, back)) if error.code == Code::QueueSaturated => {
                    done = back;
                    match self.0.room.wait(seen, Deadline::never()).block(deadline, cancel) {
                        Ok(()) => continue,
                        Err(e) => e,
                    }
                }
                Err((error, _)) => error,
            };
            return Err(CallError { error, sent: false });
        }
    }

    fn send(&self, tag: u32, message: Outgoing) -> Result<(), CallError> {
        let queued = match self.conn() {
            Some(conn) => conn.send_at(message),
            None => Err(no_connection()),
        };
        match queued {
            Ok(at) => {
                if let Some(waiting) = self.0.lock().waiting.get_mut(&tag) {
                    waiting.at = Some(at);
                }
                Ok(())
            }
            // Gone already: whoever removed it has told the waiter.
            Err(_) if self.0.remove(tag).is_none() => Ok(()),
            Err(error) => Err(CallError { error, sent: false }),
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, error: &Error) {
        let written = self.conn.get().map_or(0, Conn::written);
        let waiting = {
            let mut table = self.lock();
            table.lost.get_or_insert_with(|| error.clone());
            std::mem::take(&mut table.waiting)
        };
        self.room.notify();
        for waiting in waiting.into_values() {
            if let Some(key) = waiting.timer {
                self.timer.cancel(key);
            }
            let sent = waiting.at.is_none_or(|at| at < written);
            (waiting.done)(Err(CallError { error: error.clone(), sent }));
        }
    }

    /// Takes a waiter out, and its deadline off the timer.
    fn remove(&self, tag: u32) -> Option<Waiting> {
        let mut table = self.lock();
        let waiting = table.waiting.remove(&tag)?;
        let was_full = table.waiting.len() + 1 == self.inflight_max;
        drop(table);
        if was_full {
            self.room.notify();
        }
        if let Some(key) = waiting.timer {
            self.timer.cancel(key);
        }
        Some(waiting)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.get() {
            conn.close(None, "");
        }
        self.lose(&Closed::Local.error());
    }
}

impl Table {
    /// The next free tag, or `done` back with the reason.
    fn insert(&mut self, done: Done, max: usize) -> Result<u32, (Error, Done)> {
        if let Some(error) = &self.lost {
            return Err((error.clone(), done));
        }
        if self.waiting.len() >= max {
            let text = format!("{max} requests are in flight already");
            return Err((Error::new(Code::QueueSaturated, text), done));
        }
        let mut tag = self.next;
        while tag == 0 || self.waiting.contains_key(&tag) {
            tag = tag.wrapping_add(1);
        }
        self.next = tag.wrapping_add(1);
        self.waiting.insert(tag, Waiting { done, timer: None, at: None });
        Ok(tag)
    }
}

fn no_connection() -> Error {
    Error::new(Code::Unavailable, "there is no connection yet")
}

fn lost_waiter() -> Error {
    Error::new(Code::Unavailable, "the request was dropped")
}

/// The handler of a dialled connection.
struct Client {
    mux: Weak<Inner>,
    inbound: Box<dyn Inbound>,
}

impl Handler for Client {
    fn message(&mut self, _conn: &Conn, message: Message) {
        match self.inbound.tag(&message) {
            Some(tag) => {
                if let Some(inner) = self.mux.upgrade() {
                    Mux(inner).deliver(tag, message);
                }
            }
            None => self.inbound.event(message),
        }
    }

    fn closed(&mut self, _conn: &Conn, reason: &Closed) {
        if let Some(inner) = self.mux.upgrade() {
            inner.lose(&reason.error());
        }
        self.inbound.lost(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_wrap_past_zero_and_past_those_in_flight() {
        let mut table = Table { next: u32::MAX, waiting: HashMap::new(), lost: None };
        let insert = |table: &mut Table| table.insert(Box::new(drop), 4).map_err(|(e, _)| e);
        assert_eq!(insert(&mut table).unwrap(), u32::MAX);
        assert_eq!(insert(&mut table).unwrap(), 1);
        table.next = u32::MAX;
        assert_eq!(insert(&mut table).unwrap(), 2);
        table.waiting.remove(&1);
        table.next = 1;
        assert_eq!(insert(&mut table).unwrap(), 1);
        assert_eq!(insert(&mut table).unwrap(), 3);
        assert_eq!(insert(&mut table).unwrap_err().code, Code::QueueSaturated);
        table.waiting.clear();
        table.lost = Some(Error::new(Code::Unavailable, "gone"));
        assert_eq!(insert(&mut table).unwrap_err().code, Code::Unavailable);
    }
}
