//! Reconciling (spec: control 10.3): whenever projects or nodes change, or a node's time has come, looks
//! again at the projects concerned, chooses anew what serves in them, and tells who goes to the nodes
//! that a node is back. Keeps what is known of each project since the last look.

use super::state::{Change, Map, Node, Project, State, node_id};
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
    /// Since the last look.
    touched: Mutex<Touched>,
    on_return: OnceLock<OnReturn>,
}

/// What mutations have changed, by number.
#[derive(Debug, Default)]
pub struct Touched {
    pub projects: BTreeSet<u64>,
    pub nodes: BTreeSet<u64>,
}

impl Touched {
    pub fn hear(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::PutNode(node) => drop(self.nodes.insert(node.number)),
                Change::DeleteNode(number) => drop(self.nodes.insert(*number)),
                Change::PutProject(project) => drop(self.projects.insert(project.number)),
                Change::DeleteProject(project) => drop(self.projects.insert(project.number)),
                Change::Mount(placing) => drop(self.projects.insert(placing.project)),
                Change::Bind(placing) => drop(self.projects.insert(placing.project)),
                Change::PutInvite(_)
                | Change::DeleteInvite(_)
                | Change::PutPending(_)
                | Change::DeletePending(_)
                | Change::Activate { .. }
                | Change::Deactivate { .. }
                | Change::Last(..)
                | Change::ServiceEvent(_) => {}
            }
        }
    }
}

/// What is known since the last look.
#[derive(Debug, Default)]
pub struct Record {
    /// By number.
    pub projects: Map<u64, Arc<Known>>,
    /// By number.
    pub nodes: Map<u64, Presence>,
    /// Of all projects and nodes.
    pub standing: Standing,
    turns: Turns,
    /// For who follows.
    news: Option<News>,
    pub cycles_total: u64,
    pub failed_ops_total: u64,
    /// 0 for never.
    pub last_reconcile_ms: i64,
}

/// What was seen to have changed, by number.
#[derive(Debug, Default)]
pub struct News {
    pub projects: BTreeSet<u64>,
    /// Nodes that came, went, or are present in another way.
    pub nodes: BTreeSet<u64>,
}

/// How projects and nodes stand together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub nodes_online: usize,
    pub nodes_total: usize,
    pub mounts: Availability,
    /// Of what is mounted where and how it stands, in whatever order.
    pub digest: u64,
}

impl Standing {
    pub fn add(&mut self, known: &Known) {
        self.mounts = self.mounts + known.availability;
        self.digest = self.digest.wrapping_add(known.digest);
    }

    fn remove(&mut self, known: &Known) {
        self.mounts = self.mounts - known.availability;
        self.digest = self.digest.wrapping_sub(known.digest);
    }

    pub fn add_node(&mut self, presence: &Presence) {
        self.nodes_total += 1;
        self.nodes_online += usize::from(presence.online);
    }

    fn remove_node(&mut self, presence: &Presence) {
        self.nodes_total -= 1;
        self.nodes_online -= usize::from(presence.online);
    }
}

/// When nodes change without anybody's doing.
#[derive(Debug, Default)]
struct Turns {
    in_order: BTreeSet<(i64, u64)>,
    of_nodes: BTreeMap<u64, i64>,
}

impl Turns {
    fn set(&mut self, node: u64, at_ms: Option<i64>) {
        let old = match at_ms {
            Some(at_ms) => self.of_nodes.insert(node, at_ms),
            None => self.of_nodes.remove(&node),
        };
        if let Some(old) = old {
            self.in_order.remove(&(old, node));
        }
        self.in_order.extend(at_ms.map(|at_ms| (at_ms, node)));
    }

    fn next(&self) -> Option<i64> {
        self.in_order.first().map(|(at_ms, _)| *at_ms)
    }

    fn due(&self, now_ms: i64) -> impl Iterator<Item = u64> {
        self.in_order.range(..=(now_ms, u64::MAX)).map(|(_, node)| *node)
    }
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
    /// Looks at what was touched since the last time, and at what time itself has changed; says which
    /// nodes are back.
    fn look(&mut self, state: &State, mut touched: Touched, now_ms: i64) -> Vec<String> {
        let is_first = self.cycles_total == 0;
        if is_first {
            touched.projects.extend(state.projects.keys());
        }
        // When the clock was set back, what has been due may yet come.
        if is_first || now_ms < self.last_reconcile_ms {
            touched.nodes.extend(state.nodes.keys());
        }
        touched.nodes.extend(self.turns.due(now_ms));
        let mut back = Vec::new();
        for number in touched.nodes {
            let node = state.nodes.get(&number);
            self.turns.set(number, node.and_then(|node| node.turns_at_ms(now_ms)));
            if self.look_at_node(number, node.map(|node| Presence::of(node, now_ms)), &mut back) {
                touched.projects.extend(state.projects_with(number).map(|p| p.number));
            }
        }
        if is_first || !touched.projects.is_empty() {
            self.cycles_total += 1;
        }
        for number in touched.projects {
            self.look_at_project(number, state, now_ms);
        }
        self.last_reconcile_ms = now_ms;
        back
    }

    /// True if it is not as it was.
    fn look_at_node(&mut self, number: u64, new: Option<Presence>, back: &mut Vec<String>) -> bool {
        let old = self.nodes.get(&number);
        if old == new.as_ref() {
            return false;
        }
        if new.as_ref().is_some_and(|new| new.is_back_after(old)) {
            back.push(node_id(number));
        }
        if let Some(old) = old {
            self.standing.remove_node(old);
            self.nodes.remove_mut(&number);
        }
        if let Some(new) = new {
            self.standing.add_node(&new);
            self.nodes.insert_mut(number, new);
        }
        if let Some(news) = &mut self.news {
            news.nodes.insert(number);
        }
        true
    }

    fn look_at_project(&mut self, number: u64, state: &State, now_ms: i64) {
        let old = self.projects.get(&number).cloned();
        if let Some(old) = &old {
            self.standing.remove(old);
        }
        match state.projects.get(&number) {
            Some(project) => {
                let new = Known::of(state, project, old.as_deref(), now_ms);
                if let Some(old) = &old {
                    new.log_changes(old);
                }
                self.failed_ops_total += new.failed.len() as u64;
                self.standing.add(&new);
                self.projects.insert_mut(number, Arc::new(new));
            }
            None => drop(self.projects.remove_mut(&number)),
        }
        if let Some(news) = &mut self.news {
            news.projects.insert(number);
        }
    }

    /// When a node next changes without anybody's doing.
    pub fn turns_at_ms(&self) -> Option<i64> {
        self.turns.next()
    }

    /// What has changed since the last call; for the one who follows.
    pub fn news(&mut self) -> News {
        self.news.replace(News::default()).unwrap_or_default()
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

impl Reconciler {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touched(&self) -> MutexGuard<'_, Touched> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of changes that were published.
    pub fn heard(&self, changes: &[Change]) {
        self.touched().hear(changes);
    }
}

impl Plane {
    /// Brings the record up to date, and hands it to `read`, which must be short.
    pub fn reconciled<T>(&self, read: impl FnOnce(&mut Record) -> T) -> T {
        let mut record = self.reconciler.record();
        // Taken under the lock, so that no look goes back to an older state; and before the state, so that
        // it has all that was touched.
        let touched = std::mem::take(&mut *self.reconciler.touched());
        let back = record.look(&self.state(), touched, now_ms());
        let outcome = read(&mut record);
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
        let turns = self.reconciler.record().turns_at_ms();
        let left = |at: i64| u64::try_from(at - now_ms()).unwrap_or(0);
        turns.map_or_else(Deadline::never, |at| Deadline::after_ms(left(at) + 1))
    }
}

#[cfg(test)]
mod tests;
