//! What is counted of the questions that are put to models.

use super::{ProviderError, Response};
use crate::base::{Requests, Total};
use std::time::Instant;

/// Totals since the start, of all providers.
#[derive(Debug, Default)]
pub struct Asked {
    /// One for each question, its retries included.
    pub calls: Requests,
    pub retries: Total,
    /// Tokens as [`super::Usage`] tells them.
    pub input: Total,
    pub cache_read: Total,
    pub output: Total,
    pub reasoning: Total,
}

impl Asked {
    /// A question that was put at `since` has come to its end.
    pub fn done(&self, since: Instant, outcome: &Result<Response, ProviderError>) {
        self.calls.done(Some(since), outcome.as_ref().err().map(|e| e.failure.code()));
        if let Ok(Response { usage, .. }) = outcome {
            self.input.add(usage.input);
            self.cache_read.add(usage.cache_read);
            self.output.add(usage.output);
            self.reasoning.add(usage.reasoning);
        }
    }
}
