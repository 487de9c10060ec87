//! Finding out what has changed in workspaces, and for whom (spec: control 9.2): mounts and binds of
//! projects, the presence of the nodes that they mount, what that makes of availability and of
//! reconciling. Each subscriber is told what he may see, and nothing holds a secret.

use super::debug::{Stream, Subscriber, changed};
use super::pace::Pace;
use crate::base::{Cancel, Deadline, Result, ResultExt, now_ms};
use crate::control::reconcile::{Known, News, Presence, Record, Standing};
use crate::control::state::{MOTHER, Map, Mount, Project, State};
use crate::control::topics::Topic;
use crate::control::{Binding, Plane, workspace};
use crate::wire::Object;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

/// Between two reports on reconciling, which tell of every project.
const REPORT_MS: u64 = 1_000;
/// Between two attempts to tell those who are slow.
const RETRY_MS: u64 = 250;
const TOPOLOGY: &str = "workspace-topology";

/// Starts the thread that looks for changes until `stop` is cancelled.
pub fn follow(stream: Arc<Stream>, plane: Arc<Plane>, stop: Cancel) -> Result<JoinHandle<()>> {
    let run = move || {
        let mut follower = Follower {
            shown: plane.reconciled(Picture::of).0,
            reconciled: plane.reconciled(|record| record.cycles_total),
            report_at: Deadline::after_ms(0),
            stream,
            plane: plane.clone(),
        };
        let mut pace = Pace::default();
        loop {
            let (seen, began) = (plane.changed().seen(), Instant::now());
            let until = follower.look();
            let (worked, since) = (began.elapsed(), Instant::now());
            let news = plane.changed().wait(seen, until).block(Deadline::never(), &stop);
            if news.and_then(|()| pace.rest(worked, since.elapsed(), &stop)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("workspaces".into()).spawn(run).context("workspace thread")
}

struct Follower {
    stream: Arc<Stream>,
    plane: Arc<Plane>,
    shown: Picture,
    /// The cycle that was reported last, and when the next may be.
    reconciled: u64,
    report_at: Deadline,
}

impl Follower {
    /// Tells what has changed since the last look, and says by when to look again.
    fn look(&mut self) -> Deadline {
        let (now, news) = self.plane.reconciled(Picture::of);
        let state = self.plane.state();
        let changes = now.differs(&self.shown, &news);
        for (project, reason) in &changes {
            match *reason {
                PROJECT_DELETED => self.tell_end(project),
                reason => self.tell_change(&state, project, reason),
            }
        }
        let by_hand = changes.iter().any(|(_, reason)| *reason == PROJECT_CHANGED);
        let reason = if by_hand { PROJECT_CHANGED } else { AVAILABILITY_CHANGED };
        self.tell_availability(&state, &now, reason);
        let mut until = now.until();
        if now.cycles != self.reconciled {
            match self.report_at.passed() {
                true => self.report(&state, now.cycles),
                false => until = until.min(self.report_at),
            }
        }
        if self.stream.catch_up() {
            until = until.min(Deadline::after_ms(RETRY_MS));
        }
        self.shown = now;
        until
    }

    fn tell_change(&self, state: &State, project: &Project, reason: &str) {
        let payload = changed(reason, Some(&project.id())).finish();
        let sees = |s: &Subscriber| seer(s, state, project).is_some();
        self.stream.tell_if(Topic::Topology, TOPOLOGY, MOTHER, &payload, sees);
        let delta = |seer: &Seer| {
            let status = workspace::status(state, Some(project), seer.viewer(), now_ms());
            Object::new()
                .put("event", "workspace_topology_delta")
                .put("reason", reason)
                .put("agent_id", &seer.agent_id)
                .object("status", status)
                .put("ts_ms", now_ms())
                .finish()
        };
        let for_each = |s: &Subscriber| seer(s, state, project).as_ref().map(delta);
        if self.stream.tell(Topic::TopologyDelta, TOPOLOGY, for_each) {
            let payload = delta(&Seer::everything());
            self.stream.log(Topic::TopologyDelta, TOPOLOGY, MOTHER, &payload);
        }
    }

    /// A project was deleted. It is nowhere to be looked up, so only those who work in it are told.
    fn tell_end(&self, project: &Project) {
        let id = project.id();
        let payload = changed(PROJECT_DELETED, Some(&id)).finish();
        let worked = |s: &Subscriber| s.admin || s.client().is_some_and(|c| c.works_in(&id));
        self.stream.tell_if(Topic::Topology, TOPOLOGY, MOTHER, &payload, worked);
    }

    fn tell_availability(&self, state: &State, now: &Picture, reason: &str) {
        let event = |sees: &dyn Fn(&Project) -> bool, all: bool| {
            let standing = |picture: &Picture| match all {
                true => picture.standing,
                false => picture.standing_of(sees),
            };
            let (before, after) = (standing(&self.shown), standing(now));
            let payload = Object::new()
                .put("event", "workspace_availability_changed")
                .put("reason", reason)
                .object("before", shown(&before))
                .object("after", shown(&after))
                .put("ts_ms", now_ms());
            (before != after).then(|| payload.finish())
        };
        let Some(of_all) = event(&|_| true, true) else { return };
        let for_each = |s: &Subscriber| match s.admin {
            true => Some(of_all.clone()),
            false => event(&|project| seer(s, state, project).is_some(), false),
        };
        let (topic, request) = (Topic::Availability, "workspace-availability");
        self.stream.tell(topic, request, for_each);
        self.stream.log(topic, request, MOTHER, &of_all);
    }

    fn report(&mut self, state: &State, cycles: u64) {
        (self.reconciled, self.report_at) = (cycles, Deadline::after_ms(REPORT_MS));
        let all: Vec<_> = state.projects.values().collect();
        let of = |projects: &[&Arc<Project>]| {
            self.plane.reconciled(|record| record.shown(projects)).finish()
        };
        let of_all = of(&all);
        let for_each = |s: &Subscriber| match s.admin {
            true => Some(of_all.clone()),
            false => {
                let visible = all.iter().filter(|p| seer(s, state, p).is_some());
                Some(of(&visible.copied().collect::<Vec<_>>()))
            }
        };
        self.stream.tell(Topic::Reconcile, "reconcile", for_each);
        self.stream.log(Topic::Reconcile, "reconcile", MOTHER, &of_all);
    }
}

/// Why a workspace is another.
const PROJECT_CHANGED: &str = "project_changed";
const PROJECT_DELETED: &str = "project_deleted";
const AVAILABILITY_CHANGED: &str = "availability_changed";

/// What workspaces depend on, at one moment.
struct Picture {
    projects: Map<u64, Arc<Known>>,
    /// By number.
    nodes: Map<u64, Presence>,
    /// Of all.
    standing: Standing,
    cycles: u64,
    /// When the next node changes without anybody's doing.
    turns_at_ms: Option<i64>,
}

impl Picture {
    /// With what may have changed since the one before.
    fn of(record: &mut Record) -> (Picture, News) {
        let picture = Picture {
            projects: record.projects.clone(),
            nodes: record.nodes.clone(),
            standing: record.standing,
            cycles: record.cycles_total,
            turns_at_ms: record.turns_at_ms(),
        };
        (picture, record.news())
    }

    /// By when to look again, whatever happens.
    fn until(&self) -> Deadline {
        let left = |at: i64| u64::try_from(at - now_ms()).unwrap_or(0);
        self.turns_at_ms.map_or_else(Deadline::never, |at| Deadline::after_ms(left(at) + 1))
    }

    /// The projects of the news whose workspace is another than in `old`, and why.
    fn differs(&self, old: &Picture, news: &News) -> Vec<(Arc<Project>, &'static str)> {
        let is_moved = |n: &&u64| self.nodes.get(n) != old.nodes.get(n);
        let moved: BTreeSet<u64> = news.nodes.iter().filter(is_moved).copied().collect();
        let changed = |number: &u64| {
            let (now, before) = (self.projects.get(number), old.projects.get(number));
            let Some(now) = now else { return Some((before?.project.clone(), PROJECT_DELETED)) };
            let project = &now.project;
            let is_same = |before: &Arc<Known>| {
                before.project.mounts == project.mounts && before.project.binds == project.binds
            };
            if !before.is_some_and(is_same) {
                return Some((project.clone(), PROJECT_CHANGED));
            }
            let is_moved = |m: &Mount| m.node().is_some_and(|n| moved.contains(&n));
            let affected = !moved.is_empty() && project.mounts.iter().any(is_moved);
            affected.then(|| (project.clone(), AVAILABILITY_CHANGED))
        };
        news.projects.iter().filter_map(changed).collect()
    }

    /// How the projects stand that `sees` lets through, with the nodes that they mount.
    fn standing_of(&self, sees: &dyn Fn(&Project) -> bool) -> Standing {
        let mut standing = Standing::default();
        let mut mounted = BTreeSet::new();
        for known in self.projects.values().filter(|known| sees(&known.project)) {
            standing.add(known);
            mounted.extend(known.project.mounts.iter().filter_map(Mount::node));
        }
        let nodes = mounted.iter().filter_map(|number| self.nodes.get(number));
        nodes.for_each(|presence| standing.add_node(presence));
        standing
    }
}

/// The figures of `workspace_availability_changed` (spec: control 9.2).
fn shown(standing: &Standing) -> Object {
    let of_nodes =
        Object::new().put("online", standing.nodes_online).put("total", standing.nodes_total);
    let mounts = Object::new()
        .put("online", standing.mounts.online)
        .put("degraded", standing.mounts.degraded)
        .put("missing", standing.mounts.missing)
        .put("total", standing.mounts.mounts_total);
    // A number that every JSON reader holds exactly.
    let digest = standing.digest >> 11;
    Object::new()
        .object("nodes", of_nodes)
        .object("mounts", mounts)
        .put("project_mount_digest", digest)
}

/// As whom a connection sees a project.
pub struct Seer {
    agent_id: String,
    admin: bool,
    token: Option<String>,
}

impl Seer {
    fn everything() -> Seer {
        Seer { agent_id: MOTHER.into(), admin: true, token: None }
    }

    fn viewer(&self) -> workspace::Viewer<'_> {
        let token = self.token.as_deref();
        workspace::Viewer { agent_id: &self.agent_id, admin: self.admin, token }
    }

    /// As the first of a connection's sessions that may see a project's workspace.
    pub fn of<'b>(
        state: &State,
        project: &Project,
        admin: bool,
        mut bindings: impl Iterator<Item = &'b Binding>,
    ) -> Option<Seer> {
        let id = project.id();
        if admin {
            return Some(Seer::everything());
        }
        bindings.find_map(|b| {
            // The token that a session holds is that of its own project.
            let own = b.project_id.as_deref() == Some(&*id);
            let token = b.project_token.clone().filter(|_| own);
            let seer = Seer { agent_id: b.agent_id.clone(), admin, token };
            workspace::select(state, Some(&id), seer.viewer()).is_ok().then_some(seer)
        })
    }
}

fn seer(subscriber: &Subscriber, state: &State, project: &Project) -> Option<Seer> {
    subscriber.client()?.seer(state, project)
}
