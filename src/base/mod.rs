//! What every other room stands on: errors and codes, names and paths, deadlines and cancellation,
//! worker pools, the timer, ids and the log. It holds no I/O policy and knows no protocol.

mod cancel;
mod error;
mod gauge;
pub mod id;
mod lanes;
pub mod log;
pub mod memory;
mod meter;
mod name;
pub mod origin;
mod polling;
mod pool;
mod stop;
mod time;
mod timer;

pub use cancel::{Cancel, Notify, OnCancel, Parked, Wait};
pub use error::{Code, Error, Level, Result, ResultExt};
pub use gauge::{Counted, Gauge};
pub use lanes::{Lanes, Place};
pub use meter::{BOUNDS_US, Errors, Requests, Spread, Times, Total};
pub use name::{NAME_MAX, Name, PATH_MAX, TreePath};
pub use polling::Polling;
pub use pool::Pool;
pub use stop::{Signal, Signals};
pub use time::{Deadline, now_ms, now_ns};
pub use timer::{Timer, TimerKey};
