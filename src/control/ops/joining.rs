//! How a node becomes one: invites, and requests that an operator approves (spec: control 8.5).

use super::{Call, DURATION_MAX_MS, identifier, text};
use crate::base::{Code, Error, Result, id, origin};
use crate::control::Role;
use crate::control::state::{Change, Counter, Invite, Node, PendingJoin, State, id_number};
use crate::wire::control::{Joined, Platform};
use crate::wire::{Fields, Object};
use std::collections::BTreeMap;
use std::sync::Arc;

const INVITE_MS: i64 = 1_800_000;
pub(super) const LEASE_MS: i64 = 900_000;
/// Invites that are neither redeemed nor expired.
const INVITES_MAX: usize = 1000;
/// Joins that wait for an answer; anyone may ask for one.
const PENDING_MAX: usize = 256;
/// Of these from one address, so that a stranger does not keep all others out.
const PENDING_ALIKE_MAX: usize = 32;
/// How long a request, and the answer to it, waits for its asker; how long an invite that can no longer
/// be used is known.
const KEEP_MS: i64 = 86_400_000;
pub(super) const NODES_MAX: usize = 100_000;

pub(super) fn invite_create(call: &mut Call<'_>) -> Result<Object> {
    let expires_in_ms = call.duration_ms("expires_in_ms", INVITE_MS)?;
    let invite = call.mutate(|state, now_ms| {
        let (open, spent): (Vec<&Invite>, Vec<_>) =
            state.invites.values().map(|i| &**i).partition(|i| i.is_open(now_ms));
        // Of those that can no longer be used the newest stay for a while, so that who comes late is
        // told why. Their numbers are not given out again.
        let is_old = |i: &Invite| i.created_at_ms.max(i.expires_at_ms) + KEEP_MS < now_ms;
        let surplus = (spent.len() + 1).saturating_sub(INVITES_MAX);
        let gone = spent.iter().enumerate().filter(|(n, i)| *n < surplus || is_old(i));
        let mut changes: Vec<_> = gone.map(|(_, i)| Change::DeleteInvite(i.number)).collect();
        if open.len() >= INVITES_MAX {
            return Err(Error::new(
                Code::LimitExceeded,
                format!("{INVITES_MAX} invites are open; revoke some, or let them expire"),
            ));
        }
        let (number, last) = state.next(Counter::Invite);
        let invite = Arc::new(Invite {
            number,
            token: id::hex_token("inv-"),
            created_at_ms: now_ms,
            expires_at_ms: now_ms + expires_in_ms,
            redeemed: false,
        });
        changes.extend([last, Change::PutInvite(invite.clone())]);
        Ok((invite, changes))
    })?;
    Ok(Object::new()
        .put("invite_id", invite.id())
        .put("invite_token", &invite.token)
        .put("created_at_ms", invite.created_at_ms)
        .put("expires_at_ms", invite.expires_at_ms))
}

/// The invites that are open, and on request those that were redeemed or have expired (spec: control 8.9).
pub(super) fn invite_list(call: &mut Call<'_>) -> Result<Object> {
    let flag = |name: &str| Ok::<_, Error>(call.payload.bool(name)?.unwrap_or(false));
    let (redeemed, expired) = (flag("include_redeemed")?, flag("include_expired")?);
    let reveal = flag("reveal")?;
    let (state, now_ms) = (call.cx.plane.state(), super::now());
    let is_asked_for = |i: &&Arc<Invite>| {
        (redeemed || !i.redeemed) && (expired || i.redeemed || i.expires_at_ms > now_ms)
    };
    let one = |i: &Arc<Invite>| {
        Object::new()
            .put("invite_id", i.id())
            .put("invite_token", if reveal { i.token.as_str() } else { "inv-..." })
            .put("created_at_ms", i.created_at_ms)
            .put("expires_at_ms", i.expires_at_ms)
            .put("redeemed", i.redeemed)
            .put("expired", i.expires_at_ms <= now_ms)
            .finish()
    };
    let list: Vec<_> = state.invites.values().filter(is_asked_for).map(one).collect();
    Ok(Object::new().raw("invites", &format!("[{}]", list.join(","))))
}

/// Takes back an invite that nobody has used.
pub(super) fn invite_revoke(call: &mut Call<'_>) -> Result<Object> {
    let invite_id = call.payload.required("invite_id")?;
    call.mutate(|state, _| {
        let invite = id_number(&invite_id, "invite-").and_then(|n| state.invites.get(&n));
        let invite = invite.ok_or_else(|| {
            Error::new(Code::InviteNotFound, format!("there is no invite {invite_id:?}"))
        })?;
        if invite.redeemed {
            let message = format!("{invite_id} was used already; delete the node that used it");
            return Err(Error::new(Code::InviteRedeemed, message));
        }
        Ok(((), vec![Change::DeleteInvite(invite.number)]))
    })?;
    Ok(Object::new().put("revoked", true).put("invite_id", invite_id))
}

/// The node of a name, made where there is none (spec: control 13). Its lease begins anew.
pub(super) fn ensure(call: &mut Call<'_>) -> Result<Object> {
    let name = identifier("node_name", call.payload.required("node_name")?, 128)?;
    let fs_url = fs_url(&call.payload)?;
    let ttl_ms = lease_ttl(call)?;
    let (node, created) = call.mutate(|state, now_ms| {
        if let Some(node) = state.nodes_named(&name).next() {
            let node = Arc::new(node.refreshed(fs_url, ttl_ms, now_ms));
            return Ok(((node.clone(), false), vec![Change::PutNode(node)]));
        }
        let fs_url = fs_url.unwrap_or_default();
        let node = new_node(state, Some(name), fs_url, Platform::default(), now_ms, ttl_ms)?;
        let changes = vec![Change::Last(Counter::Node, node.number), Change::PutNode(node.clone())];
        Ok(((node, true), changes))
    })?;
    Ok(joined(&node).put("created", created))
}

pub(super) fn join(call: &mut Call<'_>) -> Result<Object> {
    let token = call.payload.required("invite_token")?;
    let name = node_name(&call.payload)?;
    let fs_url = fs_url(&call.payload)?.unwrap_or_default();
    let ttl_ms = lease_ttl(call)?;
    let node = call.mutate(|state, now_ms| {
        let invite = state.invites.values().find(|i| id::same_secret(&i.token, &token));
        let invite = invite.ok_or_else(|| {
            Error::new(Code::InviteNotFound, "invite_token is not one that was given out")
        })?;
        if invite.redeemed {
            return Err(Error::new(
                Code::InviteRedeemed,
                "this invite was used already; ask for a new one",
            ));
        }
        if invite.expires_at_ms <= now_ms {
            return Err(Error::new(
                Code::InviteExpired,
                "this invite has expired; ask for a new one",
            ));
        }
        let node = new_node(state, name, fs_url, Platform::default(), now_ms, ttl_ms)?;
        let redeemed = Invite { redeemed: true, ..(**invite).clone() };
        let changes = vec![
            Change::Last(Counter::Node, node.number),
            Change::PutNode(node.clone()),
            Change::PutInvite(Arc::new(redeemed)),
        ];
        Ok((node, changes))
    })?;
    Ok(joined(&node))
}

/// A node asks to join, or asks again what became of that: with the `request_id` and `claim_token` of
/// the first answer it gets its credentials once an operator has approved.
pub(super) fn request(call: &mut Call<'_>) -> Result<Object> {
    if let Some(request_id) = call.payload.string("request_id")? {
        let claim = call.payload.required("claim_token")?;
        return collect(call, &request_id, &claim);
    }
    let name = node_name(&call.payload)?;
    let fs_url = fs_url(&call.payload)?.unwrap_or_default();
    let platform = platform(&call.payload, Platform::default())?;
    // Who brings a token is known.
    let stranger = call.session.principal.role == Role::Nobody;
    let origin = call.session.peer.filter(|_| stranger).map(|peer| origin::of(peer.ip()));
    let pending = call.mutate(|state, now_ms| {
        let (answered, waiting): (Vec<&PendingJoin>, Vec<_>) =
            state.pending.values().map(|p| &**p).partition(|p| p.approved.is_some());
        let is_old = |p: &PendingJoin| p.requested_at_ms + KEEP_MS < now_ms;
        let surplus = (answered.len() + 1).saturating_sub(PENDING_MAX);
        let answered = answered.iter().enumerate().filter(|(n, p)| *n < surplus || is_old(p));
        let expired = waiting.iter().filter(|p| is_old(p));
        let left = waiting.len() - expired.clone().count();
        let gone = answered.map(|(_, p)| p).chain(expired);
        let mut changes: Vec<_> = gone.map(|p| Change::DeletePending(p.number)).collect();
        if left >= PENDING_MAX {
            return Err(Error::new(
                Code::LimitExceeded,
                format!("{PENDING_MAX} nodes are waiting to join already"),
            ));
        }
        let alike = waiting.iter().filter(|p| p.origin == origin && !is_old(p)).count();
        if origin.is_some() && alike >= PENDING_ALIKE_MAX {
            return Err(Error::new(
                Code::LimitExceeded,
                format!("{PENDING_ALIKE_MAX} nodes from this address are waiting to join already"),
            ));
        }
        let (number, last) = state.next(Counter::PendingJoin);
        let pending = Arc::new(PendingJoin {
            number,
            node_name: name.unwrap_or_else(|| format!("pending-join-{number}")),
            fs_url,
            platform,
            requested_at_ms: now_ms,
            claim: id::hex_token("claim-"),
            approved: None,
            origin,
        });
        changes.extend([last, Change::PutPending(pending.clone())]);
        Ok((pending, changes))
    })?;
    Ok(shown(&pending).put("claim_token", &pending.claim))
}

/// What became of a request, for the one who made it.
fn collect(call: &Call<'_>, request_id: &str, claim: &str) -> Result<Object> {
    let state = call.cx.plane.state();
    let pending = find(&state, request_id)?;
    if !id::same_secret(&pending.claim, claim) {
        return Err(not_found(request_id));
    }
    let Some(number) = pending.approved else {
        return Ok(shown(&pending).put("state", "pending"));
    };
    let node = state.nodes.get(&number).ok_or_else(|| not_found(request_id))?;
    Ok(joined(node).put("state", "approved"))
}

pub(super) fn pending_list(call: &mut Call<'_>) -> Result<Object> {
    let state = call.cx.plane.state();
    let waiting = state.pending.values().filter(|p| p.approved.is_none());
    let list = waiting.map(|p| shown(p).put_some("requested_from", p.origin).finish());
    let list: Vec<_> = list.collect();
    Ok(Object::new().raw("pending", &format!("[{}]", list.join(","))))
}

pub(super) fn approve(call: &mut Call<'_>) -> Result<Object> {
    let request_id = call.payload.required("request_id")?;
    let ttl_ms = lease_ttl(call)?;
    let node = call.mutate(|state, now_ms| {
        let pending = find(state, &request_id)?;
        if pending.approved.is_some() {
            return Err(not_found(&request_id));
        }
        let name = Some(pending.node_name.clone());
        let (fs_url, platform) = (pending.fs_url.clone(), pending.platform.clone());
        let node = new_node(state, name, fs_url, platform, now_ms, ttl_ms)?;
        let approved = PendingJoin { approved: Some(node.number), ..(*pending).clone() };
        let changes = vec![
            Change::Last(Counter::Node, node.number),
            Change::PutNode(node.clone()),
            Change::PutPending(Arc::new(approved)),
        ];
        Ok((node, changes))
    })?;
    Ok(joined(&node))
}

pub(super) fn deny(call: &mut Call<'_>) -> Result<Object> {
    let request_id = call.payload.required("request_id")?;
    call.mutate(|state, _| {
        let pending = find(state, &request_id)?;
        if pending.approved.is_some() {
            return Err(not_found(&request_id));
        }
        Ok(((), vec![Change::DeletePending(pending.number)]))
    })?;
    Ok(Object::new().put("denied", true).put("request_id", request_id))
}

fn find(state: &State, request_id: &str) -> Result<Arc<PendingJoin>> {
    let found = id_number(request_id, "pending-join-").and_then(|n| state.pending.get(&n));
    found.cloned().ok_or_else(|| not_found(request_id))
}

fn not_found(request_id: &str) -> Error {
    Error::new(Code::PendingJoinNotFound, format!("no join request {request_id:?} is waiting"))
}

fn shown(p: &PendingJoin) -> Object {
    Object::new()
        .put("request_id", p.id())
        .put("node_name", &p.node_name)
        .put("fs_url", &p.fs_url)
        .put("platform", &p.platform)
        .put("requested_at_ms", p.requested_at_ms)
}

fn new_node(
    state: &State,
    name: Option<String>,
    fs_url: String,
    platform: Platform,
    now_ms: i64,
    ttl_ms: i64,
) -> Result<Arc<Node>> {
    if state.nodes.size() >= NODES_MAX {
        return Err(Error::new(
            Code::LimitExceeded,
            format!("there are {NODES_MAX} nodes already"),
        ));
    }
    let (number, _) = state.next(Counter::Node);
    Ok(Arc::new(Node {
        number,
        name: name.unwrap_or_else(|| format!("node-{number}")),
        fs_url,
        secret: id::hex_token("secret-"),
        former: None,
        lease_token: id::hex_token("lease-"),
        platform,
        labels: BTreeMap::new(),
        services: Vec::new(),
        joined_at_ms: now_ms,
        last_seen_ms: now_ms,
        lease_expires_at_ms: now_ms + ttl_ms,
        revived_at_ms: 0,
    }))
}

/// The credentials as join, approve and refresh answer them.
pub(super) fn joined(node: &Node) -> Object {
    let joined = Joined {
        node_id: node.id(),
        node_name: node.name.clone(),
        fs_url: node.fs_url.clone(),
        node_secret: node.secret.clone(),
        lease_token: node.lease_token.clone(),
        platform: node.platform.clone(),
        lease_expires_at_ms: node.lease_expires_at_ms,
    };
    Object::new()
        .put("node_id", joined.node_id)
        .put("node_name", joined.node_name)
        .put("fs_url", joined.fs_url)
        .put("node_secret", joined.node_secret)
        .put("lease_token", joined.lease_token)
        .put("platform", joined.platform)
        .put("lease_expires_at_ms", joined.lease_expires_at_ms)
}

/// The lease asked for, at least a second long (spec: control 18).
pub(super) fn lease_ttl(call: &Call<'_>) -> Result<i64> {
    Ok(call.duration_ms("lease_ttl_ms", LEASE_MS)?.clamp(1000, DURATION_MAX_MS))
}

pub(super) fn node_name(f: &Fields<'_>) -> Result<Option<String>> {
    let name = f.string("node_name")?.filter(|n| !n.is_empty());
    name.map(|n| identifier("node_name", n, 128)).transpose()
}

/// An FS endpoint (spec: control 7). Errors: `invalid_payload`.
pub(super) fn fs_url(f: &Fields<'_>) -> Result<Option<String>> {
    let Some(url) = f.string("fs_url")? else { return Ok(None) };
    if url.is_empty() {
        return Ok(Some(url));
    }
    let url = text("fs_url", url, 512)?;
    let scheme = url.starts_with("ws://") || url.starts_with("wss://");
    if !scheme || !url.contains("/v2/fs") {
        return Err(Error::new(
            Code::InvalidPayload,
            "fs_url must begin with ws:// or wss:// and lead to /v2/fs",
        ));
    }
    Ok(Some(url))
}

/// What a payload says of a platform; what it does not say stays.
pub(super) fn platform(f: &Fields<'_>, mut known: Platform) -> Result<Platform> {
    let Some(p) = f.object("platform")? else { return Ok(known) };
    let parts = [
        ("os", &mut known.os),
        ("arch", &mut known.arch),
        ("runtime_kind", &mut known.runtime_kind),
    ];
    for (name, part) in parts {
        if let Some(value) = p.string(name)? {
            *part = identifier(&format!("platform.{name}"), value, 64)?;
        }
    }
    Ok(known)
}
