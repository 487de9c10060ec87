//! The state of the original (spec: control 12.1), taken over once, at the first start on its database.
//! What it says of things that are not there is left out, and named in the log; a snapshot that cannot be
//! read is an error, for starting without it would lose it.

use super::ops::{put_bind, put_mount, tree_path};
use super::policy::Policy;
use super::state::{
    Bind, Change, Counter, Draft, Invite, Mount, Node, PREFIX, PendingJoin, Profile, SYSTEM,
    Service, id_number,
};
use crate::base::{Code, Error, Result, ResultExt, id, now_ms};
use crate::store::{Db, Key, Kv, Txn, original};
use crate::wire::Fields;
use crate::wire::control::Platform;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The row that says that it was done.
const MARK: &str = "import/original";
/// Exports that only the node within the original gateway had. Ours has none: what it showed is part of
/// the namespace.
const BUILT_IN_EXPORTS: [&str; 4] = ["system-meta", "system-chat", "system-jobs", "system-agents"];

/// Takes the original's state over, where there is one that was not taken over yet. Its rows stay as they
/// are. Errors: `storage_error` for a snapshot that cannot be read, `invalid_config` for one that is
/// encrypted with another key.
pub fn original(db: &Db, kv: &dyn Kv, key: Option<&Key>) -> Result<()> {
    if kv.get(MARK)?.is_some() {
        return Ok(());
    }
    let Some(text) = original::snapshot(db, key)? else { return Ok(()) };
    let mut txn = Txn { compare: vec![(MARK.into(), 0)], ..Txn::default() };
    if kv.range(PREFIX)?.is_empty() {
        let import = Import::read(&text).map_err(|e| {
            Error::new(
                Code::StorageError,
                format!(
                    "the original's state cannot be taken over: {e}; nothing was changed: restore a \
                     backup of it, or move the database away to start without"
                ),
            )
        })?;
        for note in &import.notes {
            log::warn!("taking over the original's state: {note}");
        }
        log::info!("took over the original's state: {}", import.summary());
        let rows = import.changes.iter().flat_map(Change::rows);
        txn.puts.extend(rows.filter_map(|(key, value)| Some((key, value?))));
    } else {
        log::warn!("the original's state is not taken over: there is one of this version already");
    }
    txn.puts.push((MARK.into(), format!("{{\"at_ms\":{}}}", now_ms()).into_bytes()));
    kv.commit(txn)?;
    Ok(())
}

#[derive(Deserialize)]
struct Snapshot {
    schema: u32,
    next: Next,
    #[serde(default)]
    invites: Vec<OldInvite>,
    #[serde(default)]
    nodes: Vec<OldNode>,
    #[serde(default)]
    pending_joins: Vec<OldPending>,
    #[serde(default)]
    projects: Vec<OldProject>,
    #[serde(default)]
    active_project_by_agent: Vec<Active>,
}

/// The numbers to be given out next.
#[derive(Deserialize)]
struct Next {
    invite_id: u64,
    node_id: u64,
    pending_join_id: u64,
    project_id: u64,
}

#[derive(Deserialize)]
struct OldInvite {
    id: String,
    token: String,
    created_at_ms: i64,
    expires_at_ms: i64,
    redeemed: bool,
}

#[derive(Deserialize)]
struct OldNode {
    id: String,
    name: String,
    #[serde(default)]
    fs_url: String,
    secret: String,
    lease_token: String,
    #[serde(default)]
    platform: Platform,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    services: Vec<Value>,
    joined_at_ms: i64,
    last_seen_ms: i64,
    lease_expires_at_ms: i64,
}

#[derive(Deserialize)]
struct OldPending {
    id: String,
    node_name: String,
    #[serde(default)]
    fs_url: String,
    #[serde(default)]
    platform: Platform,
    requested_at_ms: i64,
}

#[derive(Deserialize)]
struct OldProject {
    id: String,
    name: String,
    vision: String,
    status: String,
    #[serde(default)]
    token_locked: bool,
    mutation_token: Option<String>,
    created_at_ms: i64,
    updated_at_ms: i64,
    access_policy: Option<Box<RawValue>>,
    #[serde(default)]
    mounts: Vec<Mount>,
    #[serde(default)]
    binds: Vec<Bind>,
}

#[derive(Deserialize)]
struct Active {
    agent_id: String,
    project_id: Option<String>,
}

#[derive(Default)]
struct Import {
    changes: Vec<Change>,
    /// What was left out.
    notes: Vec<String>,
    nodes: BTreeSet<String>,
    projects: BTreeMap<String, u64>,
}

impl Import {
    fn read(text: &str) -> Result<Import> {
        let snapshot: Snapshot =
            serde_json::from_str(text).map_err(|e| Error::invalid(e.to_string()))?;
        if snapshot.schema != 1 {
            let message = format!("it is of schema {}, this version knows 1", snapshot.schema);
            return Err(Error::invalid(message));
        }
        let mut import = Import::default();
        let built_in = built_in_nodes(&snapshot.projects);
        let Snapshot { next, invites, nodes, pending_joins, projects, .. } = snapshot;
        let last = [
            import.all(invites, next.invite_id, Import::invite)?,
            import.all(pending_joins, next.pending_join_id, Import::pending)?,
            import.all(nodes, next.node_id, |import, node| import.node(node, &built_in))?,
            import.all(projects, next.project_id, Import::project)?,
        ];
        let counters = [Counter::Invite, Counter::PendingJoin, Counter::Node, Counter::Project];
        import.changes.extend(counters.into_iter().zip(last).map(|(c, n)| Change::Last(c, n)));
        snapshot.active_project_by_agent.into_iter().for_each(|active| import.active(active));
        Ok(import)
    }

    /// Takes over all things of a kind, and returns the last number that was given out. Errors: an id that
    /// never was one, or that stands twice.
    fn all<T>(
        &mut self,
        things: Vec<T>,
        next: u64,
        one: impl Fn(&mut Import, T) -> Result<u64>,
    ) -> Result<u64> {
        let mut seen = BTreeSet::new();
        for thing in things {
            let number = one(self, thing)?;
            if !seen.insert(number) {
                return Err(Error::invalid(format!("two things of a kind have number {number}")));
            }
        }
        Ok(next.saturating_sub(1).max(seen.last().copied().unwrap_or(0)))
    }

    fn invite(&mut self, old: OldInvite) -> Result<u64> {
        let number = number(&old.id, "invite-")?;
        self.changes.push(Change::PutInvite(Arc::new(Invite {
            number,
            token: old.token,
            created_at_ms: old.created_at_ms,
            expires_at_ms: old.expires_at_ms,
            redeemed: old.redeemed,
        })));
        Ok(number)
    }

    fn pending(&mut self, old: OldPending) -> Result<u64> {
        let number = number(&old.id, "pending-join-")?;
        self.changes.push(Change::PutPending(Arc::new(PendingJoin {
            number,
            node_name: old.node_name,
            fs_url: old.fs_url,
            platform: old.platform,
            requested_at_ms: old.requested_at_ms,
            origin: None,
            // Who asked was given none: the answer goes to who approves.
            claim: id::hex_token("claim-"),
            approved: None,
        })));
        Ok(number)
    }

    fn node(&mut self, old: OldNode, built_in: &BTreeSet<String>) -> Result<u64> {
        let number = number(&old.id, "node-")?;
        if built_in.contains(&old.id) {
            self.notes.push(format!("{} ({}) was part of the original gateway", old.id, old.name));
            return Ok(number);
        }
        let (mut services, mut unreadable) = (Vec::new(), 0);
        for document in old.services {
            match service(document) {
                Some(service) => services.push(service),
                None => unreadable += 1,
            }
        }
        if unreadable > 0 {
            self.notes.push(format!("{}: {unreadable} services without an id", old.id));
        }
        self.nodes.insert(old.id);
        self.changes.push(Change::PutNode(Arc::new(Node {
            number,
            name: old.name,
            fs_url: old.fs_url,
            secret: old.secret,
            former: None,
            lease_token: old.lease_token,
            platform: old.platform,
            labels: old.labels,
            services,
            joined_at_ms: old.joined_at_ms,
            last_seen_ms: old.last_seen_ms,
            lease_expires_at_ms: old.lease_expires_at_ms,
            revived_at_ms: 0,
        })));
        Ok(number)
    }

    fn project(&mut self, old: OldProject) -> Result<u64> {
        let number = if old.id == SYSTEM { 0 } else { number(&old.id, "proj-")? };
        let policy = match &old.access_policy {
            Some(value) => Policy::read(&Fields::of("access_policy", value)?).context(&old.id)?,
            None => Policy::default(),
        };
        let token = old.mutation_token.filter(|token| !token.is_empty());
        let mut project = Draft::new(Profile {
            number,
            name: old.name,
            vision: old.vision,
            status: old.status,
            token: token.unwrap_or_else(|| id::hex_token("proj-")),
            token_locked: old.token_locked || number == 0,
            created_at_ms: old.created_at_ms,
            updated_at_ms: old.updated_at_ms,
            policy,
            template_id: None,
        });
        for mount in old.mounts {
            let shown = format!("{}: mount {} of {}", old.id, mount.mount_path, mount.node_id);
            if let Err(e) = self.mount(&mut project, mount) {
                self.notes.push(format!("{shown}: {e}"));
            }
        }
        for bind in old.binds {
            let shown = format!("{}: bind {}", old.id, bind.bind_path);
            if let Err(e) = self::bind(&mut project, bind) {
                self.notes.push(format!("{shown}: {e}"));
            }
        }
        self.projects.insert(old.id, number);
        let (_, changes) = project.finish(0);
        self.changes.extend(changes);
        Ok(number)
    }

    fn mount(&self, project: &mut Draft, mount: Mount) -> Result<()> {
        if !self.nodes.contains(&mount.node_id) {
            return Err(Error::invalid("there is no such node"));
        }
        let mount_path = tree_path("mount_path", &mount.mount_path)?;
        put_mount(project, Mount { mount_path, ..mount })
    }

    fn active(&mut self, active: Active) {
        let project_id = active.project_id.filter(|id| !id.is_empty());
        let Some(project_id) = project_id else { return };
        match self.projects.get(&project_id) {
            Some(&project) => {
                self.changes.push(Change::Activate { agent_id: active.agent_id, project });
            }
            None => {
                let agent_id = active.agent_id;
                self.notes.push(format!("{agent_id} worked in {project_id}, which is not there"));
            }
        }
    }

    fn summary(&self) -> String {
        let count = |of: fn(&Change) -> bool| self.changes.iter().filter(|c| of(c)).count();
        format!(
            "{} nodes, {} projects, {} invites; {} things left out",
            self.nodes.len(),
            self.projects.len(),
            count(|c| matches!(c, Change::PutInvite(_))),
            self.notes.len()
        )
    }
}

/// Those that ran within the gateway itself; their mounts are dropped with them.
fn built_in_nodes(projects: &[OldProject]) -> BTreeSet<String> {
    let mounts = projects.iter().flat_map(|p| &p.mounts);
    let theirs = mounts.filter(|m| BUILT_IN_EXPORTS.contains(&&*m.export_name));
    theirs.map(|m| m.node_id.clone()).collect()
}

fn bind(project: &mut Draft, bind: Bind) -> Result<()> {
    let bind_path = tree_path("bind_path", &bind.bind_path)?;
    let target_path = tree_path("target_path", &bind.target_path)?;
    put_bind(project, Bind { bind_path, target_path })
}

fn service(document: Value) -> Option<Service> {
    let text = |member: &str| document.get(member).and_then(Value::as_str);
    let service_id = text("service_id").filter(|id| id::is_identifier(id, 128))?.to_owned();
    let version = text("version").unwrap_or("1").to_owned();
    Some(Service { service_id, version, document })
}

fn number(id: &str, prefix: &str) -> Result<u64> {
    id_number(id, prefix).ok_or_else(|| Error::invalid(format!("{id:?} is no id of {prefix}N")))
}

#[cfg(test)]
mod tests;
