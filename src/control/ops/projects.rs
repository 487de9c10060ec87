//! Projects: their attributes, tokens and agents (spec: control 8.8). What is mounted in them is in
//! `mounts`.

use super::desired::Desired;
use super::sessions::activation;
use super::{Call, identifier, text};
use crate::base::{Code, Error, Result, id};
use crate::control::policy::{self, Action, Policy};
use crate::control::state::{Change, Counter, Draft, MOTHER, Profile, Project, State};
use crate::wire::{Fields, Object};
use std::sync::Arc;

const PROJECTS_MAX: usize = 100_000;

/// The project that a request is about, what opens it, and which version of it is meant.
pub(super) struct Target {
    pub project_id: String,
    token: Option<String>,
    if_updated_at_ms: Option<i64>,
    /// What is changed is not shown as a whole.
    brief: bool,
}

impl Target {
    pub fn read(call: &Call<'_>) -> Result<Target> {
        let project_id = project_id(call.payload.required("project_id")?)?;
        let token = call.token_for(&project_id)?;
        let if_updated_at_ms = call.payload.i64("if_updated_at_ms")?;
        let brief = call.payload.bool("brief")?.unwrap_or(false);
        Ok(Target { project_id, token, if_updated_at_ms, brief })
    }

    /// The project, for who may do this with it. Errors: `project_not_found`, and those of access.
    pub fn find<'s>(
        &self,
        call: &Call<'_>,
        state: &'s State,
        action: Action,
    ) -> Result<&'s Arc<Project>> {
        let project = state.project(&self.project_id)?;
        policy::check(project, action, call.viewer(self.token.as_deref()).asker())?;
        Ok(project)
    }

    /// The project, for who is about to change it. Errors: as [`Target::find`], and
    /// `precondition_failed` when it is another version than the one meant.
    fn find_as_seen<'s>(
        &self,
        call: &Call<'_>,
        state: &'s State,
        action: Action,
    ) -> Result<&'s Arc<Project>> {
        let project = self.find(call, state, action)?;
        match self.if_updated_at_ms {
            Some(seen) if seen != project.updated_at_ms => Err(Error::new(
                Code::PreconditionFailed,
                format!(
                    "{} has updated_at_ms {}, not the {seen} of if_updated_at_ms; look at it again",
                    self.project_id, project.updated_at_ms
                ),
            )),
            _ => Ok(project),
        }
    }

    /// Changes the project by `edit`, which sees it as it is. Errors: those of access, of the
    /// version and of `edit`, with nothing changed.
    fn change(
        &self,
        call: &Call<'_>,
        action: Action,
        edit: impl FnOnce(&State, &mut Draft) -> Result<()>,
    ) -> Result<Arc<Project>> {
        call.mutate(|state, now_ms| {
            let mut draft = Draft::of(self.find_as_seen(call, state, action)?);
            edit(state, &mut draft)?;
            Ok(draft.finish(now_ms))
        })
    }

    /// As [`Target::change`], and shows the project as it is then.
    pub fn revise(
        &self,
        call: &Call<'_>,
        action: Action,
        edit: impl FnOnce(&State, &mut Draft) -> Result<()>,
    ) -> Result<Object> {
        let project = self.change(call, action, edit)?;
        Ok(if self.brief { brief(&project) } else { shown(&project) })
    }
}

/// What a request says of a project's attributes; what it does not say stays.
pub(super) struct Attributes {
    pub name: Option<String>,
    pub vision: Option<String>,
    status: Option<String>,
    pub policy: Option<Policy>,
    /// Of the template that the others are from, as far as the request does not give them.
    pub template_id: Option<String>,
}

impl Attributes {
    pub fn read(f: &Fields<'_>) -> Result<Attributes> {
        let name = f.string("name")?.or(f.string("project_name")?);
        Ok(Attributes {
            name: name.map(|n| text("name", n, 128)).transpose()?,
            vision: f.string("vision")?.map(|v| text("vision", v, 1024)).transpose()?,
            status: f.string("status")?.map(|s| identifier("status", s, 64)).transpose()?,
            policy: f.object("access_policy")?.map(|p| Policy::read(&p)).transpose()?,
            template_id: None,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.name.is_none()
            && self.vision.is_none()
            && self.status.is_none()
            && self.policy.is_none()
            && self.template_id.is_none()
    }

    pub fn apply(self, project: &mut Profile) {
        let Attributes { name, vision, status, policy, template_id } = self;
        project.name = name.unwrap_or_else(|| std::mem::take(&mut project.name));
        project.vision = vision.unwrap_or_else(|| std::mem::take(&mut project.vision));
        project.status = status.unwrap_or_else(|| std::mem::take(&mut project.status));
        project.policy = policy.unwrap_or_else(|| std::mem::take(&mut project.policy));
        project.template_id = template_id.or_else(|| project.template_id.take());
    }

    /// A new project, without mounts, and the change that marks its number as given out. Errors:
    /// `missing_field`, `limit_exceeded`.
    pub fn create(self, state: &State, now_ms: i64) -> Result<(Draft, Change)> {
        if state.projects.size() >= PROJECTS_MAX {
            let message = format!("there are {PROJECTS_MAX} projects already");
            return Err(Error::new(Code::LimitExceeded, message));
        }
        let (number, last) = state.next(Counter::Project);
        let profile = Profile {
            number,
            name: self.name.ok_or_else(|| Error::missing("name"))?,
            vision: self.vision.ok_or_else(|| Error::missing("vision"))?,
            status: self.status.unwrap_or_else(|| "active".into()),
            token: id::hex_token("proj-"),
            token_locked: false,
            created_at_ms: now_ms,
            updated_at_ms: now_ms,
            policy: self.policy.unwrap_or_default(),
            template_id: self.template_id,
        };
        Ok((Draft::new(profile), last))
    }
}

pub(super) fn create(call: &mut Call<'_>) -> Result<Object> {
    call.payload.required("name")?;
    if call.payload.get("template_id").is_none() {
        call.payload.required("vision")?;
    }
    let desired = Desired::read(call)?;
    let project = call.mutate(|state, now_ms| desired.create(state, now_ms))?;
    Ok(shown(&project))
}

pub(super) fn update(call: &mut Call<'_>) -> Result<Object> {
    let target = Target::read(call)?;
    let attributes = Attributes::read(&call.payload)?;
    target.revise(call, Action::Admin, |_, project| {
        unprotected(project)?;
        attributes.apply(project.profile_mut());
        Ok(())
    })
}

/// The agents that worked in it work in none then; mother goes back to where she belongs.
pub(super) fn delete(call: &mut Call<'_>) -> Result<Object> {
    let target = Target::read(call)?;
    call.mutate(|state, _| {
        let project = target.find_as_seen(call, state, Action::Admin)?;
        unprotected(project)?;
        let leave = |agent_id: &str| match agent_id {
            MOTHER => Change::Activate { agent_id: MOTHER.into(), project: 0 },
            _ => Change::Deactivate { agent_id: agent_id.into() },
        };
        let agents = state.agents_in(project.number).map(leave);
        Ok(((), agents.chain([Change::DeleteProject(project.clone())]).collect()))
    })?;
    Ok(Object::new().put("deleted", true).put("project_id", target.project_id))
}

pub(super) fn activate(call: &mut Call<'_>) -> Result<Object> {
    let target = Target::read(call)?;
    let agent_id = call.session.binding(None)?.agent_id.clone();
    call.mutate(|state, _| {
        let project = target.find(call, state, Action::Read)?;
        let asker = call.viewer(target.token.as_deref()).asker();
        Ok(((), activation(state, &agent_id, project, asker)?))
    })?;
    Ok(Object::new()
        .put("agent_id", agent_id)
        .put("project_id", target.project_id)
        .put("workspace_root", "/"))
}

/// A new token, which is asked for from now on.
pub(super) fn token_rotate(call: &mut Call<'_>) -> Result<Object> {
    let project = Target::read(call)?.change(call, Action::Admin, |_, project| {
        unprotected(project)?;
        let profile = project.profile_mut();
        profile.token = id::hex_token("proj-");
        profile.token_locked = true;
        Ok(())
    })?;
    Ok(Object::new()
        .put("project_id", project.id())
        .put("project_token", &project.token)
        .put("rotated", true)
        .put("updated_at_ms", project.updated_at_ms))
}

/// No token is asked for any more.
pub(super) fn token_revoke(call: &mut Call<'_>) -> Result<Object> {
    let project = Target::read(call)?.change(call, Action::Admin, |_, project| {
        unprotected(project)?;
        project.profile_mut().token_locked = false;
        Ok(())
    })?;
    Ok(Object::new()
        .put("project_id", project.id())
        .put("project_token", None::<&str>)
        .put("revoked", true)
        .put("updated_at_ms", project.updated_at_ms))
}

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
            .put("bind_count", p.binds.len())
            .put("template_id", &p.template_id)
            .finish()
    };
    let list: Vec<_> = state.projects.values().filter(|p| is_known_to(call, p)).map(one).collect();
    Ok(Object::new().raw("projects", &format!("[{}]", list.join(","))))
}

/// Whether the caller may know of a project: who may not read it is not told its name (spec: control
/// 14.1). Where a token would open it, its existence is no secret.
pub(super) fn is_known_to(call: &Call<'_>, project: &Project) -> bool {
    match policy::check(project, Action::Read, call.viewer(None).asker()) {
        Ok(()) => true,
        Err(e) => e.code == Code::MissingField,
    }
}

pub(super) fn get(call: &mut Call<'_>) -> Result<Object> {
    let state = call.cx.plane.state();
    Ok(shown(Target::read(call)?.find(call, &state, Action::Read)?))
}

pub(super) fn project_id(id: String) -> Result<String> {
    identifier("project_id", id, 128)
}

/// What may be done with any project but the system's (spec: control 5.3).
pub(super) fn unprotected(project: &Project) -> Result<()> {
    if project.is_system() {
        return Err(Error::new(Code::ProjectProtected, "the system project cannot be changed"));
    }
    Ok(())
}

fn kind(p: &Project) -> &'static str {
    if p.is_system() { "system_builtin" } else { "normal" }
}

/// What of a project says that a change was made, and to which version it led.
fn brief(p: &Project) -> Object {
    Object::new()
        .put("project_id", p.id())
        .put("updated_at_ms", p.updated_at_ms)
        .put("mount_count", p.mounts.len())
        .put("bind_count", p.binds.len())
}

/// The project object (spec: control 8.8).
pub(super) fn shown(p: &Project) -> Object {
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
        .put("template_id", &p.template_id)
        .with("mounts", |to| p.mounts.write_json(to))
        .with("binds", |to| p.binds.write_json(to))
}
