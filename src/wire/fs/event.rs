//! Invalidation events (spec: fs 6), and our `resync` (by negotiation: `ext` in the hello).

use super::{get_name, put_name};
use crate::wire::{Envelope, Fields, Object};
use std::ffi::OsString;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Attr {
        node: u64,
    },
    Data {
        node: u64,
        generation: Option<u64>,
    },
    All {
        node: u64,
        generation: Option<u64>,
    },
    Dir {
        dir: u64,
        /// Ours: the one entry that came, went or changed; absent, any may have.
        name: Option<OsString>,
    },
    /// Events were lost: forget everything.
    Resync,
}

impl Event {
    /// `seq` (ours, by negotiation) counts the events of a connection from 1: one that is missing shows.
    pub fn encode(&self, seq: Option<u64>) -> String {
        let (kind, payload) = match *self {
            Event::Attr { node } => ("inval", Object::new().put("node", node).put("what", "attr")),
            Event::Data { node, generation } => {
                let o = Object::new().put("node", node).put("what", "data");
                ("inval", o.put_some("gen", generation))
            }
            Event::All { node, generation } => {
                let o = Object::new().put("node", node).put("what", "all");
                ("inval", o.put_some("gen", generation))
            }
            Event::Dir { dir, ref name } => {
                let o = Object::new().put("dir", dir);
                let o = match name {
                    Some(name) => put_name(o, "name", name),
                    None => o,
                };
                ("inval_dir", o)
            }
            Event::Resync => ("resync", Object::new()),
        };
        Object::new()
            .put("channel", "acheron")
            .put("type", format_args!("acheron.e_fs_{kind}"))
            .put_some("seq", seq)
            .object("payload", payload)
            .finish()
    }

    /// The event in a message, if it is one. What cannot be understood counts as `Resync`, for
    /// something did change.
    pub fn decode(envelope: &Envelope<'_>) -> Option<Event> {
        let name = envelope.name.strip_prefix("e_fs_")?;
        let payload = Fields::parse(envelope.payload()).unwrap_or_default();
        Some(Event::read(name, &payload).unwrap_or(Event::Resync))
    }

    fn read(name: &str, f: &Fields<'_>) -> Option<Event> {
        if name == "inval_dir" {
            return Some(Event::Dir { dir: f.u64("dir").ok()??, name: get_name(f, "name").ok()? });
        }
        if name != "inval" {
            return None;
        }
        let node = f.u64("node").ok()??;
        let generation = f.u64("gen").ok()?;
        Some(match f.str("what").ok()?.as_deref() {
            Some("attr") => Event::Attr { node },
            Some("data") => Event::Data { node, generation },
            _ => Event::All { node, generation },
        })
    }
}
