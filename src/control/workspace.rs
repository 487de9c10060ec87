//! The view of a project's mounts: which member of each failover group serves, what is available, what
//! has drifted from the wish (spec: control 8.7 and 10).

use super::policy::{Action, Asker, check};
use super::state::{MOTHER, Mount, Project, State};
use crate::base::{Code, Error, Result};
use crate::wire::Object;
use crate::wire::control::{MountState, WorkspaceMount};
use serde::Serialize;

/// Who looks, which decides what is shown.
#[derive(Clone, Copy, Debug)]
pub struct Viewer<'a> {
    pub agent_id: &'a str,
    pub admin: bool,
    pub token: Option<&'a str>,
}

impl<'a> Viewer<'a> {
    /// Node secrets open every file of a node, so only admins, and mother acting for one, see them
    /// (spec: control 14.1 and 14.2 row 11).
    fn sees_secrets(self) -> bool {
        self.admin
    }

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

/// A difference between the first choice of a group and what serves now (spec: control 10.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drift {
    pub mount_path: String,
    pub kind: &'static str,
    pub severity: &'static str,
    pub selected_node_id: String,
    pub desired_node_id: String,
    pub message: String,
}

/// A project's mounts as they stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workspace {
    /// Every configured mount.
    pub desired: Vec<WorkspaceMount>,
    /// One for each path: the first configured of the best state.
    pub selected: Vec<WorkspaceMount>,
    pub drift: Vec<Drift>,
}

impl Workspace {
    pub fn of(state: &State, project: &Project, viewer: Viewer<'_>, now_ms: i64) -> Workspace {
        let show = |m: &Mount| present(state, m, viewer, now_ms);
        let desired: Vec<_> = project.mounts.iter().map(show).collect();
        let mut selected: Vec<WorkspaceMount> = Vec::new();
        let mut drift = Vec::new();
        for (i, first) in desired.iter().enumerate() {
            if desired[..i].iter().any(|m| m.mount_path == first.mount_path) {
                continue;
            }
            let group = desired[i..].iter().filter(|m| m.mount_path == first.mount_path);
            // The first of the best: the configured order decides, not whose lease is longest, so the
            // choice does not flip at every refresh.
            let best = group.rev().max_by_key(|m| m.state).unwrap_or(first);
            drift.extend(drifted(best, first));
            selected.push(best.clone());
        }
        Workspace { desired, selected, drift }
    }

    pub fn availability(&self) -> Availability {
        let count = |state| self.selected.iter().filter(|m| m.state == state).count();
        Availability {
            mounts_total: self.selected.len(),
            online: count(MountState::Online),
            degraded: count(MountState::Degraded),
            missing: count(MountState::Missing),
        }
    }

    /// Mounts that need something done.
    pub fn queue_depth(&self) -> usize {
        self.drift.iter().filter(|d| d.severity == "error").count()
    }
}

fn present(state: &State, m: &Mount, viewer: Viewer<'_>, now_ms: i64) -> WorkspaceMount {
    let node = state.node(&m.node_id).ok();
    let online = node.is_some_and(|n| n.online(now_ms));
    WorkspaceMount {
        mount_path: m.mount_path.clone(),
        node_id: m.node_id.clone(),
        export_name: m.export_name.clone(),
        node_name: node.map(|n| n.name.clone()),
        fs_url: node.map(|n| n.fs_url.clone()),
        fs_auth_token: node.filter(|_| viewer.sees_secrets()).map(|n| n.secret.clone()),
        online,
        state: match node {
            None => MountState::Missing,
            Some(_) if online => MountState::Online,
            Some(_) => MountState::Degraded,
        },
    }
}

fn drifted(selected: &WorkspaceMount, first: &WorkspaceMount) -> Option<Drift> {
    let (kind, severity, what) = match selected.state {
        MountState::Missing => ("missing_node", "error", "is not known"),
        MountState::Degraded => ("node_offline", "error", "is offline"),
        MountState::Online if selected.node_id == first.node_id => return None,
        MountState::Online => ("failover_active", "warning", "serves in place of the first choice"),
    };
    Some(Drift {
        mount_path: selected.mount_path.clone(),
        kind,
        severity,
        selected_node_id: selected.node_id.clone(),
        desired_node_id: first.node_id.clone(),
        message: format!("{}: node {} {what}", selected.mount_path, selected.node_id),
    })
}

/// The payload of `workspace_status` (spec: control 8.7); without a project, its blank form.
pub fn status(state: &State, project: Option<&Project>, viewer: Viewer<'_>, now_ms: i64) -> Object {
    let workspace = project.map(|p| Workspace::of(state, p, viewer, now_ms)).unwrap_or_default();
    let drift = Object::new().put("count", workspace.drift.len()).put("items", &workspace.drift);
    let depth = workspace.queue_depth();
    Object::new()
        .put("agent_id", viewer.agent_id)
        .put("project_id", project.map(Project::id))
        .put("workspace_root", project.map(|_| "/"))
        .put("mounts", &workspace.selected)
        .put("desired_mounts", &workspace.desired)
        .put("actual_mounts", &workspace.selected)
        .put("binds", project.map(|p| p.binds.clone()).unwrap_or_default())
        .object("drift", drift)
        .put("availability", workspace.availability())
        .put("reconcile_state", if depth == 0 { "idle" } else { "degraded" })
        .put("last_reconcile_ms", now_ms)
        .put("last_success_ms", if depth == 0 { now_ms } else { 0 })
        .put(
            "last_error",
            workspace.drift.iter().find(|d| d.severity == "error").map(|d| &d.message),
        )
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

#[cfg(test)]
mod tests {
    use super::super::state::{Change, Node};
    use super::*;
    use crate::wire::control::Platform;
    use std::sync::Arc;

    fn node(number: u64, lease_expires_at_ms: i64) -> Change {
        Change::PutNode(Arc::new(Node {
            number,
            name: format!("n{number}"),
            fs_url: format!("ws://127.0.0.1:{number}/v2/fs"),
            secret: "secret-x".into(),
            lease_token: "lease-x".into(),
            platform: Platform::default(),
            labels: Default::default(),
            services: vec![],
            joined_at_ms: 0,
            last_seen_ms: 0,
            lease_expires_at_ms,
        }))
    }

    fn workspace(leases: &[i64], admin: bool) -> Workspace {
        let mut state = State::default();
        for (i, lease) in leases.iter().enumerate() {
            state.apply(&node(i as u64 + 1, *lease));
        }
        let mount = |n: u64| Mount {
            mount_path: "/src".into(),
            node_id: format!("node-{n}"),
            export_name: "work".into(),
        };
        let project = Project {
            number: 1,
            name: "p".into(),
            vision: "v".into(),
            status: "active".into(),
            token: String::new(),
            token_locked: false,
            created_at_ms: 0,
            updated_at_ms: 0,
            policy: Default::default(),
            mounts: vec![mount(1), mount(2)],
            binds: vec![],
        };
        let viewer = Viewer { agent_id: "a", admin, token: None };
        Workspace::of(&state, &project, viewer, 100)
    }

    #[test]
    fn the_first_configured_online_member_serves_whatever_the_leases_say() {
        let both = workspace(&[200, 900], true);
        assert_eq!(both.selected[0].node_id, "node-1");
        assert!(both.drift.is_empty());
        assert_eq!(both.selected[0].fs_auth_token.as_deref(), Some("secret-x"));

        let failover = workspace(&[50, 900], false);
        assert_eq!(failover.selected[0].node_id, "node-2");
        assert_eq!(failover.drift[0].kind, "failover_active");
        assert_eq!(failover.selected[0].fs_auth_token, None);

        let down = workspace(&[50, 60], true);
        assert_eq!(down.selected[0].node_id, "node-1");
        assert_eq!((down.drift[0].kind, down.queue_depth()), ("node_offline", 1));
        assert_eq!(workspace(&[], true).availability().missing, 1);
    }
}
