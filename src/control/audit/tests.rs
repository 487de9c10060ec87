use super::*;
use crate::control::state::State;
use crate::store::testing::TempDir;
use crate::store::{Db, SqliteKv};

fn store(dir: &TempDir) -> Arc<dyn Kv> {
    let db = Db::open(&dir.path("state.db"), &[SqliteKv::SCHEMA]).unwrap();
    Arc::new(SqliteKv::new(db))
}

fn open(kv: &Arc<dyn Kv>) -> Arc<Audit> {
    Arc::new(Audit::open(kv.clone()).unwrap())
}

fn entry(n: u64) -> Entry {
    Entry { timestamp_ms: n as i64, ..Entry::new("control.project_create") }
}

fn write(audit: &Audit, ids: std::ops::RangeInclusive<u64>) {
    ids.for_each(|n| audit.record(entry(n)).unwrap());
}

fn put(kv: &Arc<dyn Kv>, key: String, value: Vec<u8>) {
    kv.commit(Txn { puts: vec![(key, value)], ..Txn::default() }).unwrap();
}

fn delete(kv: &Arc<dyn Kv>, key: String) {
    kv.commit(Txn { deletes: vec![key], ..Txn::default() }).unwrap();
}

fn ids(audit: &Audit, filter: Filter, limit: usize) -> Vec<u64> {
    audit.tail(&filter, limit).unwrap().into_iter().map(|(record, _)| record.id).collect()
}

/// The first record that does not hold.
fn broken(audit: &Audit) -> Option<u64> {
    audit.verify().unwrap().broken.map(|b| b.id)
}

#[test]
fn the_chain_goes_on_where_it_ended() {
    let dir = TempDir::new();
    let kv = store(&dir);
    write(&open(&kv), 1..=3);
    let audit = open(&kv);
    assert!(audit.broken().is_none());
    write(&audit, 4..=4);
    audit.note(entry(5));
    assert_eq!(ids(&audit, Filter::default(), 9), [5, 4, 3, 2, 1]);
    let found = audit.tail(&Filter::default(), 9).unwrap();
    for (newer, older) in found.iter().zip(&found[1..]) {
        assert_eq!(newer.0.prev, older.1);
    }
    let verified = audit.verify().unwrap();
    assert_eq!((verified.records, verified.last_id, verified.broken), (5, 5, None));
    assert_eq!(verified.hash, found[0].1);
}

#[test]
fn every_change_by_another_hand_is_found() {
    let forge = |text: &str| text.replace("project_create", "project_delete");
    type Hand = Box<dyn Fn(&Arc<dyn Kv>)>;
    let hands: [(&str, u64, Hand); 6] = [
        ("changed", 2, {
            Box::new(move |kv| {
                let row = kv.get(&key(2)).unwrap().unwrap();
                put(kv, key(2), forge(&String::from_utf8(row.value).unwrap()).into());
            })
        }),
        ("taken out", 2, Box::new(|kv| delete(kv, key(2)))),
        ("the newest taken away", 4, Box::new(|kv| delete(kv, key(4)))),
        ("made unreadable", 2, Box::new(|kv| put(kv, key(2), b"{".to_vec()))),
        ("the newest changed", 4, {
            Box::new(move |kv| {
                let row = kv.get(&key(4)).unwrap().unwrap();
                put(kv, key(4), forge(&String::from_utf8(row.value).unwrap()).into());
            })
        }),
        ("the end taken away", 4, Box::new(|kv| delete(kv, HEAD.into()))),
    ];
    for (what, first, hand) in hands {
        let dir = TempDir::new();
        let kv = store(&dir);
        write(&open(&kv), 1..=4);
        hand(&kv);
        // It goes on, gives no id out again, and does not forget.
        let audit = open(&kv);
        let at_start = what.contains("newest") || what.contains("end");
        assert_eq!(audit.broken().is_some(), at_start, "{what}");
        audit.record(entry(5)).unwrap();
        assert_eq!(ids(&audit, Filter::default(), 1), [5], "{what}");
        let found = broken(&audit);
        assert_eq!(found.or(audit.broken().map(|b| b.id)), Some(first), "{what}");
    }
}

#[test]
fn what_names_the_end_wrongly_neither_ends_the_gateway_nor_reuses_an_id() {
    for end in [&br#"{"id":18446744073709551615,"hash":"x"}"#[..], b"{", br#"{"id":1,"hash":"x"}"#]
    {
        let dir = TempDir::new();
        let kv = store(&dir);
        write(&open(&kv), 1..=3);
        put(&kv, HEAD.into(), end.to_vec());
        let audit = open(&kv);
        assert!(audit.broken().is_some());
        audit.record(entry(4)).unwrap();
        assert_eq!(ids(&audit, Filter::default(), 2), [4, 3]);
    }
}

#[test]
fn the_oldest_are_removed_and_the_rest_still_holds() {
    let dir = TempDir::new();
    let kv = store(&dir);
    let audit = open(&kv);
    for first in [1, 301, 601] {
        for n in first..first + 300 {
            audit.begin().unwrap().commit(Txn::default(), Some(entry(n)), Box::new(drop));
        }
        audit.record(entry(0)).unwrap();
    }
    audit.keep.store(300, Ordering::Relaxed);
    assert!(audit.prune().unwrap());
    let all = ids(&audit, Filter::default(), usize::MAX);
    assert_eq!((all[0], all[all.len() - 1]), (903, 2 * PAGE));
    assert!((300..300 + PAGE as usize).contains(&all.len()));
    assert_eq!(broken(&audit), None);
    let audit = open(&kv);
    assert_eq!((audit.broken(), broken(&audit)), (None, None));
    delete(&kv, key(2 * PAGE));
    assert_eq!(broken(&audit), Some(2 * PAGE), "the first after what was removed");
}

#[test]
fn a_filter_finds_across_pages_and_pages_go_both_ways() {
    let dir = TempDir::new();
    let kv = store(&dir);
    let audit = open(&kv);
    for n in 1..=600 {
        let mut entry = entry(n);
        if n % 100 == 0 {
            entry.principal = Some("alice".into());
            entry.mention("project_id", "proj-7".into());
            entry = entry.failed(Code::Forbidden);
        }
        audit.begin().unwrap().commit(Txn::default(), Some(entry), Box::new(drop));
    }
    kv.commit(Txn::default()).unwrap();
    let by = |f: Filter| ids(&audit, f, 50);
    let hundreds = [600, 500, 400, 300, 200, 100];
    let text = |s: &str| Some(s.to_owned());
    assert_eq!(by(Filter { principal: text("alice"), ..Filter::default() }), hundreds);
    assert_eq!(by(Filter { about: text("proj-7"), ..Filter::default() }), hundreds);
    assert_eq!(by(Filter { code: text("forbidden"), ..Filter::default() }), hundreds);
    assert_eq!(by(Filter { result: Some(Outcome::Error), ..Filter::default() }), hundreds);
    assert!(by(Filter { agent_id: text("alice"), ..Filter::default() }).is_empty());
    let part = Filter { since_ms: Some(5), until_ms: Some(7), ..Filter::default() };
    assert_eq!(by(part), [7, 6, 5]);
    let part = Filter { after_id: Some(254), before_id: Some(258), ..Filter::default() };
    assert_eq!(by(part), [257, 256, 255]);
    for part in [
        Filter { after_id: Some(600), ..Filter::default() },
        Filter { after_id: Some(u64::MAX), ..Filter::default() },
        Filter { before_id: Some(1), ..Filter::default() },
        Filter { before_id: Some(0), ..Filter::default() },
    ] {
        assert!(by(part).is_empty());
    }
    assert!(ids(&audit, Filter::default(), 0).is_empty());
}

#[test]
fn what_is_noted_is_written_soon_even_while_others_are_only_counted() {
    let dir = TempDir::new();
    let kv = store(&dir);
    let audit = open(&kv);
    let pool = Pool::start("audit-test", 1, 16).unwrap();
    audit.start(KEEP, Timer::start().unwrap(), pool);
    let newest = || query::link(&*kv, HEAD).unwrap().map_or(0, |l| l.id);
    let until = |id: u64| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while newest() < id {
            assert!(Instant::now() < deadline, "{} instead of {id}", newest());
            std::thread::yield_now();
        }
    };
    let refusal = || Entry::new("connection.refused").failed(Code::Forbidden);
    let admitted = (0..20).filter(|_| audit.note(refusal())).count() as u64;
    assert!(admitted < 20);
    until(admitted);
    audit.note(entry(1));
    until(admitted + 1);
    audit.finish().unwrap();
    let told = audit.tail(&Filter::default(), 1).unwrap();
    assert_eq!(told[0].0.entry.left_out, 20 - admitted);
}

#[test]
fn what_a_client_says_is_kept_short_and_without_secrets() {
    let token = crate::base::id::hex_token("secret-");
    let kept = Entry::new("x").correlated(Some(&format!("a\n{token}"))).correlation_id.unwrap();
    assert_eq!(kept, "a [redacted]");
    // Nor does a part of it come through where the text is cut.
    for before in [0, 100, 120, 1000, 1010, 1020] {
        let kept = bounded(&format!("{}{token}", "é".repeat(before / 2)));
        assert!(kept.len() <= 128 && !kept.contains(&token[..8]), "{before}: {kept}");
    }
}

#[test]
fn a_renewal_in_time_is_routine_and_nothing_else() {
    use crate::control::state::{Change, Node};
    let node: Node = serde_json::from_value(serde_json::json!({"number": 1, "name": "edge",
        "fs_url": "ws://a", "secret": "s", "lease_token": "l", "joined_at_ms": 1, "last_seen_ms": 1,
        "lease_expires_at_ms": 100, "platform": {"os": "linux", "arch": "x", "runtime_kind": "y"}}))
    .unwrap();
    let mut state = State::default();
    state.apply(&Change::PutNode(Arc::new(node.clone())));
    let is_routine = |node: Node| is_routine(&state, &[Change::PutNode(Arc::new(node))]);
    assert!(is_routine(node.refreshed(None, 50, 60)));
    assert!(!is_routine(node.refreshed(None, 50, 101)), "it was away");
    assert!(!is_routine(node.refreshed(Some("ws://b".into()), 50, 60)), "it has moved");
    assert!(!is_routine(Node { secret: "t".into(), ..node.clone() }));
    assert!(!is_routine(Node { number: 2, ..node }), "it is new");
    let one = Change::Activate { agent_id: "a".into(), project: 1 };
    assert!(!super::is_routine(&state, &[one]));
}
