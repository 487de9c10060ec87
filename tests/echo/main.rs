//! The WebSocket layer by itself: a server that echoes messages, and a probe that measures one.
//!
//!     echo [--bind ADDR:PORT] [--threads N]
//!     echo --probe URL [--connections N] [--inflight N] [--size BYTES] [--seconds S] [--threads N]

mod probe;

use spiderweb::base::{Result, ResultExt, Signals, Timer};
use spiderweb::net::{Accept, Answer, Conn, Handler, Head, Limits, Message, Net, Service};
use std::net::SocketAddr;
use std::sync::Arc;

struct Echo;

impl Service for Echo {
    fn request(&self, _head: &Head, _peer: SocketAddr) -> Answer {
        Answer::Upgrade(Accept { handler: Box::new(Echo), limits: Limits::default() })
    }
}

impl Handler for Echo {
    fn message(&mut self, conn: &Conn, message: Message) {
        // Refused only when the connection is closing, and then nobody waits for it.
        let _ = conn.send(message);
    }
}

fn main() {
    if let Err(e) = run() {
        eprintln!("echo: {e}");
        std::process::exit(i32::from(e.code.exit()));
    }
}

fn run() -> Result<()> {
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
        return probe::run(&url.parse()?, &plan);
    }
    let bind: SocketAddr = option(&mut args, "--bind", SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let signals = Signals::install()?;
    let timer = Timer::start();
    let net = Net::start(threads, timer.clone())?;
    let listener = net.listen(bind, Arc::new(Echo))?;
    println!("{}", listener.addr());
    signals.wait();
    net.stop(spiderweb::base::Deadline::after_ms(1000));
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

fn usage(e: pico_args::Error) -> spiderweb::base::Error {
    spiderweb::base::Error::new(spiderweb::base::Code::Usage, e.to_string())
}
