//! Where connections come in: which path leads where, who is let in, and how the others are told
//! (spec: control 2).

use super::Gateway;
use super::client::Client;
use super::local::LocalDoor;
use super::routed::RoutedDoor;
use super::tunnel::TunnelHandler;
use crate::base::{Code, id, now_ms};
use crate::control::{Door, Principal, Role};
use crate::net::{Accept, Answer, Conn, Handler, Head, Limits, Message, Response, Service};
use crate::node::{self, FsHandler};
use crate::wire::control;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub struct Doors {
    gateway: Arc<Gateway>,
    failures: Failures,
}

impl Doors {
    pub fn new(gateway: Arc<Gateway>) -> Doors {
        Doors { gateway, failures: Failures::default() }
    }

    /// The role that a bearer token gives.
    fn principal(&self, head: &Head) -> Option<Principal> {
        let token = head.bearer()?;
        self.gateway.principal(token)
    }

    fn upgrade(&self, head: &Head, peer: IpAddr) -> Answer {
        if self.failures.too_many(peer) {
            return http(429, "too many failed attempts from this address; wait a little");
        }
        let gateway = &self.gateway;
        let mut limits = Limits::default();
        let mut files = |door: Arc<dyn node::Door>| {
            limits = node::limits_before_hello();
            Box::new(FsHandler::new(gateway.files.clone(), door))
        };
        let handler: Box<dyn Handler> = match &*head.path {
            "/" => match self.principal(head) {
                Some(principal) => {
                    Box::new(Client::new(gateway.clone(), principal, Door::Main, None))
                }
                None => return self.refused(peer),
            },
            "/v2/join" => {
                self.failures.count(peer);
                let nobody = Principal { role: Role::Nobody, name: "node".into() };
                Box::new(Client::new(gateway.clone(), nobody, Door::Join, None))
            }
            "/v2/fs" => {
                let principal = self.principal(head);
                files(Arc::new(LocalDoor::new(gateway.clone(), principal)))
            }
            "/v2/node" | "/v2/node/" => Box::new(TunnelHandler::new(gateway.clone())),
            path => match (node_path(path), stream_path(path)) {
                (Some(node_id), _) => files(Arc::new(RoutedDoor::new(gateway.clone(), node_id))),
                (None, Some(agent_id)) => match self.principal(head) {
                    Some(principal) => Box::new(Client::new(
                        gateway.clone(),
                        principal,
                        Door::Main,
                        Some(agent_id),
                    )),
                    None => return self.refused(peer),
                },
                _ => return refuse(Code::InvalidEnvelope, "invalid websocket path"),
            },
        };
        Answer::Upgrade(Accept { handler, limits })
    }

    fn refused(&self, peer: IpAddr) -> Answer {
        self.failures.count(peer);
        refuse(Code::ProviderAuthFailed, "forbidden")
    }
}

impl Service for Doors {
    fn request(&self, head: &Head, peer: SocketAddr) -> Answer {
        if head.is_foreign(&self.gateway.config.server.allowed_origins) {
            return http(403, "pages of this origin may not connect; see server.allowed_origins");
        }
        if head.is_upgrade() {
            return self.upgrade(head, peer.ip());
        }
        match &*head.path {
            "/livez" => http(200, "ok"),
            "/readyz" if self.gateway.is_ready() => http(200, "ready"),
            "/readyz" => http(503, "not ready"),
            path if is_endpoint(path) => {
                let response =
                    Response::text(426, "this is a WebSocket endpoint; ask for an upgrade\n");
                Answer::Http(response.with_header("Upgrade", "websocket"))
            }
            _ => http(404, "not found"),
        }
    }
}

fn http(status: u16, text: &str) -> Answer {
    Answer::Http(Response::text(status, format!("{text}\n")))
}

fn is_endpoint(path: &str) -> bool {
    matches!(path, "/" | "/v2/join" | "/v2/fs" | "/v2/node" | "/v2/node/")
        || node_path(path).is_some()
        || stream_path(path).is_some()
}

/// The node of `/v2/fs/node/<node_id>`.
fn node_path(path: &str) -> Option<String> {
    let id = path.strip_prefix("/v2/fs/node/")?;
    id::is_identifier(id, 128).then(|| id.to_owned())
}

/// The agent of `/v1/agents/<agent>/stream` (design: ZiggyStarClaw).
fn stream_path(path: &str) -> Option<String> {
    let id = path.strip_prefix("/v1/agents/")?.strip_suffix("/stream")?;
    id::is_identifier(id, 64).then(|| id.to_owned())
}

/// Old clients read the refusal from a frame behind the 101, then a close (spec: control 2.2).
fn refuse(code: Code, message: &'static str) -> Answer {
    struct Refusal(Code, &'static str);
    impl Handler for Refusal {
        fn open(&mut self, conn: &Conn) {
            let _ = conn.send(control::refusal(self.0, self.1, now_ms()).into());
            conn.close(None, "");
        }
        fn message(&mut self, _: &Conn, _: Message) {}
    }
    Answer::Upgrade(Accept {
        handler: Box::new(Refusal(code, message)),
        limits: Limits::unauthenticated(),
    })
}

/// Failed attempts by address, so that tokens cannot be guessed at speed.
#[derive(Default)]
struct Failures(Mutex<HashMap<IpAddr, (u32, Instant)>>);

/// Attempts that an address may fail within a window.
const FAILURES_MAX: u32 = 60;
const FAILURE_WINDOW: Duration = Duration::from_secs(10);
/// Addresses remembered.
const ADDRESSES_MAX: usize = 4096;

impl Failures {
    fn count(&self, peer: IpAddr) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= ADDRESSES_MAX {
            seen.retain(|_, (_, since)| since.elapsed() < FAILURE_WINDOW);
        }
        if seen.len() < ADDRESSES_MAX || seen.contains_key(&peer) {
            let entry = seen.entry(peer).or_insert((0, Instant::now()));
            if entry.1.elapsed() >= FAILURE_WINDOW {
                *entry = (0, Instant::now());
            }
            entry.0 += 1;
        }
    }

    fn too_many(&self, peer: IpAddr) -> bool {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&peer)
            .is_some_and(|(n, since)| *n > FAILURES_MAX && since.elapsed() < FAILURE_WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_where_they_are_documented_to() {
        assert_eq!(node_path("/v2/fs/node/node-1").as_deref(), Some("node-1"));
        assert_eq!(node_path("/v2/fs/node/a/b"), None);
        assert_eq!(stream_path("/v1/agents/test/stream").as_deref(), Some("test"));
        assert!(!is_endpoint("/v2/agents/default/stream") && is_endpoint("/v2/join"));
    }

    #[test]
    fn an_address_that_keeps_failing_is_kept_out_for_a_while() {
        let failures = Failures::default();
        let (a, b) = ([127, 0, 0, 1].into(), [127, 0, 0, 2].into());
        (0..=FAILURES_MAX).for_each(|_| failures.count(a));
        assert!(failures.too_many(a) && !failures.too_many(b));
    }
}
