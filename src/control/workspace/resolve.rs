//! Which member of each failover group serves, and what has drifted from the wish (spec: control 10). A
//! function of the state and the time: whoever asks at one moment gets one answer.

use super::{Availability, Viewer};
use crate::control::state::{Mount, Node, Project, Service, State};
use crate::wire::control::{MountState, WorkspaceMount};
use crate::wire::fs::{Access, Grant};
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};

/// A difference between the wish and what serves now (spec: control 10.3).
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
    /// One for each path.
    pub selected: Vec<WorkspaceMount>,
    pub drift: Vec<Drift>,
}

impl Workspace {
    pub fn of(state: &State, project: &Project, viewer: Viewer<'_>, now_ms: i64) -> Workspace {
        let project_id = project.id();
        let mut nodes: HashMap<&str, Option<Seen<'_>>> = HashMap::new();
        for mount in project.mounts.iter() {
            let seen = || state.node(&mount.node_id).ok().map(|n| Seen::of(n, viewer, now_ms));
            nodes.entry(&mount.node_id).or_insert_with(seen);
        }
        let members =
            project.mounts.iter().map(|mount| Member::of(mount, nodes[&*mount.node_id].as_ref()));
        let visible = |m: &Member<'_>| {
            let services = m.seen.and_then(|seen| seen.invokable.get(&*m.mount.mount_path));
            let admitted = |s: &&Service| s.admits(state, Some(&project_id), viewer.asker());
            services.is_none_or(|services| services.iter().all(admitted))
        };
        let members: Vec<_> = members.filter(visible).collect();

        let mut groups: Vec<Vec<&Member<'_>>> = Vec::new();
        let mut by_path: HashMap<&str, usize> = HashMap::new();
        for member in &members {
            let place = *by_path.entry(&member.mount.mount_path).or_insert_with(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
            groups[place].push(member);
        }
        let mut workspace = Workspace {
            desired: members.iter().map(Member::shown).collect(),
            ..Workspace::default()
        };
        for group in &groups {
            let chosen = choose(group);
            workspace.selected.push(chosen.shown());
            workspace.drift.extend(drift(group, chosen));
        }
        workspace
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

    /// A number that says what is mounted where and how it stands, whatever the order.
    pub fn digest(&self) -> u64 {
        let one = |m: &WorkspaceMount| {
            let mut h = std::hash::DefaultHasher::new();
            (&m.mount_path, &m.node_id, &m.export_name, m.state).hash(&mut h);
            h.finish()
        };
        self.selected.iter().map(one).fold(0, u64::wrapping_add)
    }

    /// With what opens each mount's files to its viewer, who is called `bearer`: a grant for the one export,
    /// where the gateway itself stands at the node's door, and else, to admins only, the node's secret, the
    /// only thing that the node can be known to take.
    pub fn with_tokens(
        mut self,
        state: &State,
        viewer: Viewer<'_>,
        bearer: &str,
        now_ms: i64,
    ) -> Workspace {
        let expires_at_s = grant_end_s(now_ms);
        let mut made: HashMap<(String, String), Option<String>> = HashMap::new();
        for mount in self.desired.iter_mut().chain(&mut self.selected) {
            let Ok(node) = state.node(&mount.node_id) else { continue };
            let key = (mount.node_id.clone(), mount.export_name.clone());
            let token = made.entry(key).or_insert_with(|| match node.is_routed() {
                true => {
                    let exports = [(mount.export_name.clone(), Access::ReadWrite)].into();
                    Grant { exports, sub: bearer.to_owned(), expires_at_s }.mint(&node.secret).ok()
                }
                false => viewer.admin.then(|| node.secret.clone()),
            });
            mount.fs_auth_token.clone_from(token);
        }
        self
    }

    /// What needs something done.
    pub fn errors(&self) -> impl Iterator<Item = &Drift> {
        self.drift.iter().filter(|d| d.severity == "error")
    }

    pub fn queue_depth(&self) -> usize {
        self.errors().count()
    }
}

/// Time that a grant is good for, at least, and how often another one is made: one that was handed out is
/// the same until then, so that who asks again sees no change.
const GRANT_S: u64 = 3_600;
const RENEWED_S: u64 = 900;

fn grant_end_s(now_ms: i64) -> u64 {
    let now_s = u64::try_from(now_ms / 1000).unwrap_or_default();
    (now_s / RENEWED_S + 1) * RENEWED_S + GRANT_S
}

/// What matters here of a node, looked at once however many of its exports are mounted.
struct Seen<'s> {
    node: &'s Node,
    online: bool,
    settling: bool,
    exports: Option<BTreeSet<&'s str>>,
    /// Services that can be invoked, by the paths that they are at: who may not use them does not see
    /// them (spec: control 10.4). Admins see everything.
    invokable: HashMap<&'s str, Vec<&'s Service>>,
}

impl<'s> Seen<'s> {
    fn of(node: &'s Node, viewer: Viewer<'_>, now_ms: i64) -> Seen<'s> {
        let mut invokable: HashMap<&str, Vec<&Service>> = HashMap::new();
        for service in node.services.iter().filter(|s| !viewer.admin && s.is_invokable()) {
            service.claims().for_each(|path| invokable.entry(path).or_default().push(service));
        }
        Seen {
            node,
            online: node.online(now_ms),
            settling: node.is_settling(now_ms),
            exports: node.exports(),
            invokable,
        }
    }
}

/// How well a mount can serve, from bad to good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    UnknownNode,
    UnknownExport,
    Offline,
    Online,
}

struct Member<'s> {
    mount: &'s Mount,
    seen: Option<&'s Seen<'s>>,
    health: Health,
}

impl<'s> Member<'s> {
    fn of(mount: &'s Mount, seen: Option<&'s Seen<'s>>) -> Member<'s> {
        let lacks = |names: &BTreeSet<&str>| !names.contains(&*mount.export_name);
        let health = match seen {
            None => Health::UnknownNode,
            Some(seen) if seen.exports.as_ref().is_some_and(lacks) => Health::UnknownExport,
            Some(seen) if seen.online => Health::Online,
            Some(_) => Health::Offline,
        };
        Member { mount, seen, health }
    }

    fn revived_at_ms(&self) -> i64 {
        self.seen.map_or(0, |seen| seen.node.revived_at_ms)
    }

    fn shown(&self) -> WorkspaceMount {
        let node = self.seen.map(|seen| seen.node);
        WorkspaceMount {
            mount_path: self.mount.mount_path.clone(),
            node_id: self.mount.node_id.clone(),
            export_name: self.mount.export_name.clone(),
            node_name: node.map(|n| n.name.clone()),
            fs_url: node.map(|n| n.fs_url.clone()),
            fs_auth_token: None,
            online: self.health == Health::Online,
            state: match self.health {
                Health::UnknownNode | Health::UnknownExport => MountState::Missing,
                Health::Offline => MountState::Degraded,
                Health::Online => MountState::Online,
            },
        }
    }
}

/// The first configured of the best: not the one whose lease is longest, so the choice does not flip at
/// every refresh. One that has just come back waits while another serves that was there before it.
fn choose<'m, 's>(group: &[&'m Member<'s>]) -> &'m Member<'s> {
    let best = group.iter().map(|m| m.health).max();
    let candidates = || group.iter().copied().filter(|m| Some(m.health) == best);
    let oldest_ms = candidates().map(Member::revived_at_ms).min().unwrap_or_default();
    let waits = |m: &&Member<'_>| {
        m.health == Health::Online
            && m.seen.is_some_and(|seen| seen.settling)
            && oldest_ms < m.revived_at_ms()
    };
    candidates().find(|m| !waits(m)).unwrap_or(group[0])
}

fn drift(group: &[&Member<'_>], chosen: &Member<'_>) -> Vec<Drift> {
    let first = group[0];
    let path = &chosen.mount.mount_path;
    let item = |of: &Member<'_>, kind, severity, what: &str| Drift {
        mount_path: path.clone(),
        kind,
        severity,
        selected_node_id: chosen.mount.node_id.clone(),
        desired_node_id: of.mount.node_id.clone(),
        message: format!("{path}: {what}"),
    };
    let node = |m: &Member<'_>, what: &str| format!("node {} {what}", m.mount.node_id);
    let lacking = |m: &Member<'_>| node(m, &format!("has no export {:?}", m.mount.export_name));
    let mut all = Vec::new();
    match chosen.health {
        Health::UnknownNode => {
            all.push(item(first, "missing_node", "error", &node(chosen, "is not known")))
        }
        Health::UnknownExport => all.push(item(first, "missing_export", "error", &lacking(chosen))),
        Health::Offline => {
            all.push(item(first, "node_offline", "error", &node(chosen, "is offline")))
        }
        Health::Online if std::ptr::eq(chosen, first) => {}
        Health::Online => {
            let what = node(chosen, "serves in place of the first choice");
            all.push(item(first, "failover_active", "warning", &what));
        }
    }
    // A name that is wrong does not mend itself, be it of a member that only stands by.
    let others = group.iter().filter(|m| !std::ptr::eq(**m, chosen));
    let wrong = others.filter(|m| m.health == Health::UnknownExport);
    all.extend(wrong.map(|m| item(m, "missing_export", "warning", &lacking(m))));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::state::{Change, Service};
    use crate::control::workspace::testing::{self, node};
    use serde_json::{Value, json};
    use std::sync::Arc;

    /// A project with mounts at `/src` of export `work` of `nodes`, seen at 100 seconds.
    struct House {
        state: State,
        project: Project,
    }

    const NOW_MS: i64 = 100_000;

    fn up(number: u64) -> Node {
        node(number, NOW_MS + 100_000)
    }

    fn down(number: u64) -> Node {
        node(number, NOW_MS - 1)
    }

    fn with(document: Value, node: Node) -> Node {
        let service = Service { service_id: "fs".into(), version: "1".into(), document };
        Node { services: vec![service], ..node }
    }

    fn exporting(names: &[&str], node: Node) -> Node {
        with(json!({"capabilities": {"exports": names}}), node)
    }

    impl House {
        fn of(nodes: Vec<Node>) -> House {
            let mut project = Project::from(Arc::new(testing::profile(1)));
            project.mounts = (1..=nodes.len().max(1))
                .map(|n| Mount {
                    mount_path: "/src".into(),
                    node_id: format!("node-{n}"),
                    export_name: "work".into(),
                })
                .collect();
            let mut state = State::default();
            nodes.into_iter().for_each(|n| state.apply(&Change::PutNode(Arc::new(n))));
            House { state, project }
        }

        /// Makes the project known as it is.
        fn put(&mut self) {
            self.state.apply(&Change::PutProject(self.project.profile.clone()));
        }

        fn seen(&self, admin: bool, token: Option<&str>) -> Workspace {
            let viewer = Viewer { agent_id: "a", admin, token };
            Workspace::of(&self.state, &self.project, viewer, NOW_MS)
        }
    }

    /// The node that serves, and what is said of it: kind, severity, the node that is meant.
    fn resolved(nodes: Vec<Node>) -> (String, Vec<(&'static str, &'static str, String)>) {
        let workspace = House::of(nodes).seen(true, None);
        let drift = workspace.drift.into_iter();
        let said = drift.map(|d| (d.kind, d.severity, d.desired_node_id)).collect();
        (workspace.selected[0].node_id.clone(), said)
    }

    #[test]
    fn the_first_configured_online_member_serves_whatever_the_leases_say() {
        let (one, two) = (|| "node-1".to_owned(), || "node-2".to_owned());
        assert_eq!(resolved(vec![up(1), node(2, NOW_MS * 9)]), (one(), vec![]));
        let failover = ("failover_active", "warning", one());
        assert_eq!(resolved(vec![down(1), up(2)]), (two(), vec![failover]));
        let offline = ("node_offline", "error", one());
        assert_eq!(resolved(vec![down(1), node(2, NOW_MS)]), (one(), vec![offline]));
        assert_eq!(resolved(vec![]), (one(), vec![("missing_node", "error", one())]));
        let house = House::of(vec![]);
        let missing = house.seen(true, None);
        assert_eq!((missing.availability().missing, missing.queue_depth()), (1, 1));
    }

    #[test]
    fn an_export_that_the_node_does_not_have_is_drift() {
        let (one, two) = (|| "node-1".to_owned(), || "node-2".to_owned());
        let wrong = |severity, node: String| ("missing_export", severity, node);
        assert_eq!(
            resolved(vec![exporting(&["other"], up(1))]),
            (one(), vec![wrong("error", one())])
        );
        assert_eq!(resolved(vec![exporting(&["other", "work"], up(1))]), (one(), vec![]));
        let failover = ("failover_active", "warning", one());
        assert_eq!(
            resolved(vec![exporting(&[], up(1)), up(2)]),
            (two(), vec![failover, wrong("warning", one())])
        );
        // One that only stands by is told of, too; one that is away may yet come.
        assert_eq!(
            resolved(vec![up(1), exporting(&["x"], up(2))]),
            (one(), vec![wrong("warning", two())])
        );
        assert_eq!(resolved(vec![exporting(&["x"], up(1)), down(2)]).0, two());
        let nonsense = with(json!({"capabilities": {"exports": "work"}}), up(1));
        assert_eq!(
            resolved(vec![nonsense]),
            (one(), vec![]),
            "nothing is said, so nothing is known"
        );
    }

    #[test]
    fn a_node_that_came_back_waits_until_it_has_settled() {
        let back = |number, ago_ms| Node { revived_at_ms: NOW_MS - ago_ms, ..up(number) };
        let serves = |nodes| resolved(nodes).0;
        assert_eq!(serves(vec![back(1, 0), up(2)]), "node-2");
        assert_eq!(serves(vec![back(1, 29_999), up(2)]), "node-2");
        assert_eq!(serves(vec![back(1, 30_000), up(2)]), "node-1");
        assert_eq!(serves(vec![back(1, 10), down(2)]), "node-1", "better than none");
        // The one that was first back keeps serving; those that came at once go by their order.
        assert_eq!(serves(vec![back(1, 10), back(2, 20)]), "node-2");
        assert_eq!(serves(vec![back(1, 20), back(2, 10)]), "node-1");
        assert_eq!(serves(vec![back(1, 20), back(2, 20)]), "node-1");
        assert_eq!(serves(vec![back(1, -60_000), up(2)]), "node-1", "a clock that was set back");
        assert_eq!(back(1, 0).turns_at_ms(NOW_MS), Some(NOW_MS + 30_000));
        assert_eq!(up(1).turns_at_ms(NOW_MS), Some(NOW_MS + 100_000));
        assert_eq!(down(1).turns_at_ms(NOW_MS), None);
    }

    #[test]
    fn everybody_gets_what_opens_his_mounts_and_no_more() {
        let routed = |n: u64| Node { fs_url: format!("ws://g:1/v2/fs/node/node-{n}"), ..up(n) };
        let tokens = |nodes: Vec<Node>, admin: bool, at_ms: i64| -> Vec<Option<String>> {
            let mut house = House::of(nodes);
            house.put();
            let viewer = Viewer { agent_id: "a", admin, token: None };
            let seen = house.seen(admin, None);
            let seen = seen.with_tokens(&house.state, viewer, "ann", at_ms);
            assert_eq!(seen.selected[0].fs_auth_token, seen.desired[0].fs_auth_token);
            seen.desired.into_iter().map(|m| m.fs_auth_token).collect()
        };
        // Only the gateway is known to take grants.
        let other = Node { fs_url: "ws://h:1/v2/fs/node/node-2".into(), ..up(1) };
        for unknown in [up(1), other] {
            assert_eq!(tokens(vec![unknown.clone()], false, NOW_MS), [None]);
            assert_eq!(tokens(vec![unknown], true, NOW_MS), [Some("secret-x".into())]);
        }
        for admin in [false, true] {
            let made = tokens(vec![routed(1)], admin, NOW_MS);
            let grant = routed(1).grant(made[0].as_deref().unwrap(), NOW_MS).unwrap();
            let only = [("work".into(), Access::ReadWrite)].into();
            assert_eq!((grant.exports, &*grant.sub), (only, "ann"));
            let now_s = NOW_MS as u64 / 1000;
            assert!((now_s + GRANT_S..=now_s + GRANT_S + RENEWED_S).contains(&grant.expires_at_s));
        }
        let turn_ms = (NOW_MS / 1000 / RENEWED_S as i64 + 1) * RENEWED_S as i64 * 1000;
        let at = |ms| tokens(vec![routed(1)], false, ms);
        assert_eq!(at(turn_ms), at(turn_ms + RENEWED_S as i64 * 1000 - 1), "the same for a while");
        assert_ne!(at(turn_ms), at(turn_ms - 1));
    }

    #[test]
    fn services_are_shown_to_those_who_may_have_them() {
        let terminal = json!({"capabilities": {"invoke": true}, "endpoints": ["/src"],
            "permissions": {"require_project_token": true}});
        let mut house = House::of(vec![with(terminal, up(1))]);
        house.put();
        let admin = house.seen(true, None);
        assert_eq!(admin.selected.len(), 1);
        assert_eq!(house.seen(false, None), Workspace::default(), "the service wants a token");
        let user = house.seen(false, Some("any"));
        assert_eq!(user.selected.len(), 1);
        let fields = serde_json::to_string(&json!({"invoke": "deny"})).unwrap();
        let fields = crate::wire::Fields::parse(&fields).unwrap();
        Arc::make_mut(&mut house.project.profile).policy =
            crate::control::policy::Policy::read(&fields).unwrap();
        house.put();
        assert_eq!(house.seen(false, Some("any")).desired, vec![], "the project does not let him");
    }

    #[test]
    fn groups_keep_the_order_in_which_they_were_set() {
        let mut house = House::of(vec![up(1), up(2)]);
        let path = |n: &usize| format!("/m{}", n % 3);
        house.project.mounts = (0..9)
            .map(|n| Mount {
                mount_path: path(&n),
                node_id: format!("node-{}", 1 + n / 3 % 2),
                export_name: format!("e{n}"),
            })
            .collect();
        let seen = house.seen(true, None);
        let selected: Vec<_> =
            seen.selected.iter().map(|m| (&*m.mount_path, &*m.export_name)).collect();
        assert_eq!(selected, [("/m0", "e0"), ("/m1", "e1"), ("/m2", "e2")]);
        assert_eq!(seen.desired.len(), 9);
    }
}
