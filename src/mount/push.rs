//! Hearing of changes of a workspace at once: a second control connection, on which the gateway is asked to
//! tell them (spec: fs 18). It applies nothing; a gateway that tells nothing is still asked now and then.

use super::workspace::{Gateway, is_refusal};
use crate::base::{Cancel, Code, Deadline, Notify, Result};
use crate::net::{Control, Net, Text};
use crate::wire::Fields;
use crate::wire::control::REPLY_TIMEOUT_MS;
use std::sync::Arc;

/// After a connection that failed, and after a gateway that does not know the request, or refuses it.
const RETRY_MS: u64 = 1_000;
const REFUSED_MS: u64 = 60_000;
/// All that is asked for. Gateways that know no categories tell of more.
const TOPICS: [&str; 1] = ["control.workspace_topology"];

/// Notifies `changed` when the gateway says that the workspace has changed, and after every connection,
/// for what was missed before it. Returns when `ended` is cancelled.
pub fn listen(net: &Net, gateway: &Gateway, changed: &Notify, ended: &Cancel) {
    while !ended.is_cancelled() {
        let pause_ms = match subscribed(net, gateway, changed, ended) {
            Ok(()) => RETRY_MS,
            Err(e) => {
                log::debug!("changes of the workspace are not told: {e}");
                match e.code {
                    Code::Unsupported | Code::UnsupportedLegacyApi => REFUSED_MS,
                    code if is_refusal(code) => REFUSED_MS,
                    _ => RETRY_MS,
                }
            }
        };
        let pause = Notify::default();
        let _ =
            pause.wait(pause.seen(), Deadline::after_ms(pause_ms)).block(Deadline::never(), ended);
    }
}

/// One connection, until it is lost.
fn subscribed(net: &Net, gateway: &Gateway, changed: &Notify, ended: &Cancel) -> Result<()> {
    let lost = Notify::default();
    let seen = lost.seen();
    let (tell, tell_lost) = (changed.clone(), lost.clone());
    let project_id = gateway.project_id.clone();
    let hear = move |frame: Option<&Text>| match frame {
        Some(text) if concerns(text, project_id.as_deref()) => tell.notify(),
        Some(_) => {}
        None => tell_lost.notify(),
    };
    let deadline = Deadline::after_ms(REPLY_TIMEOUT_MS);
    let url = gateway.url.clone().or_path("/");
    let bearer = gateway.bearer.clone();
    let ids = "fs-mount-push";
    let control = Control::open_hearing(net, &url, bearer, ids, deadline, ended, Arc::new(hear))?;
    let payload = gateway.project().put("categories", TOPICS).finish();
    control.call("debug_subscribe", &payload, deadline, ended)?;
    changed.notify();
    lost.wait(seen, Deadline::never()).block(Deadline::never(), ended)
}

/// Whether an event is about the mounts of a workspace: that of `project_id`, or of any project where
/// nothing is said of either.
fn concerns(frame: &str, project_id: Option<&str>) -> bool {
    let Ok(f) = Fields::parse(frame) else { return false };
    let category = f.str("category").ok().flatten().unwrap_or_default();
    if !matches!(&*category, "control.workspace_topology" | "control.workspace_topology_delta") {
        return false;
    }
    let payload = f.object("payload").ok().flatten().unwrap_or_default();
    let status = payload.object("status").ok().flatten().unwrap_or_default();
    let of = |f: &Fields<'_>| f.string("project_id").ok().flatten();
    match (of(&payload).or_else(|| of(&status)), project_id) {
        (Some(told), Some(wanted)) => told == wanted,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_other_projects_and_of_other_things_are_passed_over() {
        let event = |category: &str, payload: &str| {
            format!(r#"{{"type":"debug.event","category":"{category}","payload":{payload}}}"#)
        };
        let topology = "control.workspace_topology";
        assert!(concerns(&event(topology, "{}"), Some("proj-1")));
        assert!(concerns(&event(topology, r#"{"project_id":"proj-1"}"#), Some("proj-1")));
        assert!(concerns(&event(topology, r#"{"project_id":"proj-1"}"#), None));
        assert!(!concerns(&event(topology, r#"{"project_id":"proj-2"}"#), Some("proj-1")));
        let delta = event("control.workspace_topology_delta", r#"{"status":{"project_id":"p"}}"#);
        assert!(concerns(&delta, Some("p")) && !concerns(&delta, Some("q")));
        assert!(!concerns(&event("control.reconcile", "{}"), None));
        assert!(!concerns("nonsense", None) && !concerns("{}", None));
    }
}
