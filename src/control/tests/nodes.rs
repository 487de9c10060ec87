//! Invites, secrets and services of nodes.

use super::*;
use crate::base::now_ms;
use crate::control::events::Settings;
use crate::control::state::{Change, Counter, State};
use crate::wire::fs::{Grant, Rights};

#[test]
fn invites_are_listed_masked_and_taken_back() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let open = c.ok("node_invite_create", json!({}));
    let (_, _) = c.node("edge");
    c.ok("node_invite_create", json!({"expires_in_ms": 0}));
    let list = |c: &mut Client<'_>, payload: Value| {
        let invites = c.ok("node_invite_list", payload)["invites"].clone();
        let ids: Vec<_> =
            invites.as_array().unwrap().iter().map(|i| i["invite_id"].clone()).collect();
        (ids, invites)
    };
    let (ids, shown) = list(&mut c, json!({}));
    assert_eq!(ids, ["invite-1"]);
    assert!(!shown.to_string().contains(open["invite_token"].as_str().unwrap()), "{shown}");
    assert_eq!(list(&mut c, json!({"include_redeemed": true})).0, ["invite-1", "invite-2"]);
    assert_eq!(list(&mut c, json!({"include_expired": true})).0, ["invite-1", "invite-3"]);
    let (_, shown) = list(&mut c, json!({"reveal": true}));
    assert_eq!(shown[0]["invite_token"], open["invite_token"]);

    let revoke = |id: &str| json!({"invite_id": id});
    assert_eq!(c.err("node_invite_revoke", revoke("invite-2")), Code::InviteRedeemed);
    assert_eq!(c.err("node_invite_revoke", revoke("invite-9")), Code::InviteNotFound);
    assert_eq!(c.err("node_invite_revoke", json!({})), Code::MissingField);
    c.ok("node_invite_revoke", revoke("invite-1"));
    let join = json!({"invite_token": open["invite_token"]});
    assert_eq!(c.err("node_join", join), Code::InviteNotFound);
    let mut user = g.connect(Role::User);
    user.attach_to_new_project(&mut c);
    assert_eq!(user.err("node_invite_list", json!({"reveal": true})), Code::Forbidden);
}

#[test]
fn invites_and_answers_that_are_of_no_more_use_do_not_pile_up() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    // As after a long life of the gateway: filled in by hand, so that the test is quick.
    let invite = |number: u64| state::Invite {
        number,
        token: format!("inv-{number}"),
        created_at_ms: now_ms(),
        expires_at_ms: now_ms(),
        redeemed: true,
    };
    let answered = |number: u64| state::PendingJoin {
        number,
        node_name: "n".into(),
        fs_url: String::new(),
        platform: Default::default(),
        requested_at_ms: now_ms(),
        claim: "c".into(),
        approved: Some(number),
        origin: None,
    };
    let put = |state: &State| {
        let invites = (1..=1200).map(|n| Change::PutInvite(Arc::new(invite(n))));
        let answers = (1..=300).map(|n| Change::PutPending(Arc::new(answered(n))));
        let last = [Change::Last(Counter::Invite, 1200), Change::Last(Counter::PendingJoin, 300)];
        assert_eq!(state.invites.size(), 0);
        invites.chain(answers).chain(last).collect()
    };
    g.cx.plane.mutate(|state, _| Ok(((), put(state)))).unwrap();
    assert_eq!(c.ok("node_invite_create", json!({}))["invite_id"], "invite-1201");
    assert_eq!(c.ok("node_join_request", json!({}))["request_id"], "pending-join-301");
    let state = g.cx.plane.state();
    assert_eq!((state.invites.size(), state.pending.size()), (1000, 256));
    assert!(state.invites.contains_key(&1200), "the newest stay");
}

#[test]
fn one_address_does_not_keep_all_others_from_asking_to_join() {
    let g = Gateway::new();
    let ask = |peer: &str| {
        let mut c = g.connect(Role::Nobody);
        c.session.peer = Some(peer.parse().unwrap());
        c.call("node_join_request", json!({"node_name": "x"}))
    };
    for n in 0..32 {
        assert_eq!(ask(&format!("[2001:db8::{n:x}]:99"))["ok"], true);
    }
    let refused = ask("[2001:db8::ffff]:98");
    assert_eq!(refused["error"]["code"], "limit_exceeded", "{refused}");
    assert_eq!(ask("192.0.2.7:99")["ok"], true);
    let mut admin = g.connect(Role::Admin);
    assert_eq!(admin.call("node_join_request", json!({}))["ok"], true);
    let listed = admin.ok("node_join_pending_list", json!({}));
    let listed = listed["pending"].as_array().unwrap();
    assert_eq!(listed[0]["requested_from"], "2001:db8::");
    assert_eq!(listed[32]["requested_from"], "192.0.2.7");
    assert!(listed[33].get("requested_from").is_none());
}

#[test]
fn a_secret_is_replaced_without_shutting_the_node_out() {
    let g = Gateway::new();
    let mut admin = g.connect(Role::Admin);
    let (id, first) = admin.node("edge");
    let mut node = g.connect(Role::Nobody);
    let with = |secret: &str| json!({"node_id": id, "node_secret": secret});
    assert_eq!(node.err("node_secret_rotate", with("wrong")), Code::NodeAuthFailed);
    assert_eq!(node.err("node_secret_rotate", json!({"node_id": id})), Code::MissingField);
    let answer = node.ok("node_secret_rotate", with(&first));
    let second = answer["node_secret"].as_str().unwrap().to_owned();
    assert_ne!(second, first);
    // Who opens a grant that was made with it: as long as it counts itself.
    let grant = Grant { exports: Rights::default(), sub: "ann".into(), expires_at_s: u64::MAX };
    let opens = |secret: &str| {
        let node = g.cx.plane.state().node(&id).unwrap().clone();
        node.grant(&grant.mint(secret).unwrap(), now_ms()).is_ok()
    };
    assert_eq!([&*first, &second, "another"].map(opens), [true, true, false]);
    assert!(answer["former_valid_until_ms"].as_i64().unwrap() > now_ms());
    // The answer was lost: the node asks again, or goes on as if nothing had been.
    let again = node.ok("node_secret_rotate", with(&first));
    assert_eq!((&again["node_secret"], &again["rotated"]), (&json!(second), &json!(false)));
    assert_eq!(node.ok("node_lease_refresh", with(&first))["node_secret"], json!(second));
    node.ok("node_service_upsert", with(&first));
    // It has got it: the one before has done its duty.
    node.ok("node_lease_refresh", with(&second));
    assert_eq!(node.err("node_lease_refresh", with(&first)), Code::NodeAuthFailed);
    assert_eq!([&*first, &second].map(opens), [false, true]);
    // One that others know is replaced at once.
    let cut = admin.ok("node_secret_rotate", json!({"node_id": id, "grace_ms": 0}));
    assert_eq!(cut["former_valid_until_ms"], Value::Null);
    assert_eq!(node.err("node_lease_refresh", with(&second)), Code::NodeAuthFailed);
    let late = json!({"node_id": id, "grace_ms": 3_600_001});
    assert_eq!(admin.err("node_secret_rotate", late), Code::InvalidPayload);
    let shown = admin.ok("node_get", json!({"node_id": id})).to_string();
    assert!(!shown.contains("secret"), "{shown}");
}

#[test]
fn a_node_is_made_once_by_its_name() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let first = c.ok("node_ensure", json!({"node_name": "edge"}));
    assert_eq!((&first["created"], &first["node_id"]), (&json!(true), &json!("node-1")));
    let url = "ws://127.0.0.1:1/v2/fs";
    let again = c.ok("node_ensure", json!({"node_name": "edge", "fs_url": url}));
    assert_eq!(
        (&again["created"], &again["node_secret"], &again["fs_url"]),
        (&json!(false), &first["node_secret"], &json!(url))
    );
    assert_eq!(c.err("node_ensure", json!({})), Code::MissingField);
    c.ok("node_delete", json!({"node_id": "node-1"}));
    assert_eq!(c.ok("node_ensure", json!({"node_name": "edge"}))["node_id"], "node-2");
}

fn upsert(c: &mut Client<'_>, (id, secret): &(String, String), site: &str) -> Value {
    let labels = json!({"site": site});
    c.ok("node_service_upsert", json!({"node_id": id, "node_secret": secret, "labels": labels}))
}

#[test]
fn what_a_node_published_is_shown_and_told_to_those_who_may_hear() {
    let mut g = Gateway::new();
    {
        let mut c = g.connect(Role::Admin);
        let nodes = [c.node("a"), c.node("b")];
        upsert(&mut c, &nodes[0], "west");
        upsert(&mut c, &nodes[0], "west");
        upsert(&mut c, &nodes[1], "east");
        let shown = c.ok("node_service_get", json!({"node_id": "node-1"}));
        assert_eq!((&shown["labels"]["site"], &shown["services"]), (&json!("west"), &json!([])));
        assert!(shown.get("service_delta").is_none());
        assert_eq!(c.err("node_service_get", json!({"node_id": "node-9"})), Code::NodeNotFound);

        let ack = c.ok("node_service_watch", json!({"replay_limit": 9}));
        assert_eq!(ack, json!({"enabled": true, "replay_limit": 9, "replayed": 2, "seq": 2}));
        let begun = c.session.begun.take().unwrap();
        assert!(begun.replay[0].contains("west") && begun.replay[1].contains("east"));
        let ack = c.ok("node_service_watch", json!({"node_id": "node-2", "after_seq": 1}));
        assert_eq!((&ack["node_id"], &ack["replayed"]), (&json!("node-2"), &json!(1)));
        for bad in
            [json!({"replay_limit": -1}), json!({"node_id": "a/b"}), json!({"after_seq": "x"})]
        {
            assert_eq!(c.err("node_service_watch", bad), Code::InvalidPayload);
        }

        // A user hears of the nodes of his project.
        let mut user = g.connect(Role::User);
        user.attach_to_new_project(&mut c);
        assert_eq!(user.ok("node_service_watch", json!({}))["replayed"], 0);
        c.ok(
            "project_mount_set",
            json!({"project_id": "proj-1", "node_id": "node-1",
            "export_name": "work", "mount_path": "/src"}),
        );
        assert_eq!(user.ok("node_service_watch", json!({}))["replayed"], 1);
        c.ok(
            "project_update",
            json!({"project_id": "proj-1",
            "access_policy": {"actions": {"observe": "deny"}}}),
        );
        assert_eq!(user.err("node_service_watch", json!({})), Code::Forbidden);
        assert_eq!(user.ok("node_service_unwatch", json!({})), json!({"enabled": false}));
    }
    let events = &g.cx.events;
    let none = Settings { allow_admin: false, allow_user: false, ..events.settings };
    let log = Tail::read(&g.dir.path("none"), 0).unwrap();
    g.cx.events = Arc::new(events::Events::load(none, &log, &g.cx.plane.state()));
    assert_eq!(g.connect(Role::Admin).err("node_service_watch", json!({})), Code::Forbidden);
}
