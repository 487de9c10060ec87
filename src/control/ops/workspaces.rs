//! How the workspaces of projects stand (spec: control 8.7).

use super::Call;
use super::projects::{Target, project_id};
use crate::base::Result;
use crate::control::policy::{self, Action};
use crate::control::reconcile::{Known, Record};
use crate::control::state::Project;
use crate::control::workspace;
use crate::wire::Object;
use std::sync::Arc;

/// Failures that `reconcile_status` names; it counts all.
const FAILED_OPS_MAX: usize = 100;

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
    let success_ms = project.map_or(0, |p| call.cx.plane.last_success_ms(p.number));
    Ok(workspace::status_since(&state, project, viewer, super::now(), success_ms))
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
    Ok(call.cx.plane.reconciled(|record| reconciled(record, &projects)))
}

fn may_read(call: &Call<'_>, project: &Project) -> bool {
    let token = call.token_for(&project.id()).ok().flatten();
    policy::check(project, Action::Read, call.viewer(token.as_deref()).asker()).is_ok()
}

/// The payload of `reconcile_status`: what is known of these projects.
fn reconciled(record: &Record, projects: &[&Arc<Project>]) -> Object {
    let known = || projects.iter().filter_map(|p| Some((*p, record.projects.get(&p.number)?)));
    let failed = || known().flat_map(|(_, k)| &k.failed);
    let depth = failed().count();
    // As long as a project stands well, it does so at every look.
    let good = |k: &Known| match k.failed.is_empty() {
        true => record.last_reconcile_ms,
        false => k.last_success_ms,
    };
    let one = |(p, k): (&Arc<Project>, &Known)| {
        Object::new()
            .put("project_id", p.id())
            .put("mounts", k.mounts)
            .put("selected_mounts", k.availability.mounts_total)
            .put("online_mounts", k.availability.online)
            .put("degraded_mounts", k.availability.degraded)
            .put("missing_mounts", k.availability.missing)
            .put("drift_count", k.drift_count)
            .put("queue_depth", k.failed.len())
            .finish()
    };
    let all: Vec<_> = known().map(one).collect();
    Object::new()
        .put("reconcile_state", if depth == 0 { "idle" } else { "degraded" })
        .put("last_reconcile_ms", record.last_reconcile_ms)
        .put("last_success_ms", known().map(|(_, k)| good(k)).min().unwrap_or(0))
        .put("last_error", failed().next())
        .put("queue_depth", depth)
        .put("failed_ops_total", record.failed_ops_total)
        .put("cycles_total", record.cycles_total)
        .put("failed_ops", failed().take(FAILED_OPS_MAX).collect::<Vec<_>>())
        .raw("projects", &format!("[{}]", all.join(",")))
}
