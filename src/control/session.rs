//! What the gateway knows of one connection: who it is, which sessions it has attached, and whether it
//! may do anything yet (spec: control 4).

use super::events::Beginning;
use super::ops::Context;
use super::state::{MOTHER, SYSTEM};
use super::topics::Topics;
use crate::base::{Code, Error, Result, now_ms};
use std::collections::BTreeMap;
use std::net::SocketAddr;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Admin,
    User,
    /// Came through `/v2/join`, and has proved nothing.
    Nobody,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::User => "user",
            Role::Nobody => "node",
        }
    }
}

/// Whose token opened the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    pub role: Role,
    pub name: String,
    /// Of the token that it came with, see [`crate::config::tokens::Identity::badge`]: what it is given to
    /// show elsewhere counts no longer than that. Empty for who came without.
    pub badge: String,
}

/// Which door a connection came through, which decides what it may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Main,
    /// `/v2/join`: joining, and what a node does with its own secret (design: how a node proves itself).
    Join,
}

/// For whom a session acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    pub agent_id: String,
    pub project_id: Option<String>,
    pub project_token: Option<String>,
}

/// What keeps a user from acting (spec: control 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    ProvisioningRequired,
    ProjectContextRequired,
}

impl Gate {
    pub fn error(self) -> Error {
        match self {
            Gate::ProvisioningRequired => Error::new(
                Code::ProvisioningRequired,
                "there is no project or no agent yet; an admin has to create one (project_up)",
            ),
            Gate::ProjectContextRequired => Error::new(
                Code::ProjectContextRequired,
                "call control.session_attach with a project first",
            ),
        }
    }
}

/// The session that every connection begins with.
pub const MAIN: &str = "main";
/// Sessions that one connection may hold.
pub const SESSIONS_MAX: usize = 64;

/// On whose behalf a session says that it acts (spec: control 13, actor).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    pub kind: String,
    pub id: String,
}

/// A session of a connection.
#[derive(Clone, Debug)]
pub struct Attached {
    pub binding: Binding,
    pub actor: Actor,
    /// When it was attached, resumed, or said that it lives.
    pub touched_at_ms: i64,
    /// The client attached it, and so wants to hear of it; else it was there when the client came.
    pub by_client: bool,
}

#[derive(Debug)]
pub struct Session {
    pub principal: Principal,
    pub door: Door,
    /// `control.version` was answered.
    pub negotiated: bool,
    /// What it wants to be told of.
    pub subscribed: Option<Topics>,
    /// A project that it wants to be told of as well, without having attached a session to it.
    pub observed: Option<Binding>,
    /// A watch of nodes' services that was just answered; to be taken by who holds the connection.
    pub begun: Option<Beginning>,
    /// From where the connection came.
    pub peer: Option<SocketAddr>,
    /// The initial binding was looked for.
    settled: bool,
    pub(super) bindings: BTreeMap<String, Attached>,
    pub(super) active: String,
}

impl Session {
    pub fn new(principal: Principal, door: Door) -> Session {
        Session {
            principal,
            door,
            negotiated: false,
            subscribed: None,
            observed: None,
            begun: None,
            peer: None,
            settled: false,
            bindings: BTreeMap::new(),
            active: MAIN.into(),
        }
    }

    pub fn is_admin(&self) -> bool {
        self.principal.role == Role::Admin
    }

    /// Finds out once where the principal begins (spec: control 4.1); may look at the disk.
    pub fn settle(&mut self, cx: &Context) {
        if self.settled {
            return;
        }
        self.settled = true;
        if let Some(binding) = super::initial_binding(cx, &self.principal) {
            let actor = self.usual_actor();
            let main = Attached { binding, actor, touched_at_ms: now_ms(), by_client: false };
            self.bindings.insert(MAIN.into(), main);
        }
    }

    /// The actor of those who name none.
    pub fn usual_actor(&self) -> Actor {
        Actor { kind: "user".into(), id: self.principal.name.clone() }
    }

    /// The binding that requests without a session key act under; a user who has attached nothing has
    /// none, and may act for nobody.
    pub fn active(&self) -> Option<&Binding> {
        self.bindings.get(&self.active).map(|a| &a.binding)
    }

    pub fn active_key(&self) -> &str {
        &self.active
    }

    /// The sessions that the client has attached.
    pub fn attached(&self) -> impl Iterator<Item = (&str, &Binding)> {
        let named = self.bindings.iter().filter(|(_, a)| a.by_client);
        named.map(|(key, a)| (key.as_str(), &a.binding))
    }

    /// All that it may act under.
    pub fn bindings(&self) -> impl Iterator<Item = (&str, &Binding)> {
        self.bindings.iter().map(|(key, a)| (key.as_str(), &a.binding))
    }

    /// The binding of a session key, or of the active one. Errors: `session_not_found`.
    pub fn binding(&self, key: Option<&str>) -> Result<&Binding> {
        self.session(key.unwrap_or(&self.active)).map(|a| &a.binding)
    }

    /// Errors: `session_not_found`; `forbidden` where the role does not admit the binding, however it
    /// came here.
    pub(super) fn session(&self, key: &str) -> Result<&Attached> {
        let found = self.bindings.get(key).ok_or_else(|| {
            Error::new(Code::SessionNotFound, format!("session {key:?} is not attached here"))
        })?;
        let project_id = found.binding.project_id.as_deref().unwrap_or(SYSTEM);
        check_role(self.principal.role, &found.binding.agent_id, project_id)?;
        Ok(found)
    }

    /// The agent that acts: that of the active binding.
    pub fn agent_id(&self) -> Option<&str> {
        self.active().map(|b| b.agent_id.as_str())
    }

    /// What keeps this connection from acting: a user has to attach first.
    pub fn gate(&self, bootstrap_only: bool) -> Option<Gate> {
        match self.principal.role {
            Role::User if self.bindings.is_empty() && bootstrap_only => {
                Some(Gate::ProvisioningRequired)
            }
            Role::User if self.bindings.is_empty() => Some(Gate::ProjectContextRequired),
            _ => None,
        }
    }
}

/// Mother is for admins, and belongs to the system project (spec: control 5.3). Errors: `forbidden`.
pub fn check_role(role: Role, agent_id: &str, project_id: &str) -> Result<()> {
    let forbidden = |what: &'static str| Err(Error::new(Code::Forbidden, what));
    if role != Role::Admin && agent_id == MOTHER {
        return forbidden("user role cannot attach to mother agent");
    }
    if role != Role::Admin && project_id == SYSTEM {
        return forbidden("user role cannot attach to the system project");
    }
    if agent_id == MOTHER && project_id != SYSTEM {
        return forbidden("mother can only attach to system project");
    }
    Ok(())
}
