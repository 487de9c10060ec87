//! The one integration binary: everything that is tested from outside, each subject in its own file.

mod provider;
mod provider_fake;
mod store;
mod tidy;
