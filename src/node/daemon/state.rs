//! What a node keeps over a restart: its identity, or the request for one (spec: fs 13.1). The file holds
//! secrets; one that cannot be read is never overwritten.

use crate::base::{Code, Error, Result, ResultExt};
use crate::store::atomic;
use crate::wire::control::Joined;
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Largest state file read (spec: fs 8).
const FILE_MAX: usize = 1 << 20;

/// The version of the fields below.
const SCHEMA: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeState {
    pub schema: u32,
    pub node_id: Option<String>,
    pub node_secret: Option<String>,
    pub lease_token: Option<String>,
    pub lease_expires_at_ms: i64,
    /// A join that was asked for and is not decided.
    pub request_id: Option<String>,
    /// Ours: proves that it was this node that asked.
    pub claim_token: Option<String>,
    pub node_name: Option<String>,
    pub fs_url: Option<String>,
}

impl Default for NodeState {
    fn default() -> NodeState {
        NodeState {
            schema: SCHEMA,
            node_id: None,
            node_secret: None,
            lease_token: None,
            lease_expires_at_ms: 0,
            request_id: None,
            claim_token: None,
            node_name: None,
            fs_url: None,
        }
    }
}

/// Keeps a second program from being the same node: each would end the other's tunnel. Held until it is
/// dropped. Errors: `invalid_config`.
pub fn lock(path: &Path) -> Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let open = || {
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        OpenOptions::new().create(true).append(true).mode(0o600).open(Path::new(&name))
    };
    let file = open().context(format!("--state-file {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::new(
            Code::Config,
            format!(
                "--state-file {}: another spiderweb-fs-node is running with it; give each its own",
                path.display()
            ),
        )),
        Err(TryLockError::Error(e)) => Err(Error::from(e).context("--state-file")),
    }
}

/// Who the node is to its gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub node_id: String,
    pub secret: String,
}

/// The secret of the node whose state file this is; `None` until it has joined. Errors: as
/// [`NodeState::load`].
pub fn secret_in(path: &Path) -> Result<Option<String>> {
    Ok(NodeState::load(path)?.identity().map(|identity| identity.secret))
}

impl NodeState {
    /// A missing file is an empty state. Errors: `invalid_config`, naming the file.
    pub fn load(path: &Path) -> Result<NodeState> {
        let text = match atomic::read(path, FILE_MAX) {
            Ok(text) => text,
            Err(e) if e.errno() == libc::ENOENT => return Ok(NodeState::default()),
            Err(e) => return Err(e.recode(Code::Config).context("--state-file")),
        };
        let bad = |what: String| {
            let advice = "move it away to join as a new node, or name another with --state-file";
            let text = format!("{}: {what}; {advice}", path.display());
            Error::new(Code::Config, text)
        };
        // By way of an object: serde would take an array for a struct, too.
        let state: NodeState = serde_json::from_slice(&text)
            .and_then(|object: serde_json::Map<_, _>| {
                // Any other program's settings would pass, for no field has to be there.
                let ours = ["schema", "node_id"].iter().any(|key| object.contains_key(*key));
                if !ours && !object.is_empty() {
                    return Err(serde::de::Error::missing_field("schema"));
                }
                serde_json::from_value(object.into())
            })
            .map_err(|e| bad(format!("not a node's state: {e}")))?;
        if state.schema > SCHEMA {
            return Err(bad(format!("written by a newer version (schema {})", state.schema)));
        }
        // Now that it is known to be the node's own.
        atomic::make_private(path).context("--state-file")?;
        Ok(state)
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        let mut text =
            serde_json::to_vec(self).map_err(|e| Error::new(Code::Eio, e.to_string()))?;
        text.push(b'\n');
        atomic::write(path, &text)
    }

    /// `None` until the node has joined.
    pub fn identity(&self) -> Option<Identity> {
        let filled = |s: &Option<String>| s.clone().filter(|s| !s.is_empty());
        Some(Identity { node_id: filled(&self.node_id)?, secret: filled(&self.node_secret)? })
    }

    /// The join that was asked for: its id and its claim.
    pub fn request(&self) -> Option<(String, String)> {
        Some((self.request_id.clone()?, self.claim_token.clone()?))
    }

    pub fn joined(joined: Joined) -> NodeState {
        NodeState {
            node_id: Some(joined.node_id),
            node_secret: Some(joined.node_secret),
            lease_token: Some(joined.lease_token),
            lease_expires_at_ms: joined.lease_expires_at_ms,
            node_name: Some(joined.node_name),
            fs_url: Some(joined.fs_url),
            ..NodeState::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::TempDir;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_state_is_read_back_with_the_documented_fields() {
        let dir = TempDir::new();
        let path = dir.path("deep/state.json");
        assert_eq!(NodeState::load(&path).unwrap(), NodeState::default());
        let state = NodeState {
            node_id: Some("node-12".into()),
            node_secret: Some("secret-x".into()),
            lease_expires_at_ms: 7,
            ..NodeState::default()
        };
        state.save(&path).unwrap();
        assert_eq!(NodeState::load(&path).unwrap(), state);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(r#"{"schema":1,"node_id":"node-12","node_secret":"secret-x","#));
        assert!(text.contains(r#""request_id":null"#), "{text}");
    }

    #[test]
    fn an_old_file_is_understood_and_a_broken_one_is_left_alone() {
        let dir = TempDir::new();
        let path = dir.path("state.json");
        std::fs::write(&path, r#"{"node_id":"n","node_secret":"s","lease_token":null}"#).unwrap();
        let identity = Identity { node_id: "n".into(), secret: "s".into() };
        assert_eq!(NodeState::load(&path).unwrap().identity(), Some(identity));
        for broken in ["", "[]", "{\"node_id\":7}", "{\"schema\":2}", "{\"name\":\"x\"}"] {
            std::fs::write(&path, broken).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
            let e = NodeState::load(&path).unwrap_err();
            assert!(e.code == Code::Config && e.message.contains("state.json"), "{e}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), broken);
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        }
    }
}
