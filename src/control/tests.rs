//! The operations, driven as the gateway drives them: messages in, frames out, on a real store.

use super::*;
use crate::base::{Code, Error, Pool, Timer};
use crate::config::Env;
use crate::config::tokens::Tokens;
use crate::store::journal::Tail;
use crate::store::testing::TempDir;
use crate::store::{Db, Kv, KvDone, KvRead, KvSink, KvWatch, SqliteKv, Txn, Versioned};
use crate::wire::{Envelope, Frame, Object};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex};

mod audit;
mod auth;
mod mounts;
mod nodes;
mod projects;
mod runs;
mod sessions;
mod table;
mod templates;
mod workspaces;

use templates::FakeTemplates;

#[derive(Default)]
struct FakeAgents {
    known: Mutex<BTreeSet<String>>,
    busy: Mutex<BTreeSet<String>>,
    unreadable: Mutex<BTreeSet<String>>,
}

impl Agents for FakeAgents {
    fn list(&self) -> Result<AgentList> {
        let (known, unreadable) = (self.known.lock().unwrap(), self.unreadable.lock().unwrap());
        let info =
            |id: &String| AgentInfo { id: id.clone(), name: id.clone(), ..AgentInfo::default() };
        let problem = |id: &String| (id.clone(), Error::new(Code::Config, "expected `,`"));
        Ok(AgentList {
            agents: known.difference(&unreadable).map(info).collect(),
            unreadable: unreadable.iter().map(problem).collect(),
        })
    }

    fn exists(&self, agent_id: &str) -> bool {
        self.known.lock().unwrap().contains(agent_id)
    }

    fn ensure(&self, agent_id: &str) -> Result<()> {
        self.known.lock().unwrap().insert(agent_id.to_owned());
        Ok(())
    }

    fn create(&self, agent_id: &str) -> Result<bool> {
        Ok(self.known.lock().unwrap().insert(agent_id.to_owned()))
    }

    fn busy(&self, agent_id: &str) -> bool {
        self.busy.lock().unwrap().contains(agent_id)
    }

    /// An engine that says what it was asked.
    fn run(&self, agent_id: &str, request: RunRequest) -> Result<Object> {
        Ok(Object::new().put("agent_id", agent_id).put("asked", format!("{request:?}")))
    }
}

/// A store whose disk can be made to fail.
struct FailingKv {
    kv: SqliteKv,
    fails: Arc<AtomicBool>,
}

impl KvRead for FailingKv {
    fn get(&self, key: &str) -> Result<Option<Versioned>> {
        self.kv.get(key)
    }

    fn range(&self, prefix: &str) -> Result<Vec<Versioned>> {
        self.kv.range(prefix)
    }
}

impl Kv for FailingKv {
    fn commit_then(&self, txn: Txn, done: KvDone) {
        if self.fails.load(Ordering::Relaxed) {
            // As a disk does, later and on another thread.
            std::thread::spawn(|| done(Err(Error::new(Code::Enospc, "disk full"))));
        } else {
            self.kv.commit_then(txn, done);
        }
    }

    fn commit(&self, txn: Txn) -> Result<u64> {
        self.kv.commit(txn)
    }

    fn watch(&self, prefix: &str, sink: KvSink) -> KvWatch {
        self.kv.watch(prefix, sink)
    }
}

/// What all of them do later.
static LATER: LazyLock<(Timer, Arc<Pool>)> =
    LazyLock::new(|| (Timer::start().unwrap(), Pool::start("later", 1, 1024).unwrap()));

struct Gateway {
    cx: Context,
    agents: Arc<FakeAgents>,
    templates: Arc<FakeTemplates>,
    fails: Arc<AtomicBool>,
    dir: TempDir,
}

impl Gateway {
    fn new() -> Gateway {
        Gateway::open(TempDir::new(), Scopes::default())
    }

    fn open(dir: TempDir, scopes: Scopes) -> Gateway {
        let db = Db::open(&dir.path("state.db"), &[SqliteKv::SCHEMA]).unwrap();
        let fails = Arc::new(AtomicBool::new(false));
        let kv: Arc<dyn Kv> = Arc::new(FailingKv { kv: SqliteKv::new(db), fails: fails.clone() });
        let plane = Plane::open(kv.clone()).unwrap();
        plane.ensure_system().unwrap();
        let agents = Arc::new(FakeAgents::default());
        agents.ensure("mother").unwrap();
        let templates = Arc::new(FakeTemplates::default());
        let (timer, pool) = LATER.clone();
        let path = dir.path("auth_tokens.json");
        let (tokens, _) = Tokens::load_or_create(&path).unwrap();
        let history = History::open(kv, timer, pool, &tokens).unwrap();
        let auth = Arc::new(Authenticator::new(path, tokens));
        let of_tokens = history.clone();
        auth.listen(Arc::new(move |tokens| of_tokens.retain(tokens)));
        let settings = events::Settings::from_env(&Env::default()).unwrap();
        let settings = events::Settings { allow_user: true, ..settings };
        let log = Tail::read(&dir.path("none"), 0).unwrap();
        let events = Arc::new(events::Events::load(settings, &log, &plane.state()));
        let heard = events.clone();
        plane.listen(Arc::new(move |changes| heard.heard(changes)));
        let cx = Context {
            plane,
            agents: agents.clone(),
            templates: templates.clone(),
            auth,
            history,
            scopes,
            figures: Arc::new(Object::new),
            events,
            on_security: Box::new(|_| ()),
        };
        Gateway { cx, agents, templates, fails, dir }
    }

    fn reopen(self) -> Gateway {
        let scopes = self.cx.scopes.clone();
        self.cx.history.flush().unwrap();
        self.cx.plane.audit().finish().unwrap();
        drop(self.cx);
        Gateway::open(self.dir, scopes)
    }

    fn connect(&self, role: Role) -> Client<'_> {
        self.connect_as(role, role.name())
    }

    /// As the gateway lets somebody in.
    fn connect_as(&self, role: Role, name: &str) -> Client<'_> {
        let door = if role == Role::Nobody { Door::Join } else { Door::Main };
        if door == Door::Main {
            self.cx.history.came(name);
        }
        let principal = Principal { role, name: name.into(), badge: format!("{name}#0") };
        let mut client = Client { gateway: self, session: Session::new(principal, door), next: 0 };
        client.ok("version", json!({"protocol": "unified-v2"}));
        client
    }
}

struct Client<'g> {
    gateway: &'g Gateway,
    session: Session,
    next: u32,
}

impl Client<'_> {
    fn raw(&mut self, text: &str) -> (Value, bool) {
        let envelope = Envelope::parse(text).unwrap();
        let mut answer = handle(&self.gateway.cx, &mut self.session, &envelope);
        if let Some(Err(e)) = answer.after.take().map(Commit::wait) {
            answer = failed(&self.gateway.cx, &self.session, &envelope, e);
        }
        let Frame::Text(text) = answer.frame else { panic!("text expected") };
        (serde_json::from_str(&text).unwrap(), answer.close)
    }

    fn call(&mut self, name: &str, payload: Value) -> Value {
        self.next += 1;
        let request = json!({"channel": "control", "type": format!("control.{name}"),
            "id": format!("r{}", self.next), "payload": payload});
        let (reply, _) = self.raw(&request.to_string());
        assert_eq!(reply["id"], format!("r{}", self.next));
        reply
    }

    fn ok(&mut self, name: &str, payload: Value) -> Value {
        let reply = self.call(name, payload);
        assert_eq!(reply["ok"], true, "{reply}");
        reply["payload"].clone()
    }

    fn err(&mut self, name: &str, payload: Value) -> Code {
        let reply = self.call(name, payload);
        assert_eq!(
            (&reply["ok"], &reply["type"]),
            (&json!(false), &json!("control.error")),
            "{reply}"
        );
        Code::from_wire(reply["error"]["code"].as_str().unwrap()).unwrap()
    }

    /// Makes a project and returns its id.
    fn project(&mut self, name: &str) -> String {
        let made = self.ok("project_create", json!({"name": name, "vision": "v"}));
        made["project_id"].as_str().unwrap().to_owned()
    }

    /// Attaches as an agent to a project.
    fn attach(&mut self, agent_id: &str, project_id: &str) {
        let attach = json!({"session_key": "work", "agent_id": agent_id, "project_id": project_id});
        self.ok("session_attach", attach);
    }

    /// Attaches as alice to a project that an admin makes.
    fn attach_to_new_project(&mut self, admin: &mut Client<'_>) {
        let project_id = admin.project("Demo");
        self.attach("alice", &project_id);
    }

    /// Joins a node by invite and returns its id and secret.
    fn node(&mut self, name: &str) -> (String, String) {
        let invite = self.ok("node_invite_create", json!({}));
        let joined = self.ok(
            "node_join",
            json!({"invite_token": invite["invite_token"],
            "node_name": name, "fs_url": "ws://127.0.0.1:1/v2/fs"}),
        );
        let text = |key: &str| joined[key].as_str().unwrap().to_owned();
        (text("node_id"), text("node_secret"))
    }
}

#[test]
fn the_handshake_comes_first() {
    let g = Gateway::new();
    let principal = Principal { role: Role::Admin, name: "admin".into(), badge: "admin#0".into() };
    let mut c = Client { gateway: &g, session: Session::new(principal, Door::Main), next: 0 };
    let (reply, close) = c.raw(r#"{"channel":"control","type":"control.connect","id":"p"}"#);
    assert!(close && reply["error"]["code"] == "protocol_mismatch");
    assert!(reply["error"]["message"].as_str().unwrap().contains("control.version"));
    for payload in ["null", "{}", r#"{"protocol":"unified-v1"}"#, r#"{"protocol":7}"#] {
        let text =
            format!(r#"{{"channel":"control","type":"control.version","payload":{payload}}}"#);
        let (reply, close) = c.raw(&text);
        assert!(close && reply["error"]["code"] == "protocol_mismatch", "{reply}");
    }
    let ack = c.ok("version", json!({"protocol": "unified-v2"}));
    assert_eq!(
        (&ack["fsrpc_runtime"], &ack["acheron_node_proto"]),
        (&json!("acheron-1"), &json!(2))
    );
    assert_eq!(c.call("ping", json!({}))["type"], "control.pong");
}

#[test]
fn unknown_names_and_those_of_answers_are_told_apart() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    assert_eq!(c.err("nope", json!({})), Code::UnsupportedLegacyApi);
    assert_eq!(c.err("pong", json!({})), Code::Unsupported);
}

#[test]
fn connect_tells_an_admin_what_is_missing_and_a_user_what_bars_him() {
    let g = Gateway::new();
    let ack = g.connect(Role::Admin).ok("connect", json!({}));
    assert_eq!(ack["agent_id"], "mother");
    assert_eq!(
        (&ack["bootstrap_only"], &ack["requires_session_attach"]),
        (&json!(true), &json!(false))
    );
    let mut user = g.connect(Role::User);
    let ack = user.ok("connect", json!({}));
    assert_eq!(ack["connect_gate"]["code"], "provisioning_required");
    assert_eq!(ack["workspace"]["mounts"], json!([]), "a gated user sees no workspace");
    assert_eq!(user.err("session_list", json!({})), Code::ProvisioningRequired);
    assert_eq!(user.err("node_list", json!({})), Code::ProvisioningRequired);
    user.ok("ping", json!({}));
    user.ok("agent_list", json!({}));

    let mut admin = g.connect(Role::Admin);
    admin.ok("project_up", json!({"name": "Demo", "vision": "v", "agent_id": "alice"}));
    assert_eq!(user.err("session_list", json!({})), Code::ProjectContextRequired);
    // Looking at a project that is named needs no session.
    assert_eq!(user.err("workspace_status", json!({})), Code::ProjectContextRequired);
    let looks = |agent: &str| json!({"project_id": "proj-1", "agent_id": agent});
    assert_eq!(user.ok("workspace_status", looks("alice"))["agent_id"], "alice");
    assert_eq!(user.err("workspace_status", looks("mother")), Code::Forbidden);
    assert_eq!(
        user.err("workspace_status", json!({"project_id": "proj-404"})),
        Code::ProjectNotFound
    );
    user.ok(
        "session_attach",
        json!({"session_key": "u", "agent_id": "alice", "project_id": "proj-1"}),
    );
    assert_eq!(user.err("node_list", json!({})), Code::Forbidden);
    assert_eq!(user.ok("session_list", json!({}))["active_session"], "u");
}

#[test]
fn invites_are_used_once_and_run_out() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let invite = c.ok("node_invite_create", json!({"expires_in_ms": 60000}));
    assert_eq!(invite["invite_id"], "invite-1");
    let mut node = g.connect(Role::Nobody);
    let join = json!({"invite_token": invite["invite_token"], "node_name": "edge"});
    let joined = node.ok("node_join", join.clone());
    assert_eq!((&joined["node_id"], &joined["fs_url"]), (&json!("node-1"), &json!("")));
    assert_eq!(node.err("node_join", join), Code::InviteRedeemed);
    assert_eq!(node.err("node_join", json!({"invite_token": "inv-x"})), Code::InviteNotFound);
    assert_eq!(node.err("node_join", json!({})), Code::MissingField);
    let dead = c.ok("node_invite_create", json!({"expires_in_ms": 0}));
    let dead = json!({"invite_token": dead["invite_token"]});
    assert_eq!(node.err("node_join", dead), Code::InviteExpired);
    assert_eq!(c.err("node_invite_create", json!({"expires_in_ms": "x"})), Code::InvalidPayload);
    assert_eq!(
        c.err("node_invite_create", json!({"expires_in_ms": i64::MAX})),
        Code::InvalidPayload
    );
    assert_eq!(c.err("node_invite_create", json!(null)), Code::InvalidPayload);
    let (reply, _) =
        c.raw(r#"{"channel":"control","type":"control.node_invite_create","payload":{}}"#);
    assert_eq!(reply["error"]["code"], "correlation_required");
}

#[test]
fn the_join_door_knows_only_joining() {
    let g = Gateway::new();
    let mut node = g.connect(Role::Nobody);
    node.ok("connect", json!({}));
    for name in ["project_list", "agent_list", "session_attach", "node_list", "node_join_approve"] {
        assert_eq!(node.err(name, json!({})), Code::Forbidden, "{name}");
    }
}

#[test]
fn a_request_is_answered_to_its_asker_alone_and_never_approved_by_him() {
    let g = Gateway::new();
    let (mut admin, mut node) = (g.connect(Role::Admin), g.connect(Role::Nobody));
    let asked =
        node.ok("node_join_request", json!({"node_name": "desk", "platform": {"os": "linux"}}));
    let again = json!({"request_id": asked["request_id"], "claim_token": asked["claim_token"]});
    assert_eq!(node.ok("node_join_request", again.clone())["state"], "pending");
    let stranger = json!({"request_id": asked["request_id"], "claim_token": "x"});
    assert_eq!(node.err("node_join_request", stranger), Code::PendingJoinNotFound);
    let id = json!({"request_id": asked["request_id"]});
    assert_eq!(node.err("node_join_approve", id.clone()), Code::Forbidden);
    let pending = admin.ok("node_join_pending_list", json!({}));
    assert_eq!(pending["pending"][0]["platform"]["os"], "linux");
    assert!(pending["pending"][0].get("claim_token").is_none());
    let approved = admin.ok("node_join_approve", id.clone());
    assert_eq!(admin.err("node_join_approve", id), Code::PendingJoinNotFound);
    let got = node.ok("node_join_request", again);
    assert_eq!(got["node_secret"], approved["node_secret"]);
    let other = node.ok("node_join_request", json!({}));
    admin.ok("node_join_deny", json!({"request_id": other["request_id"]}));
    let again = json!({"request_id": other["request_id"], "claim_token": other["claim_token"]});
    assert_eq!(node.err("node_join_request", again), Code::PendingJoinNotFound);
}

#[test]
fn a_node_keeps_its_lease_with_its_secret() {
    let g = Gateway::new();
    let mut admin = g.connect(Role::Admin);
    let (id, secret) = admin.node("edge");
    let mut node = g.connect(Role::Nobody);
    let refresh = |secret: &str, ttl: Value| json!({"node_id": id, "node_secret": secret, "lease_ttl_ms": ttl});
    assert_eq!(node.err("node_lease_refresh", refresh("bad", json!(1))), Code::NodeAuthFailed);
    let unknown = json!({"node_id": "node-404", "node_secret": "x"});
    assert_eq!(node.err("node_lease_refresh", unknown), Code::NodeNotFound);
    let first = node.ok("node_lease_refresh", refresh(&secret, json!(600_000)));
    let second = node.ok("node_lease_refresh", refresh(&secret, json!(900_000)));
    assert_ne!(first["lease_token"], second["lease_token"]);
    assert!(second["lease_expires_at_ms"].as_i64() > first["lease_expires_at_ms"].as_i64());
    assert_eq!(
        node.err("node_lease_refresh", refresh(&secret, json!(i64::MAX))),
        Code::InvalidPayload
    );

    let service =
        json!({"service_id": "fs", "kind": "fs", "state": "online", "endpoints": ["/nodes/x/fs"]});
    let upsert = json!({"node_id": id, "node_secret": secret, "labels": {"site": "hq"}, "services": [service]});
    let reply = node.ok("node_service_upsert", upsert.clone());
    assert_eq!(reply["service_delta"]["added"][0]["service_id"], "fs");
    assert_eq!(node.ok("node_service_upsert", upsert)["service_delta"]["changed"], false);
    let bad = json!({"node_id": id, "node_secret": secret, "services": [{"service_id": "x"}]});
    assert_eq!(node.err("node_service_upsert", bad), Code::InvalidPayload);
    let nodes = admin.ok("node_list", json!({}));
    assert_eq!(nodes["nodes"][0]["service_count"], 1);
    assert!(nodes["nodes"][0].get("node_secret").is_none());
    assert_eq!(admin.ok("node_get", json!({"node_id": id}))["node"]["labels"]["site"], "hq");
    node.ok("node_delete", json!({"node_id": id, "node_secret": secret}));
    assert_eq!(admin.err("node_get", json!({"node_id": id})), Code::NodeNotFound);
}

#[test]
fn users_see_their_own_workspace_and_no_secrets() {
    let g = Gateway::new();
    let mut admin = g.connect(Role::Admin);
    let (node, _) = admin.node("a");
    admin.ok(
        "project_up",
        json!({"name": "Demo", "vision": "v", "agent_id": "alice",
        "desired_mounts": [{"node_id": node, "export_name": "work", "mount_path": "/src"}]}),
    );
    admin.ok("project_up", json!({"name": "Other", "vision": "v", "activate": false}));
    let mut user = g.connect(Role::User);
    let attach = |agent: &str, project: &str| json!({"session_key": "work", "agent_id": agent, "project_id": project});
    for (agent, project, code) in [
        ("mother", "system", Code::Forbidden),
        ("alice", "system", Code::Forbidden),
        ("alice", "proj-9", Code::ProjectNotFound),
        ("a/b", "proj-1", Code::InvalidPayload),
        ("self", "proj-1", Code::InvalidPayload),
    ] {
        assert_eq!(user.err("session_attach", attach(agent, project)), code, "{agent} {project}");
    }
    let missing = user.call("session_attach", json!({"session_key": "k", "agent_id": "alice"}));
    assert!(missing["error"]["message"].as_str().unwrap().contains("project_id is required"));
    let attached = user.ok("session_attach", attach("alice", "proj-1"));
    assert_eq!(attached["attach"]["state"], "ready");
    assert_eq!(attached["workspace"]["mounts"][0]["mount_path"], "/src");
    assert_eq!(attached["workspace"]["mounts"][0]["fs_auth_token"], Value::Null);
    assert_eq!(
        user.err("session_resume", json!({"session_key": "main"})),
        Code::NotFound,
        "no way to mother"
    );
    assert_eq!(
        user.err("workspace_status", json!({"project_id": "proj-2"})),
        Code::ProjectAuthFailed
    );
    assert_eq!(user.ok("workspace_status", json!({}))["project_id"], "proj-1");

    g.agents.busy.lock().unwrap().insert("alice".into());
    assert_eq!(user.err("session_attach", attach("alice", "proj-2")), Code::SessionBusy);
    user.ok("session_attach", attach("alice", "proj-1"));
    user.ok("session_close", json!({"session_key": "work"}));
    assert_eq!(user.err("session_list", json!({})), Code::ProjectContextRequired);
}

#[test]
fn scope_tokens_are_a_second_factor() {
    let scopes = Scopes { operator: Some("op".into()), project: Some("pr".into()), node: None };
    let g = Gateway::open(TempDir::new(), scopes);
    let mut c = g.connect(Role::Admin);
    let up = |extra: Value| {
        let mut up = json!({"name": "Demo", "vision": "v", "activate": false});
        up.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        up
    };
    assert_eq!(c.err("project_up", up(json!({}))), Code::MissingField);
    assert_eq!(c.err("project_up", up(json!({"operator_token": "x"}))), Code::OperatorAuthFailed);
    assert_eq!(c.err("project_up", up(json!({"operator_token": ""}))), Code::InvalidPayload);
    assert_eq!(
        c.err("project_up", up(json!({"project_scope_token": "x"}))),
        Code::OperatorAuthFailed
    );
    c.ok("project_up", up(json!({"project_scope_token": "pr"})));
    c.ok("project_up", up(json!({"operator_token": "op"})));
    assert_eq!(c.err("node_invite_create", json!({})), Code::MissingField);
    c.ok("node_invite_create", json!({"operator_token": "op"}));
}

#[test]
fn what_was_answered_is_there_after_a_restart() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let (node, secret) = c.node("edge");
    c.ok(
        "project_up",
        json!({"name": "Demo", "vision": "v", "agent_id": "alice",
        "desired_mounts": [{"node_id": node, "export_name": "work", "mount_path": "/src"}]}),
    );
    let before = c.ok("project_get", json!({"project_id": "proj-1"}));
    drop(c);
    let g = g.reopen();
    let mut c = g.connect(Role::Admin);
    assert_eq!(c.ok("project_get", json!({"project_id": "proj-1"})), before);
    c.ok("node_lease_refresh", json!({"node_id": node, "node_secret": secret}));
    assert_eq!(c.node("next").0, "node-2", "numbers are not given out twice");
    assert_eq!(g.cx.plane.state().active["alice"], 1);
}
