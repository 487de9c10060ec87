//! What each principal did last (spec: control 8.3, 12.3): its sessions, where it was attached, and when
//! it came. Kept in the store, where it is a second old at most: what comes together is written together.

use super::session::Binding;
use super::state::{Project, SYSTEM};
use crate::base::{Code, Pool, Result, ResultExt, Timer, now_ms};
use crate::config::tokens::{self, Tokens, fingerprint};
use crate::store::{Kv, Txn};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Sessions kept of one principal.
pub const ENTRIES_MAX: usize = 10;
/// How long they are kept.
const KEPT_MS: i64 = 86_400_000;
/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_secs(1);
/// Where the rows stand in the store, by principal.
const PREFIX: &str = "principal/";

/// A session that somebody had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub session_key: String,
    pub agent_id: String,
    pub project_id: String,
    pub last_active_ms: i64,
    pub message_count: u64,
    pub summary: String,
}

impl Entry {
    fn is_of(&self, key: &str, agent_id: &str, project_id: &str) -> bool {
        self.session_key == key && self.agent_id == agent_id && self.project_id == project_id
    }
}

/// Where somebody was attached last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub agent_id: String,
    pub project_id: String,
    /// Which project token was shown; the token itself is not kept, and who remembers one that was
    /// replaced since remembers nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token_hash: Option<String>,
}

impl Target {
    /// The project's token, if it was shown then and is still the same.
    pub fn token(&self, project: &Project) -> Option<String> {
        let shown = self.token_hash.as_ref().filter(|_| project.token_locked)?;
        (*shown == fingerprint(&project.token)).then(|| project.token.clone())
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Row {
    last_used_at_ms: i64,
    target: Option<Target>,
    /// Newest first.
    sessions: Vec<Entry>,
}

impl Row {
    fn prune(&mut self, now_ms: i64) {
        self.sessions.retain(|e| e.last_active_ms > now_ms.saturating_sub(KEPT_MS));
        self.sessions.truncate(ENTRIES_MAX);
    }
}

#[derive(Default)]
struct Record {
    row: Mutex<Row>,
    /// Differs from what is stored.
    dirty: AtomicBool,
}

impl Record {
    fn row(&self) -> MutexGuard<'_, Row> {
        self.row.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct History {
    kv: Arc<dyn Kv>,
    timer: Timer,
    pool: Arc<Pool>,
    /// One for each token, so bounded as they are.
    records: RwLock<BTreeMap<String, Arc<Record>>>,
    /// A write is on its way.
    scheduled: AtomicBool,
    /// One writes at a time, so that no older row follows a newer one.
    writing: Mutex<()>,
}

impl History {
    /// Reads what is stored; at the first start takes over what the original kept in the file of
    /// tokens. Errors: `storage_error`.
    pub fn open(
        kv: Arc<dyn Kv>,
        timer: Timer,
        pool: Arc<Pool>,
        tokens: &Tokens,
    ) -> Result<Arc<History>> {
        let mut records = BTreeMap::new();
        for stored in kv.range(PREFIX)? {
            let row: Row = serde_json::from_slice(&stored.value)
                .map_err(|e| crate::base::Error::new(Code::StorageError, e.to_string()))
                .context(format!("row {:?}", stored.key))?;
            let name = stored.key[PREFIX.len()..].to_owned();
            records.insert(name, Arc::new(Record { row: Mutex::new(row), dirty: false.into() }));
        }
        let is_first = records.is_empty();
        let history = Arc::new(History {
            kv,
            timer,
            pool,
            records: RwLock::new(records),
            scheduled: AtomicBool::new(false),
            writing: Mutex::default(),
        });
        if is_first {
            history.import(tokens)?;
        }
        history.retain(tokens);
        Ok(history)
    }

    fn import(self: &Arc<History>, file: &Tokens) -> Result<()> {
        let parts = [
            ("admin", &file.admin_last_target, &file.admin_session_history),
            ("user", &file.user_last_target, &file.user_session_history),
        ];
        for (name, target, sessions) in parts {
            let target = target.as_ref().and_then(|t| {
                let project_id = t.project_id.clone().filter(|id| id != SYSTEM)?;
                Some(Target { agent_id: t.agent_id.clone(), project_id, token_hash: None })
            });
            let entry = |s: &tokens::Session| {
                let project_id = s.project_id.clone().filter(|id| id != SYSTEM)?;
                Some(Entry {
                    session_key: s.session_key.clone(),
                    summary: summary(&s.agent_id, &project_id),
                    agent_id: s.agent_id.clone(),
                    project_id,
                    last_active_ms: s.last_active_ms,
                    message_count: s.message_count,
                })
            };
            let mut sessions: Vec<_> =
                sessions.iter().flatten().take(100 * ENTRIES_MAX).filter_map(entry).collect();
            sessions.sort_by_key(|e| std::cmp::Reverse(e.last_active_ms));
            let record = self.record(name);
            let mut row = record.row();
            (row.target, row.sessions) = (target, sessions);
            row.prune(now_ms());
            // Stored even where there was nothing: it is not looked for again.
            record.dirty.store(true, Ordering::Release);
        }
        self.flush()
    }

    fn find(&self, name: &str) -> Option<Arc<Record>> {
        self.records.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn record(&self, name: &str) -> Arc<Record> {
        if let Some(record) = self.find(name) {
            return record;
        }
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        records.entry(name.to_owned()).or_default().clone()
    }

    /// Somebody has shown his token.
    pub fn came(self: &Arc<History>, name: &str) {
        let record = self.record(name);
        record.row().last_used_at_ms = now_ms();
        self.mark(&record);
    }

    /// When somebody came last; 0 for never.
    pub fn last_used_at_ms(&self, name: &str) -> i64 {
        self.find(name).map_or(0, |r| r.row().last_used_at_ms)
    }

    /// A session was used, and so many messages were sent in it. The system project is nobody's
    /// history.
    pub fn used(self: &Arc<History>, name: &str, key: &str, binding: &Binding, messages: u64) {
        let Some(project_id) = binding.project_id.as_deref().filter(|id| *id != SYSTEM) else {
            return;
        };
        let Some(record) = self.find(name) else { return };
        let agent_id = binding.agent_id.as_str();
        let mut row = record.row();
        let at = row.sessions.iter().position(|e| e.is_of(key, agent_id, project_id));
        let mut entry = match at {
            Some(at) => row.sessions.remove(at),
            None => Entry {
                session_key: key.to_owned(),
                agent_id: agent_id.to_owned(),
                project_id: project_id.to_owned(),
                last_active_ms: 0,
                message_count: 0,
                summary: summary(agent_id, project_id),
            },
        };
        entry.last_active_ms = now_ms();
        entry.message_count = entry.message_count.saturating_add(messages);
        row.sessions.insert(0, entry);
        row.prune(now_ms());
        drop(row);
        self.mark(&record);
    }

    /// Remembers where somebody is attached. Of the tokens that many share, only the place is kept: that
    /// one has shown the project's token lets no other in.
    pub fn attached(self: &Arc<History>, name: &str, binding: &Binding) {
        let Some(project_id) = binding.project_id.clone().filter(|id| id != SYSTEM) else { return };
        let Some(record) = self.find(name) else { return };
        let is_shared = tokens::Role::parse(name).is_some();
        let token = binding.project_token.as_deref().filter(|_| !is_shared);
        let target = Target {
            agent_id: binding.agent_id.clone(),
            project_id,
            token_hash: token.map(fingerprint),
        };
        record.row().target = Some(target);
        self.mark(&record);
    }

    pub fn target(&self, name: &str) -> Option<Target> {
        self.find(name)?.row().target.clone()
    }

    pub fn forget_target(self: &Arc<History>, name: &str) {
        let Some(record) = self.find(name) else { return };
        record.row().target = None;
        self.mark(&record);
    }

    /// Somebody's sessions, newest first.
    pub fn sessions(&self, name: &str, agent_id: Option<&str>, limit: usize) -> Vec<Entry> {
        let Some(record) = self.find(name) else { return Vec::new() };
        let mut row = record.row();
        row.prune(now_ms());
        let asked = row.sessions.iter().filter(|e| agent_id.is_none_or(|a| e.agent_id == a));
        asked.take(limit).cloned().collect()
    }

    /// When a session was used last; 0 for never.
    pub fn last_active_ms(&self, name: &str, key: &str) -> i64 {
        let sessions = self.sessions(name, None, ENTRIES_MAX);
        sessions.iter().find(|e| e.session_key == key).map_or(0, |e| e.last_active_ms)
    }

    /// Forgets those who have no token any more: their name may be another's tomorrow.
    pub fn retain(&self, tokens: &Tokens) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let stays = |name: &str| {
            tokens::Role::parse(name).is_some() || tokens.tokens.iter().any(|t| t.name == name)
        };
        let mut gone = Vec::new();
        self.records.write().unwrap_or_else(PoisonError::into_inner).retain(|name, _| {
            let stays = stays(name);
            gone.extend((!stays).then(|| format!("{PREFIX}{name}")));
            stays
        });
        if gone.is_empty() {
            return;
        }
        if let Err(e) = self.kv.commit(Txn { deletes: gone, ..Txn::default() }) {
            log::warn!("the history of revoked tokens is forgotten at the next start only: {e}");
        }
    }

    fn mark(self: &Arc<History>, record: &Record) {
        record.dirty.store(true, Ordering::Release);
        if self.scheduled.swap(true, Ordering::AcqRel) {
            return;
        }
        let weak = Arc::downgrade(self);
        let write = move || {
            let Some(history) = weak.upgrade() else { return };
            let later = history.clone();
            let queued = history.pool.submit(move || {
                if let Err(e) = later.flush() {
                    log::warn!("the history of sessions could not be stored: {e}");
                }
            });
            if queued.is_err() {
                history.scheduled.store(false, Ordering::Release);
            }
        };
        self.timer.at(Instant::now() + GATHER, Box::new(write));
    }

    /// Writes what has changed, and returns when it is durable. Errors: `storage_error`; it is tried
    /// again with the next change.
    pub fn flush(&self) -> Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.scheduled.store(false, Ordering::Release);
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner).clone();
        let changed: Vec<_> =
            records.iter().filter(|(_, r)| r.dirty.swap(false, Ordering::AcqRel)).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let put = |(name, record): &(&String, &Arc<Record>)| {
            let row = serde_json::to_vec(&*record.row()).expect("strings and numbers serialise");
            (format!("{PREFIX}{name}"), row)
        };
        let txn = Txn { puts: changed.iter().map(put).collect(), ..Txn::default() };
        let stored = self.kv.commit(txn).map(drop).map_err(|e| e.recode(Code::StorageError));
        if stored.is_err() {
            changed.iter().for_each(|(_, r)| r.dirty.store(true, Ordering::Release));
        }
        stored
    }
}

fn summary(agent_id: &str, project_id: &str) -> String {
    format!("{agent_id} @ {project_id}")
}
