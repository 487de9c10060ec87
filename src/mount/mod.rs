//! The mount client: endpoints and workspaces as one tree, the verbs that work on it from a shell, and
//! the tree as a mounted filesystem. It knows nothing of what the gateway holds inside.

pub mod endpoint;
pub mod fuse;
pub mod point;
pub mod status;
pub mod verbs;
pub mod workspace;
pub mod world;
