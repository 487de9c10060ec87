//! A node as a program runs it: opens its exports, then either listens for clients or belongs to a
//! gateway and serves through it.

use super::daemon::{Daemon, Membership, Served};
use super::{Export, ExportSpec, Exports, FsService, Server, TokenDoor};
use crate::base::{Code, Deadline, Error, Pool, Result, ResultExt, Timer};
use crate::net::{Listener, Net, raise_open_files};
use crate::vfs::{Local, LocalOptions};
use std::net::SocketAddr;
use std::sync::Arc;

/// Threads for file operations: they wait for disks.
const FILE_THREADS: usize = 8;
/// Requests that may wait for one; more are answered `queue_saturated`.
const QUEUE_MAX: usize = 1024;

pub struct Options {
    /// What the node is called, by its gateway and in its hello.
    pub name: String,
    pub exports: Vec<ExportSpec>,
    pub mode: Mode,
}

pub enum Mode {
    /// Listens; clients must know the token, if there is one.
    Alone {
        addr: SocketAddr,
        token: Option<String>,
    },
    Member(Box<Membership>),
}

/// A node that runs.
pub struct Running {
    net: Arc<Net>,
    pool: Arc<Pool>,
    timer: Timer,
    work: Work,
}

enum Work {
    Listen(Listener),
    Member(Daemon),
}

/// Starts a node. Errors: `usage` for what a flag says wrongly, ENOENT and the like for an export that
/// cannot be opened, `address_in_use`, `invalid_config`.
pub fn start(options: Options) -> Result<Running> {
    if let Mode::Alone { addr, token: None } = &options.mode
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
    let writable = opened.iter().any(|e| !e.ro);
    let exports = Arc::new(Exports::new(opened).context("--export")?);
    let timer = Timer::start()?;
    let net = Net::start(0, timer.clone())?;
    let pool = Pool::start("files", FILE_THREADS, QUEUE_MAX)?;
    let server = Arc::new(Server::new(pool.clone(), timer.clone()));
    // What comes through a tunnel was let in by the gateway.
    let token = match &options.mode {
        Mode::Alone { token, .. } => token.clone(),
        Mode::Member(_) => None,
    };
    let door = Arc::new(TokenDoor { name: options.name.clone(), exports, token });
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
                export_count: options.exports.len(),
                writable,
            };
            Work::Member(Daemon::start(*membership, served)?)
        }
    };
    Ok(Running { net, pool, timer, work })
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

    /// Takes no more clients, answers what is in flight until `grace`, and ends the threads.
    pub fn stop(self, grace: Deadline) {
        match &self.work {
            Work::Listen(listener) => listener.stop(),
            Work::Member(daemon) => daemon.stop(),
        }
        self.net.stop(grace);
        if let Work::Member(daemon) = self.work {
            daemon.join();
        }
        self.pool.stop();
        self.timer.stop();
    }
}
