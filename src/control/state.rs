//! The control plane's state: what there is of nodes, invites, projects and bindings, and how a change
//! makes it another. No decisions: those are in `ops`.

pub use super::change::{Change, PREFIX};
use super::project::Placing;
pub use super::project::{Bind, Draft, Mount, Profile, Project};
use crate::base::{Code, Error, Result, ResultExt, id};
use crate::wire::control::Platform;
use crate::wire::fs::Grant;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// A copy shares what it has in common with the original, so it costs nothing; a change O(log n).
pub type Map<K, V> = rpds::RedBlackTreeMapSync<K, V>;

/// The built-in agent that sets the others up (spec: control 5.3).
pub const MOTHER: &str = "mother";
/// The built-in project (spec: control 5.3).
pub const SYSTEM: &str = "system";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub number: u64,
    pub name: String,
    pub fs_url: String,
    pub secret: String,
    /// The secret before, as long as it counts.
    #[serde(default)]
    pub former: Option<Former>,
    pub lease_token: String,
    pub platform: Platform,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub services: Vec<Service>,
    pub joined_at_ms: i64,
    pub last_seen_ms: i64,
    pub lease_expires_at_ms: i64,
    /// When the lease was renewed after it had run out; 0 for never.
    #[serde(default)]
    pub revived_at_ms: i64,
}

/// A secret that was replaced, and until when it still proves who a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Former {
    pub secret: String,
    pub until_ms: i64,
}

/// With which of its secrets a node has proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    Current,
    Former,
}

/// How long a node that came back has to stay before it takes over from one that was there (spec:
/// control 18, hysteresis).
const SETTLE_MS: i64 = 30_000;

impl Node {
    pub fn id(&self) -> String {
        node_id(self.number)
    }

    /// Whether a secret is this node's; `None` if it is not.
    pub fn proof(&self, given: &str, now_ms: i64) -> Option<Proof> {
        if id::same_secret(&self.secret, given) {
            return Some(Proof::Current);
        }
        let former = self.former.as_ref().filter(|f| f.until_ms > now_ms)?;
        id::same_secret(&former.secret, given).then_some(Proof::Former)
    }

    /// Opens a grant to this node's files, made with its secret or, while that counts, the former one.
    /// Errors: as [`Grant::open`].
    pub fn grant(&self, token: &str, now_ms: i64) -> Result<Grant> {
        let now_s = u64::try_from(now_ms / 1000).unwrap_or_default();
        let grant = Grant::open(&self.secret, token, now_s);
        let former = self.former.as_ref().filter(|f| f.until_ms > now_ms);
        match former {
            Some(former) => grant.or_else(|e| Grant::open(&former.secret, token, now_s).or(Err(e))),
            None => grant,
        }
    }

    /// Its files are reached through this gateway, which then asks for the token in its place.
    pub fn is_routed(&self) -> bool {
        let way = self.fs_url.split_once("/v2/fs/node/");
        way.is_some_and(|(_, id)| id == self.id())
    }

    pub fn online(&self, now_ms: i64) -> bool {
        self.lease_expires_at_ms > now_ms
    }

    /// The node with a new lease.
    pub fn refreshed(&self, fs_url: Option<String>, ttl_ms: i64, now_ms: i64) -> Node {
        Node {
            fs_url: fs_url.unwrap_or_else(|| self.fs_url.clone()),
            lease_token: id::hex_token("lease-"),
            last_seen_ms: now_ms,
            lease_expires_at_ms: now_ms + ttl_ms,
            revived_at_ms: if self.online(now_ms) { self.revived_at_ms } else { now_ms },
            ..self.clone()
        }
    }

    /// True for a while after the node came back.
    pub fn is_settling(&self, now_ms: i64) -> bool {
        let back_ms = now_ms.saturating_sub(self.revived_at_ms);
        self.revived_at_ms > 0 && (0..SETTLE_MS).contains(&back_ms)
    }

    /// When the node next changes without anybody's doing: its lease ends, or it has settled; or, where
    /// the clock was set back, it comes back once more.
    pub fn turns_at_ms(&self, now_ms: i64) -> Option<i64> {
        let settled_ms = self.revived_at_ms.saturating_add(SETTLE_MS);
        let moments = [self.lease_expires_at_ms, self.revived_at_ms, settled_ms];
        moments.into_iter().filter(|at| *at > now_ms).min()
    }
}

/// A service of a node's catalogue: the members that matter here, and the whole as it was published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub service_id: String,
    pub version: String,
    pub document: serde_json::Value,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Invite {
    pub number: u64,
    pub token: String,
    pub created_at_ms: i64,
    pub expires_at_ms: i64,
    pub redeemed: bool,
}

impl Invite {
    pub fn id(&self) -> String {
        format!("invite-{}", self.number)
    }

    /// Whether a node can join with it.
    pub fn is_open(&self, now_ms: i64) -> bool {
        !self.redeemed && self.expires_at_ms > now_ms
    }
}

/// A node that asked to join, and what became of it. The answer is kept for the asker until it fetches
/// it (spec: fs 13.3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PendingJoin {
    pub number: u64,
    pub node_name: String,
    pub fs_url: String,
    pub platform: Platform,
    pub requested_at_ms: i64,
    /// Proves that who fetches the answer is who asked.
    pub claim: String,
    /// The node's number once approved.
    pub approved: Option<u64>,
    /// From where it was asked, where that was without a token.
    #[serde(default)]
    pub origin: Option<IpAddr>,
}

impl PendingJoin {
    pub fn id(&self) -> String {
        format!("pending-join-{}", self.number)
    }
}

pub fn node_id(number: u64) -> String {
    format!("node-{number}")
}

pub fn project_id(number: u64) -> String {
    if number == 0 { SYSTEM.into() } else { format!("proj-{number}") }
}

/// The number in an id such as `node-12`; `None` for one that was never given out.
pub fn id_number(id: &str, prefix: &str) -> Option<u64> {
    let digits = id.strip_prefix(prefix)?;
    let number: u64 = digits.parse().ok()?;
    (number > 0 && digits == number.to_string()).then_some(number)
}

/// Kinds of sequential ids; a number is never given out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    Invite,
    Node,
    PendingJoin,
    Project,
    ServiceEvent,
}

impl Counter {
    const ALL: [Counter; 5] = [
        Counter::Invite,
        Counter::Node,
        Counter::PendingJoin,
        Counter::Project,
        Counter::ServiceEvent,
    ];

    pub(super) fn key(self) -> &'static str {
        match self {
            Counter::Invite => "next/invite",
            Counter::Node => "next/node",
            Counter::PendingJoin => "next/pending",
            Counter::Project => "next/project",
            Counter::ServiceEvent => "next/service-event",
        }
    }
}

/// Everything the plane knows. A copy costs nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub nodes: Map<u64, Arc<Node>>,
    pub invites: Map<u64, Arc<Invite>>,
    pub pending: Map<u64, Arc<PendingJoin>>,
    pub projects: Map<u64, Arc<Project>>,
    /// The project each agent works in.
    pub active: Map<String, u64>,
    /// The number last given out, by kind.
    last: [u64; Counter::ALL.len()],
    index: Index,
}

/// Where to find what would else be looked for everywhere.
#[derive(Clone, Debug, Default, PartialEq)]
struct Index {
    node_names: Map<(String, u64), ()>,
    project_names: Map<(String, u64), ()>,
    /// How many mounts of a node, the first number, there are in a project, the second.
    mounted: Map<(u64, u64), usize>,
    /// Who works in a project.
    agents: Map<(u64, String), ()>,
}

impl State {
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::PutNode(n) => self.put_node(n),
            Change::DeleteNode(n) => self.delete_node(*n),
            Change::PutInvite(i) => self.invites.insert_mut(i.number, i.clone()),
            Change::DeleteInvite(n) => drop(self.invites.remove_mut(n)),
            Change::PutPending(p) => self.pending.insert_mut(p.number, p.clone()),
            Change::DeletePending(n) => drop(self.pending.remove_mut(n)),
            Change::PutProject(p) => self.put_project(p),
            Change::DeleteProject(p) => self.delete_project(p.number),
            Change::Mount(placing) => self.place_mount(placing),
            Change::Bind(Placing { project, number, thing }) => {
                if let Some(project) = self.projects.get_mut(project) {
                    Arc::make_mut(project).binds.set(*number, thing.clone());
                }
            }
            Change::Activate { agent_id, project } => {
                self.deactivate(agent_id);
                self.active.insert_mut(agent_id.clone(), *project);
                self.index.agents.insert_mut((*project, agent_id.clone()), ());
            }
            Change::Deactivate { agent_id } => self.deactivate(agent_id),
            Change::Last(counter, n) => self.last[*counter as usize] = *n,
            Change::ServiceEvent(e) => self.last[Counter::ServiceEvent as usize] = e.seq,
        }
    }

    fn put_node(&mut self, node: &Arc<Node>) {
        self.delete_node(node.number);
        self.index.node_names.insert_mut((node.name.clone(), node.number), ());
        self.nodes.insert_mut(node.number, node.clone());
    }

    fn delete_node(&mut self, number: u64) {
        if let Some(old) = self.nodes.get(&number) {
            self.index.node_names.remove_mut(&(old.name.clone(), number));
            self.nodes.remove_mut(&number);
        }
    }

    fn put_project(&mut self, profile: &Arc<Profile>) {
        let number = profile.number;
        let old = self.projects.get(&number);
        if old.is_none_or(|old| old.name != profile.name) {
            if let Some(old) = old {
                self.index.project_names.remove_mut(&(old.name.clone(), number));
            }
            self.index.project_names.insert_mut((profile.name.clone(), number), ());
        }
        match self.projects.get_mut(&number) {
            Some(project) => Arc::make_mut(project).profile = profile.clone(),
            None => {
                let project = Project::from(profile.clone());
                self.projects.insert_mut(number, Arc::new(project));
            }
        }
    }

    fn delete_project(&mut self, number: u64) {
        let Some(old) = self.projects.get(&number).cloned() else { return };
        self.index.project_names.remove_mut(&(old.name.clone(), number));
        for mount in old.mounts.iter() {
            self.index.count_mount(mount, number, false);
        }
        self.projects.remove_mut(&number);
    }

    fn place_mount(&mut self, Placing { project: number, number: place, thing }: &Placing<Mount>) {
        let Some(project) = self.projects.get_mut(number) else { return };
        let project = Arc::make_mut(project);
        if let Some(old) = project.mounts.get(*place) {
            self.index.count_mount(old, *number, false);
        }
        if let Some(new) = thing {
            self.index.count_mount(new, *number, true);
        }
        project.mounts.set(*place, thing.clone());
    }

    fn deactivate(&mut self, agent_id: &str) {
        if let Some(project) = self.active.get(agent_id) {
            self.index.agents.remove_mut(&(*project, agent_id.to_owned()));
            self.active.remove_mut(agent_id);
        }
    }

    /// Rebuilds the state from the rows of the store. Errors: `storage_error` for a row that cannot be
    /// read: starting without it would lose it.
    pub fn load(rows: impl IntoIterator<Item = (String, Vec<u8>)>) -> Result<State> {
        let mut state = State::default();
        for (key, value) in rows {
            let read = state.load_row(key.strip_prefix(PREFIX).unwrap_or(&key), &value);
            read.map_err(|e| e.recode(Code::StorageError)).context(format!("row {key:?}"))?;
        }
        Ok(state)
    }

    fn load_row(&mut self, key: &str, value: &[u8]) -> Result<()> {
        fn parse<T: DeserializeOwned>(value: &[u8]) -> Result<T> {
            serde_json::from_slice(value).map_err(|e| Error::invalid(e.to_string()))
        }
        if let Some(counter) = Counter::ALL.into_iter().find(|c| c.key() == key) {
            self.apply(&Change::Last(counter, parse(value)?));
            return Ok(());
        }
        let (kind, rest) = key.split_once('/').ok_or_else(|| Error::invalid("unknown kind"))?;
        let change = match (kind, &*rest.split('/').collect::<Vec<_>>()) {
            ("node", _) => Change::PutNode(Arc::new(parse(value)?)),
            ("invite", _) => Change::PutInvite(Arc::new(parse(value)?)),
            ("pending", _) => Change::PutPending(Arc::new(parse(value)?)),
            ("project", [_]) => Change::PutProject(Arc::new(parse(value)?)),
            ("project", [project, "mount", n]) => {
                Change::Mount(self.place(project, n, parse(value)?)?)
            }
            ("project", [project, "bind", n]) => {
                Change::Bind(self.place(project, n, parse(value)?)?)
            }
            ("active", _) => Change::Activate { agent_id: rest.into(), project: parse(value)? },
            _ => return Err(Error::invalid("unknown kind; was it written by a newer version?")),
        };
        self.apply(&change);
        Ok(())
    }

    /// What a row says of a place in a project, which is read before it.
    fn place<T>(&self, project: &str, number: &str, thing: T) -> Result<Placing<T>> {
        let number_of = |text: &str| text.parse::<u64>().map_err(|e| Error::invalid(e.to_string()));
        let (project, number) = (number_of(project)?, number_of(number)?);
        if !self.projects.contains_key(&project) {
            return Err(Error::invalid("the row of its project is missing"));
        }
        Ok(Placing { project, number, thing: Some(Arc::new(thing)) })
    }

    /// The number of a kind that was given out last; 0 for none.
    pub fn last(&self, counter: Counter) -> u64 {
        self.last[counter as usize]
    }

    /// The next free number of a kind, and the change that marks it as given out.
    pub fn next(&self, counter: Counter) -> (u64, Change) {
        let number = self.last(counter) + 1;
        (number, Change::Last(counter, number))
    }

    pub fn node(&self, id: &str) -> Result<&Arc<Node>> {
        let found = id_number(id, "node-").and_then(|n| self.nodes.get(&n));
        found.ok_or_else(|| Error::new(Code::NodeNotFound, format!("there is no node {id:?}")))
    }

    pub fn project(&self, id: &str) -> Result<&Arc<Project>> {
        let number = if id == SYSTEM { Some(0) } else { id_number(id, "proj-") };
        let found = number.and_then(|n| self.projects.get(&n));
        found
            .ok_or_else(|| Error::new(Code::ProjectNotFound, format!("there is no project {id:?}")))
    }

    /// The nodes of a name, the oldest first.
    pub fn nodes_named(&self, name: &str) -> impl Iterator<Item = &Arc<Node>> {
        let named = self.index.node_names.range((name.to_owned(), 0)..=(name.to_owned(), u64::MAX));
        named.filter_map(|((_, number), ())| self.nodes.get(number))
    }

    /// The projects of a name, the oldest first.
    pub fn projects_named(&self, name: &str) -> impl Iterator<Item = &Arc<Project>> {
        let names = &self.index.project_names;
        let named = names.range((name.to_owned(), 0)..=(name.to_owned(), u64::MAX));
        named.filter_map(|((_, number), ())| self.projects.get(number))
    }

    /// The projects that mount something of a node.
    pub fn projects_with(&self, node: u64) -> impl Iterator<Item = &Arc<Project>> {
        let mounted = self.index.mounted.range((node, 0)..=(node, u64::MAX));
        mounted.filter_map(|((_, project), _)| self.projects.get(project))
    }

    /// Whether a project mounts something of a node.
    pub fn is_mounted(&self, node: u64, project: u64) -> bool {
        self.index.mounted.contains_key(&(node, project))
    }

    /// The agents that work in a project.
    pub fn agents_in(&self, project: u64) -> impl Iterator<Item = &str> {
        let here = self.index.agents.range((project, String::new())..);
        here.take_while(move |((of, _), ())| *of == project).map(|((_, agent), ())| &**agent)
    }

    /// An agent that works in a project, for who names none; never mother.
    pub fn agent_of(&self, project_id: &str) -> Option<&str> {
        let number = self.project(project_id).ok()?.number;
        self.agents_in(number).find(|agent| *agent != MOTHER)
    }

    /// The project that an agent works in, if it has one.
    pub fn active_project(&self, agent_id: &str) -> Option<&Arc<Project>> {
        self.projects.get(self.active.get(agent_id)?)
    }
}

impl Index {
    fn count_mount(&mut self, mount: &Mount, project: u64, more: bool) {
        let Some(node) = mount.node() else { return };
        let count = self.mounted.get(&(node, project)).copied().unwrap_or(0);
        match (more, count) {
            (true, _) => self.mounted.insert_mut((node, project), count + 1),
            (false, 0 | 1) => drop(self.mounted.remove_mut(&(node, project))),
            (false, _) => self.mounted.insert_mut((node, project), count - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_rebuilt_from_its_rows() {
        let mut state = State::default();
        let (number, last) = state.next(Counter::Invite);
        let invite = Invite {
            number,
            token: "inv-x".into(),
            created_at_ms: 1,
            expires_at_ms: 2,
            redeemed: false,
        };
        let changes = [
            last,
            Change::PutInvite(Arc::new(invite)),
            Change::Activate { agent_id: "alice".into(), project: 3 },
        ];
        let rows: Vec<_> = changes.iter().flat_map(Change::rows).collect();
        changes.iter().for_each(|c| state.apply(c));
        let rows = rows.into_iter().filter_map(|(k, v)| Some((k, v?)));
        assert_eq!(State::load(rows).unwrap(), state);
        assert_eq!(state.next(Counter::Invite).0, 2);
    }

    #[test]
    fn a_row_that_cannot_be_read_is_an_error_and_not_a_loss() {
        let e = State::load([("control/node/1".into(), b"{".to_vec())]).unwrap_err();
        assert_eq!(e.code, Code::StorageError);
        assert!(e.message.contains("control/node/1"), "{e}");
        assert!(State::load([("control/future/1".into(), b"{}".to_vec())]).is_err());
    }

    #[test]
    fn only_ids_that_were_given_out_are_numbers() {
        assert_eq!(id_number("node-12", "node-"), Some(12));
        for bad in ["node-", "node-0", "node-01", "node-+1", "proj-1", "node-x"] {
            assert_eq!(id_number(bad, "node-"), None, "{bad}");
        }
    }
}
