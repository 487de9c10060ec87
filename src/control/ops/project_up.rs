//! project_up: makes a project what its description says (spec: control 8.8). Everything is checked
//! before anything changes.

use super::Call;
use super::desired::Desired;
use super::projects::{project_id, unprotected};
use super::sessions::{activation, agent_id};
use crate::base::{Code, Error, Result};
use crate::control::policy::{self, Action, Asker};
use crate::control::state::{Change, MOTHER, Project, State};
use crate::control::workspace;
use crate::wire::Object;
use std::sync::Arc;

struct Up {
    project_id: Option<String>,
    desired: Desired,
    token: Option<String>,
    activate: bool,
    /// Ours: activate for this agent, which is made when it does not exist, instead of the acting one.
    agent_id: Option<String>,
}

impl Up {
    fn read(call: &Call<'_>) -> Result<Up> {
        let f = &call.payload;
        let project_id =
            f.string("project_id")?.filter(|p| !p.is_empty()).map(project_id).transpose()?;
        Ok(Up {
            desired: Desired::read(call)?,
            token: match &project_id {
                Some(id) => call.token_for(id)?,
                None => call.project_token()?,
            },
            project_id,
            activate: f.bool("activate")?.unwrap_or(true),
            agent_id: f.string("agent_id")?.map(agent_id).transpose()?,
        })
    }

    fn find<'s>(&self, state: &'s State) -> Result<Option<&'s Arc<Project>>> {
        if let Some(id) = &self.project_id {
            return state.project(id).map(Some);
        }
        let name = self.desired.attributes.name.as_ref();
        let name = name.ok_or_else(|| Error::missing("project_id or name"))?;
        Ok(state.projects_named(name).next())
    }

    fn may_revise(&self, project: &Project, asker: Asker<'_>) -> Result<()> {
        let Desired { attributes, layout } = &self.desired;
        let attributes = !attributes.is_empty();
        let (mounts, binds) = (layout.mounts.is_some(), layout.binds.is_some());
        if attributes || mounts || binds {
            unprotected(project)?;
        } else {
            policy::check(project, Action::Read, asker)?;
        }
        if mounts {
            policy::check(project, Action::Mount, asker)?;
        }
        if binds {
            policy::check(project, Action::Bind, asker)?;
        }
        if attributes {
            policy::check(project, Action::Admin, asker)?;
        }
        Ok(())
    }
}

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
    let (activate, token) = (up.activate, up.token.clone());
    let asker =
        Asker { admin: call.session.is_admin(), agent_id: Some(&acting), token: token.as_deref() };
    let (project, created) = call.mutate_and_wait(|state, now_ms| {
        let (project, created, mut changes) = applied(state, up, asker, now_ms)?;
        if activate {
            let asker = Asker { agent_id: Some(&agent), ..asker };
            changes.extend(activation(state, &agent, &project, asker)?);
        }
        Ok(((project, created), changes))
    })?;
    let state = call.cx.plane.state();
    let viewer = workspace::Viewer { agent_id: &agent, ..call.viewer(token.as_deref()) };
    // The token goes to those who could set it: not to everyone who may read (spec: control 14.1).
    let shown = (project.token_locked && call.session.is_admin()).then_some(&project.token);
    Ok(Object::new()
        .put("project_id", project.id())
        .put("project_token", shown)
        .put("created", created)
        .put("activated", activate)
        .object("workspace", call.workspace(&state, Some(&project), viewer)))
}

/// The project as described, and whether it is new.
fn applied(
    state: &State,
    up: Up,
    asker: Asker<'_>,
    now_ms: i64,
) -> Result<(Arc<Project>, bool, Vec<Change>)> {
    let Some(old) = up.find(state)? else {
        let (project, changes) = up.desired.create(state, now_ms)?;
        return Ok((project, true, changes));
    };
    up.may_revise(old, asker)?;
    let (project, changes) = up.desired.revise(old, state, now_ms)?;
    Ok((project, false, changes))
}
