//! Templates of workspaces, and projects made from them.

use super::*;
use std::collections::BTreeMap;

/// Templates by id, as text.
#[derive(Default)]
pub(super) struct FakeTemplates(Mutex<BTreeMap<String, String>>);

impl Templates for FakeTemplates {
    fn ids(&self) -> Result<Vec<String>> {
        Ok(self.0.lock().unwrap().keys().cloned().collect())
    }

    fn read(&self, template_id: &str) -> Result<String> {
        let found = self.0.lock().unwrap().get(template_id).cloned();
        found.ok_or_else(|| Error::new(Code::TemplateNotFound, "there is no such template"))
    }
}

impl FakeTemplates {
    pub(super) fn put(&self, template_id: &str, text: impl ToString) {
        self.0.lock().unwrap().insert(template_id.to_owned(), text.to_string());
    }
}

fn mount(path: &str) -> Value {
    json!({"mount_path": path, "node_name": "edge", "export_name": "work"})
}

fn bind(path: &str, target: &str) -> Value {
    json!({"bind_path": path, "target_path": target})
}

/// With a node "edge", and a template "base" that says all that one can.
fn gateway() -> (Gateway, String) {
    let g = Gateway::new();
    let (node, _) = g.connect(Role::Admin).node("edge");
    g.templates.put(
        "base",
        json!({"description": "For everyone", "vision": "From the template",
            "access_policy": {"actions": {"observe": "deny"}},
            "mounts": [mount("/src"), mount("/docs")], "binds": [bind("/repo", "/src/app")]}),
    );
    (g, node)
}

fn places(project: &Value) -> Vec<&str> {
    let all = |list: &str, path: &str| {
        let list = project[list].as_array().unwrap().iter();
        list.map(|entry| entry[path].as_str().unwrap()).collect::<Vec<_>>()
    };
    [all("mounts", "mount_path"), all("binds", "bind_path")].concat()
}

#[test]
fn templates_are_listed_and_one_that_is_wrong_hurts_no_other() {
    let (g, _) = gateway();
    g.templates.put("empty", "{}");
    g.templates.put("broken", "{\"mounts\": [");
    g.templates.put("list", "[]");
    let mut admin = g.connect(Role::Admin);
    let id = admin.project("Demo");
    let mut user = g.connect(Role::User);
    user.attach("alice", &id);
    for c in [&mut admin, &mut user] {
        let found = c.ok("workspace_template_list", json!({}));
        let [base, broken, empty, list] = &found["templates"].as_array().unwrap()[..] else {
            panic!("four expected: {found}")
        };
        assert_eq!(
            *base,
            json!({"template_id": "base", "description": "For everyone",
                "mount_count": 2, "bind_count": 1})
        );
        assert_eq!(
            *empty,
            json!({"template_id": "empty", "description": null, "mount_count": 0, "bind_count": 0})
        );
        assert!(broken["error"].as_str().unwrap().contains("not JSON"), "{broken}");
        assert!(list["error"].as_str().unwrap().contains("not an object"), "{list}");

        let shown = c.ok("workspace_template_get", json!({"template_id": "base"}));
        assert_eq!(
            shown["template"],
            json!({"template_id": "base", "description": "For everyone",
                "vision": "From the template",
                "access_policy": {"actions": {"observe": "deny"}, "agents": {}},
                "mounts": [mount("/src"), mount("/docs")], "binds": [bind("/repo", "/src/app")]})
        );
        let shown = c.ok("workspace_template_get", json!({"template_id": "empty"}));
        assert_eq!(
            (&shown["template"]["mounts"], shown["template"]["vision"].is_null()),
            (&Value::Null, true)
        );
        for (payload, code) in [
            (json!({}), Code::MissingField),
            (json!({"template_id": "../base"}), Code::InvalidPayload),
            (json!({"template_id": "x".repeat(65)}), Code::InvalidPayload),
            (json!({"template_id": "none"}), Code::TemplateNotFound),
            (json!({"template_id": "broken"}), Code::Invalid),
        ] {
            assert_eq!(c.err("workspace_template_get", payload.clone()), code, "{payload}");
        }
    }
}

#[test]
fn what_is_wrong_in_a_template_is_named_with_its_place() {
    let (g, _) = gateway();
    let mut c = g.connect(Role::Admin);
    let long = "x".repeat(1025);
    for (template, words) in [
        (json!({"visoin": "v"}), "unknown field \"visoin\""),
        (json!({"name": "Demo"}), "unknown field \"name\""),
        (json!({"vision": 7}), "vision must be a string"),
        (json!({"vision": long}), "vision must have 1 to 1024"),
        (json!({"description": ""}), "description must have 1 to 1024"),
        (json!({"access_policy": {"read": "maybe"}}), "access_policy: read must be"),
        (json!({"access_policy": {"raed": "deny"}}), "access_policy: unknown field \"raed\""),
        (json!({"access_policy": {"actions": {"raed": "deny"}}}), "unknown field \"raed\""),
        (json!({"access_policy": {"agents": {"bob": {"moutn": "deny"}}}}), "field \"moutn\""),
        (
            json!({"access_policy": {"agents": [{"agent_id": "bob", "moutn": "deny"}]}}),
            "field \"moutn\"",
        ),
        (json!({"mounts": {}}), "mounts must be an array"),
        (json!({"mounts": [mount("/a"), 7]}), "mounts[1] must be an object"),
        (
            json!({"mounts": [{"mount_path": "/a", "export_name": "work"}]}),
            "mounts[0]: node_id is required",
        ),
        (json!({"mounts": [mount("/a/../b")]}), "mounts[0]: mount_path"),
        (
            json!({"mounts": [{"mount_path": "/a", "node_id": "node-1", "export": "work"}]}),
            "mounts[0]: export_name is required",
        ),
        (
            json!({"mounts": [{"mount_path": "/a", "node_id": "node-1", "export_name": "work", "raedonly": 1}]}),
            "mounts[0]: unknown field \"raedonly\"",
        ),
        (json!({"mounts": vec![mount("/a"); 1001]}), "at most 1000 mounts"),
        (json!({"binds": [{"bind_path": "/a"}]}), "binds[0]: target_path is required"),
        (json!({"binds": [bind("/a", "/b"), bind("/a", "/c")]}), "bound to /b and to /c"),
    ] {
        g.templates.put("bad", &template);
        let before = g.cx.plane.state();
        let of = |name: &str| json!({"name": name, "vision": "v", "template_id": "bad"});
        for (name, payload) in [
            ("workspace_template_get", json!({"template_id": "bad"})),
            ("project_create", of("New")),
            ("project_up", of("New")),
        ] {
            let reply = c.call(name, payload);
            assert_eq!(reply["error"]["code"], "invalid", "{template}: {reply}");
            let message = reply["error"]["message"].as_str().unwrap();
            assert!(message.starts_with("template \"bad\": "), "{message}");
            assert!(message.contains(words), "{template}: {message}");
        }
        assert_eq!(*before, *g.cx.plane.state(), "{template}");
        let list = c.ok("workspace_template_list", json!({}));
        assert!(list["templates"][0]["error"].as_str().unwrap().contains(words), "{list}");
    }
}

#[test]
fn a_project_begins_with_its_template_and_what_the_request_says_wins() {
    let (g, node) = gateway();
    let mut c = g.connect(Role::Admin);
    let get = |c: &mut Client<'_>, id: &Value| c.ok("workspace_get", json!({"workspace_id": id}));
    for create in ["project_create", "workspace_create", "project_up", "workspace_up"] {
        let demo = format!("Demo {create}");
        let made = c.ok(create, json!({"name": demo, "template_id": "base", "activate": false}));
        let made = get(&mut c, &made["project_id"]);
        assert_eq!(
            (&made["template_id"], &made["vision"]),
            (&json!("base"), &json!("From the template"))
        );
        assert_eq!(made["access_policy"]["actions"], json!({"observe": "deny"}));
        assert_eq!(places(&made), ["/src", "/docs", "/repo"]);
        assert_eq!(made["mounts"][0]["node_id"], node);

        let own = json!({"name": format!("Own {create}"), "vision": "Own", "template_id": "base",
            "access_policy": {"read": "open"}, "desired_mounts": [mount("/own")],
            "desired_binds": [], "activate": false});
        let made = c.ok(create, own);
        let made = get(&mut c, &made["project_id"]);
        assert_eq!((&made["vision"], &made["template_id"]), (&json!("Own"), &json!("base")));
        assert_eq!(made["access_policy"]["actions"], json!({"read": "open"}), "as a whole");
        assert_eq!(places(&made), ["/own"], "lists, too");
    }
    let list = c.ok("workspace_list", json!({}));
    let [system, first, ..] = &list["workspaces"].as_array().unwrap()[..] else { panic!("{list}") };
    assert_eq!((&system["template_id"], &first["template_id"]), (&Value::Null, &json!("base")));
    assert_eq!((&first["mount_count"], &first["bind_count"]), (&json!(2), &json!(1)));
}

#[test]
fn a_template_is_applied_when_it_is_asked_for_and_not_again() {
    let (g, _) = gateway();
    let mut c = g.connect(Role::Admin);
    let id = c.project("Demo");
    let up = json!({"project_id": id, "template_id": "base", "activate": false});
    c.ok("project_up", up.clone());
    let get = |c: &mut Client<'_>| c.ok("project_get", json!({"project_id": id}));
    let first = get(&mut c);
    assert_eq!((&first["name"], &first["template_id"]), (&json!("Demo"), &json!("base")));
    assert_eq!(places(&first), ["/src", "/docs", "/repo"]);
    c.ok("project_up", up.clone());
    assert_eq!(get(&mut c), first, "nothing is written that is so already");

    g.templates.put("base", json!({"mounts": [mount("/src")]}));
    c.ok("project_up", json!({"project_id": id, "status": "paused", "activate": false}));
    let later = get(&mut c);
    assert_eq!(places(&later), places(&first));
    assert_eq!(later["template_id"], "base");
    drop(c);
    let g = g.reopen();
    let mut c = g.connect(Role::Admin);
    assert_eq!(get(&mut c), later, "kept");
    assert_eq!(c.err("project_up", up.clone()), Code::TemplateNotFound);
    g.templates.put("base", json!({"vision": "Next", "mounts": [mount("/src")]}));
    c.ok("project_up", up);
    let next = get(&mut c);
    assert_eq!(places(&next), ["/src", "/repo"], "of what it does not say everything stays");
    assert_eq!((&next["vision"], &next["status"]), (&json!("Next"), &json!("paused")));
}

#[test]
fn a_template_that_does_not_fit_changes_nothing_and_needs_the_same_rights() {
    let (g, _) = gateway();
    let mut c = g.connect(Role::Admin);
    let id = c.project("Demo");
    c.ok("project_update", json!({"project_id": id, "access_policy": {"admin": "admin"}}));
    let before = c.ok("project_get", json!({"project_id": id}));
    let strange = json!({"mount_path": "/a", "node_name": "gone", "export_name": "work"});
    for (template, code) in [
        (json!({"mounts": [strange]}), Code::NodeNotFound),
        (json!({"mounts": [mount("/a"), mount("/a/b")]}), Code::MountConflict),
        (json!({"vision": "New", "binds": [bind("/a", "/src")]}), Code::BindConflict),
    ] {
        g.templates.put("odd", &template);
        let up = json!({"project_id": id, "template_id": "odd", "agent_id": "alice"});
        assert_eq!(c.err("project_up", up), code, "{template}");
        assert_eq!(
            c.err("project_create", json!({"name": "x", "vision": "v", "template_id": "odd"})),
            code
        );
        g.templates.put("odd", "{}");
        let vision = json!({"name": "x", "template_id": "odd"});
        assert_eq!(c.err("project_create", vision), Code::MissingField, "no vision anywhere");
    }
    for (payload, code) in [
        (json!({"template_id": ""}), Code::InvalidPayload),
        (json!({"template_id": 7}), Code::InvalidPayload),
        (json!({"template_id": "none"}), Code::TemplateNotFound),
    ] {
        let mut up = json!({"project_id": id});
        up.as_object_mut().unwrap().extend(payload.as_object().unwrap().clone());
        assert_eq!(c.err("project_up", up), code, "{payload}");
    }
    let mut user = g.connect(Role::User);
    user.attach("alice", &id);
    // It is remembered, which is a change of the project's.
    let up = json!({"project_id": id, "template_id": "odd", "activate": false});
    assert_eq!(user.err("project_up", up), Code::ProjectPolicyForbidden);
    let system = json!({"project_id": "system", "template_id": "odd"});
    assert_eq!(c.err("project_up", system), Code::ProjectProtected);
    assert_eq!(c.ok("project_get", json!({"project_id": id})), before);
    assert_eq!(g.cx.plane.state().projects.size(), 2, "no other was made");
}
