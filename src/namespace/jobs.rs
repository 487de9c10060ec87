//! `/agents/self/jobs`: what became of the messages to the agent (spec: namespace 7.2).

use super::{World, described, document};
use crate::base::Result;
use crate::runtime::jobs::{Job, JobId};
use crate::vfs::synthetic::{Item, Turn, dir, listing, stream, text};
use crate::vfs::{Cx, Read};
use serde_json::json;
use std::time::Duration;

/// How long a read of `result.txt` waits for its job; then it gives what there is, which is nothing.
const RESULT_WAIT: Duration = Duration::from_secs(60);

pub(super) fn place(world: &World) -> Item {
    let about = described(
        "Jobs",
        "One directory for each message. `result.txt` holds the answer, and waits for it when read.",
        json!({"kind": "collection", "entries": "job_id",
               "files": ["status.json", "result.txt", "log.txt"]}),
        super::read_only(),
    );
    let (all, one) = (world.clone(), world.clone());
    let by_name = about.clone();
    listing(
        move |cx, name| match by_name.iter().find(|(n, _)| n == name) {
            Some((_, item)) => Ok(item.clone()),
            None => find(&one, cx, name.parse()?).map(|job| directory(&one, job.id)),
        },
        move |cx| {
            let jobs = all.runtime.jobs().list(&cx.who.agent_id)?;
            let jobs = jobs.iter().map(|job| (job.id.to_string(), directory(&all, job.id)));
            Ok(about.iter().cloned().chain(jobs).collect())
        },
    )
}

/// A job of the caller's agent. Errors: ENOENT, also for another agent's.
fn find(world: &World, cx: &Cx, id: JobId) -> Result<Job> {
    world.runtime.jobs().get(&cx.who.agent_id, id)
}

fn directory(world: &World, id: JobId) -> Item {
    let (of_status, of_log, of_result) = (world.clone(), world.clone(), world.clone());
    dir([
        ("status.json", document(move |cx| find(&of_status, cx, id).map(|job| status(&job)))),
        ("result.txt", stream(move |cx, turn| read_result(&of_result, cx, id, turn))),
        ("log.txt", text(move |cx| of_log.runtime.jobs().log_text(&cx.who.agent_id, id))),
    ])
}

fn status(job: &Job) -> serde_json::Value {
    json!({"state": job.state.name(), "correlation_id": job.correlation_id, "error": job.error(),
        "updated_at_ms": job.updated_at_ms, "created_at_ms": job.created_at_ms, "job_id": job.id.to_string()})
}

fn read_result(world: &World, cx: &Cx, id: JobId, turn: &Turn) -> Result<Read> {
    // Taken before the job is looked at: what changes in between ends the wait at once.
    let changed = world.runtime.jobs().changed(&cx.who.agent_id);
    let seen = changed.seen();
    let job = find(world, cx, id)?;
    let until = turn.until(RESULT_WAIT);
    if !job.state.is_over() && !until.passed() {
        return Ok(Read::Wait(changed.wait(seen, until)));
    }
    Ok(Read::Data { bytes: job.result.into(), eof: true })
}
