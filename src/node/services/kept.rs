//! What services are like over a restart: one file beside the node's state (spec: fs 15.5). One that
//! cannot be read is never overwritten.

use super::state::State;
use crate::base::{Code, Error, Result};
use crate::store::atomic;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest file read: as many services as there may be, each with all that is kept of it, escaped.
const FILE_MAX: usize = 256 << 20;
/// The version of the fields.
const SCHEMA: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Kept {
    schema: u32,
    services: Vec<State>,
}

/// The file for a node whose state is in `state_file`.
pub fn path(state_file: &Path) -> PathBuf {
    let mut name = state_file.as_os_str().to_owned();
    name.push(".runtime-services.json");
    name.into()
}

/// By service. A missing file is an empty one. Errors: `invalid_config`, naming the file.
pub fn load(path: &Path) -> Result<BTreeMap<String, State>> {
    let text = match atomic::read(path, FILE_MAX) {
        Ok(text) => text,
        Err(e) if e.errno() == libc::ENOENT => return Ok(BTreeMap::new()),
        Err(e) => return Err(e.recode(Code::Config)),
    };
    atomic::make_private(path)?;
    let bad = |what: String| {
        let text = format!("{}: {what}; move it away to start without it", path.display());
        Error::new(Code::Config, text)
    };
    // By way of an object: serde would take an array for a struct, too.
    let kept: Kept = serde_json::from_slice(&text)
        .and_then(|object: serde_json::Map<_, _>| serde_json::from_value(object.into()))
        .map_err(|e| bad(format!("not the state of services: {e}")))?;
    if kept.schema > SCHEMA {
        return Err(bad(format!("written by a newer version (schema {})", kept.schema)));
    }
    Ok(kept.services.into_iter().map(|s| (s.service_id.clone(), s.kept())).collect())
}

pub fn save(path: &Path, services: Vec<State>) -> Result<()> {
    let kept = Kept { schema: SCHEMA, services };
    let mut text = serde_json::to_vec(&kept).map_err(|e| Error::new(Code::Eio, e.to_string()))?;
    text.push(b'\n');
    atomic::write(path, &text)
}

#[cfg(test)]
mod tests {
    use super::super::state::Op;
    use super::*;
    use crate::store::testing::TempDir;

    #[test]
    fn what_is_kept_comes_back_and_a_broken_file_is_left_alone() {
        let dir = TempDir::new();
        let path = path(&dir.path("state.json"));
        assert!(path.ends_with("state.json.runtime-services.json"));
        assert!(load(&path).unwrap().is_empty());
        let mut state = State::new("echo");
        state.control(Op::Disable, 7);
        save(&path, vec![state.clone()]).unwrap();
        assert_eq!(load(&path).unwrap()["echo"], state);
        for broken in ["", "[]", "{\"schema\":1}", "{\"schema\":2,\"services\":[]}"] {
            std::fs::write(&path, broken).unwrap();
            let e = load(&path).unwrap_err();
            assert!(e.code == Code::Config && e.message.contains("runtime-services"), "{e}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), broken);
        }
    }
}
