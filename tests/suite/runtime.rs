//! The runtime from a message to its reply: real database, real pools, trees in memory, and a provider
//! that plays a script or the stand-in for the API.

use super::provider_fake::events::{Item as Out, answer, started};
use super::provider_fake::{Answer, FakeOpenAi, KEY};
use serde_json::{Value, json};
use spiderweb::base::{Cancel, Code, Deadline, Notify, Result, Timer, id};
use spiderweb::config::credentials::Credentials;
use spiderweb::config::{Config, Env};
use spiderweb::control::Agents;
use spiderweb::runtime::agents::Registry;
use spiderweb::runtime::event::{Body, Event};
use spiderweb::runtime::jobs::{Job, JobId, State};
use spiderweb::runtime::{Options, ROUNDS_MAX, Runtime, Subscription};
use spiderweb::store::Db;
use spiderweb::vfs::synthetic::{
    Item, MemDir, Reply, Synthetic, dir, json_message, message, stream, text,
};
use spiderweb::vfs::{Cx, Read, Tree, Who};
use std::path::PathBuf;
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

const PATIENCE_MS: u64 = 20_000;
const PATIENCE: Duration = Duration::from_millis(PATIENCE_MS);

/// A runtime and all that it stands on.
struct House {
    runtime: Arc<Runtime>,
    db: Arc<Db>,
    timer: Timer,
    tree: Arc<Synthetic>,
    events: Arc<Mutex<Vec<Event>>>,
    _subscription: Subscription,
    dir: PathBuf,
}

/// What a test wants to be different.
#[derive(Clone)]
struct Wishes {
    script: Option<Value>,
    base_url: Option<String>,
    key: &'static str,
    config: Config,
    root: Arc<MemDir>,
}

impl Wishes {
    /// The echo provider, playing these turns.
    fn script(turns: Value) -> Wishes {
        let mut config = Config::defaults();
        config.provider.name = "echo".into();
        Wishes { script: Some(turns), base_url: None, key: "", config, root: MemDir::new(64 << 20) }
    }

    fn openai(fake: &FakeOpenAi) -> Wishes {
        let wishes = Wishes {
            script: None,
            base_url: Some(fake.url.clone()),
            key: KEY,
            ..Wishes::script(json!([]))
        };
        wishes.set(|c| c.provider.name = "openai".into())
    }

    fn set(mut self, change: impl FnOnce(&mut Config)) -> Wishes {
        change(&mut self.config);
        self
    }

    fn file(self, path: &str, item: Item) -> Wishes {
        self.root.put(path, item).unwrap();
        self
    }

    fn text(self, path: &str, content: &str) -> Wishes {
        let file = self.root.file(content.as_bytes(), true).unwrap();
        self.file(path, file)
    }

    fn start(self) -> House {
        let dir = std::env::temp_dir().join(id::hex_token("spiderweb-runtime-"));
        std::fs::create_dir(&dir).unwrap();
        self.start_in(dir)
    }

    fn start_in(self, dir: PathBuf) -> House {
        let Wishes { script, base_url, key, mut config, root } = self;
        config.runtime.agents_dir = dir.join("agents");
        config.runtime.assets_dir = dir.join("templates");
        config.provider.base_url = base_url;
        if let Some(script) = script {
            std::fs::write(dir.join("script.json"), script.to_string()).unwrap();
            config.provider.script = Some(dir.join("script.json"));
        }
        let env: Env = [("OPENAI_API_KEY", key)].into_iter().collect();
        let credentials = Arc::new(Credentials::from_env(env.clone()));
        let db = Db::open(&dir.join("state.db"), &Runtime::SCHEMAS).unwrap();
        let timer = Timer::start();
        let registry = Registry::new(&config.runtime);
        let options =
            Options { provider: config.provider, runtime: config.runtime, env, credentials };
        let runtime = Runtime::start(options, db.clone(), timer.clone(), registry).unwrap();
        let tree = Arc::new(Synthetic::new(Item::Dir(root)).unwrap());
        let given: Arc<dyn Tree> = tree.clone();
        runtime.bind_trees(Arc::new(move |_| Ok(given.clone())));
        runtime.ensure("alice").unwrap();
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let seen = events.clone();
        let sink = move |event: &Event| seen.lock().unwrap().push(event.clone());
        let subscription = runtime.subscribe(Arc::new(sink));
        House { runtime, db, timer, tree, events, _subscription: subscription, dir }
    }
}

impl House {
    fn cx(&self, agent: &str) -> Cx {
        let who = Who { principal: "user".into(), agent_id: agent.into(), ..Who::default() };
        Cx::new(Arc::new(who), Deadline::after_ms(PATIENCE_MS))
    }

    fn chat(&self, text: &str) -> JobId {
        self.runtime.chat(&self.cx("alice"), text).unwrap()
    }

    /// Waits for a job to end.
    fn end(&self, id: JobId) -> Job {
        let until = Deadline::after_ms(PATIENCE_MS);
        loop {
            let seen = self.runtime.jobs().changed("alice").seen();
            let job = self.runtime.jobs().get("alice", id).unwrap();
            if job.state.is_over() {
                return job;
            }
            let wait = self.runtime.jobs().changed("alice").wait(seen, until);
            wait.block(until, &Cancel::new()).expect("the job ends");
        }
    }

    fn ask(&self, text: &str) -> Job {
        self.end(self.chat(text))
    }

    /// Results of the tools that a job called, as the model was told of them.
    fn results(&self, id: JobId) -> Vec<Value> {
        let log = self.runtime.jobs().log_text("alice", id).unwrap();
        let frames = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let results = frames.filter(|f| f["payload"]["phase"] == "result");
        results.map(|f| f["payload"]["result"].clone()).collect()
    }

    fn errors(&self, id: JobId) -> Vec<Value> {
        let log = self.runtime.jobs().log_text("alice", id).unwrap();
        let frames = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        frames
            .filter(|f| f["payload"]["ok"] == false)
            .map(|f| f["payload"]["error"].clone())
            .collect()
    }

    fn agent_json(&self, settings: Value) {
        std::fs::write(self.dir.join("agents/alice/agent.json"), settings.to_string()).unwrap();
    }

    /// Ends everything but the files.
    fn close(self) -> PathBuf {
        self.runtime.stop(Deadline::after_ms(PATIENCE_MS));
        self.timer.stop();
        self.db.close();
        self.dir.clone()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.timer.stop();
        // A test that reopens the place has closed it before.
        if std::thread::panicking() {
            self.runtime.stop(Deadline::after_ms(0));
        }
    }
}

fn done(house: House) {
    let dir = house.close();
    std::fs::remove_dir_all(dir).unwrap();
}

fn one_tool(name: &str, arguments: Value) -> Wishes {
    Wishes::script(json!([{"steps": [{"tool": name, "arguments": arguments}, {"text": "done"}]}]))
}

fn hanging() -> Answer {
    Answer::Hang(started(&[Out::Text("and then")]))
}

fn said(text: &str) -> Answer {
    Answer::Events(answer(&[Out::Text(text)]))
}

#[test]
fn a_message_becomes_a_job_a_stream_of_events_and_a_reply_that_survives() {
    let house = Wishes::script(json!([])).start();
    let correlated = Cx { correlation_id: Some("c-1".into()), ..house.cx("alice") };
    let id = house.runtime.chat(&correlated, "  Grüße, wie geht's?\n").unwrap();
    let job = house.end(id);
    assert_eq!((job.state, job.result.as_str()), (State::Done, "Echo: Grüße, wie geht's?"));
    assert_eq!(job.correlation_id.as_deref(), Some("c-1"));
    assert!(!house.runtime.busy("alice"));

    let log = house.runtime.jobs().log_text("alice", id).unwrap();
    let frames: Vec<Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let receive = frames.iter().find(|f| f["type"] == "session.receive").unwrap();
    assert_eq!(receive["content"], "Echo: Grüße, wie geht's?");
    assert_eq!((&receive["request"], &receive["role"]), (&json!("job-1"), &json!("assistant")));
    assert!(receive.get("channel").is_none() && !log.contains("\"delta\""));

    let dir = house.dir.clone();
    let events = house.events.clone();
    house.close();
    let (mut pieces, mut states) = (String::new(), Vec::new());
    for event in events.lock().unwrap().iter() {
        assert_eq!((event.job_id, &*event.agent_id), (id, "alice"));
        match &event.body {
            Body::Progress { phase: "text", detail, .. } => pieces += detail,
            Body::Progress { phase: "job", status, .. } => states.push(*status),
            Body::Receive { content } => assert_eq!(*content, pieces, "it comes after its pieces"),
            _ => {}
        }
    }
    assert_eq!(states, ["queued", "running", "done"]);

    let house = Wishes::script(json!([])).start_in(dir);
    assert_eq!(house.runtime.jobs().get("alice", id).unwrap(), job);
    assert_eq!(house.chat("x").to_string(), "job-2");
    done(house);
}

#[test]
fn the_file_tools_work_on_the_callers_tree() {
    let house = Wishes::script(json!([{"steps": [
        {"tool": "file_write", "arguments": {"path": "/notes/deep/a.txt", "content": "Grüße"}},
        {"tool": "file_write", "arguments": {"path": "notes/deep/a.txt", "content": "!", "append": true}},
        {"tool": "file_read", "arguments": {"path": "/notes/deep/a.txt"}},
        {"tool": "file_read", "arguments": {"path": "/notes/deep/a.txt", "max_bytes": 3}},
        {"tool": "file_list", "arguments": {"path": "/notes", "recursive": true}},
        {"tool": "file_list", "arguments": {"max_entries": 1}},
        {"tool": "file_read", "arguments": {"path": "/none"}},
        {"tool": "file_read", "arguments": {"path": "/notes"}},
        {"tool": "file_write", "arguments": {"path": "/x/y", "content": "", "create_parents": false}},
        {"tool": "file_read", "arguments": {"path": "../../etc/passwd"}},
        {"tool": "shell_exec", "arguments": {"command": "id"}},
        {"text": "done"},
    ]}]))
    .text("other.txt", "x")
    .start();
    let job = house.ask("go");
    assert_eq!(job.result, "done");
    let results = house.results(job.id);
    let ready = |mut v: Value| {
        v["ready"] = true.into();
        v["wait_until_ready"] = true.into();
        v
    };
    assert_eq!(
        results[0],
        ready(json!({"path": "/notes/deep/a.txt", "bytes_written": 7, "append": false}))
    );
    assert_eq!(
        results[1],
        ready(json!({"path": "notes/deep/a.txt", "bytes_written": 1, "append": true}))
    );
    let read = |bytes: u64, truncated: bool, content: &str| {
        ready(
            json!({"path": "/notes/deep/a.txt", "bytes": bytes, "truncated": truncated, "content": content}),
        )
    };
    assert_eq!(results[2], read(8, false, "Grüße!"));
    assert_eq!(results[3], read(2, true, "Gr"), "no character is cut");
    assert_eq!(
        results[4],
        json!({"path": "/notes", "truncated": false, "entries": [
        {"name": "deep", "type": "directory"}, {"name": "deep/a.txt", "type": "file"}]})
    );
    assert_eq!(
        (&results[5]["truncated"], results[5]["entries"].as_array().unwrap().len()),
        (&json!(true), 1)
    );

    let errors = house.errors(job.id);
    let codes: Vec<&str> = errors.iter().map(|e| e["code"].as_str().unwrap()).collect();
    assert_eq!(
        codes,
        [
            "execution_failed",
            "execution_failed",
            "execution_failed",
            "invalid_params",
            "tool_not_found"
        ]
    );
    assert!(errors[0]["message"].as_str().unwrap().starts_with("/none: "), "{}", errors[0]);
    assert!(
        errors[4]["message"].as_str().unwrap().contains("file_read, file_write"),
        "{}",
        errors[4]
    );
    done(house);
}

#[test]
fn search_finds_lines_as_a_programmer_would_want_them() {
    let search = |more: Value| {
        let mut arguments = json!({"query": "needle \\w+", "path": "/src"});
        arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"tool": "search_code", "arguments": arguments})
    };
    let wishes = Wishes::script(json!([{"steps": [
        search(json!({})),
        search(json!({"case_sensitive": true})),
        search(json!({"max_results": 1})),
        search(json!({"path": "/src/b.rs"})),
        search(json!({"query": "("})),
        {"text": "done"},
    ]}]));
    let file = |content: &str| wishes.root.file(content.as_bytes(), true).unwrap();
    let never = stream(|_, _| panic!("a search reads no file that waits"));
    let src = dir([
        ("a.rs", file("fn a() {}\n// Needle One\r\n")),
        ("b.rs", file("needle two\nneedle \n  needle three")),
        ("binary", file("needle x\0")),
        (".hidden", file("needle h")),
        (".gitignore", file("target/\n*.log\n!keep.log\n")),
        ("x.log", file("needle log")),
        ("keep.log", file("needle kept")),
        ("target", dir([("t.rs", file("needle built"))])),
        ("waiting", never),
    ]);
    let house = wishes.clone().file("src", src).start();
    let job = house.ask("go");
    let results = house.results(job.id);
    let all = [
        "/src/a.rs:2:// Needle One",
        "/src/b.rs:1:needle two",
        "/src/b.rs:3:  needle three",
        "/src/keep.log:1:needle kept",
    ];
    assert_eq!(
        results[0],
        json!({"path": "/src", "query": "needle \\w+", "matches": all, "count": 4, "truncated": false})
    );
    assert_eq!(results[1]["matches"], json!(all[1..]));
    assert_eq!((&results[2]["count"], &results[2]["truncated"]), (&json!(1), &json!(true)));
    assert_eq!(results[3]["matches"], json!(all[1..3]));
    assert_eq!(house.errors(job.id)[0]["code"], "invalid_params");
    done(house);
}

#[test]
fn control_files_answer_and_files_that_wait_need_not_be_waited_for() {
    let deliver = |_: &Cx, message: &[u8]| {
        let extra = json!({"got": String::from_utf8_lossy(message)});
        Ok(Reply { extra: extra.as_object().cloned(), ..Reply::default() })
    };
    let nothing = Notify::default();
    let wait = stream(move |_, _| Ok(Read::Wait(nothing.wait(nothing.seen(), Deadline::never()))));
    let house = Wishes::script(json!([{"steps": [
        {"tool": "file_write", "arguments": {"path": "/control.json", "content": "{\"a\":1}"}},
        {"tool": "file_read", "arguments": {"path": "/next.json", "wait_until_ready": false}},
        {"text": "done"},
    ]}, ]))
    .file("control.json", json_message(deliver))
    .file("next.json", wait)
    .start();
    let results = house.results(house.ask("go").id);
    assert_eq!(results[0]["operation_result"], json!({"got": "{\"a\":1}"}));
    assert_eq!((&results[1]["ready"], &results[1]["bytes"]), (&json!(false), &json!(0)));
    done(house);
}

#[test]
fn a_write_to_the_reply_file_is_the_reply() {
    let reply = json!({"path": "agents/self/chat/control/reply", "content": " from the file \n"});
    let house = one_tool("file_write", reply).start();
    let job = house.ask("go");
    assert_eq!((job.state, job.result.as_str()), (State::Done, "from the file"));
    let result = &house.results(job.id)[0];
    assert_eq!(result["chat_reply"], json!({"delivered": true, "content": "from the file"}));
    assert_eq!(result["result"]["bytes_written"], 13);
    done(house);
}

#[test]
fn an_agent_uses_only_the_tools_it_may_use() {
    let fake = FakeOpenAi::start(vec![
        Answer::Events(answer(&[Out::Call {
            call_id: "c",
            name: "file_write",
            arguments: json!({"path": "/agents/self/chat/control/reply", "content": "sneaky"}),
        }])),
        said("I may not."),
    ]);
    let house = Wishes::openai(&fake).start();
    house.agent_json(json!({"denied_tools": ["file_write"]}));
    let job = house.ask("go");
    assert_eq!(job.result, "I may not.");
    assert_eq!(house.errors(job.id)[0]["code"], "tool_not_executable");
    let requests = fake.requests.lock().unwrap();
    let tools = requests[0]["tools"].as_array().unwrap();
    let names: Vec<_> = tools.iter().map(|t| t["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["file_read", "file_list", "search_code"]);
    assert!(
        requests[1]["input"].as_array().unwrap().last().unwrap()["output"]
            .as_str()
            .unwrap()
            .contains("tool_not_executable")
    );
    drop(requests);
    done(house);
}

#[test]
fn calls_of_one_answer_run_side_by_side_where_that_is_allowed() {
    let call =
        |call_id, path| Out::Call { call_id, name: "file_read", arguments: json!({"path": path}) };
    let fake = FakeOpenAi::start(vec![
        Answer::Events(answer(&[call("a", "/one"), call("b", "/two")])),
        said("both"),
    ]);
    // Each answers only while the other is being read.
    let both = Arc::new(Barrier::new(2));
    let met = |both: &Arc<Barrier>| {
        let both = both.clone();
        text(move |_| {
            both.wait();
            Ok("met")
        })
    };
    let house = Wishes::openai(&fake)
        .set(|c| c.runtime.max_inflight_tool_calls_per_run = 2)
        .file("one", met(&both))
        .file("two", met(&both))
        .start();
    let job = house.ask("go");
    assert_eq!(job.result, "both");
    let requests = fake.requests.lock().unwrap();
    let input = requests[1]["input"].as_array().unwrap();
    let outputs: Vec<_> = input.iter().filter(|i| i["type"] == "function_call_output").collect();
    assert_eq!(
        outputs.iter().map(|o| o["call_id"].as_str().unwrap()).collect::<Vec<_>>(),
        ["a", "b"]
    );
    drop(requests);
    done(house);
}

#[test]
fn the_model_sees_the_conversation_and_whom_it_plays() {
    let call = Out::Call { call_id: "c", name: "file_list", arguments: json!({}) };
    let fake = FakeOpenAi::start(vec![
        Answer::Events(answer(&[call])),
        said("first reply"),
        said("second reply"),
        said("reply to another project"),
    ]);
    let house = Wishes::openai(&fake).start();
    std::fs::write(house.dir.join("agents/alice/SOUL.md"), "You love spiders.").unwrap();
    house.ask("first question");
    house.ask("second question");
    let who = Who { project_id: Some("proj-2".into()), ..(*house.cx("alice").who).clone() };
    house.end(house.runtime.chat(&Cx::new(Arc::new(who), Deadline::never()), "elsewhere").unwrap());

    let requests = fake.requests.lock().unwrap();
    let texts = |n: usize| -> Vec<String> {
        let text = |item: &Value| {
            let parts = [&item["content"][0]["text"], &item["name"], &item["output"]];
            parts.iter().find_map(|p| p.as_str()).unwrap().to_owned()
        };
        requests[n]["input"].as_array().unwrap().iter().map(text).collect()
    };
    let second = texts(2);
    assert!(second[0].contains("You love spiders.") && second[0].contains("`alice`"));
    assert_eq!(second[1..3], ["first question", "file_list"]);
    assert!(second[3].contains("entries"));
    assert_eq!(second[4..], ["first reply", "second question"]);
    let elsewhere = texts(3);
    assert!(elsewhere[0].contains("proj-2"));
    assert_eq!(elsewhere[1..], ["elsewhere"]);
    drop(requests);
    done(house);
}

#[test]
fn one_conversation_keeps_its_order_while_another_overtakes() {
    let fake = FakeOpenAi::start(vec![hanging(), said("bob's"), said("second")]);
    let house = Wishes::openai(&fake).start();
    house.runtime.ensure("bob").unwrap();
    let first = house.chat("first");
    fake.hanging.recv_timeout(PATIENCE).unwrap();
    let second = house.chat("second");
    let bob = house.runtime.chat(&house.cx("bob"), "hello").unwrap();
    let until = Deadline::after_ms(PATIENCE_MS);
    while !house.runtime.jobs().get("bob", bob).unwrap().state.is_over() {
        let changed = house.runtime.jobs().changed("bob");
        let seen = changed.seen();
        if !house.runtime.jobs().get("bob", bob).unwrap().state.is_over() {
            changed.wait(seen, until).block(until, &Cancel::new()).unwrap();
        }
    }
    assert_eq!(house.runtime.jobs().get("alice", second).unwrap().state, State::Queued);
    assert_eq!((house.runtime.queue_depth(), house.runtime.busy("alice")), (1, true));
    assert!(house.runtime.cancel(first));
    assert_eq!(house.end(second).result, "second");
    done(house);
}

#[test]
fn a_full_queue_refuses_at_once_and_leaves_no_job() {
    let fake = FakeOpenAi::start(vec![hanging()]);
    let house = Wishes::openai(&fake).set(|c| c.runtime.runtime_request_queue_max = 1).start();
    let running = house.chat("one");
    fake.hanging.recv_timeout(PATIENCE).unwrap();
    let waiting = house.chat("two");
    let e = house.runtime.chat(&house.cx("alice"), "three").unwrap_err();
    assert_eq!(e.code, Code::QueueSaturated);
    let ids = |h: &House| {
        h.runtime.jobs().list("alice").unwrap().iter().map(|j| j.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(&house), [running, waiting]);
    assert!(house.runtime.cancel(waiting) && house.runtime.cancel(running));
    done(house);

    let none = Wishes::script(json!([])).set(|c| c.runtime.runtime_request_queue_max = 0).start();
    let e = none.runtime.chat(&none.cx("alice"), "x").unwrap_err();
    assert_eq!((e.code, ids(&none).len()), (Code::QueueSaturated, 0));
    done(none);
}

#[test]
fn cancelling_ends_a_turn_in_the_middle_of_the_stream_and_a_queued_one_before_it_begins() {
    let fake = FakeOpenAi::start(vec![hanging(), said("after")]);
    let house = Wishes::openai(&fake).start();
    let running = house.chat("one");
    fake.hanging.recv_timeout(PATIENCE).unwrap();
    let waiting = house.chat("never asked");
    assert!(house.runtime.cancel(waiting) && house.runtime.cancel(running));
    assert!(!house.runtime.cancel(running), "it is over");
    fake.gone.recv_timeout(PATIENCE).unwrap();
    for id in [running, waiting] {
        let job = house.end(id);
        assert_eq!(
            (job.state, job.error_code.as_deref()),
            (State::Failed, Some("runtime_cancelled"))
        );
    }
    assert_eq!(house.ask("two").result, "after");
    let requests = fake.requests.lock().unwrap();
    assert!(!requests[1].to_string().contains("never asked"));
    drop(requests);
    done(house);
}

#[test]
fn cancelling_ends_a_tool_that_waits() {
    let (reading, read) = crossbeam_channel::unbounded();
    let nothing = Notify::default();
    let wait = stream(move |_, _| {
        reading.send(()).unwrap();
        Ok(Read::Wait(nothing.wait(nothing.seen(), Deadline::never())))
    });
    let house = one_tool("file_read", json!({"path": "/next"})).file("next", wait).start();
    let id = house.chat("go");
    read.recv_timeout(PATIENCE).unwrap();
    assert!(house.runtime.cancel(id));
    assert_eq!(house.end(id).error_code.as_deref(), Some("runtime_cancelled"));
    // The worker is free again.
    house.runtime.ensure("bob").unwrap();
    done(house);
}

#[test]
fn what_takes_too_long_ends_with_a_timeout_queued_or_running() {
    let fake = FakeOpenAi::start(vec![hanging(), said("never asked")]);
    let house = Wishes::openai(&fake).set(|c| c.runtime.chat_operation_timeout_ms = 400).start();
    let (running, waiting) = (house.chat("one"), house.chat("two"));
    for id in [running, waiting] {
        let job = house.end(id);
        assert_eq!(job.error_code.as_deref(), Some("runtime_timeout"), "{job:?}");
    }
    fake.gone.recv_timeout(PATIENCE).unwrap();
    let runtime = house.runtime.clone();
    done(house);
    assert_eq!(runtime.queue_depth(), 0);
    assert_eq!(fake.requests.lock().unwrap().len(), 1, "a job whose time is up is not executed");
}

#[test]
fn failures_are_told_as_they_are() {
    let fake = FakeOpenAi::start(vec![]);
    let no_key = Wishes { key: "", ..Wishes::openai(&fake) };
    let wrong_key = Wishes { key: "sk-wrong", ..Wishes::openai(&fake) };
    let no_model = Wishes::openai(&fake).set(|c| c.provider.model = Some("gpt-99".into()));
    let no_provider = Wishes::script(json!([])).set(|c| c.provider.name = "oracle".into());
    let wrong_script = Wishes::script(json!([{"step": []}]));
    for (wishes, code, said) in [
        (no_key, "missing_api_key", "OPENAI_API_KEY"),
        (wrong_key, "provider_auth_failed", "Incorrect API key"),
        (no_model, "model_not_found", "gpt-99"),
        (no_provider, "provider_not_found", "known: echo, openai"),
        (wrong_script, "invalid_config", "unknown field `step`"),
    ] {
        let house = wishes.start();
        let job = house.ask("hello");
        assert_eq!((job.state, job.error_code.as_deref()), (State::Failed, Some(code)));
        assert!(job.error().unwrap().contains(said), "{job:?}");
        let log = house.runtime.jobs().log_text("alice", job.id).unwrap();
        assert!(log.lines().any(|l| l.contains("\"type\":\"error\"") && l.contains(code)), "{log}");
        done(house);
    }
    let house = Wishes::script(json!([])).start();
    let cx = house.cx("nobody");
    let job = house.runtime.chat(&cx, "hello").unwrap();
    house.runtime.stop(Deadline::after_ms(PATIENCE_MS));
    let job = house.runtime.jobs().get("nobody", job).unwrap();
    assert_eq!(job.error_code.as_deref(), Some("agent_not_found"));
    assert_eq!(house.runtime.chat(&cx, "x").unwrap_err().code, Code::Unavailable);
    done(house);
}

#[test]
fn a_turn_without_end_is_ended() {
    let steps: Vec<Value> = (0..=ROUNDS_MAX).map(|_| json!({"tool": "file_list"})).collect();
    let house = Wishes::script(json!([{"match": "loop", "steps": steps}])).start();
    let job = house.ask("loop");
    assert_eq!(job.error_code.as_deref(), Some("execution_failed"));
    assert!(job.error().unwrap().contains("exceeded limits"), "{job:?}");
    assert_eq!(house.ask("go on").result, "Echo: go on");
    done(house);
}

#[test]
fn a_tool_that_crashes_fails_alone() {
    let crash = message(|_| false, |_, _| -> Result<Reply> { panic!("on purpose") });
    let house = one_tool("file_write", json!({"path": "/crash", "content": "x"}))
        .file("crash", crash)
        .start();
    let job = house.ask("go");
    assert_eq!(job.result, "done");
    assert_eq!(house.errors(job.id)[0]["code"], "execution_failed");
    let cx = Cx::internal(Deadline::never());
    assert!(house.tree.getattr(&cx, spiderweb::vfs::NodeId::ROOT).is_ok());
    done(house);
}

#[test]
fn stopping_lets_what_is_under_way_finish_and_cancels_what_does_not() {
    let fake = FakeOpenAi::start(vec![hanging()]);
    let house = Wishes::openai(&fake).start();
    let id = house.chat("one");
    fake.hanging.recv_timeout(PATIENCE).unwrap();
    house.runtime.stop(Deadline::after_ms(50));
    assert_eq!(house.end(id).error_code.as_deref(), Some("runtime_cancelled"));
    done(house);

    let house = Wishes::script(json!([])).start();
    let ids: Vec<JobId> = (0..50).map(|n| house.chat(&n.to_string())).collect();
    house.runtime.stop(Deadline::after_ms(PATIENCE_MS));
    for id in ids {
        assert_eq!(house.runtime.jobs().get("alice", id).unwrap().state, State::Done);
    }
    done(house);
}
