//! Tests that drive the real parts: sockets, files, processes.

mod store;
