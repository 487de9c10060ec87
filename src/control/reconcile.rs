//! Reconciling (spec: control 10.3): whenever projects or nodes change, or a node's time has come, looks
//! again at the projects concerned, chooses anew what serves in them, and tells who goes to the nodes
//! that a node is back. Keeps what is known of each project since the last look.

use super::state::{Node, Project, State, id_number};
use super::workspace::{Availability, Drift, Viewer, Workspace};
use super::{MOTHER, Plane};
use crate::base::{Cancel, Deadline, Notify, Result, ResultExt, now_ms};
use crate::wire::Object;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

/// Changes that come within this time are looked at together.
const SPACING_MS: u64 = 250;
/// Failures that `reconcile_status` names; it counts all.
const FAILED_OPS_MAX: usize = 100;

/// Told that a node can be reached again, or at another address. Must be short and must not wait.
pub type OnReturn = Arc<dyn Fn(&str) + Send + Sync>;

#[derive(Default)]
pub(super) struct Reconciler {
    record: Mutex<Record>,
    on_return: OnceLock<OnReturn>,
}

/// What is known since the last look.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// By number.
    pub projects: BTreeMap<u64, Arc<Known>>,
    /// By number.
    pub nodes: Arc<BTreeMap<u64, Presence>>,
    /// When a node next changes without anybody's doing.
    pub turns_at_ms: Option<i64>,
    pub cycles_total: u64,
    pub failed_ops_total: u64,
    /// 0 for never.
    pub last_reconcile_ms: i64,
}

/// A project as it was last seen.
#[derive(Clone, Debug)]
pub struct Known {
    pub project: Arc<Project>,
    /// Who serves at each path: node and export.
    chosen: Vec<[String; 3]>,
    pub mounts: usize,
    pub availability: Availability,
    /// Of what is mounted where and how it stands, in whatever order.
    pub digest: u64,
    pub drift_count: usize,
    /// What needs something done, in words.
    pub failed: Vec<String>,
    /// When nothing did; 0 for never.
    pub last_success_ms: i64,
}

/// What of a node its mounts depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    online: bool,
    settling: bool,
    fs_url: String,
    exports: Option<BTreeSet<String>>,
}

impl Presence {
    pub fn of(node: &Node, now_ms: i64) -> Presence {
        let owned = |names: BTreeSet<&str>| names.into_iter().map(str::to_owned).collect();
        Presence {
            online: node.online(now_ms),
            settling: node.is_settling(now_ms),
            fs_url: node.fs_url.clone(),
            exports: node.exports().map(owned),
        }
    }

    pub fn is_online(&self) -> bool {
        self.online
    }

    /// Whether it is worth trying again, at once.
    fn is_back_after(&self, old: Option<&Presence>) -> bool {
        self.online && old.is_none_or(|old| !old.online || old.fs_url != self.fs_url)
    }
}

impl Known {
    fn of(state: &State, project: &Arc<Project>, old: Option<&Known>, now_ms: i64) -> Known {
        // As who sees everything.
        let viewer = Viewer { agent_id: MOTHER, admin: true, token: None };
        let workspace = Workspace::of(state, project, viewer, now_ms);
        let failed: Vec<_> = workspace.errors().map(|d| failure(project, d)).collect();
        let before_ms = old.map_or(0, |old| old.last_success_ms);
        let chosen = workspace.selected.iter();
        Known {
            project: project.clone(),
            mounts: workspace.desired.len(),
            availability: workspace.availability(),
            digest: workspace.digest(),
            drift_count: workspace.drift.len(),
            last_success_ms: if failed.is_empty() { now_ms } else { before_ms },
            failed,
            chosen: chosen
                .map(|m| [m.mount_path.clone(), m.node_id.clone(), m.export_name.clone()])
                .collect(),
        }
    }

    fn log_changes(&self, old: &Known) {
        let before: BTreeMap<_, _> =
            old.chosen.iter().map(|[path, rest @ ..]| (path, rest)).collect();
        for [path, node, export] in &self.chosen {
            if let Some([old_node, old_export]) = before.get(path)
                && (old_node, old_export) != (node, export)
            {
                let id = self.project.id();
                log::info!(
                    "{id}: {path} is served by {node}:{export}, not by {old_node}:{old_export}"
                );
            }
        }
    }
}

/// As `failed_ops` and `last_error` name it.
fn failure(project: &Project, d: &Drift) -> String {
    let what = match d.kind {
        "missing_node" => "missing",
        "missing_export" => "export missing",
        _ => "offline",
    };
    let id = project.id();
    format!("project={id} mount={} node={} {what}", d.mount_path, d.selected_node_id)
}

impl Record {
    /// Looks at what has changed since the last time; says which nodes are back.
    fn look(&mut self, state: &State, now_ms: i64) -> Vec<String> {
        let nodes = state.nodes.iter().map(|(k, n)| (*k, Presence::of(n, now_ms)));
        let nodes: BTreeMap<u64, Presence> = nodes.collect();
        let all = nodes.keys().chain(self.nodes.keys());
        let moved: BTreeSet<u64> =
            all.filter(|k| nodes.get(k) != self.nodes.get(k)).copied().collect();
        let back = nodes.iter().filter(|(k, n)| n.is_back_after(self.nodes.get(k)));
        let back = back.map(|(k, _)| state.nodes[k].id()).collect();
        self.nodes = Arc::new(nodes);
        self.turns_at_ms = state.nodes.values().filter_map(|n| n.turns_at_ms(now_ms)).min();

        let before = self.projects.len();
        self.projects.retain(|number, _| state.projects.contains_key(number));
        let mut is_news = self.projects.len() != before || self.cycles_total == 0;
        for (number, project) in &state.projects {
            let old = self.projects.get(number);
            // One that has not changed is the very same value.
            if old.is_some_and(|old| {
                Arc::ptr_eq(&old.project, project) && !mounts_any(project, &moved)
            }) {
                continue;
            }
            let new = Known::of(state, project, old.map(|old| &**old), now_ms);
            if let Some(old) = old {
                new.log_changes(old);
            }
            self.failed_ops_total += new.failed.len() as u64;
            self.projects.insert(*number, Arc::new(new));
            is_news = true;
        }
        if is_news {
            self.cycles_total += 1;
        }
        self.last_reconcile_ms = now_ms;
        back
    }

    /// The payload of `reconcile_status`: what is known of these projects (spec: control
    /// 8.7).
    pub fn shown(&self, projects: &[&Arc<Project>]) -> Object {
        let known = || projects.iter().filter_map(|p| Some((*p, self.projects.get(&p.number)?)));
        let failed = || known().flat_map(|(_, k)| &k.failed);
        let depth = failed().count();
        // As long as a project stands well, it does so at every look.
        let good = |k: &Known| match k.failed.is_empty() {
            true => self.last_reconcile_ms,
            false => k.last_success_ms,
        };
        let one = |(p, k): (&Arc<Project>, &Arc<Known>)| {
            Object::new()
                .put("project_id", p.id())
                .put("mounts", k.mounts)
                .put("selected_mounts", k.availability.mounts_total)
                .put("online_mounts", k.availability.online)
                .put("degraded_mounts", k.availability.degraded)
                .put("missing_mounts", k.availability.missing)
                .put("drift_count", k.drift_count)
                .put("queue_depth", k.failed.len())
                .finish()
        };
        let all: Vec<_> = known().map(one).collect();
        Object::new()
            .put("reconcile_state", if depth == 0 { "idle" } else { "degraded" })
            .put("last_reconcile_ms", self.last_reconcile_ms)
            .put("last_success_ms", known().map(|(_, k)| good(k)).min().unwrap_or(0))
            .put("last_error", failed().next())
            .put("queue_depth", depth)
            .put("failed_ops_total", self.failed_ops_total)
            .put("cycles_total", self.cycles_total)
            .put("failed_ops", failed().take(FAILED_OPS_MAX).collect::<Vec<_>>())
            .raw("projects", &format!("[{}]", all.join(",")))
    }
}

fn mounts_any(project: &Project, nodes: &BTreeSet<u64>) -> bool {
    let is_of = |id: &str| id_number(id, "node-").is_some_and(|n| nodes.contains(&n));
    !nodes.is_empty() && project.mounts.iter().any(|m| is_of(&m.node_id))
}

impl Reconciler {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plane {
    /// Brings the record up to date, and hands it to `read`, which must be short.
    pub fn reconciled<T>(&self, read: impl FnOnce(&Record) -> T) -> T {
        let mut record = self.reconciler.record();
        // Taken under the lock, so that no look goes back to an older state.
        let back = record.look(&self.state(), now_ms());
        let outcome = read(&record);
        drop(record);
        if let Some(on_return) = self.reconciler.on_return.get() {
            back.iter().for_each(|node_id| on_return(node_id));
        }
        outcome
    }

    /// When a project was last seen without errors; 0 for never.
    pub fn last_success_ms(&self, project: u64) -> i64 {
        self.reconciler.record().projects.get(&project).map_or(0, |known| known.last_success_ms)
    }

    /// Starts the thread that looks again after every change, until `stop` is cancelled.
    pub fn follow_nodes(
        self: &Arc<Plane>,
        on_return: OnReturn,
        stop: Cancel,
    ) -> Result<JoinHandle<()>> {
        let plane = self.clone();
        let _ = self.reconciler.on_return.set(on_return);
        let run = move || {
            loop {
                let seen = plane.changed().seen();
                plane.reconciled(|_| ());
                let change = plane.changed().wait(seen, plane.next_turn());
                let pause = Notify::default();
                let pause = pause.wait(pause.seen(), Deadline::after_ms(SPACING_MS));
                let waits = [change, pause];
                if waits.iter().any(|wait| wait.block(Deadline::never(), &stop).is_err()) {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("reconcile".into()).spawn(run).context("reconcile thread")
    }

    /// When a node next changes without anybody's doing.
    fn next_turn(&self) -> Deadline {
        let now_ms = now_ms();
        let turns = self.state().nodes.values().filter_map(|n| n.turns_at_ms(now_ms)).min();
        let left = |at: i64| u64::try_from(at - now_ms).unwrap_or(0);
        turns.map_or_else(Deadline::never, |at| Deadline::after_ms(left(at) + 1))
    }
}
