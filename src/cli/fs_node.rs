//! `spiderweb-fs-node`: exports directories of this machine, by listening or through a gateway
//! (spec: fs 9).

mod grant;

use super::{Args, Flag, Program, token_file, usage};
use crate::base::{Code, Deadline, Error, Result, Signal, Signals, id};
use crate::config::Env;
use crate::net::WsUrl;
use crate::node::{self, Backoff, ExportSpec, Membership, Mode, Options, Pairing, Sources, Way};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const PROGRAM: Program = Program {
    name: "spiderweb-fs-node",
    section: 1,
    about: "exports directories and services of this machine to a spiderweb gateway or to clients",
    usage: &[
        "[options]",
        "--control-url <ws-url> [options]",
        "--grant <export>[:ro][,...] [--grant-ttl <time>] [options]",
    ],
    commands: &[],
    flags: &[
        Flag::repeated(
            "--export",
            "spec",
            "NAME=DIRECTORY[:ro|:rw] [work=. if there is nothing else]",
        ),
        Flag::value("--bind", "ip", "Listen on this address [127.0.0.1]"),
        Flag::value("--port", "n", "Listen on this port, 0 for a free one [18891]"),
        Flag::value("--auth-token", "token", "Token asked of clients; better in a file"),
        Flag::value("--auth-token-file", "file", "File that holds that token"),
        Flag::value(
            "--grant",
            "exports",
            "Print a token for EXPORT[:ro][,EXPORT...] only, and end",
        ),
        Flag::value("--grant-ttl", "time", "How long that token is good, as in 12h [30d]"),
        Flag::value("--grant-sub", "name", "For whom that token is"),
        Flag::value("--control-url", "ws-url", "Belong to this gateway instead of listening"),
        Flag::value(
            "--control-auth-token",
            "token",
            "Bearer token for the gateway; better in SPIDERWEB_AUTH_TOKEN",
        ),
        Flag::value(
            "--operator-token",
            "token",
            "Approve the own request to join; needs a token for the gateway",
        ),
        Flag::value("--pair-mode", "mode", "invite or request [invite with a token, else request]"),
        Flag::value(
            "--invite-token",
            "token",
            "Invite to join with; better in SPIDERWEB_INVITE_TOKEN",
        ),
        Flag::value("--node-name", "name", "Name of this node [spiderweb-fs-node]"),
        Flag::value("--fs-url", "ws-url", "Where others reach this node [over the gateway]"),
        Flag::value(
            "--state-file",
            "file",
            "Where the node keeps who it is [.spiderweb-fs-node-state.json]",
        ),
        Flag::value("--lease-ttl-ms", "n", "Lease to ask for [900000]"),
        Flag::value(
            "--refresh-interval-ms",
            "n",
            "Time between lease refreshes [60000, at most a third of the lease]",
        ),
        Flag::value("--reconnect-backoff-ms", "n", "First wait after a failure [5000]"),
        Flag::value("--reconnect-backoff-max-ms", "n", "Longest wait after failures [60000]"),
        Flag::repeated("--label", "key=value", "Label shown by the gateway"),
        Flag::switch("--no-fs-service", "Do not publish the service fs"),
        Flag::repeated("--terminal-id", "id", "Offer a terminal"),
        Flag::repeated("--service-manifest", "file", "Offer the service that this file describes"),
        Flag::repeated("--services-dir", "dir", "Offer the services of all .json files in here"),
        Flag::value(
            "--manifest-reload-interval-ms",
            "n",
            "Time between looks at the manifests, with --control-url [2000]",
        ),
    ],
    examples: &[
        "spiderweb-fs-node --export work=.:rw",
        "spiderweb-fs-node --export docs=/srv/docs:ro --control-url ws://gateway:18790/",
        "SPIDERWEB_INVITE_TOKEN=inv-... spiderweb-fs-node --control-url ws://gateway:18790/",
        "spiderweb-fs-node --grant work,docs:ro --grant-ttl 12h --auth-token-file node.token",
        "spiderweb-fs-node --services-dir /usr/local/share/spiderweb/services --terminal-id 1",
    ],
};

/// Flags of a node that listens.
const LISTENING: &[&str] = &["--bind", "--port", "--auth-token", "--auth-token-file"];
/// Flags of a node that belongs to a gateway.
const MEMBERSHIP: &[&str] = &[
    "--control-auth-token",
    "--operator-token",
    "--pair-mode",
    "--invite-token",
    "--fs-url",
    "--lease-ttl-ms",
    "--refresh-interval-ms",
    "--reconnect-backoff-ms",
    "--reconnect-backoff-max-ms",
    "--label",
    "--no-fs-service",
    "--manifest-reload-interval-ms",
];

/// Time that requests in flight are given at the end.
const GRACE: Duration = Duration::from_secs(10);
/// Labels that a gateway takes of one node, and bytes of a value.
const LABELS_MAX: usize = 100;
const LABEL_VALUE_MAX: usize = 512;
/// So that `terminal-ID` is a name that a gateway takes.
const TERMINAL_ID_MAX: usize = 119;
const TERMINALS_MAX: usize = 32;
const RELOAD_INTERVAL_MS: u64 = 2_000;
const REFRESH_MS: u64 = 60_000;
/// Shortest lease that a gateway gives.
const LEASE_MIN_MS: u64 = 1000;

pub fn run(args: Args) -> Result<()> {
    crate::base::memory::be_frugal();
    args.at_most(0)?;
    crate::base::log::set(log::LevelFilter::Info);
    let env = Env::process();
    if grant::run(&args, &env)? {
        return Ok(());
    }
    let options = options(&args, &env)?;
    if !options.manifests.is_empty() || !options.terminals.is_empty() {
        node::start_keeper()?;
    }
    let signals = Signals::install()?;
    let running = node::start(options)?;
    while signals.wait() == Signal::Reload {
        log::info!("reading the manifests of services again");
        running.reload();
    }
    log::info!("stopping");
    running.stop(Deadline::after(GRACE));
    Ok(())
}

fn options(args: &Args, env: &Env) -> Result<Options> {
    let name = args.string("--node-name")?.unwrap_or_else(|| "spiderweb-fs-node".into());
    if !id::is_identifier(&name, 128) {
        return Err(usage(format!("--node-name {name:?}: 1 to 128 of A-Z a-z 0-9 . _ -")));
    }
    let exports: Vec<ExportSpec> =
        args.all("--export")?.iter().map(|spec| spec.parse()).collect::<Result<_>>()?;
    // A flag that is wrong is told also where it has no effect.
    let (addr, member) = (addr(args)?, membership(args, env)?);
    let mode = match args.string("--control-url")? {
        Some(url) => {
            warn_of(args, LISTENING, "with --control-url: clients come through the gateway");
            Mode::Member(Box::new(member(ws_url("--control-url", &url)?)))
        }
        None => {
            warn_of(args, MEMBERSHIP, "without --control-url");
            Mode::Alone {
                addr,
                token: client_token(args, env)?,
                state_file: args.os("--state-file").map(PathBuf::from),
            }
        }
    };
    let paths = |flag: &str| args.all_os(flag).map(PathBuf::from).collect();
    let manifests = Sources { files: paths("--service-manifest"), dirs: paths("--services-dir") };
    let interval_ms = args.parsed("--manifest-reload-interval-ms", "a number of milliseconds")?;
    Ok(Options {
        name,
        exports,
        manifests,
        reload_interval_ms: interval_ms.filter(|ms| *ms > 0).unwrap_or(RELOAD_INTERVAL_MS),
        terminals: terminals(args)?,
        mode,
    })
}

fn warn_of(args: &Args, flags: &[&'static str], why: &str) {
    for flag in flags.iter().filter(|flag| args.has(flag)) {
        log::warn!("{flag} has no effect {why}");
    }
}

fn terminals(args: &Args) -> Result<Vec<String>> {
    let ids = args.all("--terminal-id")?;
    for (n, id) in ids.iter().enumerate() {
        if !id::is_identifier(id, TERMINAL_ID_MAX) {
            let text = format!("--terminal-id {id:?}: 1 to {TERMINAL_ID_MAX} of A-Z a-z 0-9 . _ -");
            return Err(usage(text));
        }
        if ids[..n].contains(id) {
            return Err(usage(format!("--terminal-id {id:?} is given twice")));
        }
    }
    if ids.len() > TERMINALS_MAX {
        return Err(usage(format!("--terminal-id: at most {TERMINALS_MAX} terminals")));
    }
    Ok(ids)
}

fn addr(args: &Args) -> Result<SocketAddr> {
    let ip = args.parsed("--bind", "an IP address")?.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    Ok(SocketAddr::new(ip, args.parsed("--port", "a port")?.unwrap_or(18891)))
}

/// The token that clients of a listening node must know.
fn client_token(args: &Args, env: &Env) -> Result<Option<String>> {
    let (flag, file) = (args.string("--auth-token")?, args.os("--auth-token-file"));
    let token = match (flag, file) {
        (Some(_), Some(_)) => {
            return Err(usage("--auth-token and --auth-token-file: give one of them"));
        }
        (Some(token), None) => Some(token),
        (None, Some(file)) => Some(token_file("--auth-token-file", Path::new(file))?),
        (None, None) => secret(env, "SPIDERWEB_FS_NODE_AUTH_TOKEN"),
    };
    // One that is empty would open the door that it is meant to close.
    match token {
        Some(token) if token.trim().is_empty() => Err(usage("--auth-token is empty")),
        token => Ok(token),
    }
}

/// A secret from the environment; an empty one is none.
fn secret(env: &Env, name: &str) -> Option<String> {
    env.get(name).map(|s| s.trim().to_owned()).filter(|s| !s.is_empty())
}

/// What a node tells the gateway at a URL.
fn membership(args: &Args, env: &Env) -> Result<impl FnOnce(WsUrl) -> Membership + use<>> {
    let given = |flag: &str, var: &str| -> Result<Option<String>> {
        Ok(args.string(flag)?.filter(|t| !t.is_empty()).or_else(|| secret(env, var)))
    };
    let token = given("--control-auth-token", "SPIDERWEB_AUTH_TOKEN")?;
    let operator_token = args.string("--operator-token")?.filter(|t| !t.is_empty());
    if operator_token.is_some() && token.is_none() {
        return Err(usage(
            "--operator-token needs --control-auth-token or SPIDERWEB_AUTH_TOKEN: only who may \
             approve nodes can approve this one",
        ));
    }
    let state_file: PathBuf =
        args.os("--state-file").unwrap_or(".spiderweb-fs-node-state.json".as_ref()).into();
    let invite = given("--invite-token", "SPIDERWEB_INVITE_TOKEN")?;
    let pairing = match (args.string("--pair-mode")?.as_deref(), invite) {
        (Some("invite") | None, Some(token)) => Pairing::Invite(token),
        (Some("request"), _) | (None, None) => Pairing::Request,
        // Who has joined needs no invite, and asks once the gateway has forgotten him, as with one that is
        // used up.
        (Some("invite"), None) if state_file.exists() => Pairing::Request,
        (Some("invite"), None) => {
            return Err(usage(
                "--pair-mode invite needs --invite-token or SPIDERWEB_INVITE_TOKEN until the node \
                 has joined",
            ));
        }
        (Some(mode), _) => {
            return Err(usage(format!("--pair-mode: {mode:?} is neither invite nor request")));
        }
    };
    let lease_ttl_ms = ms(args, "--lease-ttl-ms", 900_000)?;
    // In time also where one refresh fails.
    let refresh_interval_ms =
        ms(args, "--refresh-interval-ms", (lease_ttl_ms / 3).clamp(1, REFRESH_MS))?;
    if lease_ttl_ms < LEASE_MIN_MS || refresh_interval_ms >= lease_ttl_ms {
        return Err(usage(format!(
            "--lease-ttl-ms must be at least {LEASE_MIN_MS} and more than --refresh-interval-ms, \
             or the lease runs out"
        )));
    }
    let base_ms = ms(args, "--reconnect-backoff-ms", 5_000)?;
    let max_ms = ms(args, "--reconnect-backoff-max-ms", base_ms.max(60_000))?;
    if max_ms < base_ms {
        return Err(usage("--reconnect-backoff-max-ms is less than --reconnect-backoff-ms"));
    }
    let (fs_url, labels) = (fs_url(args)?, labels(args)?);
    let fs_service = !args.has("--no-fs-service");
    Ok(move |url| Membership {
        way: Way { url, token },
        pairing,
        fs_url,
        state_file,
        lease_ttl_ms,
        refresh_interval_ms,
        backoff: Backoff { base_ms, max_ms },
        fs_service,
        labels,
        operator_token,
    })
}

fn ms(args: &Args, flag: &str, default: u64) -> Result<u64> {
    match args.parsed(flag, "a number of milliseconds")?.unwrap_or(default) {
        0 => Err(usage(format!("{flag} must be more than 0"))),
        ms => Ok(ms),
    }
}

fn ws_url(flag: &str, url: &str) -> Result<WsUrl> {
    url.parse().map_err(|e: Error| e.recode(Code::Usage).context(flag))
}

/// Errors: as the gateway would refuse it (spec: control 7).
fn fs_url(args: &Args) -> Result<Option<String>> {
    let Some(url) = args.string("--fs-url")?.filter(|u| !u.is_empty()) else { return Ok(None) };
    let path = ws_url("--fs-url", &url)?.path().to_owned();
    if !path.contains("/v2/fs") {
        return Err(usage(format!("--fs-url {url:?}: the path must lead to /v2/fs")));
    }
    Ok(Some(url))
}

fn labels(args: &Args) -> Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    for label in args.all("--label")? {
        let bad = |what: &str| usage(format!("--label {label:?}: {what}"));
        let (key, value) = label.split_once('=').ok_or_else(|| bad("write KEY=VALUE"))?;
        if !id::is_identifier(key, 128) {
            return Err(bad("the key must be 1 to 128 of A-Z a-z 0-9 . _ -"));
        }
        if value.is_empty() || value.len() > LABEL_VALUE_MAX || value.contains(char::is_control) {
            return Err(bad("the value must be 1 to 512 bytes without control characters"));
        }
        if labels.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(bad("the key is given twice"));
        }
    }
    if labels.len() > LABELS_MAX {
        return Err(usage(format!("--label: at most {LABELS_MAX} labels")));
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_renewed_well_before_it_ends() {
        let refresh_ms = |given: &[(&'static str, &str)]| {
            let mut args = Args::default();
            given.iter().for_each(|(flag, value)| args.set(flag, *value));
            let member = membership(&args, &Env::default())?;
            Ok::<_, Error>(member("ws://h/".parse()?).refresh_interval_ms)
        };
        assert_eq!(refresh_ms(&[]).unwrap(), 60_000);
        assert_eq!(refresh_ms(&[("--lease-ttl-ms", "30000")]).unwrap(), 10_000);
        let both = |refresh| {
            refresh_ms(&[("--lease-ttl-ms", "30000"), ("--refresh-interval-ms", refresh)])
        };
        assert_eq!(both("29999").unwrap(), 29_999);
        assert!(both("30000").unwrap_err().message.contains("the lease runs out"));
    }
}
