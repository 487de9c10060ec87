//! The sessions of a connection (spec: control 8.3).

use super::{Call, identifier};
use crate::base::{Code, Error, Result};
use crate::control::policy::{self, Action, Asker};
use crate::control::session::{MAIN, SESSIONS_MAX};
use crate::control::state::{Change, MOTHER, Project, SYSTEM, State};
use crate::control::{Binding, workspace};
use crate::wire::Object;

pub(super) fn attach(call: &mut Call<'_>) -> Result<Object> {
    let key = session_key(&call.payload.required("session_key")?)?;
    let agent_id = agent_id(call.payload.required("agent_id")?)?;
    let project_id = identifier("project_id", call.payload.required("project_id")?, 128)?;
    let existing = call.session.bindings.get(&key).cloned();
    // The same session and agent: the token need not be repeated.
    let inherited = existing.as_ref().filter(|b| b.agent_id == agent_id);
    let token = call.project_token()?.or_else(|| inherited.and_then(|b| b.project_token.clone()));
    system_rules(call, &agent_id, &project_id)?;
    let binding = Binding { agent_id, project_id: Some(project_id.clone()), project_token: token };
    busy_rules(call, existing.as_ref(), &binding)?;
    if existing.is_none() && call.session.bindings.len() >= SESSIONS_MAX {
        return Err(Error::new(
            Code::LimitExceeded,
            format!("this connection holds {SESSIONS_MAX} sessions; close one first"),
        ));
    }
    let asker = Asker {
        admin: call.session.is_admin(),
        agent_id: Some(&binding.agent_id),
        token: binding.project_token.as_deref(),
    };
    // Looked at before the agent is made: a refused attach leaves nothing behind.
    policy::check(call.cx.plane.state().project(&project_id)?, Action::Read, asker)?;
    call.cx.agents.ensure(&binding.agent_id)?;
    call.cx.plane.mutate(|state, _| {
        Ok(((), activation(state, &binding.agent_id, state.project(&project_id)?, asker)?))
    })?;
    call.session.bindings.insert(key.clone(), binding);
    call.session.active.clone_from(&key);
    described(call, &key)
}

/// The changes that make `project` the project of an agent (spec: control 8.8, project_activate).
pub(super) fn activation(
    state: &State,
    agent_id: &str,
    project: &Project,
    asker: Asker<'_>,
) -> Result<Vec<Change>> {
    policy::check(project, Action::Read, asker)?;
    if agent_id == MOTHER && !project.is_system() && !asker.admin {
        return Err(Error::new(
            Code::ProjectAssignmentForbidden,
            "agent mother stays in the system project",
        ));
    }
    if state.active.get(agent_id) == Some(&project.number) {
        return Ok(Vec::new());
    }
    Ok(vec![Change::Activate { agent_id: agent_id.into(), project: project.number }])
}

/// Mother is for admins, and belongs to the system project (spec: control 5.3).
fn system_rules(call: &Call<'_>, agent_id: &str, project_id: &str) -> Result<()> {
    let forbidden = |what: &'static str| Err(Error::new(Code::Forbidden, what));
    if !call.session.is_admin() && agent_id == MOTHER {
        return forbidden("user role cannot attach to mother agent");
    }
    if !call.session.is_admin() && project_id == SYSTEM {
        return forbidden("user role cannot attach to the system project");
    }
    if agent_id == MOTHER && project_id != SYSTEM {
        return forbidden("mother can only attach to system project");
    }
    Ok(())
}

/// An agent at work is not moved away from its work.
fn busy_rules(call: &Call<'_>, existing: Option<&Binding>, new: &Binding) -> Result<()> {
    let busy = |agent_id: &str| {
        Err(Error::new(
            Code::SessionBusy,
            format!("agent {agent_id} has a job queued or running; wait for it"),
        ))
    };
    if let Some(old) = existing
        && (old.agent_id != new.agent_id || old.project_id != new.project_id)
        && call.cx.agents.busy(&old.agent_id)
    {
        return busy(&old.agent_id);
    }
    let state = call.cx.plane.state();
    let here = state.active_project(&new.agent_id).map(|p| p.id());
    if here.is_some() && here != new.project_id && call.cx.agents.busy(&new.agent_id) {
        return busy(&new.agent_id);
    }
    Ok(())
}

pub(super) fn list(call: &mut Call<'_>) -> Result<Object> {
    let session = &*call.session;
    let one = |(key, b): (&String, &Binding)| {
        Object::new()
            .put("session_key", key)
            .put("agent_id", &b.agent_id)
            .put("actor_type", "user")
            .put("actor_id", &session.principal.name)
            .put("project_id", &b.project_id)
            .finish()
    };
    let list: Vec<_> = session.bindings.iter().map(one).collect();
    let o = Object::new().put("active_session", session.active_key());
    Ok(o.raw("sessions", &format!("[{}]", list.join(","))))
}

pub(super) fn status(call: &mut Call<'_>) -> Result<Object> {
    let key = match call.payload.string("session_key")? {
        Some(key) => session_key(&key)?,
        None => call.session.active.clone(),
    };
    let binding = bound(call, &key)?;
    let now_ms = super::now();
    Ok(Object::new()
        .put("session_key", &key)
        .put("agent_id", &binding.agent_id)
        .put("actor_type", "user")
        .put("actor_id", &call.session.principal.name)
        .put("project_id", &binding.project_id)
        .object("attach", ready(now_ms))
        .put("session_last_activity_ms", now_ms)
        .put("session_stale", false)
        .put("agent_last_heartbeat_ms", now_ms)
        .put("agent_stale", false)
        .put("recoverable", true))
}

pub(super) fn resume(call: &mut Call<'_>) -> Result<Object> {
    let key = session_key(&call.payload.required("session_key")?)?;
    bound(call, &key)?;
    call.session.active.clone_from(&key);
    described(call, &key)
}

pub(super) fn close(call: &mut Call<'_>) -> Result<Object> {
    let key = session_key(&call.payload.required("session_key")?)?;
    if key == MAIN {
        return Err(Error::new(Code::Forbidden, "session main cannot be closed"));
    }
    bound(call, &key)?;
    call.session.bindings.remove(&key);
    if call.session.active == key {
        call.session.active = MAIN.into();
    }
    Ok(Object::new()
        .put("session_key", key)
        .put("closed", true)
        .put("active_session", call.session.active_key()))
}

fn bound<'c>(call: &'c Call<'_>, key: &str) -> Result<&'c Binding> {
    call.session.binding(Some(key)).map_err(|e| e.recode(Code::NotFound))
}

/// The reply of attach and resume.
fn described(call: &Call<'_>, key: &str) -> Result<Object> {
    let binding = bound(call, key)?;
    let state = call.cx.plane.state();
    let project = binding.project_id.as_deref().and_then(|id| state.project(id).ok());
    let viewer = call.viewer(binding.project_token.as_deref());
    let now_ms = super::now();
    Ok(Object::new()
        .put("session_key", key)
        .put("agent_id", &binding.agent_id)
        .put("actor_type", "user")
        .put("actor_id", &call.session.principal.name)
        .put("project_id", &binding.project_id)
        .object("workspace", workspace::status(&state, project.map(|p| &**p), viewer, now_ms))
        .object("attach", ready(now_ms)))
}

/// The attach state (spec: control 8.3). There is nothing to warm up: the namespace is made as it is
/// read.
fn ready(now_ms: i64) -> Object {
    Object::new()
        .put("state", "ready")
        .put("runtime_ready", true)
        .put("mount_ready", true)
        .put("error_code", None::<&str>)
        .put("error_message", None::<&str>)
        .put("updated_at_ms", now_ms)
}

fn session_key(key: &str) -> Result<String> {
    let fits = (1..=128).contains(&key.len())
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-'));
    if !fits {
        return Err(Error::new(
            Code::InvalidPayload,
            "session_key must be 1 to 128 characters of A-Z a-z 0-9 . _ : -",
        ));
    }
    Ok(key.to_owned())
}

/// An agent id: 1 to 64 of `[A-Za-z0-9_-]` (spec: control 7).
pub(super) fn agent_id(id: String) -> Result<String> {
    if id.contains('.') || id == "self" {
        return Err(Error::new(
            Code::InvalidPayload,
            "agent_id must be 1 to 64 characters of A-Z a-z 0-9 _ - and not \"self\"",
        ));
    }
    identifier("agent_id", id, 64)
}
