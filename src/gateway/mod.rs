//! The gateway: starts and stops everything in its order, and routes connections to where they belong.
//! No policy: who may do what is decided in `control` and in the trees.

mod acheron;
mod attempts;
mod client;
mod debug;
mod doors;
mod guests;
mod local;
mod metrics;
mod nodes;
mod pace;
mod pushes;
mod routed;
mod starclaw;
mod topology;
mod trees;
mod tunnel;
mod visits;
mod watch;

use crate::base::{
    Cancel, Code, Deadline, Error, Errors, Pool, Requests, Result, ResultExt, Timer,
};
use crate::config::credentials::Credentials;
use crate::config::tokens::{Identity, Tokens};
use crate::config::{Config, Env, state_key};
use crate::control::{Authenticator, Context, History, Plane, Scopes, events, import};
use crate::namespace::World;
use crate::net::{Listener, Net, raise_open_files};
use crate::node::Server;
use crate::runtime::agents::Registry;
use crate::runtime::{Options, Runtime, Subscription, TemplateDir};
use crate::store::{Db, Key, Schema, SqliteKv};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Threads for control operations, few of which wait for the disk on theirs.
const CONTROL_THREADS: usize = 16;
/// Threads for file operations: they wait for disks and for nodes.
const FILE_THREADS: usize = 16;
/// Requests of either kind that may wait; more are answered `queue_saturated`.
const QUEUE_MAX: usize = 1024;

/// What every connection needs.
pub struct Gateway {
    config: Config,
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
    guests: Arc<guests::Guests>,
    visits: visits::Visits,
    ready: AtomicBool,
}

impl Gateway {
    /// Whose token it is, who thereby has come.
    fn identify(&self, token: &str) -> Option<Identity> {
        let identity = self.control.auth.identify(token)?;
        self.control.history.came(&identity.name);
        Some(identity)
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
    following: [JoinHandle<()>; 5],
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
    let (db, kv) = open_store(&config, state_key(&env)?.as_ref())?;
    let plane = Plane::open(kv.clone())?;
    plane.ensure_system()?;
    let (tokens, new_tokens) = Tokens::load_or_create(&config.tokens()?)?;
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
    let history = History::open(kv, timer.clone(), control_pool.clone(), &tokens)?;
    let (auth, guests) = let_in(config.tokens()?, tokens, &history, &plane);
    plane.audit().start(config.control.audit_keep, timer.clone(), control_pool.clone());
    let visits = visits::Visits::new(plane.audit().clone(), stream.clone());
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
            templates: Arc::new(TemplateDir::new(&config.runtime)),
            auth,
            history,
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
        timer,
        runtime,
        nodes,
        tunnels,
        trees,
        stream,
        watches,
        guests,
        visits,
    });
    let stop = Cancel::new();
    let following = follow(&gateway, &stop)?;
    let watched = metrics_port.map(|port| metrics::listen(&gateway, &net, port)).transpose()?;
    let listener = listen(&gateway, &net)?;
    gateway.ready.store(true, Ordering::Release);
    let _metrics = watched;
    Ok(Running { gateway, net, db, listener, _metrics, following, logging, stop, new_tokens })
}

/// The tables of the gateway's database.
pub fn schemas() -> Vec<Schema> {
    std::iter::once(SqliteKv::SCHEMA).chain(Runtime::SCHEMAS).collect()
}

fn open_store(config: &Config, key: Option<&Key>) -> Result<(Arc<Db>, Arc<SqliteKv>)> {
    let db = Db::open_with(&config.database()?, &schemas(), key)?;
    let kv = Arc::new(SqliteKv::new(db.clone()));
    import::original(&db, &*kv, key)?;
    Ok((db, kv))
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
fn follow(gateway: &Gateway, stop: &Cancel) -> Result<[JoinHandle<()>; 5]> {
    let plane = &gateway.control.plane;
    let nodes = gateway.nodes.clone();
    let on_return = Arc::new(move |node_id: &str| nodes.reachable(node_id));
    Ok([
        gateway.trees.follow(stop.clone())?,
        topology::follow(gateway.stream.clone(), plane.clone(), stop.clone())?,
        gateway.watches.follow(plane.clone(), stop.clone())?,
        plane.follow_nodes(on_return, stop.clone())?,
        gateway.guests.follow(stop.clone())?,
    ])
}

/// Those who look at tokens, and those who act on what becomes of them.
fn let_in(
    path: PathBuf,
    tokens: Tokens,
    history: &Arc<History>,
    plane: &Plane,
) -> (Arc<Authenticator>, Arc<guests::Guests>) {
    let auth = Arc::new(Authenticator::new(path, tokens));
    let history = history.clone();
    auth.listen(Arc::new(move |tokens| history.retain(tokens)));
    let guests = guests::Guests::new(auth.clone(), plane.audit().clone());
    (auth, guests)
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
    pub fn tokens_path(&self) -> Result<PathBuf> {
        self.gateway.config.tokens()
    }

    /// Stops accepting, answers what is in flight, writes what must be kept. Takes `grace` at most, and
    /// a little.
    pub fn stop(self, grace: Deadline) {
        self.gateway.ready.store(false, Ordering::Release);
        self.listener.stop();
        self.gateway.runtime.stop(grace);
        self.net.stop(grace);
        self.gateway.control_pool.stop_by(grace);
        self.gateway.files.pool.stop_by(grace);
        self.stop.cancel();
        for thread in self.following {
            let _ = thread.join();
        }
        drop(self.logging);
        self.gateway.stream.stop();
        self.gateway.timer.stop();
        if let Err(e) = self.gateway.control.history.flush() {
            crate::base::log::error("the history of sessions", &e);
        }
        if let Err(e) = self.gateway.control.plane.audit().finish() {
            crate::base::log::error("the audit log", &e);
        }
        self.db.close();
    }
}
