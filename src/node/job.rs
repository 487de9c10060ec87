//! One request under way: carried out on the pool in its file's turn, parked while there is nothing to
//! read, tried again while another holds the lock, and answered exactly once.

use super::calls::{self, Attempt};
use super::session::{Ready, Session};
use crate::base::{Cancel, Code, Counted, Deadline, Error, Result, Wait};
use crate::net::InFlight;
use crate::vfs::Cx;
use crate::wire::fs::{Call, Failure, Op, Reply};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time for one request that does not wait for something to read.
pub(super) const CALL_TIMEOUT_MS: u64 = 40_000;
/// How often a lock that another holds is tried again, at first and at most.
const LOCK_RETRY_MS: (u64, u64) = (5, 200);
/// How long a waiting lock request waits; the client then asks again.
const LOCK_WAIT_MS: u64 = 10_000;

/// Answers one request, whatever becomes of it: dropped (a panic), it answers EIO.
struct Answer {
    session: Arc<Session>,
    tag: Option<u32>,
    key: u64,
    in_flight: Option<InFlight>,
    sent: bool,
}

impl Answer {
    fn send(mut self, op: Op, bin: bool, outcome: Result<Reply>) {
        self.sent = true;
        let frame = match outcome {
            Ok(reply) => reply.encode(op, self.tag, bin),
            Err(e) => Failure::new(self.tag, &e).encode(),
        };
        let _ = self.session.conn.send(frame.into());
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.session.ended(self.key);
        if !self.sent {
            let e = Error::new(Code::Eio, "internal error");
            self.session.fail(self.tag, &e, false);
        }
    }
}

/// One request under way.
pub(super) struct Job {
    call: Call,
    cx: Cx,
    ready: Arc<Ready>,
    bin: bool,
    answer: Answer,
    parked: Option<Counted>,
    /// Until when a lock is waited for, once it was found taken.
    lock_until: Option<Deadline>,
    lock_retry_ms: u64,
}

impl Job {
    /// `key` names the request in its session.
    pub fn new(
        session: &Arc<Session>,
        tag: Option<u32>,
        key: u64,
        call: Call,
        ready: Arc<Ready>,
        cancel: Cancel,
    ) -> Job {
        let cx = Cx::new(ready.who.clone(), Deadline::after_ms(CALL_TIMEOUT_MS));
        let in_flight = Some(session.conn.begin());
        Job {
            call,
            cx: Cx { cancel, ..cx },
            bin: ready.bin(),
            ready,
            answer: Answer { session: session.clone(), tag, key, in_flight, sent: false },
            parked: None,
            lock_until: None,
            lock_retry_ms: LOCK_RETRY_MS.0,
        }
    }

    /// `lane`: the open file whose requests keep their order.
    pub fn submit(self, lane: Option<u64>) {
        let session = self.answer.session.clone();
        if let Err((e, job)) = session.lanes.hand(lane, self, Job::run) {
            job.finish(Err(e));
        }
    }

    fn run(self) {
        if let Err(e) = self.cx.check() {
            return self.finish(Err(e));
        }
        let session = self.answer.session.clone();
        let run = || calls::run(&session, &self.ready, &self.cx, &self.call);
        let attempt = session.caller.run(run);
        match attempt {
            Ok(Attempt::Done(reply)) => self.finish(Ok(reply)),
            Ok(Attempt::Wait(wait)) => self.park(wait),
            Ok(Attempt::Locked) => self.lock_later(),
            Err(e) => self.finish(Err(e)),
        }
    }

    fn finish(self, outcome: Result<Reply>) {
        self.answer.send(self.call.op(), self.bin, outcome);
    }

    /// A file that makes its readers wait keeps its own time; only giving up ends it early.
    fn park(mut self, wait: Wait) {
        if let Err(e) = self.step_aside() {
            return self.finish(Err(e));
        }
        self.cx.deadline = Deadline::never();
        let timer = self.answer.session.server.timer.clone();
        let cancel = self.cx.cancel.clone();
        wait.park(&timer, Deadline::never(), &cancel, move || self.submit(None));
    }

    /// Gives its place among the requests in flight to others.
    fn step_aside(&mut self) -> Result<()> {
        if self.parked.is_none() {
            self.parked = Some(self.answer.session.parked.enter()?);
            self.answer.in_flight = None;
        }
        Ok(())
    }

    fn lock_later(mut self) {
        if let Err(e) = self.step_aside() {
            return self.finish(Err(e));
        }
        let until = *self.lock_until.get_or_insert_with(|| Deadline::after_ms(LOCK_WAIT_MS));
        if until.passed() || self.cx.cancel.is_cancelled() {
            return self.finish(Err(Error::new(Code::Again, "would block")));
        }
        self.cx.deadline = until.min(Deadline::after_ms(CALL_TIMEOUT_MS));
        let wait_ms = self.lock_retry_ms;
        self.lock_retry_ms = (wait_ms * 2).min(LOCK_RETRY_MS.1);
        let timer = self.answer.session.server.timer.clone();
        let when = Instant::now() + Duration::from_millis(wait_ms);
        timer.at(when, Box::new(move || self.submit(None)));
    }
}
