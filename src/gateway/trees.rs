//! The tree that a session sees: the world, with the files of nodes and the mounts of its project laid
//! over it. When nodes or projects change, the trees that are in use are laid out anew, in place.

use super::nodes::Nodes;
use crate::base::{Cancel, Deadline, Result, ResultExt, TreePath};
use crate::control::Plane;
use crate::control::state::{MOTHER, Project, State};
use crate::vfs::{Bind, Member, MountPoint, NodeId, Tree, Union, Who};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

pub struct Trees {
    plane: Arc<Plane>,
    nodes: Arc<Nodes>,
    world: Arc<dyn Tree>,
    live: Mutex<Vec<(Weak<Union>, Arc<Who>)>>,
}

impl Trees {
    pub fn new(plane: Arc<Plane>, nodes: Arc<Nodes>, world: Arc<dyn Tree>) -> Trees {
        Trees { plane, nodes, world, live: Mutex::default() }
    }

    pub fn for_who(&self, who: &Arc<Who>) -> Result<Arc<dyn Tree>> {
        let (mounts, binds) = self.layout(&self.plane.state(), who);
        let union = Arc::new(Union::new(mounts, binds)?);
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|(union, _)| union.strong_count() > 0);
        live.push((Arc::downgrade(&union), who.clone()));
        Ok(union)
    }

    /// What is mounted where, for one caller. Others than admins see the files of the nodes that their
    /// project mounts, and no others.
    fn layout(&self, state: &State, who: &Who) -> (Vec<MountPoint>, Vec<Bind>) {
        let project = who.project_id.as_deref().and_then(|id| state.project(id).ok());
        let world = Member { name: "world".into(), tree: self.world.clone(), root: NodeId::ROOT };
        let mut mounts = vec![MountPoint { path: TreePath::root(), members: vec![world] }];
        let sees_all = who.admin || who.agent_id == MOTHER;
        for node in state.nodes.values() {
            let id = node.id();
            let mounted = project.is_some_and(|p| p.mounts.iter().any(|m| m.node_id == id));
            if (sees_all || mounted)
                && let Ok(path) = TreePath::parse(format!("/nodes/{id}/fs"))
            {
                let member = self.member(&id, None);
                mounts.push(MountPoint { path, members: vec![member] });
            }
        }
        let binds = project.map(|p| self.project(p, &mut mounts)).unwrap_or_default();
        (mounts, binds)
    }

    fn project(&self, project: &Project, mounts: &mut Vec<MountPoint>) -> Vec<Bind> {
        for m in &project.mounts {
            let Ok(path) = TreePath::parse(&m.mount_path) else { continue };
            if path.is_root() {
                log::warn!("{}: a mount at / would hide the namespace; left out", project.id());
                continue;
            }
            let member = self.member(&m.node_id, Some(&m.export_name));
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

    fn member(&self, node_id: &str, export: Option<&str>) -> Member {
        let name = match export {
            Some(export) => format!("{node_id}:{export}"),
            None => node_id.to_owned(),
        };
        Member { name, tree: self.nodes.tree(node_id, export), root: NodeId::ROOT }
    }

    /// Lays out anew all trees in use.
    fn refresh(&self) {
        let state = self.plane.state();
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (union, who) in live {
            let Some(union) = union.upgrade() else { continue };
            let (mounts, binds) = self.layout(&state, &who);
            if let Err(e) = union.set(mounts, binds) {
                log::warn!("the tree of {} stays as it was: {e}", who.agent_id);
            }
        }
        self.nodes.prune();
    }

    /// Starts the thread that follows the control plane until `stop` is cancelled. Changes that change
    /// no layout (a lease that is refreshed) cost a comparison.
    pub fn follow(self: &Arc<Trees>, stop: Cancel) -> Result<JoinHandle<()>> {
        let trees = self.clone();
        let run = move || {
            let mut shown = Topology::of(&trees.plane.state());
            loop {
                let seen = trees.plane.changed().seen();
                let now = Topology::of(&trees.plane.state());
                if !now.is_same(&shown) {
                    trees.refresh();
                    shown = now;
                }
                let wait = trees.plane.changed().wait(seen, Deadline::never());
                if wait.block(Deadline::never(), &stop).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("topology".into()).spawn(run).context("topology thread")
    }
}

/// What layouts depend on.
struct Topology {
    nodes: Vec<u64>,
    projects: Vec<Arc<Project>>,
}

impl Topology {
    fn of(state: &State) -> Topology {
        let nodes = state.nodes.keys().copied().collect();
        Topology { nodes, projects: state.projects.values().cloned().collect() }
    }

    /// A project that has not changed is the very same value.
    fn is_same(&self, other: &Topology) -> bool {
        let mut pairs = self.projects.iter().zip(&other.projects);
        self.nodes == other.nodes
            && self.projects.len() == other.projects.len()
            && pairs.all(|(a, b)| Arc::ptr_eq(a, b))
    }
}
