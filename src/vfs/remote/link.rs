//! A connection to a node that has said hello: calls over it, and what it knows of the node. When one is
//! made, and what becomes of it, is not decided here.

use crate::base::{Cancel, Deadline, Error, Result, now_ms};
use crate::net::{CallError, Message, Mux};
use crate::wire::Frame;
use crate::wire::fs::{
    self, Call, Ext, Framing, Reply, Request, Slot, decode_bin_reply, decode_reply,
};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A connection that has said hello.
pub struct Link {
    pub mux: Mux,
    /// What the node accepted of our extensions; nothing from an old one.
    pub ext: Ext,
    pub caps: fs::Caps,
    pub name: String,
    pub(super) exports: Mutex<Told>,
    /// Ids and handles of one epoch mean nothing in another. A session that was resumed stays in its
    /// own.
    pub epoch: u64,
    /// When the node last answered, in Unix milliseconds.
    pub answered_ms: AtomicI64,
    pub(super) traffic: Traffic,
    /// What the other end said last, where that is that the node behind it is lost.
    pub behind: Mutex<Option<Error>>,
}

/// Bytes of requests and replies.
#[derive(Default)]
pub(super) struct Traffic {
    raw: AtomicU64,
    wire: AtomicU64,
}

impl Traffic {
    fn count(&self, raw: usize, wire: usize) {
        self.raw.fetch_add(raw as u64, Ordering::Relaxed);
        self.wire.fetch_add(wire as u64, Ordering::Relaxed);
    }

    fn sent(&self, frame: &Frame) {
        match frame {
            Frame::Text(text) => self.count(text.len(), text.len()),
            Frame::Binary { head, data } => self.count(fs::raw_len(head), head.len() + data.len()),
        }
    }

    fn received(&self, message: &Message) {
        match message {
            Message::Text(text) => self.count(text.len(), text.len()),
            Message::Binary(frame) => self.count(fs::raw_len(frame), frame.len()),
        }
    }
}

/// How a connection moves what it moves, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineStatus {
    pub compressed: bool,
    /// Of requests and their replies, before compression and as they travelled.
    pub raw_bytes: u64,
    pub wire_bytes: u64,
}

/// What a node exports, as it said last.
pub(super) struct Told {
    pub list: Arc<[fs::Export]>,
    /// [`Peer::export_news`] when it was asked.
    pub news: u64,
}

impl Link {
    /// True where requests can be numbered.
    pub fn has_session(&self) -> bool {
        self.ext.session.is_some()
    }

    /// What the node exports, as it said last.
    pub fn exports(&self) -> Arc<[fs::Export]> {
        self.told().list.clone()
    }

    pub(super) fn told(&self) -> MutexGuard<'_, Told> {
        self.exports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True for a node that speaks our extensions.
    pub fn is_ours(&self) -> bool {
        self.ext != Ext::default()
    }

    /// Sends a call and waits for its reply. Errors: the node's; with `sent` false where the node
    /// certainly has not seen it.
    pub fn call(
        &self,
        call: Call,
        deadline: Deadline,
        cancel: &Cancel,
    ) -> Result<Reply, CallError> {
        self.call_numbered(call, None, deadline, cancel)
    }

    /// As [`Link::call`]; with a slot it can be sent again in the same session and takes effect once.
    pub fn call_numbered(
        &self,
        call: Call,
        slot: Option<Slot>,
        deadline: Deadline,
        cancel: &Cancel,
    ) -> Result<Reply, CallError> {
        let op = call.op();
        let build = |tag| {
            let frame = Request { tag: Some(tag), call, slot }.encode(self.ext.framing);
            self.traffic.sent(&frame);
            frame
        };
        let message = self.mux.call(build, deadline, cancel)?;
        self.traffic.received(&message);
        self.answered_ms.store(now_ms(), Ordering::Relaxed);
        let reply = read(op, &message);
        *self.behind() = reply.as_ref().err().filter(|e| e.is_peer_lost()).cloned();
        reply.map_err(|error| CallError { error, sent: true })
    }

    pub fn line(&self) -> LineStatus {
        LineStatus {
            compressed: self.ext.framing == Framing::Lz4,
            raw_bytes: self.traffic.raw.load(Ordering::Relaxed),
            wire_bytes: self.traffic.wire.load(Ordering::Relaxed),
        }
    }

    pub(super) fn behind(&self) -> MutexGuard<'_, Option<Error>> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a reply says.
pub fn read(op: fs::Op, message: &Message) -> Result<Reply> {
    match message {
        Message::Text(text) => decode_reply(op, text),
        Message::Binary(frame) => decode_bin_reply(op, frame),
    }
}
