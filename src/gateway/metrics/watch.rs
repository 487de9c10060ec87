//! The figures of `node_service_watch`, under the names that alerts are built on (spec: control 11.2).

use super::exposition::{Family, counter, gauge};

/// What happened to those who watch, and to the events that are kept for them.
#[derive(Clone, Debug)]
pub struct Watching {
    pub subscribers: u64,
    pub subscribers_peak: u64,
    pub replay_requests: u64,
    pub replay_attempted: u64,
    pub replay_sent: u64,
    pub replay_bytes: u64,
    pub fanout_events: u64,
    pub fanout_attempted: u64,
    pub fanout_sent: u64,
    pub fanout_dropped: u64,
    pub retained_events: u64,
    pub retained_capacity: u64,
    pub oldest_ms: Option<u64>,
    pub newest_ms: Option<u64>,
}

pub fn families(w: &Watching) -> Vec<Family> {
    let window_ms = w.newest_ms.zip(w.oldest_ms).map_or(0, |(new, old)| new.saturating_sub(old));
    vec![
        gauge(
            "spiderweb_node_service_watch_subscribers",
            "node_service_watch.subscribers.current",
            w.subscribers,
            "Connections that watch.",
        ),
        gauge(
            "spiderweb_node_service_watch_subscribers_peak",
            "node_service_watch.subscribers.peak",
            w.subscribers_peak,
            "Most connections that have watched at a time.",
        ),
        counter(
            "spiderweb_node_service_watch_replay_requests_total",
            "node_service_watch.replay.requests_total",
            w.replay_requests,
            "Watches that asked for what was before.",
        ),
        counter(
            "spiderweb_node_service_watch_replay_attempted_total",
            "node_service_watch.replay.attempted_total",
            w.replay_attempted,
            "Earlier events that were to be sent.",
        ),
        counter(
            "spiderweb_node_service_watch_replay_sent_total",
            "node_service_watch.replay.sent_total",
            w.replay_sent,
            "Earlier events that were sent.",
        ),
        counter(
            "spiderweb_node_service_watch_replay_bytes_total",
            "node_service_watch.replay.bytes_total",
            w.replay_bytes,
            "Bytes of earlier events that were sent.",
        ),
        counter(
            "spiderweb_node_service_watch_fanout_events_total",
            "node_service_watch.fanout.events_total",
            w.fanout_events,
            "Events that happened.",
        ),
        counter(
            "spiderweb_node_service_watch_fanout_attempted_total",
            "node_service_watch.fanout.attempted_total",
            w.fanout_attempted,
            "Copies of events that were to be sent.",
        ),
        counter(
            "spiderweb_node_service_watch_fanout_sent_total",
            "node_service_watch.fanout.sent_total",
            w.fanout_sent,
            "Copies of events that were sent.",
        ),
        counter(
            "spiderweb_node_service_watch_fanout_dropped_total",
            "node_service_watch.fanout.dropped_total",
            w.fanout_dropped,
            "Events that were gone before a slow reader took them.",
        ),
        gauge(
            "spiderweb_node_service_watch_retained_events",
            "node_service_watch.retained.events",
            w.retained_events,
            "Events that are kept.",
        ),
        gauge(
            "spiderweb_node_service_watch_retained_capacity",
            "node_service_watch.retained.capacity",
            w.retained_capacity,
            "Events that may be kept.",
        ),
        gauge(
            "spiderweb_node_service_watch_retained_oldest_ms",
            "node_service_watch.retained.oldest_ms",
            w.oldest_ms,
            "When the oldest event that is kept happened.",
        ),
        gauge(
            "spiderweb_node_service_watch_retained_newest_ms",
            "node_service_watch.retained.newest_ms",
            w.newest_ms,
            "When the newest event happened.",
        ),
        gauge(
            "spiderweb_node_service_watch_retained_window_ms",
            "node_service_watch.retained.window_ms",
            window_ms,
            "Time between the oldest and the newest event that are kept.",
        ),
    ]
}
