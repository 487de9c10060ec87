//! A node as a program runs it: opens its exports, then either listens for clients or belongs to a
//! gateway and serves through it.

use super::daemon::{self, Daemon, Membership, Served};
use super::services::{self, Files, Services, Sources, WAITERS_MAX};
use super::{Export, ExportSpec, Exports, FsService, Server, TokenDoor};
use crate::base::{Code, Deadline, Error, Pool, Result, ResultExt, Timer};
use crate::net::{Listener, Net, raise_open_files};
use crate::vfs::{Local, LocalOptions};
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// Threads for file operations: they wait for disks.
const FILE_THREADS: usize = 8;
/// Requests that may wait for one; more are answered `queue_saturated`.
const QUEUE_MAX: usize = 1024;

pub struct Options {
    /// What the node is called, by its gateway and in its hello.
    pub name: String,
    pub exports: Vec<ExportSpec>,
    /// Where the manifests of its services are.
    pub manifests: Sources,
    /// How often a member reads them again.
    pub reload_interval_ms: u64,
    pub terminals: Vec<String>,
    pub mode: Mode,
}

pub enum Mode {
    /// Listens; clients must know the token, if there is one.
    Alone {
        addr: SocketAddr,
        token: Option<String>,
        /// Beside which file the state of services is kept, if it is.
        state_file: Option<PathBuf>,
    },
    Member(Box<Membership>),
}

/// A node that runs.
pub struct Running {
    net: Arc<Net>,
    pool: Arc<Pool>,
    timer: Timer,
    services: Arc<Services>,
    work: Work,
    /// Of the state file.
    _lock: Option<File>,
}

enum Work {
    Listen(Listener),
    Member(Daemon),
}

/// Starts a node. Errors: `usage` for what a flag says wrongly, ENOENT and the like for an export that
/// cannot be opened, `address_in_use`, `invalid_config`.
pub fn start(options: Options) -> Result<Running> {
    if let Mode::Alone { addr, token: None, .. } = &options.mode
        && !addr.ip().is_loopback()
    {
        return Err(Error::new(
            Code::Usage,
            format!(
                "--bind {}: others could reach the files without a token; give one in \
                 SPIDERWEB_FS_NODE_AUTH_TOKEN or with --auth-token-file",
                addr.ip()
            ),
        ));
    }
    if let Err(e) = raise_open_files() {
        log::warn!("the limit of open files stays as it is: {e}");
    }
    let opened = options.exports.iter().map(open).collect::<Result<Vec<_>>>()?;
    let mut files = Files { export_count: opened.len(), writable: opened.iter().any(|e| !e.ro) };
    let exports = Exports::new(opened).context("--export")?;
    let timer = Timer::start()?;
    let net = Net::start(0, timer.clone())?;
    // Whoever waits for a service keeps a thread; the others are for files.
    let has_services = !options.manifests.is_empty() || !options.terminals.is_empty();
    let threads = FILE_THREADS + if has_services { WAITERS_MAX } else { 0 };
    let pool = Pool::start("files", threads, QUEUE_MAX)?;
    let lock = lock(&options.mode)?;
    let services =
        Services::start(services_of(&options), exports.clone(), pool.clone(), timer.clone())?;
    if exports.is_empty() {
        let work = Export { desc: "workspace root".into(), ..open(&"work=.".parse()?)? };
        exports.change(&[], vec![work])?;
        files = Files { export_count: 1, writable: true };
    }
    let server = Arc::new(Server::new(pool.clone(), timer.clone()));
    // What comes through a tunnel was let in by the gateway.
    let token = match &options.mode {
        Mode::Alone { token, .. } => token.clone(),
        Mode::Member(_) => None,
    };
    let door = Arc::new(TokenDoor { name: options.name.clone(), exports: exports.into(), token });
    let work = match options.mode {
        Mode::Alone { addr, .. } => {
            let listener =
                net.listen(addr, Arc::new(FsService { server, door })).context("--bind")?;
            log::info!("FS node websocket server listening at ws://{}/v2/fs", listener.addr());
            Work::Listen(listener)
        }
        Mode::Member(membership) => {
            let served = Served {
                name: options.name,
                net: net.clone(),
                server,
                door,
                services: services.clone(),
                files: Some(files).filter(|f| membership.fs_service && f.export_count > 0),
            };
            Work::Member(Daemon::start(*membership, served)?)
        }
    };
    Ok(Running { net, pool, timer, services, work, _lock: lock })
}

/// Keeps others from the state file, before anything is read that belongs to it.
fn lock(mode: &Mode) -> Result<Option<File>> {
    let state_file = match mode {
        Mode::Alone { state_file, .. } => state_file.as_ref(),
        Mode::Member(membership) => Some(&membership.state_file),
    };
    state_file.map(|file| daemon::lock_state(file)).transpose()
}

fn services_of(options: &Options) -> services::Options {
    let (state_file, reload_interval_ms, fs_service) = match &options.mode {
        Mode::Alone { state_file, .. } => (state_file.clone(), None, true),
        Mode::Member(m) => {
            (Some(m.state_file.clone()), Some(options.reload_interval_ms), m.fs_service)
        }
    };
    services::Options {
        sources: options.manifests.clone(),
        reload_interval_ms,
        terminals: options.terminals.clone(),
        fs_service,
        state_file,
    }
}

fn open(spec: &ExportSpec) -> Result<Export> {
    let options = LocalOptions { read_only: spec.ro, ..LocalOptions::default() };
    let tree = Local::open(&spec.path, options).context(format!("--export {}", spec.name))?;
    Ok(Export {
        name: spec.name.clone(),
        tree: Arc::new(tree),
        ro: spec.ro,
        desc: spec.path.display().to_string(),
        source_kind: "linux".into(),
        source_id: format!("linux:{}", spec.name),
    })
}

impl Running {
    /// Where it listens, if it does.
    pub fn addr(&self) -> Option<SocketAddr> {
        match &self.work {
            Work::Listen(listener) => Some(listener.addr()),
            Work::Member(_) => None,
        }
    }

    /// Reads the manifests of services again. What cannot be used is logged, and all stays as it was.
    pub fn reload(&self) {
        self.services.reload();
    }

    /// Takes no more clients, answers what is in flight until `grace`, and ends the threads.
    pub fn stop(self, grace: Deadline) {
        match &self.work {
            Work::Listen(listener) => listener.stop(),
            Work::Member(daemon) => daemon.stop(),
        }
        self.net.stop(grace);
        self.services.stop();
        if let Work::Member(daemon) = self.work {
            daemon.join();
        }
        self.pool.stop_by(grace);
        self.timer.stop();
    }
}
