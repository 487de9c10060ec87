//! What is mounted and bound in a project (spec: control 8.8 and 8.9).

use super::projects::{Target, shown};
use super::{Call, identifier};
use crate::base::{Code, Error, Result, TreePath};
use crate::control::places::{Placed, Places};
use crate::control::policy::Action;
use crate::control::state::{Bind, Draft, Mount, State};
use crate::wire::{Fields, Object};
use serde_json::value::RawValue;
use std::sync::Arc;

/// Mounts, and binds, that one project may have.
const MOUNTS_MAX: usize = 1000;

pub(super) fn set(call: &mut Call<'_>) -> Result<Object> {
    let target = Target::read(call)?;
    let mount = read_mount(&call.payload)?;
    // Looked for before the project is (spec: control 8.8).
    call.cx.plane.state().node(&mount.node_id)?;
    let project = target.revise(call, Action::Mount, |state, project| {
        if project.mounts.at(&mount.mount_path).any(|(_, m)| *m == mount) {
            return Ok(());
        }
        at_most(project.mounts.len() + 1, "mounts")?;
        state.node(&mount.node_id)?;
        put_mount(project, mount)
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
        let is_it =
            |m: &Mount| member.as_ref().is_none_or(|(n, e)| m.node_id == *n && m.export_name == *e);
        if project.remove_mounts_at(&mount_path, is_it) == 0 {
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
    Ok(Object::new()
        .put("project_id", project.id())
        .with("mounts", |to| project.mounts.write_json(to)))
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
        if !project.remove_bind(&bind_path) {
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
    Ok(Object::new()
        .put("project_id", project.id())
        .with("binds", |to| project.binds.write_json(to)))
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
pub(super) fn put_mounts(state: &State, project: &mut Draft, mounts: Vec<Mount>) -> Result<()> {
    at_most(mounts.len(), "mounts")?;
    for mount in &mounts {
        let is_there = project.mounts.at(&mount.mount_path).any(|(_, m)| m == mount);
        if !is_there {
            state.node(&mount.node_id)?;
        }
    }
    // What is already there in this order stays; the rest goes, and what is new comes behind it.
    let mut wanted = mounts.into_iter().peekable();
    let old: Vec<(u64, Arc<Mount>)> =
        project.mounts.numbered().map(|(n, m)| (n, m.clone())).collect();
    for (number, mount) in old {
        if wanted.next_if(|next| *next == *mount).is_none() {
            project.set_mount(number, None);
        }
    }
    wanted.try_for_each(|mount| put_mount(project, mount))
}

/// Adds a mount. Errors: `mount_conflict`.
pub(in crate::control) fn put_mount(project: &mut Draft, mount: Mount) -> Result<()> {
    let path = &mount.mount_path;
    let bind = project.binds.at(path).next().map(|(_, b)| b);
    let clash = nested(&project.mounts, path)
        .or_else(|| nested(&project.binds, path))
        .or_else(|| bind.map(|b| (b.bind_path.clone(), path.clone())));
    if let Some((a, b)) = clash {
        return Err(Error::new(Code::MountConflict, format!("{a} and {b} overlap")));
    }
    project.add_mount(mount);
    Ok(())
}

/// Sets one bind. Errors: `limit_exceeded`, `bind_conflict`.
pub(in crate::control) fn put_bind(project: &mut Draft, bind: Bind) -> Result<()> {
    let conflict = |message: String| Err(Error::new(Code::BindConflict, message));
    let Bind { bind_path: path, target_path } = &bind;
    let mounts = &project.mounts;
    if mounts.at(target_path).next().is_none() && mounts.above(target_path).is_none() {
        return conflict(format!("target_path {target_path} lies in no mount of the project"));
    }
    let is_new = project.binds.at(path).next().is_none();
    at_most(project.binds.len() + usize::from(is_new), "binds")?;
    let mount = mounts.at(path).next().map(|(_, m)| m);
    let clash = nested(mounts, path)
        .or_else(|| nested(&project.binds, path))
        .or_else(|| mount.map(|m| (m.mount_path.clone(), path.clone())));
    if let Some((a, b)) = clash {
        return conflict(format!("{a} and {b} overlap"));
    }
    project.put_bind(bind);
    Ok(())
}

/// Two places, one inside the other: this path, and something that stands above or below it.
fn nested<T: Placed>(places: &Places<T>, path: &str) -> Option<(String, String)> {
    let above = places.above(path).map(|outer| (outer.path().to_owned(), path.to_owned()));
    above.or_else(|| places.below(path).map(|inner| (path.to_owned(), inner.path().to_owned())))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether these go together, in whatever order they come.
    fn clash(mounts: &[&str], binds: &[&str]) -> bool {
        let mount = |path: &&str| Mount {
            mount_path: (*path).into(),
            node_id: "node-1".into(),
            export_name: "work".into(),
        };
        let bind = |path: &&str| Bind { bind_path: (*path).into(), target_path: "/target".into() };
        let attempt = |mounts: &[&str], binds_first: bool| {
            let mut draft = Draft::new(crate::control::system_project(0));
            if binds_first {
                draft.add_mount(mount(&"/target"));
                binds.iter().try_for_each(|b| put_bind(&mut draft, bind(b)))?;
                draft.remove_mounts(|_| true);
                return mounts.iter().try_for_each(|m| put_mount(&mut draft, mount(m)));
            }
            mounts.iter().try_for_each(|m| put_mount(&mut draft, mount(m)))?;
            draft.add_mount(mount(&"/target"));
            binds.iter().rev().try_for_each(|b| put_bind(&mut draft, bind(b)))
        };
        let reversed: Vec<&str> = mounts.iter().rev().copied().collect();
        let clashes = [(mounts, false), (&reversed, false), (mounts, true)]
            .map(|(mounts, binds_first)| attempt(mounts, binds_first).is_err());
        assert_eq!(clashes, [clashes[0]; 3], "{mounts:?} {binds:?}");
        clashes[0]
    }

    #[test]
    fn places_overlap_by_components_and_not_by_letters() {
        for (mounts, binds, expected) in [
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
            assert_eq!(clash(mounts, binds), expected, "{mounts:?} {binds:?}");
        }
    }
}
