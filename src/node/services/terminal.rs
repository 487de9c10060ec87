//! A terminal (spec: fs 15.6): runs single commands for its `control/invoke.json`, and has interactive
//! sessions, which are `pty`'s.

use super::child::{self, End, OUTPUT_MAX, Program, Ran};
use super::pty::Sessions;
use crate::base::{Cancel, Deadline, Error, Result};
use crate::wire::Fields;
use serde_json::{Value, json};
use std::ffi::OsString;

/// Bytes of each output that a reply shows, unless it is asked for more.
const SHOWN: u64 = 131_072;
/// How a payload that cannot be used is told (spec: fs 15.6).
const EXIT_INVALID: i32 = 125;
const TOOLS: [&str; 3] = ["terminal_exec", "shell_exec", "exec"];

/// Time for one command.
pub const TIMEOUT_MS: u64 = 30_000;

pub struct Terminal {
    pub id: String,
    pub sessions: Sessions,
}

/// A command as a payload asks for it.
struct Exec {
    program: Program,
    shown: usize,
}

impl Terminal {
    pub fn new(id: &str) -> Terminal {
        Terminal { id: id.into(), sessions: Sessions::default() }
    }

    /// Runs one command. A command that fails is a run that succeeds: the reply tells. Errors: EIO for
    /// too much output.
    pub fn exec(&self, payload: &[u8], deadline: Deadline, cancel: &Cancel) -> Result<Ran> {
        let text = String::from_utf8_lossy(payload);
        let fields = Fields::parse(&text).map_err(|_| Error::invalid("write one JSON object"));
        let exec = match fields.and_then(|f| read_exec(&f)) {
            Ok(exec) => exec,
            Err(e) => {
                let (end, stderr) = (End::Exited(EXIT_INVALID), e.message.as_bytes().to_vec());
                return Ok(Ran { end, stdout: Vec::new(), stderr });
            }
        };
        let reply = match child::run(&exec.program, b"", deadline, cancel) {
            Ok(ran) if ran.end == End::TimedOut || cancel.is_cancelled() => return Ok(ran),
            Ok(ran) => self.reply(&ran, exec.shown),
            Err(e) if e.errno() == libc::EIO => return Err(e),
            Err(e) => {
                json!({"service": "terminal", "terminal_id": self.id, "operation": "exec",
                    "ok": false, "state": "launch_failed", "exit_code": -1, "stdout": "",
                    "stderr": e.message})
            }
        };
        let stdout = reply.to_string().into_bytes();
        Ok(Ran { end: End::Exited(0), stdout, stderr: Vec::new() })
    }

    fn reply(&self, ran: &Ran, shown: usize) -> Value {
        let text =
            |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(shown)]).into_owned();
        let state = if ran.end == End::Killed { "terminated" } else { "exited" };
        let mut reply = json!({"service": "terminal", "terminal_id": self.id, "operation": "exec",
            "ok": ran.end == End::Exited(0), "state": state, "exit_code": ran.end.exit_code(),
            "stdout": text(&ran.stdout), "stderr": text(&ran.stderr)});
        if ran.stdout.len().max(ran.stderr.len()) > shown {
            reply["truncated"] = true.into();
        }
        reply
    }
}

/// The files of a terminal, as its `SCHEMA.json` describes them.
pub fn schema() -> Value {
    let mut schema = super::files::schema_default();
    schema["model"] = "terminal-driver-v1".into();
    schema["pty"] = json!({
        "new": {"path": "pty/new", "write": {"argv": ["/bin/sh", "-l"], "cols": 80, "rows": 24},
            "optional": ["command", "cwd", "env", "term"], "reply": {"pty": "1", "path": "pty/1"}},
        "io": {"path": "pty/<n>/io", "read": "output; waits for it", "write": "keyboard"},
        "control": {"path": "pty/<n>/control",
            "write": [{"resize": {"cols": 80, "rows": 24}}, {"signal": "INT"}, "close"]},
        "status": "pty/<n>/status.json"});
    schema
}

pub fn template() -> Value {
    json!({"tool_name": "terminal_exec", "arguments": {"command": "echo hello"}})
}

fn read_exec(payload: &Fields<'_>) -> Result<Exec> {
    if let Some(tool) = payload.str("tool_name")?
        && !TOOLS.contains(&&*tool)
    {
        return Err(Error::invalid(format!(
            "tool_name {tool:?} is not one of {}",
            TOOLS.join(", ")
        )));
    }
    let arguments = payload.object("arguments")?;
    let f = arguments.as_ref().unwrap_or(payload);
    let op = f.str("op")?.or(f.str("operation")?);
    if let Some(op) = op.filter(|op| op != "exec") {
        return Err(Error::invalid(format!("op {op:?} is not supported; exec is")));
    }
    let program = read_program(f)?;
    let program = program.ok_or_else(|| Error::invalid("command or argv is required"))?;
    let shown = f.u64("max_output_bytes")?.filter(|n| *n > 0).unwrap_or(SHOWN);
    Ok(Exec { program, shown: shown.min(OUTPUT_MAX as u64) as usize })
}

/// The members `argv` or `command`, and `cwd`. `None` without a command.
pub fn read_program(f: &Fields<'_>) -> Result<Option<Program>> {
    let argv = match (f.strings("argv")?, f.string("command")?) {
        (Some(_), Some(_)) => return Err(Error::invalid("give argv or command, not both")),
        (Some(argv), None) => argv,
        (None, Some(command)) => vec!["/bin/sh".into(), "-lc".into(), command],
        (None, None) => return Ok(None),
    };
    if argv.is_empty() || argv.iter().any(|a| a.is_empty() || a.contains('\0')) {
        return Err(Error::invalid("argv or command: strings that are not empty, without NUL"));
    }
    let cwd = f.string("cwd")?.filter(|c| !c.is_empty());
    if cwd.as_ref().is_some_and(|c| c.contains('\0')) {
        return Err(Error::invalid("cwd holds a NUL"));
    }
    let argv = argv.into_iter().map(OsString::from).collect();
    Ok(Some(Program { argv, cwd: cwd.map(Into::into), ..Program::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(payload: &Value) -> Ran {
        let (terminal, deadline) = (Terminal::new("1"), Deadline::after_ms(20_000));
        terminal.exec(payload.to_string().as_bytes(), deadline, &Cancel::new()).unwrap()
    }

    #[track_caller]
    fn reply(payload: &Value) -> Value {
        let ran = exec(payload);
        assert_eq!(ran.end, End::Exited(0), "{}", String::from_utf8_lossy(&ran.stderr));
        serde_json::from_slice(&ran.stdout).unwrap()
    }

    #[test]
    fn commands_are_run_and_replied_to_as_documented() {
        let r = reply(&json!({"tool_name": "exec", "arguments": {"command": "echo hi; exit 3"}}));
        let shown = json!({"service": "terminal", "terminal_id": "1", "operation": "exec", "ok": false,
            "state": "exited", "exit_code": 3, "stdout": "hi\n", "stderr": ""});
        assert_eq!(r, shown);
        let r = reply(&json!({"argv": ["/bin/pwd"], "cwd": "/"}));
        assert_eq!((r["stdout"].as_str(), r["ok"].as_bool()), (Some("/\n"), Some(true)));
        let r = reply(&json!({"command": "kill -9 $$"}));
        assert_eq!((r["state"].as_str(), r["exit_code"].as_i64()), (Some("terminated"), Some(-1)));
        let r = reply(&json!({"argv": ["/nowhere/x"]}));
        assert_eq!(r["state"], "launch_failed");
        assert!(r["stderr"].as_str().unwrap().contains("/nowhere/x"));
        let r = reply(&json!({"command": "seq 100", "max_output_bytes": 3}));
        assert_eq!((r["stdout"].as_str(), r["truncated"].as_bool()), (Some("1\n2"), Some(true)));
    }

    #[test]
    fn a_payload_that_cannot_be_used_says_why() {
        for (payload, said) in [
            (json!({}), "command or argv"),
            (json!({"argv": []}), "argv"),
            (json!({"argv": ["a"], "command": "b"}), "not both"),
            (json!({"op": "open", "command": "x"}), "op"),
            (json!({"tool_name": "x", "command": "x"}), "tool_name"),
            (json!({"arguments": {"command": 7}}), "command must be a string"),
        ] {
            let ran = exec(&payload);
            let stderr = String::from_utf8_lossy(&ran.stderr);
            assert!(ran.end == End::Exited(125) && stderr.contains(said), "{payload}: {stderr}");
        }
    }
}
