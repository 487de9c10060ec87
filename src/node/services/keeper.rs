//! What is left of services when this program is killed without a chance to end them: a process of its own
//! waits for that, and kills what bears the mark of this program's drivers. Knows /proc; starts no drivers.

use super::family::processes;
use crate::base::{Result, ResultExt, id};
use nix::fcntl::OFlag;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2, setsid};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

/// Every driver has it in its environment, and hands it on to what it starts.
pub const VARIABLE: &str = "SPIDERWEB_NODE_RUN";
/// Looks for processes that have been started since the last look.
const ROUNDS_MAX: u32 = 64;

static MARK: OnceLock<String> = OnceLock::new();

/// What drivers are to have as [`VARIABLE`], where a keeper runs.
pub fn mark() -> Option<&'static str> {
    MARK.get().map(String::as_str)
}

/// Starts the keeper of this process, which ends with it. Call it once, while there is one thread.
pub fn start() -> Result<()> {
    let mark = id::hex_token("");
    let (alive, held) = pipe2(OFlag::O_CLOEXEC).context("pipe of the keeper")?;
    // SAFETY: there are no other threads that could hold a lock.
    match unsafe { fork() }.context("starting the keeper")? {
        ForkResult::Parent { child } => {
            let _ = waitpid(child, None);
            // Closed when this process ends, however it does.
            std::mem::forget(held);
            let _ = MARK.set(mark);
            Ok(())
        }
        ForkResult::Child => {
            drop(held);
            // A grandchild, out of the terminal's reach, is nobody's to wait for.
            // SAFETY: as above.
            let is_keeper = setsid().is_ok() && unsafe { fork() }.is_ok_and(|f| f.is_child());
            if is_keeper {
                leave_everything(&alive);
                keep(alive, &mark);
            }
            // SAFETY: ends this process without running what belongs to its parent.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Lets go of all that the program has open, but for `alive`, and of its signals.
fn leave_everything(alive: &OwnedFd) {
    let _ = std::env::set_current_dir("/");
    let nowhere = File::options().read(true).write(true).open("/dev/null");
    // SAFETY: system calls on plain values, in a process of one thread.
    unsafe {
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
            libc::signal(signal, libc::SIG_IGN);
        }
        libc::prctl(libc::PR_SET_NAME, c"node-keeper".as_ptr());
        if let Ok(nowhere) = &nowhere {
            (0..3).for_each(|fd| {
                libc::dup2(nowhere.as_raw_fd(), fd);
            });
        }
        let kept = alive.as_raw_fd() as libc::c_uint;
        libc::syscall(libc::SYS_close_range, 3, kept - 1, 0);
        libc::syscall(libc::SYS_close_range, kept + 1, libc::c_uint::MAX, 0);
    }
    std::mem::forget(nowhere);
}

/// Waits until the program has ended, and ends what it has left behind.
fn keep(alive: OwnedFd, mark: &str) {
    let mut alive = File::from(alive);
    loop {
        match alive.read(&mut [0]) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    end_marked(mark);
}

fn end_marked(mark: &str) {
    let wanted = format!("{VARIABLE}={mark}");
    for _ in 0..ROUNDS_MAX {
        let others = processes().into_iter().filter(|p| p.alive && p.pid != Pid::this());
        if others.filter(|p| kill_if_marked(p.pid, wanted.as_bytes())).count() == 0 {
            return;
        }
    }
}

/// True if it bore the mark. The number cannot have passed to another process in between: the descriptor
/// stands for the process that was looked at.
fn kill_if_marked(pid: Pid, wanted: &[u8]) -> bool {
    // SAFETY: a system call on plain values; the descriptor it returns is nobody else's.
    let process = unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) as libc::c_int;
        if fd < 0 {
            return false;
        }
        OwnedFd::from_raw_fd(fd)
    };
    let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    if !environ.split(|b| *b == 0).any(|variable| variable == wanted) {
        return false;
    }
    let (fd, none) = (process.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: a system call on a descriptor that is open, without a pointer.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, none, 0) };
    true
}
