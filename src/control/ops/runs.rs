//! agent.run.*: a request is read, checked against the project's policy, and handed to the engine of the
//! acting session's agent (spec: runtime 7.2). What a run is, the engine knows.

use super::{Call, identifier};
use crate::base::{Code, Error, Result};
use crate::control::RunRequest;
use crate::control::policy::{self, Action, Asker};
use crate::wire::Object;

/// Longest id of a run.
const ID_MAX: usize = 128;
/// Longest input of a step; a frame of the control channel holds no more.
const CONTENT_MAX: usize = 1 << 20;
/// Events that are answered without a limit, and at most.
const EVENTS: u32 = 50;
const EVENTS_MAX: i64 = 500;

pub(super) fn start(call: &mut Call<'_>) -> Result<Object> {
    let content = content(call)?.ok_or_else(|| Error::missing("content"))?;
    run(call, Action::Invoke, RunRequest::Start { content })
}

pub(super) fn step(call: &mut Call<'_>) -> Result<Object> {
    let (run_id, content) = (run_id(call)?, content(call)?);
    run(call, Action::Invoke, RunRequest::Step { run_id, content })
}

pub(super) fn resume(call: &mut Call<'_>) -> Result<Object> {
    let (run_id, content) = (run_id(call)?, content(call)?);
    run(call, Action::Invoke, RunRequest::Resume { run_id, content })
}

pub(super) fn pause(call: &mut Call<'_>) -> Result<Object> {
    let run_id = run_id(call)?;
    run(call, Action::Invoke, RunRequest::Pause { run_id })
}

pub(super) fn cancel(call: &mut Call<'_>) -> Result<Object> {
    let run_id = run_id(call)?;
    run(call, Action::Invoke, RunRequest::Cancel { run_id })
}

pub(super) fn status(call: &mut Call<'_>) -> Result<Object> {
    let run_id = run_id(call)?;
    run(call, Action::Observe, RunRequest::Status { run_id })
}

pub(super) fn events(call: &mut Call<'_>) -> Result<Object> {
    let limit = match call.payload.i64("limit")? {
        None => EVENTS,
        Some(n) if (1..=EVENTS_MAX).contains(&n) => n as u32,
        Some(_) => {
            let text = format!("limit must be 1 to {EVENTS_MAX}");
            return Err(Error::new(Code::InvalidPayload, text));
        }
    };
    let run_id = run_id(call)?;
    run(call, Action::Observe, RunRequest::Events { run_id, limit })
}

pub(super) fn list(call: &mut Call<'_>) -> Result<Object> {
    run(call, Action::Observe, RunRequest::List)
}

/// Asks the engine of the acting session's agent. Errors: `session_not_found`, what the project's policy
/// says, and the engine's.
fn run(call: &Call<'_>, action: Action, request: RunRequest) -> Result<Object> {
    let binding = call.session.active().filter(|b| b.project_id.is_some());
    let binding = binding.ok_or_else(|| {
        let text = "runs belong to the agent of a session: control.session_attach first";
        Error::new(Code::SessionNotFound, text)
    })?;
    let project_id = binding.project_id.as_deref().unwrap_or_default();
    let asker = Asker {
        admin: call.session.is_admin(),
        agent_id: Some(&binding.agent_id),
        token: binding.project_token.as_deref(),
    };
    policy::check(call.cx.plane.state().project(project_id)?, action, asker)?;
    call.cx.agents.run(&binding.agent_id, request)
}

/// `action` is the older name.
fn run_id(call: &Call<'_>) -> Result<String> {
    let id = match call.payload.string("run_id")? {
        Some(id) => Some(id),
        None => call.payload.string("action")?,
    };
    identifier("run_id", id.ok_or_else(|| Error::missing("run_id"))?, ID_MAX)
}

/// `text` and `goal` are other names.
fn content(call: &Call<'_>) -> Result<Option<String>> {
    for name in ["content", "text", "goal"] {
        let Some(content) = call.payload.string(name)? else { continue };
        if content.trim().is_empty() || content.len() > CONTENT_MAX {
            let text = format!("{name} must have 1 to {CONTENT_MAX} bytes, and not only blanks");
            return Err(Error::new(Code::InvalidPayload, text));
        }
        return Ok(Some(content));
    }
    Ok(None)
}
