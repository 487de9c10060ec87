//! Who wants to be told that mounts have changed, and telling them (spec: control 9): a `debug.event` for
//! each change of a project's mounts and binds, and of the presence of a node that it mounts, to those who
//! may see the project. Connections are told of what happens from their subscription on; one that is too
//! slow to take an event is closed, so that it asks anew instead of believing what is old.

use super::client::Shared;
use crate::base::{Cancel, Deadline, Result, ResultExt, now_ms};
use crate::control::reconcile::Presence;
use crate::control::state::{Mount, Project, State, id_number};
use crate::control::{Plane, workspace};
use crate::net::{Conn, Message};
use crate::wire::Object;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

const CATEGORY: &str = "control.workspace_topology";

#[derive(Default)]
pub struct Topology {
    /// At most one for each connection.
    subscribers: Mutex<Vec<Arc<Subscriber>>>,
}

struct Subscriber {
    client: Weak<Shared>,
    conn: Conn,
    /// Events told since it subscribed.
    told: AtomicU64,
}

impl Topology {
    fn subscribers(&self) -> MutexGuard<'_, Vec<Arc<Subscriber>>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells a connection of every change from now on.
    pub fn subscribe(&self, client: &Arc<Shared>, conn: &Conn) {
        let mut all = self.subscribers();
        all.retain(|s| s.client.strong_count() > 0 && s.conn.id() != conn.id());
        let (client, conn) = (Arc::downgrade(client), conn.clone());
        all.push(Arc::new(Subscriber { client, conn, told: AtomicU64::new(0) }));
    }

    pub fn unsubscribe(&self, conn: &Conn) {
        self.subscribers().retain(|s| s.conn.id() != conn.id());
    }

    /// Starts the thread that looks for changes until `stop` is cancelled.
    pub fn follow(self: &Arc<Topology>, plane: Arc<Plane>, stop: Cancel) -> Result<JoinHandle<()>> {
        let this = self.clone();
        let run = move || {
            let mut shown = Picture::of(&plane.state(), now_ms());
            loop {
                let seen = plane.changed().seen();
                let state = plane.state();
                let now = Picture::of(&state, now_ms());
                for (project, reason) in now.differs(&shown) {
                    this.tell(&state, project, reason);
                }
                let next = plane.changed().wait(seen, now.until());
                shown = now;
                if next.block(Deadline::never(), &stop).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("workspaces".into()).spawn(run).context("workspace thread")
    }

    fn tell(&self, state: &State, project: &Project, reason: &str) {
        let subscribers = self.subscribers().clone();
        for s in subscribers {
            let Some(client) = s.client.upgrade() else { continue };
            if !client.sees(state, project) {
                continue;
            }
            let seq = s.told.fetch_add(1, Ordering::Relaxed) + 1;
            if s.conn.push(Message::text(event(project, reason, seq))).is_err() {
                s.conn.close(Some(1013), "too slow for what was subscribed; subscribe again");
            }
        }
    }
}

fn event(project: &Project, reason: &str, seq: u64) -> String {
    let payload = Object::new()
        .put("event", "workspace_topology_changed")
        .put("reason", reason)
        .put("project_id", project.id())
        .put("ts_ms", now_ms());
    frame("workspace-topology", CATEGORY, payload).put("seq", seq).finish()
}

/// What old clients wait for after `debug_subscribe`: an event that names their request (spec: fs 18).
pub fn acknowledgement(request: &str) -> Message {
    let payload = Object::new().put("enabled", true);
    Message::text(frame(request, "control.debug_subscribe", payload).finish())
}

/// `debug.event` frames have no `channel` (spec: control 9.2).
fn frame(request: &str, category: &str, payload: Object) -> Object {
    Object::new()
        .put("type", "debug.event")
        .put("request", request)
        .put("category", category)
        .object("payload", payload)
        .put("timestamp", now_ms())
}

/// What workspaces depend on, at one moment.
struct Picture {
    projects: BTreeMap<u64, Arc<Project>>,
    /// By number.
    nodes: BTreeMap<u64, Presence>,
    /// When the next node changes without anybody's doing.
    turns_at_ms: Option<i64>,
}

impl Picture {
    fn of(state: &State, now_ms: i64) -> Picture {
        let nodes = state.nodes.iter();
        Picture {
            projects: state.projects.clone(),
            nodes: nodes.map(|(k, n)| (*k, Presence::of(n, now_ms))).collect(),
            turns_at_ms: state.nodes.values().filter_map(|n| n.turns_at_ms(now_ms)).min(),
        }
    }

    /// By when to look again, whatever happens.
    fn until(&self) -> Deadline {
        let left = |at: i64| u64::try_from(at - now_ms()).unwrap_or(0);
        self.turns_at_ms.map_or_else(Deadline::never, |at| Deadline::after_ms(left(at) + 1))
    }

    /// The projects whose workspace is another than in `old`, and why.
    fn differs<'p>(&'p self, old: &Picture) -> Vec<(&'p Project, &'static str)> {
        let numbers = self.nodes.keys().chain(old.nodes.keys());
        let moved: BTreeSet<&u64> =
            numbers.filter(|n| self.nodes.get(n) != old.nodes.get(n)).collect();
        let changed = |(number, project): (&u64, &'p Arc<Project>)| {
            let before = old.projects.get(number);
            // One that has not changed is the very same value.
            let same = before.is_some_and(|before| {
                Arc::ptr_eq(before, project)
                    || (before.mounts == project.mounts && before.binds == project.binds)
            });
            let project = &**project;
            if !same {
                return Some((project, "project_changed"));
            }
            let is_moved =
                |m: &Mount| id_number(&m.node_id, "node-").is_some_and(|n| moved.contains(&n));
            let affected = !moved.is_empty() && project.mounts.iter().any(is_moved);
            affected.then_some((project, "availability_changed"))
        };
        self.projects.iter().filter_map(changed).collect()
    }
}

/// Whether one of a connection's sessions may see a project's workspace.
pub fn sees<'b>(
    state: &State,
    project: &Project,
    admin: bool,
    mut bindings: impl Iterator<Item = &'b crate::control::Binding>,
) -> bool {
    let id = project.id();
    admin
        || bindings.any(|b| {
            // The token that a session holds is that of its own project.
            let own = b.project_id.as_deref() == Some(&*id);
            let token = b.project_token.as_deref().filter(|_| own);
            let viewer = workspace::Viewer { agent_id: &b.agent_id, admin, token };
            workspace::select(state, Some(&id), viewer).is_ok()
        })
}
