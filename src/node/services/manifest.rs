//! Manifests: one JSON object per file that says what a service is and how it is run (spec: fs 14.2 and
//! 14.3). Reads and checks them; starts nothing.

use super::child::Program;
use crate::base::{Code, Error, Result, ResultExt, id};
use crate::store::atomic;
use crate::wire::Fields;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Largest manifest (spec: fs 8).
const FILE_MAX: usize = 1 << 20;
/// Services of one node; a gateway takes a few more.
pub const SERVICES_MAX: usize = 256;
const HELP_MAX: usize = 64 * 1024;
/// Longest path that a gateway takes.
const PATH_MAX: usize = 512;
const ARGS_MAX: usize = 256;
const ENV_MAX: usize = 64;
const TIMEOUT_MS: u64 = 30_000;
/// Longest time that one invocation may be given.
const TIMEOUT_MAX_MS: u64 = 3_600_000;

const KNOWN: [&str; 14] = [
    "enabled",
    "service_id",
    "kind",
    "version",
    "state",
    "endpoints",
    "mounts",
    "capabilities",
    "ops",
    "runtime",
    "permissions",
    "schema",
    "invoke_template",
    "help_md",
];

/// A service as its manifest describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    pub service_id: String,
    pub kind: String,
    pub version: String,
    pub state: String,
    /// Paths with `{node_id}` in them, at least one.
    pub endpoints: Vec<String>,
    pub mounts: Vec<Mount>,
    pub capabilities: Value,
    pub ops: Value,
    /// As published: without the environment, which may hold secrets.
    pub runtime: Value,
    pub permissions: Value,
    pub schema: Option<Value>,
    pub invoke_template: Value,
    pub help_md: Option<String>,
    /// `None` for an entry of the catalogue that is nothing else.
    pub process: Option<Process>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub mount_id: String,
    pub mount_path: String,
    /// By default the service's.
    pub state: Option<String>,
}

/// How a service is run: a program, once for each invocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub program: Program,
    pub timeout_ms: u64,
    pub supervision: Supervision,
}

impl Process {
    pub fn executable(&self) -> &Path {
        Path::new(&self.program.argv[0])
    }
}

/// How the program's presence is watched (spec: fs 14.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supervision {
    pub health_check_interval_ms: u64,
    pub restart_backoff_ms: u64,
    pub restart_backoff_max_ms: u64,
    /// 0: no limit.
    pub max_consecutive_failures: u64,
    pub auto_disable_on_failures: bool,
}

/// Where manifests come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    pub files: Vec<PathBuf>,
    pub dirs: Vec<PathBuf>,
}

impl Sources {
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.dirs.is_empty()
    }

    /// The text of every manifest with its file, in a stable order. Errors: the host's, naming the file.
    pub fn read(&self) -> Result<Vec<(PathBuf, Vec<u8>)>> {
        let mut files = self.files.clone();
        for dir in &self.dirs {
            let mut found = Vec::new();
            let told = || format!("--services-dir {}", dir.display());
            for entry in std::fs::read_dir(dir).context(told())? {
                let path = entry.context(told())?.path();
                if path.extension().is_some_and(|e| e == "json") && path.is_file() {
                    found.push(path);
                }
            }
            found.sort();
            files.extend(found);
        }
        if files.len() > SERVICES_MAX {
            let text = format!("{} manifests; at most {SERVICES_MAX} are taken", files.len());
            return Err(Error::new(Code::Config, text));
        }
        let given = &self.files;
        let read = |f: PathBuf| match atomic::read(&f, FILE_MAX) {
            Ok(text) => Ok((f, text)),
            Err(e) if given.contains(&f) => Err(e.context("--service-manifest")),
            Err(e) => Err(e),
        };
        files.into_iter().map(read).collect()
    }
}

/// Reads all manifests. Errors: `invalid_config`, naming the file and the field.
pub fn parse_all(texts: &[(PathBuf, Vec<u8>)]) -> Result<Vec<Manifest>> {
    let mut all: Vec<(&Path, Manifest)> = Vec::new();
    for (file, text) in texts {
        let Some(manifest) = parse(text).map_err(|e| within(file, e))? else { continue };
        if let Some((other, _)) = all.iter().find(|(_, m)| m.service_id == manifest.service_id) {
            let text =
                format!("service_id {:?} is that of {}", manifest.service_id, other.display());
            return Err(within(file, Error::invalid(text)));
        }
        if let Some(field) =
            Fields::parse(&String::from_utf8_lossy(text)).unwrap_or_default().unknown(&KNOWN)
        {
            log::warn!("{}: {field} is not known and means nothing here", file.display());
        }
        all.push((file, manifest));
    }
    Ok(all.into_iter().map(|(_, m)| m).collect())
}

fn within(file: &Path, e: Error) -> Error {
    e.recode(Code::Config).context(file.display())
}

/// `None` for one that is not enabled.
fn parse(text: &[u8]) -> Result<Option<Manifest>> {
    let text = std::str::from_utf8(text).map_err(|_| Error::invalid("is not UTF-8"))?;
    let f = Fields::parse(text).map_err(|e| match e {
        Some(e) => Error::invalid(format!("is not JSON: {e}")),
        None => Error::invalid("must be one JSON object"),
    })?;
    if f.bool("enabled")? == Some(false) {
        return Ok(None);
    }
    let service_id = identifier("service_id", f.required("service_id")?)?;
    let version = f.string("version")?.unwrap_or_else(|| "1".into());
    if version.is_empty() || version.len() > 64 || version.contains(char::is_control) {
        return Err(Error::invalid(
            "version must have 1 to 64 bytes, none of them a control character",
        ));
    }
    let help_md = f.string("help_md")?;
    if help_md.as_ref().is_some_and(|h| h.is_empty() || h.len() > HELP_MAX) {
        return Err(Error::invalid(format!("help_md must have 1 to {HELP_MAX} bytes")));
    }
    let endpoints = f.strings("endpoints")?.filter(|e| !e.is_empty());
    let endpoints = endpoints.unwrap_or_else(|| vec![format!("/nodes/{{node_id}}/{service_id}")]);
    for path in &endpoints {
        absolute("endpoints[]", path)?;
    }
    let mounts = match f.array("mounts")? {
        Some(list) => list.into_iter().map(mount).collect::<Result<_>>()?,
        None => vec![Mount {
            mount_id: service_id.clone(),
            mount_path: endpoints[0].clone(),
            state: None,
        }],
    };
    let (runtime, process) = runtime(&f)?;
    Ok(Some(Manifest {
        kind: identifier("kind", f.required("kind")?)?,
        version,
        state: state(f.string("state")?)?.unwrap_or_else(|| "online".into()),
        endpoints,
        mounts,
        capabilities: object(&f, "capabilities")?.unwrap_or_else(|| json!({})),
        ops: object(&f, "ops")?.unwrap_or_else(|| json!({"model": "namespace", "style": "plan9"})),
        runtime,
        permissions: object(&f, "permissions")?
            .unwrap_or_else(|| json!({"default": "deny-by-default"})),
        schema: object(&f, "schema")?,
        invoke_template: object(&f, "invoke_template")?.unwrap_or_else(|| json!({})),
        help_md,
        process,
        service_id,
    }))
}

fn identifier(name: &str, value: String) -> Result<String> {
    if id::is_identifier(&value, 128) {
        return Ok(value);
    }
    Err(Error::invalid(format!("{name} {value:?}: 1 to 128 of A-Z a-z 0-9 . _ -")))
}

fn state(value: Option<String>) -> Result<Option<String>> {
    match value {
        Some(s) if !id::is_identifier(&s, 64) => {
            Err(Error::invalid(format!("state {s:?}: 1 to 64 of A-Z a-z 0-9 . _ -")))
        }
        value => Ok(value),
    }
}

fn absolute(name: &str, path: &str) -> Result<()> {
    if path.starts_with('/') && path.len() <= PATH_MAX && !path.contains('\0') {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name} {path:?} must begin with / and have at most {PATH_MAX} bytes"
    )))
}

fn mount(value: &RawValue) -> Result<Mount> {
    let f = Fields::of("mounts[]", value)?;
    let read = || {
        let mount_path = f.required("mount_path")?;
        absolute("mount_path", &mount_path)?;
        Ok(Mount {
            mount_id: identifier("mount_id", f.required("mount_id")?)?,
            mount_path,
            state: state(f.string("state")?)?,
        })
    };
    read().map_err(|e: Error| e.context("mounts[]"))
}

fn object(f: &Fields<'_>, name: &str) -> Result<Option<Value>> {
    if f.object(name)?.is_none() {
        return Ok(None);
    }
    let value = f.get(name).map(|raw| serde_json::from_str(raw.get()));
    value.transpose().map_err(|e| Error::invalid(format!("{name}: {e}")))
}

fn runtime(f: &Fields<'_>) -> Result<(Value, Option<Process>)> {
    let value = object(f, "runtime")?;
    let mut value =
        value.unwrap_or_else(|| json!({"type": "native_proc", "abi": "namespace-driver-v1"}));
    let fields = f.object("runtime")?.unwrap_or_default();
    let process = read_runtime(&fields).map_err(|e| e.context("runtime"))?;
    if let Value::Object(members) = &mut value {
        members.remove("env");
        members.entry("type").or_insert_with(|| "native_proc".into());
    }
    Ok((value, process))
}

fn read_runtime(f: &Fields<'_>) -> Result<Option<Process>> {
    match f.str("type")?.as_deref() {
        Some("builtin") => return Ok(None),
        Some("native_proc") | None => {}
        Some(other) => {
            let text = format!("type {other:?} is not supported; native_proc and builtin are");
            return Err(Error::invalid(text));
        }
    }
    let supervision = match f.object("supervision")? {
        Some(s) => supervision(&s).map_err(|e| e.context("supervision"))?,
        None => supervision(&Fields::default())?,
    };
    let args = f.strings("args")?.unwrap_or_default();
    if args.len() > ARGS_MAX || args.iter().any(|a| a.is_empty() || a.contains('\0')) {
        return Err(Error::invalid(format!(
            "args: at most {ARGS_MAX} strings, none of them empty"
        )));
    }
    let timeout_ms = match f.u64("timeout_ms")? {
        None | Some(0) => TIMEOUT_MS,
        Some(ms) if ms > TIMEOUT_MAX_MS => {
            return Err(Error::invalid(format!("timeout_ms must be at most {TIMEOUT_MAX_MS}")));
        }
        Some(ms) => ms,
    };
    let env = f.object("env")?.map(|e| env(&e).map_err(|e| e.context("env"))).transpose()?;
    let Some(path) = f.string("executable_path")? else { return Ok(None) };
    if path.is_empty() || path.contains('\0') {
        return Err(Error::invalid("executable_path is empty or holds a NUL"));
    }
    // Beneath this program's directory also without a slash: it is a path, not a name to search for.
    let path = std::path::absolute(&path).context("executable_path")?;
    let mut argv = vec![OsString::from(path)];
    argv.extend(args.into_iter().map(OsString::from));
    let program = Program { argv, env: env.unwrap_or_default(), cwd: None };
    Ok(Some(Process { program, timeout_ms, supervision }))
}

/// Variables of an environment.
pub fn env(f: &Fields<'_>) -> Result<BTreeMap<String, String>> {
    let mut env = BTreeMap::new();
    for (name, _) in f.iter() {
        let value = f.string(name)?.unwrap_or_default();
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(Error::invalid(format!("{name:?} cannot stand in an environment")));
        }
        env.insert(name.to_owned(), value);
    }
    if env.len() > ENV_MAX {
        return Err(Error::invalid(format!("at most {ENV_MAX} variables")));
    }
    Ok(env)
}

fn supervision(f: &Fields<'_>) -> Result<Supervision> {
    let positive = |name: &str, default: u64| {
        Ok::<_, Error>(f.u64(name)?.filter(|n| *n > 0).unwrap_or(default))
    };
    let restart_backoff_ms = f.u64("restart_backoff_ms")?.unwrap_or(500);
    Ok(Supervision {
        health_check_interval_ms: positive("health_check_interval_ms", 5_000)?,
        restart_backoff_ms,
        restart_backoff_max_ms: positive("restart_backoff_max_ms", 30_000)?.max(restart_backoff_ms),
        max_consecutive_failures: f.u64("max_consecutive_failures")?.unwrap_or(0),
        auto_disable_on_failures: f.bool("auto_disable_on_failures")?.unwrap_or(false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Option<Manifest>> {
        parse_all(&[("a.json".into(), text.into())]).map(|mut all| all.pop())
    }

    #[test]
    fn a_manifest_has_the_documented_defaults() {
        let m = one(r#"{"service_id":"e","kind":"k"}"#).unwrap().unwrap();
        assert_eq!((&*m.version, &*m.state), ("1", "online"));
        assert_eq!(m.endpoints, ["/nodes/{node_id}/e"]);
        assert_eq!((&*m.mounts[0].mount_id, &*m.mounts[0].mount_path), ("e", "/nodes/{node_id}/e"));
        assert_eq!(m.ops, json!({"model": "namespace", "style": "plan9"}));
        assert_eq!(m.runtime, json!({"type": "native_proc", "abi": "namespace-driver-v1"}));
        assert_eq!((m.schema, m.process), (None, None));
        assert_eq!(one(r#"{"enabled":false}"#).unwrap(), None);

        let text = r#"{"service_id":"e","kind":"k","runtime":{"executable_path":"bin/d","args":["-x"],
            "timeout_ms":0,"env":{"KEY":"v"},"supervision":{"restart_backoff_max_ms":7}}}"#;
        let m = one(text).unwrap().unwrap();
        let p = m.process.unwrap();
        assert!(p.executable().is_absolute() && p.executable().ends_with("bin/d"));
        assert_eq!((p.timeout_ms, &*p.program.env["KEY"]), (30_000, "v"));
        assert_eq!(p.supervision.restart_backoff_max_ms, 500, "not below the first wait");
        assert!(m.runtime.get("env").is_none(), "it may hold secrets");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_file() {
        for (text, said) in [
            ("{", "not JSON"),
            ("[]", "one JSON object"),
            (r#"{"kind":"k"}"#, "service_id"),
            (r#"{"service_id":"a b","kind":"k"}"#, "service_id"),
            (r#"{"service_id":"a"}"#, "kind"),
            (r#"{"service_id":"a","kind":"k","version":""}"#, "version"),
            (r#"{"service_id":"a","kind":"k","endpoints":["x"]}"#, "endpoints[]"),
            (r#"{"service_id":"a","kind":"k","endpoints":"x"}"#, "endpoints"),
            (
                r#"{"service_id":"a","kind":"k","mounts":[{"mount_id":"m"}]}"#,
                "mounts[]: mount_path",
            ),
            (r#"{"service_id":"a","kind":"k","ops":[]}"#, "ops"),
            (r#"{"service_id":"a","kind":"k","help_md":""}"#, "help_md"),
            (
                r#"{"service_id":"a","kind":"k","runtime":{"type":"wasm"}}"#,
                "runtime: type \"wasm\"",
            ),
            (r#"{"service_id":"a","kind":"k","runtime":{"args":[""]}}"#, "runtime: args"),
            (r#"{"service_id":"a","kind":"k","runtime":{"timeout_ms":-1}}"#, "runtime: timeout_ms"),
            (r#"{"service_id":"a","kind":"k","runtime":{"env":{"A":1}}}"#, "runtime: env: A"),
            (
                r#"{"service_id":"a","kind":"k","runtime":{"supervision":{"restart_backoff_ms":"x"}}}"#,
                "runtime: supervision: restart_backoff_ms",
            ),
        ] {
            let e = one(text).unwrap_err();
            assert!(e.code == Code::Config, "{text}");
            assert!(e.message.starts_with("a.json: ") && e.message.contains(said), "{text}: {e}");
        }
        let m = br#"{"service_id":"a","kind":"k"}"#.to_vec();
        let e = parse_all(&[("a.json".into(), m.clone()), ("b.json".into(), m)]).unwrap_err();
        assert!(e.message.contains("b.json") && e.message.contains("a.json"), "{e}");
    }
}
