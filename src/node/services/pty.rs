//! Interactive sessions of a terminal: each a program on a pseudo-terminal, with its screen, its
//! keyboard and its controls as files. A thread per session, of which there are few, reads what it
//! prints.

use super::child::{self, End, Leader, Program};
use super::terminal::{Terminal, read_program};
use crate::base::{Cancel, Code, Error, Notify, Result, ResultExt, TreePath, now_ms};
use crate::vfs::Synthetic;
use crate::wire::Fields;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;

/// Sessions of one terminal, those that have ended and are not closed included.
const SESSIONS_MAX: usize = 16;
/// What is kept of the output of a session that nobody reads.
const OUTPUT_KEPT_MAX: usize = 256 * 1024;
const TERM: &str = "xterm-256color";

/// The sessions of one terminal.
#[derive(Default)]
pub struct Sessions {
    table: Mutex<Table>,
    tree: OnceLock<Weak<Synthetic>>,
}

#[derive(Default)]
struct Table {
    last: u64,
    open: BTreeMap<u64, Arc<Session>>,
    /// Of the sessions that are open, and of those that are about to end.
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

pub struct Session {
    id: u64,
    argv: Vec<String>,
    pid: Pid,
    started_ms: i64,
    /// Our end of the pseudo-terminal.
    master: File,
    screen: Mutex<Screen>,
    /// More output, or the end.
    changed: Notify,
    closing: Cancel,
}

struct Screen {
    /// What was printed and is kept.
    output: VecDeque<u8>,
    /// Bytes that were printed before that.
    dropped: u64,
    cols: u16,
    rows: u16,
    ended: Option<(End, i64)>,
}

/// What there is to read at a position of the output.
pub enum Output {
    /// `lost` bytes before these are not kept any more.
    Bytes {
        lost: u64,
        bytes: Vec<u8>,
    },
    End,
    /// Nothing yet; take this number to wait with.
    Later(u64),
}

/// What a write to `pty/new` asks for.
struct Start {
    program: Program,
    size: Winsize,
}

impl Sessions {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn shown_in(&self, tree: &Arc<Synthetic>) {
        let _ = self.tree.set(Arc::downgrade(tree));
    }

    fn announce(&self, id: u64) {
        if let Some(tree) = self.tree.get().and_then(Weak::upgrade)
            && let Ok(path) = TreePath::parse(format!("/pty/{id}"))
        {
            tree.changed(&path);
        }
    }

    /// Starts a session. Errors: EINVAL; `limit_exceeded` when there are too many; the host's.
    pub fn start(&self, text: &[u8]) -> Result<Arc<Session>> {
        let start = read_start(&String::from_utf8_lossy(text))?;
        let (session, before) = {
            let mut table = self.table();
            if table.closed {
                return Err(Error::new(Code::Estale, "the terminal is gone"));
            }
            let before = make_room(&mut table)?;
            let id = table.last + 1;
            let (session, thread) = Session::start(id, &start)?;
            table.last = id;
            table.threads.retain(|t| !t.is_finished());
            table.threads.push(thread);
            table.open.insert(id, session.clone());
            (session, before)
        };
        before.into_iter().chain([session.id]).for_each(|id| self.announce(id));
        Ok(session)
    }

    /// Errors: ENOENT.
    pub fn get(&self, name: &str) -> Result<Arc<Session>> {
        let found = name.parse().ok().and_then(|id: u64| self.table().open.get(&id).cloned());
        let found = found.filter(|s| s.id.to_string() == name);
        found.ok_or_else(|| Error::new(Code::Enoent, format!("{name}: no such session")))
    }

    pub fn list(&self) -> Vec<Arc<Session>> {
        self.table().open.values().cloned().collect()
    }

    /// Ends a session and takes it away.
    pub fn close(&self, id: u64) {
        let session = self.table().open.remove(&id);
        if let Some(session) = session {
            session.closing.cancel();
            self.announce(id);
        }
    }

    /// Ends all, and returns when nothing of them is left; there will be no more.
    pub fn close_all(&self) {
        let mut table = self.table();
        table.closed = true;
        let (all, threads) = (std::mem::take(&mut table.open), std::mem::take(&mut table.threads));
        drop(table);
        all.values().for_each(|s| s.closing.cancel());
        for thread in threads {
            let _ = thread.join();
        }
    }
}

/// Takes away the session that ended first if there is no room for another.
fn make_room(table: &mut Table) -> Result<Option<u64>> {
    if table.open.len() < SESSIONS_MAX {
        return Ok(None);
    }
    let ended = |s: &&Arc<Session>| s.screen().ended.is_some();
    let oldest = table.open.values().find(ended).map(|s| s.id).ok_or_else(|| {
        let text =
            format!("{SESSIONS_MAX} sessions are open; write close to pty/<n>/control of one");
        Error::new(Code::LimitExceeded, text)
    })?;
    table.open.remove(&oldest);
    Ok(Some(oldest))
}

fn read_start(text: &str) -> Result<Start> {
    let bad = |e: Error| e.recode(Code::Invalid).context("pty/new");
    let read = || {
        let f = Fields::parse(text).map_err(|_| Error::invalid("write one JSON object"))?;
        let known = ["argv", "command", "cwd", "env", "term", "cols", "rows"];
        if let Some(name) = f.unknown(&known) {
            return Err(Error::invalid(format!("{name} is not one of {}", known.join(", "))));
        }
        let shell = || Program { argv: vec!["/bin/sh".into(), "-l".into()], ..Program::default() };
        let cwd = f.string("cwd")?.filter(|c| !c.is_empty()).map(Into::into);
        let mut program = read_program(&f)?.unwrap_or_else(|| Program { cwd, ..shell() });
        if let Some(env) = f.object("env")? {
            program.env = super::manifest::env(&env).map_err(|e| e.context("env"))?;
        }
        let term = f.string("term")?.unwrap_or_else(|| TERM.into());
        program.env.entry("TERM".into()).or_insert(term);
        Ok(Start { program, size: read_size(&f, 80, 24)? })
    };
    read().map_err(bad)
}

fn read_size(f: &Fields<'_>, cols: u16, rows: u16) -> Result<Winsize> {
    let number = |name: &str, default: u16| match f.u32(name)?.unwrap_or(default.into()) {
        n @ 1..=4096 => Ok(n as u16),
        _ => Err(Error::invalid(format!("{name} must be 1 to 4096"))),
    };
    let (ws_col, ws_row) = (number("cols", cols)?, number("rows", rows)?);
    Ok(Winsize { ws_col, ws_row, ws_xpixel: 0, ws_ypixel: 0 })
}

impl Session {
    fn start(id: u64, start: &Start) -> Result<(Arc<Session>, JoinHandle<()>)> {
        let pty = openpty(&start.size, None).context("openpty")?;
        child::nonblocking(pty.master.as_fd())?;
        let mut command = child::command(&start.program)?;
        let end = || Ok::<_, Error>(Stdio::from(pty.slave.try_clone()?));
        command.stdin(end()?).stdout(end()?).stderr(end()?);
        let control = || {
            // SAFETY: a system call on plain values, allowed between fork and exec.
            match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: the function makes a system call and nothing else.
        unsafe { command.pre_exec(control) };
        let argv = start.program.argv.iter().map(|a| a.to_string_lossy().into_owned()).collect();
        let (master, size) = (File::from(pty.master), start.size);
        // A child dies with the thread that started it: that is its own thread's part.
        let (tell, told) = std::sync::mpsc::sync_channel::<Result<Arc<Session>>>(1);
        let run = move || {
            let leader = Leader::spawn(&mut command);
            // Its last copies of the other end are closed with the command.
            drop(command);
            let leader = match leader {
                Ok(leader) => leader,
                Err(e) => return drop(tell.send(Err(e))),
            };
            let screen = Screen {
                output: VecDeque::new(),
                dropped: 0,
                cols: size.ws_col,
                rows: size.ws_row,
                ended: None,
            };
            let session = Arc::new(Session {
                id,
                argv,
                pid: leader.pid(),
                started_ms: now_ms(),
                master,
                screen: Mutex::new(screen),
                changed: Notify::default(),
                closing: Cancel::new(),
            });
            let _ = tell.send(Ok(session.clone()));
            session.serve(leader);
        };
        let thread = std::thread::Builder::new().name(format!("pty-{id}"));
        let thread = thread.spawn(run).context("pty thread")?;
        drop(pty.slave);
        let session =
            told.recv().map_err(|_| Error::new(Code::Eio, "the session did not start"))?;
        Ok((session?, thread))
    }

    fn screen(&self) -> MutexGuard<'_, Screen> {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what is printed until the program ends or the session is closed.
    fn serve(&self, mut leader: Leader) {
        let mut printing = true;
        let end = match child::Bell::on(&self.closing) {
            Err(_) => End::Killed,
            Ok(bell) => loop {
                let mut fds = vec![
                    PollFd::new(leader.exited.as_fd(), PollFlags::POLLIN),
                    PollFd::new(bell.fd(), PollFlags::POLLIN),
                ];
                if printing {
                    fds.push(PollFd::new(self.master.as_fd(), PollFlags::POLLIN));
                }
                let _ = poll(&mut fds, PollTimeout::NONE);
                let is_ready = |n: usize| fds[n].revents().is_some_and(|r| !r.is_empty());
                let (exited, closed) = (is_ready(0), is_ready(1));
                printing = printing && self.take_in();
                if closed {
                    break End::Killed;
                }
                if exited {
                    break leader.reap().map_or(End::Killed, End::from);
                }
            },
        };
        leader.kill_all();
        self.take_in();
        self.screen().ended = Some((end, now_ms()));
        self.changed.notify();
    }

    /// Reads what is printed now; false when nothing will be.
    fn take_in(&self) -> bool {
        let mut buffer = [0; 16 * 1024];
        loop {
            match (&self.master).read(&mut buffer) {
                Ok(0) => return false,
                Ok(n) => {
                    let mut s = self.screen();
                    s.output.extend(&buffer[..n]);
                    let over = s.output.len().saturating_sub(OUTPUT_KEPT_MAX);
                    s.output.drain(..over);
                    s.dropped += over as u64;
                    drop(s);
                    self.changed.notify();
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                // EIO: nobody has the other end open.
                Err(_) => return false,
            }
        }
    }

    pub fn name(&self) -> String {
        self.id.to_string()
    }

    pub fn changed(&self) -> &Notify {
        &self.changed
    }

    /// Up to `len` bytes of the output from `position`.
    pub fn output(&self, position: u64, len: usize) -> Output {
        let seen = self.changed.seen();
        let s = self.screen();
        let lost = s.dropped.saturating_sub(position);
        let skip = position.saturating_sub(s.dropped).min(s.output.len() as u64) as usize;
        let bytes: Vec<u8> = s.output.iter().skip(skip).take(len).copied().collect();
        match (bytes.is_empty(), &s.ended) {
            (false, _) => Output::Bytes { lost, bytes },
            (true, Some(_)) => Output::End,
            (true, None) => Output::Later(seen),
        }
    }

    /// Types. Errors: EAGAIN when the program does not take it; EIO when it has ended.
    pub fn typed(&self, data: &[u8]) -> Result<usize> {
        if self.screen().ended.is_some() {
            return Err(Error::new(Code::Eio, "the session has ended"));
        }
        match (&self.master).write(data) {
            Ok(n) => Ok(n),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                Err(Error::new(Code::Again, "the program does not read its terminal; try again"))
            }
            Err(e) => Err(e.into()),
        }
    }

    fn resize(&self, size: &Winsize) -> Result<()> {
        // SAFETY: the structure lives as long as the call, which reads it.
        let outcome = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, size) };
        if outcome < 0 {
            return Err(Error::last_os());
        }
        let mut s = self.screen();
        (s.cols, s.rows) = (size.ws_col, size.ws_row);
        Ok(())
    }

    /// To the job in front, or to the program when there is none.
    fn signal(&self, signal: Signal) -> Result<()> {
        if self.screen().ended.is_some() {
            return Err(Error::from_errno(libc::ESRCH, "the session has ended"));
        }
        let front = nix::unistd::tcgetpgrp(&self.master).ok().filter(|p| p.as_raw() > 0);
        Ok(killpg(front.unwrap_or(self.pid), signal)?)
    }

    pub fn status(&self) -> Value {
        let s = self.screen();
        let state = if s.ended.is_some() { "exited" } else { "running" };
        json!({"pty": self.name(), "state": state, "argv": self.argv, "pid": self.pid.as_raw(),
            "cols": s.cols, "rows": s.rows, "started_ms": self.started_ms,
            "ended_ms": s.ended.map(|(_, at)| at), "exit_code": s.ended.map(|(e, _)| e.exit_code()),
            "output_bytes": s.dropped + s.output.len() as u64, "dropped_bytes": s.dropped})
    }
}

impl Terminal {
    /// A message to `pty/<n>/control`. Errors: EINVAL, and the host's.
    pub fn control(&self, session: &Session, text: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(text);
        let forms = r#"write {"resize":{"cols":80,"rows":24}}, {"signal":"INT"} or close"#;
        if text.trim() == "close" {
            self.sessions.close(session.id);
            return Ok(());
        }
        let f = Fields::parse(&text).map_err(|_| Error::invalid(forms))?;
        let bad = |e: Error| e.recode(Code::Invalid);
        if let Some(size) = f.object("resize").map_err(bad)? {
            let (cols, rows) = {
                let s = session.screen();
                (s.cols, s.rows)
            };
            return session.resize(&read_size(&size, cols, rows).map_err(bad)?);
        }
        if let Some(name) = f.str("signal").map_err(bad)? {
            let full = format!("SIG{}", name.strip_prefix("SIG").unwrap_or(&name));
            let signal = full.parse().map_err(|_| Error::invalid(format!("no signal {name:?}")))?;
            return session.signal(signal);
        }
        match f.bool("close").map_err(bad)? {
            Some(true) => self.sessions.close(session.id),
            _ => return Err(Error::invalid(forms)),
        }
        Ok(())
    }
}
