//! Where connections come in: which path leads where, who is let in, and how the others are told
//! (spec: control 2).

use super::Gateway;
use super::attempts::Attempts;
use super::client::Client;
use super::guests::Pass;
use super::local::LocalDoor;
use super::metrics;
use super::routed::RoutedDoor;
use super::tunnel::TunnelHandler;
use super::visits::Place;
use crate::base::{Code, id, now_ms};
use crate::config::tokens::{self, Identity};
use crate::control::{Door, Principal, Role};
use crate::net::{Accept, Answer, Conn, Handler, Head, Limits, Message, Response, Service};
use crate::node::{self, FsHandler};
use crate::wire::control;
use std::net::SocketAddr;
use std::sync::Arc;

pub struct Doors {
    gateway: Arc<Gateway>,
    failures: Arc<Attempts>,
    joins: Arc<Attempts>,
}

impl Doors {
    pub fn new(gateway: Arc<Gateway>) -> Doors {
        Doors { gateway, failures: Attempts::new(FAILURES_MAX), joins: Attempts::new(JOINS_MAX) }
    }

    /// Whose bearer token it is.
    fn identity(&self, head: &Head) -> Option<Identity> {
        self.gateway.identify(head.bearer()?)
    }

    fn upgrade(&self, head: &Head, peer: SocketAddr) -> Answer {
        if self.failures.too_many(peer.ip()) {
            return self.too_many(head, peer, FAILED_TOO_OFTEN);
        }
        let gateway = &self.gateway;
        match &*head.path {
            "/" => self.client(head, peer, None),
            "/v2/join" => {
                if self.joins.count(peer.ip()).too_many() {
                    let message = "too many nodes join from this address; wait a little";
                    return self.too_many(head, peer, message);
                }
                let nobody =
                    Principal { role: Role::Nobody, name: "node".into(), badge: String::new() };
                let client = Client::new(gateway.clone(), nobody, Door::Join, None, peer, None);
                accept(client, Limits { max_message: CATALOGUE_MAX, ..Limits::unauthenticated() })
            }
            "/v2/fs" => {
                let pass = self.identity(head).map(|who| Pass::new(who.into())).unwrap_or_default();
                let failed = self.failures.of(peer);
                let door = LocalDoor::new(gateway.clone(), pass.clone(), failed);
                let handler = FsHandler::new(gateway.files.clone(), Arc::new(door));
                accept(gateway.guests.guard(handler, pass), node::limits_before_hello())
            }
            "/v2/node" | "/v2/node/" => {
                accept(TunnelHandler::new(gateway.clone()), Limits::unauthenticated())
            }
            path => match (node_path(path), stream_path(path)) {
                (Some(node_id), _) => {
                    let failed = self.failures.of(peer);
                    let pass = Pass::default();
                    let door = RoutedDoor::new(gateway.clone(), node_id, pass.clone(), failed);
                    let handler = FsHandler::new(gateway.files.clone(), Arc::new(door));
                    accept(gateway.guests.guard(handler, pass), node::limits_before_hello())
                }
                (None, Some(agent_id)) => self.client(head, peer, Some(agent_id)),
                _ => self.refuse(head, peer, Code::InvalidEnvelope, "invalid websocket path"),
            },
        }
    }

    /// A connection of somebody with a token.
    fn client(&self, head: &Head, peer: SocketAddr, agent_id: Option<String>) -> Answer {
        match self.identity(head) {
            Some(identity) => {
                let principal = Principal::from(&identity);
                let gateway = self.gateway.clone();
                let visit = gateway.visits.begin(&principal, peer, place(head));
                let client =
                    Client::new(gateway, principal, Door::Main, agent_id, peer, Some(visit));
                let pass = Pass::new(identity.into());
                accept(self.gateway.guests.guard(client, pass), Limits::default())
            }
            None => self.refused(head, peer),
        }
    }

    fn refused(&self, head: &Head, peer: SocketAddr) -> Answer {
        let _ = self.failures.count(peer.ip());
        self.refuse(head, peer, Code::ProviderAuthFailed, "forbidden")
    }

    fn refuse(&self, head: &Head, peer: SocketAddr, code: Code, message: &'static str) -> Answer {
        self.note(head, peer, code, message);
        refusal(code, message)
    }

    fn too_many(&self, head: &Head, peer: SocketAddr, message: &str) -> Answer {
        self.note(head, peer, Code::LimitExceeded, message);
        http(429, message)
    }

    /// Counts and records a refusal.
    fn note(&self, head: &Head, peer: SocketAddr, code: Code, message: &str) {
        self.gateway.metrics.refused.note(code);
        self.gateway.visits.refused(None, peer, place(head), code, message);
    }

    /// `/metrics` and `/metrics.json`, for admins.
    fn figures(&self, head: &Head, peer: SocketAddr) -> Answer {
        if self.failures.too_many(peer.ip()) {
            return self.too_many(head, peer, FAILED_TOO_OFTEN);
        }
        if self.identity(head).is_some_and(|who| who.role == tokens::Role::Admin) {
            let found = metrics::figures(&self.gateway, &head.path);
            return Answer::Http(found.unwrap_or_else(|| Response::text(404, "not found")));
        }
        let _ = self.failures.count(peer.ip());
        let message = "this is for admins; send their bearer token";
        self.note(head, peer, Code::Forbidden, message);
        let response = Response::text(401, message);
        Answer::Http(response.with_header("WWW-Authenticate", "Bearer"))
    }
}

impl Service for Doors {
    fn request(&self, head: &Head, peer: SocketAddr) -> Answer {
        if head.is_foreign(&self.gateway.config.server.allowed_origins) {
            let message = "pages of this origin may not connect; see server.allowed_origins";
            self.note(head, peer, Code::Forbidden, message);
            return http(403, message);
        }
        if head.is_upgrade() {
            return self.upgrade(head, peer);
        }
        if let Some(health) = metrics::health(&self.gateway, &head.path) {
            return Answer::Http(health);
        }
        match &*head.path {
            "/metrics" | "/metrics.json" => self.figures(head, peer),
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

fn place(head: &Head) -> Place<'_> {
    match is_endpoint(&head.path) || matches!(&*head.path, "/metrics" | "/metrics.json") {
        true => Place::Endpoint(&head.path),
        false => Place::Nowhere,
    }
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

const FAILED_TOO_OFTEN: &str = "too many failed attempts from this address; wait a little";
/// Attempts that an address may fail within a window.
const FAILURES_MAX: u32 = 60;
/// Connections to `/v2/join` from one address within a window; many nodes may stand behind one.
const JOINS_MAX: u32 = 600;
/// Largest message through `/v2/join`: a catalogue of services.
const CATALOGUE_MAX: usize = 512 * 1024;

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
}
