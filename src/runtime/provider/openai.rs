//! OpenAI's Responses API: `POST {base}/responses`, answered with server-sent events
//! (spec: runtime 5.2, 5.3).

mod answer;
mod request;

use super::http;
use super::sse::Sse;
use super::{Call, Delta, Failure, Provider, ProviderError, Request, Response, Row, Setup};
use crate::base::Result;
use crate::config::credentials::{Credentials, Wanted};
use std::sync::Arc;

const BASE_URL: &str = "https://api.openai.com/v1";

struct OpenAi {
    url: String,
    credentials: Arc<Credentials>,
    wanted: Wanted<'static>,
}

pub(super) fn make(row: &Row, setup: &Setup<'_>) -> Result<Arc<dyn Provider>> {
    // The setting is about the configured provider; an agent that names another one gets its usual place.
    let base = setup.settings.base_url.as_deref().filter(|_| setup.settings.name == row.name);
    Ok(Arc::new(OpenAi {
        url: format!("{}/responses", base.unwrap_or(BASE_URL).trim_end_matches('/')),
        credentials: setup.credentials.clone(),
        wanted: row.wanted(),
    }))
}

impl Provider for OpenAi {
    fn stream(
        &self,
        request: &Request<'_>,
        call: &Call,
        on: &mut dyn FnMut(Delta<'_>),
    ) -> Result<Response, ProviderError> {
        let key = self
            .credentials
            .find(self.wanted)
            .map_err(|e| ProviderError::new(Failure::MissingKey, e.message.into_owned()))?;
        let mut body = http::post(&self.url, key.expose(), &request::body(request), call)?;
        let mut answer = answer::Answer::new(request.model);
        let mut sse = Sse::default();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let n = body.read(&mut buffer)?;
            if n == 0 {
                let cut = "the provider's answer ended in the middle";
                return Err(ProviderError::new(Failure::Unavailable, cut));
            }
            let mut ended = Ok(None);
            let pushed = sse.push(&buffer[..n], |data| {
                ended = answer.event(data, on);
                matches!(ended, Ok(None))
            });
            if pushed.is_err() {
                let large = "the provider's answer is too large";
                return Err(ProviderError::new(Failure::Protocol, large));
            }
            if let Some(response) = ended? {
                return Ok(response);
            }
        }
    }
}
