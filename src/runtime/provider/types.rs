//! What is said to a model and what comes back, in no provider's format (spec: runtime 5.1).

use super::Model;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One question to a model.
pub struct Request<'a> {
    pub model: &'a Model,
    /// The system prompt.
    pub instructions: &'a str,
    pub messages: &'a [Message],
    pub tools: &'a [Tool],
    /// How long to think; `None` leaves it to the model.
    pub effort: Option<Effort>,
    /// Names the conversation, so that the provider can reuse what it has computed for it.
    pub conversation: &'a str,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Message {
    User {
        text: String,
    },
    Assistant(Assistant),
    /// The result of a tool call.
    Tool {
        call_id: String,
        name: String,
        output: String,
        #[serde(default)]
        is_error: bool,
    },
}

/// What a model said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Assistant {
    #[serde(default)]
    pub text: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Parts that only the model which made them understands (its encrypted reasoning), handed back to
    /// it as they are, and to no other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub opaque: Vec<Value>,
    /// `provider/model`.
    #[serde(default)]
    pub origin: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Pairs the call with its result.
    pub id: String,
    pub name: String,
    /// JSON text as the model wrote it; it may be wrong.
    pub arguments: String,
}

/// A tool that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    pub name: &'static str,
    pub description: &'static str,
    /// JSON schema of the arguments.
    pub parameters: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    Minimal,
    Low,
    Medium,
    High,
    #[serde(rename = "xhigh")]
    XHigh,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    Stop,
    /// The model ran out of room.
    Length,
    ToolUse,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens read, those from the cache included.
    pub input: u64,
    pub cache_read: u64,
    /// Tokens written, reasoning included.
    pub output: u64,
    pub reasoning: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    pub message: Assistant,
    pub stop: Stop,
    pub usage: Usage,
}

/// A piece of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delta<'a> {
    Text(&'a str),
    Thinking(&'a str),
}
