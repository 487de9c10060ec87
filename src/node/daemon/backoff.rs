//! Waiting between attempts: longer each time, and not at the same moment as everybody else.

use crate::base::id;

/// The first wait and the longest (spec: fs 13.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub base_ms: u64,
    pub max_ms: u64,
}

/// Doublings, so that nothing overflows.
const DOUBLINGS_MAX: u32 = 20;

impl Backoff {
    /// The wait after `failures` failures in a row: doubled for each, of which a random half is kept.
    pub fn after_ms(&self, failures: u32) -> u64 {
        let doubled =
            self.base_ms.saturating_mul(1 << failures.saturating_sub(1).min(DOUBLINGS_MAX));
        let whole = doubled.min(self.max_ms);
        whole - id::random_u53() % (whole / 2 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let b = Backoff { base_ms: 100, max_ms: 1000 };
        for (failures, whole) in
            [(0, 100), (1, 100), (2, 200), (4, 800), (5, 1000), (u32::MAX, 1000)]
        {
            let ms = b.after_ms(failures);
            assert!((whole / 2..=whole).contains(&ms), "{failures}: {ms}");
        }
    }
}
