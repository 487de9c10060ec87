//! Everything is a tree. [`Tree`] is the only way anything is listed, read or written; what stands
//! behind one (a host directory, functions, a node at the other end of a socket, a mount table over
//! other trees) is nobody's business. This room knows neither FUSE nor the control plane.

mod cached;
mod caller;
mod handles;
mod ids;
mod local;
pub mod ranges;
pub mod remote;
pub mod synthetic;
mod tree;
mod types;
mod union;
pub mod walk;
mod watchers;
pub mod wire;

pub use cached::{CacheOptions, CacheStatus, Cached, Disk, DiskStatus, Workers};
pub use caller::Caller;
pub use local::{Local, LocalOptions};
pub use synthetic::Synthetic;
pub use tree::Tree;
pub use types::{
    Access, Allocate, Attr, Caps, Cx, DirEntry, DirPage, Event, EventSink, FileKind, Handle, Kind,
    LockKind, LockRequest, NodeId, OpenFlags, Opened, PageLimit, Range, Read, ReadDir, RenameFlags,
    SeekTo, SetAttr, SetTime, StatFs, Watch, Who, Written, XattrFlags,
};
pub use union::{Bind, Member, MountPoint, MountStatus, Union};
