//! Agents and their work.

pub mod agents;
pub mod provider;
pub mod tools;
