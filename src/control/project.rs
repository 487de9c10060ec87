//! A project, and a draft in which it is edited. What may be edited is decided in `ops`.

use super::places::{Placed, Places};
use super::policy::Policy;
use super::state::{Change, id_number, project_id};
use serde::{Deserialize, Serialize};
use std::ops::Deref;
use std::sync::Arc;

/// What there is of a project but what is mounted and bound in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// 0 for `system`.
    pub number: u64,
    pub name: String,
    pub vision: String,
    pub status: String,
    pub token: String,
    pub token_locked: bool,
    pub created_at_ms: i64,
    pub updated_at_ms: i64,
    #[serde(default)]
    pub policy: Policy,
    /// The template that it was made from, or brought up with last; nobody looks at that again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_id: Option<String>,
}

/// Where an export of a node appears in a project. Several with one path are a failover group, in order
/// of preference.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mount {
    pub mount_path: String,
    pub node_id: String,
    pub export_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    pub bind_path: String,
    pub target_path: String,
}

impl Placed for Mount {
    fn path(&self) -> &str {
        &self.mount_path
    }
}

impl Placed for Bind {
    fn path(&self) -> &str {
        &self.bind_path
    }
}

/// A project; a copy costs nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    pub profile: Arc<Profile>,
    pub mounts: Places<Mount>,
    pub binds: Places<Bind>,
}

impl Deref for Project {
    type Target = Profile;

    fn deref(&self) -> &Profile {
        &self.profile
    }
}

impl Profile {
    pub fn id(&self) -> String {
        project_id(self.number)
    }

    pub fn is_system(&self) -> bool {
        self.number == 0
    }

    /// `updated_at_ms` of the version after this one: the time, and never the same twice, whatever the
    /// clock does.
    fn next_update_ms(&self, now_ms: i64) -> i64 {
        now_ms.max(self.updated_at_ms.saturating_add(1))
    }
}

/// Nothing is mounted or bound in it.
impl From<Arc<Profile>> for Project {
    fn from(profile: Arc<Profile>) -> Project {
        Project { profile, mounts: Places::default(), binds: Places::default() }
    }
}

impl Mount {
    /// The number of its node; `None` for one that was never given out.
    pub fn node(&self) -> Option<u64> {
        id_number(&self.node_id, "node-")
    }
}

/// A project while it is edited, and the changes that make it so.
pub struct Draft {
    /// As it was; `None` for a new one.
    old: Option<Arc<Project>>,
    new: Project,
    changes: Vec<Change>,
}

impl Deref for Draft {
    type Target = Project;

    fn deref(&self) -> &Project {
        &self.new
    }
}

impl Draft {
    pub fn of(old: &Arc<Project>) -> Draft {
        Draft { old: Some(old.clone()), new: Project::clone(old), changes: Vec::new() }
    }

    /// Of a project that there is not yet.
    pub fn new(profile: Profile) -> Draft {
        Draft { old: None, new: Arc::new(profile).into(), changes: Vec::new() }
    }

    pub fn profile_mut(&mut self) -> &mut Profile {
        Arc::make_mut(&mut self.new.profile)
    }

    /// Puts a mount behind the others.
    pub fn add_mount(&mut self, mount: Mount) {
        self.set_mount(self.new.mounts.next(), Some(mount));
    }

    /// Removes the mounts at a path that `is_it` means; says how many.
    pub fn remove_mounts_at(&mut self, path: &str, is_it: impl Fn(&Mount) -> bool) -> usize {
        let found: Vec<_> =
            self.new.mounts.at(path).filter(|(_, m)| is_it(m)).map(|(n, _)| n).collect();
        found.iter().for_each(|number| self.set_mount(*number, None));
        found.len()
    }

    /// Removes the mounts that `is_it` means, wherever they are.
    pub fn remove_mounts(&mut self, is_it: impl Fn(&Mount) -> bool) {
        let found: Vec<_> =
            self.new.mounts.numbered().filter(|(_, m)| is_it(m)).map(|(n, _)| n).collect();
        found.iter().for_each(|number| self.set_mount(*number, None));
    }

    pub fn set_mount(&mut self, number: u64, mount: Option<Mount>) {
        let mount = mount.map(Arc::new);
        self.new.mounts.set(number, mount.clone());
        self.changes.push(Change::Mount(Placing {
            project: self.new.number,
            number,
            thing: mount,
        }));
    }

    /// Puts a bind in the place of the one at its path, or else behind the others.
    pub fn put_bind(&mut self, bind: Bind) {
        let place = self.new.binds.at(&bind.bind_path).next().map(|(number, _)| number);
        self.set_bind(place.unwrap_or_else(|| self.new.binds.next()), Some(bind));
    }

    /// False where there is none at this path.
    pub fn remove_bind(&mut self, path: &str) -> bool {
        let place = self.new.binds.at(path).next().map(|(number, _)| number);
        place.inspect(|number| self.set_bind(*number, None)).is_some()
    }

    /// Removes the binds that `is_it` means, wherever they are.
    pub fn remove_binds(&mut self, is_it: impl Fn(&Bind) -> bool) {
        let found: Vec<_> =
            self.new.binds.numbered().filter(|(_, b)| is_it(b)).map(|(n, _)| n).collect();
        found.iter().for_each(|number| self.set_bind(*number, None));
    }

    fn set_bind(&mut self, number: u64, bind: Option<Bind>) {
        let bind = bind.map(Arc::new);
        if bind.as_ref() == self.new.binds.get(number) {
            return;
        }
        self.new.binds.set(number, bind.clone());
        self.changes.push(Change::Bind(Placing { project: self.new.number, number, thing: bind }));
    }

    /// The project, and the changes that make it so: a new version, or none where it is as it was.
    pub fn finish(mut self, now_ms: i64) -> (Arc<Project>, Vec<Change>) {
        if let Some(old) = self.old.take() {
            if self.changes.is_empty() && self.new.profile == old.profile {
                return (old, Vec::new());
            }
            self.profile_mut().updated_at_ms = old.next_update_ms(now_ms);
        }
        // First, for what stands in a project needs one.
        self.changes.insert(0, Change::PutProject(self.new.profile.clone()));
        (Arc::new(self.new), self.changes)
    }
}

/// Something that is put at a place of a project, or with `None` taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placing<T> {
    pub project: u64,
    pub number: u64,
    pub thing: Option<Arc<T>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::workspace::testing;

    #[test]
    fn versions_follow_each_other_whatever_the_clock_does() {
        let (mut project, changes) = Draft::new(testing::profile(1)).finish(1000);
        assert_eq!((changes.len(), project.updated_at_ms), (1, 0));
        for (now_ms, expected) in [(1000, 1000), (1000, 1001), (-5, 1002), (9000, 9000)] {
            let mut draft = Draft::of(&project);
            draft.profile_mut().vision = format!("{expected}");
            project = draft.finish(now_ms).0;
            assert_eq!(project.updated_at_ms, expected);
        }
    }

    #[test]
    fn a_draft_tells_only_what_it_changes() {
        let bind = |target: &str| Bind { bind_path: "/b".into(), target_path: target.into() };
        let mut draft = Draft::new(testing::profile(1));
        draft.put_bind(bind("/x"));
        let (project, changes) = draft.finish(0);
        assert_eq!((changes.len(), project.binds.len()), (2, 1));
        let mut draft = Draft::of(&project);
        draft.put_bind(bind("/x"));
        assert!(!draft.remove_bind("/c"));
        let (same, changes) = draft.finish(5);
        assert!(changes.is_empty() && Arc::ptr_eq(&same, &project));
        let mut draft = Draft::of(&project);
        draft.put_bind(bind("/y"));
        let (other, changes) = draft.finish(5);
        let keys: Vec<_> = changes.iter().flat_map(Change::rows).map(|(key, _)| key).collect();
        assert_eq!(keys, ["control/project/1", "control/project/1/bind/0"]);
        let target = |project: &Project| project.binds.get(0).unwrap().target_path.clone();
        assert_eq!((target(&other), target(&project)), ("/y".into(), "/x".into()));
    }
}
