//! Tools: what a model, or a service on its behalf, may do to a tree. Each is declared once; the schema
//! that models see, the checks and the defaults all come from that (spec: runtime 6.7).

mod file;
mod search;

use super::provider;
use crate::base::{Code, Error, TreePath};
use crate::vfs::{Cx, Tree};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::fmt;

/// What a tool works with.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub tree: &'a dyn Tree,
    pub cx: &'a Cx,
}

/// Why a tool failed, as the model is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolCode {
    InvalidParams,
    PermissionDenied,
    Timeout,
    ExecutionFailed,
    ToolNotFound,
    /// There is such a tool, but not for this agent.
    ToolNotExecutable,
}

impl ToolCode {
    pub const fn wire(self) -> &'static str {
        match self {
            ToolCode::InvalidParams => "invalid_params",
            ToolCode::PermissionDenied => "permission_denied",
            ToolCode::Timeout => "timeout",
            ToolCode::ExecutionFailed => "execution_failed",
            ToolCode::ToolNotFound => "tool_not_found",
            ToolCode::ToolNotExecutable => "tool_not_executable",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolError {
    pub code: ToolCode,
    pub message: Cow<'static, str>,
}

impl ToolError {
    pub fn new(code: ToolCode, message: impl Into<Cow<'static, str>>) -> ToolError {
        ToolError { code, message: message.into() }
    }

    /// `{"code","message"}`.
    pub fn to_json(&self) -> Value {
        json!({"code": self.code.wire(), "message": self.message})
    }
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.wire(), self.message)
    }
}

impl From<Error> for ToolError {
    fn from(e: Error) -> ToolError {
        let code = match (e.code, e.errno()) {
            (_, libc::EACCES | libc::EPERM | libc::EROFS) => ToolCode::PermissionDenied,
            (Code::Timeout, _) | (_, libc::ETIMEDOUT) => ToolCode::Timeout,
            _ => ToolCode::ExecutionFailed,
        };
        ToolError::new(code, e.message)
    }
}

type Outcome = Result<Value, ToolError>;

/// One tool.
struct Declaration {
    name: &'static str,
    description: &'static str,
    params: &'static [Param],
    run: fn(Place<'_>, &Args) -> Outcome,
}

struct Param {
    name: &'static str,
    kind: Kind,
    doc: &'static str,
}

/// Type of a parameter, and its default; without one it is required.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    TextOr(&'static str),
    Flag(bool),
    /// More than `max` means `max`.
    Count {
        default: usize,
        max: usize,
    },
}

const TOOLS: &[Declaration] =
    &[file::FILE_READ, file::FILE_WRITE, file::FILE_LIST, search::SEARCH_CODE];

/// Every tool that `allows` lets through, as models are told of it.
pub fn offered(allows: impl Fn(&str) -> bool) -> Vec<provider::Tool> {
    let described = |tool: &Declaration| provider::Tool {
        name: tool.name,
        description: tool.description,
        parameters: schema(tool),
    };
    TOOLS.iter().filter(|tool| allows(tool.name)).map(described).collect()
}

/// JSON schema of a tool's arguments, for those who describe it elsewhere.
pub fn schema_of(name: &str) -> Option<Value> {
    TOOLS.iter().find(|tool| tool.name == name).map(schema)
}

/// Runs a tool. `arguments` is JSON text, as models write it.
pub fn run(place: Place<'_>, name: &str, arguments: &str) -> Outcome {
    let Some(tool) = TOOLS.iter().find(|tool| tool.name == name) else {
        let names: Vec<_> = TOOLS.iter().map(|tool| tool.name).collect();
        let message = format!("there is no tool {name:?}; there are {}", names.join(", "));
        return Err(ToolError::new(ToolCode::ToolNotFound, message));
    };
    let args = Args::read(tool, arguments)?;
    place.cx.check()?;
    (tool.run)(place, &args)
}

fn schema(tool: &Declaration) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for Param { name, kind, doc } in tool.params {
        let mut property = json!({"type": kind.json_type(), "description": doc});
        match *kind {
            Kind::Text => required.push(*name),
            Kind::TextOr(default) => property["default"] = default.into(),
            Kind::Flag(default) => property["default"] = default.into(),
            Kind::Count { default, max } => {
                property["default"] = default.into();
                property["minimum"] = 1.into();
                property["maximum"] = max.into();
            }
        }
        properties.insert((*name).to_owned(), property);
    }
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

impl Kind {
    fn json_type(self) -> &'static str {
        match self {
            Kind::Text | Kind::TextOr(_) => "string",
            Kind::Flag(_) => "boolean",
            Kind::Count { .. } => "integer",
        }
    }

    fn default(self) -> Option<Value> {
        match self {
            Kind::Text => None,
            Kind::TextOr(default) => Some(default.into()),
            Kind::Flag(default) => Some(default.into()),
            Kind::Count { default, .. } => Some(default.into()),
        }
    }

    fn check(self, value: Value) -> Option<Value> {
        match self {
            Kind::Text | Kind::TextOr(_) => value.is_string().then_some(value),
            Kind::Flag(_) => value.is_boolean().then_some(value),
            Kind::Count { max, .. } => {
                let count = value.as_u64().filter(|n| *n > 0)?;
                Some(usize::try_from(count).unwrap_or(max).min(max).into())
            }
        }
    }
}

/// Checked arguments, with a value for every parameter.
struct Args(Map<String, Value>);

impl Args {
    fn read(tool: &Declaration, arguments: &str) -> Result<Args, ToolError> {
        let invalid = |message: String| ToolError::new(ToolCode::InvalidParams, message);
        // Models say "no arguments" with nothing at all, too.
        let text = if arguments.trim().is_empty() { "{}" } else { arguments };
        let mut given: Map<String, Value> = serde_json::from_str(text)
            .map_err(|e| invalid(format!("arguments must be one JSON object: {e}")))?;
        let mut args = Map::new();
        for Param { name, kind, .. } in tool.params {
            let value = match given.remove(*name).filter(|v| !v.is_null()) {
                Some(value) => kind.check(value).ok_or_else(|| {
                    let wanted = match kind {
                        Kind::Count { .. } => "a positive integer",
                        kind => kind.json_type(),
                    };
                    invalid(format!("{name} must be {wanted}"))
                })?,
                None => kind.default().ok_or_else(|| invalid(format!("{name} is required")))?,
            };
            args.insert((*name).to_owned(), value);
        }
        // Names that begin with `_` are annotations of the way here (spec: runtime 6.5).
        match given.keys().find(|name| !name.starts_with('_')) {
            Some(name) => Err(invalid(format!("{} has no parameter {name}", tool.name))),
            None => Ok(Args(args)),
        }
    }

    fn text(&self, name: &str) -> &str {
        self.0[name].as_str().expect("checked when it was read")
    }

    fn flag(&self, name: &str) -> bool {
        self.0[name].as_bool().expect("checked when it was read")
    }

    fn count(&self, name: &str) -> usize {
        self.0[name].as_u64().expect("checked when it was read") as usize
    }

    /// A path of the tree; `.` is its root.
    fn path(&self, name: &str) -> Result<TreePath, ToolError> {
        let text = self.text(name);
        if text.trim().is_empty() {
            return Err(ToolError::new(ToolCode::InvalidParams, format!("{name} is empty")));
        }
        TreePath::parse(text).map_err(|e| ToolError::new(ToolCode::InvalidParams, e.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_and_the_checks_agree() {
        let tool = &file::FILE_READ;
        let schema = schema(tool);
        assert_eq!(schema["required"], json!(["path"]));
        assert_eq!(schema["properties"]["max_bytes"]["type"], "integer");
        let args = Args::read(tool, r#"{"path":"/a","max_bytes":99999999999,"_tool_call_id":"x"}"#);
        let args = args.unwrap();
        assert_eq!((args.text("path"), args.count("max_bytes")), ("/a", 8 << 20));
        assert!(args.flag("wait_until_ready"));
        for (arguments, expected) in [
            ("", "path is required"),
            ("[]", "one JSON object"),
            (r#"{"path":1}"#, "path must be string"),
            (r#"{"path":"a","max_bytes":0}"#, "max_bytes must be a positive integer"),
            (r#"{"path":"a","max_bytes":"5"}"#, "max_bytes must be a positive integer"),
            (r#"{"path":"a","recursive":true}"#, "file_read has no parameter recursive"),
        ] {
            let e = Args::read(tool, arguments).err().unwrap();
            assert_eq!(e.code, ToolCode::InvalidParams);
            assert!(e.message.contains(expected), "{arguments}: {e}");
        }
        assert!(Args::read(tool, r#"{"path":"../x"}"#).unwrap().path("path").is_err());
    }

    #[test]
    fn only_what_is_allowed_is_offered() {
        let names = |allows: fn(&str) -> bool| -> Vec<&str> {
            offered(allows).iter().map(|t| t.name).collect()
        };
        assert_eq!(names(|_| true), ["file_read", "file_write", "file_list", "search_code"]);
        assert_eq!(names(|n| n == "file_list"), ["file_list"]);
        assert!(schema_of("shell_exec").is_none());
    }
}
