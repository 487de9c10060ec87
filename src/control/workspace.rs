//! The view of a project's mounts (spec: control 8.7 and 10): who may look, and what is shown.

mod resolve;

pub use resolve::{Drift, Workspace};

use super::policy::{Action, Asker, check};
use super::state::{MOTHER, Project, State};
use crate::base::{Code, Error, Result, now_ms};
use crate::wire::Object;
use serde::Serialize;
use std::ops::{Add, Sub};

/// Who looks, which decides what is shown.
#[derive(Clone, Copy, Debug)]
pub struct Viewer<'a> {
    pub agent_id: &'a str,
    pub admin: bool,
    pub token: Option<&'a str>,
}

impl<'a> Viewer<'a> {
    pub fn asker(self) -> Asker<'a> {
        Asker { admin: self.admin, agent_id: Some(self.agent_id), token: self.token }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Availability {
    pub mounts_total: usize,
    pub online: usize,
    pub degraded: usize,
    pub missing: usize,
}

impl Add for Availability {
    type Output = Availability;

    fn add(self, other: Availability) -> Availability {
        Availability {
            mounts_total: self.mounts_total + other.mounts_total,
            online: self.online + other.online,
            degraded: self.degraded + other.degraded,
            missing: self.missing + other.missing,
        }
    }
}

impl Sub for Availability {
    type Output = Availability;

    fn sub(self, other: Availability) -> Availability {
        Availability {
            mounts_total: self.mounts_total - other.mounts_total,
            online: self.online - other.online,
            degraded: self.degraded - other.degraded,
            missing: self.missing - other.missing,
        }
    }
}

/// The payload of `workspace_status` (spec: control 8.7) without what opens files: for events, and for files
/// that are copied around. Without a project, its blank form.
pub fn status(state: &State, project: Option<&Project>, viewer: Viewer<'_>, now_ms: i64) -> Object {
    let workspace = project.map(|p| Workspace::of(state, p, viewer, now_ms)).unwrap_or_default();
    shown(&workspace, project, viewer, now_ms, 0)
}

/// The same with what opens the files to a viewer called `bearer`, of a project that was last seen without
/// errors at `last_success_ms`.
pub(super) fn status_for(
    bearer: &str,
    state: &State,
    project: Option<&Project>,
    viewer: Viewer<'_>,
    last_success_ms: i64,
) -> Object {
    let now_ms = now_ms();
    let workspace = project.map(|p| Workspace::of(state, p, viewer, now_ms)).unwrap_or_default();
    let workspace = workspace.with_tokens(state, viewer, bearer, now_ms);
    shown(&workspace, project, viewer, now_ms, last_success_ms)
}

fn shown(
    workspace: &Workspace,
    project: Option<&Project>,
    viewer: Viewer<'_>,
    now_ms: i64,
    last_success_ms: i64,
) -> Object {
    let drift = Object::new().put("count", workspace.drift.len()).put("items", &workspace.drift);
    let depth = workspace.queue_depth();
    Object::new()
        .put("agent_id", viewer.agent_id)
        .put("project_id", project.map(|p| p.id()))
        .put("workspace_root", project.map(|_| "/"))
        .put("mounts", &workspace.selected)
        .put("desired_mounts", &workspace.desired)
        .put("actual_mounts", &workspace.selected)
        .with("binds", |to| match project {
            Some(project) => project.binds.write_json(to),
            None => to.push_str("[]"),
        })
        .object("drift", drift)
        .put("availability", workspace.availability())
        .put("reconcile_state", if depth == 0 { "idle" } else { "degraded" })
        .put("last_reconcile_ms", now_ms)
        .put("last_success_ms", if depth == 0 { now_ms } else { last_success_ms })
        .put("last_error", workspace.errors().next().map(|d| &d.message))
        .put("queue_depth", depth)
}

/// The project whose workspace a viewer asked for by id, if he may see it (spec: control 8.7).
pub fn select<'s>(
    state: &'s State,
    project_id: Option<&str>,
    viewer: Viewer<'_>,
) -> Result<Option<&'s Project>> {
    let active = state.active_project(viewer.agent_id);
    let Some(id) = project_id else {
        let entitled = viewer.admin || viewer.agent_id == MOTHER;
        return Ok(active.map(|p| &**p).filter(|p| entitled || !p.is_system()));
    };
    let project = state.project(id)?;
    check(project, Action::Read, viewer.asker())?;
    // Without the token, an open project is shown to those who work in it.
    let works_here = active.is_some_and(|p| p.number == project.number);
    if !viewer.admin && viewer.token.is_none() && !works_here && viewer.agent_id != MOTHER {
        return Err(Error::new(
            Code::ProjectAuthFailed,
            format!(
                "agent {} does not work in {id}; attach to it or give project_token",
                viewer.agent_id
            ),
        ));
    }
    Ok(Some(project))
}

/// What tests of workspaces begin with.
#[cfg(test)]
pub mod testing {
    use crate::control::state::{Node, Profile};
    use crate::wire::control::Platform;

    /// A node that has been there for long.
    pub fn node(number: u64, lease_expires_at_ms: i64) -> Node {
        Node {
            number,
            name: format!("n{number}"),
            fs_url: format!("ws://127.0.0.1:{number}/v2/fs"),
            secret: "secret-x".into(),
            former: None,
            lease_token: "lease-x".into(),
            platform: Platform::default(),
            labels: Default::default(),
            services: vec![],
            joined_at_ms: 0,
            last_seen_ms: 0,
            lease_expires_at_ms,
            revived_at_ms: 0,
        }
    }

    /// A project that everybody may read.
    pub fn profile(number: u64) -> Profile {
        Profile { number, token_locked: false, ..crate::control::system_project(0) }
    }
}
