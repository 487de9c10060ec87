//! A node that belongs to a gateway (spec: fs 13). Two threads: one joins, publishes what the node has
//! and keeps its lease; the other keeps the tunnel through which the gateway asks for files.

mod backoff;
mod gateway;
mod state;
mod tunnel;

pub use backoff::Backoff;
pub use gateway::Way;
pub use state::{lock as lock_state, secret_in};

use super::services::{Files, Services};
use super::{Door, Server};
use crate::base::{Cancel, Code, Deadline, Error, Notify, Result, ResultExt};
use crate::net::{Conn, Net};
use crate::wire::control::{Joined, Platform};
use crate::wire::{Fields, Object};
use gateway::{Control, nonsense, read_joined};
use state::{Identity, NodeState};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tunnel::Tunnel;

/// Time for one attempt to connect to the gateway.
const DIAL_TIMEOUT_MS: u64 = 8_000;

/// How a node becomes a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// With a token that an admin has made; it is good for one node.
    Invite(String),
    /// By asking, and waiting for an admin to approve.
    Request,
}

#[derive(Clone)]
pub struct Membership {
    pub way: Way,
    pub pairing: Pairing,
    /// Where others reach this node; by default over the gateway.
    pub fs_url: Option<String>,
    pub state_file: PathBuf,
    pub lease_ttl_ms: u64,
    pub refresh_interval_ms: u64,
    pub backoff: Backoff,
    /// Publish the exports as the service `fs`.
    pub fs_service: bool,
    pub labels: BTreeMap<String, String>,
    /// Approves this node's own request to join, together with the token in `way`.
    pub operator_token: Option<String>,
}

/// What the node is and serves.
pub struct Served {
    pub name: String,
    pub net: Arc<Net>,
    pub server: Arc<Server>,
    pub door: Arc<dyn Door>,
    pub services: Arc<Services>,
    /// What the service `fs` is, if there is to be one.
    pub files: Option<Files>,
}

/// A member that runs.
pub struct Daemon {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    membership: Membership,
    served: Served,
    state: Mutex<NodeState>,
    /// Notified when the identity or the services change.
    changed: Notify,
    tunnel: Mutex<Option<Conn>>,
    /// The gateway has once refused an identity that this node had.
    disowned: AtomicBool,
    stop: Cancel,
}

impl Daemon {
    /// The state file is locked. Errors: `invalid_config` when it cannot be read; it cannot be written.
    pub fn start(membership: Membership, served: Served) -> Result<Daemon> {
        let state = NodeState::load(&membership.state_file)?;
        // An invite is good for one node: better to learn now that its answer cannot be kept.
        state.save(&membership.state_file).context("--state-file")?;
        if let Some(identity) = state.identity() {
            log::info!("this is {}, by {}", identity.node_id, membership.state_file.display());
        }
        let shared = Arc::new(Shared {
            changed: served.services.changed().clone(),
            membership,
            served,
            state: Mutex::new(state),
            tunnel: Mutex::default(),
            disowned: AtomicBool::new(false),
            stop: Cancel::new(),
        });
        let run = |name: &str, job: fn(&Shared)| {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(name.into());
            thread.spawn(move || job(&shared)).context("node thread")
        };
        let threads =
            vec![run("node-lease", Shared::keep_lease)?, run("node-tunnel", Shared::keep_tunnel)?];
        Ok(Daemon { shared, threads })
    }

    /// Tells the threads to end; the connections end with the [`Net`].
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }

    pub fn join(self) {
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, NodeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tunnel(&self) -> MutexGuard<'_, Option<Conn>> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, next: NodeState) {
        let mut state = self.state();
        let renamed = state.identity() != next.identity();
        if let Err(e) = next.save(&self.membership.state_file) {
            log::error!("what this node is cannot be kept: {e}");
        }
        *state = next;
        drop(state);
        if renamed {
            self.changed.notify();
        }
    }

    /// Waits until `ms` have passed, the identity has changed since `seen`, or the node is stopped.
    fn pause(&self, seen: u64, ms: u64) {
        let wait = self.changed.wait(seen, Deadline::after_ms(ms));
        let _ = wait.block(Deadline::never(), &self.stop);
    }

    fn routed_url(&self, node_id: &str) -> String {
        let routed = self.membership.way.url.clone().with_path(&format!("/v2/fs/node/{node_id}"));
        self.membership.fs_url.clone().unwrap_or_else(|| routed.to_string())
    }

    fn keep_lease(&self) {
        let mut member = Member {
            shared: self,
            pairing: self.membership.pairing.clone(),
            told: None,
            refresh_at: Deadline::after_ms(0),
        };
        let mut failures = 0;
        while !self.stop.is_cancelled() {
            let seen = self.changed.seen();
            let ms = match member.advance() {
                Ok(ms) => {
                    failures = 0;
                    ms
                }
                Err(_) if self.stop.is_cancelled() => return,
                Err(e) => {
                    failures += 1;
                    let ms = self.membership.backoff.after_ms(failures);
                    log::warn!("{e} ({}); trying again in {ms} ms", e.code.wire());
                    ms
                }
            };
            self.pause(seen, ms);
        }
    }

    /// The gateway does not take this identity: forget it, and join anew.
    fn disown(&self, identity: &Identity, why: &Error) {
        if self.state().identity().as_ref() != Some(identity) {
            return;
        }
        log::warn!(
            "the gateway does not know this node as {}: {why}; joining anew",
            identity.node_id
        );
        self.disowned.store(true, Ordering::Release);
        self.set(NodeState::default());
        if let Some(conn) = self.tunnel().take() {
            conn.close(None, "");
        }
    }

    fn keep_tunnel(&self) {
        let Membership { way, backoff, .. } = &self.membership;
        let url = way.url.clone().with_path("/v2/node");
        let Served { net, server, door, .. } = &self.served;
        let mut failures = 0;
        while !self.stop.is_cancelled() {
            let seen = self.changed.seen();
            let Some(identity) = self.state().identity() else {
                let _ =
                    self.changed.wait(seen, Deadline::never()).block(Deadline::never(), &self.stop);
                continue;
            };
            let mut worked = false;
            let why = match Tunnel::open(net, &url, way.token.as_deref(), &identity, server, door) {
                Ok(tunnel) => {
                    failures = 0;
                    let proven = Deadline::after_ms(backoff.base_ms);
                    log::info!("serving files at {}", self.routed_url(&identity.node_id));
                    *self.tunnel() = Some(tunnel.conn.clone());
                    let why = tunnel.wait();
                    *self.tunnel() = None;
                    worked = proven.passed();
                    why
                }
                Err(e) => e,
            };
            if self.stop.is_cancelled() {
                return;
            }
            if tunnel::is_unknown(&why) {
                self.disown(&identity, &why);
                continue;
            }
            // One that has worked for a while is made again at once.
            failures += u32::from(!worked);
            let ms = if worked { 0 } else { backoff.after_ms(failures) };
            log::warn!("no tunnel to the gateway: {why}; trying again in {ms} ms");
            self.pause(seen, ms);
        }
    }
}

/// The thread that joins and keeps the lease.
struct Member<'a> {
    shared: &'a Shared,
    pairing: Pairing,
    /// The services that the gateway was told last, and of which node.
    told: Option<(String, String)>,
    refresh_at: Deadline,
}

impl<'a> Member<'a> {
    /// One step, and after how many milliseconds to take the next.
    fn advance(&mut self) -> Result<u64> {
        let identity = self.shared.state().identity();
        match identity {
            Some(identity) => self.refresh(&identity),
            None => match self.pairing.clone() {
                Pairing::Invite(token) => self.redeem(&token),
                Pairing::Request => self.ask(),
            },
        }
    }

    fn open(&self) -> Result<Control<'a>> {
        let shared = self.shared;
        Control::open(&shared.served.net, &shared.membership.way, &shared.stop)
    }

    fn joined(&self, joined: Joined) {
        log::info!("joined as {}", joined.node_id);
        self.shared.set(NodeState::joined(joined));
    }

    fn redeem(&mut self, token: &str) -> Result<u64> {
        let m = &self.shared.membership;
        let payload = Object::new()
            .put("invite_token", token)
            .put("node_name", &self.shared.served.name)
            .put("fs_url", m.fs_url.as_deref().unwrap_or_default())
            .put("lease_ttl_ms", m.lease_ttl_ms);
        match self.open()?.join("node_join", payload) {
            Ok(joined) => {
                self.joined(joined);
                Ok(0)
            }
            Err(e) if self.shared.disowned.load(Ordering::Acquire) && is_spent(&e) => {
                log::warn!("{e} ({}); asking to join instead", e.code.wire());
                self.pairing = Pairing::Request;
                Ok(0)
            }
            Err(e) if is_spent(&e) => Err(e.context("the gateway refuses --invite-token")),
            Err(e) => Err(e.context("joining")),
        }
    }

    /// Asks to join, or what became of that.
    fn ask(&mut self) -> Result<u64> {
        let poll_ms = self.shared.membership.backoff.base_ms;
        let request = self.shared.state().request();
        let Some((request_id, claim)) = request else {
            self.ask_first()?;
            let approves = self.shared.membership.operator_token.is_some();
            return Ok(if approves { 0 } else { poll_ms });
        };
        let payload = Object::new().put("request_id", &request_id).put("claim_token", claim);
        let name = "node_join_request";
        let reply = match self.open()?.call(name, payload) {
            Err(e) if e.code == Code::PendingJoinNotFound => {
                log::warn!("{request_id} was denied or has expired; asking again");
                self.shared.set(NodeState::default());
                return Ok(poll_ms);
            }
            reply => reply.context("joining")?,
        };
        let fields = Fields::parse(&reply).map_err(|_| nonsense(name, "has no payload"))?;
        match fields.str("state")?.as_deref() {
            Some("pending") if self.shared.membership.operator_token.is_some() => {
                self.joined(self.approve(&request_id)?);
            }
            Some("pending") => return Ok(poll_ms),
            Some("approved") => self.joined(read_joined(name, &reply)?),
            _ => return Err(nonsense(name, "does not say what became of the request")),
        }
        Ok(0)
    }

    /// Approves the node's own request, as old nodes do (spec: fs 13.3).
    fn approve(&self, request_id: &str) -> Result<Joined> {
        let m = &self.shared.membership;
        let payload = Object::new()
            .put("request_id", request_id)
            .put("lease_ttl_ms", m.lease_ttl_ms)
            .put_some("operator_token", m.operator_token.as_deref());
        self.open()?.join("node_join_approve", payload).context("approving with --operator-token")
    }

    fn ask_first(&self) -> Result<()> {
        let m = &self.shared.membership;
        let name = "node_join_request";
        let payload = Object::new()
            .put("node_name", &self.shared.served.name)
            .put("fs_url", m.fs_url.as_deref().unwrap_or_default())
            .put("platform", Platform::here());
        let reply = self.open()?.call(name, payload).context("asking to join")?;
        let fields = Fields::parse(&reply).map_err(|_| nonsense(name, "has no payload"))?;
        let (request_id, claim) = (fields.string("request_id")?, fields.string("claim_token")?);
        let (Some(request_id), Some(claim)) = (request_id.clone(), claim) else {
            // A gateway that knows no claims tells the credentials to whoever approves.
            if let Some(request_id) = request_id.filter(|_| m.operator_token.is_some()) {
                self.joined(self.approve(&request_id)?);
                return Ok(());
            }
            return Err(nonsense(
                name,
                "has no claim_token; join such a gateway with --invite-token",
            ));
        };
        log::info!(
            "asked to join as {request_id}; an admin lets this node in with: \
             spiderweb-control node_join_approve '{{\"request_id\":\"{request_id}\"}}'"
        );
        self.shared.set(NodeState {
            request_id: Some(request_id),
            claim_token: Some(claim),
            ..NodeState::default()
        });
        Ok(())
    }

    /// Refreshes the lease when that is due, and tells the gateway what is new.
    fn refresh(&mut self, identity: &Identity) -> Result<u64> {
        let outcome = self.try_refresh(identity);
        if let Err(e) = &outcome
            && matches!(e.code, Code::NodeNotFound | Code::NodeAuthFailed)
        {
            self.shared.disown(identity, e);
            return Ok(0);
        }
        outcome?;
        Ok(self.refresh_at.left().as_millis() as u64 + 1)
    }

    fn try_refresh(&mut self, identity: &Identity) -> Result<()> {
        let shared = self.shared;
        let services = shared.served.services.catalogue(&identity.node_id, shared.served.files);
        let known = self.told.as_ref().is_some_and(|(node_id, _)| *node_id == identity.node_id);
        let now = Some((identity.node_id.clone(), services));
        let is_due = !known || self.refresh_at.passed();
        if !is_due && self.told == now {
            return Ok(());
        }
        let control = self.open().context("keeping the lease")?;
        if is_due {
            self.refresh_lease(identity, &control).context("keeping the lease")?;
        }
        if let Some((_, services)) = now.as_ref().filter(|_| self.told != now) {
            let upsert = shared.upsert(identity, services);
            control.call("node_service_upsert", upsert).context("publishing the services")?;
            self.told = now;
        }
        Ok(())
    }

    fn refresh_lease(&mut self, identity: &Identity, control: &Control<'_>) -> Result<()> {
        let shared = self.shared;
        let payload = Object::new()
            .put("node_id", &identity.node_id)
            .put("node_secret", &identity.secret)
            .put("fs_url", shared.routed_url(&identity.node_id))
            .put("lease_ttl_ms", shared.membership.lease_ttl_ms);
        let joined = control.join("node_lease_refresh", payload)?;
        self.refresh_at = Deadline::after_ms(shared.membership.refresh_interval_ms);
        if joined.node_id != identity.node_id {
            log::warn!("the gateway answered with the credentials of another node; ignored");
            return Ok(());
        }
        if joined.node_secret != identity.secret {
            log::info!("the gateway has given this node another secret");
        }
        // Nothing is kept of an identity that was refused meanwhile.
        if shared.state().identity().as_ref() == Some(identity) {
            shared.set(NodeState::joined(joined));
        }
        Ok(())
    }
}

impl Shared {
    /// What the node has (spec: fs 14.1). `services` is a JSON array.
    fn upsert(&self, identity: &Identity, services: &str) -> Object {
        let labels = &self.membership.labels;
        let o = Object::new()
            .put("node_id", &identity.node_id)
            .put("node_secret", &identity.secret)
            .put("platform", Platform::here());
        let o = if labels.is_empty() { o } else { o.put("labels", labels) };
        o.raw("services", services)
    }
}

/// True where an invite will never be good again.
fn is_spent(e: &Error) -> bool {
    matches!(e.code, Code::InviteNotFound | Code::InviteExpired | Code::InviteRedeemed)
}
