//! The one integration binary: everything that is tested from outside, each subject in its own file.
//! Real parts, no sleeps, only loopback.

mod conformance;
mod mount;
mod net;
mod provider;
mod provider_fake;
mod runtime;
mod store;
mod tidy;
