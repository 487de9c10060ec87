//! The node: its protocol as a client sees it, and the program as part of a gateway.

mod daemon;
mod grants;
mod protocol;
mod raw;
mod services;
mod session;
