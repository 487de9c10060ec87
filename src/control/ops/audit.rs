//! What becomes of each request in the audit log (spec: control 5.4, 9.5), and reading it.

use super::{Call, Context, Op, Scope, Trail, aliases, correlation, text};
use crate::base::{Code, Error, Result};
use crate::control::Session;
use crate::control::audit::{self, Broken, Entry, Filter, Outcome, Record, Verified};
use crate::control::topics::{SecurityEvent, refusal};
use crate::store::KvRead;
use crate::wire::{Envelope, Fields, Object};

/// Records that `audit_tail` answers without a limit, and at most.
const LIMIT: i64 = 50;
const LIMIT_MAX: i64 = 500;

/// Members of payloads whose values are ids.
const IDS: &[&str] = &[
    "project_id",
    "node_id",
    "agent_id",
    "session_key",
    "invite_id",
    "request_id",
    "template_id",
    // Of a token: whose it is.
    "name",
    "role",
];

impl Op {
    /// It changes who is let in.
    fn is_of_tokens(&self) -> bool {
        self.trail == Trail::Durable && self.name.starts_with("auth_")
    }

    /// The members of its payload that say what it is about.
    fn ids(&self) -> &'static [&'static str] {
        if self.is_of_tokens() { IDS } else { &IDS[..IDS.len() - 2] }
    }
}

impl Scope {
    fn name(self) -> &'static str {
        match self {
            Scope::None => "none",
            Scope::Node => "node",
            Scope::Operator => "operator",
            Scope::Project => "project",
        }
    }
}

pub(super) fn entry(
    op: &Op,
    session: &Session,
    correlation_id: Option<&str>,
    payload: &Fields<'_>,
) -> Entry {
    let entry =
        Entry { scope: op.scope.name().into(), ..Entry::new(format!("control.{}", op.name)) };
    entry.of(session).correlated(correlation_id).naming(payload, op.ids())
}

/// Records what ended well, if it has not been with what it changed.
pub(super) fn succeeded(call: &Call<'_>) {
    let is_due = matches!(call.op.trail, Trail::Ends | Trail::Durable) && !call.recorded.get();
    if !is_due {
        return;
    }
    let audit = call.cx.plane.audit();
    let entry = entry(call.op, call.session, call.correlation_id, &call.payload);
    if call.op.is_of_tokens() {
        let event = SecurityEvent::new("credentials_changed", &entry, None);
        (call.cx.on_security)(event);
    }
    if call.op.trail == Trail::Ends {
        audit.note(entry);
    } else if let Err(e) = audit.record(entry) {
        // It was done all the same, and cannot be taken back.
        log::error!("control.{} has no record in the audit log: {e}", call.op.name);
    }
}

/// Records what was refused or has failed, and tells of it what matters for security.
pub(super) fn refused(
    cx: &Context,
    session: &Session,
    op: &Op,
    envelope: &Envelope<'_>,
    e: &Error,
) {
    // Without a name for the request there is nothing to look up (spec: control 5.4).
    let is_attempt = op.trail != Trail::Refusals
        && !matches!(e.code, Code::CorrelationRequired | Code::ProtocolMismatch);
    let event = refusal(e.code).or_else(|| op.is_of_tokens().then_some("credentials_unchanged"));
    if !is_attempt && event.is_none() {
        return;
    }
    let payload = envelope.fields.get("payload");
    let payload = payload.and_then(|value| Fields::of("payload", value).ok());
    let payload = payload.unwrap_or_default().respelled(aliases::FIELDS);
    let entry = entry(op, session, correlation(envelope), &payload).failed(e.code);
    let event = event.map(|event| SecurityEvent::new(event, &entry, Some(&e.message)));
    if cx.plane.audit().note(entry) {
        event.into_iter().for_each(&cx.on_security);
    }
}

/// The newest records that a filter admits (spec: control 8.10).
pub(super) fn tail(call: &mut Call<'_>) -> Result<Object> {
    let (limit, filter) = asked(&call.payload)?;
    let verify = call.payload.bool("verify")?.unwrap_or(false);
    let audit = call.cx.plane.audit();
    let found = audit.tail(&filter, limit)?;
    let verified = verify.then(|| audit.verify()).transpose()?;
    Ok(answer(&found, verified.as_ref(), audit.broken().as_ref()))
}

/// What `audit_tail` would answer, from a store without its gateway. Errors: `invalid_payload`;
/// `storage_error`.
pub fn audit_tail(kv: &dyn KvRead, payload: &str) -> Result<String> {
    let parsed = Fields::parse(payload).map_err(|e| {
        let why = e.map_or("it is not an object".into(), |e| e.to_string());
        Error::new(Code::InvalidPayload, format!("the payload is not a JSON object: {why}"))
    })?;
    let (limit, filter) = asked(&parsed)?;
    let found = audit::tail(kv, &filter, limit)?;
    let verify = parsed.bool("verify")?.unwrap_or(false);
    let verified = verify.then(|| audit::verify_at_rest(kv)).transpose()?;
    Ok(answer(&found, verified.as_ref(), None).finish())
}

fn asked(payload: &Fields<'_>) -> Result<(usize, Filter)> {
    let limit = match payload.i64("limit")?.unwrap_or(LIMIT) {
        limit @ 0.. => limit.min(LIMIT_MAX) as usize,
        _ => return Err(Error::new(Code::InvalidPayload, "limit must not be negative")),
    };
    Ok((limit, filter(payload)?))
}

fn answer(
    found: &[(Record, String)],
    verified: Option<&Verified>,
    broken: Option<&Broken>,
) -> Object {
    let records: Vec<_> = found.iter().map(|(record, hash)| shown(record, hash).finish()).collect();
    let mut answer = Object::new().raw("audit", &format!("[{}]", records.join(",")));
    if let Some(verified) = verified {
        let object = Object::new()
            .put("records", verified.records)
            .put("last_id", verified.last_id)
            .put("hash", &verified.hash)
            .put("intact", verified.broken.is_none());
        answer = answer.object("verified", object);
    }
    if let Some(broken) = verified.and_then(|v| v.broken.as_ref()).or(broken) {
        let object = Object::new().put("id", broken.id).put("reason", &broken.reason);
        answer = answer.object("broken", object);
    }
    answer
}

fn filter(payload: &Fields<'_>) -> Result<Filter> {
    let word = |name: &str| payload.string(name)?.map(|s| text(name, s, 128)).transpose();
    let result = match payload.str("result")?.as_deref() {
        None => None,
        Some("ok") => Some(Outcome::Ok),
        Some("error") => Some(Outcome::Error),
        Some(_) => {
            return Err(Error::new(Code::InvalidPayload, "result must be 'ok' or 'error'"));
        }
    };
    // `project_create` is short for `control.project_create`, as on the wire.
    let full = |name: String| match name.contains('.') {
        true => name,
        false => format!("control.{}", aliases::first_name(&name)),
    };
    Ok(Filter {
        agent_id: word("agent_id")?,
        principal: word("principal")?,
        control_type: word("operation")?.map(full),
        result,
        code: word("code")?,
        about: word("about")?,
        since_ms: payload.i64("since_ms")?,
        until_ms: payload.i64("until_ms")?,
        after_id: payload.u64("after_id")?,
        before_id: payload.u64("before_id")?,
    })
}

fn shown(record: &Record, hash: &str) -> Object {
    let entry = &record.entry;
    Object::new()
        .put("id", record.id)
        .put("timestamp_ms", entry.timestamp_ms)
        .put("principal", &entry.principal)
        .put("role", &entry.role)
        .put("agent_id", &entry.agent_id)
        .put("peer", &entry.peer)
        .put("control_type", &entry.control_type)
        .put("scope", &entry.scope)
        .put("correlation_id", &entry.correlation_id)
        .put("result", entry.result)
        .put("error_code", &entry.error_code)
        .put("about", &entry.about)
        .put("left_out", entry.left_out)
        .put("prev_hash", &record.prev)
        .put("hash", hash)
}
