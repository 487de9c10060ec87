//! Who has subscribed to debug events, telling them, and the log of all that is told (spec: control 9.2 to
//! 9.4). One that is too slow misses events and sees it by the gap in `seq`; as soon as it takes some
//! again, it is told to look at everything anew. What there is to tell is found out elsewhere.

use super::client::Shared;
use crate::base::{Result, now_ms};
use crate::control::topics::{SecurityEvent, Topic, Topics};
use crate::net::{Conn, Message};
use crate::runtime::event::{Body, Event};
use crate::store::Journal;
use crate::store::journal::Rotation;
use crate::wire::{Object, secret};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// When the log is rotated, and the archives kept (spec: control 9.4).
const ROTATION: Rotation = Rotation { max_bytes: 8 << 20, keep: 8 };

/// The log, and the connections that hear of what goes into it.
pub struct Stream {
    log: Journal,
    /// At most one for each connection.
    subscribers: Mutex<Vec<Arc<Subscriber>>>,
}

/// A connection that wants to be told.
pub struct Subscriber {
    client: Weak<Shared>,
    conn: Conn,
    topics: Topics,
    pub admin: bool,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    /// Events since it subscribed, those that it missed included.
    count: u64,
    /// It has missed some and was not told so.
    missed: bool,
}

impl Subscriber {
    pub fn client(&self) -> Option<Arc<Shared>> {
        self.client.upgrade()
    }

    pub fn is(&self, conn: &Conn) -> bool {
        self.conn.id() == conn.id()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, frame: Object) {
        let mut told = self.told();
        // One that has missed something hears of that first.
        self.resync(&mut told);
        told.count += 1;
        let frame = frame.put("seq", told.count).finish();
        told.missed = told.missed || self.conn.push(Message::text(frame)).is_err();
    }

    /// Tries to say that events are missing. To who hears nothing of topology the gap in `seq` says it.
    fn resync(&self, told: &mut Told) {
        if told.missed && self.topics.has(Topic::Topology) {
            let payload = changed("resync", None).finish();
            let frame = frame("workspace-topology", Topic::Topology.category(), &payload);
            let frame = frame.put("seq", told.count + 1).finish();
            if self.conn.push(Message::text(frame)).is_err() {
                return;
            }
            told.count += 1;
        }
        told.missed = false;
    }

    /// The same, when there is nothing else to tell; true while it cannot be said.
    fn catch_up(&self) -> bool {
        let mut told = self.told();
        self.resync(&mut told);
        told.missed && self.client.strong_count() > 0
    }
}

impl Stream {
    /// With the log in `dir`.
    pub fn open(dir: &Path) -> Result<Stream> {
        let log = Journal::open(dir, "debug-stream", ROTATION)?;
        Ok(Stream { log, subscribers: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Subscriber>>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn subscribers(&self) -> Vec<Arc<Subscriber>> {
        self.lock().clone()
    }

    /// Tells a connection from now on.
    pub fn subscribe(&self, client: &Arc<Shared>, conn: &Conn, topics: Topics, admin: bool) {
        let mut all = self.lock();
        all.retain(|s| s.client.strong_count() > 0 && !s.is(conn));
        let (client, conn) = (Arc::downgrade(client), conn.clone());
        all.push(Arc::new(Subscriber { client, conn, topics, admin, told: Mutex::default() }));
    }

    pub fn unsubscribe(&self, conn: &Conn) {
        self.lock().retain(|s| !s.is(conn));
    }

    /// Tells each subscriber of a topic what `payload` has for him, in JSON. True if it was somebody.
    pub fn tell(
        &self,
        topic: Topic,
        request: &str,
        payload: impl Fn(&Subscriber) -> Option<String>,
    ) -> bool {
        let mut somebody = false;
        for subscriber in self.subscribers().iter().filter(|s| s.topics.has(topic)) {
            if let Some(payload) = payload(subscriber) {
                subscriber.push(frame(request, topic.category(), &payload));
                somebody = true;
            }
        }
        somebody
    }

    /// Writes an event to the log.
    pub fn log(&self, topic: Topic, request: &str, agent_id: &str, payload: &str) {
        self.write(now_ms(), agent_id, &frame(request, topic.category(), payload).finish());
    }

    /// Does both, for what subscribers of a kind are told alike.
    pub fn tell_if(
        &self,
        topic: Topic,
        request: &str,
        agent_id: &str,
        payload: &str,
        may_hear: impl Fn(&Subscriber) -> bool,
    ) {
        self.tell(topic, request, |s| may_hear(s).then(|| payload.to_owned()));
        self.log(topic, request, agent_id, payload);
    }

    fn write(&self, at_ms: i64, agent_id: &str, event: &str) {
        let agent_id = if agent_id.is_empty() { "-" } else { agent_id };
        self.log.append(&format!("{at_ms}\t{agent_id}\t{}", secret::mask(event)));
    }

    /// Tells those who missed something; true while some cannot be told yet.
    pub fn catch_up(&self) -> bool {
        self.subscribers().iter().filter(|s| s.catch_up()).count() > 0
    }

    /// Somebody was refused. Called where a connection's session is in use, so no session is looked at.
    pub fn security(&self, event: SecurityEvent) {
        let request = event.correlation_id.as_deref().unwrap_or("security");
        let payload = event.payload.finish();
        self.tell_if(Topic::Security, request, &event.agent_id, &payload, |s| s.admin);
    }

    /// A session was attached (spec: control 9.2). There is nothing to warm up, so it is ready.
    pub fn attached(&self, conn: &Conn, agent_id: &str, project_id: Option<&str>) {
        let project_id = project_id.unwrap_or_default();
        let payload = Object::new()
            .put("binding", format_args!("{agent_id}\u{1f}{project_id}"))
            .put("state", "ready")
            .put("runtime_ready", true)
            .put("mount_ready", true)
            .put("error_code", None::<&str>)
            .put("error_message", None::<&str>)
            .put("updated_at_ms", now_ms());
        let may_hear = |s: &Subscriber| s.admin || s.is(conn);
        let payload = payload.finish();
        self.tell_if(Topic::AttachState, "session-attach", agent_id, &payload, may_hear);
    }

    /// Keeps what an agent did (spec: namespace 9.4: other frames are wrapped). Those who attached to it
    /// are told elsewhere.
    pub fn agent(&self, event: &Event) {
        if event.body.is_piece() {
            return;
        }
        let text = event.frame(Object::new());
        if matches!(event.body, Body::Debug { .. }) {
            return self.write(event.at_ms, &event.agent_id, &text);
        }
        let request = event.job_id.to_string();
        let payload = Object::new()
            .put("request_id", &request)
            .put("frame_type", event.body.type_name())
            .raw("frame", &text)
            .finish();
        let text = Object::new()
            .put("type", "debug.event")
            .put("request", request)
            .put("category", "runtime.frame")
            .raw("payload", &payload)
            .put("timestamp", event.at_ms);
        self.write(event.at_ms, &event.agent_id, &text.finish());
    }

    /// Writes what is pending of the log.
    pub fn stop(&self) {
        self.log.stop();
    }
}

/// The payload of `control.workspace_topology`; without a project it is about all.
pub fn changed(reason: &str, project_id: Option<&str>) -> Object {
    Object::new()
        .put("event", "workspace_topology_changed")
        .put("reason", reason)
        .put_some("project_id", project_id)
        .put("ts_ms", now_ms())
}

/// What old clients wait for after `debug_subscribe`: an event that names their request (spec: fs 18).
pub fn acknowledgement(request: &str) -> Message {
    Message::text(frame(request, "control.debug_subscribe", r#"{"enabled":true}"#).finish())
}

/// `debug.event` frames have no `channel` (spec: control 9.2).
fn frame(request: &str, category: &str, payload: &str) -> Object {
    Object::with_capacity(payload.len() + 192)
        .put("type", "debug.event")
        .put("request", request)
        .put("category", category)
        .raw("payload", payload)
        .put("timestamp", now_ms())
}
