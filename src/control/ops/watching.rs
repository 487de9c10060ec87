//! Hearing of what happens: debug events (spec: control 9.3) and nodes' services (spec: control 8.6). What
//! is decided here is carried out by who holds the connection.

use super::{Call, identifier};
use crate::base::{Code, Error, Result};
use crate::control::events::{Watcher, asker};
use crate::control::policy::{self, Action};
use crate::control::session::Binding;
use crate::control::topics::Topics;
use crate::control::workspace;
use crate::wire::Object;

pub(super) fn subscribe(call: &mut Call<'_>) -> Result<Object> {
    let topics = Topics::read(&call.payload, call.session.is_admin())?;
    let observed = call.observer()?;
    if let Some(Binding { agent_id, project_id, project_token }) = &observed {
        let mut viewer = call.viewer(project_token.as_deref());
        viewer.agent_id = agent_id;
        workspace::select(&call.cx.plane.state(), project_id.as_deref(), viewer)?;
    }
    call.session.observed = observed;
    call.session.subscribed = Some(topics);
    Ok(Object::new().put("enabled", true))
}

pub(super) fn unsubscribe(call: &mut Call<'_>) -> Result<Object> {
    (call.session.subscribed, call.session.observed) = (None, None);
    Ok(Object::new().put("enabled", false))
}

pub(super) fn service_watch(call: &mut Call<'_>) -> Result<Object> {
    let settings = &call.cx.events.settings;
    let admin = call.session.is_admin();
    if !if admin { settings.allow_admin } else { settings.allow_user } {
        let role = call.session.principal.role.name();
        let message = format!("control.node_service_watch is not allowed for role {role} here");
        return Err(Error::new(Code::Forbidden, message));
    }
    let node_id = call.payload.string("node_id")?.map(|id| identifier("node_id", id, 128));
    let (limit, after_seq) = (call.payload.u64("replay_limit")?, call.payload.u64("after_seq")?);
    let user = if admin { None } else { Some(observer(call)?) };
    let who = Watcher { node_id: node_id.transpose()?, user };
    let state = call.cx.plane.state();
    let answer = Object::new().put("enabled", true).put_some("node_id", who.node_id.as_ref());
    let begun = call.cx.events.begin(&state, who, limit, after_seq);
    let answer = answer
        .put("replay_limit", begun.limit)
        .put("replayed", begun.replay.len())
        .put("seq", begun.seq)
        .put_some("resync", after_seq.map(|_| begun.resync));
    call.session.begun = Some(begun);
    Ok(answer)
}

/// The binding under which a user watches: of a project that he may observe.
fn observer(call: &Call<'_>) -> Result<Binding> {
    let forbidden =
        |why: String| Error::new(Code::Forbidden, format!("control.node_service_watch: {why}"));
    let binding = call.session.active().filter(|b| b.project_id.is_some());
    let binding = binding.ok_or_else(|| forbidden("attach a session to a project first".into()))?;
    let state = call.cx.plane.state();
    let project = state.project(binding.project_id.as_deref().unwrap_or_default());
    let observed = project.and_then(|p| policy::check(p, Action::Observe, asker(binding)));
    observed.map_err(|e| forbidden(e.message.into_owned()))?;
    Ok(binding.clone())
}

pub(super) fn service_unwatch(_: &mut Call<'_>) -> Result<Object> {
    Ok(Object::new().put("enabled", false))
}
