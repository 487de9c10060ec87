//! Requests that wait: a read of a file that has nothing yet, a lock that another holds. They hold no
//! session thread; they are tried again when something happened, and end when the process that made
//! them has a signal to handle (fuser does not pass the kernel's interrupts on).

use crate::base::{Cancel, Code, Counted, Deadline, Error, Gauge, Pool, Result, Timer, Wait};
use std::sync::Arc;

/// Requests that wait at once; more of them fail with EAGAIN.
const WAITING_MAX: usize = 256;
/// Threads that try them again.
const THREADS: usize = 4;
/// How often a waiting process is looked at for signals.
const SIGNALS_MS: u64 = 250;

pub struct Waiting {
    pool: Arc<Pool>,
    timer: Timer,
    closing: Cancel,
    places: Gauge,
}

/// Tries the request again, or, with an error, answers it with that. Returns what to wait for next,
/// or `None` when it has been answered.
pub type Retry = Box<dyn FnMut(Result<()>) -> Option<Wait> + Send>;

impl Waiting {
    pub fn start(timer: Timer) -> Result<Arc<Waiting>> {
        Ok(Arc::new(Waiting {
            pool: Pool::start("fuse-waiting", THREADS, WAITING_MAX)?,
            timer,
            closing: Cancel::new(),
            places: Gauge::new(WAITING_MAX, "reads and locks waiting on this mount"),
        }))
    }

    /// Takes over a request of thread `tid`.
    pub fn park(self: &Arc<Waiting>, tid: u32, wait: Wait, mut retry: Retry) {
        match self.places.enter() {
            Ok(place) => self.wait(tid, wait, retry, place),
            Err(e) => drop(retry(Err(e))),
        }
    }

    fn wait(self: &Arc<Waiting>, tid: u32, wait: Wait, retry: Retry, place: Counted) {
        let this = self.clone();
        let wake = move || {
            // A place in the queue for each that waits: it cannot be full. When it has stopped, the
            // dropped reply answers EIO.
            let again = this.clone();
            let _ = this.pool.submit(move || again.turn(tid, retry, place));
        };
        let tick = Deadline::after_ms(SIGNALS_MS);
        wait.park(&self.timer, tick, &self.closing, wake);
    }

    fn turn(self: &Arc<Waiting>, tid: u32, mut retry: Retry, place: Counted) {
        let go_on = if self.closing.is_cancelled() {
            Err(Error::new(Code::Unavailable, "the filesystem was unmounted"))
        } else if has_signal(tid) {
            Err(Error::new(Code::Cancelled, "interrupted"))
        } else {
            Ok(())
        };
        if let Some(wait) = retry(go_on) {
            self.wait(tid, wait, retry, place);
        }
    }

    /// Answers all that wait with EIO, and joins the threads.
    pub fn stop(&self) {
        self.closing.cancel();
        self.pool.stop();
    }
}

/// Whether a thread has a pending signal that it neither blocks nor ignores. A thread that is gone
/// has nobody left to wait.
fn has_signal(tid: u32) -> bool {
    // 0: the process is of another namespace and cannot be looked at.
    tid != 0
        && std::fs::read_to_string(format!("/proc/{tid}/status"))
            .map_or(true, |status| pending(&status) != 0)
}

fn pending(status: &str) -> u64 {
    let mask = |key: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(key))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let sent = mask("SigPnd:").unwrap_or(0) | mask("ShdPnd:").unwrap_or(0);
    sent & !mask("SigBlk:").unwrap_or(0) & !mask("SigIgn:").unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Notify;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn signals_count_unless_blocked_or_ignored() {
        let status = "Name:\tcat\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000002\n\
                      SigBlk:\t0000000000000002\nSigIgn:\t0000000000000000\n";
        assert_eq!(pending(status), 0x100);
        assert_eq!(pending(&status.replace("SigIgn:\t0000000000000000", "SigIgn:\t100")), 0);
        assert!(!has_signal(0) && has_signal(u32::MAX));
    }

    #[test]
    fn what_waits_is_tried_again_until_it_is_answered() {
        let timer = Timer::start().unwrap();
        let waiting = Waiting::start(timer.clone()).unwrap();
        let (send, tries) = mpsc::channel();
        let ready = Notify::default();
        let wait = {
            let ready = ready.clone();
            move || ready.wait(ready.seen(), Deadline::never())
        };
        let first = wait();
        let mut left = 2;
        let retry = move |go_on: Result<()>| {
            send.send(go_on.is_ok()).unwrap();
            left -= 1;
            (left > 0).then(&wait)
        };
        waiting.park(0, first, Box::new(retry));
        ready.notify();
        assert!(tries.recv_timeout(Duration::from_secs(10)).unwrap());
        // The second comes by itself, on the tick.
        assert!(tries.recv_timeout(Duration::from_secs(10)).unwrap());
        assert!(tries.recv_timeout(Duration::from_secs(10)).is_err(), "answered is answered");
        waiting.stop();
        drop(waiting.places.enter().unwrap());
        timer.stop();
    }

    #[test]
    fn the_end_of_the_mount_ends_what_waits() {
        let timer = Timer::start().unwrap();
        let waiting = Waiting::start(timer.clone()).unwrap();
        let (send, ends) = mpsc::channel();
        let never = Notify::default();
        for _ in 0..WAITING_MAX + 1 {
            let (send, again) = (send.clone(), never.clone());
            let retry = move |go_on: Result<()>| match go_on {
                Ok(()) => Some(again.wait(again.seen(), Deadline::never())),
                Err(e) => {
                    send.send(e.errno()).unwrap();
                    None
                }
            };
            waiting.park(0, never.wait(never.seen(), Deadline::never()), Box::new(retry));
        }
        assert_eq!(ends.try_recv(), Ok(libc::EAGAIN), "one too many");
        waiting.stop();
        drop((send, never));
        let ended: Vec<_> = ends.iter().collect();
        assert_eq!(ended, vec![libc::EIO; WAITING_MAX]);
        timer.stop();
    }
}
