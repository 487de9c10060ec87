//! Invalidation events (spec: fs 6), and our `resync` (by negotiation: `ext` in the hello).

use crate::wire::{Envelope, Fields, Object};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    },
    /// Events were lost: forget everything.
    Resync,
}

impl Event {
    pub fn encode(&self) -> String {
        let (name, payload) = match *self {
            Event::Attr { node } => ("inval", Object::new().put("node", node).put("what", "attr")),
            Event::Data { node, generation } => {
                let o = Object::new().put("node", node).put("what", "data");
                ("inval", o.put_some("gen", generation))
            }
            Event::All { node, generation } => {
                let o = Object::new().put("node", node).put("what", "all");
                ("inval", o.put_some("gen", generation))
            }
            Event::Dir { dir } => ("inval_dir", Object::new().put("dir", dir)),
            Event::Resync => ("resync", Object::new()),
        };
        Object::new()
            .put("channel", "acheron")
            .put("type", format_args!("acheron.e_fs_{name}"))
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
            return Some(Event::Dir { dir: f.u64("dir").ok()?? });
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
