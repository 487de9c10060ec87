//! The stream of events becomes an answer (spec: runtime 5.3, the table of events).

use super::super::{
    Assistant, Delta, Failure, Model, ProviderError, Response, Stop, ToolCall, Usage,
};
use super::request::origin;
use serde_json::Value;
use std::collections::BTreeMap;

/// Most that one answer may hold, in bytes of text and arguments.
const ANSWER_MAX: usize = 8 << 20;
/// Most items (texts, calls, thoughts) of one answer.
const ITEMS_MAX: usize = 256;

/// An answer under construction.
pub(super) struct Answer<'m> {
    model: &'m Model,
    /// By their place in the output.
    items: BTreeMap<u64, Item>,
    bytes: usize,
}

/// A piece of the output: `text` is a message's text or a call's arguments as far as they have come.
#[derive(Default)]
struct Item {
    text: String,
    /// The item as the API describes it, complete at the end.
    described: Value,
}

type Event<'e> = &'e Value;
type On<'o> = &'o mut dyn FnMut(Delta<'_>);

impl<'m> Answer<'m> {
    pub(super) fn new(model: &'m Model) -> Answer<'m> {
        Answer { model, items: BTreeMap::new(), bytes: 0 }
    }

    /// Takes the data of one event; the answer, once it is complete. What is not understood is skipped:
    /// the API adds events at any time.
    pub(super) fn event(
        &mut self,
        data: &[u8],
        on: On<'_>,
    ) -> Result<Option<Response>, ProviderError> {
        let Ok(event) = serde_json::from_slice::<Value>(data) else { return Ok(None) };
        let delta = event["delta"].as_str().unwrap_or_default();
        match event["type"].as_str().unwrap_or_default() {
            "response.output_item.added" => self.item(&event)?.described = event["item"].clone(),
            "response.output_item.done" => self.item_done(&event, on)?,
            "response.output_text.delta" | "response.refusal.delta" => {
                self.append(&event, delta)?;
                on(Delta::Text(delta));
            }
            "response.reasoning_summary_text.delta" => on(Delta::Thinking(delta)),
            "response.function_call_arguments.delta" => self.append(&event, delta)?,
            "response.function_call_arguments.done" => {
                let arguments = event["arguments"].as_str().unwrap_or_default();
                self.item(&event)?.text.clear();
                self.append(&event, arguments)?;
            }
            "response.completed" | "response.incomplete" | "response.done" => {
                return self.finish(&event["response"]).map(Some);
            }
            "response.failed" => {
                return Err(ProviderError::from_body(None, &event["response"]["error"]));
            }
            "error" if event["error"].is_object() => {
                return Err(ProviderError::from_body(None, &event["error"]));
            }
            "error" => return Err(ProviderError::from_body(None, &event)),
            _ => {}
        }
        Ok(None)
    }

    fn item(&mut self, event: Event<'_>) -> Result<&mut Item, ProviderError> {
        let at = event["output_index"].as_u64().unwrap_or(0);
        if self.items.len() >= ITEMS_MAX && !self.items.contains_key(&at) {
            return Err(ProviderError::new(Failure::Protocol, "the answer has too many parts"));
        }
        Ok(self.items.entry(at).or_default())
    }

    fn append(&mut self, event: Event<'_>, text: &str) -> Result<(), ProviderError> {
        self.bytes += text.len();
        if self.bytes > ANSWER_MAX {
            return Err(ProviderError::new(Failure::Protocol, "the answer is too large"));
        }
        self.item(event)?.text.push_str(text);
        Ok(())
    }

    /// The finished item has the last word over its pieces.
    fn item_done(&mut self, event: Event<'_>, on: On<'_>) -> Result<(), ProviderError> {
        let described = &event["item"];
        let whole = match described["type"].as_str() {
            Some("message") => Some(message_text(described)),
            Some("function_call") => described["arguments"].as_str().map(str::to_owned),
            _ => None,
        };
        let item = self.item(event)?;
        if let Some(whole) = whole.filter(|w| !w.is_empty()) {
            if item.text.is_empty() && described["type"] == "message" {
                on(Delta::Text(&whole));
            }
            item.text = whole;
        }
        item.described = described.clone();
        Ok(())
    }

    fn finish(&mut self, response: &Value) -> Result<Response, ProviderError> {
        let cut = match response["status"].as_str() {
            Some("incomplete") => true,
            Some("failed" | "cancelled") => {
                return Err(ProviderError::from_body(None, &response["error"]));
            }
            _ => false,
        };
        let reason = response["incomplete_details"]["reason"].as_str();
        if cut && reason == Some("content_filter") {
            let filtered = "the provider's content filter stopped the answer";
            return Err(ProviderError::new(Failure::Failed, filtered));
        }
        let mut message = Assistant { origin: origin(self.model), ..Assistant::default() };
        let mut texts = Vec::new();
        for item in std::mem::take(&mut self.items).into_values() {
            match item.described["type"].as_str().unwrap_or_default() {
                "function_call" => message.tool_calls.extend(tool_call(item, cut)),
                "reasoning" if item.described["encrypted_content"].is_string() => {
                    message.opaque.push(item.described);
                }
                "reasoning" => {}
                _ => texts.push(item.text),
            }
        }
        message.text = texts.join("\n");
        let stop = match (message.tool_calls.is_empty(), cut) {
            (false, _) => Stop::ToolUse,
            (true, true) => Stop::Length,
            (true, false) => Stop::Stop,
        };
        Ok(Response { message, stop, usage: usage(&response["usage"]) })
    }
}

fn message_text(item: &Value) -> String {
    let parts = item["content"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |part: &Value| {
        part["text"].as_str().or(part["refusal"].as_str()).unwrap_or_default().to_owned()
    };
    parts.iter().map(text).collect()
}

/// A call; not one whose arguments were cut off with the answer.
fn tool_call(item: Item, cut: bool) -> Option<ToolCall> {
    let text = |name: &str| item.described[name].as_str().unwrap_or_default();
    if cut && serde_json::from_str::<Value>(&item.text).is_err() {
        return None;
    }
    Some(ToolCall {
        id: format!("{}|{}", text("call_id"), text("id")),
        name: text("name").to_owned(),
        arguments: item.text,
    })
}

fn usage(usage: &Value) -> Usage {
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    Usage {
        input: count(&usage["input_tokens"]),
        cache_read: count(&usage["input_tokens_details"]["cached_tokens"]),
        output: count(&usage["output_tokens"]),
        reasoning: count(&usage["output_tokens_details"]["reasoning_tokens"]),
    }
}
