//! Which processes belong together: what a leader has started, what it has left behind, and how they are
//! all ended. Knows /proc; starts nothing.

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, MutexGuard, Once, PoisonError};

/// Looks for processes that have been started since the last look, before all are killed.
const ROUNDS_MAX: u32 = 64;

/// The leaders that are not reaped.
pub fn leaders() -> MutexGuard<'static, HashSet<Pid>> {
    static LEADERS: LazyLock<Mutex<HashSet<Pid>>> = LazyLock::new(Mutex::default);
    LEADERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on, what a leader leaves behind when it ends comes to this process.
pub fn adopt_orphans() {
    static ONCE: Once = Once::new();
    // SAFETY: a system call on plain values.
    ONCE.call_once(|| unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
    });
}

/// Kills what leaders that have ended left behind in sessions of its own: children of this process, in
/// other sessions than its own, that are no leaders.
pub fn end_orphans() {
    let (this, leaders) = (Pid::this(), leaders());
    let Ok(session) = nix::unistd::getsid(None) else { return };
    for _ in 0..ROUNDS_MAX {
        let all = processes();
        let orphans = all.iter().filter(|p| p.parent == this && p.session != session);
        let orphans: Vec<_> = orphans.filter(|p| !leaders.contains(&p.pid)).collect();
        orphans.iter().filter(|p| p.alive).for_each(|p| end(p.pid));
        // One that takes its time is reaped the next time.
        for orphan in &orphans {
            let _ = waitpid(orphan.pid, Some(WaitPidFlag::WNOHANG));
        }
        if orphans.iter().all(|p| !p.alive) {
            break;
        }
    }
}

/// Kills a leader, what descends from it, and what is in its session. They are stopped first, so that
/// none of them can start another while the others are looked for.
pub fn end(leader: Pid) {
    let mut found = HashSet::new();
    for _ in 0..ROUNDS_MAX {
        let before = found.len();
        for pid in belonging(leader) {
            if found.insert(pid) {
                let _ = kill(pid, Signal::SIGSTOP);
            }
        }
        if found.len() == before {
            break;
        }
    }
    // The leader last: as long as it is there, orphans come to it.
    for pid in found.iter().filter(|p| **p != leader) {
        let _ = kill(*pid, Signal::SIGKILL);
    }
    let _ = kill(leader, Signal::SIGKILL);
}

/// The live processes that descend from `leader` or are in its session, itself included.
fn belonging(leader: Pid) -> Vec<Pid> {
    let processes = processes();
    let mut family = HashSet::from([leader]);
    family.extend(processes.iter().filter(|p| p.session == leader).map(|p| p.pid));
    loop {
        let before = family.len();
        let children = processes.iter().filter(|p| family.contains(&p.parent)).map(|p| p.pid);
        let children: Vec<_> = children.collect();
        family.extend(children);
        if family.len() == before {
            break;
        }
    }
    processes.iter().filter(|p| p.alive && family.contains(&p.pid)).map(|p| p.pid).collect()
}

pub struct Process {
    pub pid: Pid,
    parent: Pid,
    session: Pid,
    pub alive: bool,
}

pub fn processes() -> Vec<Process> {
    let Ok(dir) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = dir.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| process(pid, &std::fs::read(format!("/proc/{pid}/stat")).ok()?)).collect()
}

/// Reads `pid (name) state ppid pgrp session …`; the name may hold anything (proc(5)).
fn process(pid: i32, stat: &[u8]) -> Option<Process> {
    let after = stat.iter().rposition(|b| *b == b')')? + 1;
    let rest = std::str::from_utf8(&stat[after..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let alive = !matches!(fields.next()?, "Z" | "X");
    let mut number = || fields.next()?.parse().ok().map(Pid::from_raw);
    let (parent, _group, session) = (number()?, number()?, number()?);
    Some(Process { pid: Pid::from_raw(pid), parent, session, alive })
}
