//! Agents and their work.

pub mod provider;
