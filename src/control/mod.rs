//! The control plane (spec: control): nodes, invites, projects, sessions. One owned state, changed by
//! mutations that are durable before they are answered. No sockets, and no trees: what a mutation means
//! for them is told to listeners.

mod catalogue;
mod counts;
pub mod events;
mod ops;
mod plane;
pub mod policy;
pub mod reconcile;
mod session;
pub mod state;
pub mod topics;
pub mod workspace;

pub use counts::Counts;
pub use ops::{ALIASES, Access, Answer, Context, Figures, Op, Scope, Scopes, TABLE, find, handle};
pub use plane::{Listener, Plane};
pub use session::{Binding, Door, Gate, Principal, Role, Session};

use crate::base::{Result, now_ms};
use serde::Serialize;
use state::{Change, MOTHER, Project, SYSTEM};
use std::sync::Arc;

/// An agent as `agent_list` shows it (spec: control 8.4).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AgentInfo {
    pub id: String,
    pub name: String,
    pub description: String,
    pub is_default: bool,
    pub identity_loaded: bool,
    pub needs_hatching: bool,
    pub capabilities: Vec<String>,
}

/// What the control plane asks of those who run the agents.
pub trait Agents: Send + Sync {
    /// All that exist, sorted by id.
    fn list(&self) -> Result<Vec<AgentInfo>>;

    /// Makes sure that an agent exists: an unknown one begins unhatched, or, where implicit agents are
    /// not allowed, answers `agent_not_found`.
    fn ensure(&self, agent_id: &str) -> Result<()>;

    /// True while a job of the agent is queued or running.
    fn busy(&self, agent_id: &str) -> bool;
}

impl Plane {
    /// Makes sure that the system project exists and that mother works in it (spec: control 5.3).
    pub fn ensure_system(self: &Arc<Plane>) -> Result<()> {
        self.mutate(|state, _| {
            let mut changes = Vec::new();
            if !state.projects.contains_key(&0) {
                changes.push(Change::PutProject(Arc::new(system_project(now_ms()))));
            }
            if !state.active.contains_key(MOTHER) {
                changes.push(Change::Activate { agent_id: MOTHER.into(), project: 0 });
            }
            Ok(((), changes))
        })
    }
}

pub(in crate::control) fn system_project(now_ms: i64) -> Project {
    Project {
        number: 0,
        name: "System".into(),
        vision: "What the gateway itself offers".into(),
        status: "active".into(),
        token: crate::base::id::hex_token("proj-"),
        token_locked: true,
        created_at_ms: now_ms,
        updated_at_ms: now_ms,
        policy: policy::Policy::default(),
        mounts: Vec::new(),
        binds: Vec::new(),
    }
}

/// Where a newcomer of a role begins (spec: control 4.1).
fn initial_binding(role: Role) -> Option<Binding> {
    (role == Role::Admin).then(|| Binding {
        agent_id: MOTHER.into(),
        project_id: Some(SYSTEM.into()),
        project_token: None,
    })
}

#[cfg(test)]
mod tests;
