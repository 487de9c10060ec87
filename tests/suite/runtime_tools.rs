//! What agents do with their tools, in whole turns.

use super::provider_fake::events::{Item as Out, answer};
use super::provider_fake::{Answer, FakeOpenAi};
use super::runtime_house::{PATIENCE, Wishes, done, one_tool, said};
use serde_json::{Value, json};
use spiderweb::base::{Deadline, Notify, Result};
use spiderweb::runtime::ROUNDS_MAX;
use spiderweb::runtime::jobs::State;
use spiderweb::vfs::synthetic::{Reply, dir, json_message, message, stream, text};
use spiderweb::vfs::{Cx, Read, Tree};
use std::sync::{Arc, Barrier};

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
    // Joins the worker: it is free.
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
