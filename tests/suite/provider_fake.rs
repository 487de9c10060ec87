//! A stand-in for OpenAI's Responses API on loopback. It refuses what the real one would refuse, and
//! answers with the sequence of events that the real one sends, cut into pieces at unkind places.

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

pub const KEY: &str = "sk-test-0123456789";
/// Bytes per HTTP chunk: small enough to cut events, and characters, anywhere.
const CHUNK: usize = 7;
const REASONING: [&str; 3] = ["gpt-5", "gpt-5.1", "gpt-5.3-codex"];
const PLAIN: [&str; 2] = ["gpt-4o-mini", "gpt-4o"];

/// How one request is answered.
#[derive(Clone)]
pub enum Answer {
    /// These events, and the end.
    Events(Vec<Value>),
    /// These events; then the connection breaks.
    Break(Vec<Value>),
    /// These events; then nothing, for as long as the client stays.
    Hang(Vec<Value>),
    Status {
        status: u16,
        headers: &'static str,
        body: Value,
    },
}

pub struct FakeOpenAi {
    pub url: String,
    /// Bodies of the requests that were accepted.
    pub requests: Arc<Mutex<Vec<Value>>>,
    /// Says when a client has gone that was left hanging.
    pub gone: Receiver<()>,
    /// Says when a hanging answer has sent what it had.
    pub hanging: Receiver<()>,
}

struct Shared {
    answers: Mutex<std::vec::IntoIter<Answer>>,
    requests: Arc<Mutex<Vec<Value>>>,
    gone: Sender<()>,
    hanging: Sender<()>,
}

impl FakeOpenAi {
    /// Answers one request after the other; further ones get a 500 that says so.
    pub fn start(answers: Vec<Answer>) -> FakeOpenAi {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (gone_tx, gone) = unbounded();
        let (hanging_tx, hanging) = unbounded();
        let requests: Arc<Mutex<Vec<Value>>> = Arc::default();
        let shared = Arc::new(Shared {
            answers: Mutex::new(answers.into_iter()),
            requests: requests.clone(),
            gone: gone_tx,
            hanging: hanging_tx,
        });
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let shared = shared.clone();
                std::thread::spawn(move || shared.serve(connection.unwrap()));
            }
        });
        FakeOpenAi { url, requests, gone, hanging }
    }
}

impl Shared {
    fn serve(&self, mut connection: TcpStream) {
        let Some((head, body)) = read_request(&connection) else { return };
        let body: Value = match check_head(&head) {
            Ok(()) => serde_json::from_slice(&body).unwrap_or(Value::Null),
            Err(refused) => return refused.send(&mut connection),
        };
        if let Err(refused) = check_body(&body) {
            return refused.send(&mut connection);
        }
        self.requests.lock().unwrap().push(body);
        let next = self.answers.lock().unwrap().next();
        match next {
            Some(Answer::Events(events)) => {
                stream(&mut connection, &events);
                let _ = connection.write_all(b"0\r\n\r\n");
            }
            Some(Answer::Break(events)) => stream(&mut connection, &events),
            Some(Answer::Hang(events)) => {
                stream(&mut connection, &events);
                let _ = self.hanging.send(());
                // A client that goes is seen as the end of what it sends.
                let _ = connection.read(&mut [0]);
                let _ = self.gone.send(());
            }
            Some(Answer::Status { status, headers, body }) => {
                Refused { status, headers, body }.send(&mut connection);
            }
            None => {
                let body = json!({"error": {"message": "the test expected no further request"}});
                Refused { status: 500, headers: "", body }.send(&mut connection);
            }
        }
    }
}

fn read_request(connection: &TcpStream) -> Option<(Vec<String>, Vec<u8>)> {
    let mut reader = BufReader::new(connection);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let length = header(&head, "content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}

fn header(head: &[String], name: &str) -> Option<String> {
    head.iter().skip(1).find_map(|line| {
        let (n, v) = line.split_once(':')?;
        n.eq_ignore_ascii_case(name).then(|| v.trim().to_owned())
    })
}

fn stream(connection: &mut TcpStream, events: &[Value]) {
    let mut text = String::new();
    for event in events {
        text += &format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap());
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
                transfer-encoding: chunked\r\n\r\n";
    let _ = connection.write_all(head.as_bytes());
    for chunk in text.as_bytes().chunks(CHUNK) {
        let _ = connection.write_all(format!("{:x}\r\n", chunk.len()).as_bytes());
        let _ = connection.write_all(chunk);
        let _ = connection.write_all(b"\r\n");
    }
}

struct Refused {
    status: u16,
    headers: &'static str,
    body: Value,
}

impl Refused {
    fn send(&self, connection: &mut TcpStream) {
        let Refused { status, headers, body } = self;
        let body = body.to_string();
        let answer = format!(
            "HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\n{headers}\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        let _ = connection.write_all(answer.as_bytes());
    }
}

fn invalid(message: String, code: &str) -> Refused {
    let body = json!({"error": {
        "message": message, "type": "invalid_request_error", "param": null, "code": code,
    }});
    Refused { status: 400, headers: "", body }
}

fn check_head(head: &[String]) -> Result<(), Refused> {
    let refuse = |status, message: &str, code: &str| {
        let body = json!({"error": {
            "message": message, "type": "invalid_request_error", "param": null, "code": code,
        }});
        Err(Refused { status, headers: "", body })
    };
    if head.first().is_none_or(|line| line != "POST /v1/responses HTTP/1.1") {
        return refuse(404, "Invalid URL", "not_found");
    }
    if header(head, "authorization") != Some(format!("Bearer {KEY}")) {
        return refuse(401, "Incorrect API key provided: sk-***.", "invalid_api_key");
    }
    if header(head, "content-type").is_none_or(|t| t != "application/json") {
        return refuse(415, "Unsupported content type", "unsupported_content_type");
    }
    Ok(())
}

/// Errors as the real API words them.
fn check_body(body: &Value) -> Result<(), Refused> {
    let Some(members) = body.as_object() else {
        return Err(invalid(
            "We could not parse the JSON body of your request.".into(),
            "invalid_json",
        ));
    };
    const KNOWN: [&str; 17] = [
        "model",
        "input",
        "instructions",
        "stream",
        "store",
        "tools",
        "tool_choice",
        "text",
        "parallel_tool_calls",
        "include",
        "reasoning",
        "prompt_cache_key",
        "max_output_tokens",
        "temperature",
        "top_p",
        "metadata",
        "user",
    ];
    if let Some(unknown) = members.keys().find(|k| !KNOWN.contains(&k.as_str())) {
        return Err(invalid(format!("Unknown parameter: '{unknown}'."), "unknown_parameter"));
    }
    let model = body["model"].as_str().unwrap_or_default();
    let reasoning = REASONING.contains(&model);
    if !reasoning && !PLAIN.contains(&model) {
        let message =
            format!("The model `{model}` does not exist or you do not have access to it.");
        let refused = invalid(message, "model_not_found");
        return Err(Refused { status: 404, ..refused });
    }
    if body["stream"] != true || body["store"] != false {
        return Err(invalid("expected a stream that is not stored".into(), "test"));
    }
    if body["prompt_cache_key"].as_str().is_some_and(|k| k.len() > 64) {
        return Err(invalid(
            "Invalid 'prompt_cache_key': string too long.".into(),
            "string_above_max_length",
        ));
    }
    if !reasoning && members.contains_key("reasoning") {
        return Err(invalid("Unsupported parameter: 'reasoning'".into(), "unsupported_parameter"));
    }
    if !reasoning && members.contains_key("include") {
        return Err(invalid(
            "Encrypted content is not supported with this model.".into(),
            "invalid_value",
        ));
    }
    let effort = &body["reasoning"]["effort"];
    if !effort.is_null()
        && !["minimal", "low", "medium", "high"].contains(&effort.as_str().unwrap_or(""))
    {
        return Err(invalid(
            format!("Unsupported value: 'reasoning.effort' {effort}"),
            "unsupported_value",
        ));
    }
    check_input(&body["input"])?;
    check_tools(&body["tools"])
}

fn check_input(input: &Value) -> Result<(), Refused> {
    let wrong = |n: usize, what: &str| {
        Err(invalid(format!("Invalid 'input[{n}]': {what}"), "invalid_value"))
    };
    let Some(items) = input.as_array().filter(|items| !items.is_empty()) else {
        return Err(invalid(
            "Missing required parameter: 'input'.".into(),
            "missing_required_parameter",
        ));
    };
    let mut unanswered = BTreeSet::new();
    for (n, item) in items.iter().enumerate() {
        let text = |name: &str| item[name].as_str().unwrap_or_default();
        match (text("type"), text("role")) {
            ("" | "message", "user" | "system" | "developer") => {
                let parts = item["content"].as_array();
                if parts.is_none_or(|p| {
                    p.iter().any(|p| p["type"] != "input_text" || !p["text"].is_string())
                }) {
                    return wrong(n, "content must be input_text");
                }
            }
            ("message", "assistant") => {
                let id_ok = text("id").starts_with("msg") && text("id").len() <= 64;
                let parts = item["content"].as_array();
                let part_ok = |p: &Value| {
                    p["type"] == "output_text"
                        && p["text"].is_string()
                        && p["annotations"].is_array()
                };
                if !id_ok
                    || text("status") != "completed"
                    || !parts.is_some_and(|p| p.iter().all(part_ok))
                {
                    return wrong(n, "not an output message");
                }
            }
            ("function_call", "") => {
                let id_ok = item["id"].is_null() || text("id").starts_with("fc");
                let arguments: Result<Value, _> = serde_json::from_str(text("arguments"));
                if !id_ok
                    || !is_name(text("name"))
                    || !is_name(text("call_id"))
                    || arguments.is_err()
                {
                    return wrong(n, "not a function call");
                }
                unanswered.insert(text("call_id"));
            }
            ("function_call_output", "") => {
                if !unanswered.remove(text("call_id")) || !item["output"].is_string() {
                    let id = text("call_id");
                    let message =
                        format!("No tool call found for function call output with call_id {id}.");
                    return Err(invalid(message, "invalid_value"));
                }
            }
            ("reasoning", "") => {
                if !text("id").starts_with("rs_")
                    || !item["summary"].is_array()
                    || text("encrypted_content").is_empty()
                {
                    return wrong(n, "Items are not persisted when `store` is set to false.");
                }
            }
            _ => return wrong(n, "unknown kind of item"),
        }
    }
    match unanswered.first() {
        Some(id) => {
            Err(invalid(format!("No tool output found for function call {id}."), "invalid_value"))
        }
        None => Ok(()),
    }
}

fn check_tools(tools: &Value) -> Result<(), Refused> {
    let wrong = |what: String| Err(invalid(what, "invalid_function_parameters"));
    let mut names = BTreeSet::new();
    for tool in tools.as_array().into_iter().flatten() {
        let name = tool["name"].as_str().unwrap_or_default();
        let (schema, properties) = (&tool["parameters"], &tool["parameters"]["properties"]);
        if tool["type"] != "function" || !is_name(name) || !names.insert(name) {
            return wrong(format!("Invalid 'tools': {name}"));
        }
        let required: Vec<_> = schema["required"].as_array().into_iter().flatten().collect();
        let known = |r: &&Value| properties.get(r.as_str().unwrap_or_default()).is_some();
        if schema["type"] != "object" || !properties.is_object() || !required.iter().all(known) {
            return wrong(format!("Invalid schema for function '{name}'"));
        }
        let all_required = properties.as_object().is_some_and(|p| p.len() == required.len());
        if tool["strict"] != false && (!all_required || schema["additionalProperties"] != false) {
            return wrong(format!("Invalid schema for function '{name}': strict mode"));
        }
    }
    Ok(())
}

fn is_name(s: &str) -> bool {
    (1..=64).contains(&s.len())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// The events of an answer, as the API sends them.
pub mod events {
    use serde_json::{Value, json};

    /// One item of the output.
    pub enum Item<'a> {
        Text(&'a str),
        Call { call_id: &'a str, name: &'a str, arguments: Value },
        Reasoning { summary: &'a str },
    }

    /// A whole answer.
    pub fn answer(items: &[Item<'_>]) -> Vec<Value> {
        let mut events = started(items);
        events.push(json!({"type": "response.completed", "response": {
            "status": "completed", "incomplete_details": null, "usage": {
                "input_tokens": 120, "input_tokens_details": {"cached_tokens": 100},
                "output_tokens": 30, "output_tokens_details": {"reasoning_tokens": 7},
                "total_tokens": 150,
            },
        }}));
        events
    }

    /// An answer without its end.
    pub fn started(items: &[Item<'_>]) -> Vec<Value> {
        let mut events = vec![
            json!({"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}}),
            json!({"type": "response.in_progress", "response": {"id": "resp_1"}}),
            json!({"type": "response.an_event_of_tomorrow", "delta": 5}),
        ];
        for (n, item) in items.iter().enumerate() {
            item.events(n, &mut events);
        }
        events
    }

    impl Item<'_> {
        fn events(&self, n: usize, events: &mut Vec<Value>) {
            match self {
                Item::Text(text) => {
                    let item = |content: Value| {
                        json!({"type": "message", "id": format!("msg_{n}"),
                        "status": "completed", "role": "assistant", "content": content})
                    };
                    events.push(added(n, item(json!([]))));
                    for piece in pieces(text) {
                        events
                            .push(json!({"type": "response.output_text.delta", "output_index": n,
                            "item_id": format!("msg_{n}"), "content_index": 0, "delta": piece}));
                    }
                    let part = json!({"type": "output_text", "text": text, "annotations": []});
                    events.push(done(n, item(json!([part]))));
                }
                Item::Call { call_id, name, arguments } => {
                    let arguments = arguments.to_string();
                    let item = |arguments: &str| {
                        json!({"type": "function_call", "id": format!("fc_{n}"),
                        "call_id": call_id, "name": name, "arguments": arguments})
                    };
                    events.push(added(n, item("")));
                    for piece in pieces(&arguments) {
                        events.push(json!({"type": "response.function_call_arguments.delta",
                            "output_index": n, "item_id": format!("fc_{n}"), "delta": piece}));
                    }
                    events.push(json!({"type": "response.function_call_arguments.done",
                        "output_index": n, "arguments": arguments}));
                    events.push(done(n, item(&arguments)));
                }
                Item::Reasoning { summary } => {
                    let item = |encrypted: Value| {
                        json!({"type": "reasoning", "id": format!("rs_{n}"),
                        "summary": [], "encrypted_content": encrypted})
                    };
                    events.push(added(n, item(json!("gAAAA-started"))));
                    events.push(json!({"type": "response.reasoning_summary_text.delta",
                        "output_index": n, "summary_index": 0, "delta": summary}));
                    events.push(done(n, item(json!("gAAAA-finished"))));
                }
            }
        }
    }

    fn added(n: usize, item: Value) -> Value {
        json!({"type": "response.output_item.added", "output_index": n, "item": item})
    }

    fn done(n: usize, item: Value) -> Value {
        json!({"type": "response.output_item.done", "output_index": n, "item": item})
    }

    fn pieces(text: &str) -> Vec<String> {
        let characters: Vec<char> = text.chars().collect();
        characters.chunks(3).map(|c| c.iter().collect()).collect()
    }
}
