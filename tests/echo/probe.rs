//! Measures an echo server: round trips per second, their latency, and the bytes moved.

use spiderweb::base::{Deadline, Result, Timer};
use spiderweb::net::{Closed, Conn, DialOptions, Handler, Message, Net, WsUrl};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

pub struct Plan {
    pub connections: usize,
    /// Messages on their way, per connection.
    pub inflight: usize,
    pub size: usize,
    pub seconds: u64,
    pub threads: usize,
}

/// One connection: sends a message for each that comes back.
struct Pinger {
    message: Message,
    inflight: usize,
    sent: VecDeque<Instant>,
    micros: Vec<u32>,
    measuring: Arc<AtomicBool>,
    done: mpsc::Sender<Vec<u32>>,
}

impl Pinger {
    fn send(&mut self, conn: &Conn) {
        self.sent.push_back(Instant::now());
        let _ = conn.send(self.message.clone());
    }
}

impl Handler for Pinger {
    fn open(&mut self, conn: &Conn) {
        for _ in 0..self.inflight {
            self.send(conn);
        }
    }

    fn message(&mut self, conn: &Conn, message: Message) {
        let took = self.sent.pop_front().map(|at| at.elapsed()).unwrap_or_default();
        assert!(message.len() == self.message.len(), "the echo has another length");
        if self.measuring.load(Ordering::Relaxed) {
            self.micros.push(took.as_micros() as u32);
        }
        self.send(conn);
    }

    fn closed(&mut self, _conn: &Conn, reason: &Closed) {
        if !matches!(reason, Closed::Local) {
            eprintln!("echo: {}", reason.error());
        }
        let _ = self.done.send(std::mem::take(&mut self.micros));
    }
}

pub fn run(url: &WsUrl, plan: &Plan) -> Result<()> {
    let timer = Timer::start().unwrap();
    let net = Net::start(plan.threads, timer.clone())?;
    let measuring = Arc::new(AtomicBool::new(false));
    let (done, finished) = mpsc::channel();
    let mut conns = Vec::new();
    for _ in 0..plan.connections {
        let pinger = Pinger {
            message: Message::binary(vec![b'x'; plan.size]),
            inflight: plan.inflight,
            sent: VecDeque::new(),
            micros: Vec::new(),
            measuring: measuring.clone(),
            done: done.clone(),
        };
        let deadline = Deadline::after(Duration::from_secs(10));
        conns.push(net.dial(url, &DialOptions::default(), deadline, Box::new(pinger))?);
    }
    drop(done);
    // The first moments warm caches and grow buffers.
    std::thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    measuring.store(true, Ordering::Relaxed);
    std::thread::sleep(Duration::from_secs(plan.seconds));
    measuring.store(false, Ordering::Relaxed);
    let seconds = start.elapsed().as_secs_f64();
    conns.iter().for_each(|conn| conn.close(None, ""));
    let mut micros: Vec<u32> = finished.iter().flatten().collect();
    micros.sort_unstable();
    let at = |q: f64| micros.get((micros.len() as f64 * q) as usize).copied().unwrap_or_default();
    println!(
        "{} connections, {} in flight each, {} bytes: {:.0} round trips/s, \
         p50 {} us, p99 {} us, {:.1} MB/s each way",
        plan.connections,
        plan.inflight,
        plan.size,
        micros.len() as f64 / seconds,
        at(0.5),
        at(0.99),
        micros.len() as f64 * plan.size as f64 / seconds / 1e6,
    );
    net.stop(Deadline::after_ms(1000));
    timer.stop();
    Ok(())
}
