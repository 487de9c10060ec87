//! What a node says to its gateway on the control channel (spec: fs 13.2): a connection, the handshake,
//! and the operations, each waited for.

use super::DIAL_TIMEOUT_MS;
use crate::base::{Cancel, Code, Deadline, Error, Result};
use crate::net::{self, Net, WsUrl};
use crate::wire::Object;
use crate::wire::control::{self, Joined};

/// Where the gateway is, and how this node proves that it may talk.
#[derive(Clone)]
pub struct Way {
    pub url: WsUrl,
    /// Without one the node goes through `/v2/join`, which asks for none.
    pub token: Option<String>,
}

/// A connection that has shaken hands.
pub struct Control<'a> {
    control: net::Control,
    stop: &'a Cancel,
}

impl<'a> Control<'a> {
    /// Errors: as [`Net::dial`], and the gateway's own.
    pub fn open(net: &Net, way: &Way, stop: &'a Cancel) -> Result<Control<'a>> {
        let url = match way.token {
            Some(_) => way.url.clone(),
            None => way.url.clone().with_path("/v2/join"),
        };
        let deadline = Deadline::after_ms(DIAL_TIMEOUT_MS);
        let control =
            net::Control::open(net, &url, way.token.clone(), "fs-node-op", deadline, stop)?;
        Ok(Control { control, stop })
    }

    /// The reply's payload. Errors: the gateway's, under its code; `timeout`, `unavailable`,
    /// `cancelled`.
    pub fn call(&self, name: &str, payload: Object) -> Result<String> {
        let deadline = Deadline::after_ms(control::REPLY_TIMEOUT_MS);
        self.control.call(name, &payload.finish(), deadline, self.stop)
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
