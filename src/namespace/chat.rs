//! `/agents/self/chat`: a message written to `control/input` becomes a job (spec: namespace 7.1).

use super::{World, described, document};
use crate::base::Result;
use crate::vfs::Cx;
use crate::vfs::synthetic::{Item, Reply, dir, fixed, message};
use serde_json::{Map, Value, json};

pub(super) fn place(world: &World) -> Item {
    let mut entries = described(
        "Chat",
        "Write a message to `control/input`. The answer is the `result.txt` of the job that the write \
         names; reading it waits until the job is done.",
        json!({"name": "chat", "input": "control/input", "reply": "control/reply",
               "jobs": "/agents/self/jobs", "result": "result.txt"}),
        json!({"write_input": true, "write_reply": true, "read_jobs": true}),
    );
    entries.push((
        "meta.json".into(),
        document(|cx| {
            Ok(json!({"name": "chat", "version": "1", "agent_id": cx.who.agent_id,
                "project_id": cx.who.project_id, "actor_type": "user", "actor_id": cx.who.principal,
                "cost_hint": "provider-dependent", "latency_hint": "seconds"}))
        }),
    ));
    let world = world.clone();
    let input = message(|_| false, move |cx, text| input(&world, cx, text));
    let control = dir([("input", input), ("reply", message(|_| false, reply))]);
    entries.push(("control".into(), control));
    let example = fixed("Which files are in this workspace?\n");
    entries.push(("examples".into(), dir([("send.txt", example)])));
    dir(entries)
}

/// One message to the agent. Blank ones are no messages.
fn input(world: &World, cx: &Cx, text: &[u8]) -> Result<Reply> {
    let text = String::from_utf8_lossy(text);
    let text = text.trim();
    if text.is_empty() {
        return Ok(Reply {
            extra: Some(Map::from_iter([("n".into(), 0.into())])),
            ..Reply::default()
        });
    }
    let job = world.runtime.chat(cx, text)?;
    let mut extra = Map::new();
    extra.insert("job".into(), job.to_string().into());
    let result_path = format!("/agents/self/jobs/{job}/result.txt");
    extra.insert("result_path".into(), result_path.into());
    if let Some(id) = &cx.correlation_id {
        extra.insert("correlation_id".into(), (**id).into());
    }
    let body = format!("{}\n", Value::Object(extra.clone()));
    Ok(Reply { extra: Some(extra), body: body.into() })
}

/// A reply written by hand. In a turn of the agent its own writes are taken by the runtime before they
/// come here (spec: runtime 6.5).
fn reply(_: &Cx, text: &[u8]) -> Result<Reply> {
    let content = String::from_utf8_lossy(text).trim().to_owned();
    let delivered = json!({"delivered": true, "content": content});
    let extra = Map::from_iter([("chat_reply".to_owned(), delivered)]);
    Ok(Reply { extra: Some(extra), body: format!("{content}\n").into() })
}
