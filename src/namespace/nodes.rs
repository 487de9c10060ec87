//! `/nodes`: every node that has joined, with what it says of itself and its services (spec: namespace 9).
//! Its files, `/nodes/<id>/fs`, and the files of services are trees of their own that the gateway lays over
//! this one.

use super::{World, described, document};
use crate::base::{Code, Error, Result, now_ms};
use crate::control::policy::Asker;
use crate::control::state::{Node, Service, State};
use crate::vfs::Cx;
use crate::vfs::synthetic::{Item, dir, listing, text};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) fn place(world: &World) -> Item {
    let about = described(
        "Nodes",
        "The machines of this network. `<node_id>/fs` holds the directory that a node exports, \
         `<node_id>/services` says what it runs.",
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
        "What this node is and offers. Its exported directories are in `fs`, each of its services stands \
         where `services` says.",
        json!({"kind": "node", "children": "services + mount roots"}),
        capabilities(node),
    );
    entries.push(("NODE.json".into(), about(world, node, described_node)));
    entries.push(("STATUS.json".into(), about(world, node, status)));
    entries.push(("services".into(), services(world, &node.id())));
    dir(entries)
}

/// A document about a node, as it is when read.
fn about(world: &World, node: &Node, make: fn(&Node) -> Value) -> Item {
    let (world, id) = (world.clone(), node.id());
    document(move |_| -> Result<Value> { Ok(make(world.plane.state().node(&id)?)) })
}

/// What is offered by kind of service (spec: namespace 9.2).
fn capabilities(n: &Node) -> Value {
    let has = |kind: &str| n.services.iter().any(|s| s.kind() == kind);
    json!({"fs": n.shows_files(), "camera": has("camera"), "screen": has("screen"),
        "user": has("user"), "terminal": has("terminal")})
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

/// The node's catalogue: a directory for each service that the caller may use.
fn services(world: &World, node_id: &str) -> Item {
    let about_all = described(
        "Services",
        "What this node runs. `<service_id>/MOUNTS.json` says where a service stands; write a JSON object \
         to `control/invoke.json` there, or here, and read `result.json`.",
        json!({"kind": "collection", "entries": "service directories",
               "shape": "/nodes/<node_id>/services/<service_id>"}),
        super::read_only(),
    );
    let (all, one, listed) = (world.clone(), world.clone(), world.clone());
    let (id, of_list, of_index) = (node_id.to_owned(), node_id.to_owned(), node_id.to_owned());
    let index = document(move |cx| {
        let state = listed.plane.state();
        let node = state.node(&of_index)?;
        let told = offered(&state, cx, node).map(|s| brief(node, s));
        Ok(told.collect())
    });
    let mut fixed = about_all;
    fixed.push(("SERVICES.json".into(), index));
    let by_name = fixed.clone();
    listing(
        move |cx, name| {
            if let Some((_, item)) = by_name.iter().find(|(n, _)| n == name) {
                return Ok(item.clone());
            }
            let state = one.plane.state();
            let found = offered(&state, cx, state.node(&id)?).find(|s| s.service_id == name);
            found.map(|s| service(&one, &id, s)).ok_or_else(|| no_service(&id, name))
        },
        move |cx| {
            let state = all.plane.state();
            let node = state.node(&of_list)?;
            let is_fixed = |s: &&Service| fixed.iter().any(|(n, _)| *n == s.service_id);
            let shown = offered(&state, cx, node).filter(|s| !is_fixed(s));
            let found = shown.map(|s| (s.service_id.clone(), service(&all, &of_list, s)));
            Ok(fixed.iter().cloned().chain(found).collect())
        },
    )
}

fn no_service(node_id: &str, name: &str) -> Error {
    Error::new(Code::Enoent, format!("{node_id} has no service {name:?} here"))
}

/// What the caller sees of a node's services. Others are not there.
fn offered<'n>(state: &'n State, cx: &'n Cx, node: &'n Node) -> impl Iterator<Item = &'n Service> {
    let (who, project_id) = (&cx.who, cx.who.project_id.as_deref());
    let token = who.project_token.as_deref();
    let asker = Asker { admin: who.admin, agent_id: Some(&who.agent_id), token };
    let all = node.services.iter().filter(|s| s.has_a_name());
    all.filter(move |s| s.admits(state, project_id, asker))
}

fn brief(node: &Node, s: &Service) -> Value {
    json!({"service_id": s.service_id, "kind": s.kind(), "state": s.state(),
        "endpoint": s.endpoint(&node.id())})
}

/// What the catalogue says of one service (spec: namespace 9.2). The files of a service that runs lie
/// over it, as long as its node can be reached (spec: namespace 9.6).
fn service(world: &World, node_id: &str, service: &Service) -> Item {
    let service_id = &*service.service_id;
    let member =
        |name: &'static str| told(world, node_id, service_id, move |_, s| s.document[name].clone());
    let help = {
        let (world, node_id, service_id) =
            (world.clone(), node_id.to_owned(), service_id.to_owned());
        text(move |cx| with(&world, cx, &node_id, &service_id, |_, s| readme(s)))
    };
    let mut entries = vec![
        ("README.md", help),
        ("SCHEMA.json", member("schema")),
        ("CAPS.json", member("capabilities")),
        ("MOUNTS.json", member("mounts")),
        ("OPS.json", member("ops")),
        ("RUNTIME.json", member("runtime")),
        ("PERMISSIONS.json", member("permissions")),
        ("STATUS.json", told(world, node_id, service_id, brief)),
    ];
    if service.runs() {
        let lost = |name: &'static str| (name, told(world, node_id, service_id, unreachable));
        entries.extend(["status.json", "result.json"].map(lost));
    }
    dir(entries)
}

fn unreachable(node: &Node, _: &Service) -> Value {
    json!({"state": "unreachable", "error": format!("{} cannot be reached", node.id())})
}

fn readme(s: &Service) -> String {
    let help = s.document["help_md"].as_str();
    let stock = || format!("# {}\n\nA service of kind {}.\n", s.service_id, s.kind());
    help.map_or_else(stock, str::to_owned)
}

/// A document about a service, as it is when read.
fn told(
    world: &World,
    node_id: &str,
    service_id: &str,
    make: impl Fn(&Node, &Service) -> Value + Send + Sync + 'static,
) -> Item {
    let (world, node_id, service_id) = (world.clone(), node_id.to_owned(), service_id.to_owned());
    document(move |cx| with(&world, cx, &node_id, &service_id, &make))
}

/// Errors: ENOENT for a service that is gone, or not for this caller.
fn with<T>(
    world: &World,
    cx: &Cx,
    node_id: &str,
    service_id: &str,
    make: impl Fn(&Node, &Service) -> T,
) -> Result<T> {
    let state = world.plane.state();
    let node = state.node(node_id)?;
    let found = offered(&state, cx, node).find(|s| s.service_id == service_id);
    found.map(|s| make(node, s)).ok_or_else(|| no_service(node_id, service_id))
}
