//! The later protocol's names: its workspaces are our projects (spec: control 13). No operations: an
//! alias is a line of a table, and what it stands for is in [`super::TABLE`].

use serde_json::Value;

/// Second names of operations, each with the first.
pub const ALIASES: &[(&str, &str)] = &[
    ("workspace_up", "project_up"),
    ("workspace_create", "project_create"),
    ("workspace_update", "project_update"),
    ("workspace_delete", "project_delete"),
    ("workspace_activate", "project_activate"),
    ("workspace_list", "project_list"),
    ("workspace_get", "project_get"),
    ("workspace_token_rotate", "project_token_rotate"),
    ("workspace_token_revoke", "project_token_revoke"),
    ("workspace_mount_set", "project_mount_set"),
    ("workspace_mount_remove", "project_mount_remove"),
    ("workspace_mount_list", "project_mount_list"),
    ("workspace_bind_set", "project_bind_set"),
    ("workspace_bind_remove", "project_bind_remove"),
    ("workspace_bind_list", "project_bind_list"),
];

/// Second names of fields, understood in every request.
pub(super) const FIELDS: &[(&str, &str)] =
    &[("workspace_id", "project_id"), ("workspace_token", "project_token")];

pub(super) fn first_name(name: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, first)| first)
}

/// The payload that answers operation `name`. Who asks by a second name finds the fields under theirs,
/// too.
pub(super) fn answer(name: &str, payload: String) -> String {
    if first_name(name) == name {
        return payload;
    }
    let Ok(mut value) = serde_json::from_str(&payload) else { return payload };
    respell(&mut value);
    value.to_string()
}

fn respell(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(respell),
        Value::Object(members) => {
            members.values_mut().for_each(respell);
            for (second, first) in FIELDS {
                if let Some(value) = members.get(*first).cloned() {
                    members.insert((*second).into(), value);
                }
            }
            // Not twice: it may be long.
            if let Some(list) = members.remove("projects") {
                members.insert("workspaces".into(), list);
            }
        }
        _ => {}
    }
}
