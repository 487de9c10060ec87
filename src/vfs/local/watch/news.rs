//! What the events of inotify come to: gathered for a moment, told apart from what we did ourselves, and
//! told to those who listen.

use super::super::sys::{self, FileKey, Stat};
use super::super::{Core, Event};
use super::{BLIND, GATHER, GATHERED_MAX, Kernel, OWN_MAX, Seen, Watching};
use crate::base::{Error, Result};
use crate::vfs::NodeId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InotifyEvent};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::sync::{PoisonError, Weak};
use std::time::{Duration, Instant};

/// The thread.
pub(super) fn run(weak: &Weak<Core>, kernel: &Kernel) {
    let mut resync = Instant::now();
    let mut timeout = None;
    loop {
        // The tree need not outlive the wait: its end nudges.
        kernel.wait(timeout);
        let Some(local) = weak.upgrade() else { return };
        let Some(w) = &local.watching else { return };
        w.forget_unheard(&local.watchers);
        timeout = (!w.is_live() && !local.watchers.is_empty()).then_some(BLIND);
        if timeout.is_some() && resync <= Instant::now() {
            resync = Instant::now() + BLIND;
            local.announce(&[Event::Resync]);
        }
        let mut gathered = Gathered::default();
        while !gathered.overflow
            && gathered.count < GATHERED_MAX
            && let Ok(events) = kernel.inotify.read_events()
        {
            events.into_iter().for_each(|e| gathered.add(w, e));
        }
        w.own.settle();
        local.tell(w, gathered);
    }
}

impl Kernel {
    /// Waits for events or a nudge; what comes together is told together.
    fn wait(&self, timeout: Option<Duration>) {
        let mut fds = [
            PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.nudge.as_fd(), PollFlags::POLLIN),
        ];
        let timeout = timeout.and_then(|t| t.try_into().ok()).unwrap_or(PollTimeout::NONE);
        let _ = poll(&mut fds, timeout);
        std::thread::sleep(GATHER);
        let _ = self.nudge.read();
    }
}

/// Events of a moment, each thing once.
#[derive(Default)]
struct Gathered {
    names: BTreeMap<NodeId, BTreeMap<OsString, Seen>>,
    count: usize,
    dirs: BTreeMap<NodeId, AddWatchFlags>,
    overflow: bool,
}

impl Gathered {
    fn add(&mut self, w: &Watching, event: InotifyEvent) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            self.overflow = true;
            return;
        }
        let dir = {
            let mut t = w.table.write().unwrap_or_else(PoisonError::into_inner);
            let Some(dir) = t.by_wd.get(&event.wd).copied() else { return };
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                t.by_wd.remove(&event.wd);
                t.by_dir.remove(&dir);
                t.oldest.retain(|d| *d != dir);
            }
            dir
        };
        match event.name {
            Some(name) => {
                let names = self.names.entry(dir).or_default();
                names.entry(name).or_insert(Seen::NOTHING).add(event.mask);
                self.count += 1;
            }
            None => *self.dirs.entry(dir).or_insert(AddWatchFlags::empty()) |= event.mask,
        }
    }
}

impl Core {
    /// Tells what a gathering of events comes to.
    fn tell(&self, w: &Watching, gathered: Gathered) {
        if gathered.overflow {
            w.states.clear();
            w.own_names.lock().unwrap_or_else(PoisonError::into_inner).clear();
            return self.announce(&[Event::Resync]);
        }
        for (dir, mask) in gathered.dirs {
            if mask.intersects(AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_DELETE_SELF) {
                self.announce(&[Event::All { node: dir, generation: None }]);
            } else {
                self.announce(&[Event::Attr(dir)]);
            }
        }
        for (dir, names) in gathered.names {
            self.tell_names(w, dir, names);
        }
    }

    fn tell_names(&self, w: &Watching, dir: NodeId, names: BTreeMap<OsString, Seen>) {
        // Wherever it is by now.
        let fd = self.node(dir).map(|node| node.fd);
        let mut own = false;
        for (name, seen) in names {
            let stat = || fd.clone().and_then(|fd| sys::stat(&fd, &name));
            if seen.count > 0 {
                own |= !self.tell_name(w, (dir, &name), seen, stat().ok().as_ref());
            }
            if seen.mask.intersects(AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ATTRIB) {
                self.tell_file(w, (dir, &name), seen.mask, stat);
            }
        }
        // That we changed something in it shows in the directory's times.
        if own {
            self.announce(&[Event::Attr(dir)]);
        }
    }

    /// A name came, went, or leads elsewhere. False where that was our own doing.
    fn tell_name(
        &self,
        w: &Watching,
        (dir, name): (NodeId, &OsStr),
        seen: Seen,
        stat: Option<&Stat>,
    ) -> bool {
        let now = stat.map(Stat::key);
        if w.is_own_name((dir, name), seen, now) {
            return false;
        }
        let known = self.ids.at(dir, name);
        let key = known.and_then(|node| self.ids.key(node).ok());
        self.announce(&[Event::Entry { dir, name: name.into() }]);
        if let Some(node) = known.filter(|_| key != now) {
            self.announce(&[Event::All { node, generation: None }]);
        }
        // A name that leads to a file that is known: it may have a link more.
        if let Some(node) = now.and_then(|key| self.ids.id(&key)) {
            self.announce(&[Event::Attr(node)]);
        }
        true
    }

    fn tell_file(
        &self,
        w: &Watching,
        (dir, name): (NodeId, &OsStr),
        mask: AddWatchFlags,
        stat: impl FnOnce() -> Result<Stat>,
    ) {
        // Whom nobody was told of, nobody remembers.
        let Some(node) = self.ids.at(dir, name) else { return };
        let same = || stat().filter_key(self.ids.key(node).ok());
        let Ok((stat, is_news)) = w.states.look(node, OWN_MAX, same) else {
            return self.announce(&[Event::All { node, generation: None }]);
        };
        if !is_news {
            return;
        }
        let generation = Some(stat.generation());
        self.announce(&[match mask.contains(AddWatchFlags::IN_MODIFY) {
            true => Event::Data { node, generation },
            false => Event::Attr(node),
        }]);
    }
}

trait FilterKey {
    fn filter_key(self, key: Option<FileKey>) -> Result<Stat>;
}

impl FilterKey for Result<Stat> {
    /// The node must still be the one that the name led to.
    fn filter_key(self, key: Option<FileKey>) -> Result<Stat> {
        self.and_then(|stat| match key == Some(stat.key()) {
            true => Ok(stat),
            false => Err(Error::from_errno(libc::ESTALE, "another file")),
        })
    }
}
