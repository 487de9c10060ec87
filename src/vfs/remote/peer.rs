//! A node to talk to: one connection at a time, made when it is needed, and again when it was lost. While
//! a node cannot be reached, calls fail at once instead of waiting for it, and it is tried again in
//! growing steps.

use super::export::unexpected;
use super::link::{LineStatus, Link, Told};
use super::numbered::{Numbered, Slots};
use crate::base::{Cancel, Code, Deadline, Error, Gauge, Notify, Result, id, now_ms};
use crate::vfs::{Caller, Watch};
use crate::wire::fs::{self, Call, Event, Reply, Request};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Steps in which an unreachable node is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long the thread that tries again holds on to a peer that may be gone.
const STEP_MS: u64 = 1_000;
/// Time for one attempt to connect, hello included.
const CONNECT_MS: u64 = 5_000;
/// Reads of one node that wait for something to read. Fewer than a connection has places for requests,
/// so that they leave some to the requests that do not wait.
pub(super) const WAITING_MAX: usize = 192;

/// Time in which a node must answer when it is in doubt.
const PROBE_MS: u64 = 3_000;

/// How a connection to a node is made.
pub trait Connector: Send + Sync {
    /// Connects and says hello. `lost` must be called once when the connection ends, and `event` for
    /// every event; both on a thread that must not block.
    fn connect(&self, deadline: Deadline, hooks: Hooks) -> Result<Link>;

    /// Where it leads, for people.
    fn target(&self) -> String;
}

/// What a connection tells its peer, and the name of the session to resume.
#[derive(Clone)]
pub struct Hooks {
    pub session: Arc<str>,
    pub event: Arc<dyn Fn(Event) + Send + Sync>,
    /// With what ended it.
    pub lost: Arc<dyn Fn(&Error) + Send + Sync>,
}

pub struct Peer {
    connector: Arc<dyn Connector>,
    session: Arc<str>,
    slots: Slots,
    /// A lost node is tried again without being asked for.
    restless: bool,
    state: Mutex<State>,
    changed: Notify,
    listeners: RwLock<Vec<(u64, Listener)>>,
    last_listener: AtomicU64,
    /// Counts what may have changed what the node exports.
    export_news: AtomicU64,
    pub(super) waiting: Gauge,
}

/// Told of events; `None` when the connection was lost or made again, or cannot be made.
pub type Listener = Arc<dyn Fn(Option<&Event>) + Send + Sync>;

#[derive(Default)]
struct State {
    link: Option<Arc<Link>>,
    epoch: u64,
    /// Counts the attempts to connect.
    attempt: u64,
    /// A thread tries to reach the node: callers need not wait for what it finds.
    trying: bool,
    connecting: bool,
    failures: u32,
    retry_at: Option<Instant>,
    last_error: Option<Error>,
    /// Of links that are gone.
    last_success_ms: i64,
    last_failure_ms: i64,
}

impl State {
    fn end_link(&mut self) -> Option<Arc<Link>> {
        let link = self.link.take()?;
        self.last_success_ms = link.answered_ms.load(Ordering::Relaxed);
        Some(link)
    }

    fn failed(&mut self, e: &Error) {
        self.last_failure_ms = now_ms();
        self.last_error = Some(e.clone());
    }
}

/// How a peer stands, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    pub target: String,
    pub connected: bool,
    /// Connected, and the node behind a gateway is not known to be lost.
    pub healthy: bool,
    pub consecutive_failures: u32,
    pub last_error: Option<String>,
    /// Unix times in milliseconds; 0 for what has not happened. A success is any answer, a failure the
    /// loss of a connection or one that could not be made.
    pub last_success_ms: i64,
    pub last_failure_ms: i64,
    /// The connection that there is.
    pub line: Option<LineStatus>,
}

impl Peer {
    pub fn new(connector: Arc<dyn Connector>) -> Arc<Peer> {
        Peer::make(connector, false)
    }

    /// A peer that, once it was lost, is tried again by itself in growing steps; until it is back, calls
    /// fail at once.
    pub fn restless(connector: Arc<dyn Connector>) -> Arc<Peer> {
        Peer::make(connector, true)
    }

    fn make(connector: Arc<dyn Connector>, restless: bool) -> Arc<Peer> {
        Arc::new(Peer {
            restless,
            connector,
            session: id::hex_token("s-").into(),
            slots: Slots::default(),
            state: Mutex::default(),
            changed: Notify::default(),
            listeners: RwLock::default(),
            last_listener: AtomicU64::new(0),
            export_news: AtomicU64::new(0),
            waiting: Gauge::new(WAITING_MAX, "reads waiting for this node"),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn listen(&self, listener: Listener) {
        self.add_listener(listener);
    }

    /// As [`Peer::listen`], until the watch is dropped.
    pub fn watch(self: &Arc<Peer>, listener: Listener) -> Watch {
        let (peer, key) = (Arc::downgrade(self), self.add_listener(listener));
        Watch::new(move || {
            if let Some(peer) = peer.upgrade() {
                let mut all = peer.listeners.write().unwrap_or_else(PoisonError::into_inner);
                all.retain(|(k, _)| *k != key);
            }
        })
    }

    fn add_listener(&self, listener: Listener) -> u64 {
        let key = self.last_listener.fetch_add(1, Ordering::Relaxed);
        self.listeners.write().unwrap_or_else(PoisonError::into_inner).push((key, listener));
        key
    }

    /// The node has said something, or somebody else knows it of the node.
    pub fn heard(&self, event: &Event) {
        // Its exports may have come and gone (spec: fs 14.4): whoever needs them next asks.
        if *event == Event::Resync {
            self.doubt_exports();
        }
        self.tell(Some(event));
    }

    /// Has the node asked for its exports when they are needed next.
    pub(super) fn doubt_exports(&self) {
        self.export_news.fetch_add(1, Ordering::AcqRel);
    }

    /// What the node exports, asked anew if that may have changed.
    pub fn exports(
        &self,
        link: &Link,
        deadline: Deadline,
        cancel: &Cancel,
    ) -> Result<Arc<[fs::Export]>> {
        let news = self.export_news.load(Ordering::Acquire);
        {
            let told = link.told();
            if told.news >= news {
                return Ok(told.list.clone());
            }
        }
        let Reply::Exports(list) = link.call(Call::Exports, deadline, cancel)? else {
            return Err(unexpected(fs::Op::Exports));
        };
        let mut told = link.told();
        if told.news < news {
            *told = Told { list: list.into(), news };
        }
        Ok(told.list.clone())
    }

    /// A number for a request that must take effect once.
    pub(super) fn number(&self) -> Numbered {
        self.slots.number()
    }

    fn tell(&self, event: Option<&Event>) {
        let listeners = self.listeners.read().unwrap_or_else(PoisonError::into_inner).clone();
        // Whoever was about to change something when the connection was made or lost is told of it, too.
        Caller::nobody(|| listeners.iter().for_each(|(_, l)| l(event)));
    }

    pub fn status(&self) -> PeerStatus {
        let s = self.lock();
        let behind = s.link.as_ref().and_then(|link| link.behind().clone());
        PeerStatus {
            target: self.connector.target(),
            connected: s.link.is_some(),
            healthy: s.link.is_some() && behind.is_none(),
            consecutive_failures: s.failures,
            last_error: behind.as_ref().or(s.last_error.as_ref()).map(ToString::to_string),
            last_success_ms: s
                .link
                .as_ref()
                .map_or(s.last_success_ms, |link| link.answered_ms.load(Ordering::Relaxed)),
            last_failure_ms: s.last_failure_ms,
            line: s.link.as_ref().map(|link| link.line()),
        }
    }

    /// The connection, if there is one.
    pub fn connected(&self) -> Option<Arc<Link>> {
        self.lock().link.clone().filter(|link| link.mux.is_open())
    }

    /// The node may be reachable again, or in another way: the next call tries at once.
    pub fn retry_now(&self) {
        {
            let mut s = self.lock();
            (s.failures, s.retry_at) = (0, None);
        }
        self.changed.notify();
    }

    /// The connection, made if there is none; callers that come meanwhile wait for the same attempt.
    /// Errors: `unavailable`, at once while the node is known to be unreachable.
    pub fn link(self: &Arc<Peer>, deadline: Deadline, cancel: &Cancel) -> Result<Arc<Link>> {
        loop {
            let seen = self.changed.seen();
            {
                let mut s = self.lock();
                if let Some(link) = s.link.as_ref().filter(|l| l.mux.is_open()) {
                    return Ok(link.clone());
                }
                if s.trying {
                    return Err(self.unreachable(s.last_error.as_ref()));
                }
                if !s.connecting {
                    if s.retry_at.is_some_and(|at| at > Instant::now()) {
                        return Err(self.unreachable(s.last_error.as_ref()));
                    }
                    s.connecting = true;
                    s.attempt += 1;
                    let attempt = s.attempt;
                    drop(s);
                    return self.connect(attempt, deadline);
                }
            }
            self.changed.wait(seen, Deadline::never()).block(deadline, cancel)?;
        }
    }

    fn unreachable(&self, last: Option<&Error>) -> Error {
        let why = last.map_or_else(String::new, |e| format!(": {e}"));
        let text = format!("{} cannot be reached{why}", self.connector.target());
        // Refused: nothing of the call can have arrived.
        Error::new(Code::Refused, text)
    }

    fn connect(self: &Arc<Peer>, attempt: u64, deadline: Deadline) -> Result<Arc<Link>> {
        let (for_events, for_loss) = (Arc::downgrade(self), Arc::downgrade(self));
        let hooks = Hooks {
            session: self.session.clone(),
            event: Arc::new(move |event| {
                if let Some(peer) = for_events.upgrade() {
                    peer.heard(&event);
                }
            }),
            lost: Arc::new(move |why| {
                if let Some(peer) = for_loss.upgrade() {
                    peer.lost(attempt, why);
                }
            }),
        };
        // A stand-in needs time, too.
        let patience = (deadline.left() / 2).min(Duration::from_millis(CONNECT_MS));
        // What is heard from here on may be newer than what the hello brings.
        let export_news = self.export_news.load(Ordering::Acquire);
        let outcome = self.connector.connect(Deadline::after(patience), hooks);
        let (news, outcome) = {
            let mut s = self.lock();
            s.connecting = false;
            match outcome {
                Ok(link) => {
                    if !link.ext.resumed {
                        s.epoch += 1;
                    }
                    let (epoch, answered_ms) = (s.epoch, now_ms().into());
                    link.told().news = export_news;
                    let link = Arc::new(Link { epoch, answered_ms, ..link });
                    s.link = Some(link.clone());
                    (s.failures, s.retry_at, s.last_error) = (0, None, None);
                    (true, Ok(link))
                }
                Err(e) => {
                    s.end_link();
                    s.failures += 1;
                    let step = RETRY.0 * 2u32.saturating_pow(s.failures.min(10) - 1);
                    s.retry_at = Some(Instant::now() + step.min(RETRY.1));
                    s.failed(&e);
                    (s.failures == 1, Err(self.unreachable(Some(&e))))
                }
            }
        };
        self.changed.notify();
        if news {
            self.tell(None);
        }
        if outcome.is_err() && self.restless {
            self.keep_trying();
        }
        outcome
    }

    /// Starts the thread that tries until the node is back, unless there is one.
    fn keep_trying(self: &Arc<Peer>) {
        if std::mem::replace(&mut self.lock().trying, true) {
            return;
        }
        let weak = Arc::downgrade(self);
        let run = move || while weak.upgrade().is_some_and(|peer| peer.try_again()) {};
        // Without a thread the next call tries, as soon as it may.
        if std::thread::Builder::new().name("reconnect".into()).spawn(run).is_err() {
            self.lock().trying = false;
        }
    }

    /// Waits for the time to try again, and tries. False once that is no longer needed.
    fn try_again(self: &Arc<Peer>) -> bool {
        let seen = self.changed.seen();
        let due = {
            let mut s = self.lock();
            if s.link.as_ref().is_some_and(|l| l.mux.is_open()) {
                s.trying = false;
                return false;
            }
            let due = s.retry_at.is_none_or(|at| at <= Instant::now());
            if due {
                s.connecting = true;
                s.attempt += 1;
            }
            if due { Ok(s.attempt) } else { Err(s.retry_at.unwrap_or_else(Instant::now)) }
        };
        match due {
            Ok(attempt) => drop(self.connect(attempt, Deadline::after_ms(CONNECT_MS))),
            Err(at) => {
                let until = Deadline::after(at.saturating_duration_since(Instant::now()));
                let step = self.changed.wait(seen, until.min(Deadline::after_ms(STEP_MS)));
                let _ = step.block(Deadline::never(), &Cancel::new());
            }
        }
        true
    }

    fn lost(&self, attempt: u64, why: &Error) {
        {
            let mut s = self.lock();
            if s.attempt != attempt {
                return;
            }
            // One that was given up has told its reason already.
            if s.end_link().is_some() {
                s.failed(why);
            }
        }
        self.tell(None);
    }

    /// A call was not answered in time. Others may be: the connection is given up only when the node
    /// does not answer a question that costs it nothing either. Does not wait.
    pub fn doubt(self: &Arc<Peer>, link: &Arc<Link>) {
        let (peer, doubted) = (Arc::downgrade(self), Arc::downgrade(link));
        let build = |tag| Request::new(tag, Call::Exports).encode(fs::Framing::Text);
        let asked = link.mux.start(build, Deadline::after_ms(PROBE_MS), move |reply| {
            if reply.is_err()
                && let (Some(peer), Some(link)) = (peer.upgrade(), doubted.upgrade())
            {
                peer.give_up(&link);
            }
        });
        if asked.is_err() {
            self.give_up(link);
        }
    }

    /// The connection does not answer: the next call makes a new one.
    fn give_up(&self, link: &Link) {
        let mut s = self.lock();
        if s.link.as_ref().is_some_and(|current| std::ptr::eq(&**current, link))
            && let Some(link) = s.end_link()
        {
            s.failed(&Error::new(Code::Unavailable, "it does not answer"));
            if let Some(conn) = link.mux.conn() {
                conn.close(None, "");
            }
        }
    }
}
