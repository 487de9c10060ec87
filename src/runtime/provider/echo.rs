//! The provider that needs no network: says back what it is told, or plays a script of tool calls, for
//! tests, demonstrations and first steps.

use super::{
    Assistant, Call, Delta, Failure, Message, Provider, ProviderError, Request, Response, Row,
    Setup, Stop, ToolCall, Usage,
};
use crate::base::{Code, Error, Result, ResultExt};
use crate::store::atomic;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::Arc;

/// Largest script file.
const SCRIPT_MAX: usize = 1 << 20;
/// An answer is streamed in pieces of about this many bytes.
const PIECE: usize = 8;

#[derive(Debug)]
struct Echo {
    script: Vec<Turn>,
}

/// How to answer a message: each step is one answer of the model, the first one to the message, the
/// others to the tool results. After the last step, the message is echoed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Turn {
    /// Text that the message must contain; a turn without it answers every message. The first turn
    /// that fits is played.
    #[serde(rename = "match")]
    pattern: Option<String>,
    steps: Vec<Step>,
}

/// Says something, calls a tool, or both.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    text: Option<String>,
    tool: Option<String>,
    arguments: Option<Map<String, Value>>,
}

pub(super) fn make(_: &Row, setup: &Setup<'_>) -> Result<Arc<dyn Provider>> {
    let from_env = setup.env.get("SPIDERWEB_ECHO_SCRIPT").map(Path::new);
    let script = match from_env.or(setup.settings.script.as_deref()) {
        Some(path) => read_script(path).map_err(|e| e.recode(Code::Config))?,
        None => Vec::new(),
    };
    Ok(Arc::new(Echo { script }))
}

fn read_script(path: &Path) -> Result<Vec<Turn>> {
    let text = atomic::read(path, SCRIPT_MAX).context("provider.script")?;
    parse_script(&text).context(format!("provider.script {}", path.display()))
}

fn parse_script(text: &[u8]) -> Result<Vec<Turn>> {
    let turns: Vec<Turn> =
        serde_json::from_slice(text).map_err(|e| Error::new(Code::Config, e.to_string()))?;
    for (t, turn) in turns.iter().enumerate() {
        for (s, step) in turn.steps.iter().enumerate() {
            let wrong = match (&step.text, &step.tool, &step.arguments) {
                (None, None, _) => "needs `text` or `tool`",
                (_, None, Some(_)) => "has `arguments` without a `tool`",
                _ => continue,
            };
            return Err(Error::new(Code::Config, format!("turn {t}, step {s} {wrong}")));
        }
    }
    Ok(turns)
}

impl Echo {
    /// What to say next: a step of the script, or the echo.
    fn answer(&self, messages: &[Message]) -> (String, Option<ToolCall>) {
        let (asked_at, asked) = last_user_text(messages);
        let answered = messages[asked_at..].iter();
        let played = answered.filter(|m| matches!(m, Message::Assistant(_))).count();
        let fits = |t: &&Turn| t.pattern.as_ref().is_none_or(|p| asked.contains(p.as_str()));
        let Some(step) = self.script.iter().find(fits).and_then(|t| t.steps.get(played)) else {
            return (format!("Echo: {asked}"), None);
        };
        let call = step.tool.as_ref().map(|tool| ToolCall {
            id: format!("echo-call-{}", messages.len()),
            name: tool.clone(),
            arguments: Value::Object(step.arguments.clone().unwrap_or_default()).to_string(),
        });
        (step.text.clone().unwrap_or_default(), call)
    }
}

/// Where the last message of the user stands, and what it says.
fn last_user_text(messages: &[Message]) -> (usize, &str) {
    let user = |message: &Message| matches!(message, Message::User { .. });
    match messages.iter().rposition(user).map(|at| (at, &messages[at])) {
        Some((at, Message::User { text })) => (at, text),
        _ => (0, ""),
    }
}

impl Provider for Echo {
    fn stream(
        &self,
        request: &Request<'_>,
        call: &Call,
        on: &mut dyn FnMut(Delta<'_>),
    ) -> Result<Response, ProviderError> {
        let (text, tool_call) = self.answer(request.messages);
        let mut rest = text.as_str();
        while !rest.is_empty() {
            if call.cancel.is_cancelled() {
                return Err(ProviderError::new(Failure::Cancelled, "cancelled"));
            }
            let (piece, tail) = rest.split_at(rest.ceil_char_boundary(PIECE));
            on(Delta::Text(piece));
            rest = tail;
        }
        let stop = if tool_call.is_some() { Stop::ToolUse } else { Stop::Stop };
        let message =
            Assistant { text, tool_calls: Vec::from_iter(tool_call), ..Assistant::default() };
        Ok(Response { message, stop, usage: Usage::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_script_is_refused_with_the_place() {
        for (script, expected) in [
            (r#"[{"steps":[{"txt":"x"}]}]"#, "unknown field `txt`"),
            (r#"[{"step":[]}]"#, "unknown field `step`"),
            (r#"[{"steps":[{"text":"x"},{"arguments":{}}]}]"#, "turn 0, step 1"),
            (r#"[{"steps":[{}]}]"#, "needs `text` or `tool`"),
            (r#"{"steps":[]}"#, "line 1 column"),
        ] {
            let e = parse_script(script.as_bytes()).unwrap_err();
            assert!(e.message.contains(expected), "{script}: {e}");
        }
    }

    #[test]
    fn steps_are_played_in_order_and_then_the_message_is_echoed() {
        let script = r#"[{"match":"list","steps":[
            {"tool":"file_list","arguments":{"path":"/"}},{"text":"done"}]}]"#;
        let echo = Echo { script: parse_script(script.as_bytes()).unwrap() };
        let mut messages = vec![Message::User { text: "please list".into() }];
        let (text, call) = echo.answer(&messages);
        assert_eq!((text.as_str(), call.unwrap().arguments.as_str()), ("", r#"{"path":"/"}"#));
        messages.push(Message::Assistant(Assistant::default()));
        assert_eq!(echo.answer(&messages), ("done".into(), None));
        messages.push(Message::Assistant(Assistant::default()));
        assert_eq!(echo.answer(&messages).0, "Echo: please list");
        messages.push(Message::User { text: "ünïcode".into() });
        assert_eq!(echo.answer(&messages).0, "Echo: ünïcode");
    }
}
