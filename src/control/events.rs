//! What nodes have told of their services (spec: control 8.6 and 9.1): the newest events in memory, each
//! with its number, and who may hear of them. No sockets and no threads: those who deliver ask from
//! where they stand, so that one that is slow costs the others nothing and nothing is queued for it.

use super::policy::{Action, Asker, check};
use super::session::Binding;
use super::state::{Change, Counter, Node, State};
use crate::base::{Code, Error, Notify, Result};
use crate::config::Env;
use crate::store::journal::{Rotation, Tail};
use crate::wire::{Fields, Object, secret};
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of payloads that are remembered, however few events these are; as many of the log are read at
/// the start.
const HISTORY_BYTES: usize = 16 << 20;
/// Events that changed nothing, kept until they are told.
const PASSING_MAX: usize = 256;
/// Bytes of the frames that are sent before the answer to a watch.
const REPLAY_BYTES: usize = 4 << 20;
const REPLAY_DEFAULT: usize = 25;

/// What the gateway's environment says of these events (spec: control 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub allow_admin: bool,
    pub allow_user: bool,
    pub replay_max: usize,
    pub history_max: usize,
    pub rotation: Rotation,
}

impl Settings {
    /// From `SPIDERWEB_NODE_SERVICE_…`; numbers outside of their range become the nearest within.
    /// Errors: `invalid_config`, naming the variable.
    pub fn from_env(env: &Env) -> Result<Settings> {
        let number = |name: &str, default: u64, min: u64, max: u64| -> Result<u64> {
            let value = variable(env, name, "a whole number", |text| text.parse::<u64>().ok())?;
            Ok(value.unwrap_or(default).clamp(min, max))
        };
        let count = |name: &str, default, min, max| {
            number(name, default, min, max).map(|n| usize::try_from(n).unwrap_or(usize::MAX))
        };
        let allow =
            |name: &str| variable(env, name, "1, 0, true, false, yes, no, on or off", truth);
        Ok(Settings {
            allow_admin: allow("WATCH_ALLOW_ADMIN")?.unwrap_or(true),
            allow_user: allow("WATCH_ALLOW_USER")?.unwrap_or(false),
            replay_max: count("WATCH_REPLAY_MAX", 250, 1, 10_000)?,
            history_max: count("EVENT_HISTORY_MAX", 1024, 64, 20_000)?,
            rotation: Rotation {
                max_bytes: number("EVENT_LOG_ROTATE_MAX_BYTES", 8 << 20, 0, u64::MAX)?,
                keep: count("EVENT_LOG_ARCHIVE_KEEP", 8, 0, 64)?,
            },
        })
    }
}

fn variable<T>(
    env: &Env,
    name: &str,
    what: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>> {
    let name = format!("SPIDERWEB_NODE_SERVICE_{name}");
    let Some(text) = env.get(&name).map(str::trim).filter(|t| !t.is_empty()) else {
        return Ok(None);
    };
    let value = read(text);
    value.map(Some).ok_or_else(|| {
        Error::new(Code::Config, format!("environment variable {name}: {text:?} is not {what}"))
    })
}

fn truth(text: &str) -> Option<bool> {
    match &*text.to_ascii_lowercase() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// A node has published its catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEvent {
    /// Counts the events that changed something, also over restarts. One that changed nothing has the
    /// number of the one before it.
    pub seq: u64,
    pub at_ms: i64,
    pub node_id: String,
    /// What the node was answered: a JSON object.
    pub payload: String,
    pub changed: bool,
}

impl ServiceEvent {
    pub fn new(state: &State, node: &Node, payload: Object, changed: bool) -> ServiceEvent {
        ServiceEvent {
            seq: match changed {
                true => state.next(Counter::ServiceEvent).0,
                false => state.last(Counter::ServiceEvent),
            },
            at_ms: node.last_seen_ms,
            node_id: node.id(),
            payload: payload.finish(),
            changed,
        }
    }

    /// The frame that is pushed. `resync`: events before it were lost for this watcher.
    pub fn frame(&self, resync: bool) -> String {
        let o = Object::with_capacity(self.payload.len() + 128)
            .put("channel", "control")
            .put("type", "control.node_service_event")
            .put("ok", true)
            .put("seq", self.seq)
            .put_some("resync", resync.then_some(true));
        o.raw("payload", &self.payload).finish()
    }

    /// The line of the log (spec: control 12.4), without secrets.
    pub fn line(&self) -> String {
        let payload = serde_json::from_str(&self.payload).map(|mut payload: Value| {
            secret::redact(&mut payload);
            payload.to_string()
        });
        let payload = payload.unwrap_or_default();
        Object::with_capacity(payload.len() + 128)
            .put("timestamp_ms", self.at_ms)
            .put("node_id", &self.node_id)
            .put("payload_json", secret::mask(&payload))
            .put("seq", self.seq)
            .finish()
    }

    /// `None` for what is no line. Those of old gateways have no number.
    fn read(line: &str) -> Option<ServiceEvent> {
        let f = Fields::parse(line).ok()?;
        let payload = f.string("payload_json").ok()??;
        Fields::parse(&payload).ok()?;
        Some(ServiceEvent {
            seq: f.u64("seq").ok()?.unwrap_or(0),
            at_ms: f.i64("timestamp_ms").ok()??,
            node_id: f.string("node_id").ok()??,
            payload,
            changed: true,
        })
    }
}

/// An event in its place: `at` counts what arrived since the start of the program, from 1.
#[derive(Clone, Debug)]
pub struct Placed {
    pub at: u64,
    pub event: Arc<ServiceEvent>,
}

/// The newest events.
pub struct Events {
    pub settings: Settings,
    ring: Mutex<Ring>,
    news: Notify,
}

#[derive(Default)]
struct Ring {
    /// The history, and the bytes of its payloads.
    kept: VecDeque<Placed>,
    bytes: usize,
    /// What changed nothing: told to those who listen, and forgotten.
    passing: VecDeque<Placed>,
    arrived: u64,
    /// The place of the newest that the history has lost again.
    lost_at: u64,
    /// The newest number.
    seq: u64,
}

impl Ring {
    fn push(&mut self, event: Arc<ServiceEvent>, history_max: usize) {
        self.arrived += 1;
        self.seq = self.seq.max(event.seq);
        let placed = Placed { at: self.arrived, event };
        if !placed.event.changed {
            self.passing.push_back(placed);
            if self.passing.len() > PASSING_MAX {
                self.passing.pop_front();
            }
            return;
        }
        self.bytes += placed.event.payload.len();
        self.kept.push_back(placed);
        while self.kept.len() > history_max || (self.bytes > HISTORY_BYTES && self.kept.len() > 1) {
            let Some(old) = self.kept.pop_front() else { break };
            self.bytes -= old.event.payload.len();
            self.lost_at = old.at;
        }
    }

    /// True if every event after number `seq` is here.
    fn has_all_after(&self, seq: u64) -> bool {
        let after = self.kept.iter().map(|p| p.event.seq).filter(|s| *s > seq);
        seq <= self.seq && after.eq(seq + 1..=self.seq)
    }
}

/// What comes after a place.
pub struct Next {
    pub events: Vec<Placed>,
    /// How many that came after that place are no longer there.
    pub missed: u64,
}

/// How full the history is, for those who measure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retained {
    pub events: usize,
    pub capacity: usize,
    pub oldest_ms: Option<i64>,
    pub newest_ms: Option<i64>,
}

impl Events {
    /// With the history that a log's end holds.
    pub fn load(settings: Settings, log: &Tail, state: &State) -> Events {
        let mut ring = Ring::default();
        let known = state.last(Counter::ServiceEvent);
        let events = log.lines().filter_map(ServiceEvent::read);
        for event in events.filter(|e| e.seq <= known) {
            ring.push(Arc::new(event), settings.history_max);
        }
        ring.seq = known;
        Events { settings, ring: Mutex::new(ring), news: Notify::default() }
    }

    /// How many bytes of the end of a log are worth reading.
    pub const LOG_TAIL: u64 = HISTORY_BYTES as u64;

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up what has become durable; a listener of the plane.
    pub fn heard(&self, changes: &[Change]) {
        let mut told = false;
        for change in changes {
            if let Change::ServiceEvent(event) = change {
                self.ring().push(event.clone(), self.settings.history_max);
                told = true;
            }
        }
        if told {
            self.news.notify();
        }
    }

    /// Notified of each event.
    pub fn news(&self) -> &Notify {
        &self.news
    }

    /// The place of the newest.
    pub fn end(&self) -> u64 {
        self.ring().arrived
    }

    /// At most `max` events after a place, in their order.
    pub fn after(&self, at: u64, max: usize) -> Next {
        let ring = self.ring();
        let from = |q: &VecDeque<Placed>| q.partition_point(|p| p.at <= at);
        let kept = ring.kept.range(from(&ring.kept)..).take(max);
        let passing = ring.passing.range(from(&ring.passing)..).take(max);
        let mut events: Vec<_> = kept.chain(passing).cloned().collect();
        events.sort_by_key(|p| p.at);
        events.truncate(max);
        Next { events, missed: ring.lost_at.saturating_sub(at) }
    }

    pub fn retained(&self) -> Retained {
        let ring = self.ring();
        let ms = |p: Option<&Placed>| p.map(|p| p.event.at_ms);
        Retained {
            events: ring.kept.len(),
            capacity: self.settings.history_max,
            oldest_ms: ms(ring.kept.front()),
            newest_ms: ms(ring.kept.back()),
        }
    }

    /// Begins to watch: what is sent before the answer, and from where it goes on. `after_seq`: where the
    /// watcher stands; then nothing is left out, and what does not fit before the answer follows it.
    pub fn begin(
        &self,
        state: &State,
        who: Watcher,
        limit: Option<u64>,
        after_seq: Option<u64>,
    ) -> Beginning {
        let max = self.settings.replay_max;
        let limit = limit.map(|n| usize::try_from(n).unwrap_or(max).min(max));
        let ring = self.ring();
        let (seq, resync, end) =
            (ring.seq, after_seq.is_some_and(|s| !ring.has_all_after(s)), ring.arrived);
        let kept: Vec<Placed> = ring.kept.iter().cloned().collect();
        drop(ring);
        let sees = |p: &&Placed| who.sees(state, &p.event);
        let mut bytes = 0;
        let mut fits = |p: &&Placed| {
            bytes += p.event.payload.len();
            bytes <= REPLAY_BYTES
        };
        let (limit, events, at) = match after_seq {
            None => {
                let limit = limit.unwrap_or(REPLAY_DEFAULT.min(max));
                let newest = kept.iter().rev().filter(sees).take(limit).take_while(&mut fits);
                let mut events: Vec<_> = newest.cloned().collect();
                events.reverse();
                (limit, events, end)
            }
            Some(after) => {
                let limit = limit.unwrap_or(max);
                let missed = || kept.iter().filter(|p| p.event.seq > after).filter(sees);
                let events: Vec<_> = missed().take(limit).take_while(&mut fits).cloned().collect();
                // What is left begins behind the last that was taken.
                let left = missed().nth(events.len());
                let at = left.map_or(end, |left| left.at - 1);
                (limit, events, at)
            }
        };
        // The first tells that some are missing before it.
        let frame = |(n, p): (usize, &Placed)| p.event.frame(resync && n == 0);
        let replay = events.iter().enumerate().map(frame).collect();
        Beginning { watch: Watch { who, at }, replay, limit, seq, resync }
    }
}

/// How a watch begins.
#[derive(Debug)]
pub struct Beginning {
    pub watch: Watch,
    /// Frames to be sent before the answer.
    pub replay: Vec<String>,
    pub limit: usize,
    /// The newest number there is.
    pub seq: u64,
    /// Events after the number that was given are lost.
    pub resync: bool,
}

/// Who watches, and where he stands.
#[derive(Clone, Debug)]
pub struct Watch {
    pub who: Watcher,
    pub at: u64,
}

/// What somebody may hear and wants to.
#[derive(Clone, Debug)]
pub struct Watcher {
    /// Only of this node.
    pub node_id: Option<String>,
    /// For whom a user watches, as it was when he began; admins hear everything.
    pub user: Option<Binding>,
}

impl Watcher {
    /// A user hears of the nodes that his project mounts, if he may observe it (spec: control 8.6).
    pub fn sees(&self, state: &State, event: &ServiceEvent) -> bool {
        if self.node_id.as_ref().is_some_and(|id| *id != event.node_id) {
            return false;
        }
        let Some(user) = &self.user else { return true };
        let project = user.project_id.as_ref().and_then(|id| state.project(id).ok());
        project.is_some_and(|project| {
            project.mounts.iter().any(|m| m.node_id == event.node_id)
                && check(project, Action::Observe, asker(user)).is_ok()
        })
    }
}

/// A user who acts under a binding.
pub fn asker(user: &Binding) -> Asker<'_> {
    Asker { admin: false, agent_id: Some(&user.agent_id), token: user.project_token.as_deref() }
}

#[cfg(test)]
mod tests;
