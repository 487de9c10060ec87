//! What the gateway knows of one connection: who it is, which sessions it has attached, and whether it
//! may do anything yet (spec: control 4).

use super::events::Beginning;
use super::topics::Topics;
use crate::base::{Code, Error, Result};
use std::collections::BTreeMap;

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

#[derive(Debug)]
pub struct Session {
    pub principal: Principal,
    pub door: Door,
    /// `control.version` was answered.
    pub negotiated: bool,
    /// What it wants to be told of.
    pub subscribed: Option<Topics>,
    /// A watch of nodes' services that was just answered; to be taken by who holds the connection.
    pub begun: Option<Beginning>,
    pub(super) bindings: BTreeMap<String, Binding>,
    pub(super) active: String,
}

impl Session {
    pub fn new(principal: Principal, door: Door) -> Session {
        let main = super::initial_binding(principal.role).map(|b| (MAIN.to_owned(), b));
        Session {
            principal,
            door,
            negotiated: false,
            subscribed: None,
            begun: None,
            bindings: main.into_iter().collect(),
            active: MAIN.into(),
        }
    }

    pub fn is_admin(&self) -> bool {
        self.principal.role == Role::Admin
    }

    /// The binding that requests without a session key act under; a user who has attached nothing has
    /// none, and may act for nobody.
    pub fn active(&self) -> Option<&Binding> {
        self.bindings.get(&self.active)
    }

    pub fn active_key(&self) -> &str {
        &self.active
    }

    /// The sessions that were attached by name.
    pub fn attached(&self) -> impl Iterator<Item = (&str, &Binding)> {
        let named = self.bindings.iter().filter(|(key, _)| *key != MAIN || !self.is_admin());
        named.map(|(key, binding)| (key.as_str(), binding))
    }

    /// The binding of a session key, or of the active one. Errors: `session_not_found`.
    pub fn binding(&self, key: Option<&str>) -> Result<&Binding> {
        let key = key.unwrap_or(&self.active);
        self.bindings.get(key).ok_or_else(|| {
            Error::new(Code::SessionNotFound, format!("session {key:?} is not attached here"))
        })
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
