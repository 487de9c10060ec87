//! A program that goes on in the background once its work has begun. It is started a second time, as a
//! process of its own with a pipe to the first, before either has threads; the first waits for what the
//! second says and ends with it. So whoever started it knows whether it works, and sees why not.

use crate::base::{Code, Error, Result, ResultExt};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Set for the second process to the pid of the first.
const PARENT: &str = "SPIDERWEB_DAEMON_PARENT";
/// What the second says when it works.
const READY: &[u8] = b"ready\n";

/// True in the process that goes on in the background: its standard output is the pipe.
pub fn in_background() -> bool {
    let parent = std::env::var(PARENT).ok().and_then(|pid| pid.parse().ok());
    parent == Some(nix::unistd::getppid().as_raw())
}

/// Starts this program again with the same arguments, and waits until it works or has ended. What it
/// says on standard error until then goes to this one's. Returns the status to end with.
pub fn start() -> Result<u8> {
    let mut args = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args).env(PARENT, std::process::id().to_string());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting in the background")?;
    let mut said = Vec::new();
    if let Some(pipe) = child.stdout.take() {
        pipe.take(READY.len() as u64).read_to_end(&mut said).context("background process")?;
    }
    if said == READY {
        return Ok(0);
    }
    let status = child.wait().context("background process")?;
    match status.code() {
        Some(code) if code != 0 => Ok(u8::try_from(code).unwrap_or(1)),
        _ => Err(Error::new(Code::Eio, format!("the background process ended early: {status}"))),
    }
}

/// Where messages go once the program works.
pub struct Log(File);

impl Log {
    /// Appends to a file, which is made readable for its owner alone. Errors: the host's, naming it.
    pub fn to(path: &Path) -> Result<Log> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        Ok(Log(file.context(format!("log file {}", path.display()))?))
    }

    pub fn nowhere() -> Result<Log> {
        Ok(Log(File::options().write(true).open("/dev/null").context("/dev/null")?))
    }

    /// Sends standard error there from now on.
    pub fn take_over(&self) -> Result<()> {
        nix::unistd::dup2_stderr(self.0.as_fd()).context("standard error")
    }
}

/// In the background: becomes a session of its own, so that no terminal's end is its end.
pub fn leave_terminal() -> Result<()> {
    nix::unistd::setsid().map(drop).context("setsid")
}

/// In the background: lets the first process end well, and holds on to nothing of where it was started.
pub fn detach() -> Result<()> {
    let _ = std::io::stdout().write_all(READY).and_then(|()| std::io::stdout().flush());
    let nothing = File::options().write(true).open("/dev/null").context("/dev/null")?;
    nix::unistd::dup2_stdout(nothing.as_fd()).context("standard output")?;
    std::env::set_current_dir("/").context("/")
}
