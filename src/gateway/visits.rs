//! What is recorded of connections: who was let in and went, who was refused. Who that is, is decided at the
//! doors.

use super::debug::Stream;
use crate::base::Code;
use crate::control::Principal;
use crate::control::audit::{Audit, Entry, bounded};
use crate::control::topics::SecurityEvent;
use std::net::SocketAddr;
use std::sync::Arc;

/// Where visits are recorded.
#[derive(Clone)]
pub struct Visits {
    audit: Arc<Audit>,
    stream: Arc<Stream>,
}

impl Visits {
    pub fn new(audit: Arc<Audit>, stream: Arc<Stream>) -> Visits {
        Visits { audit, stream }
    }

    /// Somebody was let in at an endpoint, to a node if it is about one.
    pub fn begin(&self, who: &Principal, peer: SocketAddr, place: Place<'_>) -> Visit {
        let entry = place.named(Entry::new("connection.accepted").by(who).from(Some(peer)));
        let ended = Entry { control_type: "connection.ended".into(), ..entry.clone() };
        self.audit.note(entry);
        Visit { audit: self.audit.clone(), ended }
    }

    /// Somebody was not let in; `who`, where that is known.
    pub fn refused(
        &self,
        who: Option<&Principal>,
        peer: SocketAddr,
        place: Place<'_>,
        code: Code,
        message: &str,
    ) {
        let entry = Entry::new("connection.refused").from(Some(peer)).failed(code);
        let entry = place.named(who.into_iter().fold(entry, Entry::by));
        let event = SecurityEvent::new("connection_refused", &entry, Some(message));
        if self.audit.note(entry) {
            self.stream.security(event);
        }
    }
}

/// Where somebody comes in.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    Endpoint(&'a str),
    Node(&'a str),
    /// Where nothing is.
    Nowhere,
}

impl Place<'_> {
    fn named(self, mut entry: Entry) -> Entry {
        match self {
            Place::Endpoint(path) => entry.mention("endpoint", bounded(path)),
            Place::Node(node_id) => entry.mention("node_id", bounded(node_id)),
            Place::Nowhere => {}
        }
        entry
    }
}

/// Somebody who was let in; has gone when this is dropped.
pub struct Visit {
    audit: Arc<Audit>,
    ended: Entry,
}

impl Drop for Visit {
    fn drop(&mut self) {
        let ended = Entry { timestamp_ms: crate::base::now_ms(), ..self.ended.clone() };
        self.audit.note(ended);
    }
}
