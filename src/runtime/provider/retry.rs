//! The one policy by which a provider is asked again.

use super::{Call, Delta, Failure, Provider, ProviderError, Request, Response};
use crate::base::{Deadline, Notify, id};
use std::time::Duration;

/// Times that one question is put at most.
const ATTEMPTS_MAX: u32 = 4;
/// The first wait is about this long, each further one twice as long as the one before.
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(8);

/// Told before a wait. What came of the answer so far is void.
pub struct Retry<'a> {
    /// Attempts made.
    pub attempt: u32,
    pub delay: Duration,
    pub error: &'a ProviderError,
}

/// What [`stream`] reports while it runs.
pub trait Observer {
    fn delta(&mut self, delta: Delta<'_>);
    fn retry(&mut self, retry: &Retry<'_>);
}

/// Asks until there is an answer, an error that asking again does not mend, or no time left.
pub fn stream(
    provider: &dyn Provider,
    request: &Request<'_>,
    call: &Call,
    observer: &mut dyn Observer,
) -> Result<Response, ProviderError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let error = match provider.stream(request, call, &mut |delta| observer.delta(delta)) {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        let delay = error.retry_after.unwrap_or_else(|| backoff(attempt));
        if !error.failure.is_transient() || attempt == ATTEMPTS_MAX || delay >= call.deadline.left()
        {
            return Err(error);
        }
        observer.retry(&Retry { attempt, delay, error: &error });
        // Nobody notifies: the wait ends with the delay, or with the cancellation.
        let until = Deadline::after(delay);
        let nobody = Notify::default();
        if nobody.wait(nobody.seen(), until).block(call.deadline, &call.cancel).is_err() {
            return Err(match call.cancel.is_cancelled() {
                true => ProviderError::new(Failure::Cancelled, "cancelled"),
                false => error,
            });
        }
    }
}

/// Between half and the whole of the step, so that many clients do not come back at the same moment.
fn backoff(attempt: u32) -> Duration {
    let step = BACKOFF.saturating_mul(1 << (attempt - 1).min(16)).min(BACKOFF_MAX);
    let jitter = (id::random_u53() % 1000) as f64 / 1000.0;
    step.mul_f64(0.5 + jitter / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_with_jitter_up_to_a_bound() {
        for attempt in 1..40 {
            let step = BACKOFF.saturating_mul(1 << (attempt - 1).min(16)).min(BACKOFF_MAX);
            let delay = backoff(attempt);
            assert!(delay >= step / 2 && delay <= step, "{attempt}: {delay:?}");
        }
    }
}
