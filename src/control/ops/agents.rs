//! agent_list, agent_get (spec: control 8.4).

use super::{Call, identifier};
use crate::base::{Code, Error, Result};
use crate::wire::Object;

pub(super) fn list(call: &mut Call<'_>) -> Result<Object> {
    Ok(Object::new().put("agents", call.cx.agents.list()?))
}

pub(super) fn get(call: &mut Call<'_>) -> Result<Object> {
    let id = identifier("agent_id", call.payload.required("agent_id")?, 64)?;
    let agents = call.cx.agents.list()?;
    let agent = agents.iter().find(|a| a.id == id);
    let agent = agent
        .ok_or_else(|| Error::new(Code::AgentNotFound, format!("there is no agent {id:?}")))?;
    Ok(Object::new().put("agent", agent))
}
