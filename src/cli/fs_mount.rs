//! The command line of spiderweb-fs-mount (spec: fs 17).

use super::flags::{Args, Command, Flag, Program, usage};
use crate::base::{Deadline, Error, Result, ResultExt, Signal, Signals, Timer, TreePath, log};
use crate::mount::endpoint::{self, Endpoint};
use crate::mount::workspace::{self, Gateway};
use crate::mount::world::{Source, World};
use crate::mount::{fuse, point, status, verbs};
use crate::net::{Net, WsUrl};
use std::path::Path;
use std::sync::Arc;

/// Time for running operations when the mount ends.
const GRACE_MS: u64 = 10_000;

pub const PROGRAM: Program = Program {
    name: "spiderweb-fs-mount",
    section: 1,
    about: "list, read, write and mount exports, workspaces and the namespace",
    usage: &["[options] <command> [args]"],
    commands: &[
        Command { name: "getattr", args: "<path>", help: "Print a file's attributes" },
        Command { name: "readdir", args: "<path> [cookie] [max]", help: "List a directory" },
        Command { name: "cat", args: "<path>", help: "Print a file" },
        Command {
            name: "write",
            args: "<path> <content|->",
            help: "Replace a file's content; - is standard input",
        },
        Command { name: "mkdir", args: "<path>", help: "Make a directory" },
        Command { name: "rmdir", args: "<path>", help: "Remove an empty directory" },
        Command { name: "unlink", args: "<path>", help: "Remove a file" },
        Command { name: "rename", args: "<old> <new>", help: "Rename a file or directory" },
        Command { name: "truncate", args: "<path> <size>", help: "Change a file's size" },
        Command {
            name: "status",
            args: "[--no-probe]",
            help: "Show the endpoints and whether they answer",
        },
        Command {
            name: "mount",
            args: "<mountpoint>",
            help: "Mount everything, until unmounted or stopped",
        },
    ],
    flags: &[
        Flag::repeated(
            "--endpoint",
            "name=url[#export][@/mount]",
            "An export to mount; the same mount path again makes a stand-in",
        ),
        Flag::repeated(
            "--endpoint-token-file",
            "name=file",
            "File with an endpoint's token (else SPIDERWEB_FS_TOKEN)",
        ),
        Flag::value("--workspace-url", "url", "Mount what the gateway there offers"),
        Flag::value("--project-id", "id", "The workspace's project"),
        Flag::value("--project-token", "token", "The project's token; needs --project-id"),
        Flag::value("--agent-id", "id", "The agent whose namespace is shown"),
        Flag::value("--auth-token", "token", "Bearer for the gateway (else SPIDERWEB_AUTH_TOKEN)"),
        Flag::value("--auth-token-file", "file", "File that holds it, or auth_tokens.json"),
        Flag::value(
            "--workspace-sync-interval-ms",
            "ms",
            "How often mount asks the gateway for changes; 0: never (default 5000)",
        ),
        Flag::value("--timeout-ms", "ms", "Time for each file operation (default 15000)"),
        Flag::switch("--allow-other", "Let other users use the mount"),
        Flag::switch("--read-only", "Mount read-only"),
        Flag::switch("--no-probe", "status: tell what is known without asking"),
        Flag::value("--log-level", "level", "error, warn, info, debug or trace (default info)"),
    ],
    examples: &[
        "spiderweb-fs-mount --endpoint a=ws://127.0.0.1:18891/v2/fs#work readdir /a",
        "spiderweb-fs-mount --endpoint a=ws://127.0.0.1:18891/v2/fs#work@/src cat /src/README.md",
        "spiderweb-fs-mount --endpoint a=ws://h1:18891/v2/fs@/src --endpoint b=ws://h2:18891/v2/fs@/src status",
        "spiderweb-fs-mount --workspace-url ws://127.0.0.1:18790/ mount /mnt/spiderweb",
    ],
};

pub fn run(args: Args) -> Result<()> {
    let level = args.string("--log-level")?;
    log::set(level.map_or(Ok(::log::LevelFilter::Info), |level| log::parse_level(&level))?);
    let command = args.word(0, "<command>").map_err(|_| usage("no command is given"))?;
    // The command line is checked as a whole before anything is connected.
    let verb = Verb::parse(&command, &args)?;
    let endpoints = endpoints(&args)?;
    let gateway = gateway(&args)?;
    let timeout_ms = args.parsed("--timeout-ms", "a number of milliseconds")?.unwrap_or(15_000);
    if timeout_ms == 0 {
        return Err(usage("--timeout-ms: must not be 0"));
    }
    let timer = Timer::start()?;
    // One thread moves a single command's data; a mount gets one per core.
    let threads = usize::from(!matches!(verb, Verb::Mount(_)));
    let net = Net::start(threads, timer.clone())?;
    let world = World::new(net.clone(), timeout_ms)?;
    let explicit: Vec<Source> = endpoints.into_iter().map(Into::into).collect();
    let wanted = match &gateway {
        Some(gateway) => workspace::hydrate(&world, &net, gateway, &explicit)?,
        None => explicit.iter().map(|source| world.attach(source)).collect(),
    };
    world.set(wanted)?;
    let world = Arc::new(world);
    let outcome = match verb {
        Verb::Mount(at) => {
            let sync = gateway.map(|gateway| (gateway, explicit));
            mount(&args, &world, &net, Path::new(&at), sync)
        }
        verb => verb.run(&world),
    };
    world.stop();
    net.stop(Deadline::after_ms(0));
    timer.stop();
    outcome
}

/// A command with its arguments.
enum Verb {
    Getattr(TreePath),
    Readdir(TreePath, u64, u32),
    Cat(TreePath),
    Write(TreePath, String),
    Mkdir(TreePath),
    Rmdir(TreePath),
    Unlink(TreePath),
    Rename(TreePath, TreePath),
    Truncate(TreePath, u64),
    Status { probe: bool },
    Mount(String),
}

impl Verb {
    fn parse(command: &str, args: &Args) -> Result<Verb> {
        let path = |at: usize, name: &str| args.word(at, name)?.parse::<TreePath>();
        let number =
            |at: usize, name: &str, default: Option<u64>| match (args.words.get(at), default) {
                (None, Some(default)) => Ok(default),
                _ => {
                    let word = args.word(at, name)?;
                    word.parse().map_err(|_| usage(format!("{name}: {word:?} is not a number")))
                }
            };
        let one = |verb: fn(TreePath) -> Verb| -> Result<_> { Ok((verb(path(1, "<path>")?), 2)) };
        let (verb, words) = match command {
            "getattr" => one(Verb::Getattr)?,
            "readdir" => {
                let max = number(3, "[max]", Some(u64::from(verbs::READDIR_MAX)))?;
                let max = u32::try_from(max).unwrap_or(u32::MAX);
                (Verb::Readdir(path(1, "<path>")?, number(2, "[cookie]", Some(0))?, max), 4)
            }
            "cat" => one(Verb::Cat)?,
            "write" => (Verb::Write(path(1, "<path>")?, args.word(2, "<content>")?), 3),
            "mkdir" => one(Verb::Mkdir)?,
            "rmdir" => one(Verb::Rmdir)?,
            "unlink" => one(Verb::Unlink)?,
            "rename" => (Verb::Rename(path(1, "<old>")?, path(2, "<new>")?), 3),
            "truncate" => (Verb::Truncate(path(1, "<path>")?, number(2, "<size>", None)?), 3),
            "status" => (Verb::Status { probe: !args.has("--no-probe") }, 1),
            "mount" => (Verb::Mount(args.word(1, "<mountpoint>")?), 2),
            unknown => return Err(usage(format!("unknown command: {unknown}"))),
        };
        args.at_most(words)?;
        Ok(verb)
    }

    fn run(self, world: &World) -> Result<()> {
        let ok = |()| String::from("ok");
        let line = match self {
            Verb::Getattr(path) => verbs::getattr(world, &path)?,
            Verb::Readdir(path, cookie, max) => verbs::readdir(world, &path, cookie, max)?,
            Verb::Cat(path) => {
                return verbs::cat(world, &path, &mut std::io::stdout().lock());
            }
            Verb::Write(path, content) if content == "-" => {
                verbs::write(world, &path, &mut std::io::stdin().lock()).map(ok)?
            }
            Verb::Write(path, content) => {
                verbs::write(world, &path, &mut content.as_bytes()).map(ok)?
            }
            Verb::Mkdir(path) => verbs::mkdir(world, &path).map(ok)?,
            Verb::Rmdir(path) => verbs::rmdir(world, &path).map(ok)?,
            Verb::Unlink(path) => verbs::unlink(world, &path).map(ok)?,
            Verb::Rename(from, to) => verbs::rename(world, &from, &to).map(ok)?,
            Verb::Truncate(path, size) => verbs::truncate(world, &path, size).map(ok)?,
            Verb::Status { probe } => {
                status::status(world, probe.then(|| Deadline::after_ms(world.timeout_ms)))
            }
            Verb::Mount(_) => unreachable!("mounted, not run"),
        };
        super::print(&format!("{line}\n"));
        Ok(())
    }
}

fn endpoints(args: &Args) -> Result<Vec<Endpoint>> {
    let mut specs = args.all("--endpoint")?;
    if specs.is_empty() && !args.has("--workspace-url") {
        specs.push(endpoint::DEFAULT.into());
    }
    let mut all: Vec<Endpoint> = specs.iter().map(|s| s.parse()).collect::<Result<_>>()?;
    let default = std::env::var("SPIDERWEB_FS_TOKEN").ok().filter(|t| !t.is_empty());
    all.iter_mut().for_each(|e| e.token.clone_from(&default));
    for spec in args.all("--endpoint-token-file")? {
        let flag = format!("--endpoint-token-file {spec:?}");
        let (name, file) =
            spec.split_once('=').ok_or_else(|| usage(format!("{flag}: write NAME=FILE")))?;
        let token = std::fs::read_to_string(file).context(&flag)?;
        let token = Some(token.trim().to_owned()).filter(|t| !t.is_empty());
        let token = token.ok_or_else(|| usage(format!("{flag}: the file is empty")))?;
        let mut named = all.iter_mut().filter(|e| e.name == name).peekable();
        if named.peek().is_none() {
            return Err(usage(format!("{flag}: there is no endpoint {name:?}")));
        }
        named.for_each(|e| e.token = Some(token.clone()));
    }
    Ok(all)
}

fn gateway(args: &Args) -> Result<Option<Gateway>> {
    let project_id = args.string("--project-id")?;
    let project_token = args.string("--project-token")?;
    if project_token.is_some() && project_id.is_none() {
        return Err(usage("--project-token needs --project-id"));
    }
    let Some(url) = args.parsed::<WsUrl>("--workspace-url", "a ws:// or wss:// URL")? else {
        return Ok(None);
    };
    let bearer = super::bearer(args)?;
    Ok(Some(Gateway {
        url,
        bearer,
        agent_id: args.string("--agent-id")?,
        project_id,
        project_token,
    }))
}

/// The workspace to follow, and what is mounted whatever it says.
type Sync = (Gateway, Vec<Source>);

fn mount(
    args: &Args,
    world: &Arc<World>,
    net: &Arc<Net>,
    at: &Path,
    sync: Option<Sync>,
) -> Result<()> {
    let what = "a number of milliseconds";
    let interval_ms = args.parsed("--workspace-sync-interval-ms", what)?.unwrap_or(5000);
    let at = point::prepare(at)?;
    let signals = Signals::install()?;
    let sources = world.attached();
    let source = sources.first().map_or_else(String::new, |a| a.url().to_string());
    let options = fuse::Options {
        source,
        allow_other: args.has("--allow-other"),
        read_only: args.has("--read-only"),
        timeout_ms: world.timeout_ms,
    };
    let mounted = fuse::mount(world.tree.clone(), &at, &options, signals.stopper())?;
    match mounted.check() {
        Ok(()) => ::log::info!("mounted on {}", at.display()),
        Err(e) => ::log::warn!("mounted on {}, but its root does not answer: {e}", at.display()),
    }
    let sync = sync
        .filter(|_| interval_ms > 0)
        .map(|(gateway, explicit)| {
            workspace::follow(world.clone(), net.clone(), gateway, explicit, interval_ms)
        })
        .transpose();
    if sync.is_ok() {
        while signals.wait() != Signal::Stop {}
    }
    mounted.unmount(Deadline::after_ms(GRACE_MS));
    if let Some(following) = sync? {
        following.stop();
    }
    ::log::info!("unmounted {}", at.display());
    Ok::<(), Error>(())
}
