//! `/v2/node` (spec: fs 3.3): a node behind NAT dials in, proves itself with its secret, and then serves
//! its files over that connection.

use super::Gateway;
use super::visits::{Place, Visit};
use crate::base::{Code, Error, Result, now_ms};
use crate::control::{Principal, Role};
use crate::net::{Closed, Conn, Handler, Limits, Message, Mux};
use crate::vfs::remote::Hooks;
use crate::wire::Envelope;
use crate::wire::fs::{
    Call, Event, Failure, Fault, Framing, HelloReply, Op, Reply, Request, frame_tag, text_tag,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Requests in flight on one tunnel.
const INFLIGHT_MAX: usize = 256;

/// A node's connection.
pub struct Tunnel {
    pub mux: Mux,
    conn: Conn,
    hooks: Mutex<Option<Hooks>>,
}

impl Tunnel {
    /// Whom to tell of events and of the end; only the last asked counts.
    pub fn hook(&self, hooks: Hooks) {
        *self.hooks.lock().unwrap_or_else(PoisonError::into_inner) = Some(hooks);
    }

    fn hooks(&self) -> Option<Hooks> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The tunnels that are open, by node.
#[derive(Default)]
pub struct Tunnels(Mutex<HashMap<String, Arc<Tunnel>>>);

impl Tunnels {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Tunnel>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, node_id: &str) -> Option<Arc<Tunnel>> {
        self.lock().get(node_id).cloned()
    }

    /// A new tunnel of a node ends its old one.
    fn open(&self, node_id: &str, tunnel: Arc<Tunnel>) {
        let old = self.lock().insert(node_id.to_owned(), tunnel);
        if let Some(old) = old {
            old.conn.close(None, "");
        }
    }

    /// Ends the tunnels of all nodes but those that `is_known`.
    pub fn retain(&self, is_known: impl Fn(&str) -> bool) {
        for (node_id, tunnel) in self.lock().iter() {
            if !is_known(node_id) {
                tunnel.conn.close(None, "");
            }
        }
    }

    fn close(&self, node_id: &str, tunnel: &Arc<Tunnel>) {
        let mut tunnels = self.lock();
        if tunnels.get(node_id).is_some_and(|t| Arc::ptr_eq(t, tunnel)) {
            tunnels.remove(node_id);
        }
    }
}

pub struct TunnelHandler {
    gateway: Arc<Gateway>,
    open: Option<(String, Arc<Tunnel>)>,
    visit: Option<Visit>,
}

impl TunnelHandler {
    pub fn new(gateway: Arc<Gateway>) -> TunnelHandler {
        TunnelHandler { gateway, open: None, visit: None }
    }

    /// The node that a hello names and proves to be. Errors: as spec: fs 3.3.
    fn authenticate(
        &self,
        request: Result<Request, Fault>,
    ) -> Result<(Option<u32>, String), Fault> {
        let Request { tag, call, .. } = request?;
        let fault = |message: &str| Fault { tag, message: message.into(), close: true };
        let Call::Hello(hello) = call else {
            return Err(fault("acheron.t_fs_hello must be negotiated first"));
        };
        let (node_id, _) = hello.node.ok_or_else(|| fault("MissingField"))?;
        Ok((tag, node_id))
    }

    fn hello(&mut self, conn: &Conn, text: &str) {
        let request = Request::decode_text(text);
        let secret = match &request {
            Ok(Request { call: Call::Hello(h), .. }) => h.node.clone().map(|(_, secret)| secret),
            _ => None,
        };
        let refuse = |tag, e: &Error| {
            let _ = conn.send(Failure::new(tag, e).encode());
            conn.close(None, "");
        };
        let (tag, node_id) = match self.authenticate(request) {
            Ok(named) => named,
            Err(fault) => return refuse(fault.tag, &Error::invalid(fault.message)),
        };
        if let Some((open, _)) = &self.open
            && *open != node_id
        {
            return refuse(tag, &Error::new(Code::Eperm, "node_id mismatch for active tunnel"));
        }
        let state = self.gateway.control.plane.state();
        let Ok(node) = state.node(&node_id) else {
            return refuse(tag, &Error::new(Code::Enoent, "NodeNotFound"));
        };
        if secret.and_then(|s| node.proof(&s, now_ms())).is_none() {
            let (place, code) = (Place::Node(&node_id), Code::NodeAuthFailed);
            let message = "that is not the node's secret";
            self.gateway.visits.refused(None, conn.peer(), place, code, message);
            return refuse(tag, &Error::new(Code::Eperm, "NodeAuthFailed"));
        }
        let reply = Reply::Hello(HelloReply::Tunnel { node_id: node_id.clone() });
        let _ = conn.send(reply.encode(Op::Hello, tag, Framing::Text));
        if self.open.is_none() {
            self.enter(conn, node_id);
        }
    }

    fn enter(&mut self, conn: &Conn, node_id: String) {
        // It has proved who it is: file data may come.
        conn.set_limits(Limits::default());
        let mux = Mux::new(INFLIGHT_MAX, self.gateway.timer.clone());
        mux.attach(conn);
        let tunnel = Arc::new(Tunnel { mux, conn: conn.clone(), hooks: Mutex::default() });
        self.gateway.tunnels.open(&node_id, tunnel.clone());
        self.gateway.nodes.reachable(&node_id);
        log::info!("{node_id} is connected from {}", conn.peer());
        let node = Principal { role: Role::Nobody, name: "node".into(), badge: String::new() };
        self.visit = Some(self.gateway.visits.begin(&node, conn.peer(), Place::Node(&node_id)));
        self.open = Some((node_id, tunnel));
    }
}

impl Handler for TunnelHandler {
    fn message(&mut self, conn: &Conn, message: Message) {
        let tunnel = self.open.as_ref().map(|(_, t)| t.clone());
        match (message, tunnel) {
            (Message::Binary(frame), Some(tunnel)) => {
                if let Some(tag) = frame_tag(&frame) {
                    tunnel.mux.deliver(tag, Message::Binary(frame));
                }
            }
            (Message::Text(text), Some(tunnel)) if !is_hello(&text) => match text_tag(&text) {
                Some(tag) => drop(tunnel.mux.deliver(tag, Message::Text(text))),
                None => announce(&tunnel, &text),
            },
            (Message::Text(text), _) => self.hello(conn, &text),
            (Message::Binary(_), None) => conn.close(Some(1003), "hello first"),
        }
    }

    fn closed(&mut self, _: &Conn, reason: &Closed) {
        let Some((node_id, tunnel)) = self.open.take() else { return };
        self.gateway.tunnels.close(&node_id, &tunnel);
        self.visit = None;
        tunnel.mux.lose(reason);
        if let Some(hooks) = tunnel.hooks() {
            (hooks.lost)(&reason.error());
        }
        log::info!("{node_id} is disconnected: {}", reason.error());
    }
}

/// A hello may be repeated (spec: fs 3.3); everything else that a node sends answers the gateway.
fn is_hello(text: &str) -> bool {
    text.len() < 4096 && text.contains("\"acheron.t_fs_hello\"")
}

fn announce(tunnel: &Tunnel, text: &str) {
    if let Ok(envelope) = Envelope::parse(text)
        && let Some(event) = Event::decode(&envelope)
        && let Some(hooks) = tunnel.hooks()
    {
        (hooks.event)(event);
    }
}
