//! The config file, its overrides, and the file of access tokens. This room reads settings and writes
//! files; what a setting does is the business of the room that uses it.

pub mod credentials;
mod document;
pub mod edit;
mod load;
mod settings;
pub mod state_key;
pub mod tokens;

pub use load::{Env, Loaded, Origin, load, location, write_default};
pub use settings::{Config, KEYS, Key, Log, Provider, Runtime, Server};
pub use state_key::state_key;
