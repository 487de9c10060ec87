//! What a gateway must have of one client's projects and nodes: plain lists, and the rules by which commands
//! change them, as spiderweb-protocol(7) tells them.

use super::Random;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Projects and nodes by name.
#[derive(Clone, Debug)]
pub struct World {
    client: u64,
    projects: BTreeMap<String, Project>,
    nodes: BTreeMap<String, Node>,
    /// Counts what is never said twice.
    turn: u64,
}

#[derive(Clone, Debug, PartialEq)]
struct Project {
    /// `None` until it is known.
    id: Option<String>,
    vision: String,
    locked: bool,
    /// Path, node, export.
    mounts: Vec<[String; 3]>,
    /// Path, target.
    binds: Vec<[String; 2]>,
    updated: Updated,
}

/// The time of a project's version.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Updated {
    At(i64),
    After(i64),
}

#[derive(Clone, Debug, PartialEq)]
struct Node {
    id: Option<String>,
    secret: Option<String>,
    services: usize,
}

/// Names are those of the model; a mount is path, node, export.
#[derive(Clone, Debug)]
pub enum Command {
    Create(String),
    Up(String, Vec<[String; 3]>),
    Update(String, String),
    /// Of a version that is not the newest.
    UpdateStale(String),
    Delete(String),
    Mount(String, [String; 3]),
    Unmount(String, String, Option<[String; 2]>),
    Bind(String, [String; 2]),
    Unbind(String, String),
    Rotate(String),
    Revoke(String),
    /// A node, or its lease anew.
    Ensure(String),
    Forget(String),
    Publish(String, u64),
}

const PATHS: [&str; 7] = ["/a", "/a/b", "/a/b/c", "/a-b", "/c", "/c/d", "/e"];
const EXPORTS: [&str; 2] = ["x", "y"];
const PROJECTS: u64 = 5;
const NODES: u64 = 4;
/// Was never given out.
const NO_NODE: &str = "node-999999999";

impl World {
    pub fn new(client: u64) -> World {
        World { client, projects: BTreeMap::new(), nodes: BTreeMap::new(), turn: 0 }
    }

    /// What `project_get` and `node_list` say.
    pub fn read(client: u64, projects: &[Value], nodes: &[Value]) -> World {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let project = |p: &Value| {
            let project = Project {
                id: Some(text(&p["project_id"])),
                vision: text(&p["vision"]),
                locked: p["token_locked"].as_bool().unwrap(),
                mounts: read_mounts(p),
                binds: read_binds(p),
                updated: Updated::At(p["updated_at_ms"].as_i64().unwrap()),
            };
            (text(&p["name"]), project)
        };
        let node = |n: &Value| {
            let services = n["service_count"].as_u64().unwrap() as usize;
            let node = Node { id: Some(text(&n["node_id"])), secret: None, services };
            (text(&n["node_name"]), node)
        };
        let of = World::new(client);
        let found = World {
            projects: projects.iter().map(project).collect(),
            nodes: nodes.iter().map(node).collect(),
            ..of
        };
        assert_eq!(found.projects.len(), projects.len(), "two projects of a name: {projects:?}");
        assert_eq!(found.nodes.len(), nodes.len(), "two nodes of a name: {nodes:?}");
        found
    }

    pub fn ids(&self) -> BTreeSet<String> {
        let projects = self.projects.values().filter_map(|p| p.id.clone());
        projects.chain(self.nodes.values().filter_map(|n| n.id.clone())).collect()
    }

    /// Whether what was found is what this expects.
    pub fn allows(&self, found: &World) -> bool {
        let same_names = self.projects.keys().eq(found.projects.keys())
            && self.nodes.keys().eq(found.nodes.keys());
        let same_project = |(ours, theirs): (&Project, &Project)| {
            let Updated::At(at) = theirs.updated else { return false };
            let in_time = match ours.updated {
                Updated::At(known) => at == known,
                Updated::After(before) => at > before,
            };
            let id = if ours.id.is_some() { &ours.id } else { &theirs.id };
            let expected = Project { id: id.clone(), updated: theirs.updated, ..ours.clone() };
            in_time && expected == *theirs
        };
        let same_node = |(ours, theirs): (&Node, &Node)| {
            (ours.id.is_none() || ours.id == theirs.id) && ours.services == theirs.services
        };
        same_names
            && self.projects.values().zip(found.projects.values()).all(same_project)
            && self.nodes.values().zip(found.nodes.values()).all(same_node)
    }

    /// What was found, with what only we know.
    pub fn taken_from(&self, found: &World) -> World {
        let mut world = World { turn: self.turn, ..found.clone() };
        for (name, node) in &mut world.nodes {
            node.secret.clone_from(&self.nodes[name].secret);
        }
        world
    }

    /// Takes in what an answer tells.
    pub fn learn(&mut self, command: &Command, payload: &Value) {
        if let Some(project) = command.project().and_then(|name| self.projects.get_mut(name)) {
            let id = payload["project_id"].as_str().map(str::to_owned);
            assert!(project.id.is_none() || project.id == id, "{command:?}: {payload}");
            project.id = id;
            if let Some(at) = payload["updated_at_ms"].as_i64() {
                match project.updated {
                    Updated::At(known) => assert_eq!(at, known, "{command:?}: {payload}"),
                    Updated::After(before) => assert!(at > before, "{command:?}: {payload}"),
                }
                project.updated = Updated::At(at);
            }
            if payload["mounts"].is_array() {
                assert_eq!(read_mounts(payload), project.mounts, "{command:?}: {payload}");
                assert_eq!(read_binds(payload), project.binds, "{command:?}: {payload}");
            }
        }
        if let Command::Ensure(name) = command {
            let node = self.nodes.get_mut(name).unwrap();
            let id = payload["node_id"].as_str().map(str::to_owned);
            assert!(node.id.is_none() || node.id == id, "{command:?}: {payload}");
            node.id = id;
            let secret = payload["node_secret"].as_str().map(str::to_owned);
            assert!(node.secret.is_none() || node.secret == secret, "{command:?}: another secret");
            node.secret = secret;
        }
    }

    /// The next one; what it needs is there as a rule.
    pub fn command(&mut self, random: &mut Random) -> Command {
        self.turn += 1;
        let project = format!("c{}-p{}", self.client, random.below(PROJECTS));
        let node = format!("c{}-n{}", self.client, random.below(NODES));
        if !self.nodes.contains_key(&node) {
            return Command::Ensure(node);
        }
        let mounts = |random: &mut Random| -> Vec<[String; 3]> {
            let count = random.below(5);
            let all: BTreeSet<_> = (0..count).map(|_| self.mount(random)).collect();
            let mut all: Vec<_> = all.into_iter().collect();
            all.sort_by_key(|_| random.next());
            all
        };
        if !self.projects.contains_key(&project) {
            return match random.below(2) {
                0 => Command::Create(project),
                _ => Command::Up(project, mounts(random)),
            };
        }
        let path = |random: &mut Random| (*random.pick(&PATHS)).to_owned();
        match random.below(20) {
            0..5 => Command::Mount(project, self.mount(random)),
            5..8 => {
                let [mount_path, node, export] = self.mount(random);
                let one = (random.below(2) == 0).then_some([node, export]);
                Command::Unmount(project, mount_path, one)
            }
            8..10 => Command::Bind(project, [path(random), path(random)]),
            10 => Command::Unbind(project, path(random)),
            11..14 => Command::Up(project, mounts(random)),
            14 => Command::Update(project, format!("turn {}", self.turn)),
            15 => Command::UpdateStale(project),
            16 if random.below(2) == 0 => Command::Rotate(project),
            16 => Command::Revoke(project),
            17 => Command::Delete(project),
            18 if random.below(2) == 0 => Command::Ensure(node),
            18 => Command::Forget(node),
            _ if self.nodes[&node].secret.is_none() => Command::Ensure(node),
            _ => Command::Publish(node, self.turn),
        }
    }

    /// One that may be set: mostly of a node that there is.
    fn mount(&self, random: &mut Random) -> [String; 3] {
        let ids: Vec<_> = self.nodes.values().filter_map(|n| n.id.clone()).collect();
        let node = match random.below(20) {
            0 => NO_NODE.to_owned(),
            _ if ids.is_empty() => NO_NODE.to_owned(),
            _ => random.pick(&ids).clone(),
        };
        [(*random.pick(&PATHS)).to_owned(), node, (*random.pick(&EXPORTS)).to_owned()]
    }
}

impl Command {
    fn project(&self) -> Option<&String> {
        match self {
            Command::Create(name)
            | Command::Up(name, _)
            | Command::Update(name, _)
            | Command::UpdateStale(name)
            | Command::Delete(name)
            | Command::Mount(name, _)
            | Command::Unmount(name, ..)
            | Command::Bind(name, _)
            | Command::Unbind(name, _)
            | Command::Rotate(name)
            | Command::Revoke(name) => Some(name),
            Command::Ensure(_) | Command::Forget(_) | Command::Publish(..) => None,
        }
    }

    /// The operation, and its payload.
    pub fn request(&self, world: &World) -> (&'static str, Value) {
        let mount = |[path, node, export]: &[String; 3]| json!({"mount_path": path, "node_id": node, "export_name": export});
        let project_id = self.project().and_then(|name| world.projects.get(name)).map(|p| &p.id);
        let with = |mut payload: Value| {
            payload["project_id"] = json!(project_id);
            payload
        };
        match self {
            Command::Create(name) => ("project_create", json!({"name": name, "vision": "created"})),
            Command::Up(name, mounts) => {
                let desired: Vec<_> = mounts.iter().map(mount).collect();
                let payload = json!({"name": name, "vision": "up", "activate": false, "desired_mounts": desired});
                ("project_up", payload)
            }
            Command::Update(_, vision) => ("project_update", with(json!({"vision": vision}))),
            Command::UpdateStale(_) => {
                ("project_update", with(json!({"vision": "stale", "if_updated_at_ms": 1})))
            }
            Command::Delete(_) => ("project_delete", with(json!({}))),
            Command::Mount(_, m) => ("project_mount_set", with(mount(m))),
            Command::Unmount(_, path, one) => {
                let mut payload = json!({"mount_path": path});
                if let Some([node, export]) = one {
                    (payload["node_id"], payload["export_name"]) = (json!(node), json!(export));
                }
                ("project_mount_remove", with(payload))
            }
            Command::Bind(_, [path, target]) => {
                ("project_bind_set", with(json!({"bind_path": path, "target_path": target})))
            }
            Command::Unbind(_, path) => ("project_bind_remove", with(json!({"bind_path": path}))),
            Command::Rotate(_) => ("project_token_rotate", with(json!({}))),
            Command::Revoke(_) => ("project_token_revoke", with(json!({}))),
            Command::Ensure(name) => ("node_ensure", json!({"node_name": name})),
            Command::Forget(name) => ("node_delete", json!({"node_id": world.nodes[name].id})),
            Command::Publish(name, version) => {
                let node = &world.nodes[name];
                let service = json!({"service_id": "s", "kind": "s", "state": "online", "version": version.to_string(),
                    "endpoints": [format!("/nodes/{}/s", node.id.as_ref().unwrap())], "capabilities": {}});
                let payload =
                    json!({"node_id": node.id, "node_secret": node.secret, "services": [service]});
                ("node_service_upsert", payload)
            }
        }
    }

    /// The world in which the command was carried out, or the code with which it is refused.
    pub fn applied(&self, world: &World) -> Result<World, &'static str> {
        let mut world = world.clone();
        let node_ids: BTreeSet<_> = world.nodes.values().filter_map(|n| n.id.clone()).collect();
        if let Some(name) = self.project() {
            let old = world.projects.remove(name);
            if let Some(new) = self.edited(old.as_ref(), &node_ids)? {
                world.projects.insert(name.clone(), new.after(old.as_ref()));
            }
            return Ok(world);
        }
        match self {
            Command::Ensure(name) => {
                let new = Node { id: None, secret: None, services: 0 };
                world.nodes.entry(name.clone()).or_insert(new);
            }
            Command::Forget(name) => {
                let gone = world.nodes.remove(name).and_then(|n| n.id);
                for project in world.projects.values_mut() {
                    let old = project.clone();
                    project.mounts.retain(|[_, node, _]| Some(node) != gone.as_ref());
                    *project = project.clone().after(Some(&old));
                }
            }
            Command::Publish(name, _) => world.nodes.get_mut(name).unwrap().services = 1,
            _ => unreachable!("all others are about a project"),
        }
        Ok(world)
    }

    /// The project afterwards, if there is one then.
    fn edited(
        &self,
        old: Option<&Project>,
        nodes: &BTreeSet<String>,
    ) -> Result<Option<Project>, &'static str> {
        let new = Project {
            id: None,
            vision: "created".into(),
            locked: false,
            mounts: Vec::new(),
            binds: Vec::new(),
            updated: Updated::After(0),
        };
        let mut project = old.cloned().unwrap_or(new);
        match self {
            Command::Delete(_) => return Ok(None),
            Command::UpdateStale(_) => return Err("precondition_failed"),
            Command::Up(_, mounts) => {
                let is_new = |m: &&[String; 3]| !project.mounts.contains(m);
                if mounts.iter().filter(is_new).any(|[_, node, _]| !nodes.contains(node)) {
                    return Err("node_not_found");
                }
                project.vision = "up".into();
                project.mounts.clone_from(mounts);
                project.check("mount_conflict")?;
            }
            Command::Update(_, vision) => project.vision.clone_from(vision),
            Command::Mount(_, mount) => {
                if !nodes.contains(&mount[1]) {
                    return Err("node_not_found");
                }
                if !project.mounts.contains(mount) {
                    project.mounts.push(mount.clone());
                }
                project.check("mount_conflict")?;
            }
            Command::Unmount(_, path, one) => {
                let before = project.mounts.len();
                project.mounts.retain(|[p, node, export]| {
                    p != path || one.as_ref().is_some_and(|[n, e]| (n, e) != (node, export))
                });
                if project.mounts.len() == before {
                    return Err("mount_not_found");
                }
            }
            Command::Bind(_, bind) => {
                if !project.mounts.iter().any(|[path, ..]| is_in(&bind[1], path)) {
                    return Err("bind_conflict");
                }
                match project.binds.iter_mut().find(|[path, _]| *path == bind[0]) {
                    Some(old) => old.clone_from(bind),
                    None => project.binds.push(bind.clone()),
                }
                project.check("bind_conflict")?;
            }
            Command::Unbind(_, path) => {
                let before = project.binds.len();
                project.binds.retain(|[p, _]| p != path);
                if project.binds.len() == before {
                    return Err("bind_not_found");
                }
            }
            // With another token each time.
            Command::Rotate(_) => {
                project.locked = true;
                project.updated = Updated::After(project.newest());
            }
            Command::Revoke(_) => project.locked = false,
            Command::Create(_) => {}
            Command::Ensure(_) | Command::Forget(_) | Command::Publish(..) => {}
        }
        Ok(Some(project))
    }
}

impl Project {
    fn newest(&self) -> i64 {
        let (Updated::At(at) | Updated::After(at)) = self.updated;
        at
    }

    /// A new version of `old`, unless it is the same.
    fn after(mut self, old: Option<&Project>) -> Project {
        if old.is_some_and(|old| self != *old) {
            self.updated = Updated::After(self.newest());
        }
        self
    }

    /// Mounts may stand at one path and nothing else may; nothing stands inside something else.
    fn check(&self, code: &'static str) -> Result<(), &'static str> {
        let paths: BTreeSet<_> = self.mounts.iter().map(|[path, ..]| path).collect();
        let all: Vec<_> =
            paths.into_iter().chain(self.binds.iter().map(|[path, _]| path)).collect();
        let clash = |a: usize, b: usize| a != b && is_in(all[a], all[b]);
        let any = (0..all.len()).any(|a| (0..all.len()).any(|b| clash(a, b)));
        if any { Err(code) } else { Ok(()) }
    }
}

/// Whether one path is, or lies below, another.
fn is_in(inner: &str, outer: &str) -> bool {
    inner == outer || inner.starts_with(&format!("{outer}/"))
}

fn read_mounts(project: &Value) -> Vec<[String; 3]> {
    let mounts = project["mounts"].as_array().unwrap().iter();
    let names = ["mount_path", "node_id", "export_name"];
    mounts.map(|m| names.map(|name| m[name].as_str().unwrap().to_owned())).collect()
}

fn read_binds(project: &Value) -> Vec<[String; 2]> {
    let binds = project["binds"].as_array().unwrap().iter();
    let names = ["bind_path", "target_path"];
    binds.map(|b| names.map(|name| b[name].as_str().unwrap().to_owned())).collect()
}
