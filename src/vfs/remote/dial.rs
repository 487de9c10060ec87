//! Connecting to a node by its URL (spec: fs 19.3).

use super::peer::{Connector, Hooks, Link, WAITING_MAX, read};
use crate::base::{Cancel, Code, Deadline, Error, Result, ResultExt};
use crate::net::{Closed, DialOptions, Inbound, Message, Mux, Net, WsUrl};
use crate::wire::Envelope;
use crate::wire::fs::{
    Call, Event, Ext, Hello, HelloReply, Op, Reply, Request, frame_tag, text_tag,
};
use std::sync::Arc;

/// Requests in flight on one connection, those that wait for something to read included.
const INFLIGHT_MAX: usize = WAITING_MAX + 64;

/// A node at a URL.
pub struct Dial {
    pub net: Arc<Net>,
    pub url: WsUrl,
    /// Bearer token of the HTTP upgrade, where the other end asks for one.
    pub bearer: Option<String>,
    /// What to say first.
    pub hello: Hello,
    /// Offer to move file data in binary frames.
    pub binary: bool,
}

impl Connector for Dial {
    fn connect(&self, deadline: Deadline, hooks: Hooks) -> Result<Link> {
        let options = DialOptions { bearer: self.bearer.clone(), ..DialOptions::default() };
        let inbound = Box::new(Replies(hooks));
        let mux = Mux::dial(&self.net, &self.url, &options, deadline, INFLIGHT_MAX, inbound)?;
        let ext = Ext { bin: self.binary, ..Ext::all() };
        say_hello(mux, Hello { ext: Some(ext), ..self.hello.clone() }, deadline)
    }

    fn target(&self) -> String {
        self.url.to_string()
    }
}

/// Negotiates on a fresh connection and asks for the exports.
pub fn say_hello(mux: Mux, hello: Hello, deadline: Deadline) -> Result<Link> {
    let hello = Hello { subscribe_invalidations: true, ..hello };
    let call = |call: Call| -> Result<Reply> {
        let op = call.op();
        let build = |tag| Message::from(Request { tag: Some(tag), call }.encode(false));
        read(op, &mux.call(build, deadline, &Cancel::new())?)
    };
    let reply = call(Call::Hello(hello)).context("hello")?;
    let Reply::Hello(HelloReply::Node { name, caps, ext, .. }) = reply else {
        return Err(Error::new(Code::Unavailable, "the peer does not speak for a node"));
    };
    let Reply::Exports(exports) = call(Call::Exports).context("exports")? else {
        return Err(Error::new(Code::Unavailable, "the peer lists no exports"));
    };
    // The epoch is the peer's to give.
    let ext = ext.unwrap_or_default();
    Ok(Link { mux, ext, caps, name, exports, epoch: 0, answered_ms: 0.into() })
}

/// What comes in on a connection to a node.
pub struct Replies(pub Hooks);

impl Inbound for Replies {
    fn tag(&mut self, message: &Message) -> Option<u32> {
        match message {
            Message::Text(text) => text_tag(text),
            Message::Binary(frame) => frame_tag(frame),
        }
    }

    fn event(&mut self, message: Message) {
        if let Message::Text(text) = message
            && let Ok(envelope) = Envelope::parse(&text)
            && let Some(event) = Event::decode(&envelope)
        {
            (self.0.event)(event);
        }
    }

    fn lost(&mut self, why: &Closed) {
        (self.0.lost)(&why.error());
    }
}

/// True for operations that change nothing, so that they may be asked twice.
pub(super) fn is_harmless(op: Op) -> bool {
    matches!(
        op,
        Op::Lookup
            | Op::Getattr
            | Op::Readdirp
            | Op::Read
            | Op::Readlink
            | Op::Getxattr
            | Op::Listxattr
            | Op::Statfs
            | Op::Walk
            | Op::Exports
            | Op::Fsync
            | Op::Flush
    )
}
