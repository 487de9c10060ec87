//! Tests that drive the real parts: sockets, files, processes.

mod provider;
mod provider_fake;
mod store;
