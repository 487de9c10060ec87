//! The access tokens in force. A change is on the disk before it holds; a file that cannot be read
//! changes nothing. Who has to be told that tokens changed, listens.

use super::session::{Principal, Role};
use crate::base::{Result, now_ms};
use crate::config::tokens::{self, Identity, Tokens};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Called after other tokens came into force; must be short.
pub type TokensListener = Arc<dyn Fn(&Tokens) + Send + Sync>;

pub struct Authenticator {
    path: PathBuf,
    tokens: RwLock<Arc<Tokens>>,
    /// Held from reading the file until its content is in force, so that no older one follows a newer.
    changing: Mutex<()>,
    listeners: RwLock<Vec<TokensListener>>,
}

impl Authenticator {
    pub fn new(path: PathBuf, tokens: Tokens) -> Authenticator {
        Authenticator {
            path,
            tokens: RwLock::new(Arc::new(tokens)),
            changing: Mutex::default(),
            listeners: RwLock::default(),
        }
    }

    /// The file that holds the tokens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn tokens(&self) -> Arc<Tokens> {
        self.tokens.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn listen(&self, listener: TokensListener) {
        self.listeners.write().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    /// Whose token it is; nobody's when it is unknown, revoked or expired.
    pub fn identify(&self, token: &str) -> Option<Identity> {
        self.tokens().identify(token, now_ms())
    }

    /// Whether a connection that was opened with a token may go on.
    pub fn admits(&self, identity: &Identity) -> bool {
        self.tokens().admits(identity, now_ms())
    }

    /// Changes the tokens. Errors: what `change` says; `storage_error`, and the old ones stay in force.
    pub fn change<T>(&self, change: impl FnOnce(&mut Tokens) -> Result<T>) -> Result<T> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (tokens, answer) = Tokens::update(&self.path, change)?;
        self.publish(tokens);
        Ok(answer)
    }

    /// Reads the file again; true when something else is in force now. Errors: the file is missing or
    /// wrong, and the old tokens stay in force.
    pub fn reload(&self) -> Result<bool> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = Tokens::load(&self.path)?;
        let is_news = *self.tokens() != tokens;
        if is_news {
            self.publish(tokens);
        }
        Ok(is_news)
    }

    fn publish(&self, tokens: Tokens) {
        let tokens = Arc::new(tokens);
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = tokens.clone();
        let listeners = self.listeners.read().unwrap_or_else(PoisonError::into_inner).clone();
        listeners.iter().for_each(|listener| listener(&tokens));
    }
}

impl From<tokens::Role> for Role {
    fn from(role: tokens::Role) -> Role {
        match role {
            tokens::Role::Admin => Role::Admin,
            tokens::Role::User => Role::User,
        }
    }
}

impl From<&Identity> for Principal {
    fn from(identity: &Identity) -> Principal {
        Principal {
            role: identity.role.into(),
            name: identity.name.clone(),
            badge: identity.badge(),
        }
    }
}
