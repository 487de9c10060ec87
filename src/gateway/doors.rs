//! Where connections come in: which path leads where, who is let in, and how the others are told
//! (spec: control 2).

use super::Gateway;
use super::client::Client;
use super::local::LocalDoor;
use super::metrics;
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
    failures: Attempts,
    joins: Attempts,
}

impl Doors {
    pub fn new(gateway: Arc<Gateway>) -> Doors {
        Doors { gateway, failures: Attempts::new(FAILURES_MAX), joins: Attempts::new(JOINS_MAX) }
    }

    /// The role that a bearer token gives.
    fn principal(&self, head: &Head) -> Option<Principal> {
        let token = head.bearer()?;
        self.gateway.principal(token)
    }

    fn upgrade(&self, head: &Head, peer: IpAddr) -> Answer {
        if self.failures.too_many(peer) {
            return self.too_many("too many failed attempts from this address; wait a little");
        }
        let gateway = &self.gateway;
        let files = |door: Arc<dyn node::Door>| {
            let handler = FsHandler::new(gateway.files.clone(), door);
            accept(handler, node::limits_before_hello())
        };
        match &*head.path {
            "/" => self.client(head, peer, None),
            "/v2/join" => {
                if self.joins.count(peer).too_many() {
                    return self.too_many("too many nodes join from this address; wait a little");
                }
                let nobody = Principal { role: Role::Nobody, name: "node".into() };
                let client = Client::new(gateway.clone(), nobody, Door::Join, None);
                accept(client, Limits { max_message: CATALOGUE_MAX, ..Limits::unauthenticated() })
            }
            "/v2/fs" => {
                let principal = self.principal(head);
                files(Arc::new(LocalDoor::new(gateway.clone(), principal)))
            }
            "/v2/node" | "/v2/node/" => {
                accept(TunnelHandler::new(gateway.clone()), Limits::unauthenticated())
            }
            path => match (node_path(path), stream_path(path)) {
                (Some(node_id), _) => files(Arc::new(RoutedDoor::new(gateway.clone(), node_id))),
                (None, Some(agent_id)) => self.client(head, peer, Some(agent_id)),
                _ => self.refuse(Code::InvalidEnvelope, "invalid websocket path"),
            },
        }
    }

    /// A connection of somebody with a token.
    fn client(&self, head: &Head, peer: IpAddr, agent_id: Option<String>) -> Answer {
        match self.principal(head) {
            Some(principal) => {
                let client = Client::new(self.gateway.clone(), principal, Door::Main, agent_id);
                accept(client, Limits::default())
            }
            None => self.refused(peer),
        }
    }

    fn refused(&self, peer: IpAddr) -> Answer {
        let _ = self.failures.count(peer);
        self.refuse(Code::ProviderAuthFailed, "forbidden")
    }

    fn refuse(&self, code: Code, message: &'static str) -> Answer {
        self.gateway.metrics.refused.note(code);
        refusal(code, message)
    }

    fn too_many(&self, message: &str) -> Answer {
        self.gateway.metrics.refused.note(Code::LimitExceeded);
        http(429, message)
    }

    /// `/metrics` and `/metrics.json`, for admins.
    fn figures(&self, head: &Head, peer: IpAddr) -> Answer {
        if self.failures.too_many(peer) {
            return self.too_many("too many failed attempts from this address; wait a little");
        }
        if self.principal(head).is_some_and(|p| p.role == Role::Admin) {
            let found = metrics::figures(&self.gateway, &head.path);
            return Answer::Http(found.unwrap_or_else(|| Response::text(404, "not found")));
        }
        let _ = self.failures.count(peer);
        self.gateway.metrics.refused.note(Code::Forbidden);
        let response = Response::text(401, "this is for admins; send their bearer token");
        Answer::Http(response.with_header("WWW-Authenticate", "Bearer"))
    }
}

impl Service for Doors {
    fn request(&self, head: &Head, peer: SocketAddr) -> Answer {
        if head.is_foreign(&self.gateway.config.server.allowed_origins) {
            self.gateway.metrics.refused.note(Code::Forbidden);
            return http(403, "pages of this origin may not connect; see server.allowed_origins");
        }
        if head.is_upgrade() {
            return self.upgrade(head, peer.ip());
        }
        if let Some(health) = metrics::health(&self.gateway, &head.path) {
            return Answer::Http(health);
        }
        match &*head.path {
            "/metrics" | "/metrics.json" => self.figures(head, peer.ip()),
            path if is_endpoint(path) => {
                let response =
                    Response::text(426, "this is a WebSocket endpoint; ask for an upgrade");
                Answer::Http(response.with_header("Upgrade", "websocket"))
            }
            _ => http(404, "not found"),
        }
    }
}

fn http(status: u16, text: &str) -> Answer {
    Answer::Http(Response::text(status, text))
}

fn is_endpoint(path: &str) -> bool {
    matches!(path, "/" | "/v2/join" | "/v2/fs" | "/v2/node" | "/v2/node/")
        || node_path(path).is_some()
        || stream_path(path).is_some()
}

fn accept(handler: impl Handler + 'static, limits: Limits) -> Answer {
    Answer::Upgrade(Accept { handler: Box::new(handler), limits })
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
fn refusal(code: Code, message: &'static str) -> Answer {
    struct Refusal(Code, &'static str);
    impl Handler for Refusal {
        fn open(&mut self, conn: &Conn) {
            let _ = conn.send(control::refusal(self.0, self.1, now_ms()));
            conn.close(None, "");
        }
        fn message(&mut self, _: &Conn, _: Message) {}
    }
    accept(Refusal(code, message), Limits::unauthenticated())
}

/// Attempts by address, so that tokens cannot be guessed, nor the plane filled, at speed.
struct Attempts {
    max: u32,
    seen: Mutex<HashMap<IpAddr, (u32, Instant)>>,
}

/// Attempts that an address may fail within a window.
const FAILURES_MAX: u32 = 60;
/// Connections to `/v2/join` from one address within a window; many nodes may stand behind one.
const JOINS_MAX: u32 = 600;
const WINDOW: Duration = Duration::from_secs(10);
/// Addresses remembered.
const ADDRESSES_MAX: usize = 4096;
/// Largest message through `/v2/join`: a catalogue of services.
const CATALOGUE_MAX: usize = 512 * 1024;

/// What a count came to.
#[must_use]
struct Counted(bool);

impl Counted {
    fn too_many(self) -> bool {
        self.0
    }
}

impl Attempts {
    fn new(max: u32) -> Attempts {
        Attempts { max, seen: Mutex::default() }
    }

    fn count(&self, peer: IpAddr) -> Counted {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= ADDRESSES_MAX {
            seen.retain(|_, (_, since)| since.elapsed() < WINDOW);
        }
        if seen.len() >= ADDRESSES_MAX && !seen.contains_key(&peer) {
            return Counted(true);
        }
        let entry = seen.entry(peer).or_insert((0, Instant::now()));
        if entry.1.elapsed() >= WINDOW {
            *entry = (0, Instant::now());
        }
        entry.0 += 1;
        Counted(entry.0 > self.max)
    }

    fn too_many(&self, peer: IpAddr) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&peer).is_some_and(|(n, since)| *n > self.max && since.elapsed() < WINDOW)
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
        let attempts = Attempts::new(3);
        let (a, b) = ([127, 0, 0, 1].into(), [127, 0, 0, 2].into());
        assert!((0..3).all(|_| !attempts.count(a).too_many()) && attempts.count(a).too_many());
        assert!(attempts.too_many(a) && !attempts.too_many(b));
    }
}
