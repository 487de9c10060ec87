//! Who is connected by which token, so that a connection ends with its token: revoked or expired, by
//! whichever program. One thread sleeps until the file of tokens changes or the next token expires.

use crate::base::{Cancel, Result, ResultExt, now_ms};
use crate::config::tokens::{Identity, Tokens};
use crate::control::Authenticator;
use crate::control::audit::{Audit, Entry};
use crate::net::{Closed, Conn, Handler, Message};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the file is looked at where the host lets nobody watch it.
const BLIND: Duration = Duration::from_secs(1);
/// The clock may be set while a token's end is awaited.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// Policy violation, of RFC 6455.
const CLOSE_CODE: u16 = 1008;
const CLOSE_REASON: &str = "the access token was revoked or has expired";

/// Whose connection it is, once that is known.
pub type Pass = Arc<OnceLock<Identity>>;

pub struct Guests {
    auth: Arc<Authenticator>,
    audit: Arc<Audit>,
    live: Mutex<HashMap<u64, (Conn, Pass)>>,
}

impl Guests {
    pub fn new(auth: Arc<Authenticator>, audit: Arc<Audit>) -> Arc<Guests> {
        let guests = Arc::new(Guests { auth, audit, live: Mutex::default() });
        let weak = Arc::downgrade(&guests);
        guests.auth.listen(Arc::new(move |tokens| {
            if let Some(guests) = weak.upgrade() {
                guests.sweep(tokens);
            }
        }));
        guests
    }

    /// The connection ends with the token of whom `pass` names, now or later.
    pub fn guard<H: Handler>(self: &Arc<Guests>, handler: H, pass: Pass) -> Guarded<H> {
        Guarded { handler, guests: self.clone(), pass }
    }

    fn live(&self) -> std::sync::MutexGuard<'_, HashMap<u64, (Conn, Pass)>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connections whose token is in force no more; what they have asked is still answered.
    fn sweep(&self, tokens: &Tokens) {
        let now_ms = now_ms();
        let ends = |pass: &Pass| pass.get().is_some_and(|who| !tokens.admits(who, now_ms));
        let ended: Vec<_> = self.live().extract_if(|_, (_, pass)| ends(pass)).collect();
        for (_, (conn, pass)) in ended {
            let name = pass.get().map_or("", |who| &who.name);
            log::info!("connection {} of {name} ends with its token", conn.peer());
            conn.drain(CLOSE_CODE, CLOSE_REASON);
        }
    }

    /// Starts the thread that follows the file until `stop` is cancelled.
    pub fn follow(self: &Arc<Guests>, stop: Cancel) -> Result<JoinHandle<()>> {
        let guests = self.clone();
        let nudge = Arc::new(EventFd::from_value_and_flags(
            0,
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let wake = nudge.clone();
        let on_stop = stop.on_cancel(move || {
            let _ = wake.write(1);
        });
        let run = move || {
            let _on_stop = on_stop;
            let mut file = Watched::new(guests.auth.path());
            guests.reload(&mut file);
            while !stop.is_cancelled() {
                if file.wait(&nudge, guests.sleep(&file)) {
                    guests.reload(&mut file);
                }
                guests.sweep(&guests.auth.tokens());
            }
        };
        std::thread::Builder::new().name("tokens".into()).spawn(run).context("tokens thread")
    }

    fn sleep(&self, file: &Watched) -> Option<Duration> {
        let now_ms = now_ms();
        let next = self.auth.tokens().next_expiry_ms(now_ms);
        let next = next.map(|at| {
            let ms = u64::try_from(at.saturating_sub(now_ms)).unwrap_or(0);
            Duration::from_millis(ms.saturating_add(1)).min(SLEEP_MAX)
        });
        match file.inotify {
            Some(_) => next,
            None => Some(next.unwrap_or(BLIND).min(BLIND)),
        }
    }

    fn reload(&self, file: &mut Watched) {
        let trouble = match self.auth.reload() {
            Ok(is_news) => {
                if is_news {
                    log::info!("took over changed access tokens");
                    self.audit.note(Entry::new("credentials.changed"));
                }
                None
            }
            Err(e) => Some(e),
        };
        if let Some(e) = &trouble
            && file.trouble.as_ref() != Some(e)
        {
            crate::base::log::error("changed access tokens; the old ones stay in force", e);
        }
        file.trouble = trouble;
    }
}

/// The file of tokens, as seen by who waits for it to change.
struct Watched {
    inotify: Option<Inotify>,
    /// Its names: the one it is known by, and where a symlink leads.
    names: Vec<OsString>,
    /// What was wrong with it when it was read last.
    trouble: Option<crate::base::Error>,
}

impl Watched {
    fn new(path: &Path) -> Watched {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let places = [path, &real];
        let names = places.iter().filter_map(|p| p.file_name()).map(OsString::from).collect();
        let watch = || -> Result<Inotify> {
            let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            let mask = AddWatchFlags::IN_CLOSE_WRITE
                | AddWatchFlags::IN_MOVE
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_DELETE_SELF;
            for dir in places.iter().filter_map(|p| p.parent()) {
                inotify.add_watch(dir, mask)?;
            }
            Ok(inotify)
        };
        let inotify = watch().inspect_err(|e| {
            log::warn!("{}: cannot be watched, so it is read every second: {e}", path.display());
        });
        Watched { inotify: inotify.ok(), names, trouble: None }
    }

    /// Waits for a change, a nudge, or until the time is over; true when the file may have changed.
    fn wait(&self, nudge: &EventFd, timeout: Option<Duration>) -> bool {
        let mut fds = vec![PollFd::new(nudge.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.inotify.iter().map(|i| PollFd::new(i.as_fd(), PollFlags::POLLIN)));
        let timeout = timeout.and_then(|t| t.try_into().ok()).unwrap_or(PollTimeout::NONE);
        let _ = poll(&mut fds, timeout);
        let _ = nudge.read();
        let Some(inotify) = &self.inotify else { return true };
        let mut changed = false;
        while let Ok(events) = inotify.read_events() {
            // An event without a name is about the directory, or says that others were lost.
            changed |=
                events.iter().any(|e| e.name.as_ref().is_none_or(|n| self.names.contains(n)));
        }
        changed
    }
}

/// A handler whose connection is known to [`Guests`].
pub struct Guarded<H> {
    handler: H,
    guests: Arc<Guests>,
    pass: Pass,
}

impl<H: Handler> Handler for Guarded<H> {
    fn open(&mut self, conn: &Conn) {
        self.guests.live().insert(conn.id(), (conn.clone(), self.pass.clone()));
        // What was revoked since it was asked for.
        if self.pass.get().is_some_and(|who| !self.guests.auth.admits(who)) {
            conn.drain(CLOSE_CODE, CLOSE_REASON);
        }
        self.handler.open(conn);
    }

    fn message(&mut self, conn: &Conn, message: Message) {
        self.handler.message(conn, message);
    }

    fn closed(&mut self, conn: &Conn, reason: &Closed) {
        self.guests.live().remove(&conn.id());
        self.handler.closed(conn, reason);
    }
}
