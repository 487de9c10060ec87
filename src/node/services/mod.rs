//! The services of a node (spec: fs 14 and 15): what manifests and terminals offer, each as a tree of
//! files and an entry in the gateway's catalogue. Manifests may change while the node runs; what has not
//! changed is not touched. Knows nothing of gateways and connections.

mod catalogue;
mod child;
mod family;
mod files;
mod keeper;
mod kept;
mod manifest;
mod policy;
mod probe;
mod pty;
mod pty_files;
mod service;
mod set;
mod state;
mod terminal;

pub use catalogue::Files;
pub use keeper::start as start_keeper;
pub use manifest::Sources;
pub use set::{Options, Services, WAITERS_MAX};
