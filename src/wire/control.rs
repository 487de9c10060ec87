//! The control channel (spec: control 3): type names, the reply and error envelopes, and the payloads
//! that more than one program reads.

use super::{Envelope, Fields, Frame, Object};
use crate::base::{Code, Error, Result};
use serde::{Deserialize, Serialize};

/// The protocol that `control.version` must name.
pub const PROTOCOL: &str = "unified-v2";

/// How long a client waits for a control reply (spec: fs 13.2).
pub const REPLY_TIMEOUT_MS: u64 = 45_000;

/// Names that are known but are no requests (spec: control 3.3).
pub const RESPONSES: [&str; 5] =
    ["version_ack", "connect_ack", "pong", "node_service_event", "error"];

/// The type that answers a request (spec: control 3.2).
pub fn reply_name(request: &str) -> &str {
    match request {
        "version" => "version_ack",
        "connect" => "connect_ack",
        "ping" => "pong",
        same => same,
    }
}

/// The same with what stands before it: requests about runs have none (design: control channel).
fn reply_type(request: &str) -> String {
    match request.strip_prefix("agent_run_") {
        Some(verb) => format!("agent.run.{verb}"),
        None => format!("control.{}", reply_name(request)),
    }
}

pub fn request(name: &str, id: &str, payload: &str) -> String {
    let o = Object::new().put("channel", "control").put("type", format_args!("control.{name}"));
    o.put("id", id).raw("payload", payload).finish()
}

/// Bytes around the payload of a reply; more costs a copy.
const HEAD_LIKELY: usize = 160;

/// The reply to request `name`. `payload` is a JSON object.
pub fn reply(name: &str, id: Option<&str>, payload: &str) -> Frame {
    let o = Object::with_capacity(payload.len() + HEAD_LIKELY)
        .put("channel", "control")
        .put("type", reply_type(name))
        .put_some("id", id)
        .put("ok", true);
    Frame::Text(o.raw("payload", payload).finish())
}

/// Whether an error object carries `correlation_id`: only those of the plane's operations do
/// (spec: control 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Correlation<'a> {
    Omitted,
    Shown(Option<&'a str>),
}

pub fn error(id: Option<&str>, correlation: Correlation<'_>, e: &Error) -> Frame {
    let mut error = Object::new().put("code", e.code.wire()).put("message", &e.message);
    if let Correlation::Shown(correlation_id) = correlation {
        error = error.put("correlation_id", correlation_id);
    }
    let o = Object::new().put("channel", "control").put("type", "control.error").put_some("id", id);
    Frame::Text(o.put("ok", false).object("error", error).finish())
}

/// The frame without a `channel` that refuses a connection before any protocol started
/// (spec: control 2.2).
pub fn refusal(code: Code, message: &str, now_ms: i64) -> Frame {
    let o = Object::new().put("type", "error").put("request", "unknown").put("code", code.wire());
    Frame::Text(o.put("message", message).put("timestamp", now_ms).finish())
}

/// What a client makes of the reply to its request: the payload as JSON text. Errors: the gateway's
/// own, under its code (`control_plane_error` for a code unknown here); `unavailable` for nonsense.
pub fn read_reply(request: &str, text: &str) -> Result<String> {
    let nonsense = |what: &str| {
        Error::new(Code::Unavailable, format!("the gateway's reply to control.{request} {what}"))
    };
    // A connection that is refused outright gets a frame of an older form.
    if let Some(refused) = read_refusal(text) {
        return Err(refused);
    }
    let e = Envelope::parse(text).map_err(|m| nonsense(m.fault))?;
    if e.name == "error" {
        let error = e.fields.object("error")?.unwrap_or_default();
        let code = error.str("code")?.unwrap_or_default();
        let message = error.string("message")?.unwrap_or_default();
        return Err(match Code::from_wire(&code) {
            Some(code) => Error::new(code, message),
            None => Error::new(Code::ControlPlaneError, format!("{code}: {message}")),
        });
    }
    if e.name != reply_name(request) {
        return Err(nonsense("is of another type"));
    }
    Ok(e.payload().to_owned())
}

/// The error in a [`refusal`], if the text is one.
pub fn read_refusal(text: &str) -> Option<Error> {
    let f = Fields::parse(text).ok()?;
    if f.has("channel") || f.str("type").ok()?? != "error" {
        return None;
    }
    let message = f.string("message").ok()??;
    match Code::from_wire(&f.str("code").ok()??)? {
        Code::ProviderAuthFailed => Some(Error::new(
            Code::Forbidden,
            format!(
                "the gateway refused the token ({message}); give one with --auth-token or SPIDERWEB_AUTH_TOKEN"
            ),
        )),
        code => Some(Error::new(code, message)),
    }
}

/// The `id` of a message on the control channel.
pub fn text_id(text: &str) -> Option<String> {
    Fields::parse(text).ok()?.string("id").ok()?
}

/// What a node runs on (spec: control 8.5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    pub os: String,
    pub arch: String,
    pub runtime_kind: String,
}

impl Default for Platform {
    fn default() -> Platform {
        let unknown = || String::from("unknown");
        Platform { os: unknown(), arch: unknown(), runtime_kind: unknown() }
    }
}

impl Platform {
    /// That of this program.
    pub fn here() -> Platform {
        Platform {
            os: std::env::consts::OS.into(),
            arch: std::env::consts::ARCH.into(),
            runtime_kind: "native".into(),
        }
    }
}

/// The credentials that join, approval and refresh return (spec: control 8.5, "join payload").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    pub node_id: String,
    #[serde(default)]
    pub node_name: String,
    #[serde(default)]
    pub fs_url: String,
    pub node_secret: String,
    pub lease_token: String,
    #[serde(default)]
    pub platform: Platform,
    #[serde(default)]
    pub lease_expires_at_ms: i64,
}

/// A mount of a workspace as `workspace_status` shows it (spec: control 8.7, "M").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceMount {
    pub mount_path: String,
    pub node_id: String,
    pub export_name: String,
    pub node_name: Option<String>,
    pub fs_url: Option<String>,
    pub fs_auth_token: Option<String>,
    #[serde(default)]
    pub online: bool,
    pub state: MountState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountState {
    Missing,
    Degraded,
    Online,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_and_errors_are_understood_by_the_other_side() {
        let Frame::Text(ack) = reply("version", Some("1"), r#"{"protocol":"unified-v2"}"#) else {
            panic!()
        };
        assert_eq!(read_reply("version", &ack).unwrap(), r#"{"protocol":"unified-v2"}"#);
        assert!(read_reply("connect", &ack).unwrap_err().is_peer_lost());
        let e = Error::new(Code::NodeNotFound, "no node-7");
        let Frame::Text(text) = error(Some("2"), Correlation::Shown(None), &e) else { panic!() };
        assert_eq!(read_reply("node_get", &text).unwrap_err(), e);
        assert!(text.contains(r#""correlation_id":null"#));
        let Frame::Text(text) = error(None, Correlation::Omitted, &e) else { panic!() };
        assert!(!text.contains("correlation_id") && !text.contains("\"id\""));
    }

    #[test]
    fn a_refused_connection_tells_what_to_do() {
        let Frame::Text(text) = refusal(Code::ProviderAuthFailed, "forbidden", 1) else { panic!() };
        let e = read_reply("version", &text).unwrap_err();
        assert!(e.code == Code::Forbidden && e.message.contains("--auth-token"));
    }
}
