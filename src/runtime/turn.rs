//! One turn of a conversation: ask the model, run the tools it calls, tell it what came of them, until
//! it has a reply. Knows neither queues nor the database.

use super::event::Body;
use super::history::{message_tokens, shorten, tokens};
use super::provider::{
    self, Asked, Call, Delta, Effort, Message, Model, Observer, Provider, ProviderError, Request,
    Response, Retry, Stop, ToolCall,
};
use super::tools::{self, Place, ToolCode, ToolError};
use crate::base::{Code, Error, Result, TreePath};
use crate::vfs::{Cx, Tree};
use serde_json::{Value, json};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// Questions to the model in one turn.
pub const ROUNDS_MAX: usize = 32;
/// Tool calls in one turn.
pub const CALLS_MAX: usize = 128;
/// Longest tool result that the model is shown, in bytes; of longer ones, head and tail.
const OUTPUT_MAX: usize = 256 * 1024;
/// What is left of older results when the model's context runs out.
const OUTPUT_MIN: usize = 2 * 1024;
/// Tokens kept free beyond what was counted, which is a guess (spec: runtime 6.5).
const SAFETY_TOKENS: usize = 1024;
/// Most of the context that is set aside for the answer.
const ANSWER_TOKENS: usize = 16 * 1024;
/// A write here is the reply, and ends the turn (spec: runtime 6.5).
const REPLY: [&str; 2] = ["/agents/self/chat/control/reply", "/global/chat/control/reply"];

/// All that a turn works with.
pub(super) struct Turn<'a> {
    pub cx: &'a Cx,
    pub tree: &'a dyn Tree,
    pub provider: &'a dyn Provider,
    pub asked: &'a Asked,
    pub model: &'a Model,
    pub effort: Option<Effort>,
    pub instructions: &'a str,
    pub conversation: &'a str,
    /// Whether the agent may use a tool.
    pub allows: &'a (dyn Fn(&str) -> bool + Sync),
    /// Calls of one answer that run at the same time.
    pub inflight_max: usize,
    pub emit: &'a (dyn Fn(Body) + Sync),
}

/// What came of a turn, and what there is to remember of it: the message, whole rounds, the reply.
pub(super) struct Said {
    pub reply: Result<String>,
    pub messages: Vec<Message>,
}

impl Turn<'_> {
    /// `earlier` are the turns that the model is shown, oldest first.
    pub(super) fn run(&self, earlier: Vec<Vec<Message>>, text: &str) -> Said {
        let mut messages = vec![Message::User { text: text.to_owned() }];
        let reply = self.rounds(earlier, &mut messages);
        Said { reply, messages }
    }

    fn rounds(
        &self,
        mut earlier: Vec<Vec<Message>>,
        messages: &mut Vec<Message>,
    ) -> Result<String> {
        let tools = tools::offered(self.allows);
        let overhead = tokens(self.instructions)
            + tools
                .iter()
                .map(|t| tokens(t.description) + tokens(&t.parameters.to_string()))
                .sum::<usize>()
            + SAFETY_TOKENS
            + ANSWER_TOKENS.min(self.model.output as usize);
        let budget = (self.model.context as usize).saturating_sub(overhead);
        let mut calls = 0;
        for round in 1..=ROUNDS_MAX {
            self.check()?;
            fit(&mut earlier, messages, budget);
            let shown: Vec<Message> = earlier.iter().flatten().chain(&*messages).cloned().collect();
            let response = self.ask(&tools, &shown, round)?;
            if response.message.tool_calls.is_empty() {
                let reply = reply_text(&response)?;
                messages.push(Message::Assistant(response.message));
                return Ok(reply);
            }
            calls += response.message.tool_calls.len();
            if calls > CALLS_MAX {
                return Err(too_much(&format!("{CALLS_MAX} tool calls")));
            }
            let (results, reply) = self.call_tools(round, &response.message.tool_calls);
            self.check()?;
            messages.push(Message::Assistant(response.message));
            messages.extend(results);
            if let Some(reply) = reply {
                return Ok(reply);
            }
        }
        Err(too_much(&format!("{ROUNDS_MAX} rounds")))
    }

    fn check(&self) -> Result<()> {
        self.cx.check().map_err(|e| match e.code {
            Code::Cancelled => Error::new(Code::RuntimeCancelled, "cancelled"),
            _ => Error::new(Code::RuntimeTimeout, "runtime operation timeout"),
        })
    }

    fn ask(
        &self,
        tools: &[provider::Tool],
        messages: &[Message],
        round: usize,
    ) -> Result<Response> {
        let request = Request {
            model: self.model,
            instructions: self.instructions,
            messages,
            tools,
            effort: self.effort,
            conversation: self.conversation,
        };
        let call = Call { deadline: self.cx.deadline, cancel: self.cx.cancel.clone() };
        let Turn { emit, asked, model, .. } = *self;
        let mut told = Told { emit, asked, model, thinking: String::new() };
        let since = Instant::now();
        let outcome = provider::stream(self.provider, &request, &call, &mut told);
        asked.done(since, &outcome);
        let thinking = told.thinking;
        let response = outcome.map_err(|e| {
            (self.emit)(Body::debug("provider.error", described(self.model, &e)));
            // The turn's own end says more than what it did to the provider's answer.
            self.check().err().unwrap_or_else(|| e.into())
        })?;
        if !thinking.is_empty() {
            (self.emit)(Body::Thought { source: "thinking", round, content: thinking });
        }
        let said = &response.message;
        if !said.text.is_empty() && !said.tool_calls.is_empty() {
            let content = said.text.clone();
            (self.emit)(Body::Thought { source: "text", round, content });
        }
        let payload = json!({
            "round": round,
            "model": self.model.id,
            "stop_reason": response.stop,
            "tool_calls": said.tool_calls.len(),
            "usage": response.usage,
        });
        (self.emit)(Body::debug("provider.response", payload));
        Ok(response)
    }

    /// Runs the calls of one answer; results in the order of the calls, and the reply if one was it.
    fn call_tools(&self, round: usize, calls: &[ToolCall]) -> (Vec<Message>, Option<String>) {
        let mut results = Vec::with_capacity(calls.len());
        for group in calls.chunks(self.inflight_max.max(1)) {
            match group {
                [call] => results.push(self.call_tool(round, call)),
                group => std::thread::scope(|scope| {
                    let run = |call| {
                        let thread = std::thread::Builder::new().name("tool".into());
                        thread.spawn_scoped(scope, move || self.call_tool(round, call))
                    };
                    let running: Vec<_> = group.iter().map(|call| (call, run(call))).collect();
                    results.extend(running.into_iter().map(|(call, thread)| match thread {
                        Ok(thread) => thread.join().expect("a tool's panic was caught"),
                        // The host has no thread left: one after the other then.
                        Err(_) => self.call_tool(round, call),
                    }));
                }),
            }
        }
        let reply = results.iter_mut().filter_map(|(_, reply)| reply.take()).next_back();
        (results.into_iter().map(|(message, _)| message).collect(), reply)
    }

    fn call_tool(&self, round: usize, call: &ToolCall) -> (Message, Option<String>) {
        let ToolCall { id, name, arguments } = call;
        let shown = serde_json::from_str(arguments).unwrap_or_else(|_| json!(arguments));
        (self.emit)(Body::tool(json!({
            "phase": "call", "round": round, "tool_call_id": id, "tool": name, "arguments": shown,
        })));
        let reply = if (self.allows)(name) { reply_of(call) } else { None };
        let outcome = match &reply {
            Some((_, delivered)) => Ok(delivered.clone()),
            None => catch_unwind(AssertUnwindSafe(|| self.run_tool(name, arguments)))
                .unwrap_or_else(|_| Err(ToolError::new(ToolCode::ExecutionFailed, "it crashed"))),
        };
        let is_error = outcome.is_err();
        let (member, result) = match outcome {
            Ok(result) => ("result", result),
            Err(e) => ("error", e.to_json()),
        };
        (self.emit)(Body::tool(json!({
            "phase": "result", "round": round, "tool_call_id": id, "tool": name, "ok": !is_error,
            member: result,
        })));
        let output = if is_error { json!({"error": result}) } else { result };
        let message = Message::Tool {
            call_id: id.clone(),
            name: name.clone(),
            output: shorten(&output.to_string(), OUTPUT_MAX),
            is_error,
        };
        (message, reply.map(|(text, _)| text))
    }

    fn run_tool(&self, name: &str, arguments: &str) -> Result<Value, ToolError> {
        if tools::schema_of(name).is_some() && !(self.allows)(name) {
            let message = format!("this agent may not use {name}");
            return Err(ToolError::new(ToolCode::ToolNotExecutable, message));
        }
        tools::run(Place { tree: self.tree, cx: self.cx }, name, arguments)
    }
}

/// Passes on what the provider says while it says it.
struct Told<'a> {
    emit: &'a (dyn Fn(Body) + Sync),
    asked: &'a Asked,
    model: &'a Model,
    thinking: String,
}

impl Observer for Told<'_> {
    fn delta(&mut self, delta: Delta<'_>) {
        let (phase, detail) = match delta {
            Delta::Text(text) => ("text", text),
            Delta::Thinking(text) => {
                self.thinking.push_str(text);
                ("thinking", text)
            }
        };
        (self.emit)(Body::Progress { phase, status: "delta", detail: detail.to_owned() });
    }

    fn retry(&mut self, retry: &Retry<'_>) {
        self.thinking.clear();
        self.asked.retries.add(1);
        let Retry { attempt, delay, error } = retry;
        let detail = format!("attempt {attempt} failed ({}); trying again", error.message);
        (self.emit)(Body::Progress { phase: "provider", status: "retry", detail });
        let mut payload = described(self.model, error);
        payload["attempt"] = (*attempt).into();
        payload["delay_ms"] = (delay.as_millis() as u64).into();
        (self.emit)(Body::debug("provider.retry", payload));
    }
}

fn described(model: &Model, e: &ProviderError) -> Value {
    json!({
        "provider": model.provider,
        "model": model.id,
        "error": e.message,
        "mapped_error": e.failure.code().wire(),
        "status": e.status,
        "provider_code": e.provider_code,
        "retryable": e.failure.is_transient(),
    })
}

fn reply_text(response: &Response) -> Result<String> {
    let text = response.message.text.trim();
    match (response.stop, text.is_empty()) {
        (Stop::Length, true) => Err(Error::new(
            Code::ExecutionFailed,
            "the model used up its output limit before it said anything",
        )),
        (Stop::Length, false) => Ok(format!("{text}\n\n[cut off at the model's output limit]")),
        (_, true) => Ok("ok".to_owned()),
        (_, false) => Ok(text.to_owned()),
    }
}

/// The reply that a call delivers, and what the call returns.
fn reply_of(call: &ToolCall) -> Option<(String, Value)> {
    if call.name != "file_write" {
        return None;
    }
    let arguments: Value = serde_json::from_str(&call.arguments).ok()?;
    let path = arguments["path"].as_str()?;
    let is_reply = TreePath::parse(path).is_ok_and(|p| REPLY.iter().any(|r| p.as_os_str() == *r));
    let text = arguments["content"].as_str()?.trim();
    if !is_reply || text.is_empty() {
        return None;
    }
    let delivered = json!({
        "result": {
            "path": path.trim_start_matches('/'),
            "bytes_written": text.len(),
            "append": false,
            "ready": true,
            "wait_until_ready": true,
        },
        "chat_reply": {"delivered": true, "content": text},
    });
    Some((text.to_owned(), delivered))
}

fn too_much(what: &str) -> Error {
    let message = format!("provider tool loop exceeded limits: no reply after {what}");
    Error::new(Code::ExecutionFailed, message)
}

/// Makes room: the oldest turns go first, then the middles of the oldest tool results of this turn.
fn fit(earlier: &mut Vec<Vec<Message>>, current: &mut [Message], budget: usize) {
    let sum = |messages: &[Message]| messages.iter().map(message_tokens).sum::<usize>();
    let mut used = sum(current) + earlier.iter().map(|turn| sum(turn)).sum::<usize>();
    while used > budget && !earlier.is_empty() {
        used -= sum(&earlier.remove(0));
    }
    // The newest result is what the model just asked for.
    let newest = current.len().saturating_sub(1);
    for message in &mut current[..newest] {
        if used <= budget {
            return;
        }
        let before = message_tokens(message);
        if let Message::Tool { output, .. } = message
            && output.len() > 2 * OUTPUT_MIN
        {
            *output = shorten(output, OUTPUT_MIN);
            used -= before.saturating_sub(message_tokens(message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::provider::Assistant;

    fn write(path: &str, content: &str) -> ToolCall {
        let arguments = json!({"path": path, "content": content}).to_string();
        ToolCall { id: "c".into(), name: "file_write".into(), arguments }
    }

    #[test]
    fn the_reply_file_is_known_in_every_spelling() {
        for path in [
            REPLY[0],
            REPLY[1],
            "agents/self/chat/control/reply",
            "//agents/self//chat/./control/reply/",
        ] {
            let (text, delivered) = reply_of(&write(path, " hi\n")).unwrap();
            assert_eq!(
                (text.as_str(), &delivered["chat_reply"]["delivered"]),
                ("hi", &json!(true))
            );
        }
        assert!(reply_of(&write(REPLY[0], "  \n")).is_none());
        assert!(reply_of(&write("/agents/self/chat/control/reply2", "x")).is_none());
        let read = ToolCall { name: "file_read".into(), ..write(REPLY[0], "x") };
        assert!(reply_of(&read).is_none());
    }

    #[test]
    fn room_is_made_from_the_oldest_on() {
        let tool = |n: usize| Message::Tool {
            call_id: n.to_string(),
            name: "t".into(),
            output: "x".repeat(40_000),
            is_error: false,
        };
        let said = |text: &str| {
            Message::Assistant(Assistant { text: text.into(), ..Assistant::default() })
        };
        let mut earlier = vec![vec![said(&"a".repeat(4000))], vec![said("recent")]];
        let mut current = vec![Message::User { text: "q".into() }, tool(1), tool(2), tool(3)];
        let lengths = |current: &[Message]| -> Vec<usize> {
            let length = |m: &Message| match m {
                Message::Tool { output, .. } => output.len(),
                _ => 0,
            };
            current.iter().map(length).collect()
        };
        fit(&mut earlier, &mut current, 1 << 20);
        assert_eq!((earlier.len(), lengths(&current)), (2, vec![0, 40_000, 40_000, 40_000]));
        fit(&mut earlier, &mut current, 30_500);
        assert_eq!((earlier.len(), lengths(&current)), (1, vec![0, 40_000, 40_000, 40_000]));
        fit(&mut earlier, &mut current, 25_000);
        assert_eq!(earlier.len(), 0);
        let cut = lengths(&current);
        assert!(cut[1] < 3000 && cut[2..] == [40_000, 40_000], "{cut:?}");
        fit(&mut earlier, &mut current, 10);
        assert_eq!(lengths(&current)[3], 40_000);
    }
}
