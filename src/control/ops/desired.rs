//! What a request wants a project to be: what it says itself, and where it is silent, what the template
//! says that it names. Who may ask for it is said in `project_up`.

use super::mounts::Layout;
use super::projects::Attributes;
use super::{Call, templates};
use crate::base::Result;
use crate::control::state::{Change, Draft, Project, State};
use std::sync::Arc;

pub(super) struct Desired {
    pub attributes: Attributes,
    pub layout: Layout,
}

impl Desired {
    /// Errors: `invalid_payload`, and the others of a [`Layout`]; `template_not_found`; `invalid` for a
    /// template that cannot be read.
    pub fn read(call: &Call<'_>) -> Result<Desired> {
        let f = &call.payload;
        let mut attributes = Attributes::read(f)?;
        let mut layout = Layout::read(f, "desired_mounts", "desired_binds")?;
        if let Some(id) = f.string("template_id")? {
            let id = templates::template_id(id)?;
            let template = templates::find(call.cx, &id)?;
            attributes.vision = attributes.vision.or(template.vision);
            attributes.policy = attributes.policy.or(template.policy);
            attributes.template_id = Some(id);
            layout.mounts = layout.mounts.or(template.layout.mounts);
            layout.binds = layout.binds.or(template.layout.binds);
        }
        Ok(Desired { attributes, layout })
    }

    /// A new project. Errors: those of [`Attributes::create`] and [`Layout::put`].
    pub fn create(self, state: &State, now_ms: i64) -> Result<(Arc<Project>, Vec<Change>)> {
        let (mut draft, last) = self.attributes.create(state, now_ms)?;
        self.layout.put(state, &mut draft)?;
        let (project, mut changes) = draft.finish(now_ms);
        changes.push(last);
        Ok((project, changes))
    }

    /// The project that is there, as it is wanted. Errors: those of [`Layout::put`].
    pub fn revise(
        self,
        old: &Arc<Project>,
        state: &State,
        now_ms: i64,
    ) -> Result<(Arc<Project>, Vec<Change>)> {
        let mut draft = Draft::of(old);
        self.attributes.apply(draft.profile_mut());
        self.layout.put(state, &mut draft)?;
        Ok(draft.finish(now_ms))
    }
}
