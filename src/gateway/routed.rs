//! `/v2/fs/node/<node_id>` (spec: fs 3.3): a node's files through the gateway. The client talks to the
//! gateway's own server, whose exports are the node's: so each side negotiates, owns handles and is
//! disconnected by itself.

use super::guests::Pass;
use super::nodes::Nodes;
use super::visits::{Place, Visit};
use super::{Gateway, attempts};
use crate::base::{Cancel, Code, Deadline, Error, Pool, Result, now_ms};
use crate::control::{Principal, Role};
use crate::node::{Door, Entry, Export, Exports};
use crate::vfs::remote::{Link, Peer, Which};
use crate::vfs::{Watch, Who};
use crate::wire::fs::{self, Event, Grant, Hello};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

/// Time to reach the node for a hello, or to ask it for its exports.
const REACH_MS: u64 = 10_000;

pub struct RoutedDoor {
    gateway: Arc<Gateway>,
    node_id: String,
    /// By whose token the client came, once he has shown a grant that was made for that.
    pass: Pass,
    failed: attempts::Peer,
    visit: OnceLock<Visit>,
}

impl RoutedDoor {
    pub fn new(
        gateway: Arc<Gateway>,
        node_id: String,
        pass: Pass,
        failed: attempts::Peer,
    ) -> RoutedDoor {
        RoutedDoor { gateway, node_id, pass, failed, visit: OnceLock::new() }
    }
}

impl Door for RoutedDoor {
    fn enter(&self, hello: &Hello) -> Result<Entry> {
        let token = hello
            .auth_token
            .as_ref()
            .ok_or_else(|| Error::new(Code::Eperm, "missing auth_token in fs hello payload"))?;
        let grant = self.admit(token)?;
        let relayed = self.gateway.nodes.relayed(&self.node_id);
        let link = relayed
            .refresh()
            .map_err(|e| Error::new(Code::Eio, format!("node tunnel is unavailable: {e}")))?;
        let (exports, name) = (&relayed.exports, link.name.clone());
        let entry = match grant {
            Some(grant) => Entry::granted(exports, grant, name),
            None => {
                let who = Who { principal: "node-client".into(), ..Who::default() };
                Entry { exports: exports.clone(), who, name, expires_at_s: None }
            }
        };
        let name = entry.who.principal.clone();
        let principal = Principal { role: Role::Nobody, name, badge: String::new() };
        let (addr, place) = (self.failed.addr, Place::Node(&self.node_id));
        self.visit.get_or_init(|| self.gateway.visits.begin(&principal, addr, place));
        Ok(entry)
    }
}

impl RoutedDoor {
    /// Whoever knows the node's secret comes in, and whoever has a grant made with it: that is returned. One that
    /// the gateway has made counts as long as the token for whose bearer it was. Errors: EPERM.
    fn admit(&self, token: &str) -> Result<Option<Grant>> {
        let state = self.gateway.control.plane.state();
        let wrong = || Error::new(Code::Eperm, "AuthFailed");
        let node = state.node(&self.node_id).map_err(|_| wrong());
        let admitted = node.and_then(|node| match Grant::is_one(token) {
            true => node.grant(token, now_ms()).and_then(|grant| self.in_force(grant)).map(Some),
            false => node.proof(token, now_ms()).map(|_| None).ok_or_else(wrong),
        });
        admitted.map_err(|e| e.recode(Code::Eperm)).inspect_err(|e| {
            self.failed.count();
            let (addr, place) = (self.failed.addr, Place::Node(&self.node_id));
            let message = match Grant::is_one(token) {
                true => &*e.message,
                false => "that is not the node's secret",
            };
            self.gateway.visits.refused(None, addr, place, Code::NodeAuthFailed, message);
        })
    }
}

impl RoutedDoor {
    /// Errors: EINVAL, `AuthFailed` and why.
    fn in_force(&self, grant: Grant) -> Result<Grant> {
        if !grant.sub.contains('#') {
            // Made by who runs the node.
            return Ok(grant);
        }
        let auth = &self.gateway.control.auth;
        let ended = || {
            let why = "the access token that the grant was made for was revoked or has expired";
            Error::new(Code::Invalid, format!("AuthFailed: {why}"))
        };
        let bearer = auth.tokens().bearer(&grant.sub, now_ms()).ok_or_else(ended)?;
        // What was revoked before the connection was known to be theirs.
        match auth.admits(self.pass.get_or_init(|| bearer)) {
            true => Ok(grant),
            false => Err(ended()),
        }
    }
}

/// What a node exports, as all its clients find it here. Once somebody came for it, it follows the node:
/// what comes and goes there does so here, and what stays is not touched.
pub struct Relayed {
    node_id: String,
    nodes: Weak<Nodes>,
    peer: Arc<Peer>,
    exports: Arc<Exports>,
    /// What of the node stands in `exports`. One brings it up to date at a time.
    shown: Mutex<Vec<fs::Export>>,
    listens: OnceLock<Watch>,
}

impl Relayed {
    pub fn new(
        nodes: &Arc<Nodes>,
        node_id: &str,
        peer: Arc<Peer>,
        pool: Arc<Pool>,
    ) -> Arc<Relayed> {
        let relayed = Arc::new(Relayed {
            node_id: node_id.to_owned(),
            nodes: Arc::downgrade(nodes),
            peer: peer.clone(),
            exports: Arc::default(),
            shown: Mutex::default(),
            listens: OnceLock::new(),
        });
        let weak = Arc::downgrade(&relayed);
        let listener = move |event: Option<&Event>| {
            let relayed = weak.upgrade().filter(|r| is_news(&r.peer, event));
            let follow = relayed.map(|r| pool.submit(move || r.follow()));
            if let Some(Err(e)) = follow {
                log::warn!("the exports of a node may be out of date until its next client: {e}");
            }
        };
        relayed.listens.get_or_init(|| peer.watch(Arc::new(listener)));
        relayed
    }

    fn follow(&self) {
        if let Err(e) = self.refresh() {
            log::debug!("{}: {e}", self.node_id);
        }
    }

    /// Brings the table up to date. Errors: as [`Peer::link`]; `usage` for what cannot be a table.
    fn refresh(&self) -> Result<Arc<Link>> {
        let (deadline, cancel) = (Deadline::after_ms(REACH_MS), Cancel::new());
        let link = self.peer.link(deadline, &cancel)?;
        self.peer.exports(&link, deadline, &cancel)?;
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody waits for the node here, and who comes later finds nothing older.
        let now = link.exports();
        let missing = |list: &[fs::Export], e: &fs::Export| !list.iter().any(|x| is_same(x, e));
        let gone = shown.iter().filter(|e| missing(&now, e)).map(|e| e.name.clone());
        let gone: Vec<_> = gone.collect();
        let new: Vec<_> = now.iter().filter(|e| missing(&shown, e)).collect();
        if gone.is_empty() && new.is_empty() {
            return Ok(link);
        }
        let nodes = self.nodes.upgrade().ok_or_else(|| Error::new(Code::Eio, "shutting down"))?;
        let export = |e: &&fs::Export| Export {
            name: e.name.clone(),
            tree: nodes.tree(&self.node_id, Which::Named(e.name.clone())),
            ro: e.ro,
            desc: e.desc.clone(),
            source_kind: e.source_kind.clone(),
            source_id: e.source_id.clone(),
        };
        self.exports.change(&gone, new.iter().map(export).collect())?;
        *shown = now.to_vec();
        Ok(link)
    }
}

/// Whether the node may export something else now.
fn is_news(peer: &Peer, event: Option<&Event>) -> bool {
    match event {
        None => peer.connected().is_some(),
        Some(event) => *event == Event::Resync,
    }
}

/// True for what its clients cannot tell apart: ids on the wire to the node are not theirs.
fn is_same(a: &fs::Export, b: &fs::Export) -> bool {
    let told = |e: &fs::Export| (e.name.clone(), e.ro, e.desc.clone(), e.source_id.clone());
    told(a) == told(b) && a.source_kind == b.source_kind
}
