//! `spiderweb`: runs the gateway until it is told to stop.

use super::{Args, Flag, Program};
use crate::base::{Deadline, Result, ResultExt, Signal, Signals};
use crate::config::{self, Env, Loaded};
use crate::gateway;
use std::time::Duration;

pub const PROGRAM: Program = Program {
    name: "spiderweb",
    section: 8,
    about: "gateway of a distributed filesystem in which AI agents work",
    usage: &["[options]"],
    commands: &[],
    flags: &[
        Flag::value("--config", "file", "Use this config file"),
        Flag::value("--bind", "ip", "Listen on this address (server.bind)"),
        Flag::value("--port", "n", "Listen on this port, 0 for a free one (server.port)"),
        Flag::value("--log-level", "level", "error, warn, info, debug or trace (log.level)"),
    ],
    examples: &[
        "spiderweb",
        "spiderweb --port 0 --log-level debug",
        "SPIDERWEB__PROVIDER__NAME=echo spiderweb",
    ],
};

/// Time that requests in flight are given at the end.
const GRACE: Duration = Duration::from_secs(10);

pub fn run(args: Args) -> Result<()> {
    args.at_most(0)?;
    crate::base::log::set(log::LevelFilter::Info);
    let signals = Signals::install()?;
    let env = Env::process();
    let mut flags = Vec::new();
    for (flag, setting) in
        [("--bind", "server.bind"), ("--port", "server.port"), ("--log-level", "log.level")]
    {
        if let Some(value) = args.string(flag)? {
            flags.push((setting, value));
        }
    }
    let loaded = load(&args, &env, &flags)?;
    crate::base::log::set(loaded.config.log.level);
    for warning in &loaded.warnings {
        log::warn!("{warning}");
    }
    let provider = &loaded.config.provider;
    log::info!("spiderweb {}, config {}", env!("CARGO_PKG_VERSION"), loaded.path.display());
    log::info!(
        "provider {}/{}",
        provider.name,
        provider.model.as_deref().unwrap_or("(its usual model)")
    );

    let running = gateway::start(loaded.config, env.clone())?;
    if running.new_tokens {
        // The tokens themselves stay out of the log.
        log::warn!(
            "made new access tokens; they are in {}, readable by this user only",
            running.tokens_path()?.display()
        );
    }
    log::info!("listening at ws://{}/", running.addr());
    while signals.wait() == Signal::Reload {
        reload(&args, &env, &flags);
    }
    log::info!("stopping");
    running.stop(Deadline::after(GRACE));
    log::info!("stopped");
    Ok(())
}

/// Takes over what can change while connections are open: the log level. A file that cannot be read
/// changes nothing.
fn reload(args: &Args, env: &Env, flags: &[(&str, String)]) {
    match load(args, env, flags) {
        Ok(loaded) => {
            crate::base::log::set(loaded.config.log.level);
            log::warn!("took over log.level; the other settings apply after a restart");
        }
        Err(e) => crate::base::log::error("the config file was not reloaded", &e),
    }
}

/// Reads the config file; the first start writes one with the defaults.
fn load(args: &Args, env: &Env, flags: &[(&str, String)]) -> Result<Loaded> {
    let path = config::location(args.os("--config").map(std::path::Path::new), env);
    let loaded = config::load(&path, env, flags)?;
    if !loaded.file_exists {
        config::write_default(&path).context(path.display())?;
        log::info!("wrote a config file with the defaults to {}", path.display());
        return config::load(&path, env, flags);
    }
    Ok(loaded)
}
