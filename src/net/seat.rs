//! A connection in its place at an I/O thread, and who reads it: that thread, or for a moment a caller
//! that waits for a reply. The reply then needs no second thread, which is most of what a short call costs.
//! Only one reads at a time, and whoever does calls the handler.

use super::Closed;
use super::connection::{Connection, Fate, Ready};
use super::outbox::Shared;
use crate::base::{Deadline, Polling};
use nix::poll::PollFlags;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Who leads does not hear of a cancellation, and does nothing else.
const LEAD: Duration = Duration::from_millis(4);

pub(super) struct Seat {
    state: Mutex<Seated>,
    polling: Polling,
}

struct Seated {
    connection: Connection,
    /// What the connection wants of epoll, and what that was asked for.
    wanted: EpollFlags,
    asked: EpollFlags,
    /// When the I/O thread will look at it though nothing happens.
    due: Option<Instant>,
    /// A caller reads.
    led: bool,
    /// It has left its thread; who still reads stops.
    gone: bool,
}

/// What the I/O thread has to do for a connection after a turn.
pub(super) enum Next {
    Keep {
        /// A new moment to look at it.
        due: Option<Instant>,
        /// Another turn at once.
        again: bool,
    },
    Gone,
}

impl Seat {
    /// The connection's first turn, at its I/O thread; `None` where epoll does not take it.
    pub fn take(mut connection: Connection, now: Instant) -> Option<(Arc<Seat>, Next)> {
        let (id, port) = (connection.shared.id, connection.shared.port.clone());
        let asked = EpollFlags::EPOLLIN;
        if let Err(e) = port.epoll.add(&*connection.transport, EpollEvent::new(asked, id)) {
            log::warn!("a connection is dropped, epoll refused it: {}", e.desc());
            connection.finish(Closed::Lost(e.into()));
            return None;
        }
        let fate = connection.begin(now);
        let shared = connection.shared.clone();
        let seated =
            Seated { connection, wanted: asked, asked, due: None, led: false, gone: false };
        let seat = Arc::new(Seat { state: Mutex::new(seated), polling: Polling::default() });
        shared.sit(&seat);
        let next = seat.lock().settle(fate);
        Some((seat, next))
    }

    pub fn turn(&self, ready: Ready, now: Instant) -> Next {
        let mut s = self.lock();
        let fate = s.connection.turn(ready, now);
        s.settle(fate)
    }

    /// As [`Seat::turn`], because its moment has come; `None` if that was put off.
    pub fn wake(&self, when: Instant, now: Instant) -> Option<Next> {
        let mut s = self.lock();
        if s.due != Some(when) {
            return None;
        }
        s.due = None;
        let fate = s.connection.turn(Ready::default(), now);
        Some(s.settle(fate))
    }

    pub fn drain(&self) {
        self.lock().connection.shared.drain(1001, "going away");
    }

    /// The connection leaves its thread.
    pub fn leave(&self, reason: Closed) {
        let mut s = self.lock();
        s.gone = true;
        let _ = s.connection.shared.port.epoll.delete(&*s.connection.transport);
        s.connection.finish(reason);
    }

    /// Reads in the I/O thread's stead until `done`, [`LEAD`] at most, if nobody else does; and unless it
    /// `sleeps` only while looking again and again pays.
    pub fn lead(&self, sleeps: bool, done: impl Fn() -> bool) {
        let until = Instant::now() + LEAD;
        let Ok(mut s) = self.state.try_lock() else { return };
        if s.gone || std::mem::replace(&mut s.led, true) {
            return;
        }
        s.connection.shared.port.led.fetch_add(1, Ordering::Relaxed);
        let _led = Led(self);
        s.ask();
        let transport = s.connection.transport.clone();
        drop(s);
        while !done() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            if !self.polling.look(|| transport.is_readable()) {
                if !sleeps {
                    return;
                }
                let _ = transport.wait(PollFlags::POLLIN, Deadline::after(left));
            }
            let mut s = self.lock();
            if s.gone {
                return;
            }
            let ready = Ready { readable: true, ..Ready::default() };
            let fate = s.connection.turn(ready, Instant::now());
            if !matches!(s.apply(fate), Next::Keep { due: None, again: false }) {
                s.connection.shared.call();
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seated> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, a caller reads.
struct Led<'a>(&'a Seat);

impl Drop for Led<'_> {
    fn drop(&mut self) {
        let mut s = self.0.lock();
        s.led = false;
        s.connection.shared.port.led.fetch_sub(1, Ordering::Relaxed);
        s.ask();
    }
}

impl Seated {
    fn apply(&mut self, fate: Fate) -> Next {
        let Fate::Keep { read, write, hangup, due, again } = fate else { return Next::Gone };
        self.wanted = EpollFlags::empty();
        self.wanted.set(EpollFlags::EPOLLIN, read);
        self.wanted.set(EpollFlags::EPOLLOUT, write);
        self.wanted.set(EpollFlags::EPOLLRDHUP, hangup);
        self.ask();
        // Later moments need no entry: the earlier one finds nothing to do and comes back for them.
        Next::Keep { due: due.filter(|due| self.due.is_none_or(|asked| *due < asked)), again }
    }

    /// As [`Seated::apply`], at the I/O thread, which keeps the time.
    fn settle(&mut self, fate: Fate) -> Next {
        let next = self.apply(fate);
        if let Next::Keep { due: Some(due), .. } = next {
            self.due = Some(due);
        }
        next
    }

    /// Asks epoll for what is wanted, less what a caller reads.
    fn ask(&mut self) {
        let mut interest = self.wanted;
        interest.set(EpollFlags::EPOLLIN, self.wanted.contains(EpollFlags::EPOLLIN) && !self.led);
        if interest == self.asked || self.gone {
            return;
        }
        self.asked = interest;
        let Shared { id, port, .. } = &*self.connection.shared;
        let mut event = EpollEvent::new(interest, *id);
        if let Err(e) = port.epoll.modify(&*self.connection.transport, &mut event) {
            log::error!("epoll lost a connection: {}", e.desc());
        }
    }
}
