//! A connection to a node that has said hello: calls over it, and what it knows of the node. When one is
//! made, and what becomes of it, is not decided here.

use crate::base::{Cancel, Deadline, Error, Result, now_ms};
use crate::net::{CallError, Message, Mux};
use crate::wire::fs::{self, Call, Ext, Reply, Request, Slot, decode_bin_reply, decode_reply};
use std::sync::atomic::{AtomicI64, Ordering};
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
    /// What the other end said last, where that is that the node behind it is lost.
    pub behind: Mutex<Option<Error>>,
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
        let (op, bin) = (call.op(), self.ext.bin);
        let build = |tag| Request { tag: Some(tag), call, slot }.encode(bin);
        let message = self.mux.call(build, deadline, cancel)?;
        self.answered_ms.store(now_ms(), Ordering::Relaxed);
        let reply = read(op, &message);
        *self.behind() = reply.as_ref().err().filter(|e| e.is_peer_lost()).cloned();
        reply.map_err(|error| CallError { error, sent: true })
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
