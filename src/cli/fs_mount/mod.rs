//! The command line of spiderweb-fs-mount (spec: fs 17), and of the same program as mount.spiderweb.

pub mod helper;
mod mount;
mod options;
mod progress;
mod show;
mod sources;
mod verb;

use super::{Args, Command, Flag, Program, usage};
use crate::base::{Deadline, Result, ResultExt, Timer, log};
use crate::mount::world::{Source, World};
use crate::mount::{daemonize, workspace};
use crate::net::Net;
use crate::vfs::Disk;
use crate::wire::fs::Framing;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use verb::Verb;

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
        Command {
            name: "get",
            args: "<remote> [local|-]",
            help: "Copy a file, or with -r a directory, to this host",
        },
        Command {
            name: "put",
            args: "<local|-> <remote>",
            help: "Copy a file, or with -r a directory, from this host",
        },
        Command { name: "mkdir", args: "<path>", help: "Make a directory" },
        Command { name: "rmdir", args: "<path>", help: "Remove an empty directory" },
        Command { name: "unlink", args: "<path>", help: "Remove a file" },
        Command { name: "rename", args: "<old> <new>", help: "Rename a file or directory" },
        Command { name: "truncate", args: "<path> <size>", help: "Change a file's size" },
        Command {
            name: "status",
            args: "[mountpoint]",
            help: "Show the endpoints, or the mount that runs there, and whether they answer",
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
            "File with an endpoint's token (else SPIDERWEB_FS_TOKEN_NAME, SPIDERWEB_FS_TOKEN)",
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
        Flag::switch("--compress", "Compress file data and listings, for slow lines"),
        Flag::switch("--allow-other", "Let other users use the mount"),
        Flag::switch("--read-only", "Mount read-only"),
        Flag::repeated("-o", "options", "mount: options as in fstab, separated by commas"),
        Flag::switch("--daemon", "mount: go on in the background once the mount answers"),
        Flag::value("--log-file", "file", "mount: log there once the mount answers"),
        Flag::switch("--recursive", "get, put: copy directories too").or("-r"),
        Flag::value("--mount", "mountpoint", "status: of the mount that runs there"),
        Flag::switch("--no-probe", "status: tell what is known without asking"),
        Flag::switch("--json", "Print JSON, on a terminal too"),
        Flag::switch("--table", "Print tables, elsewhere too"),
        Flag::value("--log-level", "level", "error, warn, info, debug or trace (default info)"),
    ],
    examples: &[
        "spiderweb-fs-mount --endpoint a=ws://127.0.0.1:18891/v2/fs#work readdir /a",
        "spiderweb-fs-mount --endpoint a=ws://127.0.0.1:18891/v2/fs#work@/src cat /src/README.md",
        "spiderweb-fs-mount --endpoint a=ws://h1:18891/v2/fs@/src --endpoint b=ws://h2:18891/v2/fs@/src status",
        "spiderweb-fs-mount --endpoint a=ws://127.0.0.1:18891/v2/fs#work get -r /a/src .",
        "spiderweb-fs-mount --workspace-url ws://127.0.0.1:18790/ mount --daemon /mnt/spiderweb",
        "spiderweb-fs-mount status /mnt/spiderweb",
    ],
};

/// Runs the program under the name that it was called by.
pub fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or_default();
    if name.as_bytes() == helper::NAME.as_bytes() {
        return super::main_with(&helper::PROGRAM, helper::run, helper::status);
    }
    super::main(&PROGRAM, run)
}

pub fn run(mut args: Args) -> Result<()> {
    options::apply(&mut args, false)?;
    if args.has("-o workspace") {
        return Err(usage("-o workspace is for mount.spiderweb(8); give --workspace-url"));
    }
    start(&args, false)
}

/// Runs a command, after the command line was checked as a whole.
fn start(args: &Args, check_only: bool) -> Result<()> {
    let level = args.string("--log-level")?;
    let level = level.map_or(Ok(::log::LevelFilter::Info), |level| log::parse_level(&level));
    log::set(level.map_err(|e| usage(format!("--log-level: {}", e.message)))?);
    let verb = Verb::parse(args)?;
    if let Verb::StatusOf { mount_point, probe } = &verb {
        return verb::status_of_mount(mount_point, *probe, args);
    }
    let endpoints = sources::endpoints(args)?;
    let gateway = sources::gateway(args)?;
    let timeout_ms = args.parsed("--timeout-ms", "a number of milliseconds")?.unwrap_or(15_000);
    if timeout_ms == 0 {
        return Err(usage("--timeout-ms: must not be 0"));
    }
    let what = "a number of milliseconds, or 0";
    let interval_ms = args.parsed("--workspace-sync-interval-ms", what)?.unwrap_or(5_000);
    let explicit: Vec<Source> = endpoints.into_iter().map(Into::into).collect();
    let source = match (&gateway, explicit.first()) {
        (_, Some(source)) => source.endpoint.url.to_string(),
        (Some(gateway), None) => gateway.url.to_string(),
        (None, None) => String::new(),
    };
    let options = options::read(args, source, timeout_ms)?;
    let (cache_bytes, cache_dir) = (options.cache_bytes, options.cache_dir.clone());
    let plan = match &verb {
        Verb::Mount(at) => {
            let at = at.clone();
            let sync = |gateway| mount::Sync { gateway, explicit: explicit.clone(), interval_ms };
            Some(mount::plan(args, at, options, gateway.clone().map(sync)))
        }
        _ => None,
    };
    if check_only {
        return Ok(());
    }
    if plan.as_ref().is_some_and(|plan| plan.background) {
        if !daemonize::in_background() {
            return match daemonize::start()? {
                0 => Ok(()),
                // It has said why.
                status => std::process::exit(status.into()),
            };
        }
        daemonize::leave_terminal()?;
    }
    let timer = Timer::start()?;
    // One thread moves a single command's data; a mount gets one per core.
    let net = Net::start(usize::from(plan.is_none()), timer.clone())?;
    let framing = if args.has("--compress") { Framing::Lz4 } else { Framing::Binary };
    let disk = cache_dir.map(|(dir, bytes)| Disk::open(&dir, bytes)).transpose();
    let disk = disk.context("-o cache_dir")?;
    let world = World::new(net.clone(), timeout_ms, cache_bytes, framing, disk)?;
    let wanted = match &gateway {
        Some(gateway) => workspace::hydrate(&world, &net, gateway, &explicit)?,
        None => explicit.iter().map(|source| world.attach(source)).collect(),
    };
    world.set(wanted)?;
    let world = Arc::new(world);
    let outcome = match plan {
        Some(plan) => mount::run(&world, &net, plan),
        None => verb.run(&world, args),
    };
    world.stop();
    net.stop(Deadline::after_ms(0));
    timer.stop();
    outcome
}
