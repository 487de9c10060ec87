//! Spiderweb: a WebSocket gateway and a distributed filesystem in which AI agents work.
//!
//! The modules are rooms that stand in one row; a room knows only the rooms above it in this list
//! (`tests/suite/tidy.rs` checks it). ARCHITECTURE.md tells what each holds and must not hold.

pub mod base;
pub mod wire;

pub mod net;
pub mod store;

pub mod vfs;

pub mod config;

pub mod node;

pub mod mount;

pub mod control;

pub mod runtime;

pub mod namespace;

pub mod gateway;

pub mod cli;
