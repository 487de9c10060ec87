//! What others change in the directories that clients have looked at, told by inotify: no polling, and no
//! work while nothing happens.
//!
//! Our own changes come back as events, too. They are not told twice: a name that leads where the
//! table of ids says it leads is no news, and neither is a file that looks as our own change, or the
//! last event, left it. A change by others that falls between our change and the look at what it left
//! would be taken for ours; it shows when the file is opened next, by its generation, and
//! whoever coordinates by locks is safe, since a lock is granted on what the file is then.
//!
//! inotify does not see what is written through mmap(2), nor a file that is changed by a name in another
//! directory, nor what other hosts do to a network filesystem. Such a filesystem is not watched at all;
//! whoever remembers attributes believes those of files with several names for a moment only.

use super::sys::{self, Stat};
use super::{Core, Event};
use crate::base::{Error, Result};
use crate::vfs::NodeId;
use crate::vfs::watchers::Watchers;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

/// Directories watched at once; past these, the host's own limit is usually near.
const WATCHES_MAX: usize = 16_384;
/// Files whose last known state is remembered.
const STATES_MAX: usize = 65_536;
/// How long events are gathered before they are told.
const GATHER: Duration = Duration::from_millis(5);
/// How old an answer can be where a directory could not be watched.
const BLIND_MS: u16 = 1_000;

/// Filesystems whose changes are made elsewhere, by the numbers of statfs(2).
const REMOTE: [u32; 8] =
    [0x6969, 0xFF53_4D42, 0xFE53_4D42, 0x517B, 0x6573_5546, 0x0102_1997, 0x5346_414F, 0x00C3_6400];

pub struct Watching {
    inotify: Inotify,
    stop: EventFd,
    table: RwLock<Table>,
    /// What a file was like when it was last told of.
    states: Mutex<HashMap<NodeId, u64>>,
    /// A directory could not be watched: clients have to look again every now and then.
    blind: AtomicBool,
}

#[derive(Default)]
struct Table {
    by_wd: HashMap<WatchDescriptor, NodeId>,
    by_dir: HashMap<NodeId, WatchDescriptor>,
    oldest: VecDeque<NodeId>,
}

impl Watching {
    /// `None` where nothing can be watched, having logged why.
    pub fn new(root: &OwnedFd) -> Option<Watching> {
        let kind = nix::sys::statfs::fstatfs(root).map_or(0, |s| s.filesystem_type().0 as u32);
        if REMOTE.contains(&kind) {
            log::info!("an export on a network filesystem is not watched for changes");
            return None;
        }
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let made = Inotify::init(flags).and_then(|i| {
            Ok((i, EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
        });
        match made {
            Ok((inotify, stop)) => Some(Watching {
                inotify,
                stop,
                table: RwLock::default(),
                states: Mutex::default(),
                blind: AtomicBool::new(false),
            }),
            Err(e) => {
                log::warn!("exports are not watched for changes: inotify: {}", e.desc());
                None
            }
        }
    }

    /// Starts the thread that tells a tree's watchers; it ends with the tree.
    pub fn start(local: &Arc<Core>) {
        let weak = Arc::downgrade(local);
        let run = move || while turn(&weak) {};
        if let Err(e) = std::thread::Builder::new().name("inotify".into()).spawn(run) {
            log::warn!("exports are not watched for changes: {e}");
            if let Some(w) = &local.watching {
                w.blind.store(true, Ordering::Release);
            }
        }
    }

    /// Has the thread look around: whether the tree is still there, and what it is to do.
    pub fn nudge(&self) {
        let _ = self.stop.write(1);
    }

    /// Whether every change can be told.
    pub fn is_live(&self) -> bool {
        !self.blind.load(Ordering::Acquire)
    }

    fn has(&self, dir: NodeId) -> bool {
        self.table.read().unwrap_or_else(PoisonError::into_inner).by_dir.contains_key(&dir)
    }

    /// Watches a directory from now on, at the expense of those watched longest.
    fn add(&self, dir: NodeId, fd: impl AsFd, watchers: &Watchers) {
        let mut t = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if t.by_dir.contains_key(&dir) {
            return;
        }
        let mask = AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let path = sys::proc_path(fd);
        let mut forgot = t.by_dir.len() >= WATCHES_MAX && self.forget_oldest(&mut t);
        let added = loop {
            match self.inotify.add_watch(path.as_c_str(), mask) {
                Err(nix::errno::Errno::ENOSPC) if self.forget_oldest(&mut t) => forgot = true,
                outcome => break outcome,
            }
        };
        match added {
            Ok(wd) => {
                // The same inode under another id: the latest has it.
                if let Some(before) = t.by_wd.insert(wd, dir) {
                    t.by_dir.remove(&before);
                }
                t.by_dir.insert(dir, wd);
                t.oldest.push_back(dir);
            }
            Err(e) => {
                if !self.blind.swap(true, Ordering::AcqRel) {
                    log::warn!("not every directory can be watched for changes: {}", e.desc());
                    self.nudge();
                }
            }
        }
        drop(t);
        if forgot {
            // Clients that remember something below look again, and are watched again.
            watchers.announce(&[Event::Resync]);
        }
    }

    /// A quarter at once, so that it is seldom.
    fn forget_oldest(&self, t: &mut Table) -> bool {
        let count = t.oldest.len().div_ceil(4);
        for _ in 0..count {
            let Some(dir) = t.oldest.pop_front() else { break };
            if let Some(wd) = t.by_dir.remove(&dir) {
                t.by_wd.remove(&wd);
                let _ = self.inotify.rm_watch(wd);
            }
        }
        count > 0
    }

    fn forget_all(&self) {
        let mut t = self.table.write().unwrap_or_else(PoisonError::into_inner);
        while self.forget_oldest(&mut t) {}
    }

    /// This is what a file is like after a change of our own.
    pub fn note(&self, node: NodeId, stat: &Stat) {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        if states.len() >= STATES_MAX {
            states.clear();
        }
        states.insert(node, stat.state());
    }

    /// Whether a file is as it was told last; it is from now on.
    fn is_news(&self, node: NodeId, stat: &Stat) -> bool {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        if states.len() >= STATES_MAX {
            states.clear();
        }
        states.insert(node, stat.state()) != Some(stat.state())
    }
}

impl Core {
    /// A client looks into a directory: what happens there is told from now on. Called before anything
    /// is read there.
    pub(super) fn look(&self, dir: NodeId, fd: impl AsFd) {
        if let Some(w) = &self.watching
            && !w.has(dir)
            && !self.watchers.is_empty()
        {
            w.add(dir, fd, &self.watchers);
        }
    }

    /// As [`Core::look`], for the directories that a node was seen in.
    pub(super) fn look_around(&self, node: NodeId) {
        let Some(w) = &self.watching else { return };
        if self.watchers.is_empty() {
            return;
        }
        for (dir, _) in self.ids.places(node) {
            if !w.has(dir) {
                let _ = self.dir(dir);
            }
        }
    }

    /// Notes what a change of our own has left, so that it is not taken for somebody else's.
    pub(super) fn note(&self, node: NodeId, stat: &Stat) {
        if let Some(w) = &self.watching {
            w.note(node, stat);
        }
    }

    /// A lock was granted: what others did to the file until now is told before the holder hears.
    pub(super) fn tell_state(&self, node: NodeId, stat: &Stat) {
        if let Some(w) = &self.watching
            && w.is_news(node, stat)
        {
            let generation = Some(stat.generation());
            self.announce(&[Event::Data { node, generation }]);
        }
    }

    /// Tells what a gathering of events comes to.
    fn tell(&self, w: &Watching, gathered: Gathered) {
        if gathered.overflow {
            w.states.lock().unwrap_or_else(PoisonError::into_inner).clear();
            return self.announce(&[Event::Resync]);
        }
        for (dir, mask) in gathered.dirs {
            if mask.intersects(AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_DELETE_SELF) {
                self.announce(&[Event::All { node: dir, generation: None }]);
            } else {
                self.announce(&[Event::Attr(dir)]);
            }
        }
        for ((dir, name), mask) in gathered.names {
            let names =
                AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE;
            if mask.intersects(names) {
                self.tell_name(dir, &name);
            }
            if mask.intersects(AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ATTRIB) {
                self.tell_file(w, dir, &name, mask);
            }
        }
    }

    /// A name came, went, or leads elsewhere.
    fn tell_name(&self, dir: NodeId, name: &OsStr) {
        let known = self.ids.at(dir, name);
        let key = known.and_then(|node| self.ids.key(node).ok());
        let now = self.held(dir).ok().and_then(|fd| sys::stat(&fd, name).ok()).map(|s| s.key());
        if key == now {
            // As the table has it. That something happened shows in the directory's times.
            return self.announce(&[Event::Attr(dir)]);
        }
        self.announce(&[Event::Entry { dir, name: name.into() }]);
        if let Some(node) = known {
            self.announce(&[Event::All { node, generation: None }]);
        }
        // Another name of a file that is known: it has a link more.
        if let Some(node) = now.and_then(|key| self.ids.id(&key)) {
            self.announce(&[Event::Attr(node)]);
        }
    }

    fn tell_file(&self, w: &Watching, dir: NodeId, name: &OsStr, mask: AddWatchFlags) {
        // Whom nobody was told of, nobody remembers.
        let Some(node) = self.ids.at(dir, name) else { return };
        let stat = self.held(dir).and_then(|fd| sys::stat(&fd, name));
        let Ok(stat) = stat.filter_key(self.ids.key(node).ok()) else {
            return self.announce(&[Event::All { node, generation: None }]);
        };
        if !w.is_news(node, &stat) {
            return;
        }
        let generation = Some(stat.generation());
        self.announce(&[match mask.contains(AddWatchFlags::IN_MODIFY) {
            true => Event::Data { node, generation },
            false => Event::Attr(node),
        }]);
    }

    /// A directory's descriptor, wherever it is by now.
    fn held(&self, dir: NodeId) -> Result<Arc<OwnedFd>> {
        self.node(dir).map(|node| node.fd)
    }
}

trait FilterKey {
    fn filter_key(self, key: Option<sys::FileKey>) -> Result<Stat>;
}

impl FilterKey for Result<Stat> {
    /// The node must still be the one that the name led to.
    fn filter_key(self, key: Option<sys::FileKey>) -> Result<Stat> {
        self.and_then(|stat| match key == Some(stat.key()) {
            true => Ok(stat),
            false => Err(Error::from_errno(libc::ESTALE, "another file")),
        })
    }
}

/// Events of a moment, each thing once.
#[derive(Default)]
struct Gathered {
    names: BTreeMap<(NodeId, OsString), AddWatchFlags>,
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
                *self.names.entry((dir, name)).or_insert(AddWatchFlags::empty()) |= event.mask
            }
            None => *self.dirs.entry(dir).or_insert(AddWatchFlags::empty()) |= event.mask,
        }
    }
}

/// Waits for events and tells them; false when the tree is gone.
fn turn(weak: &Weak<Core>) -> bool {
    let Some(local) = weak.upgrade() else { return false };
    let Some(w) = &local.watching else { return false };
    let timeout = match w.blind.load(Ordering::Acquire) {
        true => PollTimeout::from(BLIND_MS),
        false => PollTimeout::NONE,
    };
    // The descriptors must outlive the wait, the tree need not: its end writes to `stop`.
    let Ok(pair) = w
        .inotify
        .as_fd()
        .try_clone_to_owned()
        .and_then(|i| w.stop.as_fd().try_clone_to_owned().map(|s| (i, s)))
    else {
        return false;
    };
    drop(local);
    let mut fds = [
        PollFd::new(pair.0.as_fd(), PollFlags::POLLIN),
        PollFd::new(pair.1.as_fd(), PollFlags::POLLIN),
    ];
    let _ = poll(&mut fds, timeout);
    // What comes together is told together; and what is our own is in the table of ids by then.
    std::thread::sleep(GATHER);
    let Some(local) = weak.upgrade() else { return false };
    let Some(w) = &local.watching else { return false };
    let _ = w.stop.read();
    if local.watchers.is_empty() {
        w.forget_all();
    }
    if w.blind.load(Ordering::Acquire) {
        local.announce(&[Event::Resync]);
    }
    let mut gathered = Gathered::default();
    while let Ok(events) = w.inotify.read_events() {
        events.into_iter().for_each(|e| gathered.add(w, e));
        if gathered.overflow {
            break;
        }
    }
    local.tell(w, gathered);
    true
}
