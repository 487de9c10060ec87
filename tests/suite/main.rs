//! The one integration binary: everything that is tested from outside, each subject in its own file.

mod conformance;
mod store;
mod tidy;
