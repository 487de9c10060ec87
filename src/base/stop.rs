//! How a program learns that it should end or reload: signals, and its own threads that say so.

use super::{Result, ResultExt};
use crossbeam_channel::{Receiver, Sender, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, SIGINT, or a thread of the program that found its work done.
    Stop,
    /// SIGHUP.
    Reload,
}

/// Receives the process's signals. One per program; its thread ends with the process.
pub struct Signals {
    send: Sender<Signal>,
    receive: Receiver<Signal>,
}

impl Signals {
    /// Takes over SIGTERM, SIGINT and SIGHUP, and SIGXFSZ: a file that the host lets grow no further is
    /// an error of the write, not the end of the process. Children have the usual handlers.
    pub fn install() -> Result<Signals> {
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])
            .context("signal handlers")?;
        let too_large = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGXFSZ, too_large).context("signal handlers")?;
        let (send, receive) = bounded(16);
        let forward = send.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for signal in signals.forever() {
                    let signal = if signal == SIGHUP { Signal::Reload } else { Signal::Stop };
                    // Full: enough of the same are waiting to be seen.
                    let _ = forward.try_send(signal);
                }
            })
            .context("signal thread")?;
        Ok(Signals { send, receive })
    }

    /// Blocks until the next one.
    pub fn wait(&self) -> Signal {
        self.receive.recv().unwrap_or(Signal::Stop)
    }

    /// A function that makes [`Signals::wait`] return [`Signal::Stop`].
    pub fn stopper(&self) -> impl Fn() + Send + Sync + Clone + 'static {
        let send = self.send.clone();
        move || {
            let _ = send.try_send(Signal::Stop);
        }
    }
}
