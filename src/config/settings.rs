//! The one table of settings: name, type, default, limits and meaning of each. The typed [`Config`], the
//! checks, the overrides and the documentation all come from it.

use super::load::Values;
use crate::base::Result;
use log::LevelFilter;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

/// One setting, for those who list or explain them.
pub struct Key {
    /// `section.key`.
    pub path: &'static str,
    pub doc: &'static [&'static str],
    /// What a value may be, in words.
    pub allowed: fn() -> String,
    /// As JSON; null where there is none.
    pub default: fn() -> Value,
    /// The value in force, as JSON.
    pub get: fn(&Config) -> Value,
    /// What the text of a flag or an environment variable means as JSON.
    pub(super) from_text: fn(&str) -> Value,
    pub(super) check: fn(&Value) -> bool,
}

/// What a value must satisfy beyond its type.
#[derive(Clone, Copy)]
enum Limit {
    Any,
    Range(u64, u64),
    NonEmpty,
    HttpUrl,
}
use Limit::{Any, HttpUrl, NonEmpty, Range};

macro_rules! settings {
    ($($(#[$about:meta])* $section:ident: $Section:ident {
        $($(#[doc = $doc:literal])+ $key:ident: $type:ty = $default:expr, $limit:expr;)+
    })+) => {
        /// Every setting that has an effect.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Config { $($(#[$about])* pub $section: $Section,)+ }

        $($(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $Section { $($(#[doc = $doc])+ pub $key: $type,)+ })+

        /// The settings in the order in which they are written and documented.
        pub const KEYS: &[Key] = &[$($(Key {
            path: concat!(stringify!($section), ".", stringify!($key)),
            doc: &[$($doc),+],
            allowed: || describe::<$type>($limit),
            default: || <$type as Setting>::to_json(&$default),
            get: |config| <$type as Setting>::to_json(&config.$section.$key),
            from_text: <$type as Setting>::from_text,
            check: |value| within(value, $limit) && <$type as Setting>::from_json(value).is_some(),
        },)+)+];

        impl Config {
            /// What holds when nothing is configured.
            pub fn defaults() -> Config {
                Config::from_values(&Values::default())
            }

            /// What `values` say, which have been checked against [`KEYS`]; defaults for the rest.
            pub(super) fn from_values(values: &Values) -> Config {
                Config { $($section: $Section { $($key: values
                    .get(concat!(stringify!($section), ".", stringify!($key)))
                    .and_then(<$type as Setting>::from_json)
                    .unwrap_or_else(|| $default),)+ },)+ }
            }
        }
    };
}

settings! {
    /// Where the gateway listens.
    server: Server {
        /// Address to listen on; whoever reaches it needs a token.
        bind: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST), Any;
        /// TCP port to listen on; 0 takes a free one.
        port: u16 = 18790, Any;
        /// Threads that move WebSocket messages; 0 is one per processor.
        io_threads: usize = 0, Range(0, 256);
        /// Values of the HTTP `Origin` header that browsers may connect from, besides loopback.
        allowed_origins: Vec<String> = Vec::new(), HttpUrl;
    }
    /// Who answers.
    provider: Provider {
        /// Provider of every agent that names none: `openai`, or `echo`, which needs no key.
        name: String = "openai".into(), NonEmpty;
        /// Model of every agent that names none; without one, the provider's usual one.
        model: Option<String> = None, NonEmpty;
        /// Where the provider's API is, in place of its public address.
        base_url: Option<String> = None, HttpUrl;
        /// File with the turns that the `echo` provider plays; without one it repeats what it is told.
        script: Option<PathBuf> = None, NonEmpty;
    }
    /// What is logged.
    log: Log {
        /// Least urgent level that is logged.
        level: LevelFilter = LevelFilter::Info, Any;
    }
    /// The control plane.
    control: Control {
        /// Records of the audit log that are kept.
        audit_keep: u64 = 100_000, Range(1_000, 10_000_000);
    }
    /// Agents, their work and their state.
    runtime: Runtime {
        /// Threads that answer chat messages, and so how many are answered at the same time.
        runtime_worker_threads: usize = 2, Range(0, 256);
        /// Chat messages that may wait for a thread; more are refused with `queue_saturated`.
        runtime_request_queue_max: usize = 128, Range(0, 65536);
        /// Time in which a chat message must be answered.
        chat_operation_timeout_ms: u64 = 300_000, Range(1, 86_400_000);
        /// Time in which a file operation of a session must be answered, a wait for content apart.
        control_operation_timeout_ms: u64 = 5_000, Range(1, 86_400_000);
        /// Tool calls of one model answer that run at the same time.
        max_inflight_tool_calls_per_run: usize = 1, Range(1, 32);
        /// The agent that is the default where none is named.
        default_agent_id: String = "mother".into(), NonEmpty;
        /// Whether a well-formed but unknown agent id becomes a new agent.
        implicit_agents: bool = true, Any;
        /// Directory of the database and the tokens; relative to the working directory.
        ltm_directory: PathBuf = ".spiderweb-ltm".into(), NonEmpty;
        /// Name of the database in `ltm_directory`.
        ltm_filename: PathBuf = "runtime-memory.db".into(), NonEmpty;
        /// Directory of templates for new agents; relative to the working directory.
        assets_dir: PathBuf = "templates".into(), NonEmpty;
        /// Directory with one directory per agent; relative to the working directory.
        agents_dir: PathBuf = "agents".into(), NonEmpty;
    }
}

/// Settings of the original that have no effect here: accepted, kept in the file, not spoken of.
pub(super) const INERT: &[&str] = &[
    "runtime.inbound_queue_max",
    "runtime.brain_tick_queue_max",
    "runtime.outbound_queue_max",
    "runtime.control_queue_max",
    "runtime.connection_worker_threads",
    "runtime.connection_queue_max",
    "runtime.run_checkpoint_interval_steps",
    "runtime.run_auto_resume_on_boot",
    "runtime.tool_retry_max_attempts",
    "runtime.tool_lease_timeout_ms",
    "runtime.max_run_steps",
    "runtime.spider_web_root",
    "runtime.sandbox_mounts_root",
    "runtime.sandbox_runtime_root",
    "runtime.sandbox_rootfs_base_ref",
    "runtime.sandbox_rootfs_store_root",
    "runtime.sandbox_overlay_root",
    "runtime.sandbox_snapshot_root",
    "runtime.sandbox_launcher",
    "runtime.sandbox_fs_mount_bin",
    "runtime.sandbox_agent_runtime_bin",
    "runtime.sandbox_enabled",
];

impl Config {
    /// The database file, absolute.
    pub fn database(&self) -> Result<PathBuf> {
        self.in_ltm_directory(&self.runtime.ltm_filename)
    }

    /// `auth_tokens.json`, absolute.
    pub fn tokens(&self) -> Result<PathBuf> {
        self.in_ltm_directory(Path::new("auth_tokens.json"))
    }

    /// Where the state is and the logs are, absolute.
    pub fn ltm_directory(&self) -> Result<PathBuf> {
        self.in_ltm_directory(Path::new(""))
    }

    fn in_ltm_directory(&self, name: &Path) -> Result<PathBuf> {
        Ok(std::path::absolute(&self.runtime.ltm_directory)?.join(name))
    }
}

/// A type that a setting can have.
trait Setting: Sized {
    /// With its article, as in "must be …".
    const WHAT: &'static str;
    fn from_json(value: &Value) -> Option<Self>;
    fn to_json(&self) -> Value;
    fn from_text(text: &str) -> Value {
        Value::String(text.to_owned())
    }
}

fn describe<T: Setting>(limit: Limit) -> String {
    match limit {
        Any => T::WHAT.to_owned(),
        Range(min, max) => format!("{} from {min} to {max}", T::WHAT),
        NonEmpty => format!("{} that is not empty", T::WHAT),
        HttpUrl => format!("{} starting with http:// or https://", T::WHAT),
    }
}

fn within(value: &Value, limit: Limit) -> bool {
    if let Value::Array(items) = value {
        return items.iter().all(|item| within(item, limit));
    }
    match limit {
        Any => true,
        Range(min, max) => value.as_u64().is_some_and(|n| (min..=max).contains(&n)),
        NonEmpty => value.as_str().is_some_and(|s| !s.trim().is_empty()),
        HttpUrl => value.as_str().is_some_and(|s| {
            let rest = s.strip_prefix("http://").or_else(|| s.strip_prefix("https://"));
            rest.is_some_and(|host| !host.is_empty() && !host.contains(char::is_whitespace))
        }),
    }
}

macro_rules! integers {
    ($($type:ty: $what:literal)*) => { $(impl Setting for $type {
        const WHAT: &'static str = $what;
        fn from_json(value: &Value) -> Option<Self> { value.as_u64()?.try_into().ok() }
        fn to_json(&self) -> Value { (*self).into() }
        fn from_text(text: &str) -> Value { json_or_text(text) }
    })* };
}
integers! {
    u16: "an integer from 0 to 65535"
    usize: "an integer"
    u64: "an integer"
}

impl Setting for bool {
    const WHAT: &'static str = "true or false";
    fn from_json(value: &Value) -> Option<bool> {
        value.as_bool()
    }
    fn to_json(&self) -> Value {
        (*self).into()
    }
    fn from_text(text: &str) -> Value {
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => true.into(),
            "false" | "no" | "off" | "0" => false.into(),
            _ => text.into(),
        }
    }
}

fn json_or_text(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

impl Setting for String {
    const WHAT: &'static str = "a string";
    fn from_json(value: &Value) -> Option<String> {
        value.as_str().map(str::to_owned)
    }
    fn to_json(&self) -> Value {
        self.as_str().into()
    }
}

impl Setting for PathBuf {
    const WHAT: &'static str = "a path";
    fn from_json(value: &Value) -> Option<PathBuf> {
        value.as_str().map(PathBuf::from)
    }
    fn to_json(&self) -> Value {
        self.to_string_lossy().into()
    }
}

impl Setting for IpAddr {
    const WHAT: &'static str = "an IP address";
    fn from_json(value: &Value) -> Option<IpAddr> {
        value.as_str()?.parse().ok()
    }
    fn to_json(&self) -> Value {
        self.to_string().into()
    }
}

impl Setting for LevelFilter {
    const WHAT: &'static str = "one of error, warn, info, debug, trace";
    fn from_json(value: &Value) -> Option<LevelFilter> {
        crate::base::log::parse_level(value.as_str()?).ok()
    }
    fn to_json(&self) -> Value {
        self.as_str().to_ascii_lowercase().into()
    }
}

impl Setting for Vec<String> {
    const WHAT: &'static str = "a list of strings, each";
    fn from_json(value: &Value) -> Option<Vec<String>> {
        value.as_array()?.iter().map(String::from_json).collect()
    }
    fn to_json(&self) -> Value {
        self.as_slice().into()
    }
    fn from_text(text: &str) -> Value {
        text.split(',').map(str::trim).filter(|s| !s.is_empty()).collect()
    }
}

impl<T: Setting> Setting for Option<T> {
    const WHAT: &'static str = T::WHAT;
    fn from_json(value: &Value) -> Option<Option<T>> {
        T::from_json(value).map(Some)
    }
    fn to_json(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::to_json)
    }
    fn from_text(text: &str) -> Value {
        T::from_text(text)
    }
}
