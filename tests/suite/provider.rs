//! The OpenAI provider against a strict stand-in for the API.

use super::provider_fake::events::{Item, answer, started};
use super::provider_fake::{Answer, FakeOpenAi, KEY};
use serde_json::{Value, json};
use spiderweb::base::{Cancel, Deadline};
use spiderweb::config::credentials::Credentials;
use spiderweb::config::{Config, Env};
use spiderweb::runtime::provider::{
    self, Assistant, Call, Delta, Effort, Failure, Message, Observer, ProviderError, Request,
    Response, Retry, Stop, Tool, ToolCall, Usage,
};
use std::sync::Arc;
use std::time::Duration;

const PATIENCE_MS: u64 = 20_000;

/// What an observer was told.
#[derive(Default)]
struct Seen {
    text: String,
    thinking: String,
    retries: Vec<Failure>,
}

impl Observer for Seen {
    fn delta(&mut self, delta: Delta<'_>) {
        match delta {
            Delta::Text(text) => self.text += text,
            Delta::Thinking(text) => self.thinking += text,
        }
    }

    fn retry(&mut self, retry: &Retry<'_>) {
        self.retries.push(retry.error.failure);
        (self.text, self.thinking) = Default::default();
    }
}

struct Ask<'a> {
    url: &'a str,
    model: &'a str,
    key: &'a str,
    messages: Vec<Message>,
    effort: Option<Effort>,
    call: Call,
}

impl<'a> Ask<'a> {
    fn new(fake: &'a FakeOpenAi) -> Ask<'a> {
        Ask {
            url: &fake.url,
            model: "gpt-4o-mini",
            key: KEY,
            messages: vec![user("Grüße")],
            effort: None,
            call: Call { deadline: Deadline::after_ms(PATIENCE_MS), cancel: Cancel::new() },
        }
    }

    fn run(&self) -> (Result<Response, ProviderError>, Seen) {
        let settings = spiderweb::config::Provider {
            base_url: Some(self.url.to_owned()),
            ..Config::defaults().provider
        };
        let env: Env = [("OPENAI_API_KEY", self.key)].into_iter().collect();
        let credentials = Arc::new(Credentials::from_env(env.clone()));
        let setup = provider::Setup { settings: &settings, credentials, env: &env };
        let openai = provider::make("openai", &setup).unwrap();
        let model = provider::model("openai", Some(self.model));
        let request = Request {
            model: &model,
            instructions: "Be brief.",
            messages: &self.messages,
            tools: &[tool()],
            effort: self.effort,
            conversation: "a conversation/with an id that is far too long for the api, which takes only 64",
        };
        let mut seen = Seen::default();
        let outcome = provider::stream(&*openai, &request, &self.call, &mut seen);
        (outcome, seen)
    }
}

fn user(text: &str) -> Message {
    Message::User { text: text.into() }
}

fn tool() -> Tool {
    let parameters = json!({"type": "object", "required": ["path"], "properties": {
        "path": {"type": "string", "description": "where"},
        "max_bytes": {"type": "integer", "description": "how much"},
    }});
    Tool { name: "file_read", description: "Reads a file.", parameters }
}

fn status(status: u16, headers: &'static str, error: Value) -> Answer {
    Answer::Status { status, headers, body: json!({ "error": error }) }
}

fn said(text: &str) -> Answer {
    Answer::Events(answer(&[Item::Text(text)]))
}

#[test]
fn a_streamed_answer_arrives_whole_however_it_is_cut() {
    let text = "Grüße aus Köln, ¡olé! 🕸 done";
    let fake = FakeOpenAi::start(vec![said(text)]);
    let (outcome, seen) = Ask::new(&fake).run();
    let response = outcome.unwrap();
    assert_eq!((response.message.text.as_str(), seen.text.as_str()), (text, text));
    assert_eq!(response.stop, Stop::Stop);
    assert_eq!(response.usage, Usage { input: 120, cache_read: 100, output: 30, reasoning: 7 });
    let requests = fake.requests.lock().unwrap();
    assert_eq!(requests[0]["input"][0]["role"], "system");
    assert_eq!(requests[0]["input"][1]["content"][0]["text"], "Grüße");
    assert!(requests[0].get("reasoning").is_none());
}

#[test]
fn tool_calls_and_thoughts_go_back_and_forth() {
    let call =
        |id, path| Item::Call { call_id: id, name: "file_read", arguments: json!({"path": path}) };
    let fake = FakeOpenAi::start(vec![
        Answer::Events(answer(&[
            Item::Reasoning { summary: "Two files." },
            Item::Text("Let me look."),
            call("call_a", "/ä"),
            call("call_b", "/b"),
        ])),
        said("Both are empty."),
        said("Another model reads this too."),
    ]);
    let mut ask = Ask { model: "gpt-5.1", effort: Some(Effort::XHigh), ..Ask::new(&fake) };
    let (first, seen) = ask.run();
    let first = first.unwrap();
    assert_eq!((seen.text.as_str(), seen.thinking.as_str()), ("Let me look.", "Two files."));
    assert_eq!(first.stop, Stop::ToolUse);
    let calls: Vec<(&str, &str)> =
        first.message.tool_calls.iter().map(|c| (c.id.as_str(), c.arguments.as_str())).collect();
    assert_eq!(calls, [("call_a|fc_2", r#"{"path":"/ä"}"#), ("call_b|fc_3", r#"{"path":"/b"}"#)]);

    ask.messages.push(Message::Assistant(first.message.clone()));
    for call in &first.message.tool_calls {
        ask.messages.push(Message::Tool {
            call_id: call.id.clone(),
            name: call.name.clone(),
            output: String::new(),
            is_error: false,
        });
    }
    assert_eq!(ask.run().0.unwrap().message.text, "Both are empty.");
    ask.model = "gpt-4o";
    ask.effort = None;
    ask.run().0.unwrap();

    let requests = fake.requests.lock().unwrap();
    assert_eq!(requests[0]["reasoning"]["effort"], "high");
    let kinds = |n: usize| -> Vec<String> {
        let kind = |i: &Value| i["type"].as_str().or(i["role"].as_str()).unwrap().to_owned();
        requests[n]["input"].as_array().unwrap().iter().map(kind).collect()
    };
    let outputs = ["function_call_output", "function_call_output"];
    let calls = ["message", "function_call", "function_call"];
    let head = ["developer", "user", "reasoning"];
    assert_eq!(kinds(1), [head.as_slice(), &calls, &outputs].concat());
    assert_eq!(requests[1]["input"][2]["encrypted_content"], "gAAAA-finished");
    assert_eq!(kinds(2), [["system", "user"].as_slice(), &calls, &outputs].concat());
}

#[test]
fn the_stand_in_refuses_what_the_api_refuses() {
    let fake = FakeOpenAi::start(vec![]);
    let orphan = Message::Tool {
        call_id: "call_x".into(),
        name: "file_read".into(),
        output: "x".into(),
        is_error: false,
    };
    let call = ToolCall { id: "call_y".into(), name: "file_read".into(), arguments: "{}".into() };
    let unanswered =
        Message::Assistant(Assistant { tool_calls: vec![call], ..Assistant::default() });
    for (message, expected) in
        [(orphan, "No tool call found"), (unanswered, "No tool output found")]
    {
        let ask = Ask { messages: vec![user("x"), message], ..Ask::new(&fake) };
        let e = ask.run().0.unwrap_err();
        assert_eq!((e.failure, e.status), (Failure::Invalid, Some(400)));
        assert!(e.message.contains(expected), "{}", e.message);
    }
    let e = Ask { key: "sk-wrong", ..Ask::new(&fake) }.run().0.unwrap_err();
    assert_eq!((e.failure, e.provider_code.as_deref()), (Failure::Auth, Some("invalid_api_key")));
    let e = Ask { model: "gpt-99", ..Ask::new(&fake) }.run().0.unwrap_err();
    assert_eq!(e.failure, Failure::ModelNotFound);
    assert!(e.message.contains("gpt-99"), "{}", e.message);
    let e = Ask { key: " ", ..Ask::new(&fake) }.run().0.unwrap_err();
    assert_eq!(e.failure, Failure::MissingKey);
    assert!(fake.requests.lock().unwrap().is_empty());
}

#[test]
fn what_may_pass_is_tried_again_and_the_rest_is_not() {
    let overloaded = || status(503, "retry-after: 0\r\n", json!({"message": "overloaded"}));
    let limited = || status(429, "retry-after-ms: 1\r\n", json!({"code": "rate_limit_exceeded"}));
    let half = started(&[Item::Text("half of it")]);
    let failed = json!({"type": "response.failed", "response": {
        "error": {"code": "invalid_prompt", "message": "no"}}});

    // The answer that broke off is void; what counts is the one that came in the end.
    let fake = FakeOpenAi::start(vec![
        limited(),
        Answer::Break(half.clone()),
        overloaded(),
        said("whole"),
    ]);
    let (outcome, seen) = Ask::new(&fake).run();
    assert_eq!(outcome.unwrap().message.text, "whole");
    assert_eq!(seen.text, "whole");
    assert_eq!(seen.retries, [Failure::RateLimited, Failure::Unavailable, Failure::Unavailable]);

    for (answers, failure, requests) in [
        (vec![overloaded(); 5], Failure::Unavailable, 4),
        // Longer than the operation may take: no use in waiting.
        (vec![status(429, "retry-after: 3600\r\n", json!({})), said("x")], Failure::RateLimited, 1),
        (
            vec![status(429, "", json!({"code": "insufficient_quota"})), said("x")],
            Failure::QuotaExceeded,
            1,
        ),
        (vec![status(403, "", json!({"message": "region"})), said("x")], Failure::Auth, 1),
        (vec![Answer::Events([half, vec![failed]].concat()), said("x")], Failure::Invalid, 1),
    ] {
        let fake = FakeOpenAi::start(answers);
        let e = Ask::new(&fake).run().0.unwrap_err();
        assert_eq!(e.failure, failure, "{}", e.message);
        assert_eq!(fake.requests.lock().unwrap().len(), requests, "{failure:?}");
    }
}

#[test]
fn an_answer_that_was_cut_short_says_so() {
    let incomplete = |reason: &str| {
        json!({"type": "response.incomplete", "response": {
        "status": "incomplete", "incomplete_details": {"reason": reason}}})
    };
    let mut text = started(&[Item::Text("as far as it")]);
    text.push(incomplete("max_output_tokens"));
    let item = json!({"type": "function_call", "id": "fc_0", "call_id": "c", "name": "file_read", "arguments": ""});
    let call = vec![
        json!({"type": "response.output_item.added", "output_index": 0, "item": item}),
        json!({"type": "response.function_call_arguments.delta", "output_index": 0, "delta": "{\"pa"}),
        incomplete("max_output_tokens"),
    ];
    let filtered = vec![incomplete("content_filter")];
    let fake = FakeOpenAi::start([text, call, filtered].map(Answer::Events).into());
    let cut = Ask::new(&fake).run().0.unwrap();
    assert_eq!((cut.stop, cut.message.text.as_str()), (Stop::Length, "as far as it"));
    let cut = Ask::new(&fake).run().0.unwrap();
    assert_eq!((cut.stop, cut.message.tool_calls.len()), (Stop::Length, 0));
    assert_eq!(Ask::new(&fake).run().0.unwrap_err().failure, Failure::Failed);
}

#[test]
fn cancelling_closes_the_connection_in_the_middle_of_a_stream() {
    let fake = FakeOpenAi::start(vec![Answer::Hang(started(&[Item::Text("and then")]))]);
    let ask = Ask::new(&fake);
    let cancel = ask.call.cancel.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let hanging = fake.hanging.recv_timeout(Duration::from_millis(PATIENCE_MS));
            cancel.cancel();
            hanging.unwrap();
        });
        assert_eq!(ask.run().0.unwrap_err().failure, Failure::Cancelled);
    });
    fake.gone.recv_timeout(Duration::from_millis(PATIENCE_MS)).unwrap();
}

#[test]
fn a_stream_that_stalls_ends_with_the_deadline() {
    let fake = FakeOpenAi::start(vec![Answer::Hang(started(&[Item::Text("and then")]))]);
    let call = Call { deadline: Deadline::after_ms(300), cancel: Cancel::new() };
    let e = Ask { call, ..Ask::new(&fake) }.run().0.unwrap_err();
    assert_eq!(e.failure, Failure::Timeout, "{}", e.message);
    fake.gone.recv_timeout(Duration::from_millis(PATIENCE_MS)).unwrap();
}

#[test]
fn loopback_is_reached_without_the_proxy() {
    // A proxy that nobody could use; in a process of its own, for the environment is shared.
    let name = "provider::a_streamed_answer_arrives_whole_however_it_is_cut";
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .envs(
            ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]
                .map(|v| (v, "http://127.0.0.1:1")),
        )
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}
