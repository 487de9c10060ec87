//! The world tree that a session sees (spec: namespace): one file per place, each a table of functions
//! over what the control plane and the runtime know. It keeps nothing itself; node files and project
//! mounts are laid over it by whoever holds their trees.

mod agents;
mod chat;
mod jobs;
mod meta;
mod nodes;

use crate::base::Result;
use crate::control::Plane;
use crate::runtime::Runtime;
use crate::vfs::synthetic::{Item, Synthetic, dir, fixed, text};
use crate::vfs::{Cx, Tree};
use serde_json::{Value, json};
use std::sync::Arc;

/// What the places are made of.
#[derive(Clone)]
pub struct World {
    pub plane: Arc<Plane>,
    pub runtime: Arc<Runtime>,
}

impl World {
    /// The tree. What is in it depends on who asks, so one serves all.
    pub fn tree(&self) -> Result<Arc<dyn Tree>> {
        let agent = agents::own(self);
        let root = dir([
            ("agents", agents::place(&agent)),
            ("nodes", nodes::place(self)),
            ("global", agents::global(&agent)),
            ("meta", meta::place(self)),
        ]);
        Ok(Arc::new(Synthetic::new(root)?))
    }
}

/// README.md, SCHEMA.json and CAPS.json: what every place says of itself (spec: namespace 3.3).
fn described(title: &str, readme: &str, schema: Value, caps: Value) -> Vec<(String, Item)> {
    vec![
        ("README.md".into(), fixed(format!("# {title}\n\n{readme}\n"))),
        ("SCHEMA.json".into(), fixed(schema.to_string())),
        ("CAPS.json".into(), fixed(caps.to_string())),
    ]
}

/// The capabilities of a plain collection.
fn read_only() -> Value {
    json!({"read": true, "write": false})
}

/// A file of JSON that is made when it is read.
fn document(make: impl Fn(&Cx) -> Result<Value> + Send + Sync + 'static) -> Item {
    text(move |cx| make(cx).map(|v| v.to_string()))
}
