//! version, connect, ping, metrics (spec: control 8.1).

use super::Call;
use crate::base::{Code, Error, Result};
use crate::control::state::{MOTHER, Project, SYSTEM, State};
use crate::wire::control::PROTOCOL;
use crate::wire::{Object, acheron, fs};

pub(super) fn version(call: &mut Call<'_>) -> Result<Object> {
    let mismatch = |what: &'static str| Error::new(Code::ProtocolMismatch, what);
    if !call.has_payload {
        return Err(mismatch("MissingField"));
    }
    let protocol = call.payload.str("protocol").map_err(|_| mismatch("InvalidType"))?;
    if protocol.ok_or_else(|| mismatch("MissingField"))? != PROTOCOL {
        return Err(mismatch("ProtocolMismatch"));
    }
    call.session.negotiated = true;
    // Both spellings: of the clients of this time and of the later ones (spec: control 8.1).
    Ok(Object::new()
        .put("protocol", PROTOCOL)
        .put("fsrpc_runtime", acheron::VERSION)
        .put("fsrpc_node", fs::PROTOCOL)
        .put("fsrpc_node_proto", fs::PROTO)
        .put("acheron_runtime", acheron::VERSION)
        .put("acheron_node", fs::PROTOCOL)
        .put("acheron_node_proto", fs::PROTO))
}

pub(super) fn ping(_: &mut Call<'_>) -> Result<Object> {
    Ok(Object::new())
}

pub(super) fn metrics(call: &mut Call<'_>) -> Result<Object> {
    Ok((call.cx.figures)())
}

pub(super) fn connect(call: &mut Call<'_>) -> Result<Object> {
    let state = call.cx.plane.state();
    let bootstrap = call.cx.bootstrap_only(&state);
    let session = &*call.session;
    let gate = session.gate(bootstrap);
    let active = session.session(session.active_key()).ok();
    let actor = active.map_or_else(|| session.usual_actor(), |a| a.actor.clone());
    // Without a binding there is nobody to act for; old clients want a name to show all the same.
    let agent_id = session.agent_id().unwrap_or(MOTHER);
    let binding = session.active();
    let project_id = binding.map_or(Some(SYSTEM), |b| b.project_id.as_deref());
    let project = project_id.and_then(|id| state.project(id).ok()).map(|p| &**p);
    let setup = setup_hint(call, &state, project, bootstrap);
    let token = binding.and_then(|b| b.project_token.as_deref());
    let shown = project.filter(|_| binding.is_some());
    let workspace = call.workspace(&state, shown, call.viewer(token));
    let gate = gate.map(|g| {
        let e = g.error();
        serde_json::json!({"code": e.code.wire(), "message": e.message})
    });
    let bootstrap_message = (bootstrap && session.is_admin())
        .then_some("No project or agent exists yet; create one with control.project_up.");
    Ok(Object::new()
        .put("agent_id", agent_id)
        .put("actor_type", actor.kind)
        .put("actor_id", actor.id)
        .put("project_id", project_id)
        .object("workspace", workspace)
        .put("session", session.active_key())
        .put("protocol", PROTOCOL)
        .put("role", session.principal.role.name())
        .put("bootstrap_only", bootstrap)
        .put("bootstrap_message", bootstrap_message)
        .put("project_setup_required", setup.is_some())
        .put("project_setup_message", setup)
        .put("project_setup_project_id", project_id)
        .put("project_setup_project_vision", shown.filter(|p| !p.is_system()).map(|p| &p.vision))
        .put("requires_session_attach", gate.is_some())
        .put("connect_gate", gate))
}

/// What an admin, or the people of a project, should do next (spec: control 4.2).
fn setup_hint(
    call: &Call<'_>,
    state: &State,
    project: Option<&Project>,
    bootstrap: bool,
) -> Option<&'static str> {
    let project = match project {
        Some(p) if !p.is_system() => p,
        _ => {
            let admin = bootstrap && call.session.is_admin();
            return admin.then_some("Create the first project and agent with control.project_up.");
        }
    };
    let staffed = state.agents_in(project.number).any(|agent| agent != MOTHER);
    if !staffed {
        Some("No agent works in this project; attach one.")
    } else if project.mounts.is_empty() {
        Some("This project has no mounts.")
    } else if project.vision.is_empty() {
        Some("This project has no vision.")
    } else {
        None
    }
}
