//! The one integration binary: everything that is tested from outside, each subject in its own file.

mod store;
mod tidy;
