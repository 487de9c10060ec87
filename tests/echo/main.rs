//! The WebSocket layer by itself: a server that echoes messages, and a probe that measures one.
//!
//!     echo [--bind ADDR:PORT] [--threads N] [--workers N]
//!     echo --probe URL [--connections N] [--inflight N] [--size BYTES] [--seconds S] [--threads N]

mod probe;

use spiderweb::base::{Code, Deadline, Error, Pool, Result, ResultExt, Signals, Timer};
use spiderweb::net::{Accept, Answer, Conn, Handler, Head, Limits, Message, Net, Service};
use std::net::SocketAddr;
use std::sync::Arc;

/// Requests that may wait for a worker.
const QUEUE_MAX: usize = 4096;

/// Answers on the I/O thread, or from a pool, as the programs answer most requests.
#[derive(Clone)]
struct Echo {
    workers: Option<Arc<Pool>>,
}

impl Service for Echo {
    fn request(&self, _head: &Head, _peer: SocketAddr) -> Answer {
        Answer::Upgrade(Accept { handler: Box::new(self.clone()), limits: Limits::default() })
    }
}

impl Handler for Echo {
    fn message(&mut self, conn: &Conn, message: Message) {
        // Sending fails only when the connection is closing, and then nobody waits for the echo.
        let Some(workers) = &self.workers else { return drop(conn.send(message)) };
        let (answering, in_flight) = (conn.clone(), conn.begin());
        let job = move || {
            let _ = answering.send(message);
            drop(in_flight);
        };
        if let Err(full) = workers.submit(job) {
            conn.close(Some(1013), &full.message);
        }
    }
}

fn main() {
    if let Err(e) = run() {
        eprintln!("echo: {e}");
        std::process::exit(i32::from(e.code.exit()));
    }
}

fn run() -> Result<()> {
    spiderweb::net::raise_open_files()?;
    let mut args = pico_args::Arguments::from_env();
    let threads = option(&mut args, "--threads", 0)?;
    if let Some(url) = args.opt_value_from_str::<_, String>("--probe").map_err(usage)? {
        let plan = probe::Plan {
            connections: option(&mut args, "--connections", 64)?,
            inflight: option(&mut args, "--inflight", 1)?,
            size: option(&mut args, "--size", 64)?,
            seconds: option(&mut args, "--seconds", 5)?,
            threads,
        };
        let url = url.parse()?;
        no_more(args)?;
        return probe::run(&url, &plan);
    }
    let workers: usize = option(&mut args, "--workers", 0)?;
    let workers = (workers > 0).then(|| Pool::start("worker", workers, QUEUE_MAX).unwrap());
    let bind: SocketAddr = option(&mut args, "--bind", SocketAddr::from(([127, 0, 0, 1], 0)))?;
    no_more(args)?;
    let signals = Signals::install()?;
    let timer = Timer::start().unwrap();
    let net = Net::start(threads, timer.clone())?;
    let listener = net.listen(bind, Arc::new(Echo { workers }))?;
    println!("{}", listener.addr());
    signals.wait();
    net.stop(Deadline::after_ms(1000));
    timer.stop();
    Ok(())
}

fn option<T: std::str::FromStr>(
    args: &mut pico_args::Arguments,
    name: &'static str,
    default: T,
) -> Result<T>
where
    T::Err: std::fmt::Display,
{
    Ok(args.opt_value_from_str(name).map_err(usage).context(name)?.unwrap_or(default))
}

fn no_more(args: pico_args::Arguments) -> Result<()> {
    match args.finish().first() {
        Some(word) => Err(Error::new(Code::Usage, format!("{} is not known", word.display()))),
        None => Ok(()),
    }
}

fn usage(e: pico_args::Error) -> Error {
    Error::new(Code::Usage, e.to_string())
}
