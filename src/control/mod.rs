//! The control plane (spec: control): nodes, invites, projects, sessions. One owned state, changed by
//! mutations that are durable before they are answered. No sockets, and no trees: what a mutation means
//! for them is told to listeners.

pub mod audit;
mod authenticator;
mod catalogue;
mod change;
mod counts;
pub mod events;
mod history;
pub mod import;
mod ops;
mod places;
mod plane;
pub mod policy;
mod project;
pub mod reconcile;
mod session;
pub mod state;
pub mod topics;
pub mod workspace;

pub use authenticator::{Authenticator, TokensListener};
pub use counts::Counts;
pub use history::{Entry, History, Target};
pub use ops::{
    ALIASES, Access, Answer, Context, Figures, Op, Scope, Scopes, TABLE, audit_tail, failed, find,
    handle,
};
pub use plane::{Commit, Decided, Listener, Plane};
pub use session::{Actor, Attached, Binding, Door, Gate, Principal, Role, Session};

use crate::base::{Error, Result, id, now_ms};
use crate::wire::Object;
use serde::Serialize;
use state::{Change, MOTHER, Profile, SYSTEM};
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

/// The agents that there are.
#[derive(Clone, Debug, Default)]
pub struct AgentList {
    /// Sorted by id.
    pub agents: Vec<AgentInfo>,
    /// Those whose files cannot be read, and why.
    pub unreadable: Vec<(String, Error)>,
}

/// What the control plane asks of those who run the agents.
pub trait Agents: Send + Sync {
    /// All that exist; one that cannot be read hides no other.
    fn list(&self) -> Result<AgentList>;

    fn exists(&self, agent_id: &str) -> bool;

    /// Makes sure that an agent exists: an unknown one begins unhatched, or, where implicit agents are
    /// not allowed, answers `agent_not_found`.
    fn ensure(&self, agent_id: &str) -> Result<()>;

    /// Makes an unhatched agent, durably, whatever is allowed to others; false where it exists. Errors:
    /// `limit_exceeded`, `storage_error`.
    fn create(&self, agent_id: &str) -> Result<bool>;

    /// True while a job of the agent is queued or running.
    fn busy(&self, agent_id: &str) -> bool;

    /// Answers a request about the runs of an agent; what they do is told by events. Errors: the
    /// engine's; `unsupported` where there is none.
    fn run(&self, agent_id: &str, request: RunRequest) -> Result<Object>;
}

/// A request about runs (spec: runtime 7.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunRequest {
    Start {
        content: String,
    },
    /// Without content: on what is queued.
    Step {
        run_id: String,
        content: Option<String>,
    },
    Resume {
        run_id: String,
        content: Option<String>,
    },
    Pause {
        run_id: String,
    },
    Cancel {
        run_id: String,
    },
    Status {
        run_id: String,
    },
    /// The newest, in their order.
    Events {
        run_id: String,
        limit: u32,
    },
    List,
}

/// What the control plane asks of those who keep the templates of workspaces, which people edit: nothing is
/// remembered between two calls.
pub trait Templates: Send + Sync {
    /// The ids, sorted. Errors: `limit_exceeded`; the host's.
    fn ids(&self) -> Result<Vec<String>>;

    /// What the template says, in JSON. Errors: `template_not_found`; why it cannot be read.
    fn read(&self, template_id: &str) -> Result<String>;
}

/// Longest id of a template.
pub const TEMPLATE_ID_MAX: usize = 64;

/// Whether a template can have this id: not that of a hidden file.
pub fn is_template_id(text: &str) -> bool {
    id::is_identifier(text, TEMPLATE_ID_MAX) && !text.starts_with('.')
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

pub(in crate::control) fn system_project(now_ms: i64) -> Profile {
    Profile {
        number: 0,
        name: "System".into(),
        vision: "What the gateway itself offers".into(),
        status: "active".into(),
        token: id::hex_token("proj-"),
        token_locked: true,
        created_at_ms: now_ms,
        updated_at_ms: now_ms,
        policy: policy::Policy::default(),
        template_id: None,
    }
}

/// Where somebody begins (spec: control 4.1): admins as mother, users where they were last, if they may
/// still read that project, and else nowhere.
fn initial_binding(cx: &Context, principal: &Principal) -> Option<Binding> {
    match principal.role {
        Role::Admin => Some(Binding {
            agent_id: MOTHER.into(),
            project_id: Some(SYSTEM.into()),
            project_token: None,
        }),
        Role::User => {
            let target = cx.history.target(&principal.name)?;
            let found = remembered(cx, &target);
            found.inspect_err(|_| cx.history.forget_target(&principal.name)).ok().flatten()
        }
        Role::Nobody => None,
    }
}

/// Errors: the project is gone, or may not be read any more. `None` where no agent is left in it.
fn remembered(cx: &Context, target: &Target) -> Result<Option<Binding>> {
    let state = cx.plane.state();
    let project = state.project(&target.project_id)?;
    let exists = |id: &str| id != MOTHER && cx.agents.exists(id);
    let works_here = || state.agents_in(project.number).find(|id| exists(id)).map(str::to_owned);
    let own = Some(target.agent_id.clone()).filter(|id| exists(id));
    let Some(agent_id) = own.or_else(works_here) else { return Ok(None) };
    session::check_role(Role::User, &agent_id, &target.project_id)?;
    let project_token = target.token(project);
    let token = project_token.as_deref();
    let asker = policy::Asker { admin: false, agent_id: Some(&agent_id), token };
    policy::check(project, policy::Action::Read, asker)?;
    Ok(Some(Binding { agent_id, project_id: Some(project.id()), project_token }))
}

#[cfg(test)]
mod tests;
