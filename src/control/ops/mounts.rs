//! What is mounted and bound in a project (spec: control 8.8 and 8.9).

use super::projects::{Target, shown};
use super::{Call, identifier};
use crate::base::{Code, Error, Result, TreePath};
use crate::control::policy::Action;
use crate::control::state::{Bind, Mount, Project, State};
use crate::wire::{Fields, Object};
use serde_json::value::RawValue;
use std::cmp::Ordering;

/// Mounts, and binds, that one project may have.
const MOUNTS_MAX: usize = 1000;

pub(super) fn set(call: &mut Call<'_>) -> Result<Object> {
    let target = Target::read(call)?;
    let mount = read_mount(&call.payload)?;
    // Looked for before the project is (spec: control 8.8).
    call.cx.plane.state().node(&mount.node_id)?;
    let project = target.revise(call, Action::Mount, |state, project| {
        let mut mounts = project.mounts.clone();
        if !mounts.contains(&mount) {
            mounts.push(mount);
        }
        put_mounts(state, project, mounts)
    })?;
    Ok(shown(&project))
}

pub(super) fn remove(call: &mut Call<'_>) -> Result<Object> {
    let target = Target::read(call)?;
    let f = &call.payload;
    let mount_path = tree_path("mount_path", &f.required("mount_path")?)?;
    let member = match f.get("node_id").or(f.get("export_name")) {
        Some(_) => Some((f.required("node_id")?, f.required("export_name")?)),
        None => None,
    };
    let project = target.revise(call, Action::Mount, |_, project| {
        let is_it = |m: &Mount| {
            m.mount_path == mount_path
                && member.as_ref().is_none_or(|(n, e)| m.node_id == *n && m.export_name == *e)
        };
        let before = project.mounts.len();
        project.mounts.retain(|m| !is_it(m));
        if project.mounts.len() == before {
            let message = format!("{} has no such mount at {mount_path}", project.id());
            return Err(Error::new(Code::MountNotFound, message));
        }
        Ok(())
    })?;
    Ok(shown(&project))
}

pub(super) fn list(call: &mut Call<'_>) -> Result<Object> {
    let state = call.cx.plane.state();
    let target = Target::read(call)?;
    let project = target.find(call, &state, Action::Read)?;
    Ok(Object::new().put("project_id", project.id()).put("mounts", &project.mounts))
}

pub(super) fn bind_set(call: &mut Call<'_>) -> Result<Object> {
    let target = Target::read(call)?;
    let path = |name: &str| tree_path(name, &call.payload.required(name)?);
    let bind = Bind { bind_path: path("bind_path")?, target_path: path("target_path")? };
    let project = target.revise(call, Action::Bind, |_, project| put_bind(project, bind))?;
    Ok(shown(&project))
}

pub(super) fn bind_remove(call: &mut Call<'_>) -> Result<Object> {
    let target = Target::read(call)?;
    let bind_path = tree_path("bind_path", &call.payload.required("bind_path")?)?;
    let project = target.revise(call, Action::Bind, |_, project| {
        let before = project.binds.len();
        project.binds.retain(|b| b.bind_path != bind_path);
        if project.binds.len() == before {
            let message = format!("{} has no bind at {bind_path}", project.id());
            return Err(Error::new(Code::BindNotFound, message));
        }
        Ok(())
    })?;
    Ok(shown(&project))
}

pub(super) fn bind_list(call: &mut Call<'_>) -> Result<Object> {
    let state = call.cx.plane.state();
    let target = Target::read(call)?;
    let project = target.find(call, &state, Action::Read)?;
    Ok(Object::new().put("project_id", project.id()).put("binds", &project.binds))
}

/// Reads `desired_mounts`, without what stands there twice.
pub(super) fn read_mounts(list: &[&RawValue]) -> Result<Vec<Mount>> {
    at_most(list.len(), "mounts")?;
    let mut mounts: Vec<Mount> = Vec::with_capacity(list.len());
    for entry in list {
        let f = Fields::of("desired_mounts[]", entry)?;
        let mount = read_mount(&f).map_err(|e| e.context("desired_mounts[]"))?;
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

/// Gives a project these mounts, if they go together. That a node has an export of that name is not
/// asked: it may come later, and is shown as drift until then. Errors: `limit_exceeded`,
/// `node_not_found`, `mount_conflict`.
pub(super) fn put_mounts(state: &State, project: &mut Project, mounts: Vec<Mount>) -> Result<()> {
    at_most(mounts.len(), "mounts")?;
    for mount in mounts.iter().filter(|m| !project.mounts.contains(m)) {
        state.node(&mount.node_id)?;
    }
    project.mounts = mounts;
    match overlap(project) {
        Some((a, b)) => Err(Error::new(Code::MountConflict, format!("{a} and {b} overlap"))),
        None => Ok(()),
    }
}

/// Sets one bind. Errors: `limit_exceeded`, `bind_conflict`.
pub(in crate::control) fn put_bind(project: &mut Project, bind: Bind) -> Result<()> {
    let conflict = |message: String| Err(Error::new(Code::BindConflict, message));
    let Bind { bind_path, target_path } = &bind;
    if !project.mounts.iter().any(|m| lies_in(target_path, &m.mount_path)) {
        return conflict(format!("target_path {target_path} lies in no mount of the project"));
    }
    match project.binds.iter_mut().find(|b| b.bind_path == *bind_path) {
        Some(old) => *old = bind,
        None => project.binds.push(bind),
    }
    at_most(project.binds.len(), "binds")?;
    match overlap(project) {
        Some((a, b)) => conflict(format!("{a} and {b} overlap")),
        None => Ok(()),
    }
}

fn at_most(count: usize, what: &str) -> Result<()> {
    if count > MOUNTS_MAX {
        let message = format!("a project has at most {MOUNTS_MAX} {what}");
        return Err(Error::new(Code::LimitExceeded, message));
    }
    Ok(())
}

/// A path of the namespace in normal form. Errors: `invalid_payload`; `..` is refused, for it would get
/// around the overlap rules (spec: control 14.1 row 10).
pub(in crate::control) fn tree_path(name: &str, path: &str) -> Result<String> {
    let path = path.trim();
    if path.is_empty() {
        return Err(Error::new(Code::InvalidPayload, format!("{name} must not be blank")));
    }
    let parsed = TreePath::parse(path).map_err(|e| e.recode(Code::InvalidPayload).context(name))?;
    Ok(parsed.display().into_owned())
}

/// Whether one path is, or lies below, another.
fn lies_in(inner: &str, outer: &str) -> bool {
    let rest = inner.strip_prefix(outer.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Two places of a project that get in each other's way: mounts one inside the other, or a bind that is
/// at, above or below one of either. Mounts at the same path stand in for each other.
pub(in crate::control) fn overlap(project: &Project) -> Option<(&str, &str)> {
    let mut paths: Vec<&str> = project.mounts.iter().map(|m| &*m.mount_path).collect();
    paths.sort_unstable();
    paths.dedup();
    paths.extend(project.binds.iter().map(|b| &*b.bind_path));
    // In this order what lies in a place follows it at once.
    paths.sort_unstable_by(|a, b| by_components(a, b));
    let next = paths.windows(2).find(|pair| lies_in(pair[1], pair[0]))?;
    Some((next[0], next[1]))
}

fn by_components(a: &str, b: &str) -> Ordering {
    fn components(path: &str) -> impl Iterator<Item = &str> {
        path.split('/').filter(|c| !c.is_empty())
    }
    components(a).cmp(components(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(mounts: &[&str], binds: &[&str]) -> Project {
        let mut project = crate::control::system_project(0);
        project.mounts.extend(mounts.iter().map(|path| Mount {
            mount_path: (*path).into(),
            node_id: "node-1".into(),
            export_name: "work".into(),
        }));
        project.binds.extend(
            binds.iter().map(|p| Bind { bind_path: (*p).into(), target_path: "/x".into() }),
        );
        project
    }

    #[test]
    fn places_overlap_by_components_and_not_by_letters() {
        for (mounts, binds, clash) in [
            (&["/a", "/a"][..], &[][..], false),
            (&["/a", "/a-b", "/a.b", "/ab"], &["/a b"], false),
            (&["/a/b", "/a-b", "/a"], &[], true),
            (&["/a/b/c", "/z", "/a/b-c", "/a/b"], &[], true),
            (&["/"], &[], false),
            (&["/", "/a"], &[], true),
            (&["/a"], &["/a"], true),
            (&["/a"], &["/a/b"], true),
            (&["/a/b"], &["/a"], true),
            (&["/a"], &["/b", "/b/c"], true),
            (&["/a"], &["/b", "/c"], false),
        ] {
            assert_eq!(overlap(&project(mounts, binds)).is_some(), clash, "{mounts:?} {binds:?}");
        }
    }
}
