//! The gateway's way to its nodes: over the tunnel that a node has opened, else by dialling the URL that
//! it gave. One connection and one tree per export serve everybody.

use super::routed::Relayed;
use super::tunnel::Tunnels;
use crate::base::{Code, Deadline, Error, Pool, Result};
use crate::control::Plane;
use crate::net::{Net, WsUrl};
use crate::vfs::remote::{
    Connector, Dial, Hooks, Link, Peer, Remote, SILENCE, Which, expect_answers, say_hello,
};
use crate::wire::fs::{Event, Ext, Framing, Hello};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

pub struct Nodes {
    net: Arc<Net>,
    plane: Arc<Plane>,
    tunnels: Arc<Tunnels>,
    pool: Arc<Pool>,
    known: Mutex<HashMap<String, Known>>,
}

struct Known {
    peer: Arc<Peer>,
    /// Those in use.
    trees: HashMap<Which, Weak<Remote>>,
    /// For those who come for this node alone.
    relayed: Option<Arc<Relayed>>,
}

impl Nodes {
    /// `pool`: where exports that have come and gone are asked for.
    pub fn new(net: Arc<Net>, plane: Arc<Plane>, tunnels: Arc<Tunnels>, pool: Arc<Pool>) -> Nodes {
        Nodes { net, plane, tunnels, pool, known: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, node_id: &str, f: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.lock();
        let entry = known.entry(node_id.to_owned()).or_insert_with(|| {
            let way = Way {
                node_id: node_id.to_owned(),
                net: self.net.clone(),
                plane: self.plane.clone(),
                tunnels: self.tunnels.clone(),
            };
            Known { peer: Peer::new(Arc::new(way)), trees: HashMap::new(), relayed: None }
        });
        f(entry)
    }

    pub fn peer(&self, node_id: &str) -> Arc<Peer> {
        self.with(node_id, |known| known.peer.clone())
    }

    /// The tree of an export, whether or not the node can be reached now.
    pub fn tree(&self, node_id: &str, which: Which) -> Arc<Remote> {
        self.with(node_id, |known| {
            if let Some(tree) = known.trees.get(&which).and_then(Weak::upgrade) {
                return tree;
            }
            let tree = Remote::of(known.peer.clone(), which.clone());
            known.trees.retain(|_, tree| tree.strong_count() > 0);
            known.trees.insert(which, Arc::downgrade(&tree));
            tree
        })
    }

    /// What its own clients find of a node.
    pub fn relayed(self: &Arc<Nodes>, node_id: &str) -> Arc<Relayed> {
        let (there, peer) = self.with(node_id, |k| (k.relayed.clone(), k.peer.clone()));
        there.unwrap_or_else(|| {
            let new = Relayed::new(self, node_id, peer, self.pool.clone());
            self.with(node_id, |known| known.relayed.get_or_insert(new).clone())
        })
    }

    /// A node has told the control plane of other services. Ours has told its clients, too; after the
    /// reload of an old one nothing is what it was (spec: fs 14.4).
    pub fn catalogue_changed(&self, node_id: &str) {
        let peer = self.lock().get(node_id).map(|known| known.peer.clone());
        if let Some(peer) = peer
            && peer.connected().is_some_and(|link| !link.is_ours())
        {
            peer.heard(&Event::Resync);
        }
    }

    /// A node has come (back): the next call tries at once.
    pub fn reachable(&self, node_id: &str) {
        self.peer(node_id).retry_now();
    }

    /// Drops what belongs to nodes that are gone from the control plane.
    pub fn prune(&self) {
        let state = self.plane.state();
        self.lock().retain(|node_id, _| state.node(node_id).is_ok());
        self.tunnels.retain(|node_id| state.node(node_id).is_ok());
    }
}

/// How one node is reached.
struct Way {
    node_id: String,
    net: Arc<Net>,
    plane: Arc<Plane>,
    tunnels: Arc<Tunnels>,
}

impl Connector for Way {
    fn connect(&self, deadline: Deadline, hooks: Hooks) -> Result<Link> {
        let state = self.plane.state();
        let node = state.node(&self.node_id)?;
        let hello = Hello { auth_token: Some(node.secret.clone()), ..Hello::default() };
        if let Some(tunnel) = self.tunnels.get(&self.node_id) {
            let session = Some(hooks.session.to_string());
            tunnel.hook(hooks);
            let framing = Framing::Binary;
            let hello = Hello { ext: Some(Ext { framing, session, ..Ext::all() }), ..hello };
            let link = say_hello(tunnel.mux.clone(), hello, deadline)?;
            expect_answers(&link, SILENCE);
            return Ok(link);
        }
        let away = |what: &str| Error::new(Code::Unavailable, format!("{} {what}", self.node_id));
        if node.fs_url.is_empty() {
            return Err(away("is not connected, and has no fs_url to dial"));
        }
        let url: WsUrl = node.fs_url.parse()?;
        // That would lead back here, and to the tunnel that is not there.
        if node.fs_url.contains("/v2/fs/node/") {
            return Err(away("is not connected; its tunnel is down"));
        }
        let (net, framing, silence) = (self.net.clone(), Framing::Binary, SILENCE);
        let dial = Dial { net, url, bearer: None, hello, framing, silence };
        dial.connect(deadline, hooks)
    }

    fn target(&self) -> String {
        self.node_id.clone()
    }
}
