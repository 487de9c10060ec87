//! An I/O thread: epoll over the connections it owns, their deadlines, and an inbox through which
//! other threads reach it. It polls for a moment before it sleeps, where that has paid lately. It reads no
//! byte itself and decides nothing about a connection.

use super::Closed;
use super::connection::{Connection, Ready};
use super::listener::{Accepting, Listening};
use super::seat::{Next, Seat};
use crate::base::{Code, Error, Polling, Result, ResultExt};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Events taken from the kernel in one call.
const EVENTS: usize = 256;

/// The epoll token of the inbox; connections and listeners count from 1.
const INBOX: u64 = 0;

/// What other threads ask of an I/O thread.
pub(super) enum Command {
    /// Own this connection from now on.
    Adopt(Box<Connection>),
    /// Something about the connection has changed.
    Attend(u64),
    Listen(Arc<Listening>),
    Unlisten(u64),
    /// Close everything; whatever is left at that moment is dropped, and the thread ends.
    Stop(Instant),
}

/// The way to an I/O thread, and what it has counted.
pub(super) struct Port {
    inbox: Mutex<Inbox>,
    wake: EventFd,
    pub epoll: Epoll,
    /// Connections that another thread reads at the moment: looking for what comes is its business.
    pub led: AtomicUsize,
    /// Connections owned or on their way.
    pub load: AtomicUsize,
    pub received: Counter,
    pub sent: Counter,
    pub bytes_in: Counter,
    pub bytes_out: Counter,
}

#[derive(Default)]
struct Inbox {
    commands: Vec<Command>,
    /// The thread has ended.
    closed: bool,
}

/// Counts up, from any thread.
#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Port {
    pub fn new() -> Result<Arc<Port>> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Arc::new(Port {
            inbox: Mutex::default(),
            wake: EventFd::from_flags(flags).context("eventfd")?,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll")?,
            led: AtomicUsize::new(0),
            load: AtomicUsize::new(0),
            received: Counter::default(),
            sent: Counter::default(),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
        }))
    }

    /// Puts a command into the inbox, which holds at most one [`Command::Attend`] per connection;
    /// false when the thread has ended.
    pub fn post(&self, command: Command) -> bool {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if inbox.closed {
            return false;
        }
        inbox.commands.push(command);
        let first = inbox.commands.len() == 1;
        drop(inbox);
        if first {
            // Fails only where the counter is full, and then the thread is awake.
            let _ = self.wake.write(1);
        }
        true
    }

    fn take(&self) -> Vec<Command> {
        std::mem::take(&mut self.inbox.lock().unwrap_or_else(PoisonError::into_inner).commands)
    }

    fn close(&self) -> Vec<Command> {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.closed = true;
        std::mem::take(&mut inbox.commands)
    }
}

/// A connection, and whether it stands in `again`.
struct Owned {
    seat: Arc<Seat>,
    again: bool,
}

/// The state of one I/O thread.
pub(super) struct Reactor {
    port: Arc<Port>,
    polling: Polling,
    accepting: Accepting,
    connections: HashMap<u64, Owned>,
    listeners: HashMap<u64, Arc<Listening>>,
    /// Moments at which to look at a connection; one that is not its `due` any more is stale.
    times: BinaryHeap<Reverse<(Instant, u64)>>,
    /// Connections that want another turn at once.
    again: Vec<u64>,
    /// Listeners to be tried again, having met the limit of open files.
    resting: Vec<(Instant, u64)>,
    stopping: Option<Instant>,
}

impl Reactor {
    pub fn new(port: Arc<Port>, accepting: Accepting) -> Result<Reactor> {
        let inbox = EpollEvent::new(EpollFlags::EPOLLIN, INBOX);
        port.epoll.add(&port.wake, inbox).context("epoll")?;
        Ok(Reactor {
            port,
            polling: Polling::default(),
            accepting,
            connections: HashMap::new(),
            listeners: HashMap::new(),
            times: BinaryHeap::new(),
            again: Vec::new(),
            resting: Vec::new(),
            stopping: None,
        })
    }

    /// Runs until it is told to stop.
    pub fn run(mut self) {
        let mut events = vec![EpollEvent::empty(); EVENTS];
        while !self.over() {
            let count = match self.wait(&mut events) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(e) => {
                    log::error!("epoll failed, an I/O thread ends: {}", e.desc());
                    break;
                }
            };
            let now = Instant::now();
            for event in &events[..count] {
                self.event(event.data(), event.events(), now);
            }
            for id in std::mem::take(&mut self.again) {
                if let Some(owned) = self.connections.get_mut(&id) {
                    owned.again = false;
                    self.turn(id, Ready::default(), now);
                }
            }
            self.keep_time(now);
        }
        self.finish();
    }

    fn wait(&self, events: &mut [EpollEvent]) -> nix::Result<usize> {
        let timeout = self.timeout();
        let is_led = || self.port.led.load(Ordering::Relaxed) > 0;
        let mut found = Ok(0);
        let look = || {
            found = self.port.epoll.wait(events, EpollTimeout::ZERO);
            found != Ok(0) || is_led()
        };
        if timeout != EpollTimeout::ZERO && !is_led() && self.polling.look(look) && found != Ok(0) {
            return found;
        }
        self.port.epoll.wait(events, timeout)
    }

    fn over(&self) -> bool {
        self.stopping.is_some_and(|grace| self.connections.is_empty() || Instant::now() >= grace)
    }

    fn timeout(&self) -> EpollTimeout {
        if !self.again.is_empty() {
            return EpollTimeout::ZERO;
        }
        let due = self.times.peek().map(|Reverse((when, _))| *when);
        let rest = self.resting.iter().map(|(when, _)| *when).min();
        let Some(next) = due.into_iter().chain(rest).chain(self.stopping).min() else {
            return EpollTimeout::NONE;
        };
        // Rounded up, or the last millisecond would be spent asking again and again.
        let ms = next.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
        EpollTimeout::try_from(i32::try_from(ms).unwrap_or(i32::MAX)).unwrap_or(EpollTimeout::MAX)
    }

    fn event(&mut self, id: u64, flags: EpollFlags, now: Instant) {
        if id == INBOX {
            let _ = self.port.wake.read();
            for command in self.port.take() {
                self.command(command, now);
            }
        } else if self.connections.contains_key(&id) {
            let hangup = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR | EpollFlags::EPOLLRDHUP;
            let hangup = flags.intersects(hangup);
            let ready = Ready {
                readable: flags.contains(EpollFlags::EPOLLIN),
                writable: flags.contains(EpollFlags::EPOLLOUT) || hangup,
                hangup,
            };
            self.turn(id, ready, now);
        } else if let Some(listening) = self.listeners.get(&id).cloned() {
            self.accept(&listening, now);
        }
    }

    fn command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Adopt(connection) => self.adopt(*connection, now),
            Command::Attend(id) if self.connections.contains_key(&id) => {
                self.turn(id, Ready::default(), now);
            }
            Command::Attend(_) => {}
            Command::Listen(listening) if self.stopping.is_some() => listening.close(),
            Command::Listen(listening) => self.listen(&listening),
            Command::Unlisten(id) => drop(self.listeners.remove(&id)),
            Command::Stop(grace) => {
                self.stopping = Some(grace);
                self.listeners.drain().for_each(|(_, listening)| listening.close());
                for id in self.connections.keys().copied().collect::<Vec<_>>() {
                    self.connections[&id].seat.drain();
                    self.turn(id, Ready::default(), now);
                }
            }
        }
    }

    fn adopt(&mut self, connection: Connection, now: Instant) {
        let id = connection.shared.id;
        if self.stopping.is_some() {
            connection.shared.drain(1001, "going away");
        }
        match Seat::take(connection, now) {
            Some((seat, next)) => {
                self.connections.insert(id, Owned { seat, again: false });
                self.follow(id, next);
            }
            None => drop(self.port.load.fetch_sub(1, Ordering::Relaxed)),
        }
    }

    fn turn(&mut self, id: u64, ready: Ready, now: Instant) {
        if let Some(owned) = self.connections.get(&id) {
            let next = owned.seat.turn(ready, now);
            self.follow(id, next);
        }
    }

    fn follow(&mut self, id: u64, next: Next) {
        let Next::Keep { due, again } = next else {
            if let Some(owned) = self.connections.remove(&id) {
                self.gone(&owned.seat);
            }
            return;
        };
        let Some(owned) = self.connections.get_mut(&id) else { return };
        if again && !owned.again {
            owned.again = true;
            self.again.push(id);
        }
        if let Some(due) = due {
            self.times.push(Reverse((due, id)));
        }
    }

    fn keep_time(&mut self, now: Instant) {
        while let Some(Reverse((when, id))) = self.times.peek().copied()
            && when <= now
        {
            self.times.pop();
            if let Some(next) = self.connections.get(&id).and_then(|o| o.seat.wake(when, now)) {
                self.follow(id, next);
            }
        }
        self.wake_listeners(now);
    }

    fn gone(&self, seat: &Seat) {
        seat.leave(Closed::Local);
        self.port.load.fetch_sub(1, Ordering::Relaxed);
    }

    fn listen(&mut self, listening: &Arc<Listening>) {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, listening.id);
        match listening.with(|socket| self.port.epoll.add(socket, event)) {
            Some(Ok(())) => drop(self.listeners.insert(listening.id, listening.clone())),
            Some(Err(e)) => log::error!("epoll refused a listener: {}", e.desc()),
            None => {}
        }
    }

    fn accept(&mut self, listening: &Arc<Listening>, now: Instant) {
        if let Err(until) = self.accepting.accept(listening, now) {
            self.resting.push((until, listening.id));
            let mut silent = EpollEvent::new(EpollFlags::empty(), listening.id);
            let _ = listening.with(|socket| self.port.epoll.modify(socket, &mut silent));
        }
    }

    fn wake_listeners(&mut self, now: Instant) {
        let (over, resting) = self.resting.iter().partition(|(until, _)| *until <= now);
        self.resting = resting;
        for (_, id) in over {
            if let Some(listening) = self.listeners.get(&id) {
                let mut event = EpollEvent::new(EpollFlags::EPOLLIN, id);
                let _ = listening.with(|socket| self.port.epoll.modify(socket, &mut event));
            }
        }
    }

    fn finish(&mut self) {
        for (_, owned) in std::mem::take(&mut self.connections) {
            self.gone(&owned.seat);
        }
        for command in self.port.close() {
            if let Command::Adopt(mut connection) = command {
                connection.finish(Closed::Local);
                self.port.load.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// Hands a connection to its I/O thread. False when that has ended.
pub(super) fn adopt(connection: Connection) -> bool {
    let port = connection.shared.port.clone();
    port.load.fetch_add(1, Ordering::Relaxed);
    let posted = port.post(Command::Adopt(Box::new(connection)));
    if !posted {
        port.load.fetch_sub(1, Ordering::Relaxed);
    }
    posted
}

/// The error of whatever comes after the end of the I/O threads.
pub(super) fn stopped() -> Error {
    Error::new(Code::Unavailable, "the network threads have stopped")
}
