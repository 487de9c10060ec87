//! How the workspaces of projects stand (spec: control 8.7).

use super::Call;
use super::projects::project_id;
use crate::base::Result;
use crate::control::workspace;
use crate::wire::Object;

pub(super) fn status(call: &mut Call<'_>) -> Result<Object> {
    let asked = call.payload.string("project_id")?.filter(|p| !p.is_empty());
    let asked = asked.map(project_id).transpose()?;
    let own = call.session.active().and_then(|b| b.project_id.clone());
    // The session's own token counts for the session's own project (spec: control 14.2 row 10).
    let token = match asked.as_ref().or(own.as_ref()) {
        Some(id) => call.token_for(id)?,
        None => call.project_token()?,
    };
    let viewer = call.viewer(token.as_deref());
    let state = call.cx.plane.state();
    let project = workspace::select(&state, asked.as_deref(), viewer)?;
    Ok(workspace::status(&state, project, viewer, super::now()))
}
