//! The network room over real sockets: servers of ours against hand-made frames, and clients of
//! ours against hand-made servers.

mod http;
mod limits;
mod mux;
mod raw;
mod rfc6455;
mod server;
mod tls;
