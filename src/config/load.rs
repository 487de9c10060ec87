//! Finding the config file and putting the settings together: flag before environment before file before
//! default. A file that is wrong is refused with every reason, and left as it is.

use super::document::Document;
use super::settings::{Config, INERT, KEYS, Key};
use crate::base::{Code, Error, Result};
use crate::store::atomic;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Largest config file that is read.
const FILE_MAX: usize = 1 << 20;
/// Prefix of environment variables that override settings: `SPIDERWEB__SERVER__PORT`.
const ENV_PREFIX: &str = "SPIDERWEB__";

/// The environment, as it was at the start; variables that are empty or not text count as unset.
#[derive(Clone, Debug, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    pub fn process() -> Env {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        std::env::vars_os().filter_map(text).collect()
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Env {
        Env(variables.into_iter().map(|(n, v)| (n.into(), v.into())).collect())
    }
}

/// Where the config file is: `flag` (`--config`), `SPIDERWEB_CONFIG`, the XDG directory, `$HOME/.config`,
/// the working directory (spec: runtime 1.1).
pub fn location(flag: Option<&Path>, env: &Env) -> PathBuf {
    let below = |dir: &str| Path::new(dir).join("spiderweb/config.json");
    if let Some(path) = flag {
        return path.to_owned();
    }
    if let Some(path) = env.get("SPIDERWEB_CONFIG") {
        return path.into();
    }
    // The XDG specification: a relative path there is to be ignored.
    match (env.get("XDG_CONFIG_HOME").filter(|d| d.starts_with('/')), env.get("HOME")) {
        (Some(dir), _) => below(dir),
        (None, Some(home)) => below(&format!("{home}/.config")),
        (None, None) => ".spiderweb.json".into(),
    }
}

/// Where the value of a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A command-line flag.
    Flag,
    /// The environment variable of this name.
    Env(String),
    File,
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag => f.write_str("flag"),
            Origin::Env(name) => write!(f, "environment variable {name}"),
            Origin::File => f.write_str("file"),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// The settings in force, and where they come from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    pub path: PathBuf,
    /// False when there is no file and defaults hold.
    pub file_exists: bool,
    /// Origin of each of [`KEYS`].
    pub origins: BTreeMap<&'static str, Origin>,
    /// For the log: what stands in the file without having an effect.
    pub warnings: Vec<String>,
}

/// Checked values of the settings that are not at their default.
#[derive(Default)]
pub(super) struct Values(BTreeMap<&'static str, Value>);

impl Values {
    pub(super) fn get(&self, path: &str) -> Option<&Value> {
        self.0.get(path)
    }
}

/// Reads the file at `path`, if there is one, under the environment and `flags` (setting, text). Errors:
/// `invalid_config`, naming each wrong setting, where it stands and what is allowed.
pub fn load(path: &Path, env: &Env, flags: &[(&str, String)]) -> Result<Loaded> {
    let file = read(path)?;
    let (values, origins) = layer(file.as_ref().unwrap_or(&Document::empty()), path, env, flags)?;
    Ok(Loaded {
        config: Config::from_values(&values),
        path: path.to_owned(),
        file_exists: file.is_some(),
        origins,
        warnings: file.map(|f| warnings(&f, path)).unwrap_or_default(),
    })
}

/// Writes the defaults to `path`, with the directories made absolute, so that every program finds the
/// same ones whatever its working directory.
pub fn write_default(path: &Path) -> Result<()> {
    atomic::write(path, &default_document()?.to_text())
}

pub(super) fn default_document() -> Result<Document> {
    let mut document = Document::empty();
    for key in KEYS {
        let value = (key.default)();
        let value = match (&value, key.path) {
            (Value::String(dir), path)
                if path.ends_with("_dir") || path.ends_with("_directory") =>
            {
                std::path::absolute(dir)?.to_string_lossy().into()
            }
            _ => value,
        };
        document.set(key.path, Some(value).filter(|v| !v.is_null()));
    }
    Ok(document)
}

/// The file's content; `None` when there is none.
pub(super) fn read(path: &Path) -> Result<Option<Document>> {
    let text = match atomic::read(path, FILE_MAX) {
        Ok(text) => text,
        Err(e) if e.errno() == libc::ENOENT => return Ok(None),
        Err(e) => return Err(e.recode(Code::Config).context("config file")),
    };
    let parsed = Document::parse(&text).map_err(|e| {
        let message = format!("config file {}: {e}; it was left as it is", path.display());
        Error::new(Code::Config, message)
    })?;
    Ok(Some(parsed))
}

/// Checks every layer and takes the topmost value of each setting.
pub(super) fn layer(
    file: &Document,
    path: &Path,
    env: &Env,
    flags: &[(&str, String)],
) -> Result<(Values, BTreeMap<&'static str, Origin>)> {
    let mut wrong = misplaced(file, env, path);
    let mut values = Values::default();
    let mut origins = BTreeMap::new();
    for key in KEYS {
        let variable = format!("{ENV_PREFIX}{}", key.path.replace('.', "__").to_ascii_uppercase());
        let from_flag = flags.iter().rev().find(|(name, _)| *name == key.path);
        let layers = [
            from_flag.map(|(_, text)| ((key.from_text)(text), Origin::Flag)),
            env.get(&variable).map(|t| ((key.from_text)(t), Origin::Env(variable.clone()))),
            file.get(key.path).map(|value| (value, Origin::File)),
        ];
        for (value, origin) in layers.iter().flatten() {
            if !(key.check)(value) {
                wrong.push(complaint(key, value, origin, path));
            }
        }
        let top = layers.into_iter().flatten().next();
        origins.insert(key.path, top.as_ref().map_or(Origin::Default, |(_, o)| o.clone()));
        values.0.extend(top.map(|(value, _)| (key.path, value)));
    }
    if !wrong.is_empty() {
        return Err(Error::new(Code::Config, wrong.join("; ")));
    }
    Ok((values, origins))
}

fn complaint(key: &Key, value: &Value, origin: &Origin, path: &Path) -> String {
    let place = match origin {
        Origin::File => path.display().to_string(),
        other => other.to_string(),
    };
    format!("{place}: {} must be {}, not {value}", key.path, (key.allowed)())
}

/// Sections that are none, and overrides of settings that do not exist.
fn misplaced(file: &Document, env: &Env, path: &Path) -> Vec<String> {
    let sections = KEYS.iter().filter_map(|k| k.path.split_once('.')).map(|(section, _)| section);
    let sections: Vec<&str> = sections.collect();
    let not_objects = file.paths().filter_map(Result::err).filter(|name| sections.contains(name));
    let mut wrong: Vec<String> =
        not_objects.map(|name| format!("{}: {name} must be an object", path.display())).collect();
    for name in env.0.keys().filter_map(|name| name.strip_prefix(ENV_PREFIX)) {
        let setting = name.to_ascii_lowercase().replacen("__", ".", 1);
        if !known(&setting) {
            wrong.push(format!("environment variable {ENV_PREFIX}{name}: no setting {setting}"));
        }
    }
    wrong
}

fn known(path: &str) -> bool {
    KEYS.iter().any(|key| key.path == path) || INERT.contains(&path)
}

fn warnings(file: &Document, path: &Path) -> Vec<String> {
    let unknown = file.paths().filter_map(|member| match member {
        Ok(path) if known(&path) => None,
        Ok(path) if path == "provider.api_key" => {
            Some("provider.api_key is not read: keep the key in the environment".into())
        }
        Ok(path) => Some(format!("{path} is not a setting; it has no effect")),
        Err(name) => Some(format!("{name} is not a section; it has no effect")),
    });
    unknown.map(|text: String| format!("{}: {text}", path.display())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::TempDir;
    use std::os::unix::fs::PermissionsExt;

    fn env<const N: usize>(variables: [(&str, &str); N]) -> Env {
        variables.into_iter().collect()
    }

    #[test]
    fn the_file_is_looked_for_in_order() {
        let all =
            [("SPIDERWEB_CONFIG", "rel/c.json"), ("XDG_CONFIG_HOME", "/xdg"), ("HOME", "/home/me")];
        let at = |flag: Option<&str>, n: usize| {
            location(flag.map(Path::new), &all[n..].iter().copied().collect())
        };
        assert_eq!(at(Some("/f"), 0), Path::new("/f"));
        assert_eq!(at(None, 0), Path::new("rel/c.json"));
        assert_eq!(at(None, 1), Path::new("/xdg/spiderweb/config.json"));
        assert_eq!(at(None, 2), Path::new("/home/me/.config/spiderweb/config.json"));
        assert_eq!(at(None, 3), Path::new(".spiderweb.json"));
    }

    #[test]
    fn each_layer_covers_the_one_below_and_origins_tell() {
        let dir = TempDir::new();
        let path = dir.path("config.json");
        std::fs::write(
            &path,
            r#"{"server":{"port":1,"bind":"::1"},"log":{"level":"warn"},"provider":{"model":null}}"#,
        )
        .unwrap();
        let env = env([("SPIDERWEB__SERVER__PORT", "2"), ("SPIDERWEB__LOG__LEVEL", "debug")]);
        let loaded = load(&path, &env, &[("server.port", "3".into())]).unwrap();
        assert_eq!(loaded.config.server.port, 3);
        assert_eq!(loaded.config.log.level, log::LevelFilter::Debug);
        assert_eq!(loaded.config.server.bind.to_string(), "::1");
        assert_eq!(loaded.config.provider, Config::defaults().provider);
        let origin = |path: &str| loaded.origins[path].to_string();
        assert_eq!(origin("server.port"), "flag");
        assert_eq!(origin("log.level"), "environment variable SPIDERWEB__LOG__LEVEL");
        assert_eq!(
            (origin("server.bind"), origin("provider.name")),
            ("file".into(), "default".into())
        );
        assert_eq!(loaded.origins.len(), KEYS.len());
    }

    #[test]
    fn every_wrong_value_is_named_with_its_place_and_what_is_allowed() {
        let dir = TempDir::new();
        let path = dir.path("config.json");
        std::fs::write(
            &path,
            r#"{"server":{"port":70000,"allowed_origins":["https://a","b"]},"log":3,
                "runtime":{"chat_operation_timeout_ms":0,"ltm_directory":" ","implicit_agents":"yes"}}"#,
        )
        .unwrap();
        let env =
            env([("SPIDERWEB__SERVER__BIND", "example.org"), ("SPIDERWEB__SEVRER__PORT", "1")]);
        let e = load(&path, &env, &[("log.level", "loud".into())]).unwrap_err();
        assert_eq!(e.code, Code::Config);
        for part in [
            "config.json: server.port must be an integer from 0 to 65535, not 70000",
            "server.allowed_origins must be a list of strings, each starting with http",
            "config.json: log must be an object",
            "runtime.chat_operation_timeout_ms must be an integer from 1 to 86400000, not 0",
            "runtime.ltm_directory must be a path that is not empty",
            "runtime.implicit_agents must be true or false, not \"yes\"",
            "environment variable SPIDERWEB__SERVER__BIND: server.bind must be an IP address",
            "SPIDERWEB__SEVRER__PORT: no setting sevrer.port",
            "flag: log.level must be one of error, warn",
        ] {
            assert!(e.message.contains(part), "{part} is not in: {e}");
        }
    }

    #[test]
    fn a_syntax_error_names_line_and_column_and_the_file_stays() {
        let dir = TempDir::new();
        let path = dir.path("config.json");
        for text in ["{\n  \"server\": {\n}", "[]", "", "{} x", "\u{feff}{}"] {
            std::fs::write(&path, text).unwrap();
            let e = load(&path, &Env::default(), &[]).unwrap_err();
            assert_eq!(e.code, Code::Config);
            assert!(
                e.message.contains("line 1 column") || e.message.contains("line 3 column"),
                "{e}"
            );
            assert!(e.message.contains("config.json"), "{e}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn the_written_defaults_are_private_and_lead_back_to_themselves() {
        let dir = TempDir::new();
        let path = dir.path("new/config.json");
        assert!(!load(&path, &Env::default(), &[]).unwrap().file_exists);
        assert!(!path.exists(), "only the gateway writes it");
        write_default(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let loaded = load(&path, &Env::default(), &[]).unwrap();
        assert!(loaded.file_exists && loaded.warnings.is_empty());
        let config = loaded.config;
        assert!(config.runtime.ltm_directory.is_absolute());
        assert_eq!(config.database().unwrap(), Config::defaults().database().unwrap());
        let defaults = Config::defaults();
        assert_eq!((config.server, config.log), (defaults.server, defaults.log));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("{\n  \"server\": {\n    \"bind\": \"127.0.0.1\","), "{text}");
    }

    #[test]
    fn settings_that_do_nothing_are_spoken_of_unless_the_original_had_them() {
        let dir = TempDir::new();
        let path = dir.path("config.json");
        std::fs::write(
            &path,
            r#"{"runtime":{"sandbox_enabled":true,"agent_dir":"x"},"provider":{"api_key":"sk"},"x":{"y":1}}"#,
        )
        .unwrap();
        let warnings = load(&path, &Env::default(), &[]).unwrap().warnings.join("\n");
        for part in
            ["runtime.agent_dir is not a setting", "provider.api_key is not read", "x.y is not"]
        {
            assert!(warnings.contains(part), "{warnings}");
        }
        assert!(!warnings.contains("sandbox") && !warnings.contains("sk"), "{warnings}");
    }
}
