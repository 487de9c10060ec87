//! The runtime from a message to its reply: order, limits, ends.

use super::provider_fake::events::{Item as Out, answer};
use super::provider_fake::{Answer, FakeOpenAi};
use super::runtime_house::{House, PATIENCE, PATIENCE_MS, Wishes, done, hanging, one_tool, said};
use serde_json::{Value, json};
use spiderweb::base::{Cancel, Code, Deadline};
use spiderweb::control::Agents;
use spiderweb::runtime::event::Body;
use spiderweb::runtime::jobs::{JobId, State};
use spiderweb::vfs::synthetic::text;
use spiderweb::vfs::{Cx, Who};
use std::sync::Arc;

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
fn what_takes_too_long_ends_with_a_timeout_queued_or_running() {
    // A tool that nothing can interrupt keeps the conversation busy past both deadlines.
    let (release, stuck) = crossbeam_channel::bounded::<()>(0);
    let stuck = text(move |_| {
        let _ = stuck.recv();
        Ok("")
    });
    let house = one_tool("file_read", json!({"path": "/stuck"}))
        .set(|c| c.runtime.chat_operation_timeout_ms = 300)
        .file("stuck", stuck)
        .start();
    let ids = [house.chat("one"), house.chat("two")];
    for id in ids {
        let job = house.end(id);
        assert_eq!(job.error_code.as_deref(), Some("runtime_timeout"), "{job:?}");
    }
    assert_eq!((house.runtime.queue_depth(), house.runtime.busy("alice")), (0, false));
    drop(release);
    house.runtime.stop(Deadline::after_ms(PATIENCE_MS));
    let logs = ids.map(|id| house.runtime.jobs().log_text("alice", id).unwrap());
    assert!(logs[0].contains("provider.response") && !logs[1].contains("provider.response"));
    done(house);

    let fake = FakeOpenAi::start(vec![hanging()]);
    let house = Wishes::openai(&fake).set(|c| c.runtime.chat_operation_timeout_ms = 300).start();
    let job = house.ask("one");
    assert_eq!(job.error_code.as_deref(), Some("runtime_timeout"), "{job:?}");
    fake.gone.recv_timeout(PATIENCE).unwrap();
    done(house);
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
