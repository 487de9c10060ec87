//! The mount client: endpoints and workspaces as one tree, the verbs that work on it from a shell, and
//! the tree as a mounted filesystem. It knows nothing of what the gateway holds inside.

pub mod copy;
pub mod daemonize;
pub mod endpoint;
pub mod fuse;
pub mod options;
pub mod point;
mod push;
pub mod report;
pub mod socket;
pub mod status;
pub mod verbs;
pub mod workspace;
pub mod world;
