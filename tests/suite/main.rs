//! The one integration binary: everything that is tested from outside, each subject in its own file.
//! Real parts, no sleeps, only loopback.

mod audit;
mod auth;
mod config;
mod conformance;
mod control;
mod crash;
mod gateway;
mod mount;
mod net;
mod node;
mod program;
mod provider;
mod provider_fake;
mod runtime;
mod runtime_house;
mod runtime_tools;
mod state;
mod store;
mod tidy;
