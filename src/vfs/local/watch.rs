//! What others change in the directories that clients have looked at, told by inotify: no polling, and no
//! work while nothing happens.
//!
//! Our own changes come back as events, too, and are not told twice. For names they are counted: no more
//! events of a name are passed over than we caused, so whoever else changed it leaves one over, which is
//! told when his change can be seen. That a client has looked a name up in the meantime says nothing: others
//! may remember what it was before. A file that looks as our own change, or the last event, left it is no
//! news. A change of it by others that falls between our change and the look at what it left would be
//! taken for ours; whoever coordinates by locks is safe, since a lock is granted on what the file is then.
//!
//! inotify does not see what is written through mmap(2), nor a file that is changed by a name in another
//! directory, nor what other hosts do to a network filesystem. Such a filesystem is not watched at all;
//! whoever remembers attributes believes those of files with several names for a moment only.

mod news;

use super::phases::{Going, OWN_MAX, Phases};
use super::states::States;
use super::sys::{self, FileKey, Stat};
use super::{Core, Event};
use crate::base::Result;
use crate::vfs::watchers::Watchers;
use crate::vfs::{Caller, NodeId};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// Directories watched at once; past these, the host's own limit is usually near.
pub const WATCHES_MAX: usize = 16_384;
/// Where the host allows fewer than these, no watch is given up for another: clients would be told to look
/// again with nearly every directory that they look into.
const WATCHES_MIN: usize = 64;
/// Names of our own changes whose events have yet to come.
const OWN_NAMES_MAX: usize = 65_536;
/// Names of one gathering; what comes after them waits for the next.
const GATHERED_MAX: usize = 16_384;
/// How long events are gathered before they are told.
const GATHER: Duration = Duration::from_millis(5);
/// How old an answer can be where a directory could not be watched.
const BLIND: Duration = Duration::from_secs(1);

/// Filesystems whose changes are made elsewhere, by the numbers of statfs(2).
const REMOTE: [u32; 8] =
    [0x6969, 0xFF53_4D42, 0xFE53_4D42, 0x517B, 0x6573_5546, 0x0102_1997, 0x5346_414F, 0x00C3_6400];

pub struct Watching {
    kernel: Arc<Kernel>,
    watches_max: usize,
    /// Before `own_names` where both are taken.
    table: RwLock<Table>,
    pub(super) states: States,
    /// Events of watched directories that our own changes have caused.
    own_names: Mutex<HashMap<(NodeId, OsString), Own>>,
    /// A directory could not be watched: clients have to look again every now and then.
    blind: AtomicBool,
    /// Changes of our own that are being made.
    own: Phases,
}

/// What the thread waits for, which it shares with the tree so that it can wait without one.
struct Kernel {
    inotify: Inotify,
    nudge: EventFd,
}

/// Events of one name: which, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    mask: AddWatchFlags,
    count: u32,
}

impl Seen {
    const NOTHING: Seen = Seen { mask: AddWatchFlags::empty(), count: 0 };

    fn add(&mut self, mask: AddWatchFlags) {
        self.mask |= mask;
        self.count += u32::from(mask.intersects(names()));
    }
}

/// Our own changes of a name, and what they have left there.
struct Own {
    seen: Seen,
    left: Option<FileKey>,
}

/// A name came, went, or leads elsewhere.
fn names() -> AddWatchFlags {
    AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE
}

#[derive(Default)]
struct Table {
    by_wd: HashMap<WatchDescriptor, NodeId>,
    by_dir: HashMap<NodeId, WatchDescriptor>,
    oldest: VecDeque<NodeId>,
}

impl Watching {
    /// `None` where nothing can be watched, having logged why.
    pub fn new(root: &OwnedFd, watches_max: usize) -> Option<Watching> {
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
            Ok((inotify, nudge)) => Some(Watching {
                kernel: Arc::new(Kernel { inotify, nudge }),
                watches_max,
                table: RwLock::default(),
                states: States::default(),
                own_names: Mutex::default(),
                blind: AtomicBool::new(false),
                own: Phases::default(),
            }),
            Err(e) => {
                log::warn!("exports are not watched for changes: inotify: {}", e.desc());
                None
            }
        }
    }

    /// Starts the thread that tells a tree's watchers; it ends with the tree.
    pub fn start(local: &Arc<Core>) {
        let Some(w) = &local.watching else { return };
        let (weak, kernel) = (Arc::downgrade(local), w.kernel.clone());
        let run = move || news::run(&weak, &kernel);
        if let Err(e) = std::thread::Builder::new().name("inotify".into()).spawn(run) {
            log::warn!("exports are not watched for changes: {e}");
            w.blind.store(true, Ordering::Release);
        }
    }

    /// Has the thread look around: whether the tree is still there, and what it is to do.
    pub fn nudge(&self) {
        let _ = self.kernel.nudge.write(1);
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
        let mut forgot = t.by_dir.len() >= self.watches_max && self.forget_oldest(&mut t);
        let added = loop {
            match self.kernel.inotify.add_watch(path.as_c_str(), mask) {
                Err(nix::errno::Errno::ENOSPC) if t.by_dir.len() >= WATCHES_MIN => {
                    forgot |= self.forget_oldest(&mut t);
                }
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
            // Clients that remember something below look again, and are watched again: also the one
            // whose call this is.
            Caller::nobody(|| watchers.announce(&[Event::Resync]));
        }
    }

    /// A quarter at once, so that it is seldom.
    fn forget_oldest(&self, t: &mut Table) -> bool {
        let count = t.oldest.len().div_ceil(4);
        for _ in 0..count {
            let Some(dir) = t.oldest.pop_front() else { break };
            if let Some(wd) = t.by_dir.remove(&dir) {
                t.by_wd.remove(&wd);
                let _ = self.kernel.inotify.rm_watch(wd);
            }
        }
        self.own_names.lock().unwrap_or_else(PoisonError::into_inner).clear();
        count > 0
    }

    /// Nobody listens any more: nothing needs to be watched. Whoever listens from now on finds no watch,
    /// and one that was to fail may succeed.
    fn forget_unheard(&self, watchers: &Watchers) {
        let mut t = self.table.write().unwrap_or_else(PoisonError::into_inner);
        // A new watcher is in the list before it looks, and so before it waits for this lock.
        if watchers.is_empty() {
            while self.forget_oldest(&mut t) {}
            self.blind.store(false, Ordering::Release);
        }
    }

    /// We changed what a name of a directory leads to; events will say so where that is watched.
    fn note_name(&self, (dir, name): (NodeId, &OsStr), mask: AddWatchFlags, left: Option<FileKey>) {
        let t = self.table.read().unwrap_or_else(PoisonError::into_inner);
        if !t.by_dir.contains_key(&dir) {
            return;
        }
        let mut own = self.own_names.lock().unwrap_or_else(PoisonError::into_inner);
        if own.len() >= OWN_NAMES_MAX {
            own.clear();
        }
        let ours = own.entry((dir, name.to_owned())).or_insert(Own { seen: Seen::NOTHING, left });
        ours.seen.add(mask);
        ours.left = left;
    }

    /// Whether these are the events of our own changes of a name, none more and none less. The kernel
    /// makes one of two alike that follow each other; so it must also lead where we left it.
    fn is_own_name(&self, at: (NodeId, &OsStr), seen: Seen, now: Option<FileKey>) -> bool {
        let mut own = self.own_names.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = Seen { mask: seen.mask & names(), ..seen };
        own.remove(&(at.0, at.1.to_owned())).is_some_and(|o| o.seen == seen && o.left == now)
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

    /// A change of our own begins. Until the guard goes, its events are not looked at: what it did is in
    /// the table of ids by then.
    pub(super) fn changing(&self) -> Option<Going<'_>> {
        self.watching.as_ref().map(|w| w.own.begin())
    }

    /// Notes the event (IN_CREATE, IN_DELETE, IN_MOVED_FROM, IN_MOVED_TO) that a change of our own causes
    /// at a name, and what it has left there. Called while [`Core::changing`] holds.
    pub(super) fn note_name(
        &self,
        at: (NodeId, &OsStr),
        event: AddWatchFlags,
        left: Option<FileKey>,
    ) {
        if let Some(w) = &self.watching {
            w.note_name(at, event, left);
        }
    }

    /// Notes what a change of our own has left, so that it is not taken for somebody else's.
    pub(super) fn note(&self, node: NodeId, stat: &Stat) {
        if let Some(w) = &self.watching {
            w.states.note(node, stat);
        }
    }

    /// Changes a file's content, and notes what that has left; `change` says what it is.
    pub(super) fn altered(
        &self,
        node: NodeId,
        change: impl FnOnce() -> Result<Stat>,
    ) -> Result<Stat> {
        let _changing = self.changing();
        let stat = match &self.watching {
            Some(w) => w.states.alter(node, change)?,
            None => change()?,
        };
        self.announce(&[Event::Data { node, generation: Some(stat.generation()) }]);
        Ok(stat)
    }

    /// A lock was granted: what others did to the file until now is told before the holder hears, and to
    /// him, too.
    pub(super) fn tell_state(&self, node: NodeId, stat: &Stat) {
        if let Some(w) = &self.watching
            && w.states.look(node, Duration::ZERO, || Ok(*stat)).is_ok_and(|(_, is_news)| is_news)
        {
            let generation = Some(stat.generation());
            Caller::nobody(|| self.announce(&[Event::Data { node, generation }]));
        }
    }
}
