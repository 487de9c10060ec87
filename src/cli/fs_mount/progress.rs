//! A line on a terminal that says how far a copy is, and one, also elsewhere, for what was not copied.

use crate::base::Error;
use crate::mount::copy::Progress;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often the line is drawn.
const STEP: Duration = Duration::from_millis(100);
/// Columns of the bar itself, and of the name before it.
const WIDTH: usize = 24;
const NAME: usize = 24;

pub struct Bar {
    /// Standard error is a terminal.
    draws: bool,
    state: Mutex<State>,
}

struct State {
    name: String,
    total: Option<u64>,
    done: u64,
    begun: Instant,
    drawn: Option<Instant>,
}

impl Bar {
    pub fn new() -> Bar {
        let begun = Instant::now();
        let state = State { name: String::new(), total: None, done: 0, begun, drawn: None };
        Bar { draws: std::io::stderr().is_terminal(), state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Bar {
    fn begin(&self, name: &str, total: Option<u64>) {
        let name = name.rsplit('/').next().unwrap_or(name);
        // Names come from far away; a terminal obeys what they may hold.
        let name = name.chars().map(|c| if c.is_control() { '?' } else { c });
        let (name, begun) = (name.take(NAME).collect(), Instant::now());
        *self.lock() = State { name, total, done: 0, begun, drawn: None };
    }

    fn moved(&self, bytes: u64) {
        if !self.draws {
            return;
        }
        let mut s = self.lock();
        s.done += bytes;
        if s.drawn.unwrap_or(s.begun).elapsed() >= STEP {
            s.drawn = Some(Instant::now());
            let _ = write!(std::io::stderr(), "\r{}\x1b[K", line(&s, s.begun.elapsed()));
        }
    }

    fn end(&self) {
        let s = self.lock();
        // What was quicker than the first line needs none.
        if s.drawn.is_some() {
            let _ = writeln!(std::io::stderr(), "\r{}\x1b[K", line(&s, s.begun.elapsed()));
        }
    }

    fn failed(&self, what: &Error) {
        let text = what.to_string();
        let safe = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>();
        let end = if self.draws { "\x1b[K" } else { "" };
        let _ = writeln!(std::io::stderr(), "{safe}{end}");
    }
}

fn line(s: &State, time: Duration) -> String {
    let rate = s.done as f64 / time.as_secs_f64().max(0.001);
    let moved = format!("{:>10} {:>10}/s", size(s.done), size(rate as u64));
    let name = format!("{:NAME$}", s.name);
    let Some(total) = s.total.filter(|total| *total > 0) else { return format!("{name} {moved}") };
    let part = (s.done as f64 / total as f64).min(1.0);
    let full = (part * WIDTH as f64) as usize;
    let bar = format!("{}{}", "=".repeat(full), " ".repeat(WIDTH - full));
    let left = total.saturating_sub(s.done) as f64 / rate.max(1.0);
    let left = (left as u64).min(359_999);
    let (hours, minutes, seconds) = (left / 3600, left / 60 % 60, left % 60);
    let eta = if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    };
    format!("{name} {:3.0}% [{bar}] {moved} {eta}", part * 100.0)
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut shown = None;
    for unit in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        shown = Some(unit);
    }
    shown.map_or_else(|| format!("{bytes} B"), |unit| format!("{value:.1} {unit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        let state = |total, done| State {
            name: "a.bin".into(),
            total,
            done,
            begun: Instant::now(),
            drawn: None,
        };
        let half = line(&state(Some(200 << 20), 100 << 20), Duration::from_secs(2));
        for part in ["a.bin", " 50% ", "============ ", "100.0 MiB", "50.0 MiB/s", "0:02"] {
            assert!(half.contains(part), "{part} in {half}");
        }
        assert!(!line(&state(None, 5), Duration::ZERO).contains('%'));
        assert!(line(&state(Some(1), u64::MAX), Duration::from_secs(1)).contains("100%"));
        assert!(line(&state(Some(u64::MAX), 0), Duration::from_secs(1)).contains("99:59:59"));
        assert_eq!((size(0), size(1536)), ("0 B".into(), "1.5 KiB".into()));
    }
}
