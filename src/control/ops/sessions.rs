//! The sessions of a connection (spec: control 8.3).

use super::{Call, identifier};
use crate::base::{Code, Error, Result};
use crate::control::history::ENTRIES_MAX;
use crate::control::policy::{self, Action, Asker};
use crate::control::session::{MAIN, SESSIONS_MAX, check_role};
use crate::control::state::{Change, MOTHER, Project, State};
use crate::control::{Actor, Attached, Binding, Entry};
use crate::wire::Object;

/// Without a sign of life for this long, a session or its agent counts as stale (spec: control 8.3).
const STALE_MS: i64 = 5 * 60_000;
/// Most entries that session_history gives.
const HISTORY_MAX: i64 = 100;
/// Longest part of an actor.
const ACTOR_MAX: usize = 128;

pub(super) fn attach(call: &mut Call<'_>) -> Result<Object> {
    let key = session_key(&call.payload.required("session_key")?)?;
    let agent_id = agent_id(call.payload.required("agent_id")?)?;
    let project_id = identifier("project_id", call.payload.required("project_id")?, 128)?;
    let actor = actor(call)?;
    let existing = call.session.bindings.get(&key).map(|a| a.binding.clone());
    // The same session and agent: the token need not be repeated.
    let inherited = existing.as_ref().filter(|b| b.agent_id == agent_id);
    let token = call.project_token()?.or_else(|| inherited.and_then(|b| b.project_token.clone()));
    check_role(call.session.principal.role, &agent_id, &project_id)?;
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
    call.mutate_and_wait(|state, _| {
        Ok(((), activation(state, &binding.agent_id, state.project(&project_id)?, asker)?))
    })?;
    let attached = Attached { binding, actor, touched_at_ms: super::now(), by_client: true };
    call.session.bindings.insert(key.clone(), attached);
    call.session.active.clone_from(&key);
    remember(call, &key)?;
    described(call, &key)
}

/// On whose behalf it says that it acts; only admins may say somebody else (spec: control 13).
fn actor(call: &Call<'_>) -> Result<Actor> {
    let usual = call.session.usual_actor();
    let given = |name: &str, usual: &str, dots: bool| -> Result<String> {
        let Some(value) = call.payload.string(name)? else { return Ok(usual.to_owned()) };
        let value = identifier(name, value, ACTOR_MAX)?;
        if !dots && value.contains('.') {
            return Err(Error::new(
                Code::InvalidPayload,
                format!("{name} must be 1 to {ACTOR_MAX} characters of A-Z a-z 0-9 _ -"),
            ));
        }
        Ok(value)
    };
    let kind = given("actor_type", &usual.kind, false)?;
    let id = given("actor_id", &usual.id, true)?;
    let actor = Actor { kind, id };
    if actor != usual && !call.session.is_admin() {
        return Err(Error::new(
            Code::Forbidden,
            "actor_type and actor_id of others are for admins to name",
        ));
    }
    Ok(actor)
}

/// A session was attached or resumed: it is where its principal begins next time.
fn remember(call: &Call<'_>, key: &str) -> Result<()> {
    let (history, name) = (&call.cx.history, &call.session.principal.name);
    let binding = call.session.binding(Some(key))?;
    history.used(name, key, binding, 0);
    history.attached(name, binding);
    Ok(())
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
    let is_same =
        existing.is_some_and(|b| b.agent_id == new.agent_id && b.project_id == new.project_id);
    let state = call.cx.plane.state();
    let here = state.active_project(&new.agent_id).map(|p| p.id());
    if !is_same && here != new.project_id && call.cx.agents.busy(&new.agent_id) {
        return busy(&new.agent_id);
    }
    Ok(())
}

pub(super) fn list(call: &mut Call<'_>) -> Result<Object> {
    let session = &*call.session;
    let list: Vec<_> = session.bindings.iter().map(|(key, a)| named(key, a).finish()).collect();
    let o = Object::new().put("active_session", session.active_key());
    Ok(o.raw("sessions", &format!("[{}]", list.join(","))))
}

pub(super) fn status(call: &mut Call<'_>) -> Result<Object> {
    let key = match call.payload.string("session_key")? {
        Some(key) => session_key(&key)?,
        None => call.session.active.clone(),
    };
    let now_ms = super::now();
    if call.payload.bool("heartbeat")?.unwrap_or(false) {
        bound(call, &key)?;
        remember(call, &key)?;
        touch(call, &key, now_ms);
    }
    let attached = bound(call, &key)?;
    let history = &call.cx.history;
    let active_ms = history.last_active_ms(&call.session.principal.name, &key);
    let is_stale = |at: i64| at > 0 && now_ms.saturating_sub(at) > STALE_MS;
    Ok(named(&key, attached)
        .object("attach", ready(attached.touched_at_ms))
        .put("session_last_activity_ms", active_ms)
        .put("session_stale", is_stale(active_ms))
        .put("agent_last_heartbeat_ms", attached.touched_at_ms)
        .put("agent_stale", is_stale(attached.touched_at_ms))
        .put("recoverable", true))
}

fn touch(call: &mut Call<'_>, key: &str, now_ms: i64) {
    if let Some(attached) = call.session.bindings.get_mut(key) {
        attached.touched_at_ms = now_ms;
    }
}

pub(super) fn resume(call: &mut Call<'_>) -> Result<Object> {
    let key = session_key(&call.payload.required("session_key")?)?;
    bound(call, &key)?;
    call.session.active.clone_from(&key);
    touch(call, &key, super::now());
    remember(call, &key)?;
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

/// The session that the principal used last; the client goes on with session_attach.
pub(super) fn restore(call: &mut Call<'_>) -> Result<Object> {
    let found = past(call, 1)?;
    let o = Object::new().put("found", !found.is_empty());
    Ok(o.put_some("session", found.first()))
}

pub(super) fn history(call: &mut Call<'_>) -> Result<Object> {
    let limit = match call.payload.i64("limit")? {
        None | Some(0) => ENTRIES_MAX,
        Some(n) if n > 0 => n.min(HISTORY_MAX) as usize,
        Some(_) => return Err(Error::new(Code::InvalidPayload, "limit must be 0 or more")),
    };
    Ok(Object::new().put("sessions", past(call, limit)?))
}

/// The principal's sessions, those with one agent where the payload names it.
fn past(call: &Call<'_>, limit: usize) -> Result<Vec<Entry>> {
    let agent_id = call.payload.string("agent_id")?.map(agent_id).transpose()?;
    let name = &call.session.principal.name;
    Ok(call.cx.history.sessions(name, agent_id.as_deref(), limit))
}

fn bound<'c>(call: &'c Call<'_>, key: &str) -> Result<&'c Attached> {
    call.session.session(key).map_err(|e| match e.code {
        Code::SessionNotFound => e.recode(Code::NotFound),
        _ => e,
    })
}

/// What every reply says of a session.
fn named(key: &str, attached: &Attached) -> Object {
    Object::new()
        .put("session_key", key)
        .put("agent_id", &attached.binding.agent_id)
        .put("actor_type", &attached.actor.kind)
        .put("actor_id", &attached.actor.id)
        .put("project_id", &attached.binding.project_id)
}

/// The reply of attach and resume.
fn described(call: &Call<'_>, key: &str) -> Result<Object> {
    let attached = bound(call, key)?;
    let binding = &attached.binding;
    let state = call.cx.plane.state();
    let project = binding.project_id.as_deref().and_then(|id| state.project(id).ok());
    let viewer = call.viewer(binding.project_token.as_deref());
    let workspace = call.workspace(&state, project.map(|p| &**p), viewer);
    Ok(named(key, attached)
        .object("workspace", workspace)
        .object("attach", ready(attached.touched_at_ms)))
}

/// The attach state (spec: control 8.3). There is nothing to warm up: the namespace is made as it is
/// read.
fn ready(updated_at_ms: i64) -> Object {
    Object::new()
        .put("state", "ready")
        .put("runtime_ready", true)
        .put("mount_ready", true)
        .put("error_code", None::<&str>)
        .put("error_message", None::<&str>)
        .put("updated_at_ms", updated_at_ms)
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
