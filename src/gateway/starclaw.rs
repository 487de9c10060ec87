//! ZiggyStarClaw clients (design: decisions): they expect to be greeted before they speak, at once on
//! `/v1/agents/<agent>/stream`, after a short silence on `/`; then `session.send` is a chat message.

use super::client::{Shared, who};
use crate::base::{Code, Deadline, Error, Result, id, now_ms};
use crate::control::state::{MOTHER, SYSTEM};
use crate::control::{Binding, Door, Principal, Role};
use crate::net::{Conn, Message, Text};
use crate::runtime::Subscription;
use crate::runtime::event::{Body, Event};
use crate::runtime::jobs::JobId;
use crate::vfs::Cx;
use crate::wire::{Fields, Malformed, Object};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Silence after which a client on `/` is taken for one that waits to be greeted.
const SILENCE: Duration = Duration::from_millis(300);

/// Nothing was said yet.
const SILENT: u8 = 0;
/// It was greeted, and may chat.
const GREETED: u8 = 1;
/// It spoke the unified protocol, or cannot be greeted: no such client.
const OTHER: u8 = 2;

pub struct Greeting {
    state: AtomicU8,
    principal: Principal,
    /// Named by the path.
    agent_id: Option<String>,
    session_key: String,
    /// The requests whose answers are awaited, by job.
    asked: Mutex<HashMap<JobId, String>>,
    answers: OnceLock<Subscription>,
}

/// Time to take a message in; the answer takes as long as the runtime allows.
const CHAT_MS: u64 = 5_000;

impl Greeting {
    pub fn new(principal: &Principal, door: Door, agent_id: Option<String>) -> Greeting {
        let state = if door == Door::Join { OTHER } else { SILENT };
        Greeting {
            state: AtomicU8::new(state),
            principal: principal.clone(),
            agent_id,
            session_key: id::hex_token("sess-"),
            asked: Mutex::default(),
            answers: OnceLock::new(),
        }
    }

    pub fn open(&self, shared: &Arc<Shared>, conn: &Conn) {
        if self.state.load(Ordering::Acquire) != SILENT {
            return;
        }
        if self.agent_id.is_some() {
            return self.greet(conn);
        }
        let (shared, conn): (Weak<Shared>, _) = (Arc::downgrade(shared), conn.clone());
        let timer = shared.upgrade().map(|s| s.gateway.timer.clone());
        if let Some(timer) = timer {
            timer.at(
                Instant::now() + SILENCE,
                Box::new(move || {
                    if let Some(shared) = shared.upgrade() {
                        shared.greeting().greet(&conn);
                    }
                }),
            );
        }
    }

    fn greet(&self, conn: &Conn) {
        let silent =
            self.state.compare_exchange(SILENT, GREETED, Ordering::AcqRel, Ordering::Acquire);
        if silent.is_err() {
            return;
        }
        let ack = Object::new()
            .put("type", "session.ack")
            .put("sessionKey", &self.session_key)
            .put("agentId", self.agent_id.as_deref().unwrap_or(MOTHER));
        let _ = conn.send(Message::text(ack.finish()));
    }

    /// It speaks the unified protocol: from now on nothing else counts.
    pub fn negotiated(&self) {
        self.state.store(OTHER, Ordering::Release);
    }

    /// Takes a message without a channel; false when it is not one of these clients'.
    pub fn take(&self, shared: &Arc<Shared>, conn: &Conn, text: &Text, m: &Malformed) -> bool {
        let greeted = self.state.load(Ordering::Acquire) == GREETED;
        if !greeted || m.kind.as_deref() != Some("session.send") {
            // Whoever speaks in another way first is not waiting for a greeting.
            if !greeted {
                self.negotiated();
            }
            return false;
        }
        let request_id = m.id.clone().unwrap_or_else(|| "unknown".into());
        let content = Fields::parse(text)
            .map_err(|_| Error::new(Code::Invalid, "not a JSON object"))
            .and_then(|f| f.required("content"));
        // A job is written to the disk: not on this thread.
        let submitted = content.and_then(|content| {
            let (shared, conn, id) = (shared.clone(), conn.clone(), request_id.clone());
            shared.clone().gateway.control_pool.submit(move || {
                if let Err(e) = shared.greeting().chat(&shared, &conn, &id, &content) {
                    let _ = conn.send(refusal(&id, e.code.wire(), &e.message));
                }
            })
        });
        if let Err(e) = submitted {
            let _ = conn.send(refusal(&request_id, e.code.wire(), &e.message));
        }
        true
    }

    /// Makes a job of the message; its outcome is sent when it is there.
    fn chat(&self, shared: &Arc<Shared>, conn: &Conn, request_id: &str, text: &str) -> Result<()> {
        let gateway = &shared.gateway;
        let agent_id = self.agent_id.clone().unwrap_or_else(|| MOTHER.into());
        if agent_id == MOTHER && self.principal.role != Role::Admin {
            return Err(Error::new(Code::Forbidden, "mother talks to admins only; name an agent"));
        }
        gateway.control.agents.ensure(&agent_id)?;
        let state = gateway.control.plane.state();
        let project = state.active_project(&agent_id).map(|p| p.id());
        let project = project.or_else(|| (agent_id == MOTHER).then(|| SYSTEM.to_owned()));
        let binding = Binding { agent_id, project_id: project, project_token: None };
        let who = Arc::new(who(&self.principal, &binding, 0));
        let mut cx = Cx::new(who, Deadline::after_ms(CHAT_MS));
        cx.correlation_id = Some(request_id.into());
        self.watch(shared, conn);
        // Held over both, so that a quick answer waits until its question is noted.
        let mut asked = self.asked();
        let job = gateway.runtime.chat(&cx, text)?;
        asked.insert(job, request_id.to_owned());
        Ok(())
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<JobId, String>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens for the answers, from the first message on.
    fn watch(&self, shared: &Arc<Shared>, conn: &Conn) {
        let (weak, conn) = (Arc::downgrade(shared), conn.clone());
        self.answers.get_or_init(|| {
            shared.gateway.runtime.subscribe(Arc::new(move |event| {
                if let Some(shared) = weak.upgrade() {
                    shared.greeting().hear(&conn, event);
                }
            }))
        });
    }

    fn hear(&self, conn: &Conn, event: &Event) {
        if !matches!(event.body, Body::Receive { .. } | Body::Error { .. }) {
            return;
        }
        let Some(request_id) = self.asked().remove(&event.job_id) else { return };
        let frame = match &event.body {
            Body::Receive { content } => {
                Message::text(received(&request_id, &self.session_key, content))
            }
            Body::Error { code, message } => refusal(&request_id, code, message),
            _ => return,
        };
        let _ = conn.send(frame);
    }
}

/// The answer, with both names for the request that these clients look for.
fn received(request_id: &str, session_key: &str, text: &str) -> String {
    Object::new()
        .put("type", "session.receive")
        .put("request", request_id)
        .put("id", request_id)
        .put("session_key", session_key)
        .put("role", "assistant")
        .put("content", text)
        .put("timestamp", now_ms())
        .finish()
}

fn refusal(request_id: &str, code: &str, message: &str) -> Message {
    let o = Object::new().put("type", "error").put("request", request_id).put("id", request_id);
    let o = o.put("code", code).put("message", message).put("timestamp", now_ms());
    Message::text(o.finish())
}
