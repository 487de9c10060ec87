//! Chat jobs: one for every message to an agent, kept for a day, with their results and logs
//! (spec: namespace 7.2). A job's state only ever moves forward, and what was told of it is durable.

use super::history;
use super::provider::Message;
use crate::base::{Code, Error, Notify, Result, now_ms};
use crate::store::rusqlite::{self, Connection, OptionalExtension, Row, params};
use crate::store::{Db, Schema};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

/// How long a job is kept after its last change.
const TTL_MS: i64 = 24 * 60 * 60 * 1000;
/// Most bytes of a job's log; what follows is left out, and the log says so.
const LOG_MAX: i64 = 512 * 1024;
/// Conditions that waiters share: more agents than this wake each other in vain now and then.
const CONDITIONS: usize = 64;

/// Names a job: `job-N`. Numbers are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(u64);

impl JobId {
    #[cfg(test)]
    pub(super) fn test(number: u64) -> JobId {
        JobId(number)
    }

    pub(super) fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job-{}", self.0)
    }
}

impl FromStr for JobId {
    type Err = Error;

    fn from_str(s: &str) -> Result<JobId> {
        let number = s.strip_prefix("job-").and_then(|n| n.parse().ok()).map(JobId);
        // Only the spelling that Display gives: `job-01` is another name.
        number
            .filter(|id| id.to_string() == s)
            .ok_or_else(|| Error::new(Code::Enoent, format!("{s:?} names no job")))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Queued,
    Running,
    Done,
    Failed,
}

impl State {
    pub const fn name(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Running => "running",
            State::Done => "done",
            State::Failed => "failed",
        }
    }

    pub fn is_over(self) -> bool {
        matches!(self, State::Done | State::Failed)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub id: JobId,
    pub agent_id: String,
    pub project_id: Option<String>,
    pub state: State,
    pub correlation_id: Option<String>,
    pub created_at_ms: i64,
    pub updated_at_ms: i64,
    /// The reply; the error's message when it failed; empty before.
    pub result: String,
    /// Wire code of the error.
    pub error_code: Option<String>,
}

impl Job {
    /// The error's message.
    pub fn error(&self) -> Option<&str> {
        (self.state == State::Failed).then_some(self.result.as_str())
    }
}

/// Who talks to whom: messages of one conversation follow each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Conversation {
    pub agent_id: Arc<str>,
    pub project_id: Option<Arc<str>>,
}

impl Conversation {
    /// How the tables spell "no project".
    pub(super) fn project(&self) -> &str {
        self.project_id.as_deref().unwrap_or_default()
    }
}

/// The jobs of all agents.
pub struct JobStore {
    db: Arc<Db>,
    changed: [Notify; CONDITIONS],
}

impl JobStore {
    pub const SCHEMA: Schema = Schema {
        room: "jobs",
        migrations: &["CREATE TABLE jobs (
                 number INTEGER PRIMARY KEY AUTOINCREMENT,
                 agent_id TEXT NOT NULL,
                 project_id TEXT NOT NULL,
                 state TEXT NOT NULL,
                 correlation_id TEXT,
                 created_at_ms INTEGER NOT NULL,
                 updated_at_ms INTEGER NOT NULL,
                 result TEXT NOT NULL DEFAULT '',
                 error_code TEXT,
                 log_bytes INTEGER NOT NULL DEFAULT 0
             );
             CREATE INDEX jobs_by_agent ON jobs (agent_id, number);
             CREATE INDEX jobs_by_age ON jobs (updated_at_ms);
             CREATE TABLE job_log (
                 id INTEGER PRIMARY KEY,
                 job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
                 line TEXT NOT NULL
             );
             CREATE INDEX job_log_by_job ON job_log (job, id)"],
    };

    /// Jobs that were under way when the last process ended have failed.
    pub fn open(db: Arc<Db>) -> Result<JobStore> {
        db.write(|tx| {
            tx.execute(
                "UPDATE jobs SET state = 'failed', result = 'interrupted by restart', error_code = ?1,
                     updated_at_ms = ?2
                 WHERE state IN ('queued', 'running')",
                params![Code::ExecutionFailed.wire(), now_ms()],
            )?;
            Ok(prune(tx)?)
        })?;
        Ok(JobStore { db, changed: std::array::from_fn(|_| Notify::default()) })
    }

    /// Notified when anything changes about an agent's jobs, and now and then for nothing.
    pub fn changed(&self, agent_id: &str) -> &Notify {
        let mut hasher = DefaultHasher::new();
        agent_id.hash(&mut hasher);
        &self.changed[hasher.finish() as usize % CONDITIONS]
    }

    /// A new job, queued; durable when this returns.
    pub(super) fn create(
        &self,
        of: &Conversation,
        correlation_id: Option<Arc<str>>,
    ) -> Result<JobId> {
        let (now, conversation) = (now_ms(), of.clone());
        let id = self.db.write(move |tx| {
            prune(tx)?;
            tx.prepare_cached(
                "INSERT INTO jobs
                     (agent_id, project_id, state, correlation_id, created_at_ms, updated_at_ms)
                 VALUES (?1, ?2, 'queued', ?3, ?4, ?4)",
            )?
            .execute(params![
                conversation.agent_id,
                conversation.project(),
                correlation_id,
                now
            ])?;
            Ok(JobId(tx.last_insert_rowid().unsigned_abs()))
        })?;
        self.changed(&of.agent_id).notify();
        Ok(id)
    }

    /// Takes back a job that could not be queued.
    pub(super) fn remove(&self, id: JobId) {
        let gone = move |r: Result<usize>| report(id, r);
        self.db.write_then(
            move |tx| Ok(tx.execute("DELETE FROM jobs WHERE number = ?1", [id.0])?),
            gone,
        );
    }

    pub(super) fn start(&self, id: JobId, agent_id: &str) {
        let changed = self.changed(agent_id).clone();
        self.db.write_then(
            move |tx| {
                let mut q = tx.prepare_cached(
                    "UPDATE jobs SET state = 'running', updated_at_ms = ?2
                     WHERE number = ?1 AND state = 'queued'",
                )?;
                Ok(q.execute(params![id.0, now_ms()])?)
            },
            move |r| {
                report(id, r);
                changed.notify();
            },
        );
    }

    /// Adds a line to the log.
    pub(super) fn log(&self, id: JobId, agent_id: &str, line: String) {
        let changed = self.changed(agent_id).clone();
        self.db.write_then(
            move |tx| append_log(tx, id, line),
            move |r| {
                report(id, r);
                changed.notify();
            },
        );
    }

    /// Ends a job that is not over, together with what its conversation remembers of it. `done` is
    /// called once that is durable.
    pub(super) fn finish_then(
        &self,
        id: JobId,
        of: &Conversation,
        outcome: &Result<String>,
        said: Vec<Message>,
        done: impl FnOnce() + Send + 'static,
    ) {
        let (changed, of) = (self.changed(&of.agent_id).clone(), of.clone());
        let (state, result, code) = match outcome {
            Ok(reply) => (State::Done, reply.clone(), None),
            Err(e) => (State::Failed, e.message.to_string(), Some(e.code.wire())),
        };
        self.db.write_then(
            move |tx| {
                history::append(tx, &of, id, &said)?;
                let mut q = tx.prepare_cached(
                    "UPDATE jobs SET state = ?2, result = ?3, error_code = ?4, updated_at_ms = ?5
                     WHERE number = ?1 AND state IN ('queued', 'running')",
                )?;
                Ok(q.execute(params![id.0, state.name(), result, code, now_ms()])?)
            },
            move |r| {
                report(id, r);
                done();
                changed.notify();
            },
        );
    }

    /// A job of an agent's. Errors: ENOENT.
    pub fn get(&self, agent_id: &str, id: JobId) -> Result<Job> {
        self.db.read(|c| {
            let mut q = c.prepare_cached(&select("agent_id = ?2 AND number = ?3"))?;
            q.query_row(params![alive_since(), agent_id, id.0], job)
                .optional()?
                .ok_or_else(|| no(id))
        })
    }

    /// An agent's jobs, oldest first.
    pub fn list(&self, agent_id: &str) -> Result<Vec<Job>> {
        self.db.read(|c| {
            let mut q = c.prepare_cached(&select("agent_id = ?2 ORDER BY number"))?;
            let jobs = q.query_map(params![alive_since(), agent_id], job)?;
            Ok(jobs.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The log of a job of an agent's: lines, each with its line feed. Errors: ENOENT.
    pub fn log_text(&self, agent_id: &str, id: JobId) -> Result<String> {
        self.get(agent_id, id)?;
        self.db.read(|c| {
            let mut q = c.prepare_cached("SELECT line FROM job_log WHERE job = ?1 ORDER BY id")?;
            let mut text = String::new();
            let mut rows = q.query([id.0])?;
            while let Some(row) = rows.next()? {
                text.push_str(row.get_ref(0)?.as_str().unwrap_or_default());
                text.push('\n');
            }
            Ok(text)
        })
    }
}

fn append_log(tx: &Connection, id: JobId, line: String) -> Result<usize> {
    let bytes = i64::try_from(line.len()).unwrap_or(LOG_MAX);
    let before: Option<i64> = tx
        .prepare_cached("SELECT log_bytes FROM jobs WHERE number = ?1")?
        .query_row([id.0], |r| r.get(0))
        .optional()?;
    let line = match before {
        Some(before) if before < LOG_MAX && before + bytes <= LOG_MAX => line,
        Some(before) if before < LOG_MAX => "[log truncated]".to_owned(),
        _ => return Ok(0),
    };
    tx.prepare_cached("UPDATE jobs SET log_bytes = log_bytes + ?2 WHERE number = ?1")?
        .execute(params![id.0, bytes])?;
    let mut q = tx.prepare_cached("INSERT INTO job_log (job, line) VALUES (?1, ?2)")?;
    Ok(q.execute(params![id.0, line])?)
}

/// A query for jobs that have not passed their time; parameter 1 is [`alive_since`].
fn select(condition: &str) -> String {
    format!(
        "SELECT number, agent_id, project_id, state, correlation_id, created_at_ms, updated_at_ms,
                result, error_code
         FROM jobs WHERE (state IN ('queued', 'running') OR updated_at_ms > ?1) AND {condition}"
    )
}

fn alive_since() -> i64 {
    now_ms() - TTL_MS
}

fn job(row: &Row<'_>) -> rusqlite::Result<Job> {
    let state = match row.get_ref(3)?.as_str()? {
        "queued" => State::Queued,
        "running" => State::Running,
        "done" => State::Done,
        _ => State::Failed,
    };
    Ok(Job {
        id: JobId(row.get(0)?),
        agent_id: row.get(1)?,
        project_id: Some(row.get(2)?).filter(|p: &String| !p.is_empty()),
        state,
        correlation_id: row.get(4)?,
        created_at_ms: row.get(5)?,
        updated_at_ms: row.get(6)?,
        result: row.get(7)?,
        error_code: row.get(8)?,
    })
}

fn prune(tx: &Connection) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "DELETE FROM jobs WHERE updated_at_ms <= ?1 AND state NOT IN ('queued', 'running')",
    )?
    .execute([alive_since()])?;
    Ok(())
}

fn no(id: JobId) -> Error {
    Error::new(Code::Enoent, format!("there is no {id}"))
}

fn report<T>(id: JobId, outcome: Result<T>) {
    if let Err(e) = outcome {
        crate::base::log::error(&format!("keeping {id}"), &e);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::TempDir;
    use std::path::Path;
    use std::sync::mpsc;

    fn open(path: &Path) -> (Arc<Db>, JobStore) {
        let db = Db::open(path, &[JobStore::SCHEMA, history::SCHEMA]).unwrap();
        (db.clone(), JobStore::open(db).unwrap())
    }

    fn with(agent: &str) -> Conversation {
        Conversation { agent_id: agent.into(), project_id: None }
    }

    fn finish(jobs: &JobStore, id: JobId, outcome: Result<String>) {
        let (tx, rx) = mpsc::channel();
        jobs.finish_then(id, &with("a"), &outcome, Vec::new(), move || tx.send(()).unwrap());
        rx.recv().unwrap();
    }

    #[test]
    fn a_job_ends_once_and_only_its_agent_sees_it() {
        let dir = TempDir::new();
        let (_db, jobs) = open(&dir.path("db"));
        let id = jobs.create(&with("a"), Some("c-1".into())).unwrap();
        assert_eq!(id.to_string(), "job-1");
        let seen = jobs.changed("a").seen();
        finish(&jobs, id, Ok("the reply".into()));
        assert_ne!(jobs.changed("a").seen(), seen);
        finish(&jobs, id, Err(Error::new(Code::RuntimeCancelled, "too late")));
        let job = jobs.get("a", id).unwrap();
        assert_eq!((job.state, job.result.as_str(), job.error()), (State::Done, "the reply", None));
        assert_eq!(job.correlation_id.as_deref(), Some("c-1"));
        assert_eq!(jobs.get("b", id).unwrap_err().errno(), libc::ENOENT);
        assert!(jobs.list("b").unwrap().is_empty());
        assert_eq!(jobs.list("a").unwrap(), [job]);
    }

    #[test]
    fn a_restart_interrupts_and_numbers_are_never_used_again() {
        let dir = TempDir::new();
        let (db, jobs) = open(&dir.path("db"));
        let (one, two) =
            (jobs.create(&with("a"), None).unwrap(), jobs.create(&with("a"), None).unwrap());
        jobs.start(two, "a");
        let three = jobs.create(&with("a"), None).unwrap();
        jobs.remove(three);
        db.close();
        let (_db, jobs) = open(&dir.path("db"));
        for id in [one, two] {
            let job = jobs.get("a", id).unwrap();
            assert_eq!((job.state, job.error()), (State::Failed, Some("interrupted by restart")));
        }
        assert_eq!(jobs.create(&with("a"), None).unwrap().to_string(), "job-4");
    }

    #[test]
    fn jobs_that_are_over_go_after_a_day() {
        let dir = TempDir::new();
        let (db, jobs) = open(&dir.path("db"));
        let (old, running) =
            (jobs.create(&with("a"), None).unwrap(), jobs.create(&with("a"), None).unwrap());
        finish(&jobs, old, Ok("x".into()));
        jobs.log(old, "a", "line".into());
        db.write(|tx| {
            Ok(tx.execute("UPDATE jobs SET updated_at_ms = updated_at_ms - 90000000", [])?)
        })
        .unwrap();
        assert!(jobs.get("a", old).is_err());
        assert_eq!(jobs.list("a").unwrap().len(), 1);
        jobs.create(&with("b"), None).unwrap();
        let rows: (i64, i64) = db
            .read(|c| {
                let count = |t| c.query_row(&format!("SELECT count(*) FROM {t}"), [], |r| r.get(0));
                Ok((count("jobs")?, count("job_log")?))
            })
            .unwrap();
        assert_eq!(rows, (2, 0));
        assert!(jobs.get("a", running).is_ok());
    }

    #[test]
    fn a_log_is_bounded_and_says_so() {
        let dir = TempDir::new();
        let (_db, jobs) = open(&dir.path("db"));
        let id = jobs.create(&with("a"), None).unwrap();
        for n in 0..20 {
            jobs.log(id, "a", format!("{n} {}", "x".repeat(100_000)));
        }
        jobs.create(&with("a"), None).unwrap();
        let log = jobs.log_text("a", id).unwrap();
        assert!(log.starts_with("0 x") && log.len() < LOG_MAX as usize);
        assert_eq!(log.matches("[log truncated]\n").count(), 1);
        assert!(jobs.log_text("b", id).is_err());
    }

    #[test]
    fn only_one_spelling_names_a_job() {
        assert_eq!("job-7".parse::<JobId>().unwrap(), JobId(7));
        for wrong in ["job-", "job-07", "job-+7", "7", "job--1", "job-x"] {
            assert_eq!(wrong.parse::<JobId>().unwrap_err().errno(), libc::ENOENT, "{wrong}");
        }
    }
}
