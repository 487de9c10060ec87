//! The access tokens (spec: control 8.2): what there is, replacing the shared ones, making and revoking
//! named ones.

use super::Call;
use crate::base::{Code, Error, Result};
use crate::config::tokens::{Named, Role, masked};
use crate::control::Target;
use crate::wire::Object;

pub(super) fn status(call: &mut Call<'_>) -> Result<Object> {
    let reveal = call.payload.bool("reveal")?.unwrap_or(false);
    let (auth, history) = (&call.cx.auth, &call.cx.history);
    let tokens = auth.tokens();
    let shown = |role: Role| match reveal {
        true => tokens.shared(role).to_owned(),
        false => masked(tokens.shared(role)),
    };
    let target = |role: Role| match history.target(role.name()) {
        Some(Target { agent_id, project_id, .. }) => {
            Object::new().put("agent_id", agent_id).put("project_id", project_id).finish()
        }
        None => "null".into(),
    };
    Ok(Object::new()
        .put("admin_token", shown(Role::Admin))
        .put("user_token", shown(Role::User))
        .put("revealed", reveal)
        .put("path", auth.path().display().to_string())
        .raw("admin_last_target", &target(Role::Admin))
        .raw("user_last_target", &target(Role::User))
        .raw("tokens", &listed(call)))
}

pub(super) fn rotate(call: &mut Call<'_>) -> Result<Object> {
    let role = role(&call.payload.required("role")?)?;
    let revoke = call.payload.bool("revoke")?.unwrap_or(false);
    let token = call.cx.auth.change(|tokens| Ok(tokens.rotate(role, revoke)))?;
    log::warn!("{} has replaced the token of role {}", call.session.principal.name, role.name());
    Ok(Object::new().put("role", role.name()).put("token", token).put("revoked", revoke))
}

pub(super) fn create(call: &mut Call<'_>) -> Result<Object> {
    let name = call.payload.required("name")?;
    let role = call.payload.str("role")?.map_or(Ok(Role::User), |text| role(&text))?;
    let expires_in_ms = call.payload.i64("expires_in_ms")?;
    let (token, made) = call.cx.auth.change(|tokens| {
        let token = tokens.add(&name, role, expires_in_ms)?;
        Ok((token, tokens.tokens.last().cloned()))
    })?;
    log::warn!("{} has made a token for {name}", call.session.principal.name);
    Ok(Object::new()
        .put("name", &name)
        .put("role", role.name())
        .put("token", token)
        .put("created_at_ms", made.as_ref().map(|t| t.created_at_ms))
        .put("expires_at_ms", made.and_then(|t| t.expires_at_ms)))
}

pub(super) fn list(call: &mut Call<'_>) -> Result<Object> {
    Ok(Object::new().raw("tokens", &listed(call)))
}

pub(super) fn revoke(call: &mut Call<'_>) -> Result<Object> {
    let name = call.payload.required("name")?;
    call.cx.auth.change(|tokens| tokens.revoke(&name))?;
    log::warn!("{} has revoked the token of {name}", call.session.principal.name);
    Ok(Object::new().put("name", name).put("revoked", true))
}

/// The named tokens, as a JSON array. Not even their hashes are told.
fn listed(call: &Call<'_>) -> String {
    let now_ms = super::now();
    let one = |t: &Named| {
        let used = call.cx.history.last_used_at_ms(&t.name);
        Object::new()
            .put("name", &t.name)
            .put("role", t.role)
            .put("created_at_ms", t.created_at_ms)
            .put("expires_at_ms", t.expires_at_ms)
            .put("expired", t.is_expired(now_ms))
            .put("last_used_at_ms", Some(used).filter(|at| *at > 0))
            .finish()
    };
    let tokens = call.cx.auth.tokens();
    let list: Vec<_> = tokens.tokens.iter().map(one).collect();
    format!("[{}]", list.join(","))
}

fn role(text: &str) -> Result<Role> {
    Role::parse(text)
        .ok_or_else(|| Error::new(Code::InvalidPayload, "role must be 'admin' or 'user'"))
}
