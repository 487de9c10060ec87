//! The command `mount`: from a tree to a mounted filesystem and back, in the foreground or the background.

use crate::base::{Deadline, Result, ResultExt, Signal, Signals};
use crate::cli::Args;
use crate::mount::copy::Across;
use crate::mount::daemonize::{self, Log};
use crate::mount::options::Options;
use crate::mount::report::Reporter;
use crate::mount::socket::Server;
use crate::mount::status::Running;
use crate::mount::workspace::{self, Gateway};
use crate::mount::world::{Source, World};
use crate::mount::{fuse, point};
use crate::net::Net;
use crate::vfs::{NodeId, Tree};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Time for running operations when the mount ends.
const GRACE_MS: u64 = 10_000;

/// How to keep up with a workspace, and what is mounted whatever it says.
pub struct Sync {
    pub gateway: Gateway,
    pub explicit: Vec<Source>,
    pub interval_ms: u64,
}

/// What is known of a mount before it is made.
pub struct Plan {
    pub at: PathBuf,
    pub options: Options,
    pub sync: Option<Sync>,
    pub log_file: Option<PathBuf>,
    pub background: bool,
}

/// Mounts, serves, and returns when the mount has ended.
pub fn run(world: &Arc<World>, net: &Arc<Net>, plan: Plan) -> Result<()> {
    let log_file = plan.log_file.as_deref().map(std::path::absolute).transpose()?;
    let log = log_file.as_deref().map(Log::to).transpose()?;
    let point = point::prepare(&plan.at)?;
    let at = point.path.clone();
    let signals = Signals::install()?;
    let reporter = Arc::new(Reporter::default());
    reporter.watch(world);
    let across = plan.options.copy_across.then(|| Across::new(world.clone()));
    let tree = world.tree.clone();
    let mounted = fuse::mount(tree, across, &at, &plan.options, signals.stopper())?;
    let begun = begin(world, &at, &plan, &mounted, log);
    let following = begun.and_then(|server| {
        let following = plan.sync.map(|sync| {
            let Sync { gateway, explicit, interval_ms } = sync;
            let (world, net, reporter) = (world.clone(), net.clone(), reporter.clone());
            match interval_ms {
                0 => workspace::renew(world, net, gateway),
                _ => workspace::follow(world, net, gateway, explicit, interval_ms, reporter),
            }
        });
        Ok((server, following.transpose()?))
    });
    if following.is_ok() {
        wait(&signals, log_file.as_deref());
    }
    reporter.quiet();
    let ended = following.map(|(server, following)| {
        if let Some(server) = server {
            server.stop();
        }
        following
    });
    mounted.unmount(Deadline::after_ms(GRACE_MS));
    if let Some(following) = ended? {
        following.stop();
    }
    log::info!("unmounted {}", at.display());
    Ok(())
}

/// Once the mount answers: it can be asked how it is, and whoever started it is let go. A mount whose
/// root does not answer is an error only where somebody waits to know.
fn begin(
    world: &Arc<World>,
    at: &Path,
    plan: &Plan,
    mounted: &fuse::Mounted,
    log: Option<Log>,
) -> Result<Option<Server>> {
    // The kernel passes on a number; the tree knows the reason.
    let reason = |e| world.tree.getattr(&world.cx(), NodeId::ROOT).err().unwrap_or(e);
    let answers = mounted.check().map_err(reason);
    if plan.background {
        answers.clone().context(at.display())?;
    }
    let running = Running {
        world: world.clone(),
        point: at.to_owned(),
        options: plan.options.clone(),
        since: Instant::now(),
    };
    let server = Server::start(at, Arc::new(move |op, question| running.answer(op, question)));
    // The mount serves its files without it.
    let server = server.inspect_err(|e| log::warn!("status will not be told: {e}")).ok();
    let nowhere = plan.background && log.is_none();
    if let Some(log) = if nowhere { Some(Log::nowhere()?) } else { log } {
        log.take_over()?;
    }
    if plan.background {
        daemonize::detach()?;
    }
    match answers {
        Ok(()) => log::info!("mounted on {}", at.display()),
        Err(e) => log::warn!("mounted on {}, but its root does not answer: {e}", at.display()),
    }
    Ok(server)
}

/// Until the end is wanted. SIGHUP opens the log file anew, for who moves it away.
fn wait(signals: &Signals, log_file: Option<&Path>) {
    while signals.wait() != Signal::Stop {
        let opened = log_file.map(|path| Log::to(path).and_then(|log| log.take_over()));
        if let Some(Err(e)) = opened {
            log::warn!("the log goes on where it was: {e}");
        }
    }
}

/// The words of the command line that only `mount` understands.
pub fn plan(args: &Args, at: PathBuf, options: Options, sync: Option<Sync>) -> Plan {
    Plan {
        at,
        options,
        sync,
        log_file: args.os("--log-file").map(PathBuf::from),
        background: args.has("--daemon"),
    }
}
