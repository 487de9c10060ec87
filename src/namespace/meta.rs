//! `/meta`: what this namespace is, and what it shows (spec: namespace 11).

use super::{World, described, document};
use crate::base::{Result, now_ms};
use crate::control::workspace::{self, Viewer};
use crate::vfs::Cx;
use crate::vfs::synthetic::{Item, dir, fixed, text};
use crate::wire::acheron;
use serde_json::json;

pub(super) fn place(world: &World) -> Item {
    let files = ["protocol.json", "view.json", "workspace_status.json"];
    let mut entries = described(
        "Meta",
        "What this namespace is, and the state of the workspace in it.",
        json!({"kind": "meta", "entries": files}),
        super::read_only(),
    );
    let protocol = json!({"channel": "acheron", "version": acheron::VERSION, "layout": "world-v1",
        "ops": acheron::REQUESTS});
    entries.push(("protocol.json".into(), fixed(protocol.to_string())));
    let view = world.clone();
    entries.push((
        "view.json".into(),
        document(move |cx| {
            let state = view.plane.state();
            Ok(json!({"agent_id": cx.who.agent_id, "project_id": cx.who.project_id,
            "show_debug": false, "nodes": state.nodes.size(), "visible_agents": 1,
            "aliases": {"/global/chat": "/agents/self/chat", "/global/jobs": "/agents/self/jobs"}}))
        }),
    ));
    let status = world.clone();
    entries.push(("workspace_status.json".into(), text(move |cx| workspace_status(&status, cx))));
    dir(entries)
}

/// The same document as `control.workspace_status`, without the secrets: files are copied around.
fn workspace_status(world: &World, cx: &Cx) -> Result<String> {
    let state = world.plane.state();
    let project = cx.who.project_id.as_deref().and_then(|id| state.project(id).ok());
    let viewer =
        Viewer { agent_id: &cx.who.agent_id, admin: false, token: cx.who.project_token.as_deref() };
    Ok(workspace::status(&state, project.map(|p| &**p), viewer, now_ms()).finish())
}
