//! Changing settings in the file. What is not changed stays as its author wrote it, and a change that
//! would make the file invalid is refused before anything is written.

use super::load::{Env, default_document, layer, read};
use crate::base::Result;
use crate::store::atomic;
use log::LevelFilter;
use serde_json::Value;
use std::net::IpAddr;
use std::path::Path;

/// Sets each `section.key`, or removes it where the value is `None`. A missing file is made, with the
/// defaults. Errors: `invalid_config`.
pub fn set(path: &Path, changes: &[(&str, Option<Value>)]) -> Result<()> {
    let mut document = read(path)?.map_or_else(default_document, Ok)?;
    // As it is, then as it would be: the message is right either way.
    layer(&document, path, &Env::default(), &[])?;
    for (key, value) in changes {
        document.set(key, value.clone());
    }
    layer(&document, path, &Env::default(), &[])?;
    atomic::write(path, &document.to_text())
}

/// Without a model, the provider's usual one is used from now on.
pub fn set_provider(path: &Path, name: &str, model: Option<&str>) -> Result<()> {
    set(path, &[("provider.name", Some(name.into())), ("provider.model", model.map(Into::into))])
}

pub fn set_server(path: &Path, bind: Option<IpAddr>, port: Option<u16>) -> Result<()> {
    let bind = bind.map(|bind| ("server.bind", Some(bind.to_string().into())));
    let port = port.map(|port| ("server.port", Some(port.into())));
    set(path, &bind.into_iter().chain(port).collect::<Vec<_>>())
}

pub fn set_log(path: &Path, level: LevelFilter) -> Result<()> {
    set(path, &[("log.level", Some(level.as_str().to_ascii_lowercase().into()))])
}

#[cfg(test)]
mod tests {
    use super::super::{Env, load};
    use super::*;
    use crate::store::testing::TempDir;

    #[test]
    fn an_edit_changes_what_it_names_and_nothing_else() {
        let dir = TempDir::new();
        let path = dir.path("config.json");
        let text = r#"{
  "zebra": {
    "number": 1.50,
    "nested": [1,  2]
  },
  "provider": {
    "name": "openai",
    "model": "gpt-4o",
    "note": "mine"
  },
  "runtime": {
    "sandbox_launcher": "bwrap"
  },
  "list": [ 1 ]
}
"#;
        std::fs::write(&path, text).unwrap();
        set_provider(&path, "echo", None).unwrap();
        let expected =
            text.replace("\"openai\"", "\"echo\"").replace("    \"model\": \"gpt-4o\",\n", "");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        set_log(&path, LevelFilter::Debug).unwrap();
        set_server(&path, None, Some(1234)).unwrap();
        let loaded = load(&path, &Env::default(), &[]).unwrap();
        assert_eq!(loaded.config.server.port, 1234);
        assert_eq!(loaded.config.log.level, LevelFilter::Debug);
        assert_eq!(loaded.warnings.len(), 4, "{:?}", loaded.warnings);
    }

    #[test]
    fn a_wrong_change_and_a_wrong_file_are_left_alone() {
        let dir = TempDir::new();
        let path = dir.path("config.json");
        let e = set(&path, &[("server.bind", Some("localhost".into()))]).unwrap_err();
        assert!(e.message.contains("server.bind must be an IP address"), "{e}");
        assert!(!path.exists());
        for broken in ["{\"server\":", "{\"server\":{\"port\":\"x\"}}"] {
            std::fs::write(&path, broken).unwrap();
            set_log(&path, LevelFilter::Info).unwrap_err();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), broken);
        }
    }
}
