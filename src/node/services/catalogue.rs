//! What a node tells its gateway of its services (spec: fs 14.1): the files themselves, its terminals,
//! and what manifests describe.

use super::manifest::Manifest;
use super::probe::Probe;
use serde_json::{Value, json};

/// The exports as a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Files {
    pub export_count: usize,
    /// At least one can be written.
    pub writable: bool,
}

fn roles() -> Value {
    json!({"default": "deny-by-default", "allow_roles": ["admin", "user"]})
}

fn mount(id: &str, path: &str, state: &str) -> Value {
    json!({"mount_id": id, "mount_path": path, "state": state})
}

/// `exports`: the names of all exports, those of services too, so that a gateway can tell a wrong one.
pub fn files(files: Files, exports: &[String], node_id: &str) -> Value {
    let path = format!("/nodes/{node_id}/fs");
    let mut permissions = roles();
    permissions["fs_roots"] = "export-scoped".into();
    json!({"service_id": "fs", "kind": "fs", "version": "1", "state": "online",
        "endpoints": [path], "mounts": [mount("fs", &path, "online")],
        "capabilities": {"rw": files.writable, "export_count": files.export_count,
            "exports": exports},
        "ops": {"model": "namespace", "style": "plan9"},
        "runtime": {"type": "builtin", "abi": "namespace-driver-v1"},
        "permissions": permissions,
        "schema": {"model": "namespace-mount"},
        "help_md": "The directories that this node exports."})
}

/// The name of a terminal as a service.
pub fn terminal_service(id: &str) -> String {
    format!("terminal-{id}")
}

pub fn terminal(id: &str, node_id: &str) -> Value {
    let (service_id, path) = (terminal_service(id), format!("/nodes/{node_id}/terminal/{id}"));
    let mut permissions = roles();
    permissions["device"] = "terminal".into();
    json!({"service_id": service_id, "kind": "terminal", "version": "1", "state": "online",
        "endpoints": [path], "mounts": [mount(&service_id, &path, "online")],
        "capabilities": {"pty": true, "terminal_id": id, "invoke": true},
        "ops": {"model": "namespace", "style": "plan9", "interactive": true,
            "invoke": "control/invoke.json",
            "paths": {"exec": "control/invoke.json", "pty": "pty/new"}},
        "runtime": {"type": "native_proc", "abi": "namespace-driver-v1",
            "entry": "internal-terminal-invoke"},
        "permissions": permissions,
        "schema": {"model": "namespace-service-v1"},
        "help_md": terminal_help(id)})
}

pub fn terminal_help(id: &str) -> String {
    format!(
        "# Terminal {id}\n\nWrite `{{\"command\":\"ls\"}}` to `control/invoke.json`; `result.json` then \
         holds its output.\n\nAn interactive session begins with a write of \
         `{{\"argv\":[\"/bin/sh\"],\"cols\":80,\"rows\":24}}` to `pty/new`, which names it. Read its \
         output from `pty/<n>/io`, which waits for more, and write keys there. `pty/<n>/control` takes \
         `{{\"resize\":{{\"cols\":100,\"rows\":30}}}}`, `{{\"signal\":\"INT\"}}` and `close`.\n"
    )
}

/// A service of a manifest, with what is seen of its program.
pub fn service(m: &Manifest, probe: Option<&Probe>, node_id: &str) -> Value {
    let placed = |path: &str| path.replace("{node_id}", node_id);
    let state = probe.map_or(&*m.state, |p| p.state());
    let endpoints: Vec<_> = m.endpoints.iter().map(|e| placed(e)).collect();
    let mount_of = |x: &super::manifest::Mount| {
        let own = x.state.as_deref().unwrap_or(&m.state);
        mount(&x.mount_id, &placed(&x.mount_path), probe.map_or(own, |p| p.state()))
    };
    let mut entry = json!({"service_id": m.service_id, "kind": m.kind, "version": m.version,
        "state": state, "endpoints": endpoints,
        "mounts": m.mounts.iter().map(mount_of).collect::<Vec<_>>(),
        "capabilities": m.capabilities, "ops": m.ops, "runtime": m.runtime,
        "permissions": m.permissions,
        "schema": m.schema.clone().unwrap_or_else(|| json!({"model": "namespace-mount"}))});
    if let Some(help) = &m.help_md {
        entry["help_md"] = help.as_str().into();
    }
    if let Some(probe) = probe {
        entry["runtime"]["supervision_status"] = probe.to_json();
    }
    entry
}
