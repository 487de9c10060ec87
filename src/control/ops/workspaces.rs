//! How the workspaces of projects stand (spec: control 8.7).

use super::Call;
use super::projects::Target;
use crate::base::Result;
use crate::control::policy::{self, Action};
use crate::control::state::Project;
use crate::control::workspace;
use crate::wire::Object;
use std::sync::Arc;

pub(super) fn status(call: &mut Call<'_>) -> Result<Object> {
    let observer = call.observer()?;
    let own = call.session.active().and_then(|b| b.project_id.clone());
    // The session's own token counts for the session's own project (spec: control 14.2 row 10).
    let token = match (&observer, &own) {
        (Some(observer), _) => observer.project_token.clone(),
        (None, Some(own)) => call.token_for(own)?,
        (None, None) => call.project_token()?,
    };
    let mut viewer = call.viewer(token.as_deref());
    if let Some(observer) = &observer {
        viewer.agent_id = &observer.agent_id;
    }
    let asked = observer.as_ref().and_then(|o| o.project_id.as_deref());
    let state = call.cx.plane.state();
    let project = workspace::select(&state, asked, viewer)?;
    let success_ms = project.map_or(0, |p| call.cx.plane.last_success_ms(p.number));
    let bearer = &call.session.principal.badge;
    Ok(workspace::status_for(bearer, &state, project, viewer, success_ms))
}

/// Of one project, or of all that the caller may read.
pub(super) fn reconcile_status(call: &mut Call<'_>) -> Result<Object> {
    let state = call.cx.plane.state();
    let projects: Vec<&Arc<Project>> = match call.payload.string("project_id")? {
        Some(id) if !id.is_empty() => {
            vec![Target::read(call)?.find(call, &state, Action::Read)?]
        }
        _ => state.projects.values().filter(|p| may_read(call, p)).collect(),
    };
    Ok(call.cx.plane.reconciled(|record| record.shown(&projects)))
}

fn may_read(call: &Call<'_>, project: &Project) -> bool {
    let token = call.token_for(&project.id()).ok().flatten();
    policy::check(project, Action::Read, call.viewer(token.as_deref()).asker()).is_ok()
}
