//! Language models behind one trait. A provider turns a neutral [`Request`] into its wire format and its
//! answer back into a [`Response`]; retries, deadlines and models are the same for all. A new one is a
//! file and a row of [`PROVIDERS`].

mod asked;
mod echo;
mod error;
mod http;
mod models;
mod openai;
mod retry;
mod sse;
mod types;

pub use asked::Asked;
pub use error::{Failure, ProviderError};
pub use models::Model;
pub use retry::{Observer, Retry, stream};
pub use types::{
    Assistant, Delta, Effort, Message, Request, Response, Stop, Tool, ToolCall, Usage,
};

use crate::base::{Cancel, Code, Deadline, Error, Result};
use crate::config::credentials::{Credentials, Wanted};
use crate::config::{self, Env};
use std::sync::Arc;

/// By when a call must have ended, and how to end it earlier.
#[derive(Clone)]
pub struct Call {
    pub deadline: Deadline,
    pub cancel: Cancel,
}

pub trait Provider: Send + Sync {
    /// Asks once, without retries, and calls `on` with the pieces of the answer as they come.
    fn stream(
        &self,
        request: &Request<'_>,
        call: &Call,
        on: &mut dyn FnMut(Delta<'_>),
    ) -> Result<Response, ProviderError>;
}

/// What a provider is made from.
pub struct Setup<'a> {
    pub settings: &'a config::Provider,
    pub credentials: Arc<Credentials>,
    pub env: &'a Env,
}

/// A row of the table.
struct Row {
    name: &'static str,
    /// Environment variables that may hold its key, the best first; none where it needs no key.
    key_variables: &'static [&'static str],
    make: fn(&Row, &Setup<'_>) -> Result<Arc<dyn Provider>>,
}

const PROVIDERS: &[Row] = &[
    Row { name: "echo", key_variables: &[], make: echo::make },
    Row { name: "openai", key_variables: &["OPENAI_API_KEY"], make: openai::make },
];

impl Row {
    fn wanted(&self) -> Wanted<'static> {
        Wanted { provider: self.name, variables: self.key_variables }
    }
}

/// The provider of that name. Errors: `provider_not_found`, naming those there are; `invalid_config`.
/// A key is looked for with each request, so that a missing one is told to whoever asks.
pub fn make(name: &str, setup: &Setup<'_>) -> Result<Arc<dyn Provider>> {
    let row = row(name)?;
    (row.make)(row, setup)
}

/// Errors: `provider_not_found`, naming those there are.
pub fn check(name: &str) -> Result<()> {
    row(name).map(|_| ())
}

fn row(name: &str) -> Result<&'static Row> {
    PROVIDERS.iter().find(|row| row.name == name).ok_or_else(|| {
        let names: Vec<_> = PROVIDERS.iter().map(|row| row.name).collect();
        let message = format!(
            "provider {name:?} is not known (known: {}); run `spiderweb-config config set-provider`",
            names.join(", ")
        );
        Error::new(Code::ProviderNotFound, message)
    })
}

/// The model to use: `id`, or the usual one of `provider`. One that is not in the catalogue is used all
/// the same, with cautious limits.
pub fn model(provider: &str, id: Option<&str>) -> Model {
    models::choose(provider, id)
}
