//! `/v2/fs` (spec: fs 3.2; design: exports of the gateway's own node): the caller's namespace as an
//! export, for those who mount it.

use super::Gateway;
use super::attempts::Peer;
use super::client::who;
use super::guests::Pass;
use super::visits::{Place, Visit};
use crate::base::{Code, Deadline, Error, Result, TreePath};
use crate::config::tokens::Identity;
use crate::control::policy::{Action, Asker, check};
use crate::control::state::{MOTHER, SYSTEM, State};
use crate::control::{Binding, Principal, Role};
use crate::node::{Door, Entry, Export, Exports};
use crate::vfs::{Cx, Member, MountPoint, Tree, Union, Who, walk};
use crate::wire::fs::{self, Hello};
use std::sync::{Arc, OnceLock};

/// Exports that show a part of the namespace under an older name (spec: fs 3.2).
const PARTS: [(&str, &str); 3] = [
    ("system-meta", "/meta"),
    ("system-chat", "/agents/self/chat"),
    ("system-jobs", "/agents/self/jobs"),
];

const PLACE: Place<'_> = Place::Endpoint("/v2/fs");

pub struct LocalDoor {
    gateway: Arc<Gateway>,
    /// Who came: set already where the HTTP upgrade had a bearer token.
    pass: Pass,
    failed: Peer,
    visit: OnceLock<Visit>,
}

impl LocalDoor {
    pub fn new(gateway: Arc<Gateway>, pass: Pass, failed: Peer) -> LocalDoor {
        LocalDoor { gateway, pass, failed, visit: OnceLock::new() }
    }

    /// Errors: `AuthMissing`, `AuthFailed`.
    fn identity(&self, hello: &Hello) -> Result<&Identity> {
        if let Some(known) = self.pass.get() {
            return Ok(known);
        }
        let token = hello.auth_token.as_deref();
        let token = token.ok_or_else(|| Error::new(Code::Invalid, "AuthMissing"))?;
        let failed = || Error::new(Code::Invalid, "AuthFailed");
        let found = self.gateway.identify(token).ok_or_else(|| {
            self.failed.count();
            self.refused(None, Code::ProviderAuthFailed, "the token of the hello is unknown");
            failed()
        })?;
        let identity = self.pass.get_or_init(|| found);
        // What was revoked before the connection was known to be theirs.
        if self.gateway.control.auth.admits(identity) { Ok(identity) } else { Err(failed()) }
    }
}

impl Door for LocalDoor {
    fn enter(&self, hello: &Hello) -> Result<Entry> {
        let principal = Principal::from(self.identity(hello)?);
        let binding = hello.binding.clone().unwrap_or_default();
        let binding = bind(&self.gateway.control.plane.state(), &principal, binding)
            .inspect_err(|e| self.refused(Some(&principal), e.code, &e.message))?;
        if binding.agent_id != MOTHER {
            self.gateway.control.agents.ensure(&binding.agent_id)?;
        }
        let who = who(&principal, &binding, 0);
        let exports = Arc::new(self.exports(&Arc::new(who.clone()))?);
        let visits = &self.gateway.visits;
        self.visit.get_or_init(|| visits.begin(&principal, self.failed.addr, PLACE));
        Ok(Entry { exports, who, name: "spiderweb".into(), expires_at_s: None })
    }
}

impl LocalDoor {
    fn refused(&self, who: Option<&Principal>, code: Code, message: &str) {
        self.gateway.visits.refused(who, self.failed.addr, PLACE, code, message);
    }

    fn exports(&self, who: &Arc<Who>) -> Result<Exports> {
        let tree = self.gateway.trees.for_who(who)?;
        let export = |name: &str, tree: Arc<dyn Tree>| Export {
            name: name.into(),
            tree,
            ro: false,
            desc: "the namespace of this session".into(),
            source_kind: "namespace".into(),
            source_id: format!("namespace:{name}"),
        };
        let mut exports = vec![export("namespace", tree.clone())];
        let cx = Cx::new(who.clone(), Deadline::after_ms(5_000));
        for (name, path) in PARTS {
            let root = walk::resolve(&*tree, &cx, &TreePath::parse(path)?)?.id;
            let member = Member { name: name.into(), tree: tree.clone(), root };
            let mount = MountPoint { path: TreePath::root(), members: vec![member] };
            exports.push(export(name, Arc::new(Union::new(vec![mount], vec![])?)));
        }
        Exports::new(exports)
    }
}

/// For whom a client looks at the namespace: the agent it names, else one that works in its project.
fn bind(state: &State, principal: &Principal, asked: fs::Binding) -> Result<Binding> {
    let admin = principal.role == Role::Admin;
    let works_there = || state.agent_of(asked.project_id.as_deref()?).map(str::to_owned);
    let agent_id = asked.agent_id.or_else(works_there);
    let agent_id = agent_id.or_else(|| admin.then(|| MOTHER.to_owned())).ok_or_else(|| {
        Error::new(Code::Forbidden, "agent_id is required: no agent works in this project yet")
    })?;
    if !crate::base::id::is_identifier(&agent_id, 64) {
        return Err(Error::invalid("agent_id must be 1 to 64 characters of A-Z a-z 0-9 _ -"));
    }
    if !admin && agent_id == MOTHER {
        return Err(Error::new(Code::Forbidden, "user role cannot act for mother"));
    }
    let active = state.active_project(&agent_id).map(|p| p.id());
    let project_id = asked.project_id.or(active).unwrap_or_else(|| SYSTEM.into());
    let project = state.project(&project_id)?;
    let asker = Asker { admin, agent_id: Some(&agent_id), token: asked.project_token.as_deref() };
    check(project, Action::Read, asker)?;
    Ok(Binding { agent_id, project_id: Some(project_id), project_token: asked.project_token })
}
