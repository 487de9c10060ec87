//! What is kept of one event: who, from where, what, about what, and how it ended. Ids only: never a
//! payload, never a secret. A record's text in the store is its canonical form; its hash stands in the
//! next one.

use crate::base::{Code, Error, Result, id, now_ms};
use crate::control::session::{Principal, Session};
use crate::control::state::{Change, Counter, Node, State, project_id};
use crate::wire::{Fields, secret};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Bytes kept of anything that a client has named.
const TEXT_MAX: usize = 128;
/// Bytes looked at for it: a secret that is cut off here ends far behind what is kept.
const READ_MAX: usize = 1024;
/// Ids of one kind in one record.
const IDS_MAX: usize = 16;

/// How something ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Ok,
    Error,
}

/// An event, before it has its place in the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub timestamp_ms: i64,
    pub principal: Option<String>,
    pub role: Option<String>,
    pub agent_id: Option<String>,
    /// Address and port.
    pub peer: Option<String>,
    /// `control.` and an operation, or `connection.` and `accepted`, `refused` or `ended`.
    pub control_type: String,
    pub scope: String,
    pub correlation_id: Option<String>,
    pub result: Outcome,
    pub error_code: Option<String>,
    /// Ids of what it was about, by kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub about: BTreeMap<String, Vec<String>>,
    /// It stands for so many alike that were not recorded one by one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Entry {
    pub fn new(control_type: impl Into<String>) -> Entry {
        Entry {
            timestamp_ms: now_ms(),
            principal: None,
            role: None,
            agent_id: None,
            peer: None,
            control_type: control_type.into(),
            scope: "none".into(),
            correlation_id: None,
            result: Outcome::Ok,
            error_code: None,
            about: BTreeMap::new(),
            left_out: 0,
        }
    }

    pub fn by(self, principal: &Principal) -> Entry {
        Entry {
            principal: Some(bounded(&principal.name)),
            role: Some(principal.role.name().into()),
            ..self
        }
    }

    pub fn of(self, session: &Session) -> Entry {
        let agent_id = session.agent_id().map(bounded);
        Entry { agent_id, ..self.by(&session.principal) }.from(session.peer)
    }

    pub fn from(self, peer: Option<SocketAddr>) -> Entry {
        Entry { peer: peer.map(|p| p.to_string()), ..self }
    }

    pub fn correlated(self, correlation_id: Option<&str>) -> Entry {
        Entry { correlation_id: correlation_id.map(bounded), ..self }
    }

    pub fn failed(self, code: Code) -> Entry {
        Entry { result: Outcome::Error, error_code: Some(code.wire().into()), ..self }
    }

    /// Adds what `payload` names of `kinds`, where it has the form of an id.
    pub fn naming(mut self, payload: &Fields<'_>, kinds: &[&str]) -> Entry {
        for kind in kinds {
            if let Ok(Some(value)) = payload.str(kind)
                && id::is_identifier(&value, TEXT_MAX)
            {
                self.mention(kind, bounded(&value));
            }
        }
        self
    }

    /// Adds what `changes` have changed.
    pub fn changing(mut self, changes: &[Change]) -> Entry {
        for change in changes {
            match change {
                Change::PutNode(n) => self.mention("node_id", n.id()),
                Change::DeleteNode(n) => self.mention("node_id", format!("node-{n}")),
                Change::PutInvite(i) => self.mention("invite_id", i.id()),
                Change::DeleteInvite(n) => self.mention("invite_id", format!("invite-{n}")),
                Change::PutPending(p) => self.mention("request_id", p.id()),
                Change::DeletePending(n) => self.mention("request_id", format!("pending-join-{n}")),
                Change::PutProject(p) => self.mention("project_id", p.id()),
                Change::DeleteProject(p) => self.mention("project_id", p.id()),
                Change::Mount(placing) => self.mention("project_id", project_id(placing.project)),
                Change::Bind(placing) => self.mention("project_id", project_id(placing.project)),
                Change::Activate { agent_id, project } => {
                    self.mention("agent_id", bounded(agent_id));
                    self.mention("project_id", project_id(*project));
                }
                Change::Deactivate { agent_id } => self.mention("agent_id", bounded(agent_id)),
                Change::Last(..) | Change::ServiceEvent(_) => {}
            }
        }
        self
    }

    pub fn mention(&mut self, kind: &str, id: String) {
        let ids = self.about.entry(kind.to_owned()).or_default();
        if ids.len() < IDS_MAX && !ids.contains(&id) {
            ids.push(id);
        }
    }

    pub fn is_about(&self, id: &str) -> bool {
        self.about.values().flatten().any(|known| known == id)
    }
}

/// An entry and its place in the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub id: u64,
    /// Hash of the record before, in hex.
    pub prev: String,
    #[serde(flatten)]
    pub entry: Entry,
}

/// The end of a chain: the number of its last record, and the hash of that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub id: u64,
    pub hash: String,
}

impl Link {
    /// Before the first record.
    pub fn genesis() -> Link {
        Link { id: 0, hash: "0".repeat(64) }
    }

    /// The record that follows with `entry`, in its canonical form, and the chain's new end.
    pub fn extend(&self, entry: Entry) -> (Link, Vec<u8>) {
        let record = Record { id: self.id + 1, prev: self.hash.clone(), entry };
        let text = serde_json::to_vec(&record).expect("strings and numbers serialise");
        (Link { id: record.id, hash: hash(&text) }, text)
    }
}

pub fn parse(text: &[u8]) -> Result<Record> {
    serde_json::from_slice(text).map_err(|e| Error::invalid(format!("it cannot be read: {e}")))
}

/// SHA-256, in hex.
pub fn hash(text: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text);
    id::hex(digest.as_ref())
}

/// Text of a client's, as it may be kept: short, one line, without secrets.
pub fn bounded(text: &str) -> String {
    let read = &text[..text.floor_char_boundary(READ_MAX)];
    let masked = secret::mask(read);
    let kept = &masked[..masked.floor_char_boundary(TEXT_MAX)];
    kept.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Whether changes are those of every minute: a node has renewed its lease in time, or published what it
/// had published before.
pub fn is_routine(state: &State, changes: &[Change]) -> bool {
    let is_renewal = |new: &Node| {
        let Some(old) = state.nodes.get(&new.number) else { return false };
        let renewed = Node {
            lease_token: new.lease_token.clone(),
            last_seen_ms: new.last_seen_ms,
            lease_expires_at_ms: new.lease_expires_at_ms,
            ..(**old).clone()
        };
        renewed == *new
    };
    changes.iter().all(|change| match change {
        Change::PutNode(new) => is_renewal(new),
        Change::ServiceEvent(_) | Change::Last(Counter::ServiceEvent, _) => true,
        _ => false,
    })
}
