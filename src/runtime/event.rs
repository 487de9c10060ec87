//! What happens while agents work, as it is told to those who watch and written to the job's log
//! (spec: runtime 6.1; design: shape of pushed frames).

use super::jobs::JobId;
use crate::base::{Error, now_ms};
use crate::wire::{Object, secret};
use serde_json::Value;
use std::sync::Arc;

/// Longest text within an event; the whole of it is elsewhere.
const TEXT_MAX: usize = 4096;

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    pub agent_id: Arc<str>,
    pub project_id: Option<Arc<str>>,
    pub job_id: JobId,
    pub at_ms: i64,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// `phase` `job`: its state, `queued`, `running`, `done` or `failed`. `text`, `thinking`: `detail` is
    /// the next piece. `provider`: with `retry`, the pieces so far are void.
    Progress {
        phase: &'static str,
        status: &'static str,
        detail: String,
    },
    /// `source` is `thinking` or `text`; rounds count from 1.
    Thought {
        source: &'static str,
        round: usize,
        content: String,
    },
    /// A tool is called, or has answered.
    Tool {
        payload: Value,
    },
    /// The reply.
    Receive {
        content: String,
    },
    Error {
        code: &'static str,
        message: String,
    },
    Debug {
        category: &'static str,
        payload: Value,
    },
}

impl Body {
    pub fn error(e: &Error) -> Body {
        Body::Error { code: e.code.wire(), message: e.message.to_string() }
    }

    /// A tool's event; long texts are shortened and secrets left out.
    pub fn tool(mut payload: Value) -> Body {
        tidy(&mut payload);
        Body::Tool { payload }
    }

    pub fn debug(category: &'static str, mut payload: Value) -> Body {
        tidy(&mut payload);
        Body::Debug { category, payload }
    }

    /// The frame's `type`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Body::Progress { .. } => "agent.progress",
            Body::Thought { .. } => "agent.thought",
            Body::Tool { .. } => "tool.event",
            Body::Receive { .. } => "session.receive",
            Body::Error { .. } => "error",
            Body::Debug { .. } => "debug.event",
        }
    }

    /// Pieces of a text that follows whole are told, but not kept.
    pub fn is_piece(&self) -> bool {
        matches!(self, Body::Progress { phase: "text" | "thinking", .. })
    }
}

impl Event {
    pub(super) fn now(
        agent_id: Arc<str>,
        project_id: Option<Arc<str>>,
        job_id: JobId,
        body: Body,
    ) -> Event {
        Event { agent_id, project_id, job_id, at_ms: now_ms(), body }
    }

    /// The frame. `head` holds what the way to the reader adds in front (`channel`, `session_key`, …).
    pub fn frame(&self, head: Object) -> String {
        let o = head.put("type", self.body.type_name()).put("request", self.job_id.to_string());
        let o = match &self.body {
            Body::Progress { phase, status, detail } => {
                o.put("phase", phase).put("status", status).put("detail", detail)
            }
            Body::Thought { source, round, content } => {
                o.put("source", source).put("round", round).put("content", content)
            }
            Body::Tool { payload } => o.put("payload", payload),
            Body::Receive { content } => o.put("role", "assistant").put("content", content),
            Body::Error { code, message } => o.put("code", code).put("message", message),
            Body::Debug { category, payload } => {
                o.put("category", category).put("payload", payload)
            }
        };
        o.put("timestamp", self.at_ms).finish()
    }
}

fn tidy(value: &mut Value) {
    secret::redact(value);
    shorten(value);
}

fn shorten(value: &mut Value) {
    match value {
        Value::String(text) if text.len() > TEXT_MAX => {
            let left_out = text.len() - TEXT_MAX;
            text.truncate(text.floor_char_boundary(TEXT_MAX));
            text.push_str(&format!("… ({left_out} bytes left out)"));
        }
        Value::Array(items) => items.iter_mut().for_each(shorten),
        Value::Object(members) => members.values_mut().for_each(shorten),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn frames_have_the_documented_members() {
        let body = Body::Thought { source: "thinking", round: 1, content: "hm".into() };
        let event = Event { at_ms: 5, ..Event::now("a".into(), None, JobId::test(7), body) };
        let frame = event.frame(Object::new().put("channel", "control"));
        assert_eq!(
            frame,
            r#"{"channel":"control","type":"agent.thought","request":"job-7","source":"thinking","round":1,"content":"hm","timestamp":5}"#
        );
    }

    #[test]
    fn secrets_are_left_out_and_long_texts_shortened() {
        let Body::Tool { payload } = Body::tool(json!({
            "Token": "x", "a": [{"project_token": "x", "tokens": 5}], "text": "é".repeat(9000),
        })) else {
            unreachable!()
        };
        assert_eq!(
            (&payload["Token"], &payload["a"][0]["tokens"]),
            (&json!("[redacted]"), &json!(5))
        );
        assert_eq!(payload["a"][0]["project_token"], "[redacted]");
        assert!(payload["text"].as_str().unwrap().len() < TEXT_MAX + 40);
    }
}
