//! Keeps a thread that follows changes from taking a processor for itself. What changes now and then is
//! looked at at once; where changes come all the time, those of a while are looked at together.

use crate::base::{Cancel, Deadline, Notify, Result};
use std::time::Duration;

/// Rest for each unit of work: following a little takes no more than a twentieth of a processor for long.
const REST_FACTOR: u32 = 19;
/// Rest that is owed before it is taken, and all that is: nobody is told later than that of what changes.
const REST: Duration = Duration::from_millis(100);

#[derive(Default)]
pub struct Pace {
    owed: Duration,
}

impl Pace {
    /// After work, and a wait for more of it. Errors: `cancelled`, by `stop`.
    pub fn rest(&mut self, worked: Duration, waited: Duration, stop: &Cancel) -> Result<()> {
        self.owed = (self.owed + worked * REST_FACTOR).saturating_sub(waited);
        if self.owed < REST {
            return Ok(());
        }
        self.owed = Duration::ZERO;
        let until = Deadline::after(REST);
        let nothing = Notify::default();
        nothing.wait(nothing.seen(), until).block(Deadline::never(), stop)
    }
}
