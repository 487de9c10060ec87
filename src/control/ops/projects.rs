//! Projects and their workspaces (spec: control 8.7 and 8.8).

use super::sessions::{activation, agent_id};
use super::{Call, identifier, text};
use crate::base::{Code, Error, Result, TreePath, id};
use crate::control::policy::{self, Action, Asker, Policy};
use crate::control::state::{Bind, Change, Counter, MOTHER, Mount, Project, State};
use crate::control::workspace;
use crate::wire::{Fields, Object};
use std::sync::Arc;

const PROJECTS_MAX: usize = 100_000;
/// Mounts that one project may have.
const MOUNTS_MAX: usize = 1000;

pub(super) fn list(call: &mut Call<'_>) -> Result<Object> {
    let state = call.cx.plane.state();
    let one = |p: &Arc<Project>| {
        Object::new()
            .put("project_id", p.id())
            .put("name", &p.name)
            .put("status", &p.status)
            .put("kind", kind(p))
            .put("is_delete_protected", p.is_system())
            .put("mount_count", p.mounts.len())
            .finish()
    };
    // Who may not read a project is not told its name (spec: control 14.1).
    let viewer = call.viewer(None);
    let visible = |p: &&Arc<Project>| match policy::check(p, Action::Read, viewer.asker()) {
        Ok(()) => true,
        // A token would open it: its existence is no secret.
        Err(e) => e.code == Code::MissingField,
    };
    let list: Vec<_> = state.projects.values().filter(visible).map(one).collect();
    Ok(Object::new().raw("projects", &format!("[{}]", list.join(","))))
}

pub(super) fn get(call: &mut Call<'_>) -> Result<Object> {
    let project_id = call.payload.required("project_id")?;
    let token = call.project_token()?;
    let state = call.cx.plane.state();
    let project = state.project(&project_id)?;
    policy::check(project, Action::Read, call.viewer(token.as_deref()).asker())?;
    Ok(shown(project))
}

pub(super) fn workspace_status(call: &mut Call<'_>) -> Result<Object> {
    let project_id = call.payload.string("project_id")?.filter(|p| !p.is_empty());
    let given = call.project_token()?;
    let binding = call.session.active();
    // The session's own token counts for the session's own project (spec: control 14.2 row 10).
    let of_session = binding
        .filter(|b| project_id.is_none() || b.project_id == project_id)
        .and_then(|b| b.project_token.clone());
    let token = given.or(of_session);
    let viewer = call.viewer(token.as_deref());
    let state = call.cx.plane.state();
    let project = workspace::select(&state, project_id.as_deref(), viewer)?;
    Ok(workspace::status(&state, project, viewer, super::now()))
}

fn kind(p: &Project) -> &'static str {
    if p.is_system() { "system_builtin" } else { "normal" }
}

/// The project object (spec: control 8.8).
fn shown(p: &Project) -> Object {
    Object::new()
        .put("project_id", p.id())
        .put("name", &p.name)
        .put("vision", &p.vision)
        .put("status", &p.status)
        .put("kind", kind(p))
        .put("is_delete_protected", p.is_system())
        .put("token_locked", p.token_locked)
        .put("created_at_ms", p.created_at_ms)
        .put("updated_at_ms", p.updated_at_ms)
        .put("access_policy", &p.policy)
        .put("mounts", &p.mounts)
        .put("binds", &p.binds)
}

/// What `project_up` asks for.
struct Up {
    project_id: Option<String>,
    name: Option<String>,
    vision: Option<String>,
    status: Option<String>,
    policy: Option<Policy>,
    mounts: Option<Vec<Mount>>,
    token: Option<String>,
    activate: bool,
    /// Ours: activate for this agent, which is made when it does not exist, instead of the acting one.
    agent_id: Option<String>,
}

impl Up {
    fn read(call: &Call<'_>) -> Result<Up> {
        let f = &call.payload;
        let name = f.string("name")?.or(f.string("project_name")?);
        Ok(Up {
            project_id: f.string("project_id")?.filter(|p| !p.is_empty()),
            name: name.map(|n| text("name", n, 128)).transpose()?,
            vision: f.string("vision")?.map(|v| text("vision", v, 1024)).transpose()?,
            status: f.string("status")?.map(|s| identifier("status", s, 64)).transpose()?,
            policy: f.object("access_policy")?.map(|p| Policy::read(&p)).transpose()?,
            mounts: f.array("desired_mounts")?.map(|list| read_mounts(&list)).transpose()?,
            token: call.project_token()?,
            activate: f.bool("activate")?.unwrap_or(true),
            agent_id: f.string("agent_id")?.map(agent_id).transpose()?,
        })
    }

    fn changes_attributes(&self) -> bool {
        self.name.is_some()
            || self.vision.is_some()
            || self.status.is_some()
            || self.policy.is_some()
    }
}

/// Creates or updates a project by its description (spec: control 8.8). Everything is checked before
/// anything changes.
pub(super) fn up(call: &mut Call<'_>) -> Result<Object> {
    let up = Up::read(call)?;
    let acting = call.session.agent_id().unwrap_or_default().to_owned();
    let agent = up.agent_id.clone().unwrap_or_else(|| acting.clone());
    if up.activate && up.agent_id.is_some() {
        if agent == MOTHER && !call.session.is_admin() {
            return Err(Error::new(Code::Forbidden, "user role cannot act for mother"));
        }
        call.cx.agents.ensure(&agent)?;
    }
    let asker = Asker {
        admin: call.session.is_admin(),
        agent_id: Some(&acting),
        token: up.token.as_deref(),
    };
    let (project_id, created) = call.cx.plane.mutate(|state, now_ms| {
        let existing = find(state, &up)?;
        let (project, mut changes) = match existing {
            Some(project) => (revised(state, project, &up, asker, now_ms)?, vec![]),
            None => created(state, &up, now_ms)?,
        };
        let id = project.id();
        if existing.is_none_or(|p| **p != project) {
            changes.push(Change::PutProject(Arc::new(project)));
        }
        if up.activate {
            let mut after = state.clone();
            changes.iter().for_each(|c| after.apply(c));
            let asker = Asker { agent_id: Some(&agent), ..asker };
            changes.extend(activation(&after, &agent, &id, asker)?);
        }
        Ok(((id, existing.is_none()), changes))
    })?;
    let state = call.cx.plane.state();
    let project = state.project(&project_id)?;
    let viewer = workspace::Viewer { agent_id: &agent, ..call.viewer(up.token.as_deref()) };
    // The token goes to those who could set it: not to everyone who may read (spec: control 14.1).
    let token = (project.token_locked && call.session.is_admin()).then_some(&project.token);
    Ok(Object::new()
        .put("project_id", &project_id)
        .put("project_token", token)
        .put("created", created)
        .put("activated", up.activate)
        .object("workspace", workspace::status(&state, Some(project), viewer, super::now())))
}

fn find<'s>(state: &'s State, up: &Up) -> Result<Option<&'s Arc<Project>>> {
    if let Some(id) = &up.project_id {
        return state.project(id).map(Some);
    }
    let name = up.name.as_ref().ok_or_else(|| Error::missing("project_id or name"))?;
    Ok(state.projects.values().find(|p| p.name == *name))
}

fn created(state: &State, up: &Up, now_ms: i64) -> Result<(Project, Vec<Change>)> {
    if state.projects.len() >= PROJECTS_MAX {
        let message = format!("there are {PROJECTS_MAX} projects already");
        return Err(Error::new(Code::LimitExceeded, message));
    }
    let (number, last) = state.next(Counter::Project);
    let project = Project {
        number,
        name: up.name.clone().ok_or_else(|| Error::missing("name"))?,
        vision: up.vision.clone().ok_or_else(|| Error::missing("vision"))?,
        status: up.status.clone().unwrap_or_else(|| "active".into()),
        token: id::hex_token("proj-"),
        token_locked: false,
        created_at_ms: now_ms,
        updated_at_ms: now_ms,
        policy: up.policy.clone().unwrap_or_default(),
        mounts: Vec::new(),
        binds: Vec::new(),
    };
    let mounts = up.mounts.clone().unwrap_or_default();
    Ok((with_mounts(state, project, mounts)?, vec![last]))
}

fn revised(
    state: &State,
    project: &Project,
    up: &Up,
    asker: Asker<'_>,
    now_ms: i64,
) -> Result<Project> {
    let changing = up.changes_attributes() || up.mounts.is_some();
    if project.is_system() && changing {
        return Err(Error::new(Code::ProjectProtected, "the system project cannot be changed"));
    }
    if up.mounts.is_some() {
        policy::check(project, Action::Mount, asker)?;
    }
    if up.changes_attributes() {
        policy::check(project, Action::Admin, asker)?;
    }
    if !changing {
        policy::check(project, Action::Read, asker)?;
        return Ok(project.clone());
    }
    let mut new = project.clone();
    if let Some(name) = &up.name {
        new.name.clone_from(name);
    }
    if let Some(vision) = &up.vision {
        new.vision.clone_from(vision);
    }
    if let Some(status) = &up.status {
        new.status.clone_from(status);
    }
    if let Some(policy) = &up.policy {
        new.policy = policy.clone();
    }
    if let Some(mounts) = &up.mounts {
        new = with_mounts(state, new, mounts.clone())?;
    }
    if new != *project {
        new.updated_at_ms = now_ms;
    }
    Ok(new)
}

fn read_mounts(list: &[&serde_json::value::RawValue]) -> Result<Vec<Mount>> {
    if list.len() > MOUNTS_MAX {
        let message = format!("a project has at most {MOUNTS_MAX} mounts");
        return Err(Error::new(Code::LimitExceeded, message));
    }
    let read = |entry: &&serde_json::value::RawValue| {
        let f = Fields::of("desired_mounts[]", entry)?;
        read_mount(&f).map_err(|e| e.context("desired_mounts[]"))
    };
    let mut mounts: Vec<Mount> = Vec::new();
    for mount in list.iter().map(read) {
        let mount = mount?;
        if !mounts.contains(&mount) {
            mounts.push(mount);
        }
    }
    Ok(mounts)
}

fn read_mount(f: &Fields<'_>) -> Result<Mount> {
    Ok(Mount {
        mount_path: tree_path("mount_path", &f.required("mount_path")?)?,
        node_id: identifier("node_id", f.required("node_id")?, 128)?,
        export_name: identifier("export_name", f.required("export_name")?, 128)?,
    })
}

/// A path of the namespace in normal form. Errors: `invalid_payload`; `..` is refused, for it would get
/// around the overlap rules (spec: control 14.1 row 10).
fn tree_path(name: &str, path: &str) -> Result<String> {
    let path = path.trim();
    if path.is_empty() {
        return Err(Error::new(Code::InvalidPayload, format!("{name} must not be blank")));
    }
    let parsed = TreePath::parse(path).map_err(|e| e.recode(Code::InvalidPayload).context(name))?;
    Ok(parsed.display().into_owned())
}

/// The project with these mounts, if they go together (spec: control 8.8, mount rules).
fn with_mounts(state: &State, mut project: Project, mounts: Vec<Mount>) -> Result<Project> {
    let paths: Vec<&str> = mounts.iter().map(|m| &*m.mount_path).collect();
    for (i, mount) in mounts.iter().enumerate() {
        state.node(&mount.node_id)?;
        if let Some(other) = paths[..i].iter().find(|p| nests(p, &mount.mount_path)) {
            return Err(conflict(&mount.mount_path, other));
        }
        let bind =
            |b: &&Bind| b.bind_path == mount.mount_path || nests(&b.bind_path, &mount.mount_path);
        if let Some(b) = project.binds.iter().find(bind) {
            return Err(conflict(&mount.mount_path, &b.bind_path));
        }
    }
    project.mounts = mounts;
    Ok(project)
}

fn conflict(path: &str, other: &str) -> Error {
    Error::new(Code::MountConflict, format!("{path} and {other} overlap"))
}

/// True when one path lies inside the other and they are not the same.
fn nests(a: &str, b: &str) -> bool {
    let inside = |inner: &str, outer: &str| {
        outer == "/" || inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
    };
    a != b && (inside(a, b) || inside(b, a))
}
