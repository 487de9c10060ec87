//! Where API keys come from: a list of places, looked through in order. Keys are never logged.

use super::Env;
use crate::base::{Code, Error, Result};
use std::fmt;

/// A secret text; its `Debug` form does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(secret: impl Into<String>) -> Secret {
        Secret(secret.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Whose key is wanted, and the environment variables that may hold it, the best first.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub provider: &'a str,
    pub variables: &'a [&'a str],
}

/// What a place said.
pub enum Found {
    Key(Secret),
    /// Nothing; the words name where it looked.
    Nothing(String),
}

/// A place that may hold keys.
type Source = Box<dyn Fn(Wanted<'_>) -> Result<Found> + Send + Sync>;

/// The places, in the order in which they are asked.
pub struct Credentials(Vec<Source>);

impl Credentials {
    /// Only the environment.
    pub fn from_env(env: Env) -> Credentials {
        Credentials(vec![Box::new(move |wanted| Ok(look_in_env(&env, wanted)))])
    }

    /// Asks `source` before those that are there already.
    #[must_use]
    pub fn first(
        mut self,
        source: impl Fn(Wanted<'_>) -> Result<Found> + Send + Sync + 'static,
    ) -> Credentials {
        self.0.insert(0, Box::new(source));
        self
    }

    /// The first key that a place holds. Errors: `missing_api_key`, naming the provider, every place
    /// that was tried, and what to do. A place that fails is no reason to use another one's key in
    /// silence: it is named in the log, and in the error when no key is found.
    pub fn find(&self, wanted: Wanted<'_>) -> Result<Secret> {
        let mut tried = Vec::new();
        for source in &self.0 {
            match source(wanted) {
                Ok(Found::Key(key)) => return Ok(key),
                Ok(Found::Nothing(place)) => tried.push(place),
                Err(e) => {
                    log::warn!("looking for the API key of {}: {e}", wanted.provider);
                    tried.push(e.message.into_owned());
                }
            }
        }
        let fix = match wanted.variables.first() {
            Some(variable) => format!("set {variable} in the gateway's environment"),
            None => "give it one".to_owned(),
        };
        let message = format!(
            "provider {} has no API key (tried: {}); {fix}, or run `spiderweb-config config \
             set-provider echo` to work without one",
            wanted.provider,
            tried.join(", "),
        );
        Err(Error::new(Code::MissingApiKey, message))
    }
}

fn look_in_env(env: &Env, wanted: Wanted<'_>) -> Found {
    let trimmed = |name: &&str| env.get(name).map(str::trim).filter(|key| !key.is_empty());
    match wanted.variables.iter().find_map(trimmed) {
        Some(key) => Found::Key(Secret::new(key)),
        None => Found::Nothing(format!("environment variable {}", wanted.variables.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPENAI: Wanted<'_> = Wanted { provider: "openai", variables: &["OPENAI_API_KEY"] };

    #[test]
    fn the_first_place_with_a_key_wins_and_a_missing_key_names_them_all() {
        let env: Env = [("OPENAI_API_KEY", " sk-env ")].into_iter().collect();
        let both = Credentials::from_env(env)
            .first(|w| Ok(Found::Nothing(format!("key ring of {}", w.provider))));
        assert_eq!(both.find(OPENAI).unwrap().expose(), "sk-env");
        let ring =
            Credentials::from_env(Env::default()).first(|_| Ok(Found::Key(Secret::new("sk-ring"))));
        assert_eq!(ring.find(OPENAI).unwrap().expose(), "sk-ring");
        assert!(!format!("{:?}", ring.find(OPENAI)).contains("sk-ring"));

        let none = Credentials::from_env(Env::default())
            .first(|_| Err(Error::new(Code::Unavailable, "the key ring is locked")));
        let e = none.find(OPENAI).unwrap_err();
        assert_eq!(e.code, Code::MissingApiKey);
        for part in [
            "openai",
            "the key ring is locked",
            "environment variable OPENAI_API_KEY",
            "set-provider echo",
        ] {
            assert!(e.message.contains(part), "{part} is not in: {e}");
        }
    }
}
