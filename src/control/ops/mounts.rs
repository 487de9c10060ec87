//! What is mounted and bound in a project (spec: control 8.8 and 8.9).

use super::joining::node_name;
use super::projects::Target;
use super::{Call, identifier};
use crate::base::{Code, Error, Result, ResultExt, TreePath};
use crate::control::places::{Placed, Places};
use crate::control::policy::Action;
use crate::control::state::{Bind, Draft, Mount, State};
use crate::wire::{Fields, Object};
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Mounts, and binds, that one project may have.
const MOUNTS_MAX: usize = 1000;

/// A mount as somebody asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub(super) struct WantedMount {
    mount_path: String,
    #[serde(flatten)]
    node: NodeRef,
    export_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
enum NodeRef {
    NodeId(String),
    NodeName(String),
}

impl WantedMount {
    /// Of several nodes with one name the oldest is meant, as in `node_ensure`. Errors: `node_not_found`, for
    /// a name; whether there is a node of an id is not asked.
    fn resolve(self, state: &State) -> Result<Mount> {
        let WantedMount { mount_path, node, export_name } = self;
        let node_id = match node {
            NodeRef::NodeId(id) => id,
            NodeRef::NodeName(name) => {
                let found = state.nodes_named(&name).next().map(|node| node.id());
                let message = || format!("there is no node called {name:?}");
                found.ok_or_else(|| Error::new(Code::NodeNotFound, message()))?
            }
        };
        Ok(Mount { mount_path, node_id, export_name })
    }
}

/// All that is to be mounted and bound in a project; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub mounts: Option<Vec<WantedMount>>,
    pub binds: Option<Vec<Bind>>,
}

impl Layout {
    /// Reads the two lists under the names that they have here. Errors: `invalid_payload`, `missing_field`,
    /// `limit_exceeded`, `bind_conflict`.
    pub fn read(f: &Fields<'_>, mounts: &str, binds: &str) -> Result<Layout> {
        Ok(Layout {
            mounts: f.array(mounts)?.map(|list| read_mounts(mounts, &list)).transpose()?,
            binds: f.array(binds)?.map(|list| read_binds(binds, &list)).transpose()?,
        })
    }

    /// Gives a project these mounts and binds, if they go together. Errors: `limit_exceeded`,
    /// `node_not_found`, `mount_conflict`, `bind_conflict`.
    pub fn put(self, state: &State, project: &mut Draft) -> Result<()> {
        // What goes makes room for what comes.
        if let Some(wanted) = &self.binds {
            let wanted: HashSet<&str> = wanted.iter().map(|b| &*b.bind_path).collect();
            project.remove_binds(|bind| !wanted.contains(&*bind.bind_path));
        }
        if let Some(mounts) = self.mounts {
            put_mounts(state, project, mounts)?;
        }
        self.binds.into_iter().flatten().try_for_each(|bind| put_bind(project, bind))
    }
}

pub(super) fn set(call: &mut Call<'_>) -> Result<Object> {
    let target = Target::read(call)?;
    // Looked for before the project is (spec: control 8.8).
    let state = call.cx.plane.state();
    let mount = read_mount(&call.payload)?.resolve(&state)?;
    state.node(&mount.node_id)?;
    target.revise(call, Action::Mount, |state, project| {
        if project.mounts.at(&mount.mount_path).any(|(_, m)| *m == mount) {
            return Ok(());
        }
        at_most(project.mounts.len() + 1, "mounts")?;
        state.node(&mount.node_id)?;
        put_mount(project, mount)
    })
}

pub(super) fn remove(call: &mut Call<'_>) -> Result<Object> {
    let target = Target::read(call)?;
    let f = &call.payload;
    let mount_path = tree_path("mount_path", &f.required("mount_path")?)?;
    let member = match f.get("node_id").or(f.get("export_name")) {
        Some(_) => Some((f.required("node_id")?, f.required("export_name")?)),
        None => None,
    };
    target.revise(call, Action::Mount, |_, project| {
        let is_it =
            |m: &Mount| member.as_ref().is_none_or(|(n, e)| m.node_id == *n && m.export_name == *e);
        if project.remove_mounts_at(&mount_path, is_it) == 0 {
            let message = format!("{} has no such mount at {mount_path}", project.id());
            return Err(Error::new(Code::MountNotFound, message));
        }
        Ok(())
    })
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
    let bind = read_bind(&call.payload)?;
    target.revise(call, Action::Bind, |_, project| put_bind(project, bind))
}

pub(super) fn bind_remove(call: &mut Call<'_>) -> Result<Object> {
    let target = Target::read(call)?;
    let bind_path = tree_path("bind_path", &call.payload.required("bind_path")?)?;
    target.revise(call, Action::Bind, |_, project| {
        if !project.remove_bind(&bind_path) {
            let message = format!("{} has no bind at {bind_path}", project.id());
            return Err(Error::new(Code::BindNotFound, message));
        }
        Ok(())
    })
}

pub(super) fn bind_list(call: &mut Call<'_>) -> Result<Object> {
    let state = call.cx.plane.state();
    let target = Target::read(call)?;
    let project = target.find(call, &state, Action::Read)?;
    Ok(Object::new()
        .put("project_id", project.id())
        .with("binds", |to| project.binds.write_json(to)))
}

/// Reads a list of mounts.
fn read_mounts(name: &str, list: &[&RawValue]) -> Result<Vec<WantedMount>> {
    at_most(list.len(), "mounts")?;
    read_each(name, list, read_mount)
}

/// Reads a list of binds. Errors: also `bind_conflict`, for two targets of one path.
fn read_binds(name: &str, list: &[&RawValue]) -> Result<Vec<Bind>> {
    at_most(list.len(), "binds")?;
    let mut targets = HashMap::new();
    let binds = read_each(name, list, read_bind)?;
    for Bind { bind_path, target_path } in &binds {
        let first = targets.insert(bind_path, target_path).filter(|first| *first != target_path);
        if let Some(first) = first {
            let message = format!("{name}: {bind_path} is bound to {first} and to {target_path}");
            return Err(Error::new(Code::BindConflict, message));
        }
    }
    Ok(binds)
}

fn read_each<T>(
    name: &str,
    list: &[&RawValue],
    read: impl Fn(&Fields<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let one = |(n, entry): (usize, &&RawValue)| {
        let name = format!("{name}[{n}]");
        read(&Fields::of(&name, entry)?).context(name)
    };
    list.iter().enumerate().map(one).collect()
}

fn read_mount(f: &Fields<'_>) -> Result<WantedMount> {
    let named = if f.get("node_id").is_none() { node_name(f)? } else { None };
    let node = match named {
        Some(name) => NodeRef::NodeName(name),
        None => NodeRef::NodeId(identifier("node_id", f.required("node_id")?, 128)?),
    };
    Ok(WantedMount {
        mount_path: tree_path("mount_path", &f.required("mount_path")?)?,
        node,
        export_name: identifier("export_name", f.required("export_name")?, 128)?,
    })
}

fn read_bind(f: &Fields<'_>) -> Result<Bind> {
    let path = |name: &str| tree_path(name, &f.required(name)?);
    Ok(Bind { bind_path: path("bind_path")?, target_path: path("target_path")? })
}

/// Gives a project these mounts, if they go together; what is asked for twice is there once. That a node
/// has an export of that name is not asked: it may come later, and is shown as drift until then. Errors:
/// `node_not_found`, `mount_conflict`.
fn put_mounts(state: &State, project: &mut Draft, wanted: Vec<WantedMount>) -> Result<()> {
    let mut mounts = Vec::with_capacity(wanted.len());
    let mut seen = HashSet::new();
    for mount in wanted {
        let mount = mount.resolve(state)?;
        if !seen.insert(mount.clone()) {
            continue;
        }
        let is_there = project.mounts.at(&mount.mount_path).any(|(_, m)| *m == mount);
        if !is_there {
            state.node(&mount.node_id)?;
        }
        mounts.push(mount);
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
