//! `/nodes`: every node that has joined, with what it says of itself (spec: namespace 9). Its files,
//! `/nodes/<id>/fs`, are a tree of their own that the gateway lays over this one.

use super::{World, described, document};
use crate::base::{Result, now_ms};
use crate::control::state::Node;
use crate::vfs::synthetic::{Item, dir, listing};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) fn place(world: &World) -> Item {
    let about = described(
        "Nodes",
        "The machines of this network. `<node_id>/fs` holds the directories that a node exports.",
        json!({"kind": "collection", "entries": "node directories",
               "shape": "/nodes/<node_id>/{services,fs,camera,screen,user,terminal}"}),
        super::read_only(),
    );
    let (all, one) = (world.clone(), world.clone());
    let by_name = about.clone();
    listing(
        move |_, name| match by_name.iter().find(|(n, _)| n == name) {
            Some((_, item)) => Ok(item.clone()),
            None => Ok(node(&one, one.plane.state().node(name)?)),
        },
        move |_| {
            let state = all.plane.state();
            let nodes = state.nodes.values().map(|n| (n.id(), node(&all, n)));
            Ok(about.iter().cloned().chain(nodes).collect())
        },
    )
}

/// The directory of a node. Its documents are made from what the node is when they are read.
fn node(world: &World, node: &Arc<Node>) -> Item {
    let mut entries = described(
        &node.id(),
        "What this node is and offers; its exported directories are in `fs`.",
        json!({"kind": "node", "children": "services + mount roots"}),
        json!({"fs": true, "camera": false, "screen": false, "user": false, "terminal": false}),
    );
    entries.push(("NODE.json".into(), about(world, node, described_node)));
    entries.push(("STATUS.json".into(), about(world, node, status)));
    entries.push(("services".into(), dir([("SERVICES.json", about(world, node, services))])));
    dir(entries)
}

/// A document about a node, as it is when read.
fn about(world: &World, node: &Node, make: fn(&Node) -> Value) -> Item {
    let (world, id) = (world.clone(), node.id());
    document(move |_| -> Result<Value> { Ok(make(world.plane.state().node(&id)?)) })
}

fn described_node(n: &Node) -> Value {
    json!({"node": {"node_id": n.id(), "node_name": n.name, "fs_url": n.fs_url, "platform": n.platform,
        "service_count": n.services.len(), "joined_at_ms": n.joined_at_ms,
        "last_seen_ms": n.last_seen_ms, "lease_expires_at_ms": n.lease_expires_at_ms}})
}

fn status(n: &Node) -> Value {
    let online = n.online(now_ms());
    json!({"node_id": n.id(), "node_name": n.name, "state": if online { "online" } else { "degraded" },
        "online": online, "lease_expires_at_ms": n.lease_expires_at_ms,
        "last_seen_ms": n.last_seen_ms, "joined_at_ms": n.joined_at_ms, "fs_url": n.fs_url,
        "source": "control_plane"})
}

fn services(n: &Node) -> Value {
    let member = |s: &Value, key: &str| s.get(key).cloned().unwrap_or_default();
    let one = |s: &crate::control::state::Service| {
        let endpoint = s.document["endpoints"].get(0).cloned().unwrap_or_default();
        json!({"service_id": s.service_id, "kind": member(&s.document, "kind"),
               "state": member(&s.document, "state"), "endpoint": endpoint})
    };
    n.services.iter().map(one).collect()
}
