//! `auth_tokens.json`: the bearer tokens of admin and user, and what each did last (spec: control 12.3).

use crate::base::{Code, Error, Result, ResultExt, id, now_ms};
use crate::store::atomic;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// Largest file that is read.
const FILE_MAX: usize = 64 * 1024;
const SCHEMA: u32 = 3;

/// The content of the file; members that are not named here are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    pub schema: u32,
    pub admin_token: String,
    pub user_token: String,
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
            admin_token: id::bearer_token("sw-admin_"),
            user_token: id::bearer_token("sw-user_"),
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
        let tokens = serde_json::from_slice(&text).map_err(|e| e.to_string()).and_then(checked);
        tokens.map_err(|e| {
            let path = path.display();
            let message = format!(
                "{path}: {e}; it was left as it is: restore it from a backup, or move it away, and \
                 the next start makes new tokens"
            );
            Error::new(Code::Config, message)
        })
    }

    /// Reads the file, or makes it with new tokens where there is none; true when it was made.
    pub fn load_or_create(path: &Path) -> Result<(Tokens, bool)> {
        match Tokens::load(path) {
            Err(e) if e.errno() == libc::ENOENT => {
                let tokens = Tokens::generate();
                tokens.save(path)?;
                Ok((tokens, true))
            }
            loaded => Ok((loaded?, false)),
        }
    }

    /// Replaces the file, mode 0600.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).expect("tokens can be written as JSON");
        text.push(b'\n');
        atomic::write(path, &text).context("access tokens")
    }

    /// The same file with new tokens; what else it holds stays.
    #[must_use]
    pub fn reset(self) -> Tokens {
        let Tokens { admin_token, user_token, updated_at_ms, .. } = Tokens::generate();
        Tokens { admin_token, user_token, updated_at_ms, ..self }
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
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::TempDir;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn tokens_are_made_once_and_what_is_unknown_is_kept() {
        let dir = TempDir::new();
        let path = dir.path("ltm/auth_tokens.json");
        let (first, made) = Tokens::load_or_create(&path).unwrap();
        assert!(made && first.admin_token.starts_with("sw-admin_"));
        assert_eq!(Tokens::load_or_create(&path).unwrap(), (first.clone(), false));

        let text = r#"{"schema":1,"admin_token":"a","user_token":"u","updated_at_ms":5,"mine":{"x":1},
            "user_last_target":{"agent_id":"alice","project_id":"proj-1"}}"#;
        std::fs::write(&path, text).unwrap();
        let old = Tokens::load(&path).unwrap();
        old.clone().reset().save(&path).unwrap();
        let new = Tokens::load(&path).unwrap();
        assert_ne!(new.admin_token, "a");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!((new.other, new.user_last_target), (old.other, old.user_last_target));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_never_replaced() {
        let dir = TempDir::new();
        let path = dir.path("auth_tokens.json");
        let same = r#"{"schema":3,"admin_token":"a","user_token":"a"}"#;
        let empty = r#"{"schema":3,"admin_token":"","user_token":"u"}"#;
        for text in ["", "{", "[]", same, empty, r#"{"schema":3,"admin_token":"a"}"#] {
            std::fs::write(&path, text).unwrap();
            let e = Tokens::load_or_create(&path).unwrap_err();
            assert_eq!(e.code, Code::Config);
            assert!(e.message.contains("move it away"), "{e}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
