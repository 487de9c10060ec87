//! Endpoints as one tree: a connection to each export, kept as long as it is wanted, and the union over
//! their mount paths.

use super::endpoint::Endpoint;
use crate::base::{Deadline, Result, TreePath};
use crate::net::{Net, WsUrl};
use crate::vfs::remote::{Connector, Dial, Hooks, Link, Peer, Remote, SILENCE};
use crate::vfs::{
    CacheOptions, Cached, Cx, Disk, Member, MountPoint, NodeId, Tree, Union, Workers,
};
use crate::wire::fs::{Binding, Framing, Hello};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A busy host may be silent for less.
const SILENCE_MIN: Duration = Duration::from_secs(1);

/// An export, and with what right it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub endpoint: Endpoint,
    /// Bearer of the HTTP upgrade: the gateway's own export.
    pub bearer: Option<String>,
    /// In whose name the gateway's namespace is seen.
    pub binding: Option<Binding>,
}

impl From<Endpoint> for Source {
    fn from(endpoint: Endpoint) -> Source {
        Source { endpoint, bearer: None, binding: None }
    }
}

impl Source {
    /// True for the same but for the token.
    fn leads_to_the_same(&self, other: &Source) -> bool {
        let endpoint = Endpoint { token: self.endpoint.token.clone(), ..other.endpoint.clone() };
        *self == Source { endpoint, ..other.clone() }
    }
}

/// A source with its connection, which is made when it is first needed.
#[derive(Clone)]
pub struct Attached {
    pub source: Source,
    pub remote: Arc<Remote>,
    /// The same, remembered here, unless the cache is off.
    pub cached: Option<Arc<Cached>>,
    entrance: Arc<Entrance>,
}

/// The way to an export, whose token may be replaced while files are open: the next connection shows the
/// new one, and resumes the session.
struct Entrance {
    dial: Dial,
    token: Mutex<Option<String>>,
}

impl Entrance {
    fn token(&self) -> MutexGuard<'_, Option<String>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connector for Entrance {
    fn connect(&self, deadline: Deadline, hooks: Hooks) -> Result<Link> {
        let mut dial = self.dial.clone();
        dial.hello.auth_token = self.token().clone();
        dial.connect(deadline, hooks)
    }

    fn target(&self) -> String {
        self.dial.target()
    }
}

pub struct World {
    /// Where file contents are kept, if they are.
    pub disk: Option<Arc<Disk>>,
    net: Arc<Net>,
    /// `None`: nothing is remembered.
    workers: Option<Workers>,
    pub tree: Arc<Union>,
    /// For each call of the tree.
    pub timeout_ms: u64,
    /// What to offer the endpoints.
    framing: Framing,
    attached: Mutex<Vec<Attached>>,
}

impl World {
    /// `cache_bytes`: memory for what is remembered, about; 0 for nothing, `None` for the default.
    pub fn new(
        net: Arc<Net>,
        timeout_ms: u64,
        cache_bytes: Option<u64>,
        framing: Framing,
        disk: Option<Arc<Disk>>,
    ) -> Result<World> {
        let tree = Arc::new(Union::for_mount()?);
        let default = CacheOptions::default();
        let bytes = cache_bytes.map_or(default.bytes, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let options = CacheOptions { bytes, timeout_ms, ..default };
        let workers = match bytes {
            0 => None,
            _ => Some(Workers::start(options, net.timer().clone())?.with_disk(disk.clone())),
        };
        Ok(World { disk, net, workers, tree, timeout_ms, framing, attached: Mutex::default() })
    }

    /// Ends the threads; what is still on its way is sent first.
    pub fn stop(&self) {
        for cached in self.attached().iter().filter_map(|a| a.cached.as_ref()) {
            if let Err(e) = cached.drain_all(&self.cx()) {
                log::error!("not everything that was written has arrived: {e}");
            }
        }
        if let Some(workers) = &self.workers {
            workers.stop();
        }
    }

    /// Early enough for a call to go on at a stand-in before its time is up.
    fn silence(&self) -> Duration {
        Duration::from_millis(self.timeout_ms / 3).clamp(SILENCE_MIN, SILENCE)
    }

    /// For one call.
    pub fn cx(&self) -> Cx {
        Cx::internal(Deadline::after_ms(self.timeout_ms))
    }

    /// What is mounted, in order.
    pub fn attached(&self) -> Vec<Attached> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The connection that is kept for a source, or a new one, which the first use will make. One that is
    /// kept takes over the source's token.
    pub fn attach(&self, source: &Source) -> Attached {
        let kept = self.attached().into_iter().find(|a| a.source.leads_to_the_same(source));
        if let Some(kept) = kept {
            kept.entrance.token().clone_from(&source.endpoint.token);
            Attached { source: source.clone(), ..kept }
        } else {
            let (endpoint, source) = (&source.endpoint, source.clone());
            let dial = Dial {
                net: self.net.clone(),
                url: endpoint.url.clone(),
                bearer: source.bearer.clone(),
                hello: Hello { binding: source.binding.clone(), ..Hello::default() },
                framing: self.framing,
                silence: self.silence(),
            };
            let entrance = Arc::new(Entrance { dial, token: endpoint.token.clone().into() });
            let remote = Remote::new(Peer::restless(entrance.clone()), endpoint.export.clone());
            let cached = self.workers.as_ref().map(|w| {
                let export = endpoint.export.as_deref().unwrap_or_default();
                let known_as = format!("{}#{export}", endpoint.url);
                Cached::of(Some(known_as), remote.clone(), w.clone())
            });
            Attached { source, remote, cached, entrance }
        }
    }

    /// Mounts these and nothing else; what stays keeps its connection and its ids. Errors: as
    /// [`Union::set`], with nothing changed.
    pub fn set(&self, wanted: Vec<Attached>) -> Result<()> {
        let mut mounts: Vec<MountPoint> = Vec::new();
        for Attached { source, remote, cached, .. } in &wanted {
            let Endpoint { name, mount_path, .. } = &source.endpoint;
            let tree: Arc<dyn Tree> = match cached {
                Some(cached) => cached.clone(),
                None => remote.clone(),
            };
            let member = Member { name: name.clone(), tree, root: NodeId::ROOT };
            match mounts.iter_mut().find(|m| m.path == *mount_path) {
                Some(mount) => mount.members.push(member),
                None => mounts.push(MountPoint { path: mount_path.clone(), members: vec![member] }),
            }
        }
        self.tree.set(mounts, Vec::new())?;
        *self.attached.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
        Ok(())
    }

    /// Whether the export that a directory belongs to is read-only, as far as its node has told.
    pub fn is_read_only(&self, cx: &Cx, dir: NodeId) -> Result<bool> {
        let (path, attached) = (self.tree.path(cx, dir)?, self.attached());
        let mounts = attached.iter().map(|a| &a.source.endpoint.mount_path);
        let above = mounts.filter(|mount| path.below(mount).is_some());
        let Some(at) = above.max_by_key(|mount| mount.names().count()) else { return Ok(false) };
        let mut members = attached.iter().filter(|a| a.source.endpoint.mount_path == *at);
        Ok(members.any(|a| a.remote.described(cx).is_ok_and(|export| export.ro)))
    }

    /// Whether a path is a directory that only holds mount points.
    pub fn is_virtual(&self, path: &TreePath) -> bool {
        self.tree.status().iter().all(|mount| path.below(&mount.path).is_none())
    }
}

impl Attached {
    /// Whether the export answers by `deadline`.
    pub fn probe(&self, deadline: Deadline) -> Result<()> {
        let cx = Cx::internal(deadline);
        self.remote.described(&cx)?;
        self.remote.getattr(&cx, NodeId::ROOT).map(drop)
    }

    pub fn url(&self) -> &WsUrl {
        &self.source.endpoint.url
    }
}
