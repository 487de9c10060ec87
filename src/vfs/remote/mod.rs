//! An export at the other end of a WebSocket, as a tree. Many callers share one connection; when it is
//! lost it is made again, ids and open files are found again by their names, and what was lost in
//! between is told as `Resync`. It keeps no file data and no attributes.

mod dial;
mod export;
mod file;
mod link;
mod listing;
mod numbered;
mod peer;
mod tree;

pub use dial::{Dial, SILENCE, expect_answers, say_hello};
pub use export::{Remote, Which};
pub use link::{LineStatus, Link};
pub use peer::{Connector, Hooks, Peer, PeerStatus};
