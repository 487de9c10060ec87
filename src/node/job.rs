//! One request under way: carried out on the pool in its file's turn, parked while there is nothing to
//! read, tried again while another holds the lock, and answered exactly once.

use super::calls::{self, Attempt};
use super::held::Held;
use super::session::{Ready, Session};
use crate::base::{Cancel, Code, Counted, Deadline, Error, Pool, Result, Wait};
use crate::net::InFlight;
use crate::vfs::Cx;
use crate::wire::fs::{Call, Framing, Op, Reply};
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
    held: Arc<Held>,
    asked: Asked,
    op: Op,
    framing: Framing,
    since: Instant,
    in_flight: Option<InFlight>,
    /// An answer is due.
    due: bool,
}

/// What names a request: its tag, our number for it, and the client's in its session.
pub(super) struct Asked {
    pub tag: Option<u32>,
    pub key: u64,
    pub rid: Option<u64>,
}

impl Answer {
    fn send(&mut self, outcome: &Result<Reply>) {
        self.due = false;
        // Those that stepped aside waited for somebody to write, or to unlock.
        let since = self.in_flight.is_some().then_some(self.since);
        self.session.server.requests.done(since, outcome.as_ref().err().map(|e| e.code));
        // Remembered before it is sent: whoever asks again finds it.
        let again = self.asked.rid.map(|rid| self.held.answered(rid, outcome));
        self.session.answer(self.asked.tag, self.op, self.framing, outcome);
        for (session, tag) in again.into_iter().flatten() {
            if let Some(session) = session.upgrade() {
                session.answer(tag, self.op, self.framing, outcome);
            }
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.session.ended(self.asked.key);
        if self.due {
            self.send(&Err(Error::new(Code::Eio, "internal error")));
        }
    }
}

/// One request under way.
pub(super) struct Job {
    call: Call,
    cx: Cx,
    ready: Arc<Ready>,
    answer: Answer,
    parked: Option<Counted>,
    /// Until when a lock is waited for, once it was found taken.
    lock_until: Option<Deadline>,
    lock_retry_ms: u64,
}

impl Job {
    pub fn new(
        session: &Arc<Session>,
        asked: Asked,
        call: Call,
        ready: Arc<Ready>,
        cancel: Cancel,
    ) -> Job {
        let cx = Cx::new(ready.held.who.clone(), Deadline::after_ms(CALL_TIMEOUT_MS));
        // Ours: a close without a tag is not answered.
        let silent = asked.tag.is_none() && ready.ext.is_some() && call.op() == Op::Close;
        let answer = Answer {
            session: session.clone(),
            held: ready.held.clone(),
            asked,
            op: call.op(),
            framing: ready.framing(),
            since: Instant::now(),
            in_flight: Some(match silent {
                true => session.conn.begin_silent(),
                false => session.conn.begin(),
            }),
            due: !silent,
        };
        Job {
            call,
            cx: Cx { cancel, ..cx },
            ready,
            answer,
            parked: None,
            lock_until: None,
            lock_retry_ms: LOCK_RETRY_MS.0,
        }
    }

    /// `lane`: the open file whose requests keep their order.
    pub fn submit(self, lane: Option<u64>) {
        let held = self.ready.held.clone();
        let _aside = (!self.answer.due).then(Pool::aside);
        if let Err((e, job)) = held.lanes.hand(lane, self, Job::run) {
            job.finish(Err(e));
        }
    }

    fn run(self) {
        if let Err(e) = self.cx.check() {
            return self.finish(Err(e));
        }
        let session = self.answer.session.clone();
        // A client that asks one thing after the other is heard by who answers it.
        let conn = session.conn.clone();
        Pool::then(move |found| conn.look(found));
        let run = || calls::run(&self.ready, &self.cx, &self.call);
        let attempt = session.caller.run(run);
        match attempt {
            Ok(Attempt::Done(reply)) => self.finish(Ok(reply)),
            Ok(Attempt::Wait(wait)) => self.park(wait),
            Ok(Attempt::Locked) => self.lock_later(),
            Err(e) => self.finish(Err(e)),
        }
    }

    fn finish(mut self, outcome: Result<Reply>) {
        if self.answer.due {
            self.answer.send(&outcome);
        }
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
