//! `/v2/fs/node/<node_id>` (spec: fs 3.3): a node's files through the gateway. The client talks to the
//! gateway's own server, whose exports are the node's: so each side negotiates, owns handles and is
//! disconnected by itself.

use super::Gateway;
use crate::base::{Cancel, Code, Deadline, Error, Result, id};
use crate::node::{Door, Entry, Export, Exports};
use crate::vfs::Who;
use crate::wire::fs::Hello;
use std::sync::Arc;

/// Time to reach the node for a hello.
const REACH_MS: u64 = 10_000;

pub struct RoutedDoor {
    gateway: Arc<Gateway>,
    node_id: String,
}

impl RoutedDoor {
    pub fn new(gateway: Arc<Gateway>, node_id: String) -> RoutedDoor {
        RoutedDoor { gateway, node_id }
    }
}

impl Door for RoutedDoor {
    fn enter(&self, hello: &Hello) -> Result<Entry> {
        let token = hello
            .auth_token
            .as_ref()
            .ok_or_else(|| Error::new(Code::Eperm, "missing auth_token in fs hello payload"))?;
        let state = self.gateway.control.plane.state();
        let node = state.node(&self.node_id);
        let known = node.is_ok_and(|n| id::same_secret(token, &n.secret));
        if !known {
            return Err(Error::new(Code::Eperm, "AuthFailed"));
        }
        let peer = self.gateway.nodes.peer(&self.node_id);
        let link = peer
            .link(Deadline::after_ms(REACH_MS), &Cancel::new())
            .map_err(|e| Error::new(Code::Eio, format!("node tunnel is unavailable: {e}")))?;
        let export = |e: &crate::wire::fs::Export| Export {
            name: e.name.clone(),
            tree: self.gateway.nodes.tree(&self.node_id, Some(&e.name)),
            ro: e.ro,
            desc: e.desc.clone(),
            source_kind: e.source_kind.clone(),
            source_id: e.source_id.clone(),
        };
        let exports = Arc::new(Exports::new(link.exports.iter().map(export).collect())?);
        let who = Who { principal: "node-client".into(), ..Who::default() };
        Ok(Entry { exports, who, name: link.name.clone() })
    }
}
