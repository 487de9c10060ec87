//! What a joined node does, and what admins see of it (spec: control 8.5 and 8.6).

use super::{Call, SECRET_MAX, identifier, joining, text};
use crate::base::{Code, Error, Result, id};
use crate::control::events::ServiceEvent;
use crate::control::state::{Change, Draft, Former, Node, Proof, Service, State};
use crate::wire::{Fields, Object};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Services that one node may publish, and labels.
const SERVICES_MAX: usize = 1000;
const LABELS_MAX: usize = 100;
/// How long a secret counts that was replaced.
const GRACE_MS: i64 = 300_000;
const GRACE_MAX_MS: i64 = 3_600_000;

pub(super) fn lease_refresh(call: &mut Call<'_>) -> Result<Object> {
    let (node_id, secret) = credentials(call)?;
    let fs_url = joining::fs_url(&call.payload)?;
    let ttl_ms = joining::lease_ttl(call)?;
    let node = call.mutate(|state, now_ms| {
        let (node, proof) = authenticated(state, &node_id, &secret, now_ms)?;
        let former = node.former.clone().filter(|_| proof == Proof::Former);
        let node = node.refreshed(fs_url, ttl_ms, now_ms);
        let node = Arc::new(Node { former, ..node });
        Ok((node.clone(), vec![Change::PutNode(node)]))
    })?;
    Ok(joining::joined(&node))
}

pub(super) fn list(call: &mut Call<'_>) -> Result<Object> {
    let state = call.cx.plane.state();
    let nodes: Vec<_> = state.nodes.values().map(|n| shown(n).finish()).collect();
    Ok(Object::new().raw("nodes", &format!("[{}]", nodes.join(","))))
}

pub(super) fn get(call: &mut Call<'_>) -> Result<Object> {
    let node_id = call.payload.required("node_id")?;
    let state = call.cx.plane.state();
    Ok(Object::new().object("node", shown(state.node(&node_id)?)))
}

/// A node leaves with its secret; an admin removes one without (spec: control 18). Its mounts go too.
pub(super) fn delete(call: &mut Call<'_>) -> Result<Object> {
    let node_id = call.payload.required("node_id")?;
    let secret = call.payload.string("node_secret")?;
    let admin = call.session.is_admin();
    call.mutate(|state, now_ms| {
        let node = match &secret {
            Some(secret) => authenticated(state, &node_id, secret, now_ms)?.0,
            None if admin => state.node(&node_id)?,
            None => return Err(Error::missing("node_secret")),
        };
        let mut changes = vec![Change::DeleteNode(node.number)];
        for project in state.projects_with(node.number) {
            let mut draft = Draft::of(project);
            draft.remove_mounts(|m| m.node_id == node_id);
            changes.extend(draft.finish(now_ms).1);
        }
        Ok(((), changes))
    })?;
    Ok(Object::new().put("deleted", true).put("node_id", node_id))
}

fn shown(node: &Node) -> Object {
    Object::new()
        .put("node_id", node.id())
        .put("node_name", &node.name)
        .put("fs_url", &node.fs_url)
        .put("platform", &node.platform)
        .put("labels", &node.labels)
        .put("service_count", node.services.len())
        .put("joined_at_ms", node.joined_at_ms)
        .put("last_seen_ms", node.last_seen_ms)
        .put("lease_expires_at_ms", node.lease_expires_at_ms)
}

fn credentials(call: &Call<'_>) -> Result<(String, String)> {
    let node_id = identifier("node_id", call.payload.required("node_id")?, 128)?;
    let secret = call.payload.required("node_secret")?;
    if secret.len() > SECRET_MAX {
        return Err(Error::new(Code::InvalidPayload, "node_secret must have 1 to 256 bytes"));
    }
    Ok((node_id, secret))
}

fn authenticated<'s>(
    state: &'s State,
    node_id: &str,
    secret: &str,
    now_ms: i64,
) -> Result<(&'s Arc<Node>, Proof)> {
    let node = state.node(node_id)?;
    let proof = node.proof(secret, now_ms).ok_or_else(|| {
        Error::new(Code::NodeAuthFailed, format!("node_secret is not that of {node_id}"))
    })?;
    Ok((node, proof))
}

/// Gives a node another secret. The one before counts for a while, so that a node that has not heard of
/// the new one is not shut out: asking again with it, or refreshing the lease, answers the new one. Once
/// the new one was used, the one before is of no use.
pub(super) fn secret_rotate(call: &mut Call<'_>) -> Result<Object> {
    let node_id = identifier("node_id", call.payload.required("node_id")?, 128)?;
    let secret = call.payload.string("node_secret")?;
    let grace_ms = match call.payload.i64("grace_ms")? {
        None => GRACE_MS,
        Some(ms) if (0..=GRACE_MAX_MS).contains(&ms) => ms,
        Some(_) => {
            let message = format!("grace_ms must be 0 to {GRACE_MAX_MS} (an hour)");
            return Err(Error::new(Code::InvalidPayload, message));
        }
    };
    let admin = call.session.is_admin();
    let (node, rotated) = call.mutate(|state, now_ms| {
        let (node, proof) = match &secret {
            Some(secret) => authenticated(state, &node_id, secret, now_ms)?,
            None if admin => (state.node(&node_id)?, Proof::Current),
            None => return Err(Error::missing("node_secret")),
        };
        if proof == Proof::Former {
            return Ok(((node.clone(), false), Vec::new()));
        }
        let former = Former { secret: node.secret.clone(), until_ms: now_ms + grace_ms };
        let node = Arc::new(Node {
            secret: id::hex_token("secret-"),
            former: Some(former).filter(|_| grace_ms > 0),
            ..(**node).clone()
        });
        Ok(((node.clone(), true), vec![Change::PutNode(node)]))
    })?;
    let until_ms = node.former.as_ref().map(|f| f.until_ms);
    Ok(joining::joined(&node).put("rotated", rotated).put("former_valid_until_ms", until_ms))
}

pub(super) fn service_upsert(call: &mut Call<'_>) -> Result<Object> {
    let (node_id, secret) = credentials(call)?;
    let payload = &call.payload;
    let labels = payload.object("labels")?.map(|f| labels(&f)).transpose()?;
    let services = payload.array("services")?;
    let services = services.map(|list| read_services(&list)).transpose()?;
    call.mutate(|state, now_ms| {
        let (old, proof) = authenticated(state, &node_id, &secret, now_ms)?;
        let node = Arc::new(Node {
            former: old.former.clone().filter(|_| proof == Proof::Former),
            platform: joining::platform(payload, old.platform.clone())?,
            labels: labels.unwrap_or_else(|| old.labels.clone()),
            services: services.unwrap_or_else(|| old.services.clone()),
            last_seen_ms: now_ms,
            ..(**old).clone()
        });
        let changed = (&node.platform, &node.labels, &node.services)
            != (&old.platform, &old.labels, &old.services);
        let delta = delta(&old.services, &node.services, now_ms);
        let answer = catalogue(&node).put("service_delta", delta);
        let event = ServiceEvent::new(state, &node, answer.clone(), changed);
        Ok((answer, vec![Change::PutNode(node), Change::ServiceEvent(Arc::new(event))]))
    })
}

pub(super) fn service_get(call: &mut Call<'_>) -> Result<Object> {
    let node_id = identifier("node_id", call.payload.required("node_id")?, 128)?;
    let state = call.cx.plane.state();
    Ok(catalogue(state.node(&node_id)?))
}

/// What a node has published (spec: control 8.6).
fn catalogue(node: &Node) -> Object {
    let documents: Vec<_> = node.services.iter().map(|s| &s.document).collect();
    Object::new()
        .put("node_id", node.id())
        .put("node_name", &node.name)
        .put("platform", &node.platform)
        .put("labels", &node.labels)
        .put("services", documents)
}

fn labels(f: &Fields<'_>) -> Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    for (key, _) in f.iter() {
        let key = identifier("labels: a key", key.to_owned(), 128)?;
        let value = f.string(&key)?.unwrap_or_default();
        let value = if value.is_empty() { value } else { text(&key, value, 512)? };
        labels.insert(key, value);
    }
    if labels.len() > LABELS_MAX {
        return Err(Error::new(
            Code::LimitExceeded,
            format!("a node has at most {LABELS_MAX} labels"),
        ));
    }
    Ok(labels)
}

fn read_services(list: &[&serde_json::value::RawValue]) -> Result<Vec<Service>> {
    if list.len() > SERVICES_MAX {
        let message = format!("a node has at most {SERVICES_MAX} services");
        return Err(Error::new(Code::LimitExceeded, message));
    }
    let mut services: Vec<Service> = Vec::with_capacity(list.len());
    for entry in list {
        let service = read_service(&Fields::of("services[]", entry)?)
            .map_err(|e| e.recode(Code::InvalidPayload).context("services[]"))?;
        if services.iter().any(|s| s.service_id == service.service_id) {
            return Err(Error::new(
                Code::InvalidPayload,
                format!("services[]: service_id {:?} stands twice", service.service_id),
            ));
        }
        services.push(service);
    }
    Ok(services)
}

/// A catalogue entry with its defaults filled in (spec: control 8.6).
fn read_service(f: &Fields<'_>) -> Result<Service> {
    let service_id = identifier("service_id", f.required("service_id")?, 128)?;
    let kind = identifier("kind", f.required("kind")?, 128)?;
    let version = text("version", f.string("version")?.unwrap_or_else(|| "1".into()), 64)?;
    let state = identifier("state", f.required("state")?, 64)?;
    let endpoints = f.strings("endpoints")?.filter(|e| !e.is_empty());
    let endpoints = endpoints.ok_or_else(|| Error::missing("endpoints"))?;
    for path in &endpoints {
        absolute("endpoints[]", path)?;
    }
    let mut document = json!({
        "service_id": service_id, "kind": kind, "version": version, "state": state,
        "endpoints": endpoints,
    });
    let value = |name: &str| f.get(name).and_then(|v| serde_json::from_str::<Value>(v.get()).ok());
    for name in ["capabilities", "ops", "runtime", "permissions", "schema"] {
        f.object(name)?;
        document[name] = value(name).unwrap_or_else(|| json!({}));
    }
    for mount in f.array("mounts")?.unwrap_or_default() {
        let mount = Fields::of("mounts[]", mount)?;
        identifier("mount_id", mount.required("mount_id")?, 128)?;
        absolute("mount_path", &mount.required("mount_path")?)?;
    }
    document["mounts"] = value("mounts").unwrap_or_else(|| json!([]));
    if let Some(help) = f.string("help_md")? {
        if help.is_empty() || help.len() > 65_536 {
            return Err(Error::new(Code::InvalidPayload, "help_md must have 1 to 65536 bytes"));
        }
        document["help_md"] = help.into();
    }
    Ok(Service { service_id, version, document })
}

fn absolute(name: &str, path: &str) -> Result<()> {
    if path.starts_with('/') && path.len() <= 512 {
        return Ok(());
    }
    Err(Error::new(
        Code::InvalidPayload,
        format!("{name} must begin with / and have at most 512 bytes"),
    ))
}

fn digest(s: &Service) -> String {
    // Opaque to clients (spec: control 8.6); only has to differ when the document does.
    let mut h = std::hash::DefaultHasher::new();
    s.document.to_string().hash(&mut h);
    format!("0x{:016x}", h.finish())
}

fn delta(before: &[Service], after: &[Service], now_ms: i64) -> Value {
    let old = |s: &Service| before.iter().find(|b| b.service_id == s.service_id);
    let entry =
        |s: &Service| json!({"service_id": s.service_id, "version": s.version, "hash": digest(s)});
    let added: Vec<_> = after.iter().filter(|s| old(s).is_none()).map(entry).collect();
    let changed = |s: &&Service| old(s).is_some_and(|b| b.document != s.document);
    let updated = after.iter().filter(changed).map(|s| {
        let mut e = entry(s);
        if let Some(b) = old(s) {
            e["previous_version"] = b.version.as_str().into();
            e["previous_hash"] = digest(b).into();
        }
        e
    });
    let updated: Vec<_> = updated.collect();
    let gone = |b: &&Service| !after.iter().any(|s| s.service_id == b.service_id);
    let removed: Vec<_> = before.iter().filter(gone).map(entry).collect();
    json!({
        "changed": !(added.is_empty() && updated.is_empty() && removed.is_empty()),
        "timestamp_ms": now_ms, "added": added, "updated": updated, "removed": removed,
    })
}
