//! Mounts of services that can be invoked are not shown to those who may not invoke them (spec: control
//! 10.4).

use super::Viewer;
use crate::control::policy::{Action, check};
use crate::control::state::{Mount, Node, Project};
use serde_json::Value;
use std::collections::HashMap;

/// The invokable services of a node, by the paths that they cover.
#[derive(Default)]
pub struct Invocations<'s>(HashMap<&'s str, Vec<&'s Value>>);

impl<'s> Invocations<'s> {
    pub fn of(node: &'s Node) -> Invocations<'s> {
        let mut by_path: HashMap<&str, Vec<&Value>> = HashMap::new();
        for service in node.services.iter().map(|s| &s.document).filter(|s| is_invokable(s)) {
            for path in covered(service) {
                by_path.entry(path).or_default().push(service);
            }
        }
        Invocations(by_path)
    }

    pub fn may_see(&self, mount: &Mount, project: &Project, viewer: Viewer<'_>) -> bool {
        if viewer.admin {
            return true;
        }
        let Some(services) = self.0.get(&*mount.mount_path) else { return true };
        services.iter().all(|s| permits(&s["permissions"], viewer.token.is_some()))
            && check(project, Action::Invoke, viewer.asker()).is_ok()
    }
}

fn is_invokable(service: &Value) -> bool {
    let named = |v: &Value| v.as_str().is_some_and(|s| !s.trim().is_empty());
    let ops = &service["ops"];
    service["capabilities"]["invoke"] == true
        || named(&ops["invoke"])
        || named(&ops["paths"]["invoke"])
}

fn covered(service: &Value) -> impl Iterator<Item = &str> {
    let list = |key: &str| service[key].as_array().into_iter().flatten();
    let mounts = list("mounts").map(|m| &m["mount_path"]);
    mounts.chain(list("endpoints")).filter_map(Value::as_str)
}

/// What a service's own permissions say to a caller who is no admin.
fn permits(permissions: &Value, has_token: bool) -> bool {
    let wants_token = ["require_project_token", "project_token_required"];
    if !has_token && wants_token.iter().any(|key| permissions[key] == true) {
        return false;
    }
    match permissions["allow_roles"].as_array() {
        Some(roles) => roles.iter().any(|r| matches!(r.as_str(), Some("user" | "all" | "*"))),
        None => !matches!(permissions["default"].as_str(), Some("deny" | "deny-by-default")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_service_is_invokable_by_any_of_three_marks() {
        for (service, is) in [
            (json!({"capabilities": {"invoke": true}}), true),
            (json!({"capabilities": {"invoke": "true"}}), false),
            (json!({"ops": {"invoke": "control/invoke.json"}}), true),
            (json!({"ops": {"invoke": " "}}), false),
            (json!({"ops": {"paths": {"invoke": "x"}}}), true),
            (json!({"ops": {"paths": []}}), false),
            (json!({}), false),
        ] {
            assert_eq!(is_invokable(&service), is, "{service}");
        }
    }

    #[test]
    fn permissions_refuse_without_a_token_a_role_or_by_default() {
        for (permissions, token, permitted) in [
            (json!({}), false, true),
            (json!({"require_project_token": true}), false, false),
            (json!({"project_token_required": true}), true, true),
            (json!({"allow_roles": ["admin"]}), true, false),
            (json!({"allow_roles": ["admin", "user"], "default": "deny-by-default"}), false, true),
            (json!({"allow_roles": ["*"]}), false, true),
            (json!({"default": "deny"}), true, false),
            (json!({"allow_roles": "user"}), false, true),
            (json!("nonsense"), false, true),
        ] {
            assert_eq!(permits(&permissions, token), permitted, "{permissions}");
        }
    }
}
