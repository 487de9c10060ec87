//! The commands: their arguments, what they do, and how what they answer is printed.

use super::progress::Bar;
use super::show::{self, Form};
use crate::base::{Cancel, Code, Deadline, Error, Result, ResultExt, Signals, TreePath};
use crate::cli::{Args, print, usage};
use crate::mount::copy::{self, Job};
use crate::mount::world::World;
use crate::mount::{socket, status, verbs};
use crate::wire::Object;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// A command with its arguments.
pub enum Verb {
    Getattr(TreePath),
    /// The page that is asked for: its cookie and its length.
    Readdir(TreePath, Option<u64>, Option<u32>),
    Cat(TreePath),
    Write(TreePath, String),
    Get(TreePath, Option<OsString>),
    Put(OsString, TreePath),
    Mkdir(TreePath),
    Rmdir(TreePath),
    Unlink(TreePath),
    Rename(TreePath, TreePath),
    Truncate(TreePath, u64),
    Status {
        probe: bool,
    },
    /// Of the mount that runs at a directory.
    StatusOf {
        mount_point: PathBuf,
        probe: bool,
    },
    Mount(PathBuf),
}

impl Verb {
    pub fn parse(args: &Args) -> Result<Verb> {
        let command = args.word(0, "<command>").map_err(|_| usage("no command is given"))?;
        let path = |at: usize, name: &str| args.word(at, name)?.parse::<TreePath>();
        let number = |at: usize, name: &str| -> Result<Option<u64>> {
            let Some(_) = args.words.get(at) else { return Ok(None) };
            let word = args.word(at, name)?;
            let bad = |_| usage(format!("{name}: {word:?} is not a number"));
            word.parse().map(Some).map_err(bad)
        };
        let local =
            |at: usize, name: &str| args.path_word(at, name).map(|path| path.map(OsStr::to_owned));
        let one = |verb: fn(TreePath) -> Verb| -> Result<_> { Ok((verb(path(1, "<path>")?), 2)) };
        let (verb, words) = match &*command {
            "getattr" => one(Verb::Getattr)?,
            "readdir" => {
                let max = number(3, "[max]")?.map(|max| u32::try_from(max).unwrap_or(u32::MAX));
                (Verb::Readdir(path(1, "<path>")?, number(2, "[cookie]")?, max), 4)
            }
            "cat" => one(Verb::Cat)?,
            "write" => (Verb::Write(path(1, "<path>")?, args.word(2, "<content>")?), 3),
            "get" => (Verb::Get(path(1, "<remote>")?, local(2, "[local]")?), 3),
            "put" => {
                let local = local(1, "<local>")?.ok_or_else(|| usage("<local> is missing"))?;
                (Verb::Put(local, path(2, "<remote>")?), 3)
            }
            "mkdir" => one(Verb::Mkdir)?,
            "rmdir" => one(Verb::Rmdir)?,
            "unlink" => one(Verb::Unlink)?,
            "rename" => (Verb::Rename(path(1, "<old>")?, path(2, "<new>")?), 3),
            "truncate" => {
                let size = number(2, "<size>")?.ok_or_else(|| usage("<size> is missing"))?;
                (Verb::Truncate(path(1, "<path>")?, size), 3)
            }
            "status" => (status_of(args)?, 2),
            "mount" => {
                let at = local(1, "<mountpoint>")?;
                let at = at.ok_or_else(|| usage("<mountpoint> is missing"))?;
                (Verb::Mount(at.into()), 2)
            }
            unknown => return Err(usage(format!("unknown command: {unknown}"))),
        };
        args.at_most(words)?;
        let copies = matches!(verb, Verb::Get(..) | Verb::Put(..));
        let mounts = matches!(verb, Verb::Mount(_));
        let asks = matches!(verb, Verb::Status { .. } | Verb::StatusOf { .. });
        for (flag, fits, of) in [
            ("--recursive", copies, "get and put"),
            // Before those that it sets.
            ("-o", mounts, "mount"),
            ("--daemon", mounts, "mount"),
            ("--log-file", mounts, "mount"),
            ("--read-only", mounts, "mount"),
            ("--allow-other", mounts, "mount"),
            ("--no-probe", asks, "status"),
            ("--mount", asks, "status"),
        ] {
            if args.has(flag) && !fits {
                return Err(usage(format!("{flag} is for {of}")));
            }
        }
        Ok(verb)
    }

    /// What a command prints. Those that change something say "ok", whatever the form.
    pub fn run(self, world: &World, args: &Args) -> Result<()> {
        let form = show::form(args)?;
        let ok = |()| String::from("ok");
        let line = match self {
            Verb::Getattr(path) => {
                show::shown(form, verbs::getattr(world, &path)?, show::attributes)?
            }
            Verb::Readdir(path, cookie, max) => return readdir(world, &path, cookie, max, form),
            Verb::Cat(path) => {
                return verbs::cat(world, &path, &mut std::io::stdout());
            }
            Verb::Write(path, content) if content == "-" => {
                verbs::write(world, &path, &mut std::io::stdin()).map(ok)?
            }
            Verb::Write(path, content) => {
                verbs::write(world, &path, &mut content.as_bytes()).map(ok)?
            }
            Verb::Get(remote, local) => {
                return copying(world, args, |job| get(job, &remote, local));
            }
            Verb::Put(local, remote) if local == "-" => copying(world, args, |job| {
                copy::store(job, "standard input", &mut std::io::stdin(), &remote)
            })
            .map(ok)?,
            Verb::Put(local, remote) => {
                copying(world, args, |job| copy::put(job, Path::new(&local), &remote)).map(ok)?
            }
            Verb::Mkdir(path) => verbs::mkdir(world, &path).map(ok)?,
            Verb::Rmdir(path) => verbs::rmdir(world, &path).map(ok)?,
            Verb::Unlink(path) => verbs::unlink(world, &path).map(ok)?,
            Verb::Rename(from, to) => verbs::rename(world, &from, &to).map(ok)?,
            Verb::Truncate(path, size) => verbs::truncate(world, &path, size).map(ok)?,
            Verb::Status { probe } => {
                let deadline = probe.then(|| Deadline::after_ms(world.timeout_ms));
                show::shown(form, status::status(world, deadline).finish(), show::status)?
            }
            Verb::StatusOf { .. } | Verb::Mount(_) => unreachable!("need no world of their own"),
        };
        print(&format!("{line}\n"))
    }
}

fn status_of(args: &Args) -> Result<Verb> {
    let probe = !args.has("--no-probe");
    let word = args.path_word(1, "[mountpoint]")?.map(PathBuf::from);
    let flag = args.os("--mount").map(PathBuf::from);
    if word.is_some() && flag.is_some() {
        return Err(usage("give either [mountpoint] or --mount"));
    }
    Ok(match word.or(flag) {
        Some(mount_point) => Verb::StatusOf { mount_point, probe },
        None => Verb::Status { probe },
    })
}

/// Asks the mount that runs at a directory.
pub fn status_of_mount(mount_point: &Path, probe: bool, args: &Args) -> Result<()> {
    let form = show::form(args)?;
    let question = Object::new().put("op", "status").put("probe", probe);
    let answer = socket::ask(mount_point, question)?;
    print(&format!("{}\n", show::shown(form, answer, show::status)?))
}

/// One page as JSON, or the whole directory for people who ask for no page.
fn readdir(
    world: &World,
    path: &TreePath,
    cookie: Option<u64>,
    max: Option<u32>,
    form: Form,
) -> Result<()> {
    let max_or = |default| max.unwrap_or(default);
    if form == Form::Json {
        let page = verbs::readdir(world, path, cookie.unwrap_or(0), max_or(verbs::READDIR_MAX))?;
        return print(&format!("{page}\n"));
    }
    let mut at = cookie.unwrap_or(0);
    loop {
        let page = verbs::readdir(world, path, at, max_or(show::PAGE))?;
        let page = show::parse(&page)?;
        print(&show::listing(&page, form))?;
        let next = page["next"].as_u64().or(page["next_cookie"].as_u64()).unwrap_or(0);
        let ends = page["eof"].as_bool().unwrap_or(next == 0);
        if ends || max.is_some() || next == at {
            return Ok(());
        }
        at = next;
    }
}

/// Runs a copy, which a signal ends without leaving half a file behind.
fn copying(world: &World, args: &Args, copy: impl FnOnce(&Job<'_>) -> Result<()>) -> Result<()> {
    let (signals, cancel) = (Signals::install()?, Cancel::new());
    let on_signal = cancel.clone();
    std::thread::Builder::new()
        .name("interrupt".into())
        .spawn(move || {
            signals.wait();
            on_signal.cancel();
        })
        .context("signal thread")?;
    let bar = Bar::new();
    let progress = &bar;
    let job = Job { world, cancel: &cancel, recursive: args.has("--recursive"), progress };
    copy(&job)
}

fn get(job: &Job<'_>, remote: &TreePath, local: Option<OsString>) -> Result<()> {
    match local {
        Some(local) if local == "-" => match copy::fetch(job, remote, &mut std::io::stdout()) {
            Err(e) if e.errno() == libc::EPIPE => Ok(()),
            outcome => outcome,
        },
        Some(local) => copy::get(job, remote, Path::new(&local)),
        None if remote.is_root() => {
            Err(Error::new(Code::Usage, "[local] is missing: / has no name to take over"))
        }
        None => copy::get(job, remote, Path::new(".")),
    }
}
