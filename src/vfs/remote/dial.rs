//! Connecting to a node by its URL (spec: fs 19.3).

use super::link::{Link, Told, Traffic, read};
use super::peer::{Connector, Hooks, WAITING_MAX};
use crate::base::{Cancel, Code, Deadline, Error, Result, ResultExt};
use crate::net::{Closed, DialOptions, Inbound, Limits, Message, Mux, Net, WsUrl};
use crate::wire::Envelope;
use crate::wire::fs::{
    Call, Event, Ext, Framing, Hello, HelloReply, Op, Reply, Request, decode_reply, frame_tag,
    text_tag,
};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// The usual silence after which a node is taken for lost.
pub const SILENCE: Duration = Duration::from_secs(8);
/// Requests in flight on one connection, those that wait for something to read included.
const INFLIGHT_MAX: usize = WAITING_MAX + 64;

/// A node at a URL.
#[derive(Clone)]
pub struct Dial {
    pub net: Arc<Net>,
    pub url: WsUrl,
    /// Bearer token of the HTTP upgrade, where the other end asks for one.
    pub bearer: Option<String>,
    /// What to say first.
    pub hello: Hello,
    /// What to offer.
    pub framing: Framing,
    /// A node that answers pings and has said nothing for so long is lost; after half of it, it is asked
    /// whether it is there.
    pub silence: Duration,
}

impl Connector for Dial {
    fn connect(&self, deadline: Deadline, hooks: Hooks) -> Result<Link> {
        let options = DialOptions { bearer: self.bearer.clone(), ..DialOptions::default() };
        let session = Some(hooks.session.to_string());
        let replies = Replies::new(hooks);
        let (refused, inbound) = (replies.refused.clone(), Box::new(replies));
        let mux = Mux::dial(&self.net, &self.url, &options, deadline, INFLIGHT_MAX, inbound)?;
        let ext = Ext { framing: self.framing, session, ..Ext::all() };
        let link = say_hello(mux, Hello { ext: Some(ext), ..self.hello.clone() }, deadline)
            .map_err(|e| refused.get().cloned().unwrap_or(e))?;
        expect_answers(&link, self.silence);
        Ok(link)
    }

    fn target(&self) -> String {
        self.url.to_string()
    }
}

/// Takes a node for lost that is silent for so long. Ours answers pings whatever it is busy with; an old
/// one answers nothing meanwhile, and is not held to it.
pub fn expect_answers(link: &Link, silence: Duration) {
    if let Some(conn) = link.mux.conn().filter(|_| link.is_ours()) {
        conn.set_limits(Limits { ping: silence / 2, idle: silence, ..conn.limits() });
    }
}

/// Negotiates on a fresh connection and asks for the exports.
pub fn say_hello(mux: Mux, hello: Hello, deadline: Deadline) -> Result<Link> {
    let hello = Hello { subscribe_invalidations: true, ..hello };
    let call = |call: Call| -> Result<Reply> {
        let op = call.op();
        let build = |tag| Request::new(tag, call).encode(Framing::Text);
        read(op, &mux.call(build, deadline, &Cancel::new())?)
    };
    let reply = call(Call::Hello(hello)).map_err(|e| match &*e.message {
        "AuthMissing" => e.context("the node asks for a token, and there is none for it"),
        "AuthFailed" => e.context("the node refuses the token"),
        _ => e.context("hello"),
    })?;
    let Reply::Hello(HelloReply::Node { name, caps, ext, .. }) = reply else {
        return Err(Error::new(Code::Unavailable, "the peer does not speak for a node"));
    };
    let Reply::Exports(exports) = call(Call::Exports).context("exports")? else {
        return Err(Error::new(Code::Unavailable, "the peer lists no exports"));
    };
    // The epoch is the peer's to give.
    let ext = ext.unwrap_or_default();
    let exports = Told { list: exports.into(), news: 0 }.into();
    let (answered_ms, behind) = (0.into(), Mutex::default());
    let traffic = Traffic::default();
    Ok(Link { mux, ext, caps, name, exports, epoch: 0, answered_ms, traffic, behind })
}

/// What comes in on a connection to a node.
pub struct Replies {
    hooks: Hooks,
    /// The number of the last event.
    seq: u64,
    /// Why the node will not talk, where it said so before it was asked anything.
    refused: Arc<OnceLock<Error>>,
}

impl Replies {
    pub fn new(hooks: Hooks) -> Replies {
        Replies { hooks, seq: 0, refused: Arc::default() }
    }
}

impl Inbound for Replies {
    fn tag(&mut self, message: &Message) -> Option<u32> {
        match message {
            Message::Text(text) => text_tag(text),
            Message::Binary(frame) => frame_tag(frame),
        }
    }

    fn event(&mut self, message: Message) {
        let Message::Text(text) = message else { return };
        let Ok(envelope) = Envelope::parse(&text) else { return };
        if envelope.name == "err_fs" {
            let _ = decode_reply(Op::Hello, &text).map_err(|e| self.refused.set(e));
        } else if let Some(event) = Event::decode(&envelope) {
            // Old nodes do not number their events.
            if let Ok(Some(seq)) = envelope.fields.u64("seq") {
                if seq != self.seq + 1 {
                    (self.hooks.event)(Event::Resync);
                }
                self.seq = seq;
            }
            (self.hooks.event)(event);
        }
    }

    fn lost(&mut self, why: &Closed) {
        (self.hooks.lost)(&why.error());
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
            | Op::Seek
            | Op::Getlk
            | Op::Exports
            | Op::Fsync
            | Op::Flush
    )
}
