//! The gateway: starts and stops everything in its order, and routes connections to where they belong.
//! No policy: who may do what is decided in `control` and in the trees.

mod acheron;
mod client;
mod debug;
mod doors;
mod local;
mod metrics;
mod nodes;
mod pushes;
mod routed;
mod starclaw;
mod topology;
mod trees;
mod tunnel;
mod watch;

use crate::base::{
    Cancel, Code, Deadline, Error, Errors, Pool, Requests, Result, ResultExt, Timer, id,
};
use crate::config::credentials::Credentials;
use crate::config::tokens::Tokens;
use crate::config::{Config, Env};
use crate::control::{Context, Plane, Principal, Role, Scopes, events};
use crate::namespace::World;
use crate::net::{Listener, Net, raise_open_files};
use crate::node::Server;
use crate::runtime::agents::Registry;
use crate::runtime::{Options, Runtime, Subscription};
use crate::store::{Db, SqliteKv};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Threads for control operations: they wait for the disk.
const CONTROL_THREADS: usize = 4;
/// Threads for file operations: they wait for disks and for nodes.
const FILE_THREADS: usize = 16;
/// Requests of either kind that may wait; more are answered `queue_saturated`.
const QUEUE_MAX: usize = 1024;

/// What every connection needs.
pub struct Gateway {
    config: Config,
    tokens: Tokens,
    control: Context,
    control_pool: Arc<Pool>,
    metrics: Arc<metrics::Metrics>,
    /// Serves the node protocol.
    files: Arc<Server>,
    timer: Timer,
    runtime: Arc<Runtime>,
    nodes: Arc<nodes::Nodes>,
    tunnels: Arc<tunnel::Tunnels>,
    trees: Arc<trees::Trees>,
    stream: Arc<debug::Stream>,
    watches: Arc<watch::Watches>,
    ready: AtomicBool,
}

impl Gateway {
    /// Whose token it is.
    fn principal(&self, token: &str) -> Option<Principal> {
        let is = |known: &str| id::same_secret(known, token);
        let role = if is(&self.tokens.admin_token) {
            Role::Admin
        } else if is(&self.tokens.user_token) {
            Role::User
        } else {
            return None;
        };
        Some(Principal { role, name: role.name().into() })
    }

    /// It serves its users: the state is open, it listens, and whoever is to answer them is there.
    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && self.metrics.all_work()
    }

    fn works(&self) -> acheron::Works {
        acheron::Works {
            pool: self.files.pool.clone(),
            timer: self.timer.clone(),
            timeout_ms: self.config.runtime.control_operation_timeout_ms,
        }
    }
}

/// A gateway that runs.
pub struct Running {
    gateway: Arc<Gateway>,
    net: Arc<Net>,
    db: Arc<Db>,
    listener: Listener,
    /// Answers until the end: it tells that the gateway is not ready any more.
    _metrics: Option<Listener>,
    following: [JoinHandle<()>; 4],
    /// Writes what agents do to the debug log.
    logging: Subscription,
    stop: Cancel,
    /// The tokens were made at this start.
    pub new_tokens: bool,
}

/// Starts the gateway. Errors: the state cannot be read or is another's (`storage_error`, `invalid_config`),
/// the address is taken (`address_in_use`), or not allowed (`invalid_config`).
pub fn start(config: Config, env: Env) -> Result<Running> {
    let metrics_port = metrics::port(&env, config.server.port)?;
    raise_open_files()?;
    let events = events::Settings::from_env(&env)?;
    let (tokens, new_tokens) = Tokens::load_or_create(&config.tokens()?)?;
    let (db, plane) = open_state(&config)?;
    let dir = config.ltm_directory()?;
    let stream = Arc::new(debug::Stream::open(&dir)?);
    let watches = Arc::new(watch::Watches::open(&dir, events, &plane)?);

    let timer = Timer::start()?;
    let net = Net::start(config.server.io_threads, timer.clone())?;
    let runtime = start_runtime(&config, env, &db, &timer)?;
    let world = World { plane: plane.clone(), runtime: runtime.clone() }.tree()?;
    let pool = Pool::start("files", FILE_THREADS, QUEUE_MAX)?;
    let tunnels = Arc::new(tunnel::Tunnels::default());
    let (of_net, of_plane) = (net.clone(), plane.clone());
    let nodes = Arc::new(nodes::Nodes::new(of_net, of_plane, tunnels.clone(), pool.clone()));
    let trees = Arc::new(trees::Trees::new(plane.clone(), nodes.clone(), world));
    let for_agents = trees.clone();
    runtime.bind_trees(Arc::new(move |who| for_agents.for_who(who)));

    let (on_security, log) = (stream.clone(), stream.clone());
    let logging = runtime.subscribe(Arc::new(move |event| log.agent(event)));
    let control_pool = Pool::start("control", CONTROL_THREADS, QUEUE_MAX)?;
    let metrics = Arc::new(metrics::Metrics {
        plane: plane.clone(),
        net: net.clone(),
        db: db.clone(),
        control_pool: control_pool.clone(),
        files: Arc::new(Server::new(pool, timer.clone())),
        runtime: runtime.clone(),
        watches: watches.clone(),
        control: Requests::default(),
        refused: Errors::default(),
    });
    let gathered = metrics.clone();
    let gateway = Arc::new(Gateway {
        control: Context {
            plane,
            agents: runtime.clone(),
            scopes: Scopes::from_env(),
            figures: Arc::new(move || gathered.object()),
            events: watches.events().clone(),
            on_security: Box::new(move |event| on_security.security(event)),
        },
        control_pool,
        files: metrics.files.clone(),
        metrics,
        ready: AtomicBool::new(false),
        config,
        tokens,
        timer,
        runtime,
        nodes,
        tunnels,
        trees,
        stream,
        watches,
    });
    let stop = Cancel::new();
    let following = follow(&gateway, &stop)?;
    let watched = metrics_port.map(|port| metrics::listen(&gateway, &net, port)).transpose()?;
    let listener = listen(&gateway, &net)?;
    gateway.ready.store(true, Ordering::Release);
    let _metrics = watched;
    Ok(Running { gateway, net, db, listener, _metrics, following, logging, stop, new_tokens })
}

fn open_state(config: &Config) -> Result<(Arc<Db>, Arc<Plane>)> {
    let schemas: Vec<_> = std::iter::once(SqliteKv::SCHEMA).chain(Runtime::SCHEMAS).collect();
    let db = Db::open(&config.database()?, &schemas)?;
    let plane = Plane::open(Arc::new(SqliteKv::new(db.clone())))?;
    plane.ensure_system()?;
    Ok((db, plane))
}

fn start_runtime(config: &Config, env: Env, db: &Arc<Db>, timer: &Timer) -> Result<Arc<Runtime>> {
    let options = Options {
        provider: config.provider.clone(),
        runtime: config.runtime.clone(),
        credentials: Arc::new(Credentials::from_env(env.clone())),
        env,
    };
    Runtime::start(options, db.clone(), timer.clone(), Registry::new(&config.runtime))
}

/// Starts the threads that act on changes of the control plane, until `stop` is cancelled.
fn follow(gateway: &Gateway, stop: &Cancel) -> Result<[JoinHandle<()>; 4]> {
    let plane = &gateway.control.plane;
    let nodes = gateway.nodes.clone();
    let on_return = Arc::new(move |node_id: &str| nodes.reachable(node_id));
    Ok([
        gateway.trees.follow(stop.clone())?,
        topology::follow(gateway.stream.clone(), plane.clone(), stop.clone())?,
        gateway.watches.follow(plane.clone(), stop.clone())?,
        plane.follow_nodes(on_return, stop.clone())?,
    ])
}

fn listen(gateway: &Arc<Gateway>, net: &Net) -> Result<Listener> {
    let server = &gateway.config.server;
    let addr = SocketAddr::new(server.bind, server.port);
    let doors = Arc::new(doors::Doors::new(gateway.clone()));
    net.listen(addr, doors)
        .map_err(|e| match e.code {
            Code::AddressInUse => Error::new(
                Code::AddressInUse,
                format!(
                    "{addr} is in use; is another gateway running? Else choose one with --port"
                ),
            ),
            _ => e,
        })
        .context("server.bind")
}

impl Running {
    pub fn addr(&self) -> SocketAddr {
        self.listener.addr()
    }

    /// Where the tokens are.
    pub fn tokens_path(&self) -> Result<std::path::PathBuf> {
        self.gateway.config.tokens()
    }

    /// Stops accepting, answers what is in flight, writes what must be kept. Takes `grace` at most, and
    /// a little.
    pub fn stop(self, grace: Deadline) {
        self.gateway.ready.store(false, Ordering::Release);
        self.listener.stop();
        self.gateway.runtime.stop(grace);
        self.net.stop(grace);
        self.gateway.control_pool.stop();
        self.gateway.files.pool.stop();
        self.stop.cancel();
        for thread in self.following {
            let _ = thread.join();
        }
        drop(self.logging);
        self.gateway.stream.stop();
        self.gateway.timer.stop();
        self.db.close();
    }
}
