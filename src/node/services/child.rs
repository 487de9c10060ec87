//! Child processes: started clean, each the leader of a session of its own, and ended together with all
//! that they have started. Nothing here knows what a service is.

use super::family::{adopt_orphans, end, end_orphans, leaders};
use super::keeper;
use crate::base::{Cancel, Code, Deadline, Error, OnCancel, Result, ResultExt};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

/// Bytes of standard output, and of standard error, that a child may write (spec: fs 15.3).
pub const OUTPUT_MAX: usize = 1 << 20;
/// What children get of this program's environment.
const INHERITED: [&str; 3] = ["PATH", "HOME", "LANG"];
const PATH_DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin";
/// How long the end of a killed process is waited for: one that hangs in the kernel is left behind.
const REAP_MS: u64 = 2_000;

/// What to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// The program, then its arguments.
    pub argv: Vec<OsString>,
    /// Besides what every child gets.
    pub env: BTreeMap<String, String>,
    /// By default the directory in which this program runs.
    pub cwd: Option<PathBuf>,
}

/// What became of a child.
#[derive(Debug, PartialEq, Eq)]
pub struct Ran {
    pub end: End,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Exited(i32),
    /// By a signal, be it from here.
    Killed,
    TimedOut,
}

impl End {
    /// -1 where it did not exit by itself (spec: fs 15.3).
    pub fn exit_code(self) -> i32 {
        match self {
            End::Exited(code) => code,
            End::Killed | End::TimedOut => -1,
        }
    }
}

impl From<ExitStatus> for End {
    fn from(status: ExitStatus) -> End {
        match status.code() {
            Some(code) => End::Exited(code),
            None => End::Killed,
        }
    }
}

/// Runs a program: `input` on its standard input, then the end of it. It is killed when `deadline`
/// passes, on `cancel`, and when it writes too much. Errors: the host's when it cannot be started; EIO
/// past [`OUTPUT_MAX`].
pub fn run(program: &Program, input: &[u8], deadline: Deadline, cancel: &Cancel) -> Result<Ran> {
    let mut command = command(program)?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut leader = Leader::spawn(&mut command)?;
    let bell = Bell::on(cancel)?;
    let mut stdin = leader.child.stdin.take().filter(|_| !input.is_empty());
    let (stdout, stderr) = (leader.child.stdout.take(), leader.child.stderr.take());
    let mut out = [Drain::of(stdout.map(OwnedFd::from))?, Drain::of(stderr.map(OwnedFd::from))?];
    if let Some(stdin) = &stdin {
        nonblocking(stdin.as_fd())?;
    }
    let mut left = input;
    let end = loop {
        if deadline.passed() {
            break End::TimedOut;
        }
        let mut fds = vec![
            PollFd::new(leader.exited.as_fd(), PollFlags::POLLIN),
            PollFd::new(bell.fd(), PollFlags::POLLIN),
        ];
        fds.extend(out.iter().filter_map(Drain::poll_fd));
        fds.extend(stdin.as_ref().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLOUT)));
        wait(&mut fds, deadline)?;
        let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| !r.is_empty());
        let (exited, cancelled) = (is_ready(&fds[0]), is_ready(&fds[1]));
        for drain in &mut out {
            drain.take_in()?;
        }
        if let Some(pipe) = &mut stdin
            && feed(pipe, &mut left)
        {
            stdin = None;
        }
        if exited || cancelled {
            break if exited { leader.reap()?.into() } else { End::Killed };
        }
    };
    leader.kill_all();
    // What was on its way when it ended.
    for drain in &mut out {
        drain.take_in()?;
    }
    let [stdout, stderr] = out.map(|d| d.bytes);
    Ok(Ran { end, stdout, stderr })
}

/// Waits until one of these is ready. Interrupted by a signal, it is as if none were.
fn wait(fds: &mut [PollFd<'_>], deadline: Deadline) -> Result<()> {
    // Rounded up: a wait that ends a little early would be one in a circle.
    let ms = i32::try_from(deadline.left().as_millis().saturating_add(1)).unwrap_or(i32::MAX);
    match poll(fds, PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Writes what the child takes now; true when there is no more for it to take.
fn feed(pipe: &mut impl Write, left: &mut &[u8]) -> bool {
    while !left.is_empty() {
        match pipe.write(left) {
            Ok(n) => *left = &left[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
            // It does not want to read; what it does then is its own affair.
            Err(_) => return true,
        }
    }
    true
}

pub fn nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// What a child has written to one pipe.
struct Drain {
    /// `None` at its end.
    pipe: Option<std::fs::File>,
    bytes: Vec<u8>,
}

impl Drain {
    fn of(pipe: Option<OwnedFd>) -> Result<Drain> {
        if let Some(pipe) = &pipe {
            nonblocking(pipe.as_fd())?;
        }
        Ok(Drain { pipe: pipe.map(Into::into), bytes: Vec::new() })
    }

    fn poll_fd(&self) -> Option<PollFd<'_>> {
        self.pipe.as_ref().map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN))
    }

    /// Reads what is there now. Errors: EIO for too much.
    fn take_in(&mut self) -> Result<()> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        let mut buffer = [0; 16 * 1024];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => self.bytes.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
            if self.bytes.len() > OUTPUT_MAX {
                let text = format!("the service wrote more than {OUTPUT_MAX} bytes");
                return Err(Error::new(Code::Eio, text));
            }
        }
        self.pipe = None;
        Ok(())
    }
}

/// Makes a cancellation something to poll for.
pub struct Bell {
    fd: Arc<EventFd>,
    _registration: OnCancel,
}

impl Bell {
    pub fn on(cancel: &Cancel) -> Result<Bell> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let fd = Arc::new(EventFd::from_flags(flags)?);
        let ring = fd.clone();
        let registration = cancel.on_cancel(move || {
            let _ = ring.write(1);
        });
        Ok(Bell { fd, _registration: registration })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The command that starts a program with a clean environment, as the leader of a session, without core
/// dumps and without any of this program's descriptors. It dies with the thread that starts it.
pub fn command(program: &Program) -> Result<Command> {
    let (name, args) = program.argv.split_first().ok_or_else(|| Error::invalid("argv is empty"))?;
    let mut command = Command::new(name);
    command.args(args).env_clear().env("PATH", PATH_DEFAULT);
    command.envs(INHERITED.iter().filter_map(|n| Some((n, std::env::var_os(n)?))));
    command.envs(&program.env);
    command.envs(keeper::mark().map(|mark| (keeper::VARIABLE, mark)));
    if let Some(cwd) = &program.cwd {
        command.current_dir(cwd);
    }
    let parent = std::process::id();
    let isolate = move || {
        let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: system calls on plain values, all of them allowed between fork and exec.
        unsafe {
            check(libc::setsid())?;
            check(libc::setrlimit(libc::RLIMIT_CORE, &no_core))?;
            // Its orphans stay its descendants, so that they are found when it is ended.
            check(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1))?;
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            if libc::getppid() as u32 != parent {
                return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
            }
            // Ours are closed on exec anyway, but those of libraries need not be.
            let close = libc::CLOSE_RANGE_CLOEXEC;
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, close);
        }
        Ok(())
    };
    // SAFETY: the function makes system calls only, allocates nothing and takes no lock.
    unsafe { command.pre_exec(isolate) };
    Ok(command)
}

fn check(outcome: libc::c_int) -> std::io::Result<()> {
    if outcome < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// A running child. Dropped, it is killed with all that belongs to it.
pub struct Leader {
    child: Child,
    /// Readable when it has exited.
    pub exited: OwnedFd,
    reaped: bool,
}

impl Leader {
    /// Errors: the host's, naming the program.
    pub fn spawn(command: &mut Command) -> Result<Leader> {
        adopt_orphans();
        let mut child = {
            // Until it stands in the list it could be taken for an orphan.
            let mut leaders = leaders();
            let child = command.spawn().context(command.get_program().display())?;
            leaders.insert(Pid::from_raw(child.id() as i32));
            child
        };
        // SAFETY: a system call on plain values; the descriptor it returns is nobody else's.
        let exited = unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, child.id(), 0);
            check(fd as libc::c_int).map(|()| OwnedFd::from_raw_fd(fd as libc::c_int))
        };
        let exited = exited.inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
            leaders().remove(&Pid::from_raw(child.id() as i32));
        });
        Ok(Leader { exited: exited.context("pidfd_open")?, child, reaped: false })
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// How it ended, once [`Leader::exited`] is readable. What it leaves behind is killed first: while it
    /// is not reaped, its number means nobody else.
    pub fn reap(&mut self) -> Result<ExitStatus> {
        if !self.reaped {
            end(self.pid());
        }
        let status = self.child.wait()?;
        self.reaped();
        Ok(status)
    }

    /// Ends it and all that it has started.
    pub fn kill_all(&mut self) {
        if self.reaped {
            return;
        }
        end(self.pid());
        let mut fds = [PollFd::new(self.exited.as_fd(), PollFlags::POLLIN)];
        let _ = wait(&mut fds, Deadline::after_ms(REAP_MS));
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            self.reaped();
        } else {
            log::warn!("process {} does not end; it is left behind", self.pid());
            self.reaped = true;
        }
    }

    fn reaped(&mut self) {
        self.reaped = true;
        leaders().remove(&self.pid());
        end_orphans();
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.kill_all();
    }
}

#[cfg(test)]
mod tests {
    use super::super::family::processes;
    use super::*;

    fn sh(script: &str) -> Program {
        let argv = ["/bin/sh", "-c", script].map(OsString::from).to_vec();
        Program { argv, ..Program::default() }
    }

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    fn is_alive(pid: i32) -> bool {
        processes().iter().any(|p| p.pid.as_raw() == pid && p.alive)
    }

    #[test]
    fn a_program_gets_its_input_and_tells_how_it_ended() {
        let far = Deadline::after_ms(20_000);
        let big = vec![b'x'; OUTPUT_MAX];
        let ran = run(&sh("cat; echo oops >&2; exit 3"), &big, far, &Cancel::new()).unwrap();
        assert_eq!((ran.end, text(&ran.stderr)), (End::Exited(3), "oops\n"));
        assert!(ran.stdout == big);
        // One that does not read is no trouble.
        let ran = run(&sh("exec <&-; echo done"), &big, far, &Cancel::new()).unwrap();
        assert_eq!((ran.end, text(&ran.stdout)), (End::Exited(0), "done\n"));
        let ran = run(&sh("kill -9 $$"), b"", far, &Cancel::new()).unwrap();
        assert_eq!(ran.end, End::Killed);
        let none = Program { argv: vec!["/nowhere/x".into()], ..Program::default() };
        let e = run(&none, b"", far, &Cancel::new()).unwrap_err();
        assert!(e.errno() == libc::ENOENT && e.message.contains("/nowhere/x"), "{e}");
    }

    #[test]
    fn the_environment_is_clean() {
        let mut program = sh("env; ulimit -c; ls /proc/self/fd | wc -l");
        program.env.insert("GIVEN".into(), "yes".into());
        let ran = run(&program, b"", Deadline::after_ms(20_000), &Cancel::new()).unwrap();
        let known = ["PATH=", "HOME=", "LANG=", "GIVEN=yes", "PWD=", "SHLVL=", "_="];
        let mut lines: Vec<_> = text(&ran.stdout).lines().collect();
        // ls has the directory open besides the three.
        assert_eq!(lines.split_off(lines.len() - 2), ["0", "4"]);
        assert!(lines.iter().all(|l| known.iter().any(|k| l.starts_with(k))), "{lines:?}");
        assert!(lines.contains(&"GIVEN=yes"));
    }

    #[test]
    fn nothing_survives_the_deadline_nor_too_much_output() {
        // In the background, in another session, orphaned, and in front.
        let script = "sleep 600 & echo $!; setsid sleep 601 & echo $!;
            (setsid sh -c 'echo $$; exec sleep 602' &) ; sleep 603";
        let ran = run(&sh(script), b"", Deadline::after_ms(3_000), &Cancel::new()).unwrap();
        assert_eq!(ran.end, End::TimedOut);
        let pids: Vec<i32> = text(&ran.stdout).lines().map(|l| l.parse().unwrap()).collect();
        assert_eq!(pids.len(), 3, "{pids:?}");
        let gone = || pids.iter().all(|p| !is_alive(*p));
        let until = Deadline::after_ms(20_000);
        while !gone() {
            assert!(!until.passed(), "{pids:?} survive");
            std::thread::yield_now();
        }

        let e = run(&sh("yes"), b"", Deadline::after_ms(20_000), &Cancel::new()).unwrap_err();
        assert!(e.errno() == libc::EIO && e.message.contains("more than"), "{e}");
    }

    #[test]
    fn what_a_program_leaves_behind_goes_with_it_and_cancelling_ends_it() {
        let far = Deadline::after_ms(20_000);
        // One in the background, one that made itself a daemon.
        let script = "sleep 600 & echo $!; read daemon <<E\n\
            $(setsid sh -c 'echo $$; exec sleep 601 >&- &')\nE\necho $daemon";
        let ran = run(&sh(script), b"", far, &Cancel::new()).unwrap();
        assert_eq!(ran.end, End::Exited(0));
        let pids: Vec<i32> = text(&ran.stdout).lines().map(|l| l.parse().unwrap()).collect();
        assert_eq!(pids.len(), 2);
        for pid in pids {
            while is_alive(pid) {
                assert!(!far.passed());
                std::thread::yield_now();
            }
        }
        let cancel = Cancel::new();
        cancel.cancel();
        let ran = run(&sh("sleep 600"), b"", Deadline::never(), &cancel).unwrap();
        assert_eq!(ran.end, End::Killed);
    }
}
