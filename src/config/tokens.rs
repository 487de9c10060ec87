//! `auth_tokens.json` (spec: control 12.3): the two tokens that everybody of a role shares, in clear
//! because scripts read them there, and the tokens of single people and programs, of which only a hash is
//! kept. Programs change the file one at a time; who is connected is not known here.

use crate::base::{Code, Deadline, Error, Result, ResultExt, id, now_ms};
use crate::store::atomic;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

/// Largest file that is read.
const FILE_MAX: usize = 1 << 20;
const SCHEMA: u32 = 3;
/// Named tokens.
pub const TOKENS_MAX: usize = 1024;
/// Longest name of a token.
pub const NAME_MAX: usize = 64;
/// Longest life of a token that expires: ten years.
pub const EXPIRES_MAX_MS: i64 = 3650 * 86_400_000;
/// Names that stand for somebody else.
const RESERVED: [&str; 4] = ["admin", "user", "node", "node-client"];
/// How long to wait for another program that is changing the file.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// What a token lets its bearer do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Admin,
    User,
}

impl Role {
    pub fn parse(text: &str) -> Option<Role> {
        [Role::Admin, Role::User].into_iter().find(|role| role.name() == text)
    }

    pub fn name(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::User => "user",
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Role::Admin => "sw-admin_",
            Role::User => "sw-user_",
        }
    }
}

/// The content of the file; members that are not named here are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    pub schema: u32,
    pub admin_token: String,
    pub user_token: String,
    /// Counts the times that the connections of a shared token were ended with it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub admin_epoch: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub user_epoch: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<Named>,
    /// What the original wrote here; taken over once, then left as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_last_target: Option<Target>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_last_target: Option<Target>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_session_history: Option<Vec<Session>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_session_history: Option<Vec<Session>>,
    #[serde(default)]
    pub updated_at_ms: i64,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The token of one person or program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub name: String,
    pub role: Role,
    /// As [`fingerprint`] gives it.
    pub hash: String,
    pub created_at_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<i64>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Named {
    pub fn is_expired(&self, now_ms: i64) -> bool {
        self.expires_at_ms.is_some_and(|at| at <= now_ms)
    }
}

/// Who a token says its bearer is, and which token it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    pub role: Role,
    grant: Grant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Grant {
    /// The token of the role, at this epoch; one that was replaced since still counts.
    Shared { epoch: u64 },
    /// The named token with this hash.
    Own { hash: String },
}

impl Identity {
    /// Names the token without telling it, and no other one that comes after it: `<name>#<which>`.
    pub fn badge(&self) -> String {
        match &self.grant {
            Grant::Shared { epoch } => format!("{}#{epoch}", self.name),
            Grant::Own { hash } => format!("{}#{}", self.name, &hash[..hash.len().min(16)]),
        }
    }
}

/// The agent and project that a role was attached to last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub agent_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
}

/// A session that a role had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub session_key: String,
    pub agent_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
    #[serde(default)]
    pub last_active_ms: i64,
    #[serde(default)]
    pub message_count: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
}

impl Tokens {
    /// New tokens, for where there is no file or it is beyond reading.
    pub fn generate() -> Tokens {
        Tokens {
            schema: SCHEMA,
            admin_token: id::bearer_token(Role::Admin.prefix()),
            user_token: id::bearer_token(Role::User.prefix()),
            admin_epoch: 0,
            user_epoch: 0,
            tokens: Vec::new(),
            admin_last_target: None,
            user_last_target: None,
            admin_session_history: None,
            user_session_history: None,
            updated_at_ms: now_ms(),
            other: Map::new(),
        }
    }

    /// Reads the file. Errors: ENOENT when there is none; otherwise `invalid_config`, saying what to do:
    /// tokens are never made anew over a file that could not be read.
    pub fn load(path: &Path) -> Result<Tokens> {
        let text = atomic::read(path, FILE_MAX).map_err(|e| match e.errno() {
            libc::ENOENT => e,
            _ => e.recode(Code::Config),
        })?;
        atomic::make_private(path)?;
        Tokens::parse(&text).map_err(|e| {
            let path = path.display();
            let message = format!(
                "{path}: {e}; it was left as it is: restore it from a backup, or move it away, and \
                 the next start makes new tokens"
            );
            Error::new(Code::Config, message)
        })
    }

    /// The content of a file. Errors: what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Tokens, String> {
        serde_json::from_slice(text).map_err(|e| e.to_string()).and_then(checked)
    }

    /// Reads the file, or makes it with new tokens where there is none; true when it was made.
    pub fn load_or_create(path: &Path) -> Result<(Tokens, bool)> {
        let _lock = lock(path)?;
        match Tokens::load(path) {
            Err(e) if e.errno() == libc::ENOENT => {
                let tokens = Tokens::generate();
                tokens.save(path)?;
                Ok((tokens, true))
            }
            loaded => Ok((loaded?, false)),
        }
    }

    /// Lets `change` change the newest content of the file, and replaces it; no other program does so
    /// meanwhile. Errors: what `change` says, or `storage_error` when the file cannot be read or
    /// written; it is then as it was.
    pub fn update<T>(
        path: &Path,
        change: impl FnOnce(&mut Tokens) -> Result<T>,
    ) -> Result<(Tokens, T)> {
        let stored = |e: Error| e.recode(Code::StorageError);
        let _lock = lock(path).map_err(stored)?;
        let mut tokens = Tokens::load(path).map_err(stored)?;
        let answer = change(&mut tokens)?;
        tokens.updated_at_ms = now_ms();
        tokens.save(path).map_err(stored)?;
        Ok((tokens, answer))
    }

    /// Replaces the file, mode 0600.
    fn save(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).expect("tokens can be written as JSON");
        text.push(b'\n');
        atomic::write(path, &text).context("access tokens")
    }

    /// Whose token it is; nobody's when it is unknown, revoked or expired.
    pub fn identify(&self, token: &str, now_ms: i64) -> Option<Identity> {
        for role in [Role::Admin, Role::User] {
            if id::same_secret(self.shared(role), token) {
                let grant = Grant::Shared { epoch: self.epoch(role) };
                return Some(Identity { name: role.name().into(), role, grant });
            }
        }
        let hash = fingerprint(token);
        let named = self.tokens.iter().find(|t| id::same_secret(&t.hash, &hash))?;
        let identity =
            Identity { name: named.name.clone(), role: named.role, grant: Grant::Own { hash } };
        self.admits(&identity, now_ms).then_some(identity)
    }

    /// Whose token a [`Identity::badge`] names, as long as it is in force.
    pub fn bearer(&self, badge: &str, now_ms: i64) -> Option<Identity> {
        let (name, _) = badge.split_once('#')?;
        let shared = Role::parse(name).map(|role| {
            let grant = Grant::Shared { epoch: self.epoch(role) };
            Identity { name: name.into(), role, grant }
        });
        let own = || {
            let named = self.tokens.iter().find(|t| t.name == name)?;
            let grant = Grant::Own { hash: named.hash.clone() };
            Some(Identity { name: name.into(), role: named.role, grant })
        };
        let identity = shared.or_else(own)?;
        (identity.badge() == badge && self.admits(&identity, now_ms)).then_some(identity)
    }

    /// Whether a connection that was opened with a token may go on.
    pub fn admits(&self, identity: &Identity, now_ms: i64) -> bool {
        match &identity.grant {
            Grant::Shared { epoch } => self.epoch(identity.role) == *epoch,
            Grant::Own { hash } => self.tokens.iter().any(|t| {
                t.name == identity.name
                    && t.role == identity.role
                    && t.hash == *hash
                    && !t.is_expired(now_ms)
            }),
        }
    }

    /// When the next token expires.
    pub fn next_expiry_ms(&self, now_ms: i64) -> Option<i64> {
        self.tokens.iter().filter_map(|t| t.expires_at_ms).filter(|at| *at > now_ms).min()
    }

    /// Makes a token for `name`, and returns it: it is not to be had again. Errors: `invalid_payload`,
    /// `eexist`, `limit_exceeded`.
    pub fn add(&mut self, name: &str, role: Role, expires_in_ms: Option<i64>) -> Result<String> {
        if !is_name(name) {
            let message = format!(
                "name must be 1 to {NAME_MAX} characters of A-Z a-z 0-9 . _ - and none of {}",
                RESERVED.join(", ")
            );
            return Err(Error::new(Code::InvalidPayload, message));
        }
        if expires_in_ms.is_some_and(|ms| !(1..=EXPIRES_MAX_MS).contains(&ms)) {
            let message = format!("expires_in_ms must be 1 to {EXPIRES_MAX_MS} (3650 days)");
            return Err(Error::new(Code::InvalidPayload, message));
        }
        if self.tokens.iter().any(|t| t.name == name) {
            let message = format!("{name} has a token; revoke it first, or choose another name");
            return Err(Error::new(Code::Eexist, message));
        }
        if self.tokens.len() >= TOKENS_MAX {
            let message = format!("there are {TOKENS_MAX} tokens; revoke one first");
            return Err(Error::new(Code::LimitExceeded, message));
        }
        let (token, now_ms) = (id::bearer_token(role.prefix()), now_ms());
        self.tokens.push(Named {
            name: name.to_owned(),
            role,
            hash: fingerprint(&token),
            created_at_ms: now_ms,
            expires_at_ms: expires_in_ms.map(|ms| now_ms.saturating_add(ms)),
            other: Map::new(),
        });
        Ok(token)
    }

    /// Errors: `not_found`; `invalid_payload` for the shared tokens, which are replaced instead.
    pub fn revoke(&mut self, name: &str) -> Result<Named> {
        if Role::parse(name).is_some() {
            let message = format!("the token of role {name} is replaced with auth_rotate");
            return Err(Error::new(Code::InvalidPayload, message));
        }
        let at = self.tokens.iter().position(|t| t.name == name);
        let at = at.ok_or_else(|| {
            Error::new(Code::NotFound, format!("there is no token named {name:?}"))
        })?;
        Ok(self.tokens.remove(at))
    }

    /// Replaces the shared token of a role and returns the new one. The connections that the old one
    /// opened go on, unless it is revoked.
    pub fn rotate(&mut self, role: Role, revoke: bool) -> String {
        let (token, epoch) = match role {
            Role::Admin => (&mut self.admin_token, &mut self.admin_epoch),
            Role::User => (&mut self.user_token, &mut self.user_epoch),
        };
        *token = id::bearer_token(role.prefix());
        *epoch = epoch.wrapping_add(u64::from(revoke));
        token.clone()
    }

    /// Nothing that was handed out before is worth anything any more; what else the file holds stays.
    pub fn reset(&mut self) {
        self.rotate(Role::Admin, true);
        self.rotate(Role::User, true);
        self.tokens.clear();
    }

    /// The token that all of a role share.
    pub fn shared(&self, role: Role) -> &str {
        match role {
            Role::Admin => &self.admin_token,
            Role::User => &self.user_token,
        }
    }

    fn epoch(&self, role: Role) -> u64 {
        match role {
            Role::Admin => self.admin_epoch,
            Role::User => self.user_epoch,
        }
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What is kept of a token: `sha256:` and 64 hex digits. Tokens are made of 192 random bits, so that
/// nobody finds one by trying.
pub fn fingerprint(token: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    format!("sha256:{}", id::hex(digest.as_ref()))
}

/// A token as it may be shown: enough to tell it from others.
pub fn masked(token: &str) -> String {
    const SHOWN: usize = 4;
    match token.split_once('_') {
        Some((prefix, secret)) if secret.len() >= 8 * SHOWN && secret.is_ascii() => {
            format!("{prefix}_...{}", &secret[secret.len() - SHOWN..])
        }
        _ => "...".into(),
    }
}

/// A name that a token may have.
fn is_name(name: &str) -> bool {
    id::is_identifier(name, NAME_MAX) && !RESERVED.contains(&name)
}

/// Keeps other programs from changing the file until it is dropped.
fn lock(path: &Path) -> Result<Flock<File>> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(dir).context(dir.display())?;
    // The file is replaced whenever it changes; its directory stays.
    let mut dir_file = File::open(dir).context(dir.display())?;
    let until = Deadline::after(LOCK_WAIT);
    loop {
        match Flock::lock(dir_file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK)) if !until.passed() => {
                dir_file = file;
                std::thread::sleep(LOCK_RETRY);
            }
            Err((_, Errno::EWOULDBLOCK)) => {
                let message = format!("{}: another program is changing it", path.display());
                return Err(Error::new(Code::Again, message));
            }
            Err((_, e)) => return Err(Error::from(e).context(dir.display())),
        }
    }
}

/// A token that is missing or given twice would open a door to everybody or to the wrong ones.
fn checked(tokens: Tokens) -> Result<Tokens, String> {
    for (field, token) in [("admin_token", &tokens.admin_token), ("user_token", &tokens.user_token)]
    {
        if token.trim().is_empty() {
            return Err(format!("{field} is empty"));
        }
    }
    if tokens.admin_token == tokens.user_token {
        return Err("admin_token and user_token are the same".into());
    }
    if tokens.schema > SCHEMA {
        return Err(format!("schema {} is newer than {SCHEMA}", tokens.schema));
    }
    if tokens.tokens.len() > TOKENS_MAX {
        return Err(format!("tokens has more than {TOKENS_MAX} entries"));
    }
    for (at, t) in tokens.tokens.iter().enumerate() {
        let hex = t.hash.strip_prefix("sha256:").unwrap_or_default();
        if !is_name(&t.name) || tokens.tokens[..at].iter().any(|other| other.name == t.name) {
            return Err(format!("tokens[{at}].name is no name, or that of another token"));
        }
        if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(format!("tokens[{at}].hash is not sha256: and 64 hex digits"));
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests;
