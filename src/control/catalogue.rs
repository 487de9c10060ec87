//! What a node's catalogue says of its services (spec: namespace 9): what each is, where in the namespace
//! it stands, and who may use it. Nodes say what they like; what is theirs to say is decided here.

use super::policy::{Action, Asker, check};
use super::state::{MOTHER, Node, Service, State};
use crate::base::{Name, TreePath, id};
use serde_json::Value;
use std::collections::BTreeSet;

/// Places in the namespace that one service may have.
const PATHS_MAX: usize = 8;
/// Names in a node's directory that are no service's.
const OWN: [&str; 7] =
    ["README.md", "SCHEMA.json", "CAPS.json", "NODE.json", "STATUS.json", "services", "fs"];
/// Members of `runtime` that name what runs (spec: fs 14.3; `entry`: of a terminal).
const PROGRAMS: [&str; 4] = ["executable_path", "library_path", "module_path", "entry"];

impl Node {
    /// Whether it has files of its own: one that has never published a catalogue may.
    pub fn shows_files(&self) -> bool {
        self.services.is_empty() || self.services.iter().any(|s| s.kind() == "fs")
    }

    /// The names of its exports, where its catalogue tells them, as the service `fs` does.
    pub fn exports(&self) -> Option<BTreeSet<&str>> {
        let lists = self.services.iter().map(|s| &s.document["capabilities"]["exports"]);
        let told = lists.filter_map(Value::as_array).next()?;
        Some(told.iter().filter_map(Value::as_str).collect())
    }
}

impl Service {
    fn text(&self, member: &str) -> Option<&str> {
        self.document[member].as_str()
    }

    pub fn kind(&self) -> &str {
        self.text("kind").unwrap_or_default()
    }

    pub fn state(&self) -> &str {
        self.text("state").unwrap_or("unknown")
    }

    /// Whether it can be shown under its id.
    pub fn has_a_name(&self) -> bool {
        Name::text(&self.service_id).is_ok()
    }

    /// Whether the node has a program for it, and so an export of its files.
    pub fn runs(&self) -> bool {
        let runtime = &self.document["runtime"];
        PROGRAMS.iter().any(|member| runtime[member].as_str().is_some_and(|p| !p.is_empty()))
    }

    /// Where it says that it is.
    pub fn endpoint(&self, node_id: &str) -> String {
        let all = self.document["endpoints"].as_array().into_iter().flatten();
        let first = all.filter_map(Value::as_str).find(|e| !e.is_empty());
        first.map_or_else(|| format!("/nodes/{node_id}/{}", self.service_id), str::to_owned)
    }

    /// Where it stands: at its endpoints and mounts below the directory of its node, else there under its
    /// id. What a node asks for elsewhere, or in place of what it is itself, it does not get.
    pub fn paths(&self, node_id: &str) -> Vec<TreePath> {
        let Ok(home) = TreePath::parse(format!("/nodes/{node_id}")) else { return Vec::new() };
        let is_free = |path: &TreePath| {
            let below = path.below(&home);
            let first = below.as_ref().and_then(|rest| rest.names().next()?.as_str());
            first.is_some_and(|name| id::is_identifier(name, 128) && !OWN.contains(&name))
        };
        let list = |member: &str| self.document[member].as_array().into_iter().flatten();
        let endpoints = list("endpoints").filter_map(Value::as_str);
        let asked = endpoints.chain(list("mounts").filter_map(|m| m["mount_path"].as_str()));
        let asked = asked.take(PATHS_MAX).filter_map(|path| TreePath::parse(path).ok());
        let mut paths: Vec<TreePath> = Vec::new();
        for path in asked.filter(is_free) {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        if paths.is_empty() {
            let own = TreePath::parse(format!("/nodes/{node_id}/{}", self.service_id));
            paths.extend(own.ok().filter(is_free));
        }
        paths
    }

    /// Whether it can be invoked, by its own account (spec: control 10.4).
    pub fn is_invokable(&self) -> bool {
        let (ops, capabilities) = (&self.document["ops"], &self.document["capabilities"]);
        let named = |v: &Value| v.as_str().is_some_and(|path| !path.trim().is_empty());
        capabilities["invoke"] == true || named(&ops["invoke"]) || named(&ops["paths"]["invoke"])
    }

    /// Every path at which it says that it is, wherever.
    pub fn claims(&self) -> impl Iterator<Item = &str> {
        let list = |member: &str| self.document[member].as_array().into_iter().flatten();
        let mounts = list("mounts").map(|m| &m["mount_path"]);
        mounts.chain(list("endpoints")).filter_map(Value::as_str)
    }

    /// Whether it may be seen and used (spec: namespace 9.5) by somebody who works in this project.
    pub fn admits(&self, state: &State, project_id: Option<&str>, who: Asker<'_>) -> bool {
        if who.admin {
            return true;
        }
        let may_invoke = |id: &str| {
            who.agent_id == Some(MOTHER)
                || state.project(id).is_ok_and(|p| check(p, Action::Invoke, who).is_ok())
        };
        project_id.is_none_or(may_invoke) && permitted(&self.document["permissions"], who)
    }
}

/// What `permissions` says of those who are no admins. Nonsense permits nothing.
fn permitted(permissions: &Value, who: Asker<'_>) -> bool {
    let Some(p) = permissions.as_object() else { return permissions.is_null() };
    let needs_token = |name: &str| p.get(name).is_some_and(|v| *v != Value::Bool(false));
    if (needs_token("require_project_token") || needs_token("project_token_required"))
        && who.token.is_none()
    {
        return false;
    }
    match (p.get("allow_roles"), p.get("default")) {
        (Some(Value::Array(roles)), _) => {
            roles.iter().any(|r| matches!(r.as_str(), Some("user" | "*" | "all")))
        }
        (Some(_), _) => false,
        (None, None) => true,
        (None, Some(default)) => {
            default.as_str().is_some_and(|d| !matches!(d, "deny" | "deny-by-default"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(document: Value) -> Service {
        Service { service_id: "echo".into(), version: "1".into(), document }
    }

    fn paths(document: Value) -> Vec<String> {
        let paths = service(document).paths("node-1");
        paths.iter().map(|p| p.as_os_str().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_service_stands_where_it_asks_to_within_its_own_node() {
        let at = |path: &str| json!({"mount_id": "m", "mount_path": path});
        assert_eq!(
            paths(json!({"endpoints": ["/nodes/node-1/e"],
                "mounts": [at("/nodes/node-1/e"), at("/nodes/node-1/tools/e")]})),
            ["/nodes/node-1/e", "/nodes/node-1/tools/e"]
        );
        assert_eq!(paths(json!({})), ["/nodes/node-1/echo"]);
        for foreign in [
            "/",
            "/agents/self/chat",
            "/nodes/node-1",
            "/nodes/node-10/x",
            "/nodes/node-2/echo",
            "/nodes/node-1/../node-2/echo",
            "/nodes/node-1/NODE.json",
            "/nodes/node-1/services/other",
            "/nodes/node-1/fs/hidden",
            "/nodes/node-1/a b",
        ] {
            assert_eq!(
                paths(json!({"mounts": [at(foreign)]})),
                ["/nodes/node-1/echo"],
                "{foreign}"
            );
        }
        let reserved = Service { service_id: "services".into(), ..service(json!({})) };
        assert!(reserved.paths("node-1").is_empty());
        let many: Vec<_> = (0..100).map(|n| at(&format!("/nodes/node-1/{n}"))).collect();
        assert_eq!(paths(json!({"mounts": many})).len(), PATHS_MAX);
    }

    #[test]
    fn a_service_is_invokable_by_any_of_three_marks() {
        for (document, is) in [
            (json!({"capabilities": {"invoke": true}}), true),
            (json!({"capabilities": {"invoke": "true"}}), false),
            (json!({"ops": {"invoke": "control/invoke.json"}}), true),
            (json!({"ops": {"invoke": " "}}), false),
            (json!({"ops": {"paths": {"invoke": "x"}}}), true),
            (json!({"ops": {"paths": []}}), false),
            (json!({}), false),
        ] {
            assert_eq!(service(document.clone()).is_invokable(), is, "{document}");
        }
    }

    #[test]
    fn permissions_decide_for_users_and_nonsense_permits_nothing() {
        let user = Asker { admin: false, agent_id: Some("alice"), token: None };
        let with_token = Asker { token: Some("t"), ..user };
        for (permissions, user_may, token_may) in [
            (json!(null), true, true),
            (json!({}), true, true),
            (json!({"default": "allow"}), true, true),
            (json!({"default": "deny-by-default"}), false, false),
            (json!({"default": "deny-by-default", "allow_roles": ["admin", "user"]}), true, true),
            (json!({"allow_roles": ["admin"]}), false, false),
            (json!({"allow_roles": ["*"], "project_token_required": true}), false, true),
            (json!({"require_project_token": "yes"}), false, true),
            (json!({"default": 7}), false, false),
            (json!({"allow_roles": "user"}), false, false),
            (json!([]), false, false),
        ] {
            assert_eq!(permitted(&permissions, user), user_may, "{permissions}");
            assert_eq!(permitted(&permissions, with_token), token_may, "{permissions}");
        }
        let state = State::default();
        let closed = service(json!({"permissions": []}));
        let admin = Asker { admin: true, ..user };
        assert!(closed.admits(&state, Some("proj-9"), admin));
        assert!(!service(json!({})).admits(&state, Some("proj-9"), user), "no such project");
    }
}
