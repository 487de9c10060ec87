//! agent_list, agent_get, agent_ensure (spec: control 8.4, 13).

use super::sessions::agent_id;
use super::{Call, identifier};
use crate::base::{Code, Error, Result};
use crate::control::AgentInfo;
use crate::wire::Object;

pub(super) fn list(call: &mut Call<'_>) -> Result<Object> {
    let found = call.cx.agents.list()?;
    // Why is told to those who can mend it: it names places on this host.
    let is_admin = call.session.is_admin();
    let unreadable = found.unreadable.iter().map(|(id, e)| {
        let o = Object::new().put("agent_id", id);
        o.put_some("message", is_admin.then_some(&e.message)).finish()
    });
    let unreadable: Vec<_> = unreadable.collect();
    Ok(Object::new()
        .put("agents", &found.agents)
        .raw("unreadable", &format!("[{}]", unreadable.join(","))))
}

pub(super) fn get(call: &mut Call<'_>) -> Result<Object> {
    let id = identifier("agent_id", call.payload.required("agent_id")?, 64)?;
    Ok(Object::new().put("agent", find(call, &id)?))
}

pub(super) fn ensure(call: &mut Call<'_>) -> Result<Object> {
    let id = agent_id(call.payload.required("agent_id")?)?;
    let created = call.cx.agents.create(&id)?;
    Ok(Object::new().put("created", created).put("agent", find(call, &id)?))
}

/// Errors: `agent_not_found`; `invalid_config` for one whose files cannot be read.
fn find(call: &Call<'_>, id: &str) -> Result<AgentInfo> {
    let found = call.cx.agents.list()?;
    if let Some(agent) = found.agents.into_iter().find(|a| a.id == id) {
        return Ok(agent);
    }
    let unreadable = found.unreadable.into_iter().find(|(other, _)| other == id);
    Err(match unreadable {
        Some((_, e)) if call.session.is_admin() => e,
        Some((_, e)) => Error::new(e.code, format!("agent {id:?} cannot be read")),
        None => Error::new(Code::AgentNotFound, format!("there is no agent {id:?}")),
    })
}
