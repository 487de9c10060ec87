//! Keeps a thread that follows changes from taking a processor for itself. What changes now and then is
//! looked at at once; where changes come all the time, those of a while are looked at together.

use crate::base::{Cancel, Deadline, Notify, Result};
use std::time::Duration;

/// Rest for each unit of work: following takes no more than a twentieth of a processor for long.
const REST_FACTOR: u32 = 19;
/// Rest that may be owed before it is taken.
const OWED_MAX: Duration = Duration::from_millis(100);

#[derive(Default)]
pub struct Pace {
    owed: Duration,
}

impl Pace {
    /// After work, and a wait for more of it. Errors: `cancelled`, by `stop`.
    pub fn rest(&mut self, worked: Duration, waited: Duration, stop: &Cancel) -> Result<()> {
        self.owed = (self.owed + worked * REST_FACTOR).saturating_sub(waited);
        if self.owed < OWED_MAX {
            return Ok(());
        }
        let until = Deadline::after(std::mem::take(&mut self.owed));
        let nothing = Notify::default();
        nothing.wait(nothing.seen(), until).block(Deadline::never(), stop)
    }
}
