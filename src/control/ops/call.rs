//! One request on its way through its handler, and what every handler may ask of it. No operation of its own.

use super::projects::project_id;
use super::sessions::agent_id;
use super::{Context, Op, audit, ungated};
use crate::base::{Code, Error, Result};
use crate::control::plane::Commit;
use crate::control::session::{Binding, Session, check_role};
use crate::control::state::{Change, Project, State};
use crate::control::workspace::{self, Viewer};
use crate::wire::{Fields, Object};
use std::cell::Cell;

pub(super) const SECRET_MAX: usize = 256;
/// Longest lease or invite (spec: control 18): 30 days.
pub(super) const DURATION_MAX_MS: i64 = 30 * 86_400_000;

/// One request on its way through its handler.
pub(super) struct Call<'a> {
    pub cx: &'a Context,
    pub session: &'a mut Session,
    pub op: &'static Op,
    pub correlation_id: Option<&'a str>,
    pub payload: Fields<'a>,
    pub has_payload: bool,
    /// What it did has its record.
    pub recorded: Cell<bool>,
    /// What has to be durable before it is answered.
    pub commit: Cell<Option<Commit>>,
}

impl Call<'_> {
    /// Runs one mutation, recorded, as the last thing that a handler does beside saying what to answer: that
    /// is sent once the changes are durable, and no thread waits for it. Where they cannot be stored, the
    /// error is answered. Errors: what `decide` says, and nothing has changed.
    pub fn mutate<T>(
        &self,
        decide: impl FnOnce(&State, i64) -> Result<(T, Vec<Change>)>,
    ) -> Result<T> {
        let (answer, commit) = self.decide(decide)?;
        self.commit.set(commit);
        Ok(answer)
    }

    /// As [`Plane::mutate`], recorded: for a handler that goes on with what is durable.
    pub fn mutate_and_wait<T>(
        &self,
        decide: impl FnOnce(&State, i64) -> Result<(T, Vec<Change>)>,
    ) -> Result<T> {
        let (answer, commit) = self.decide(decide)?;
        commit.map_or(Ok(()), Commit::wait)?;
        Ok(answer)
    }

    fn decide<T>(
        &self,
        decide: impl FnOnce(&State, i64) -> Result<(T, Vec<Change>)>,
    ) -> Result<(T, Option<Commit>)> {
        let entry = audit::entry(self.op, self.session, self.correlation_id, &self.payload);
        let decided = self.cx.plane.decide(Some(entry), decide)?;
        self.recorded.set(self.recorded.get() || decided.recorded);
        Ok((decided.answer, decided.commit))
    }

    /// The project token in the payload. Errors: `invalid_payload`.
    pub fn project_token(&self) -> Result<Option<String>> {
        let token = self.payload.string("project_token")?;
        match token {
            Some(t) if t.is_empty() || t.len() > SECRET_MAX => {
                Err(Error::new(Code::InvalidPayload, "project_token must have 1 to 256 bytes"))
            }
            token => Ok(token),
        }
    }

    /// What opens a project: the token in the payload, else the one that the acting session holds, if
    /// it is of that project. Errors: `invalid_payload`.
    pub fn token_for(&self, project_id: &str) -> Result<Option<String>> {
        let own = self.session.active().filter(|b| b.project_id.as_deref() == Some(project_id));
        let own = || own.and_then(|b| b.project_token.clone());
        Ok(self.project_token()?.or_else(own))
    }

    /// A duration in milliseconds, capped to what a lease or invite may last.
    pub fn duration_ms(&self, name: &str, default_ms: i64) -> Result<i64> {
        match self.payload.i64(name)? {
            None => Ok(default_ms),
            Some(ms) if (0..=DURATION_MAX_MS).contains(&ms) => Ok(ms),
            Some(_) => Err(Error::new(
                Code::InvalidPayload,
                format!("{name} must be 0 to {DURATION_MAX_MS} (30 days)"),
            )),
        }
    }

    /// A project's workspace, with what opens its files to the caller.
    pub fn workspace(
        &self,
        state: &State,
        project: Option<&Project>,
        viewer: Viewer<'_>,
    ) -> Object {
        workspace::status_for(&self.session.principal.badge, state, project, viewer, 0)
    }

    /// For whom the request looks at the project that it names: the agent that it names as well, else the one of
    /// the acting session, else one that works there. `None` without a project. Errors: the gate's, for a user who
    /// has attached no session and names no project; `invalid_payload`, `forbidden`.
    pub fn observer(&self) -> Result<Option<Binding>> {
        let project = self.payload.string("project_id")?.filter(|p| !p.is_empty());
        let Some(id) = project.map(project_id).transpose()? else {
            ungated(self.cx, self.session)?;
            return Ok(None);
        };
        let named = self.payload.string("agent_id")?.filter(|a| !a.is_empty());
        let named = named.map(agent_id).transpose()?;
        if let Some(named) = &named {
            check_role(self.session.principal.role, named, &id)?;
        }
        let state = self.cx.plane.state();
        let known = || self.session.agent_id().or_else(|| state.agent_of(&id)).map(str::to_owned);
        let agent_id = named.or_else(known).unwrap_or_default();
        let project_token = self.token_for(&id)?;
        Ok(Some(Binding { agent_id, project_id: Some(id), project_token }))
    }

    pub fn viewer<'v>(&'v self, token: Option<&'v str>) -> Viewer<'v> {
        Viewer {
            agent_id: self.session.agent_id().unwrap_or_default(),
            admin: self.session.is_admin(),
            token,
        }
    }
}
