//! The log: one line per record on standard error, with an RFC 3339 time stamp.

use super::{Code, Error, Level, Result};
use log::{LevelFilter, Log, Metadata, Record};
use std::io::Write;
use std::time::SystemTime;

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, m: &Metadata<'_>) -> bool {
        // The libraries' own chatter is of use only when something is being hunted down.
        let ours = m.target().starts_with("spiderweb");
        m.level() <= log::max_level() && (ours || log::max_level() == LevelFilter::Trace)
    }

    fn log(&self, r: &Record<'_>) {
        if self.enabled(r.metadata()) {
            let time = humantime::format_rfc3339_millis(SystemTime::now());
            let level = r.level().as_str().to_ascii_lowercase();
            let _ = writeln!(std::io::stderr().lock(), "{time} {level}: {}", r.args());
        }
    }

    fn flush(&self) {}
}

/// Reads a level as the config file and `--log-level` spell it.
pub fn parse_level(s: &str) -> Result<LevelFilter> {
    match s {
        "error" => Ok(LevelFilter::Error),
        "warn" | "warning" => Ok(LevelFilter::Warn),
        "info" => Ok(LevelFilter::Info),
        "debug" => Ok(LevelFilter::Debug),
        "trace" => Ok(LevelFilter::Trace),
        _ => Err(Error::new(
            Code::Config,
            format!("log level {s:?} is not one of error, warn, info, debug, trace"),
        )),
    }
}

/// Starts logging, or changes the level when it runs already.
pub fn set(level: LevelFilter) {
    let _ = log::set_logger(&Stderr);
    log::set_max_level(level);
}

/// Logs an error at the level of its code.
pub fn error(what: &str, e: &Error) {
    let level = match e.code.level() {
        Level::Debug => log::Level::Debug,
        Level::Info => log::Level::Info,
        Level::Warn => log::Level::Warn,
        Level::Error => log::Level::Error,
    };
    log::log!(target: "spiderweb", level, "{what}: {e} ({})", e.code.wire());
}
