//! Who may do what in a project (spec: control 6): the access policy and its one decision.

use super::state::{MOTHER, Project};
use crate::base::{Code, Error, Result, id};
use crate::wire::Fields;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Read,
    Observe,
    Invoke,
    Mount,
    Bind,
    Admin,
}

impl Action {
    const ALL: [Action; 6] =
        [Action::Read, Action::Observe, Action::Invoke, Action::Mount, Action::Bind, Action::Admin];

    pub fn name(self) -> &'static str {
        match self {
            Action::Read => "read",
            Action::Observe => "observe",
            Action::Invoke => "invoke",
            Action::Mount => "mount",
            Action::Bind => "bind",
            Action::Admin => "admin",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Open,
    Token,
    Admin,
    Deny,
}

impl Mode {
    fn parse(s: &str) -> Option<Mode> {
        Some(match s {
            "open" | "allow" => Mode::Open,
            "token" | "token-required" | "token_or_admin" => Mode::Token,
            "admin" | "admin-only" => Mode::Admin,
            "deny" | "disabled" => Mode::Deny,
            _ => return None,
        })
    }
}

type Modes = BTreeMap<Action, Mode>;

/// The modes set for a project, and those that differ for single agents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub actions: Modes,
    pub agents: BTreeMap<String, Modes>,
}

impl Policy {
    /// Reads `access_policy` as clients send it (spec: control 6.2). Errors: `invalid_payload`.
    pub fn read(f: &Fields<'_>) -> Result<Policy> {
        let mut policy = Policy { actions: modes(f)?, ..Policy::default() };
        let Some(agents) = f.get("agents") else { return Ok(policy) };
        let mut put = |agent_id: &str, f: &Fields<'_>| {
            if !id::is_identifier(agent_id, 128) {
                return Err(bad(format!("access_policy.agents: {agent_id:?} is no agent id")));
            }
            let modes = modes(f)?;
            if !modes.is_empty() {
                policy.agents.insert(agent_id.to_owned(), modes);
            }
            Ok(())
        };
        if let Some(list) = f.array("agents").ok().flatten() {
            for entry in list {
                let f = Fields::of("access_policy.agents[]", entry)?;
                put(&f.required("agent_id")?, &f)?;
            }
        } else {
            for (agent_id, value) in Fields::of("access_policy.agents", agents)?.iter() {
                put(agent_id, &Fields::of("access_policy.agents", value)?)?;
            }
        }
        Ok(policy)
    }

    /// The name of a member of `access_policy` that [`Policy::read`] understands nothing of, if there is one.
    pub fn passed_over(f: &Fields<'_>) -> Option<String> {
        let is_action =
            |name: &str| name == "watch" || Action::ALL.iter().any(|a| a.name() == name);
        let of_modes = |f: &Fields<'_>, own: &str| {
            let inner = f.object("actions").ok().flatten().unwrap_or_default();
            let outer = f.iter().map(|(name, _)| name).filter(|n| !["actions", own].contains(n));
            let mut names = outer.chain(inner.iter().map(|(name, _)| name));
            names.find(|name| !is_action(name)).map(str::to_owned)
        };
        let by_id = f.object("agents").ok().flatten().unwrap_or_default();
        let list = f.array("agents").ok().flatten().unwrap_or_default();
        let agents = by_id.iter().map(|(_, value)| value).chain(list);
        let of_agent =
            |value| of_modes(&Fields::of("access_policy.agents", value).ok()?, "agent_id");
        of_modes(f, "agents").or_else(|| agents.filter_map(of_agent).next())
    }

    fn mode(&self, action: Action, agent_id: Option<&str>) -> Option<Mode> {
        let own = agent_id.and_then(|a| self.agents.get(a)).and_then(|m| m.get(&action));
        own.or_else(|| self.actions.get(&action)).copied()
    }
}

fn bad(message: String) -> Error {
    Error::new(Code::InvalidPayload, message)
}

/// The actions set in an object, at its top or in its `actions`; the latter win.
fn modes(f: &Fields<'_>) -> Result<Modes> {
    let inner = f.object("actions")?.unwrap_or_default();
    let mut modes = Modes::new();
    for action in Action::ALL {
        let key = action.name();
        let alias = (action == Action::Observe).then_some("watch");
        let found = [Some(key), alias]
            .into_iter()
            .flatten()
            .find_map(|k| inner.get(k).map(|_| (&inner, k)).or_else(|| f.get(k).map(|_| (f, k))));
        let Some((from, key)) = found else { continue };
        let text = from.str(key)?.unwrap_or_default();
        let mode = Mode::parse(&text).ok_or_else(|| {
            bad(format!("access_policy: {key} must be one of open, token, admin, deny"))
        })?;
        modes.insert(action, mode);
    }
    Ok(modes)
}

/// Who asks for an action.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    pub admin: bool,
    pub agent_id: Option<&'a str>,
    pub token: Option<&'a str>,
}

/// The decision of spec: control 6.3. Errors: `project_assignment_forbidden` (the system project),
/// `missing_field` (a token is needed), `project_auth_failed`, `project_policy_forbidden`.
pub fn check(project: &Project, action: Action, who: Asker<'_>) -> Result<()> {
    if who.admin {
        return Ok(());
    }
    if project.is_system() {
        return if who.agent_id == Some(MOTHER) {
            Ok(())
        } else {
            Err(Error::new(
                Code::ProjectAssignmentForbidden,
                "the system project is for admins and for agent mother",
            ))
        };
    }
    let policy = &project.policy;
    let mut mode = policy.mode(action, who.agent_id);
    if action == Action::Bind && mode.is_none() {
        mode = policy.mode(Action::Mount, who.agent_id);
    }
    let default = if project.token_locked { Mode::Token } else { Mode::Open };
    let (id, name) = (project.id(), action.name());
    match mode.unwrap_or(default) {
        Mode::Open => Ok(()),
        Mode::Admin | Mode::Deny => Err(Error::new(
            Code::ProjectPolicyForbidden,
            format!("the access policy of {id} does not allow {name}"),
        )),
        Mode::Token => match who.token {
            None => Err(Error::new(
                Code::MissingField,
                format!("project_token is required: {id} allows {name} only with it"),
            )),
            Some(token) if project.token_locked && id::same_secret(token, &project.token) => Ok(()),
            Some(_) => Err(Error::new(
                Code::ProjectAuthFailed,
                format!("project_token is not that of {id}"),
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::Profile;
    use super::*;
    use std::sync::Arc;

    fn policy(text: &str) -> Result<Policy> {
        Policy::read(&Fields::parse(text).unwrap())
    }

    fn project(policy: Policy, locked: bool) -> Project {
        let profile = Profile {
            number: 1,
            name: "Demo".into(),
            vision: "v".into(),
            status: "active".into(),
            token: "proj-secret".into(),
            token_locked: locked,
            created_at_ms: 0,
            updated_at_ms: 0,
            policy,
            template_id: None,
        };
        Arc::new(profile).into()
    }

    fn decide(p: &Project, action: Action, agent: &str, token: Option<&str>) -> Option<Code> {
        let who = Asker { admin: false, agent_id: Some(agent), token };
        check(p, action, who).err().map(|e| e.code)
    }

    #[test]
    fn the_decision_table() {
        let open = project(Policy::default(), false);
        assert_eq!(decide(&open, Action::Admin, "a", None), None);
        let locked = project(Policy::default(), true);
        assert_eq!(decide(&locked, Action::Read, "a", None), Some(Code::MissingField));
        assert_eq!(decide(&locked, Action::Read, "a", Some("x")), Some(Code::ProjectAuthFailed));
        assert_eq!(decide(&locked, Action::Read, "a", Some("proj-secret")), None);

        let p = policy(
            r#"{"read":"open","actions":{"mount":"admin"},"agents":{"bob":{"mount":"allow"}}}"#,
        );
        let p = project(p.unwrap(), true);
        assert_eq!(decide(&p, Action::Read, "a", None), None);
        assert_eq!(decide(&p, Action::Mount, "a", None), Some(Code::ProjectPolicyForbidden));
        assert_eq!(decide(&p, Action::Mount, "bob", None), None);
        assert_eq!(decide(&p, Action::Bind, "bob", None), None, "bind follows mount");
        let admin = Asker { admin: true, agent_id: None, token: None };
        assert!(check(&p, Action::Mount, admin).is_ok());
    }

    #[test]
    fn policies_are_read_in_every_spelling_and_refused_with_the_key() {
        let p =
            policy(r#"{"watch":"disabled","agents":[{"agent_id":"x","read":"token_or_admin"}]}"#);
        let p = p.unwrap();
        assert_eq!(p.actions[&Action::Observe], Mode::Deny);
        assert_eq!(p.agents["x"][&Action::Read], Mode::Token);
        let e = policy(r#"{"read":"sometimes"}"#).unwrap_err();
        assert!(e.code == Code::InvalidPayload && e.message.contains("read"), "{e}");
        assert!(policy(r#"{"agents":{"a/b":{"read":"open"}}}"#).is_err());
        assert!(policy(r#"{"read":7}"#).is_err());
    }
}
