//! The node: exports of trees, served over `t_fs_*` (spec: fs). The server does not know where a
//! connection comes from: a listener, a tunnel, or the gateway's own endpoint.

mod calls;
mod convert;
mod cursor;
mod daemon;
mod door;
mod exports;
mod files;
mod held;
mod job;
mod lease;
mod listen;
mod services;
mod session;
mod start;

pub use daemon::{Backoff, Membership, Pairing, Way, secret_in};
pub use door::{Door, Entry, limits_before_hello};
pub use exports::{Export, ExportSpec, Exports};
pub use listen::{FsHandler, FsService, TokenDoor};
pub use services::{Sources, start_keeper};
pub use session::{Server, Session};
pub use start::{Mode, Options, Running, start};
