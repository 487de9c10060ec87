//! The operations, one line each in [`TABLE`], and the way every request goes: order, gate, role,
//! scope, then its handler (spec: control 3 to 5). To add one: a handler in the file of its subject, a
//! line here, an entry in spiderweb-protocol(7), a test.

mod agents;
mod aliases;
mod audit;
mod auth;
mod call;
mod desired;
mod handshake;
mod joining;
mod mounts;
mod nodes;
mod project_up;
mod projects;
mod runs;
mod scopes;
mod sessions;
mod templates;
mod watching;
mod workspaces;

pub(super) use mounts::{put_bind, put_mount, tree_path};

use call::{Call, DURATION_MAX_MS, SECRET_MAX};

pub use aliases::ALIASES;
pub use audit::audit_tail;
pub use scopes::Scopes;

use super::events::Events;
use super::plane::Commit;
use super::session::{Door, Role, Session};
use super::state::{MOTHER, State};
use super::topics::OnSecurity;
use super::{Agents, Authenticator, History, Plane, Templates};
use crate::base::{Code, Error, Result, id, now_ms};
use crate::wire::control::{self, Correlation, RESPONSES};
use crate::wire::{Envelope, Fields, Frame, Object};
use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;

/// Who may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Anyone,
    Admin,
    /// Anyone who holds what the payload must carry: an invite, or a node's own secret. Also through
    /// `/v2/join`.
    Node,
}

/// The second factor that a mutation asks for, where one is configured (spec: control 5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    None,
    Node,
    Operator,
    Project,
}

/// What the audit log keeps of an operation, beside every refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trail {
    /// Nothing more.
    Refusals,
    /// What changed the state, with the change, and every error.
    Changes,
    /// Every end, as soon as somebody writes.
    Ends,
    /// Every end; success before it is answered, as it changes more than the state.
    Durable,
}

/// An operation.
pub struct Op {
    pub name: &'static str,
    pub access: Access,
    /// May be called while the connect gate is set.
    pub passes_gate: bool,
    pub scope: Scope,
    /// Its errors carry `correlation_id`.
    pub correlates: bool,
    pub trail: Trail,
    run: fn(&mut Call<'_>) -> Result<Object>,
}

const fn op(
    name: &'static str,
    access: Access,
    scope: Scope,
    run: fn(&mut Call<'_>) -> Result<Object>,
) -> Op {
    let passes_gate = matches!(access, Access::Node);
    let trail = match (access, scope) {
        (Access::Node, Scope::None) => Trail::Changes,
        (_, Scope::None) => Trail::Refusals,
        _ => Trail::Ends,
    };
    Op { name, access, passes_gate, scope, correlates: true, trail, run }
}

impl Op {
    const fn passing(self) -> Op {
        Op { passes_gate: true, ..self }
    }

    const fn uncorrelated(self) -> Op {
        Op { correlates: false, ..self }
    }

    const fn leaving(self, trail: Trail) -> Op {
        Op { trail, ..self }
    }
}

/// Every operation that is served.
pub const TABLE: &[Op] = &[
    op("version", Access::Anyone, Scope::None, handshake::version).passing().uncorrelated(),
    op("connect", Access::Anyone, Scope::None, handshake::connect).passing().uncorrelated(),
    op("ping", Access::Anyone, Scope::None, handshake::ping).passing().uncorrelated(),
    op("metrics", Access::Admin, Scope::None, handshake::metrics).uncorrelated(),
    op("session_attach", Access::Anyone, Scope::None, sessions::attach)
        .passing()
        .uncorrelated()
        .leaving(Trail::Ends),
    op("session_list", Access::Anyone, Scope::None, sessions::list).uncorrelated(),
    op("session_status", Access::Anyone, Scope::None, sessions::status).uncorrelated(),
    op("session_resume", Access::Anyone, Scope::None, sessions::resume)
        .uncorrelated()
        .leaving(Trail::Ends),
    op("session_close", Access::Anyone, Scope::None, sessions::close)
        .uncorrelated()
        .leaving(Trail::Ends),
    op("session_restore", Access::Anyone, Scope::None, sessions::restore).passing().uncorrelated(),
    op("session_history", Access::Anyone, Scope::None, sessions::history).passing().uncorrelated(),
    op("debug_subscribe", Access::Anyone, Scope::None, watching::subscribe)
        .passing()
        .uncorrelated(),
    op("debug_unsubscribe", Access::Anyone, Scope::None, watching::unsubscribe).uncorrelated(),
    op("auth_status", Access::Admin, Scope::None, auth::status).uncorrelated(),
    op("auth_rotate", Access::Admin, Scope::None, auth::rotate)
        .uncorrelated()
        .leaving(Trail::Durable),
    op("auth_token_create", Access::Admin, Scope::None, auth::create)
        .uncorrelated()
        .leaving(Trail::Durable),
    op("auth_token_list", Access::Admin, Scope::None, auth::list).uncorrelated(),
    op("auth_token_revoke", Access::Admin, Scope::None, auth::revoke)
        .uncorrelated()
        .leaving(Trail::Durable),
    op("agent_list", Access::Anyone, Scope::None, agents::list).passing(),
    op("agent_get", Access::Anyone, Scope::None, agents::get).passing(),
    op("agent_ensure", Access::Admin, Scope::None, agents::ensure).leaving(Trail::Durable),
    op("agent_run_start", Access::Anyone, Scope::None, runs::start),
    op("agent_run_step", Access::Anyone, Scope::None, runs::step),
    op("agent_run_resume", Access::Anyone, Scope::None, runs::resume),
    op("agent_run_pause", Access::Anyone, Scope::None, runs::pause),
    op("agent_run_cancel", Access::Anyone, Scope::None, runs::cancel),
    op("agent_run_status", Access::Anyone, Scope::None, runs::status),
    op("agent_run_events", Access::Anyone, Scope::None, runs::events),
    op("agent_run_list", Access::Anyone, Scope::None, runs::list),
    op("node_invite_create", Access::Admin, Scope::Node, joining::invite_create),
    op("node_invite_list", Access::Admin, Scope::Node, joining::invite_list),
    op("node_invite_revoke", Access::Admin, Scope::Node, joining::invite_revoke),
    op("node_join", Access::Node, Scope::None, joining::join),
    op("node_ensure", Access::Admin, Scope::Node, joining::ensure),
    op("node_join_request", Access::Node, Scope::None, joining::request),
    op("node_join_pending_list", Access::Admin, Scope::Operator, joining::pending_list),
    op("node_join_approve", Access::Admin, Scope::Operator, joining::approve),
    op("node_join_deny", Access::Admin, Scope::Operator, joining::deny),
    op("node_lease_refresh", Access::Node, Scope::None, nodes::lease_refresh),
    op("node_service_upsert", Access::Node, Scope::None, nodes::service_upsert),
    op("node_service_get", Access::Admin, Scope::None, nodes::service_get),
    op("node_service_watch", Access::Anyone, Scope::None, watching::service_watch),
    op("node_service_unwatch", Access::Anyone, Scope::None, watching::service_unwatch),
    op("node_secret_rotate", Access::Node, Scope::Node, nodes::secret_rotate),
    op("node_list", Access::Admin, Scope::None, nodes::list),
    op("node_get", Access::Admin, Scope::None, nodes::get),
    op("node_delete", Access::Node, Scope::Node, nodes::delete),
    op("project_up", Access::Anyone, Scope::Project, project_up::up),
    op("project_create", Access::Anyone, Scope::Project, projects::create),
    op("project_update", Access::Anyone, Scope::Project, projects::update),
    op("project_delete", Access::Anyone, Scope::Project, projects::delete),
    op("project_activate", Access::Anyone, Scope::Project, projects::activate),
    op("project_list", Access::Anyone, Scope::None, projects::list).passing(),
    op("project_get", Access::Anyone, Scope::None, projects::get).passing(),
    op("project_token_rotate", Access::Anyone, Scope::Project, projects::token_rotate),
    op("project_token_revoke", Access::Anyone, Scope::Project, projects::token_revoke),
    op("project_mount_set", Access::Anyone, Scope::Project, mounts::set),
    op("project_mount_remove", Access::Anyone, Scope::Project, mounts::remove),
    op("project_mount_list", Access::Anyone, Scope::None, mounts::list),
    op("project_bind_set", Access::Anyone, Scope::Project, mounts::bind_set),
    op("project_bind_remove", Access::Anyone, Scope::Project, mounts::bind_remove),
    op("project_bind_list", Access::Anyone, Scope::None, mounts::bind_list),
    op("workspace_template_list", Access::Anyone, Scope::None, templates::list),
    op("workspace_template_get", Access::Anyone, Scope::None, templates::get),
    op("audit_tail", Access::Admin, Scope::None, audit::tail),
    op("workspace_status", Access::Anyone, Scope::None, workspaces::status).passing(),
    op("reconcile_status", Access::Anyone, Scope::None, workspaces::reconcile_status),
];

/// The operation that a name, be it an alias, stands for.
pub fn find(name: &str) -> Option<&'static Op> {
    let name = aliases::first_name(name);
    TABLE.iter().find(|op| op.name == name)
}

/// What the operations work on; one for the gateway.
pub struct Context {
    pub plane: Arc<Plane>,
    pub agents: Arc<dyn Agents>,
    pub templates: Arc<dyn Templates>,
    pub auth: Arc<Authenticator>,
    pub history: Arc<History>,
    pub scopes: Scopes,
    pub figures: Figures,
    pub events: Arc<Events>,
    pub on_security: OnSecurity,
}

/// Gathers what `metrics` answers: who runs the control plane counts more than is known here.
pub type Figures = Arc<dyn Fn() -> Object + Send + Sync>;

impl Context {
    /// No project or no agent has been made yet (spec: control 4.2).
    pub fn bootstrap_only(&self, state: &State) -> bool {
        let project = state.projects.values().any(|p| !p.is_system());
        // One that cannot be read is one all the same.
        let agent = || {
            self.agents.list().is_ok_and(|found| {
                !found.unreadable.is_empty() || found.agents.iter().any(|a| a.id != MOTHER)
            })
        };
        !project || !agent()
    }
}

/// Bytes of an error's message.
const MESSAGE_MAX: usize = 512;

/// The answer to a request, and whether the connection ends with it.
pub struct Answer {
    pub frame: Frame,
    pub close: bool,
    /// Why it was refused.
    pub error: Option<Code>,
    /// What has to be durable before it is sent; where that fails, [`failed`] is sent instead.
    pub after: Option<Commit>,
}

/// Answers one well-formed message of the control channel.
pub fn handle(cx: &Context, session: &mut Session, envelope: &Envelope<'_>) -> Answer {
    let name = &*envelope.name;
    let Some(op) = find(name) else {
        return refuse(envelope, unknown(name), false);
    };
    if session.negotiated && !matches!(op.name, "version" | "ping") {
        session.settle(cx);
    }
    if let Err(e) = admit(cx, session, op, envelope) {
        audit::refused(cx, session, op, envelope, &e);
        return refuse(envelope, e, false);
    }
    let outcome = enter(cx, session, op, envelope).and_then(|mut call| {
        let payload = (op.run)(&mut call)?;
        audit::succeeded(&call);
        Ok((payload, call.commit.take()))
    });
    match outcome {
        Ok((payload, after)) => {
            let payload = aliases::answer(name, payload.finish());
            let frame = control::reply(name, envelope.id.as_deref(), &payload);
            Answer { frame, close: false, error: None, after }
        }
        Err(e) => {
            audit::refused(cx, session, op, envelope, &e);
            refuse(envelope, e, op.correlates)
        }
    }
}

/// The answer to a request whose changes could not be stored.
pub fn failed(cx: &Context, session: &Session, envelope: &Envelope<'_>, e: Error) -> Answer {
    let op = find(&envelope.name);
    if let Some(op) = op {
        audit::refused(cx, session, op, envelope, &e);
    }
    refuse(envelope, e, op.is_some_and(|op| op.correlates))
}

fn refuse(envelope: &Envelope<'_>, mut e: Error, correlates: bool) -> Answer {
    e.message = shortened(e.message);
    let shown = match correlates {
        true => Correlation::Shown(correlation(envelope)),
        false => Correlation::Omitted,
    };
    let close = e.code == Code::ProtocolMismatch;
    let frame = control::error(envelope.id.as_deref(), shown, &e);
    Answer { frame, close, error: Some(e.code), after: None }
}

/// What a request is known by, in records and errors.
fn correlation<'a>(envelope: &'a Envelope<'_>) -> Option<&'a str> {
    envelope.correlation_id.as_deref().or(envelope.id.as_deref())
}

/// Words for people, who would not read what a client sent in full.
fn shortened(message: Cow<'static, str>) -> Cow<'static, str> {
    if message.len() <= MESSAGE_MAX {
        return message;
    }
    format!("{}...", &message[..message.floor_char_boundary(MESSAGE_MAX)]).into()
}

/// The error for a name without a handler (spec: control 3.3).
fn unknown(name: &str) -> Error {
    if RESPONSES.contains(&name) {
        return Error::new(Code::Unsupported, "unsupported control operation");
    }
    Error::new(Code::UnsupportedLegacyApi, "UnsupportedType")
}

/// Order and gate: what is checked before an operation is looked at (spec: control 4).
fn admit(cx: &Context, session: &Session, op: &Op, envelope: &Envelope<'_>) -> Result<()> {
    if !session.negotiated && op.name != "version" {
        return Err(Error::new(Code::ProtocolMismatch, "control.version must be negotiated first"));
    }
    if session.door == Door::Join
        && op.access != Access::Node
        && !matches!(op.name, "version" | "connect" | "ping")
    {
        return Err(Error::new(
            Code::Forbidden,
            format!("control.{} is not for /v2/join; connect to / with a token", envelope.name),
        ));
    }
    if op.passes_gate { Ok(()) } else { ungated(cx, session) }
}

/// Errors: the gate's.
fn ungated(cx: &Context, session: &Session) -> Result<()> {
    if session.active().is_some() || session.principal.role != Role::User {
        return Ok(());
    }
    let gate = session.gate(cx.bootstrap_only(&cx.plane.state()));
    gate.map_or(Ok(()), |gate| Err(gate.error()))
}

/// Role, correlation, payload and scope (spec: control 5).
fn enter<'a>(
    cx: &'a Context,
    session: &'a mut Session,
    op: &'static Op,
    envelope: &'a Envelope<'a>,
) -> Result<Call<'a>> {
    if op.access == Access::Admin && !session.is_admin() {
        let message = format!("control.{} is for admins", op.name);
        return Err(Error::new(Code::Forbidden, message));
    }
    let value = envelope.fields.get("payload");
    // A node that proves itself with its secret needs no second factor.
    let scoped = op.scope != Scope::None && session.principal.role != Role::Nobody;
    if scoped {
        if envelope.correlation_id.is_none() && envelope.id.is_none() {
            return Err(Error::new(
                Code::CorrelationRequired,
                format!("control.{} needs an id or a correlation_id", op.name),
            ));
        }
        if !envelope.fields.has("payload") {
            return Err(Error::missing("payload"));
        }
    }
    let payload = match value {
        Some(value) => Fields::of("payload", value)?.respelled(aliases::FIELDS),
        None if envelope.fields.has("payload") && scoped => {
            return Err(Error::new(Code::InvalidPayload, "payload must be an object"));
        }
        None => Fields::default(),
    };
    if scoped {
        cx.scopes.check(op.scope, &payload)?;
    }
    Ok(Call {
        cx,
        session,
        op,
        correlation_id: correlation(envelope),
        payload,
        has_payload: value.is_some(),
        recorded: Cell::new(false),
        commit: Cell::default(),
    })
}

/// Reads an identifier (spec: control 7). Errors: `invalid_payload`, naming the field.
fn identifier(name: &str, value: String, max: usize) -> Result<String> {
    if id::is_identifier(&value, max) {
        return Ok(value);
    }
    Err(Error::new(
        Code::InvalidPayload,
        format!("{name} must be 1 to {max} characters of A-Z a-z 0-9 . _ -"),
    ))
}

/// Reads text for people: 1 to `max` bytes without control characters.
fn text(name: &str, value: String, max: usize) -> Result<String> {
    if value.is_empty() || value.len() > max || value.bytes().any(|b| b < 0x20) {
        return Err(Error::new(
            Code::InvalidPayload,
            format!("{name} must have 1 to {max} bytes and no control characters"),
        ));
    }
    Ok(value)
}

fn now() -> i64 {
    now_ms()
}
