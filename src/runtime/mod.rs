//! Agents and their work: who they are, the messages to them, the models and tools that answer. This room
//! works on whatever tree it is handed; it knows no sockets.

pub mod agents;
mod chat;
pub mod event;
mod history;
pub mod jobs;
mod prompt;
pub mod provider;
mod roster;
mod templates;
pub mod tools;
mod turn;

pub use chat::{Options, Runtime, Sink, Subscription, TEXT_MAX, Trees};
pub use templates::TemplateDir;
pub use turn::{CALLS_MAX, ROUNDS_MAX};
