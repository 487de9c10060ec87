//! The request body.

use super::super::{Assistant, Effort, Message, Model, Request, ToolCall};
use serde_json::{Value, json};

/// Longest id that the API takes.
const ID_MAX: usize = 64;

pub(super) fn body(request: &Request<'_>) -> Value {
    let mut body = json!({
        "model": request.model.id,
        "stream": true,
        "store": false,
        "input": input(request),
    });
    let mut put = |name: &str, value: Value| body[name] = value;
    if !request.conversation.is_empty() {
        put("prompt_cache_key", id(request.conversation).into());
    }
    if request.model.reasoning {
        // Nothing is stored there, so the model's thoughts travel with the conversation.
        put("include", json!(["reasoning.encrypted_content"]));
        if let Some(effort) = request.effort {
            let effort = clamp(&request.model.id, effort);
            put("reasoning", json!({"effort": effort, "summary": "auto"}));
        }
    }
    if !request.tools.is_empty() {
        let tool = |t: &super::super::Tool| {
            json!({
                "type": "function",
                "name": t.name,
                "description": t.description,
                "parameters": t.parameters,
                // Strict mode would make every optional parameter a required one.
                "strict": false,
            })
        };
        put("tools", request.tools.iter().map(tool).collect());
        put("tool_choice", "auto".into());
        put("parallel_tool_calls", true.into());
    }
    body
}

fn input(request: &Request<'_>) -> Vec<Value> {
    let mut items = Vec::new();
    if !request.instructions.is_empty() {
        let role = if request.model.reasoning { "developer" } else { "system" };
        let content = json!([{"type": "input_text", "text": request.instructions}]);
        items.push(json!({"role": role, "content": content}));
    }
    for (n, message) in request.messages.iter().enumerate() {
        match message {
            Message::User { text } => {
                let content = json!([{"type": "input_text", "text": text}]);
                items.push(json!({"role": "user", "content": content}));
            }
            Message::Assistant(said) => items.extend(assistant(n, said, request.model)),
            Message::Tool { call_id, output, .. } => items.push(json!({
                "type": "function_call_output",
                "call_id": ids(call_id).0,
                "output": output,
            })),
        }
    }
    items
}

fn assistant(n: usize, said: &Assistant, model: &Model) -> Vec<Value> {
    let mut items = Vec::new();
    if said.origin == origin(model) {
        items.extend(said.opaque.iter().cloned());
    }
    if !said.text.is_empty() {
        items.push(json!({
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "id": format!("msg_{n}"),
            "content": [{"type": "output_text", "text": said.text, "annotations": []}],
        }));
    }
    items.extend(said.tool_calls.iter().map(|call| {
        let ToolCall { id, name, arguments } = call;
        let (call_id, item_id) = ids(id);
        let mut item = json!({
            "type": "function_call",
            "call_id": call_id,
            "name": name,
            "arguments": arguments,
        });
        if let Some(item_id) = item_id {
            item["id"] = item_id.into();
        }
        item
    }));
    items
}

/// Who made what is opaque to others.
pub(super) fn origin(model: &Model) -> String {
    format!("{}/{}", model.provider, model.id)
}

/// A call's id is kept as `call_id|item_id`; the second part is wanted only with its prefix.
fn ids(both: &str) -> (String, Option<String>) {
    let (call_id, item_id) = both.split_once('|').map_or((both, None), |(c, i)| (c, Some(i)));
    let item_id = item_id.filter(|i| !i.is_empty()).map(|i| match i.starts_with("fc") {
        true => id(i),
        false => id(&format!("fc_{i}")),
    });
    (id(call_id), item_id)
}

/// An id as the API takes it: `[A-Za-z0-9_-]`, bounded, without `_` at the end.
fn id(s: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let id: String = s.chars().take(ID_MAX).map(allowed).collect();
    id.trim_end_matches('_').to_owned()
}

/// The nearest effort that the model knows.
fn clamp(model: &str, effort: Effort) -> Effort {
    let is = |prefix: &str| model.starts_with(prefix);
    match effort {
        Effort::High | Effort::XHigh if model == "gpt-5.1-codex-mini" => Effort::High,
        _ if model == "gpt-5.1-codex-mini" => Effort::Medium,
        Effort::Minimal if !is("gpt-5") || is("gpt-5.2") || is("gpt-5.3") => Effort::Low,
        Effort::XHigh if !is("gpt-5.2") && !is("gpt-5.3") => Effort::High,
        effort => effort,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_made_acceptable() {
        assert_eq!(ids("call_1|fc_2"), ("call_1".into(), Some("fc_2".into())));
        assert_eq!(ids("call 1_"), ("call_1".into(), None));
        assert_eq!(ids("c|item"), ("c".into(), Some("fc_item".into())));
        assert_eq!(ids(&"x".repeat(99)).0.len(), ID_MAX);
    }

    #[test]
    fn efforts_are_those_that_the_model_knows() {
        for (model, asked, given) in [
            ("gpt-5.3-codex", Effort::Minimal, Effort::Low),
            ("gpt-5.2", Effort::XHigh, Effort::XHigh),
            ("gpt-5.1", Effort::XHigh, Effort::High),
            ("gpt-5.1-codex-mini", Effort::Low, Effort::Medium),
            ("gpt-5.1-codex-mini", Effort::XHigh, Effort::High),
            ("gpt-5", Effort::Minimal, Effort::Minimal),
            ("o3", Effort::Minimal, Effort::Low),
        ] {
            assert_eq!(clamp(model, asked), given, "{model} {asked:?}");
        }
    }
}
