//! One POST whose answer is read as it comes, and which ends within the deadline and at once on
//! cancellation.

use super::error::retry_after;
use super::{Call, Failure, ProviderError};
use crate::base::OnCancel;
use serde_json::Value;
use std::io::Read;
use std::time::Duration;
use ureq::http::{HeaderMap, Uri};

/// Longest wait for a name to be resolved, and for a connection, TLS included: neither can be cancelled.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer to a refused request that is looked at.
const ERROR_BODY_MAX: u64 = 64 * 1024;

/// The body of a successful answer.
pub(super) struct Body<'c> {
    reader: ureq::BodyReader<'static>,
    url: &'c str,
    call: &'c Call,
    _cancel: OnCancel,
}

impl Body<'_> {
    /// Some of the bytes; 0 at the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ProviderError> {
        self.reader.read(buffer).map_err(|e| failed(self.url, self.call, &e.into()))
    }
}

/// Sends `body` with a bearer token. Errors: what the provider answered, unless its status was a success.
pub(super) fn post<'c>(
    url: &'c str,
    bearer: &str,
    body: &Value,
    call: &'c Call,
) -> Result<Body<'c>, ProviderError> {
    let agent = agent(url, call);
    let cancel = call.cancel.on_cancel({
        let agent = agent.clone();
        move || agent.shutdown()
    });
    let answer = agent
        .post(url)
        .header("authorization", format!("Bearer {bearer}"))
        .header("content-type", "application/json")
        .header("accept", "text/event-stream")
        // A compressed stream comes in lumps.
        .header("accept-encoding", "identity")
        .send(body.to_string())
        .map_err(|e| failed(url, call, &e))?;
    let (head, body) = answer.into_parts();
    let mut body = Body { reader: body.into_reader(), url, call, _cancel: cancel };
    match head.status.as_u16() {
        200..=299 => Ok(body),
        status => Err(refused(status, &head.headers, &mut body)),
    }
}

/// An agent of its own: shutting it down is how a call is cancelled.
fn agent(url: &str, call: &Call) -> ureq::Agent {
    let left = call.deadline.left().max(Duration::from_millis(1));
    let connect = left.min(CONNECT_TIMEOUT);
    let mut config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_global(Some(left))
        .timeout_resolve(Some(connect))
        .timeout_connect(Some(connect))
        .user_agent(concat!("spiderweb/", env!("CARGO_PKG_VERSION")));
    if is_loopback(url) {
        config = config.proxy(None);
    }
    config.build().new_agent()
}

fn is_loopback(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn refused(status: u16, headers: &HeaderMap, body: &mut Body<'_>) -> ProviderError {
    let mut text = Vec::new();
    // What cannot be read of an error's explanation changes nothing about the error.
    let _ = (&mut body.reader).take(ERROR_BODY_MAX).read_to_end(&mut text);
    let answer: Value = serde_json::from_slice(&text).unwrap_or(Value::Null);
    let mut error = ProviderError::from_body(Some(status), &answer["error"]);
    if answer.is_null() && !text.is_empty() {
        let text = String::from_utf8_lossy(&text);
        error = ProviderError {
            status: error.status,
            ..ProviderError::new(error.failure, format!("HTTP {status}: {}", text.trim()))
        };
    }
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let in_ms = header("retry-after-ms").and_then(|v| v.parse().ok()).map(Duration::from_millis);
    error.retry_after = in_ms.or_else(|| header("retry-after").and_then(retry_after));
    error
}

/// What it means that the transport failed.
fn failed(url: &str, call: &Call, e: &ureq::Error) -> ProviderError {
    if call.cancel.is_cancelled() {
        return ProviderError::new(Failure::Cancelled, "cancelled");
    }
    let failure = match e {
        _ if call.deadline.passed() => Failure::Timeout,
        ureq::Error::Timeout(ureq::Timeout::Global) => Failure::Timeout,
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => Failure::Invalid,
        ureq::Error::Protocol(_) | ureq::Error::Decompress(..) => Failure::Protocol,
        _ => Failure::Unavailable,
    };
    ProviderError::new(failure, format!("{url}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_addresses_in_every_spelling() {
        for url in ["http://localhost:1/v1", "http://127.0.0.2/", "https://[::1]:9/x"] {
            assert!(is_loopback(url), "{url}");
        }
        for url in ["https://api.openai.com/v1", "http://localhost.example/", "http://10.0.0.1"] {
            assert!(!is_loopback(url), "{url}");
        }
    }
}
