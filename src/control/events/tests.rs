//! The ring of service events, on its own.

use super::*;
use crate::store::testing::TempDir;

fn event(seq: u64, node_id: &str, changed: bool) -> ServiceEvent {
    let payload = format!(r#"{{"node_id":"{node_id}","services":[{{"api_key":"k{seq}"}}]}}"#);
    ServiceEvent { seq, at_ms: seq as i64, node_id: node_id.into(), payload, changed }
}

fn settings(history_max: usize) -> Settings {
    Settings { history_max, ..Settings::from_env(&Env::default()).unwrap() }
}

fn empty(history_max: usize) -> Events {
    let log = Tail::read(&TempDir::new().path("none"), 0).unwrap();
    Events::load(settings(history_max), &log, &State::default())
}

fn hear(events: &Events, event: ServiceEvent) {
    events.heard(&[Change::ServiceEvent(Arc::new(event))]);
}

/// Everything that somebody who stands at a place is given, and whether something is missing.
fn after(events: &Events, at: u64) -> (Vec<(u64, bool)>, bool) {
    let next = events.after(at, 100);
    (next.events.iter().map(|p| (p.event.seq, p.event.changed)).collect(), next.missed > 0)
}

fn watcher(node_id: Option<&str>) -> Watcher {
    Watcher { node_id: node_id.map(str::to_owned), user: None }
}

fn begin(events: &Events, limit: Option<u64>, after_seq: Option<u64>) -> (Vec<u64>, Beginning) {
    let begun = events.begin(&State::default(), watcher(None), limit, after_seq);
    let seqs = begun.replay.iter().map(|frame| {
        let frame: Value = serde_json::from_str(frame).unwrap();
        assert_eq!(
            (&frame["type"], &frame["ok"]),
            (&"control.node_service_event".into(), &true.into())
        );
        frame["seq"].as_u64().unwrap()
    });
    (seqs.collect(), begun)
}

#[test]
fn events_are_given_in_their_order_and_what_changed_nothing_is_not_kept() {
    let events = empty(64);
    hear(&events, event(1, "node-1", true));
    hear(&events, event(1, "node-1", false));
    hear(&events, event(2, "node-2", true));
    assert_eq!(after(&events, 0), (vec![(1, true), (1, false), (2, true)], false));
    assert_eq!(after(&events, 2), (vec![(2, true)], false));
    assert_eq!(after(&events, events.end()), (vec![], false));
    assert_eq!(events.retained().events, 2);
    assert_eq!(begin(&events, None, None).0, [1, 2], "history");
    assert_eq!(events.after(0, 2).events.len(), 2);
    let of_one = events.begin(&State::default(), watcher(Some("node-2")), None, None);
    assert_eq!(of_one.replay.len(), 1);
}

#[test]
fn who_is_too_slow_sees_it() {
    let events = empty(3);
    (1..=5).for_each(|n| hear(&events, event(n, "node-1", true)));
    assert_eq!(after(&events, 0), (vec![(3, true), (4, true), (5, true)], true));
    assert!(!after(&events, 2).1, "what is gone it has had");
    // Bytes count, too.
    let events = empty(64);
    let large =
        |seq| ServiceEvent { payload: "x".repeat(HISTORY_BYTES / 2), ..event(seq, "n", true) };
    (1..=3).for_each(|n| hear(&events, large(n)));
    assert_eq!(after(&events, 0), (vec![(2, true), (3, true)], true));
    (0..PASSING_MAX as u64 + 9).for_each(|_| hear(&events, event(3, "n", false)));
    assert_eq!(events.ring().passing.len(), PASSING_MAX);
    assert_eq!(events.retained().events, 2, "passing events push out no others");
}

#[test]
fn a_watch_goes_on_where_its_replay_ended() {
    let events = empty(64);
    (1..=9).for_each(|n| hear(&events, event(n, "node-1", true)));
    let (replayed, begun) = begin(&events, Some(2), None);
    assert_eq!((replayed, begun.limit, begun.seq), (vec![8, 9], 2, 9));
    assert_eq!(after(&events, begun.watch.at).0, []);
    assert!(begin(&events, Some(0), None).0.is_empty());
    // One that knows where it stands is given everything, the rest after the answer.
    let (replayed, begun) = begin(&events, Some(2), Some(5));
    assert_eq!((replayed, begun.resync), (vec![6, 7], false));
    assert_eq!(after(&events, begun.watch.at).0, [(8, true), (9, true)]);
    let (replayed, begun) = begin(&events, None, Some(9));
    assert_eq!((replayed, begun.resync), (vec![], false));
    for unknown in [10, u64::MAX] {
        assert!(begin(&events, None, Some(unknown)).1.resync, "{unknown}");
    }
    let short = empty(3);
    (1..=9).for_each(|n| hear(&short, event(n, "node-1", true)));
    let (replayed, begun) = begin(&short, None, Some(5));
    assert_eq!((replayed, begun.resync), (vec![7, 8, 9], true));
    assert!(begun.replay[0].contains(r#""resync":true"#) && !begun.replay[1].contains("resync"));
    // Limits are what the environment says.
    assert_eq!(begin(&events, Some(u64::MAX), None).1.limit, 250);
}

#[test]
fn history_is_read_back_from_the_end_of_the_log() {
    let dir = TempDir::new();
    let path = dir.path("log");
    let line = |n: u64| event(n, "node-1", true).line() + "\n";
    let old = r#"{"timestamp_ms":0,"node_id":"node-1","payload_json":"{\"services\":[]}"}"#;
    let text = format!("{old}\n{}{{\"torn\nnonsense\n{}{}{{\"timestamp", line(1), line(2), line(7));
    std::fs::write(&path, text).unwrap();
    let mut state = State::default();
    state.apply(&Change::Last(Counter::ServiceEvent, 3));
    let events = Events::load(settings(64), &Tail::read(&path, Events::LOG_TAIL).unwrap(), &state);
    let (replayed, begun) = begin(&events, None, None);
    assert_eq!((replayed, begun.seq), (vec![0, 1, 2], 3), "7 was of another time");
    assert!(begin(&events, None, Some(2)).1.resync, "3 is not in the log");
    assert!(!begin(&events, None, Some(3)).1.resync);
    assert!(!line(1).contains("k1") && line(1).contains("[redacted]"), "{}", line(1));
}

#[test]
fn variables_that_are_wrong_are_named_and_numbers_stay_within_their_range() {
    let read = |name: &str, value: &str| {
        let name = format!("SPIDERWEB_NODE_SERVICE_{name}");
        Settings::from_env(&[(name.as_str(), value)].into_iter().collect())
    };
    assert!(read("WATCH_ALLOW_USER", " Yes ").unwrap().allow_user);
    assert!(!read("WATCH_ALLOW_ADMIN", "off").unwrap().allow_admin);
    assert_eq!(read("WATCH_REPLAY_MAX", "0").unwrap().replay_max, 1);
    assert_eq!(read("WATCH_REPLAY_MAX", "99999").unwrap().replay_max, 10_000);
    assert_eq!(read("EVENT_HISTORY_MAX", "1").unwrap().history_max, 64);
    assert_eq!(read("EVENT_LOG_ROTATE_MAX_BYTES", "0").unwrap().rotation.max_bytes, 0);
    assert_eq!(read("EVENT_LOG_ARCHIVE_KEEP", "65").unwrap().rotation.keep, 64);
    assert_eq!(read("WATCH_REPLAY_MAX", " ").unwrap().replay_max, 250);
    for (name, value) in [
        ("WATCH_ALLOW_USER", "maybe"),
        ("WATCH_REPLAY_MAX", "-1"),
        ("EVENT_HISTORY_MAX", "many"),
        ("EVENT_LOG_ARCHIVE_KEEP", "1.5"),
    ] {
        let e = read(name, value).unwrap_err();
        assert!(e.code == Code::Config && e.message.contains(name), "{e}");
    }
}
