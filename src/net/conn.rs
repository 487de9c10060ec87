//! The handle on a connection that other threads hold. What it does, `outbox` does.

use super::limits::Limits;
use super::message::{Frame, Outgoing};
use super::outbox::{Shared, Writer};
use super::seat::Seat;
use crate::base::Result;
use std::net::SocketAddr;
use std::sync::Arc;

/// Handle on a connection. Clones share it; it does not keep the connection open.
#[derive(Clone)]
pub struct Conn(pub(super) Arc<Shared>);

impl Conn {
    /// Unique in the process.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    pub fn peer(&self) -> SocketAddr {
        self.0.peer
    }

    /// Queues a reply. Replies are bounded by the requests in flight, so this one is always
    /// accepted. Errors: `unavailable` once the connection is closing or closed.
    pub fn send(&self, message: impl Into<Outgoing>) -> Result<()> {
        self.send_at(message.into()).map(drop)
    }

    /// As [`Conn::send`], and leaves the writing to the I/O thread: for a thread with better to do.
    pub fn send_later(&self, message: impl Into<Outgoing>) -> Result<()> {
        let frame = Frame::data(message.into(), self.0.role);
        self.0.queue(frame, usize::MAX, Writer::IoThread).map(drop)
    }

    /// As [`Conn::send`]; the place in the outgoing stream at which the frame begins.
    pub(super) fn send_at(&self, message: Outgoing) -> Result<u64> {
        self.0.queue(Frame::data(message, self.0.role), usize::MAX, Writer::Caller)
    }

    /// Queues what was not asked for. Errors: `queue_saturated` while more than `push_max` bytes
    /// wait for the peer (drop the frame and resynchronise later), `unavailable`.
    pub fn push(&self, message: impl Into<Outgoing>) -> Result<()> {
        let push_max = self.0.limits().push_max;
        let frame = Frame::data(message.into(), self.0.role);
        self.0.queue(frame, push_max, Writer::Caller).map(drop)
    }

    /// Sends what is queued, then a close frame (an empty one without a code), then ends.
    pub fn close(&self, code: Option<u16>, reason: &str) {
        self.0.close(code, reason);
    }

    /// Takes no more requests, answers those in flight, and then closes.
    pub fn drain(&self, code: u16, reason: &'static str) {
        self.0.drain(code, reason);
        self.0.call();
    }

    /// Counts a request in flight until the guard is dropped. A request that is parked for long
    /// should give its guard back: at `max_inflight` not even a cancellation is read.
    pub fn begin(&self) -> InFlight {
        self.count(true)
    }

    /// As [`Conn::begin`], for a request that will not be answered.
    pub fn begin_silent(&self) -> InFlight {
        self.count(false)
    }

    fn count(&self, answered: bool) -> InFlight {
        self.0.begin(answered);
        InFlight { shared: self.0.clone(), answered }
    }

    /// Takes effect from the next frame on.
    pub fn set_limits(&self, limits: Limits) {
        self.0.set_limits(limits);
    }

    pub fn limits(&self) -> Limits {
        self.0.limits()
    }

    /// False from the moment that a close was asked for, came from the peer, or the socket failed.
    pub fn is_open(&self) -> bool {
        self.0.is_open()
    }

    /// Bytes queued for the peer.
    pub fn queued(&self) -> usize {
        self.0.queued()
    }

    /// Waits in place of the I/O thread until `done`, if nobody else does and for a few milliseconds at
    /// most: what comes is read, and the handler called, on this thread.
    pub(super) fn lead(&self, done: impl Fn() -> bool) {
        if let Some(seat) = self.seat() {
            seat.lead(true, done);
        }
    }

    /// As [`Conn::lead`], for one who need not wait: ends as soon as nothing comes at once.
    pub fn look(&self, done: impl Fn() -> bool) {
        if let Some(seat) = self.seat() {
            seat.lead(false, done);
        }
    }

    fn seat(&self) -> Option<Arc<Seat>> {
        self.0.seat()
    }

    /// Bytes of the outgoing stream that the socket has taken so far.
    pub(super) fn written(&self) -> u64 {
        self.0.written()
    }
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Conn({}, {})", self.0.id, self.0.peer)
    }
}

/// A request in flight; see [`Conn::begin`].
#[must_use]
pub struct InFlight {
    shared: Arc<Shared>,
    answered: bool,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.shared.end(self.answered);
    }
}
