//! Why a provider failed, decided from its status and error code, never from the wording of its message
//! (spec: runtime 11).

use crate::base::{Code, Error};
use serde_json::Value;
use std::time::Duration;

/// Longest text of a provider's that is passed on, in bytes.
const MESSAGE_MAX: usize = 1000;

/// What kind of trouble it is, and so what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    RateLimited,
    /// The account has run dry: waiting does not help.
    QuotaExceeded,
    Auth,
    MissingKey,
    ModelNotFound,
    /// The request itself is wrong.
    Invalid,
    Timeout,
    Unavailable,
    /// The answer makes no sense.
    Protocol,
    /// The model gave up.
    Failed,
    Cancelled,
}

impl Failure {
    pub fn code(self) -> Code {
        match self {
            Failure::RateLimited | Failure::QuotaExceeded => Code::ProviderRateLimited,
            Failure::Auth => Code::ProviderAuthFailed,
            Failure::MissingKey => Code::MissingApiKey,
            Failure::ModelNotFound => Code::ModelNotFound,
            Failure::Invalid => Code::ProviderRequestInvalid,
            Failure::Timeout => Code::ProviderTimeout,
            Failure::Unavailable => Code::ProviderUnavailable,
            Failure::Protocol | Failure::Failed => Code::ExecutionFailed,
            Failure::Cancelled => Code::RuntimeCancelled,
        }
    }

    /// Whether asking again may help.
    pub fn is_transient(self) -> bool {
        matches!(self, Failure::RateLimited | Failure::Timeout | Failure::Unavailable)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderError {
    pub failure: Failure,
    /// HTTP status, where there was one.
    pub status: Option<u16>,
    /// The provider's own name for it.
    pub provider_code: Option<String>,
    /// How long the provider asked to be left alone.
    pub retry_after: Option<Duration>,
    pub message: String,
}

impl ProviderError {
    pub fn new(failure: Failure, message: impl Into<String>) -> ProviderError {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MESSAGE_MAX));
        ProviderError { failure, status: None, provider_code: None, retry_after: None, message }
    }

    /// From an error object of the provider's, `{"code"|"type","message"}`, and the HTTP status if any.
    /// The code decides where it is known, the status where it is not.
    pub fn from_body(status: Option<u16>, error: &Value) -> ProviderError {
        let text = |name: &str| error[name].as_str().map(str::to_owned);
        let failure = [error["code"].as_str(), error["type"].as_str()]
            .into_iter()
            .flatten()
            .find_map(by_code)
            .or(status.map(by_status))
            .unwrap_or(Failure::Failed);
        let said = text("message").unwrap_or_else(|| "the provider gave no reason".into());
        let message = match status {
            Some(status) => format!("HTTP {status}: {said}"),
            None => said,
        };
        ProviderError {
            status,
            provider_code: text("code").or_else(|| text("type")),
            ..ProviderError::new(failure, message)
        }
    }
}

fn by_code(code: &str) -> Option<Failure> {
    Some(match code {
        "rate_limit_exceeded" => Failure::RateLimited,
        "insufficient_quota"
        | "usage_limit_reached"
        | "usage_not_included"
        | "billing_hard_limit_reached" => Failure::QuotaExceeded,
        "invalid_api_key" | "account_deactivated" => Failure::Auth,
        "model_not_found" => Failure::ModelNotFound,
        "context_length_exceeded" | "invalid_prompt" | "invalid_request_error" => Failure::Invalid,
        "server_error" | "server_is_overloaded" | "slow_down" => Failure::Unavailable,
        _ => return None,
    })
}

fn by_status(status: u16) -> Failure {
    match status {
        401 | 403 => Failure::Auth,
        408 => Failure::Timeout,
        429 => Failure::RateLimited,
        409 | 425 | 500.. => Failure::Unavailable,
        _ => Failure::Invalid,
    }
}

impl From<ProviderError> for Error {
    fn from(e: ProviderError) -> Error {
        Error::new(e.failure.code(), e.message)
    }
}

/// How long a `Retry-After` header asks to wait: seconds, or an HTTP date (RFC 9110, 10.2.3).
pub(super) fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    // "Wed, 21 Oct 2015 07:28:00 GMT"
    let parts: Vec<&str> = value.split_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = parts[..] else { return None };
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = MONTHS.iter().position(|m| *m == month)? + 1;
    let when = humantime::parse_rfc3339(&format!("{year}-{month:02}-{day:0>2}T{time}Z")).ok()?;
    Some(when.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn codes_decide_before_statuses() {
        let failure = |status, error: Value| ProviderError::from_body(status, &error).failure;
        assert_eq!(
            failure(Some(429), json!({"code": "insufficient_quota"})),
            Failure::QuotaExceeded
        );
        assert_eq!(failure(Some(429), json!({"message": "slow"})), Failure::RateLimited);
        assert_eq!(failure(Some(404), json!({"code": "model_not_found"})), Failure::ModelNotFound);
        assert_eq!(failure(Some(400), json!({"message": "limit 429 rate"})), Failure::Invalid);
        assert_eq!(failure(Some(529), json!(null)), Failure::Unavailable);
        assert_eq!(failure(None, json!({"code": "server_error"})), Failure::Unavailable);
        assert_eq!(failure(None, json!({"code": "odd"})), Failure::Failed);
        let e = ProviderError::from_body(Some(500), &json!({"message": "é".repeat(2000)}));
        assert!(e.message.len() <= MESSAGE_MAX && e.message.starts_with("HTTP 500: é"));
    }

    #[test]
    fn retry_after_in_both_forms() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("0.25"), Some(Duration::from_millis(250)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert!(retry_after("Wed, 01 Jan 2200 07:28:00 GMT").unwrap().as_secs() > 1 << 30);
        assert_eq!((retry_after("soon"), retry_after("-1")), (None, None));
    }
}
