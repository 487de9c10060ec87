//! Delivering what nodes tell of their services (spec: control 8.6): to the connections that watch, and to
//! the log. Each watcher stands somewhere in the events that the control plane remembers, and takes them
//! from there as fast as it can: nothing is queued for it, and nobody waits for it.

use crate::base::{Cancel, Code, Deadline, Result, ResultExt, Total};
use crate::control::Plane;
use crate::control::events::{self, Events, Placed, Settings, Watch};
use crate::control::state::State;
use crate::net::{Conn, Message};
use crate::store::Journal;
use crate::store::journal::Tail;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

const LOG: &str = "node-service-events";
/// Events taken at a time.
const BATCH: usize = 64;
/// Between two attempts at a connection that takes nothing.
const RETRY_MS: u64 = 100;

/// The connections that watch, and the log.
pub struct Watches {
    events: Arc<Events>,
    log: Journal,
    /// At most one for each connection.
    watchers: Mutex<Vec<Arc<Watcher>>>,
    pub figures: Figures,
}

/// What is delivered, counted since the start (spec: control 11.2).
#[derive(Debug, Default)]
pub struct Figures {
    /// Most watchers at a time.
    pub peak: AtomicU64,
    pub replay_requests: Total,
    /// Frames that a watch began with, and those that were taken.
    pub replay_attempted: Total,
    pub replay_sent: Total,
    pub replay_bytes: Total,
    pub fanout_events: Total,
    /// Pushes to a watcher, and those that it took.
    pub fanout_attempted: Total,
    pub fanout_sent: Total,
    /// Events that were gone before a watcher took them.
    pub fanout_dropped: Total,
}

struct Watcher {
    conn: Conn,
    who: events::Watcher,
    /// Of the thread that delivers.
    stands: Mutex<Stands>,
}

/// How far a watcher has come.
struct Stands {
    at: u64,
    /// Events were gone before it took them, and it was not told so.
    missed: bool,
}

/// What became of an attempt to deliver.
enum Progress {
    Done,
    /// It takes no more for now.
    Full,
    Gone,
}

impl Watches {
    /// With the log in `dir`, whose end becomes the history.
    pub fn open(dir: &Path, settings: Settings, plane: &Plane) -> Result<Watches> {
        let log = Journal::open(dir, LOG, settings.rotation)?;
        let tail = Tail::read(&dir.join(format!("{LOG}.ndjson")), Events::LOG_TAIL);
        let tail = tail.unwrap_or_else(|e| {
            crate::base::log::error("the history of services is not known", &e);
            Tail::default()
        });
        let events = Arc::new(Events::load(settings, &tail, &plane.state()));
        let heard = events.clone();
        plane.listen(Arc::new(move |changes| heard.heard(changes)));
        Ok(Watches { events, log, watchers: Mutex::default(), figures: Figures::default() })
    }

    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// Connections that watch now.
    pub fn count(&self) -> usize {
        self.watchers().len()
    }

    fn watchers(&self) -> MutexGuard<'_, Vec<Arc<Watcher>>> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what a watch begins with; the answer follows, then [`Watches::begin`].
    pub fn replay(&self, conn: &Conn, frames: Vec<String>) {
        let figures = &self.figures;
        figures.replay_requests.add(1);
        figures.replay_attempted.add(frames.len() as u64);
        for frame in frames {
            figures.replay_bytes.add(frame.len() as u64);
            if conn.send(Message::text(frame)).is_ok() {
                figures.replay_sent.add(1);
            }
        }
    }

    /// Delivers to a connection from where its watch stands, and no longer from where an earlier one did.
    pub fn begin(&self, conn: &Conn, watch: Watch) {
        let mut watchers = self.watchers();
        watchers.retain(|w| w.conn.id() != conn.id());
        let Watch { who, at } = watch;
        let stands = Mutex::new(Stands { at, missed: false });
        watchers.push(Arc::new(Watcher { conn: conn.clone(), who, stands }));
        self.figures.peak.fetch_max(watchers.len() as u64, Ordering::Relaxed);
        drop(watchers);
        // What came between the replay and now.
        self.events.news().notify();
    }

    pub fn end(&self, conn: &Conn) {
        self.watchers().retain(|w| w.conn.id() != conn.id());
    }

    /// Starts the thread that delivers until `stop` is cancelled.
    pub fn follow(self: &Arc<Watches>, plane: Arc<Plane>, stop: Cancel) -> Result<JoinHandle<()>> {
        let this = self.clone();
        let mut logged = this.events.end();
        let run = move || {
            loop {
                let seen = this.events.news().seen();
                this.write(&mut logged);
                let until = match this.deliver(&plane.state()) {
                    true => Deadline::never(),
                    false => Deadline::after_ms(RETRY_MS),
                };
                let next = this.events.news().wait(seen, until);
                if next.block(Deadline::never(), &stop).is_err() {
                    this.write(&mut logged);
                    this.log.stop();
                    return;
                }
            }
        };
        std::thread::Builder::new().name("node-events".into()).spawn(run).context("event thread")
    }

    fn write(&self, logged: &mut u64) {
        loop {
            let next = self.events.after(*logged, BATCH);
            let Some(last) = next.events.last() else { return };
            *logged = last.at;
            self.figures.fanout_events.add(next.events.len() as u64);
            for Placed { event, .. } in next.events.iter().filter(|p| p.event.changed) {
                self.log.append(&event.line());
            }
        }
    }

    /// True when everybody has everything.
    fn deliver(&self, state: &State) -> bool {
        let watchers = self.watchers().clone();
        let mut all_done = true;
        for watcher in watchers {
            match watcher.advance(&self.events, &self.figures, state) {
                Progress::Done => {}
                Progress::Full => all_done = false,
                Progress::Gone => self.end(&watcher.conn),
            }
        }
        all_done
    }
}

impl Watcher {
    fn advance(&self, events: &Events, figures: &Figures, state: &State) -> Progress {
        let mut stands = self.stands.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let next = events.after(stands.at, BATCH);
            if next.missed > 0 {
                figures.fanout_dropped.add(next.missed);
                stands.at += next.missed;
                stands.missed = true;
            }
            if next.events.is_empty() {
                return Progress::Done;
            }
            for Placed { at, event } in next.events {
                if self.who.sees(state, &event) {
                    figures.fanout_attempted.add(1);
                    match self.conn.push(Message::text(event.frame(stands.missed))) {
                        Ok(()) => {}
                        Err(e) if e.code == Code::QueueSaturated => return Progress::Full,
                        Err(_) => return Progress::Gone,
                    }
                    figures.fanout_sent.add(1);
                    stands.missed = false;
                }
                stands.at = at;
            }
        }
    }
}
