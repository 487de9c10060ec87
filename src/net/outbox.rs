//! What the handles of a connection and its I/O thread share: the bounded outbox, and the state of both ends.
//!
//! One mutex per connection guards all of it, and is not held while the
//! socket is written. Whoever queues a frame while nobody writes, writes it at once on its own thread,
//! which saves the round through the I/O thread; that gets what the socket does not take, and the
//! replies of a connection with several requests in flight, which it writes together.

use super::limits::Limits;
use super::message::{Frame, Role};
use super::reactor::{Command, Port};
use super::seat::Seat;
use super::strangers::Stranger;
use super::transport::Transport;
use crate::base::{Code, Error, Result};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Instant;

/// Bytes that one thread writes on one connection before it leaves the rest to the I/O thread.
const WRITE_TURN: usize = 4 << 20;

/// Bytes of short frames gathered in one buffer.
const TAIL_MAX: usize = 64 << 10;

/// Bytes of that buffer which a connection keeps when everything is sent.
const TAIL_KEPT: usize = 4 << 10;

/// What the handles and the I/O thread share of a connection.
pub(super) struct Shared {
    pub id: u64,
    pub peer: SocketAddr,
    pub role: Role,
    pub port: Arc<Port>,
    /// `limits.max_message`, for the reader.
    pub max_message: AtomicUsize,
    seat: OnceLock<Weak<Seat>>,
    state: Mutex<State>,
}

/// The code and reason of a close frame.
type Farewell = (u16, &'static str);

struct State {
    /// `None` once the connection is gone.
    transport: Option<Arc<Transport>>,
    /// What the writer is at; with the writer while there is one.
    sending: VecDeque<Bytes>,
    /// What comes behind that.
    queue: VecDeque<Bytes>,
    /// And behind that: short frames are gathered in one buffer.
    tail: BytesMut,
    /// Bytes in the three.
    bytes: usize,
    /// Bytes ever queued, and ever written.
    queued: u64,
    written: u64,
    /// A thread is writing; it will see what is queued meanwhile.
    writing: bool,
    /// The socket takes no more since then; the I/O thread waits for it.
    blocked: Option<Instant>,
    failed: Option<Error>,
    /// The last frame is queued.
    closing: bool,
    /// Takes no more requests, and is to be closed with this when none is in flight.
    draining: Option<Farewell>,
    inflight: usize,
    /// Of these, the ones that a reply is due to.
    unanswered: usize,
    /// The reader has stopped and wants to hear when it may go on.
    paused: bool,
    /// The I/O thread is at work on this connection and will look at all of this when done.
    busy: bool,
    /// The I/O thread has been told to look.
    called: bool,
    limits: Limits,
    /// Until it is known who it is.
    stranger: Option<Stranger>,
}

/// Who writes a frame, unless somebody writes on the connection already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    Caller,
    IoThread,
}

/// Whether the reader may take another message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Open,
    Paused,
    Closing,
}

/// What the I/O thread needs to know after its turn.
pub(super) struct View {
    pub failed: Option<Error>,
    pub closing: bool,
    pub draining: Option<Farewell>,
    pub paused: bool,
    /// Since when the socket takes no more.
    pub blocked: Option<Instant>,
    /// Nothing is queued or being written.
    pub flushed: bool,
    pub limits: Limits,
}

impl State {
    fn is_open(&self) -> bool {
        self.transport.is_some() && !self.closing && self.failed.is_none()
    }

    fn may_read(&self) -> bool {
        self.draining.is_none()
            && self.inflight < self.limits.max_inflight
            && self.bytes <= self.limits.outbox_high
    }

    fn flushed(&self) -> bool {
        self.bytes == 0 && self.blocked.is_none() && !self.writing
    }

    /// The place of the frame's first byte in the outgoing stream.
    fn push(&mut self, frame: Frame) -> u64 {
        let at = self.queued;
        self.bytes += frame.len();
        self.queued += frame.len() as u64;
        if let Some(payload) = frame.append(&mut self.tail) {
            self.freeze_tail();
            self.queue.push_back(payload);
        } else if self.tail.len() >= TAIL_MAX {
            self.freeze_tail();
        }
        at
    }

    fn freeze_tail(&mut self) {
        if !self.tail.is_empty() {
            self.queue.push_back(self.tail.split().freeze());
        }
    }

    /// An idle connection keeps no large buffer.
    fn trim(&mut self) {
        if self.tail.capacity() > TAIL_KEPT {
            self.tail = BytesMut::new();
        }
    }
}

impl Shared {
    pub fn new(
        transport: &Arc<Transport>,
        peer: SocketAddr,
        role: Role,
        limits: Limits,
        port: Arc<Port>,
    ) -> Arc<Shared> {
        Arc::new(Shared {
            id: super::next_id(),
            peer,
            role,
            port,
            max_message: AtomicUsize::new(limits.max_message),
            seat: OnceLock::new(),
            state: Mutex::new(State {
                transport: Some(transport.clone()),
                sending: VecDeque::new(),
                queue: VecDeque::new(),
                tail: BytesMut::new(),
                bytes: 0,
                queued: 0,
                written: 0,
                writing: false,
                blocked: None,
                failed: None,
                closing: false,
                draining: None,
                inflight: 0,
                unanswered: 0,
                paused: false,
                busy: false,
                called: false,
                limits,
                stranger: None,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request is in flight; `answered` if a reply is due to it.
    pub fn begin(&self, answered: bool) {
        let mut s = self.lock();
        s.inflight += 1;
        s.unanswered += usize::from(answered);
    }

    pub fn end(&self, answered: bool) {
        let mut s = self.lock();
        s.inflight -= 1;
        s.unanswered -= usize::from(answered);
        self.attend_if_due(&mut s);
    }

    pub fn set_limits(&self, limits: Limits) {
        let mut s = self.lock();
        s.limits = limits;
        let known = s.stranger.take_if(|_| !limits.stranger);
        self.max_message.store(limits.max_message, Ordering::Relaxed);
        self.attend(&mut s);
        drop(s);
        drop(known);
    }

    pub fn limits(&self) -> Limits {
        self.lock().limits
    }

    pub fn is_open(&self) -> bool {
        self.lock().is_open()
    }

    pub fn queued(&self) -> usize {
        self.lock().bytes
    }

    pub fn written(&self) -> u64 {
        self.lock().written
    }

    /// Queues a frame unless more than `max` bytes wait, and has it written if nobody is at it.
    pub fn queue(&self, frame: Frame, max: usize, writer: Writer) -> Result<u64> {
        let mut s = self.lock();
        if !s.is_open() {
            return Err(Error::new(Code::Unavailable, "the connection is closed"));
        }
        if s.bytes > max {
            let text = format!("{} bytes wait for the peer already", s.bytes);
            return Err(Error::new(Code::QueueSaturated, text));
        }
        let at = s.push(frame);
        self.port.sent.add(1);
        if s.unanswered > 1 || writer == Writer::IoThread {
            // Where more replies are about to come, one write of the I/O thread carries them all.
            self.attend(&mut s);
        } else if !s.busy && !s.writing && s.blocked.is_none() {
            drop(self.write(s));
        }
        Ok(at)
    }

    /// Queues a control frame or an HTTP answer; for the I/O thread, which writes after its turn.
    pub fn queue_raw(&self, frame: Frame) {
        self.lock().push(frame);
    }

    pub fn close(&self, code: Option<u16>, reason: &str) {
        let mut s = self.lock();
        if !s.is_open() {
            return;
        }
        s.push(Frame::close(code, reason, self.role));
        s.closing = true;
        self.attend(&mut s);
        if !s.busy && !s.writing && s.blocked.is_none() {
            drop(self.write(s));
        }
    }

    /// The I/O thread: nothing more will be queued; what is queued still goes out.
    pub fn seal(&self) {
        self.lock().closing = true;
    }

    /// Counts it among those that nobody has let in.
    pub fn met(&self, stranger: Stranger) {
        self.lock().stranger = Some(stranger);
    }

    /// Where the connection is read.
    pub fn sit(&self, seat: &Arc<Seat>) {
        let _ = self.seat.set(Arc::downgrade(seat));
    }

    pub fn seat(&self) -> Option<Arc<Seat>> {
        self.seat.get().and_then(Weak::upgrade)
    }

    /// To be closed once no request is in flight.
    pub fn drain(&self, code: u16, reason: &'static str) {
        self.lock().draining.get_or_insert((code, reason));
    }

    /// The I/O thread begins a turn: until [`Shared::settle`] frames are only queued.
    pub fn hold(&self) {
        self.lock().busy = true;
    }

    pub fn gate(&self) -> Gate {
        let s = self.lock();
        if !s.is_open() {
            Gate::Closing
        } else if s.may_read() {
            Gate::Open
        } else {
            Gate::Paused
        }
    }

    /// The I/O thread ends its turn: writes what is queued, and asks to hear of changes.
    pub fn settle(&self, writable: bool) -> View {
        let mut s = self.lock();
        if !s.writing && (s.bytes > 0 || s.blocked.is_some()) && (s.blocked.is_none() || writable) {
            s = self.write(s);
        }
        s.busy = false;
        s.called = false;
        s.paused = !s.may_read();
        View {
            failed: s.failed.clone(),
            closing: s.closing,
            draining: s.draining.filter(|_| s.inflight == 0),
            paused: s.paused,
            blocked: s.blocked,
            flushed: s.flushed(),
            limits: s.limits,
        }
    }

    /// The connection is gone: lets go of the socket and of everything queued.
    pub fn clear(&self) {
        let mut s = self.lock();
        s.transport = None;
        s.stranger = None;
        (s.sending, s.queue, s.tail) = Default::default();
        s.bytes = 0;
    }

    /// Writes until nothing is queued or the socket takes no more. The lock is free meanwhile.
    fn write<'a>(&'a self, mut s: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let Some(transport) = s.transport.clone() else { return s };
        s.writing = true;
        let mut batch = std::mem::take(&mut s.sending);
        let mut left = WRITE_TURN;
        loop {
            s.freeze_tail();
            batch.append(&mut s.queue);
            drop(s);
            let (n, outcome) = transport.write(&mut batch, left);
            left = left.saturating_sub(n);
            self.port.bytes_out.add(n as u64);
            s = self.lock();
            s.written += n as u64;
            // A connection that was cleared meanwhile counts no bytes any more.
            s.bytes = s.bytes.saturating_sub(n);
            match outcome {
                Ok(()) if s.bytes == 0 => {
                    s.blocked = None;
                    s.trim();
                }
                Ok(()) if left > 0 => continue,
                Ok(()) => s.blocked = Some(Instant::now()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if n > 0 || s.blocked.is_none() {
                        s.blocked = Some(Instant::now());
                    }
                }
                Err(e) => s.failed = Some(lost(&e)),
            }
            break;
        }
        s.writing = false;
        if s.transport.is_some() {
            s.sending = batch;
        }
        if s.blocked.is_some() || s.failed.is_some() {
            self.attend(&mut s);
        }
        self.attend_if_due(&mut s);
        s
    }

    fn attend_if_due(&self, s: &mut State) {
        let resume = s.paused && s.may_read();
        let finish = s.closing && s.flushed();
        if resume || finish || (s.draining.is_some() && s.inflight == 0) {
            self.attend(s);
        }
    }

    /// Has the I/O thread look at the connection.
    pub fn call(&self) {
        self.attend(&mut self.lock());
    }

    /// Has the I/O thread look at the connection, unless it is about to anyway.
    fn attend(&self, s: &mut State) {
        if !s.busy && !s.called && s.transport.is_some() {
            s.called = true;
            self.port.post(Command::Attend(self.id));
        }
    }
}

/// What a socket error means for whoever uses the connection.
pub(super) fn lost(e: &std::io::Error) -> Error {
    Error::new(Code::Unavailable, format!("the connection is lost: {e}"))
}
