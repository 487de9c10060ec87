//! What a node says to its gateway on the control channel (spec: fs 13.2): a connection, the handshake,
//! and the operations, each waited for.

use super::DIAL_TIMEOUT_MS;
use crate::base::{Cancel, Code, Deadline, Error, Result};
use crate::net::{DialOptions, Inbound, Message, Mux, Net, WsUrl};
use crate::wire::control::{self, Joined};
use crate::wire::{Fields, Object};

/// Ids of our requests, before their number.
const ID: &str = "fs-node-op-";

/// Where the gateway is, and how this node proves that it may talk.
#[derive(Clone)]
pub struct Way {
    pub url: WsUrl,
    /// Without one the node goes through `/v2/join`, which asks for none.
    pub token: Option<String>,
}

/// A connection that has said hello.
pub struct Control<'a> {
    mux: Mux,
    stop: &'a Cancel,
}

impl<'a> Control<'a> {
    /// Errors: as [`Net::dial`], and the gateway's own.
    pub fn open(net: &Net, way: &Way, stop: &'a Cancel) -> Result<Control<'a>> {
        let url = match way.token {
            Some(_) => way.url.clone(),
            None => way.url.clone().with_path("/v2/join"),
        };
        let options = DialOptions { bearer: way.token.clone(), ..DialOptions::default() };
        let deadline = Deadline::after_ms(DIAL_TIMEOUT_MS);
        let mux = Mux::dial(net, &url, &options, deadline, 1, Box::new(Replies))?;
        let control = Control { mux, stop };
        control.call("version", Object::new().put("protocol", control::PROTOCOL))?;
        control.call("connect", Object::new())?;
        Ok(control)
    }

    /// The reply's payload. Errors: the gateway's, under its code; `timeout`, `unavailable`,
    /// `cancelled`.
    pub fn call(&self, name: &str, payload: Object) -> Result<String> {
        let payload = payload.finish();
        let build = |tag| Message::text(control::request(name, &format!("{ID}{tag}"), &payload));
        let deadline = Deadline::after_ms(control::REPLY_TIMEOUT_MS);
        match self.mux.call(build, deadline, self.stop)? {
            Message::Text(text) => control::read_reply(name, &text),
            Message::Binary(_) => Err(nonsense(name, "is binary")),
        }
    }

    /// As [`Control::call`], for operations that answer with credentials.
    pub fn join(&self, name: &str, payload: Object) -> Result<Joined> {
        read_joined(name, &self.call(name, payload)?)
    }
}

pub fn read_joined(name: &str, payload: &str) -> Result<Joined> {
    let joined: Joined = serde_json::from_str(payload)
        .map_err(|e| nonsense(name, &format!("lacks something: {e}")))?;
    let filled = [&joined.node_id, &joined.node_secret, &joined.lease_token];
    if filled.iter().any(|s| s.is_empty()) {
        return Err(nonsense(name, "has empty credentials"));
    }
    Ok(joined)
}

pub fn nonsense(name: &str, what: &str) -> Error {
    Error::new(Code::Unavailable, format!("the gateway's reply to control.{name} {what}"))
}

/// Finds a reply's request by the number in its id. A connection that is refused outright gets a frame
/// without an id, which answers the first request; other frames were not asked for.
struct Replies;

impl Inbound for Replies {
    fn tag(&mut self, message: &Message) -> Option<u32> {
        let Message::Text(text) = message else { return None };
        if control::read_refusal(text).is_some() {
            return Some(1);
        }
        Fields::parse(text).ok()?.str("id").ok()??.strip_prefix(ID)?.parse().ok()
    }
}
