//! What the gateway tells of by itself (spec: control 9.2): the topics that a connection may subscribe to,
//! and what there is to say of a refusal. Who is told is decided by those who tell.

use super::audit::Entry;
use crate::base::{Code, Error, Result};
use crate::wire::{Fields, Object};

/// The categories of `debug.event`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    Topology,
    TopologyDelta,
    Availability,
    Reconcile,
    AttachState,
    /// For admins.
    Security,
}

impl Topic {
    pub const ALL: [Topic; 6] = [
        Topic::Topology,
        Topic::TopologyDelta,
        Topic::Availability,
        Topic::Reconcile,
        Topic::AttachState,
        Topic::Security,
    ];

    pub fn category(self) -> &'static str {
        match self {
            Topic::Topology => "control.workspace_topology",
            Topic::TopologyDelta => "control.workspace_topology_delta",
            Topic::Availability => "control.workspace_availability",
            Topic::Reconcile => "control.reconcile",
            Topic::AttachState => "control.session_attach_state",
            Topic::Security => "control.security",
        }
    }
}

/// The topics of one subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topics(u8);

impl Topics {
    /// Every topic that somebody may hear of.
    pub fn all(admin: bool) -> Topics {
        let allowed = Topic::ALL.into_iter().filter(|t| admin || *t != Topic::Security);
        Topics(allowed.fold(0, |set, t| set | 1 << t as u8))
    }

    pub fn has(self, topic: Topic) -> bool {
        self.0 & (1 << topic as u8) != 0
    }

    /// Reads `categories`, without which it is all. Errors: `invalid_payload`, naming what is unknown;
    /// `forbidden` for what is for admins.
    pub fn read(payload: &Fields<'_>, admin: bool) -> Result<Topics> {
        let all = Topics::all(admin);
        let Some(names) = payload.strings("categories")? else { return Ok(all) };
        let find = |name: &String| Topic::ALL.into_iter().find(|t| t.category() == name);
        let unknown: Vec<_> = names.iter().filter(|n| find(n).is_none()).collect();
        if !unknown.is_empty() {
            let known = Topic::ALL.map(Topic::category).join(", ");
            let message = format!("categories: unknown are {unknown:?}; there are {known}");
            return Err(Error::new(Code::InvalidPayload, message));
        }
        let asked = Topics(names.iter().filter_map(find).fold(0, |set, t| set | 1 << t as u8));
        if asked.0 & !all.0 != 0 {
            let message = format!("categories: {} is for admins", Topic::Security.category());
            return Err(Error::new(Code::Forbidden, message));
        }
        Ok(asked)
    }
}

/// Who is told of what guards the gateway; must be short and must not wait.
pub type OnSecurity = Box<dyn Fn(SecurityEvent) + Send + Sync>;

/// Something that guards the gateway has acted (spec: control 9.2, `control.security`).
pub struct SecurityEvent {
    pub agent_id: String,
    pub correlation_id: Option<String>,
    pub payload: Object,
}

impl SecurityEvent {
    /// Tells of what is recorded as `entry`.
    pub fn new(event: &str, entry: &Entry, message: Option<&str>) -> SecurityEvent {
        let payload = Object::new()
            .put("event", event)
            .put("control_type", &entry.control_type)
            .put("role", &entry.role)
            .put("actor_id", &entry.principal)
            .put("peer", &entry.peer)
            .put("result", entry.result)
            .put("correlation_id", &entry.correlation_id)
            .put("error_code", &entry.error_code)
            .put("message", message)
            .put("ts_ms", entry.timestamp_ms);
        SecurityEvent {
            agent_id: entry.agent_id.clone().unwrap_or_default(),
            correlation_id: entry.correlation_id.clone(),
            payload,
        }
    }
}

/// The event that a refusal is; `None` for the code of any other error.
pub fn refusal(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::Forbidden | Code::ProjectPolicyForbidden | Code::ProjectAssignmentForbidden => {
            "forbidden"
        }
        Code::OperatorAuthFailed | Code::NodeAuthFailed | Code::ProjectAuthFailed => {
            "authentication_failed"
        }
        Code::InviteNotFound | Code::InviteRedeemed | Code::InviteExpired => "invite_refused",
        Code::SessionBusy => "session_busy",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn categories_are_read_by_name_and_all_without() {
        let read = |text: &str, admin| Topics::read(&Fields::parse(text).unwrap(), admin);
        assert!(read("{}", true).unwrap().has(Topic::Security));
        let all = read("{}", false).unwrap();
        assert!(Topic::ALL.iter().all(|t| all.has(*t) == (*t != Topic::Security)));
        let one = read(r#"{"categories":["control.reconcile"]}"#, false).unwrap();
        assert!(one.has(Topic::Reconcile) && !one.has(Topic::Topology));
        let e = read(r#"{"categories":["control.reconcile","control.x","y"]}"#, true).unwrap_err();
        assert!(e.code == Code::InvalidPayload && e.message.contains(r#"["control.x", "y"]"#));
        let e = read(r#"{"categories":["control.security"]}"#, false).unwrap_err();
        assert_eq!(e.code, Code::Forbidden);
        assert_eq!(read(r#"{"categories":7}"#, true).unwrap_err().code, Code::InvalidPayload);
    }
}
