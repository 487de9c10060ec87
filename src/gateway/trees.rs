//! The tree that a session sees: the world, with the files and services of nodes and the mounts of its
//! project laid over it. When nodes or projects change, the trees that are in use are laid out anew, in place.

use super::nodes::Nodes;
use super::pace::Pace;
use crate::base::{Cancel, Deadline, Name, Result, ResultExt, TreePath};
use crate::control::Plane;
use crate::control::policy::Asker;
use crate::control::reconcile::Touched;
use crate::control::state::{MOTHER, Node, Project, Service, State, node_id, project_id};
use crate::vfs::remote::Which;
use crate::vfs::{Bind, Member, MountPoint, NodeId, Tree, Union, Who};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

/// Files of a service that do not tell what the catalogue tells.
const ALIASES: [&str; 8] = [
    "control",
    "status.json",
    "result.json",
    "last_error.txt",
    "metrics.json",
    "health.json",
    "config.json",
    "TEMPLATE.json",
];

pub struct Trees {
    plane: Arc<Plane>,
    nodes: Arc<Nodes>,
    world: Arc<dyn Tree>,
    live: Mutex<Vec<(Weak<Union>, Arc<Who>)>>,
    /// Held from looking at the state until a new tree is laid out by it, and while one is laid out anew.
    laying: Mutex<()>,
}

impl Trees {
    pub fn new(plane: Arc<Plane>, nodes: Arc<Nodes>, world: Arc<dyn Tree>) -> Trees {
        Trees { plane, nodes, world, live: Mutex::default(), laying: Mutex::default() }
    }

    pub fn for_who(&self, who: &Arc<Who>) -> Result<Arc<dyn Tree>> {
        let union = Arc::new(Union::new(vec![self.root()], Vec::new())?);
        {
            let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            live.retain(|(union, _)| union.strong_count() > 0);
            live.push((Arc::downgrade(&union), who.clone()));
        }
        // Known before it is laid out: what changes meanwhile is laid out after this.
        let _laying = self.laying();
        self.lay_out(&self.plane.state(), who, |mounts, binds| union.set(mounts, binds))?;
        Ok(union)
    }

    fn laying(&self) -> MutexGuard<'_, ()> {
        self.laying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn root(&self) -> MountPoint {
        let world = Member { name: "world".into(), tree: self.world.clone(), root: NodeId::ROOT };
        MountPoint { path: TreePath::root(), members: vec![world] }
    }

    /// Hands the mounts and binds of one caller to `set`. What a node asks for never costs a project its
    /// tree: where it gets in the way of the project's own, nodes show no services.
    fn lay_out(
        &self,
        state: &State,
        who: &Who,
        set: impl Fn(Vec<MountPoint>, Vec<Bind>) -> Result<()>,
    ) -> Result<()> {
        let (mounts, binds) = self.layout(state, who, true);
        set(mounts, binds).or_else(|e| {
            log::warn!("the tree of {} is without services: {e}", who.agent_id);
            let (mounts, binds) = self.layout(state, who, false);
            set(mounts, binds)
        })
    }

    /// What is mounted where, for one caller. Others than admins see the files and services of the nodes
    /// that their project mounts, and no others.
    fn layout(&self, state: &State, who: &Who, services: bool) -> (Vec<MountPoint>, Vec<Bind>) {
        let project = who.project_id.as_deref().and_then(|id| state.project(id).ok());
        let mut mounts = vec![self.root()];
        let sees_all = who.admin || who.agent_id == MOTHER;
        let is_mounted = |n: &Node| project.is_some_and(|p| state.is_mounted(n.number, p.number));
        let nodes = || state.nodes.values().filter(|n| sees_all || is_mounted(n));
        mounts.extend(nodes().filter_map(|n| self.files(n)));
        let mut binds = project.map(|p| self.project(p, &mut mounts)).unwrap_or_default();
        // What the project itself has put somewhere stays.
        let taken = mounts.iter().map(|m| &m.path).chain(binds.iter().map(|b| &b.path));
        let taken: HashSet<_> = taken.cloned().collect();
        for node in nodes().filter(|_| services) {
            let (places, aliases) = self.services(state, node, who);
            mounts.extend(places.into_iter().filter(|place| !taken.contains(&place.path)));
            binds.extend(aliases.into_iter().filter(|alias| !taken.contains(&alias.path)));
        }
        (mounts, binds)
    }

    fn files(&self, node: &Node) -> Option<MountPoint> {
        let id = node.id();
        let path =
            TreePath::parse(format!("/nodes/{id}/fs")).ok().filter(|_| node.shows_files())?;
        let tree = self.nodes.tree(&id, Which::Files);
        Some(MountPoint { path, members: vec![Member { name: id, tree, root: NodeId::ROOT }] })
    }

    /// The services of a node that the caller may use, where they stand, and under which names in the
    /// catalogue's directory they are found again.
    fn services(&self, state: &State, node: &Node, who: &Who) -> (Vec<MountPoint>, Vec<Bind>) {
        let (id, mut places, mut aliases) = (node.id(), Vec::new(), Vec::new());
        let token = who.project_token.as_deref();
        let asker = Asker { admin: who.admin, agent_id: Some(&who.agent_id), token };
        let mut taken = HashSet::new();
        for service in node.services.iter().filter(|s| s.runs() && s.has_a_name()) {
            if !service.admits(state, who.project_id.as_deref(), asker) {
                continue;
            }
            let paths = service.paths(&id);
            // Of two that want one place the first has it.
            let paths: Vec<_> = paths.into_iter().filter(|p| taken.insert(p.clone())).collect();
            aliases.extend(paths.first().into_iter().flat_map(|at| aliases_of(&id, service, at)));
            let tree = self.nodes.tree(&id, Which::Service(service.service_id.clone()));
            let name = format!("{id}:{}", service.service_id);
            places.extend(paths.into_iter().map(|path| {
                let member = Member { name: name.clone(), tree: tree.clone(), root: NodeId::ROOT };
                MountPoint { path, members: vec![member] }
            }));
        }
        (places, aliases)
    }

    fn project(&self, project: &Project, mounts: &mut Vec<MountPoint>) -> Vec<Bind> {
        for m in project.mounts.iter() {
            let Ok(path) = TreePath::parse(&m.mount_path) else { continue };
            if path.is_root() {
                log::warn!("{}: a mount at / would hide the namespace; left out", project.id());
                continue;
            }
            let which = Which::Named(m.export_name.clone());
            let tree = self.nodes.tree(&m.node_id, which);
            let name = format!("{}:{}", m.node_id, m.export_name);
            let member = Member { name, tree, root: NodeId::ROOT };
            match mounts.iter_mut().find(|mount| mount.path == path) {
                Some(group) => group.members.push(member),
                None => mounts.push(MountPoint { path, members: vec![member] }),
            }
        }
        let bind = |b: &crate::control::state::Bind| {
            Some(Bind {
                path: TreePath::parse(&b.bind_path).ok()?,
                target: TreePath::parse(&b.target_path).ok()?,
            })
        };
        project.binds.iter().filter_map(bind).collect()
    }

    /// Lays out anew the trees in use that `is_affected` means, by project.
    fn refresh(&self, state: &State, is_affected: impl Fn(Option<&str>) -> bool) {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (union, who) in live {
            let Some(union) = union.upgrade() else { continue };
            if !is_affected(who.project_id.as_deref()) {
                continue;
            }
            let _laying = self.laying();
            if let Err(e) = self.lay_out(state, &who, |mounts, binds| union.set(mounts, binds)) {
                log::warn!("the tree of {} stays as it was: {e}", who.agent_id);
            }
        }
    }

    /// Lays out anew what mutations have changed since `shown`. Changes that change no layout (a lease that
    /// is refreshed) cost a comparison.
    fn follow_changes(&self, state: &State, touched: &Touched, shown: &State) {
        // Whether a node is there, and what of it is shown.
        let services = |state: &State, number| state.nodes.get(number).map(|n| n.services.clone());
        let mut any_node = false;
        for number in &touched.nodes {
            let (old, new) = (services(shown, number), services(state, number));
            if old.is_some() && new.is_some() && old != new {
                self.nodes.catalogue_changed(&node_id(*number));
            }
            any_node |= old != new;
        }
        let projects: HashSet<_> = touched.projects.iter().map(|n| project_id(*n)).collect();
        if any_node || !projects.is_empty() {
            self.refresh(state, |id| any_node || id.is_some_and(|id| projects.contains(id)));
        }
        if any_node {
            self.nodes.prune();
        }
    }

    /// Starts the thread that follows the control plane until `stop` is cancelled.
    pub fn follow(self: &Arc<Trees>, stop: Cancel) -> Result<JoinHandle<()>> {
        let trees = self.clone();
        let touched = Arc::new(Mutex::new(Touched::default()));
        let (heard, mut shown) = (touched.clone(), trees.plane.state());
        trees.plane.listen(Arc::new(move |changes| lock(&heard).hear(changes)));
        let run = move || {
            let mut pace = Pace::default();
            loop {
                let (seen, began) = (trees.plane.changed().seen(), Instant::now());
                // Before the state, which has all that was touched.
                let news = std::mem::take(&mut *lock(&touched));
                let state = trees.plane.state();
                trees.follow_changes(&state, &news, &shown);
                shown = state;
                let (worked, since) = (began.elapsed(), Instant::now());
                let change = trees.plane.changed().wait(seen, Deadline::never());
                let news = change.block(Deadline::never(), &stop);
                if news.and_then(|()| pace.rest(worked, since.elapsed(), &stop)).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("topology".into()).spawn(run).context("topology thread")
    }
}

fn lock(touched: &Mutex<Touched>) -> MutexGuard<'_, Touched> {
    touched.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the files of a service that stands at `at` are found beside what the catalogue says of it
/// (spec: namespace 9.6).
fn aliases_of(node_id: &str, service: &Service, at: &TreePath) -> impl Iterator<Item = Bind> {
    let place = format!("/nodes/{node_id}/services/{}", service.service_id);
    ALIASES.iter().filter_map(move |name| {
        let (path, name) =
            (TreePath::parse(format!("{place}/{name}")).ok()?, Name::text(name).ok()?);
        Some(Bind { path, target: at.join(name) })
    })
}
