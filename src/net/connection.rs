//! One connection as its I/O thread sees it: HTTP head, then WebSocket, then the ending. It decides
//! and reads; it knows nothing of epoll. Whoever has the [`Seat`](super::seat::Seat) touches it, nobody else.

use super::conn::Conn;
use super::head::{self, Parsed, Response};
use super::limits::Limits;
use super::message::Frame;
use super::outbox::{Gate, Shared, View, lost};
use super::session::{Outcome, Session, Source, discard, read_head};
use super::transport::Transport;
use super::{Accept, Answer, Closed, Handler, Service};
use crate::base::{Code, Error};
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time for a request head to arrive.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Time for the peer to answer our close frame, once it is on its way.
const CLOSE_TIME: Duration = Duration::from_secs(2);
/// Time for the peer to see the end of the stream before the socket is dropped: dropped at once, it
/// would be reset, and our last frame lost.
const LINGER: Duration = Duration::from_secs(2);

pub(super) struct Connection {
    pub shared: Arc<Shared>,
    pub transport: Arc<Transport>,
    stage: Stage,
    /// What has come and was not read, as the turn was over.
    rest: Vec<u8>,
    /// Last time that bytes came.
    heard: Instant,
    /// Reading has paused for want of room.
    paused: bool,
    /// The reader stopped before it had seen everything that is there.
    more: bool,
}

enum Stage {
    Head {
        bytes: Vec<u8>,
        service: Arc<dyn Service>,
        until: Instant,
    },
    Open(Box<Session>),
    /// What is queued goes out, then the stream is shut; what comes is ignored.
    Ending {
        until: Option<Instant>,
        eof: bool,
    },
}

/// What epoll said.
#[derive(Clone, Copy, Default)]
pub(super) struct Ready {
    pub readable: bool,
    pub writable: bool,
    /// The peer is gone, or, asked for, will send no more.
    pub hangup: bool,
}

/// What the connection wants after a turn.
pub(super) enum Fate {
    Keep {
        read: bool,
        write: bool,
        /// To hear when the peer has gone though nothing is read.
        hangup: bool,
        /// When to look at it though nothing happens.
        due: Option<Instant>,
        /// Another turn at once.
        again: bool,
    },
    Gone,
}

impl Connection {
    /// A freshly accepted socket.
    pub fn accepted(
        shared: Arc<Shared>,
        transport: Arc<Transport>,
        service: Arc<dyn Service>,
        now: Instant,
    ) -> Connection {
        let stage = Stage::Head { bytes: Vec::new(), service, until: now + HEAD_TIME };
        Connection::new(shared, transport, stage, now)
    }

    /// A WebSocket after its handshake; `rest` is what came behind that.
    pub fn upgraded(
        shared: Arc<Shared>,
        transport: Arc<Transport>,
        rest: Vec<u8>,
        handler: Box<dyn Handler>,
        now: Instant,
    ) -> Connection {
        let stage = Stage::Open(Box::new(Session::new(&shared, rest, handler)));
        Connection::new(shared, transport, stage, now)
    }

    fn new(
        shared: Arc<Shared>,
        transport: Arc<Transport>,
        stage: Stage,
        now: Instant,
    ) -> Connection {
        let rest = Vec::new();
        Connection { shared, transport, stage, rest, heard: now, paused: false, more: true }
    }

    /// The first turn, when the connection has come to its thread.
    pub fn begin(&mut self, now: Instant) -> Fate {
        self.shared.hold();
        self.tell(|handler, conn| handler.open(conn));
        self.run(Ready { readable: true, ..Ready::default() }, now)
    }

    /// Reads what has come, lets the handler answer, writes what is queued, keeps the time.
    pub fn turn(&mut self, ready: Ready, now: Instant) -> Fate {
        self.shared.hold();
        self.run(ready, now)
    }

    fn run(&mut self, ready: Ready, now: Instant) -> Fate {
        if self.reads() {
            if ready.readable || ready.hangup || self.more {
                self.read(now);
            }
        } else if ready.hangup {
            self.leave(Closed::Lost(lost(&ErrorKind::ConnectionReset.into())));
            return Fate::Gone;
        }
        if let Err(late) = self.keep_time(now) {
            self.leave(Closed::Lost(late));
            return Fate::Gone;
        }
        self.settle(ready.writable, now)
    }

    /// The connection leaves its thread: nobody will hear of it again.
    pub fn finish(&mut self, reason: Closed) {
        self.leave(reason);
        self.shared.clear();
    }

    /// Whether what the peer sends is taken now.
    fn reads(&self) -> bool {
        match &self.stage {
            Stage::Head { .. } => true,
            Stage::Open(session) => !self.paused || session.handler.is_none(),
            Stage::Ending { eof, .. } => !eof,
        }
    }

    fn settle(&mut self, writable: bool, now: Instant) -> Fate {
        let mut view = self.shared.settle(writable);
        if view.draining.is_some() && matches!(self.stage, Stage::Head { .. }) {
            return Fate::Gone;
        }
        if let Some((code, reason)) = view.draining.filter(|_| !view.closing) {
            self.shared.close(Some(code), reason);
            view = self.shared.settle(false);
        }
        if let Some(error) = view.failed {
            self.leave(Closed::Lost(error));
            return Fate::Gone;
        }
        if self.paused && !view.paused {
            // The peer's silence was ours.
            self.heard = now;
        }
        self.paused = view.paused;
        if view.closing {
            self.leave(Closed::Local);
            if view.flushed && self.wind_up(now) {
                return Fate::Gone;
            }
        }
        if view.blocked.is_some_and(|since| now >= since + view.limits.write_stall) {
            self.leave(Closed::Lost(Error::new(
                Code::Timeout,
                format!("the peer has read nothing for {:?}", view.limits.write_stall),
            )));
            return Fate::Gone;
        }
        let read = self.reads();
        Fate::Keep {
            read,
            write: view.blocked.is_some(),
            hangup: !read && matches!(self.stage, Stage::Open(_)),
            due: self.due(&view),
            again: self.more && read,
        }
    }

    /// Moves a closing connection on, its outbox being empty; true when it is over.
    fn wind_up(&mut self, now: Instant) -> bool {
        match &mut self.stage {
            Stage::Head { .. } => {}
            Stage::Open(session) => {
                session.close_by.get_or_insert(now + CLOSE_TIME);
            }
            Stage::Ending { eof: true, .. } => return true,
            Stage::Ending { until, .. } => {
                if until.is_none() {
                    self.transport.finish();
                    *until = Some(now + LINGER);
                }
            }
        }
        false
    }

    /// Pings a silent peer. Errors when a time limit has passed.
    fn keep_time(&mut self, now: Instant) -> Result<(), Error> {
        let late = |what: &str| Err(Error::new(Code::Timeout, what.to_owned()));
        match &mut self.stage {
            Stage::Head { bytes, until, .. } if now >= *until => {
                if bytes.is_empty() {
                    return late("no request came");
                }
                self.answer(&Response::text(408, "the request head did not arrive in time"), true);
            }
            Stage::Ending { until: Some(until), .. } if now >= *until => {
                return late("the peer did not end the connection");
            }
            Stage::Open(session) if session.close_by.is_some_and(|until| now >= until) => {
                return late("the peer did not answer the close frame");
            }
            Stage::Open(session) if !self.paused && session.handler.is_some() => {
                let limits = Conn(self.shared.clone()).limits();
                if now >= self.heard + limits.idle {
                    return late(&format!("the peer was silent for {:?}", limits.idle));
                }
                if !session.pinged && now >= self.heard + limits.ping {
                    session.pinged = true;
                    self.shared.queue_raw(Frame::ping(self.shared.role));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The next moment at which [`Connection::keep_time`] or the stall check has something to do.
    fn due(&self, view: &View) -> Option<Instant> {
        let Limits { idle, ping, write_stall, .. } = view.limits;
        let stage = match &self.stage {
            Stage::Head { until, .. } => Some(*until),
            Stage::Ending { until, .. } => *until,
            Stage::Open(s) if s.close_by.is_some() => s.close_by,
            Stage::Open(_) if self.paused => None,
            Stage::Open(s) if s.pinged => Some(self.heard + idle),
            Stage::Open(_) => Some(self.heard + ping.min(idle)),
        };
        let stall = view.blocked.map(|since| since + write_stall);
        stage.into_iter().chain(stall).min()
    }

    fn read(&mut self, now: Instant) {
        let mut source = Source::new(&self.transport, &mut self.rest);
        let outcome = match &mut self.stage {
            Stage::Head { bytes, .. } => read_head(bytes, &mut source),
            Stage::Open(session) => session.read(&self.shared, &mut source),
            Stage::Ending { .. } => discard(&mut source),
        };
        let (got, rest) = source.end();
        self.rest = rest;
        if got > 0 {
            self.heard = now;
            self.shared.port.bytes_in.add(got as u64);
            if let Stage::Open(session) = &mut self.stage {
                session.pinged = false;
            }
        }
        self.more = matches!(outcome, Outcome::More);
        match outcome {
            Outcome::More | Outcome::Dry => {}
            Outcome::Request(parsed) => self.request(parsed, now),
            Outcome::End { reply, reason } => {
                if let Stage::Ending { eof, .. } = &mut self.stage {
                    *eof = true;
                    return;
                }
                let sealed = self.shared.gate() == Gate::Closing;
                if let (Some((code, words)), false) = (reply, sealed) {
                    self.shared.queue_raw(Frame::close(code, words, self.shared.role));
                }
                self.leave(reason);
                self.end();
            }
        }
    }

    /// From here on only what is queued goes out.
    fn end(&mut self) {
        self.shared.seal();
        self.stage = Stage::Ending { until: None, eof: false };
        self.more = true;
    }

    fn request(&mut self, parsed: Parsed, now: Instant) {
        let Stage::Head { bytes, service, .. } = &mut self.stage else { return };
        let (head, used) = match parsed {
            Parsed::Incomplete => return,
            Parsed::Refused(response) => return self.answer(&response, true),
            Parsed::Head(head, used) => (head, used),
        };
        let rest = bytes.split_off(used);
        let service = service.clone();
        let peer = self.shared.peer;
        let answer = catch_unwind(AssertUnwindSafe(|| service.request(&head, peer)));
        let answer = answer.unwrap_or_else(|_| {
            log::error!("the service panicked at {} {}", head.method, head.path);
            Answer::Http(Response::text(500, "internal error"))
        });
        let with_body = head.method != "HEAD";
        match answer {
            Answer::Http(response) => self.answer(&response, with_body),
            Answer::Upgrade(Accept { handler, limits }) => match head::upgrade(&head) {
                Err(response) => self.answer(&response, with_body),
                Ok(response) => {
                    self.shared.queue_raw(Frame::raw(response));
                    Conn(self.shared.clone()).set_limits(limits);
                    self.stage = Stage::Open(Box::new(Session::new(&self.shared, rest, handler)));
                    self.tell(|handler, conn| handler.open(conn));
                    self.more = true;
                    self.heard = now;
                }
            },
        }
    }

    fn answer(&mut self, response: &Response, with_body: bool) {
        self.shared.queue_raw(Frame::raw(response.encode(with_body)));
        self.end();
    }

    /// Tells the handler, once, that the connection is over.
    fn leave(&mut self, reason: Closed) {
        self.shared.seal();
        if let Stage::Open(session) = &mut self.stage
            && let Some(mut handler) = session.handler.take()
        {
            let conn = Conn(self.shared.clone());
            if catch_unwind(AssertUnwindSafe(move || handler.closed(&conn, &reason))).is_err() {
                log::error!("a connection's handler panicked at its end");
            }
        }
    }

    fn tell(&mut self, f: impl FnOnce(&mut dyn Handler, &Conn)) {
        if let Stage::Open(session) = &mut self.stage {
            session.call(&Conn(self.shared.clone()), f);
        }
    }
}

#[cfg(test)]
mod tests;
