//! The words of the [`Tree`](super::Tree) trait: ids, attributes, flags, pages, events, and the
//! context that every call carries.

use crate::base::{Cancel, Code, Deadline, Error, Result, Wait};
/// These have the same members on the wire.
pub use crate::wire::fs::{Allocate, Range, SeekTo, StatFs};
use bytes::Bytes;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

/// Names a node (file, directory, symlink) within one tree; never 0, below 2^53. Valid from the
/// `lookup`, `readdir`, `create` or `mkdir` that told it; never reused for another file while the tree
/// lives. One that was not used for long may answer ESTALE: look it up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of every tree.
    pub const ROOT: NodeId = NodeId(1);
}

/// Names an open file within one tree; below 2^53. Whoever opened it releases it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub u64);

/// Who asks. Fixed for a session, shared by all its calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// The token's owner: `admin`, `user`, or a named principal.
    pub principal: String,
    pub admin: bool,
    pub agent_id: String,
    pub project_id: Option<String>,
    pub project_token: Option<String>,
    /// Distinguishes sessions; owns handles and locks.
    pub session: u64,
}

/// What every call carries: who asks, by when, and how to make it stop.
#[derive(Clone)]
pub struct Cx {
    pub who: Arc<Who>,
    pub deadline: Deadline,
    pub cancel: Cancel,
    /// The request's own name, where it has one (a message file may hand it on; spec: namespace 7.1).
    pub correlation_id: Option<Arc<str>>,
}

impl Cx {
    pub fn new(who: Arc<Who>, deadline: Deadline) -> Cx {
        Cx { who, deadline, cancel: Cancel::new(), correlation_id: None }
    }

    /// For work on behalf of the program itself, with all rights.
    pub fn internal(deadline: Deadline) -> Cx {
        let who = Who { principal: "internal".into(), admin: true, ..Who::default() };
        Cx::new(Arc::new(who), deadline)
    }

    /// Errors: `cancelled`, `timeout`. Long loops ask now and then.
    pub fn check(&self) -> Result<()> {
        self.cancel.check()?;
        if self.deadline.passed() {
            return Err(Error::new(Code::Timeout, "operation timed out"));
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Symlink,
    /// FIFO, socket or device: listed, never opened.
    Special,
}

/// What `stat` tells. Times are nanoseconds since the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    pub id: NodeId,
    pub kind: Kind,
    /// st_mode, type bits included.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Allocated space in 512-byte units.
    pub blocks: u64,
    pub atime_ns: i64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    /// Changes whenever the content changes.
    pub generation: u64,
    /// Below 2^53. The same file has the same in every tree and process, another file another; 0 where
    /// nothing is known of that.
    pub identity: u64,
}

/// What a tree can do; a call it cannot do answers ENOSYS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    pub read_only: bool,
    pub case_sensitive: bool,
    pub symlink: bool,
    pub xattr: bool,
    pub locks: bool,
    /// Changes made behind the tree's back are announced to watchers.
    pub native_watch: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    ReadWrite,
}

/// How to open. `O_CREAT` is a call of its own ([`super::Tree::create`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFlags {
    pub access: Access,
    pub append: bool,
    pub truncate: bool,
    /// With `create`: fail when the name exists.
    pub exclusive: bool,
    /// The content is wanted with the answer, if it is all there in so many bytes: a hint, which costs a
    /// far tree no further round trip.
    pub content_max: u32,
}

impl OpenFlags {
    pub const READ: OpenFlags = OpenFlags {
        access: Access::Read,
        append: false,
        truncate: false,
        exclusive: false,
        content_max: 0,
    };
    pub const WRITE: OpenFlags = OpenFlags { access: Access::Write, ..OpenFlags::READ };
    pub const READ_WRITE: OpenFlags = OpenFlags { access: Access::ReadWrite, ..OpenFlags::READ };

    pub fn reads(self) -> bool {
        self.access != Access::Write
    }

    pub fn writes(self) -> bool {
        self.access != Access::Read
    }
}

/// How an open file behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Like a file on disk: offsets, sizes and caches mean what they usually mean.
    Plain,
    /// The writes up to `flush` are one message, taken earlier when what was written so far is complete
    /// by the file's own rule (one JSON object); the reply can be read from the same handle. Its size
    /// says nothing; never cached.
    Message,
    /// Content is made at read time, and a read may wait ([`Read::Wait`]). Never cached.
    Stream,
}

/// An open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    pub handle: Handle,
    pub kind: FileKind,
    /// Another one when the content is another than at the open before. Most trees give the node's
    /// [`Attr::generation`]; a tree that remembers gives a number that its own writes leave alone.
    pub generation: u64,
    /// How long a write or a flush may take where that is longer than calls usually may: what takes the
    /// message works on it meanwhile.
    pub patience_ms: Option<u64>,
    /// All that the file held when it had been opened, where the opener wanted it and the tree told it.
    pub content: Option<Bytes>,
}

/// The outcome of a read.
pub enum Read {
    /// At most the bytes asked for; `eof` when the file ends with them.
    Data { bytes: Bytes, eof: bool },
    /// Nothing yet. Wait, then call `read` again with the same arguments; it answers for good, with
    /// what a time-out gives, once the file's own waiting time is over.
    Wait(Wait),
}

/// The outcome of a write.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    /// Bytes taken.
    pub n: u64,
    /// What the file is like now, where the tree knows it at no cost.
    pub attr: Option<Attr>,
    /// What a message file has to say at once: members that go into the reply's payload beside `n`
    /// (spec: namespace 2.3, `t_write` extras).
    pub extra: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Written {
    pub fn bytes(n: usize) -> Written {
        Written { n: n as u64, ..Written::default() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    pub name: OsString,
    pub attr: Attr,
    /// Where to go on after this entry.
    pub cookie: u64,
}

/// How much of a directory to return at most; at least one entry is returned where there is one.
#[derive(Clone, Copy, Debug)]
pub struct PageLimit {
    pub entries: usize,
    /// Bound on the sum of name lengths plus [`PageLimit::ENTRY_BYTES`] an entry.
    pub bytes: usize,
}

impl PageLimit {
    /// About what an entry's attributes cost on the wire.
    pub const ENTRY_BYTES: usize = 200;
    pub const DEFAULT: PageLimit = PageLimit { entries: 4096, bytes: 512 * 1024 };
}

/// Where to read a directory: `cookie` 0 is its start, others come from [`DirEntry::cookie`].
#[derive(Clone, Copy, Debug)]
pub struct ReadDir {
    pub dir: NodeId,
    pub cookie: u64,
    pub limit: PageLimit,
}

/// A piece of a directory, without `.` and `..`.
#[derive(Clone, Debug, Default)]
pub struct DirPage {
    pub entries: Vec<DirEntry>,
    pub eof: bool,
    /// Generation of the directory that this is a picture of.
    pub generation: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    Now,
    At { ns: i64 },
}

/// What to change; `None` leaves alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits; setuid, setgid and device types are refused.
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameFlags {
    /// Fail with EEXIST rather than replace.
    pub no_replace: bool,
    pub exchange: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XattrFlags {
    #[default]
    Any,
    /// Fail with EEXIST when it exists.
    Create,
    /// Fail with ENODATA when it does not.
    Replace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    Shared,
    Exclusive,
    Unlock,
}

/// A lock. A tree never waits: EAGAIN says that another owner holds what is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRequest {
    pub kind: LockKind,
    /// Tells lock owners of one session apart.
    pub owner: u64,
    /// `None`: the whole file, as flock(2) does. `Some`: bytes, as fcntl(2) does; the two kinds do not
    /// see each other.
    pub range: Option<Range>,
}

/// Something changed. Whoever caches drops what it knew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Attributes of a node.
    Attr(NodeId),
    /// Content of a node, and so its attributes.
    Data { node: NodeId, generation: Option<u64> },
    /// Everything about a node, its entries included.
    All { node: NodeId, generation: Option<u64> },
    /// Any entries of a directory, and so its attributes.
    Dir(NodeId),
    /// One entry of a directory came, went, or leads elsewhere now; the directory's attributes changed.
    Entry { dir: NodeId, name: Arc<OsStr> },
    /// Events were lost: forget everything.
    Resync,
}

/// Where events go. Called on the thread that made the change, before its call returns; must not
/// block and must not call back into the tree.
pub type EventSink = Arc<dyn Fn(Event) + Send + Sync>;

/// Keeps a subscription alive; dropping it ends the events.
#[must_use]
pub struct Watch(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Watch {
    pub fn new(end: impl FnOnce() + Send + Sync + 'static) -> Watch {
        Watch(Some(Box::new(end)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end();
        }
    }
}
