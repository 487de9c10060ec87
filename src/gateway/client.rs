//! A connection on `/` (and on `/v2/join`, and of a ZiggyStarClaw client): two channels on one socket.
//! Control requests keep their order; acheron requests go to the session they name, behind the control
//! requests that came before them.

use super::Gateway;
use super::acheron;
use super::debug;
use super::pushes::Pushes;
use super::starclaw::Greeting;
use super::topology::Seer;
use super::visits::Visit;
use crate::base::{Code, Error, Lanes, Place, Result, id};
use crate::control::state::{Project, State};
use crate::control::{self, Answer, Binding, Commit, Door, Principal, Role};
use crate::net::{Closed, Conn, Handler, InFlight, Message};
use crate::vfs::Who;
use crate::wire::acheron::{Call, VERSION};
use crate::wire::control::Correlation;
use crate::wire::{Channel, Envelope, Malformed, Object, acheron as wire};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub struct Client {
    shared: Arc<Shared>,
    _visit: Option<Visit>,
}

/// What the connection's requests share. Lock order: `control` before `acheron`.
pub struct Shared {
    pub gateway: Arc<Gateway>,
    control: Mutex<control::Session>,
    acheron: Mutex<HashMap<String, Bound>>,
    /// `acheron.t_version` was answered.
    negotiated: AtomicBool,
    /// Control requests not answered yet.
    pending: AtomicUsize,
    lanes: Lanes<()>,
    greeting: Greeting,
    pushes: Pushes,
    session: u64,
}

/// An acheron session and the binding that it was made for.
struct Bound {
    binding: Binding,
    session: Arc<acheron::Session>,
}

impl Client {
    /// `agent_id`: the agent that the path names, for a client that is to be greeted at once. `visit` lasts
    /// as long as the connection.
    pub fn new(
        gateway: Arc<Gateway>,
        principal: Principal,
        door: Door,
        agent_id: Option<String>,
        peer: SocketAddr,
        visit: Option<Visit>,
    ) -> Client {
        let lanes = Lanes::new(gateway.control_pool.clone());
        let greeting = Greeting::new(&principal, door, agent_id);
        let mut session = control::Session::new(principal, door);
        session.peer = Some(peer);
        let shared = Arc::new(Shared {
            control: Mutex::new(session),
            acheron: Mutex::default(),
            negotiated: AtomicBool::new(false),
            pending: AtomicUsize::new(0),
            session: id::random_u53(),
            lanes,
            greeting,
            pushes: Pushes::default(),
            gateway,
        });
        Client { shared, _visit: visit }
    }
}

impl Handler for Client {
    fn open(&mut self, conn: &Conn) {
        self.shared.greeting.open(&self.shared, conn);
    }

    fn message(&mut self, conn: &Conn, message: Message) {
        // Binary frames have no meaning here (spec: control 2.3).
        let Message::Text(text) = message else { return };
        match Envelope::parse(&text) {
            Ok(envelope) => {
                self.shared.greeting.negotiated();
                self.shared.take(conn, &text, &envelope);
            }
            Err(m) if self.shared.greeting.take(&self.shared, conn, &text, &m) => {}
            Err(m) => self.shared.malformed(conn, &m),
        }
    }

    fn closed(&mut self, conn: &Conn, _: &Closed) {
        self.shared.greeting.negotiated();
        self.shared.gateway.stream.unsubscribe(conn);
        self.shared.gateway.watches.end(conn);
        for bound in self.shared.acheron().drain() {
            bound.1.session.close();
        }
    }
}

impl Shared {
    /// Answers what is no message (spec: control 3.3, namespace 1.3).
    fn malformed(&self, conn: &Conn, m: &Malformed) {
        let frame = if m.channel == Some(Channel::Acheron) && m.tag.is_some() {
            self.gateway.files.requests.errors.note(Code::Invalid);
            wire::error(m.tag, &Error::new(Code::Invalid, m.fault))
        } else {
            self.gateway.metrics.control.errors.note(Code::UnsupportedLegacyApi);
            let e = Error::new(Code::UnsupportedLegacyApi, m.fault);
            crate::wire::control::error(m.id.as_deref(), Correlation::Omitted, &e)
        };
        let _ = conn.send(frame);
    }

    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    pub fn pushes(&self) -> &Pushes {
        &self.pushes
    }

    /// As whom a project's workspace may be seen here, if at all.
    pub fn seer(&self, state: &State, project: &Project) -> Option<Seer> {
        let control = self.control();
        let attached = control.bindings().map(|(_, binding)| binding);
        Seer::of(state, project, control.is_admin(), attached.chain(&control.observed))
    }

    /// Whether one of the sessions is of a project, or it is observed.
    pub fn works_in(&self, project_id: &str) -> bool {
        let control = self.control();
        let attached = control.bindings().map(|(_, binding)| binding);
        attached.chain(&control.observed).any(|b| b.project_id.as_deref() == Some(project_id))
    }

    fn control(&self) -> MutexGuard<'_, control::Session> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acheron(&self) -> MutexGuard<'_, HashMap<String, Bound>> {
        self.acheron.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Shared>, conn: &Conn, text: &crate::net::Text, envelope: &Envelope<'_>) {
        let idle = self.pending.load(Ordering::Acquire) == 0;
        match envelope.channel {
            // Needs no lock that is held for long, and nothing is before it: answered here.
            Channel::Control if idle && matches!(&*envelope.name, "ping" | "version") => {
                let _ = self.answer_control(conn, envelope, Instant::now());
            }
            Channel::Acheron if idle && self.bound(envelope) => self.answer_acheron(conn, envelope),
            _ => self.queue(conn, text.clone(), envelope),
        }
    }

    /// True where an acheron request needs nothing made for it.
    fn bound(&self, envelope: &Envelope<'_>) -> bool {
        let control = self.control();
        let key = envelope.session_key.as_deref().unwrap_or(control.active_key());
        let Ok(binding) = control.binding(Some(key)) else { return false };
        envelope.name == "t_version"
            || self.acheron().get(key).is_some_and(|b| b.binding == *binding)
    }

    /// Puts a request behind those that came before it.
    fn queue(self: &Arc<Shared>, conn: &Conn, text: crate::net::Text, envelope: &Envelope<'_>) {
        self.pending.fetch_add(1, Ordering::AcqRel);
        let job = Queued {
            shared: self.clone(),
            conn: conn.clone(),
            text,
            since: Instant::now(),
            answered: false,
            _in_flight: conn.begin(),
        };
        if let Err((e, mut job)) = self.lanes.hand(Some(()), job, Queued::run) {
            job.answered = true;
            self.refuse(conn, envelope, &e, false);
        }
    }

    /// Answers a control request that came at `since`, or says what has to be durable before `Queued` sends
    /// the answer.
    fn answer_control(
        self: &Arc<Shared>,
        conn: &Conn,
        envelope: &Envelope<'_>,
        since: Instant,
    ) -> Option<(Commit, Answer)> {
        let Gateway { stream, watches, .. } = &*self.gateway;
        let (mut answer, new, topics, begun, admin) = {
            let mut control = self.control();
            let answer = control::handle(&self.gateway.control, &mut control, envelope);
            if envelope.name == "session_close" {
                self.close_unbound(&control);
            }
            let new = self.pushes.follow(self, conn, control.attached());
            (answer, new, control.subscribed, control.begun.take(), control.is_admin())
        };
        let tell_attached = || {
            for binding in &new {
                stream.attached(conn, &binding.agent_id, binding.project_id.as_deref());
            }
        };
        if let Some(commit) = answer.after.take() {
            tell_attached();
            return Some((commit, answer));
        }
        self.gateway.metrics.control.done(Some(since), answer.error);
        let watch = begun.map(|begun| {
            watches.replay(conn, begun.replay);
            begun.watch
        });
        let subscribes =
            topics.filter(|_| answer.error.is_none() && envelope.name == "debug_subscribe");
        if let Some(topics) = subscribes {
            // What happens after the answer has come is told.
            stream.subscribe(self, conn, topics, admin);
        }
        let _ = conn.send(answer.frame);
        if subscribes.is_some() {
            let request = envelope.id.as_deref().unwrap_or_default();
            let _ = conn.push(debug::acknowledgement(request));
        }
        match (&*envelope.name, watch) {
            ("debug_unsubscribe", _) if answer.error.is_none() => stream.unsubscribe(conn),
            ("node_service_watch", Some(watch)) => watches.begin(conn, watch),
            ("node_service_unwatch", _) if answer.error.is_none() => watches.end(conn),
            _ => {}
        }
        tell_attached();
        if answer.close {
            conn.close(None, "");
        }
        None
    }

    /// What was open under a session key that is attached no more is closed.
    fn close_unbound(&self, control: &control::Session) {
        let bound = |key: &String| control.bindings().any(|(k, _)| k == key);
        let mut gone = Vec::new();
        self.acheron().retain(|key, b| {
            let stays = bound(key);
            gone.extend((!stays).then(|| b.session.clone()));
            stays
        });
        gone.iter().for_each(acheron::Session::close);
    }

    /// The checks of spec: namespace 1.2, in their order, then the session.
    fn answer_acheron(&self, conn: &Conn, envelope: &Envelope<'_>) {
        if let Err((e, close)) = self.run_acheron(conn, envelope) {
            self.refuse(conn, envelope, &e, close);
        }
    }

    /// Answers a request with an error, in the words of its channel.
    fn refuse(&self, conn: &Conn, envelope: &Envelope<'_>, e: &Error, close: bool) {
        let requests = match envelope.channel {
            Channel::Acheron => &self.gateway.files.requests,
            Channel::Control => &self.gateway.metrics.control,
        };
        requests.errors.note(e.code);
        let legacy = e.code == Code::UnsupportedLegacyApi;
        let frame = match envelope.channel {
            Channel::Acheron if !legacy => wire::error(envelope.tag, e),
            _ => crate::wire::control::error(envelope.id.as_deref(), Correlation::Omitted, e),
        };
        let _ = conn.send(frame);
        if close {
            conn.close(None, "");
        }
    }

    fn run_acheron(&self, conn: &Conn, envelope: &Envelope<'_>) -> Result<(), (Error, bool)> {
        if !wire::is_known(&envelope.name) {
            let e = Error::new(Code::UnsupportedLegacyApi, "UnsupportedType");
            return Err((e, false));
        }
        self.pass_gate().map_err(|e| (e, false))?;
        let call = Call::read(envelope)
            .ok_or_else(|| (Error::new(Code::InvalidType, "not a request of acheron-1"), true))?;
        if envelope.name != "t_version" && !self.negotiated.load(Ordering::Acquire) {
            let text = "acheron.t_version must be negotiated first";
            return Err((Error::new(Code::ProtocolMismatch, text), true));
        }
        let call = call.map_err(|e| (e, false))?;
        if let Call::Version { msize, version } = &call {
            return self.version(conn, envelope.tag, *msize, version.as_deref());
        }
        let is_message = matches!(call, Call::Write { .. });
        let session =
            self.session(envelope.session_key.as_deref(), is_message).map_err(|e| (e, false))?;
        let correlation_id = envelope.correlation_id.as_deref().or(envelope.id.as_deref());
        let correlation_id = correlation_id.map(Arc::from);
        session.take(acheron::Request::new(
            conn,
            &self.gateway.files.requests,
            &envelope.name,
            envelope.tag,
            call,
            correlation_id,
        ));
        Ok(())
    }

    fn version(
        &self,
        conn: &Conn,
        tag: Option<u32>,
        msize: Option<u32>,
        version: Option<&str>,
    ) -> Result<(), (Error, bool)> {
        if version != Some(VERSION) {
            let text = "unsupported fsrpc runtime version";
            return Err((Error::new(Code::ProtocolMismatch, text), true));
        }
        self.negotiated.store(true, Ordering::Release);
        let msize = msize.unwrap_or(wire::MSIZE_MAX).min(wire::MSIZE_MAX);
        let payload = Object::new().put("msize", msize).put("version", VERSION);
        let _ = conn.send(wire::reply("t_version", tag, payload));
        Ok(())
    }

    /// What bars those who may not act (yet).
    fn pass_gate(&self) -> Result<()> {
        let mut control = self.control();
        control.settle(&self.gateway.control);
        if control.door == Door::Join {
            return Err(Error::new(Code::Forbidden, "the namespace is not for /v2/join"));
        }
        if control.active().is_some() || control.principal.role != Role::User {
            return Ok(());
        }
        let state = self.gateway.control.plane.state();
        let gate = control.gate(self.gateway.control.bootstrap_only(&state));
        gate.map_or(Ok(()), |g| Err(g.error()))
    }

    /// The acheron session of a session key, made anew when its binding has changed. Other keys keep
    /// their fids. `is_message`: it is about to be sent one, which its principal's history counts.
    fn session(&self, key: Option<&str>, is_message: bool) -> Result<Arc<acheron::Session>> {
        let (key, binding, principal) = {
            let control = self.control();
            let key = key.unwrap_or(control.active_key()).to_owned();
            (key.clone(), control.binding(Some(&key))?.clone(), control.principal.clone())
        };
        if is_message {
            self.gateway.control.history.used(&principal.name, &key, &binding, 1);
        }
        let mut sessions = self.acheron();
        if let Some(bound) = sessions.get(&key)
            && bound.binding == binding
        {
            return Ok(bound.session.clone());
        }
        let who = Arc::new(who(&principal, &binding, self.session));
        let tree = self.gateway.trees.for_who(&who)?;
        let session = acheron::Session::new(tree, who, self.gateway.works());
        let bound = Bound { binding, session: session.clone() };
        if let Some(old) = sessions.insert(key, bound) {
            old.session.close();
        }
        Ok(session)
    }
}

/// For whom a binding acts.
pub fn who(principal: &Principal, binding: &Binding, session: u64) -> Who {
    Who {
        principal: principal.name.clone(),
        admin: principal.role == Role::Admin,
        agent_id: binding.agent_id.clone(),
        project_id: binding.project_id.clone(),
        project_token: binding.project_token.clone(),
        session,
    }
}

/// A request in the connection's lane. Dropped without an answer (a panic), it answers with an error.
struct Queued {
    shared: Arc<Shared>,
    conn: Conn,
    text: crate::net::Text,
    since: Instant,
    answered: bool,
    _in_flight: InFlight,
}

impl Queued {
    fn run(mut self) {
        let text = self.text.clone();
        let waits = match Envelope::parse(&text) {
            Ok(envelope) if envelope.channel == Channel::Control => {
                self.shared.answer_control(&self.conn, &envelope, self.since)
            }
            Ok(envelope) => {
                self.shared.answer_acheron(&self.conn, &envelope);
                None
            }
            Err(_) => None,
        };
        match waits {
            None => self.answered = true,
            Some((commit, answer)) => {
                let place = self.shared.lanes.hold(());
                commit.then(move |outcome| self.conclude(place, answer, outcome));
            }
        }
    }

    /// On the thread that writes: sends the answer to a mutation.
    fn conclude(mut self, place: Place<()>, answer: Answer, outcome: Result<()>) {
        let Err(e) = outcome else {
            self.shared.gateway.metrics.control.done(Some(self.since), None);
            let _ = self.conn.send_later(answer.frame);
            self.answered = true;
            // What is behind it finds this request gone.
            drop(self);
            return drop(place);
        };
        let pool = self.shared.gateway.control_pool.clone();
        // Refused, it answers when it is dropped.
        let _ = pool.submit(move || {
            self.fail(e);
            drop(place);
        });
    }

    fn fail(mut self, e: Error) {
        let Ok(envelope) = Envelope::parse(&self.text) else { return };
        let answer = {
            let control = self.shared.control();
            control::failed(&self.shared.gateway.control, &control, &envelope, e)
        };
        self.shared.gateway.metrics.control.done(Some(self.since), answer.error);
        let _ = self.conn.send(answer.frame);
        self.answered = true;
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.shared.pending.fetch_sub(1, Ordering::AcqRel);
        if !self.answered
            && let Ok(envelope) = Envelope::parse(&self.text)
        {
            let e = Error::new(Code::ControlPlaneError, "internal error");
            self.shared.refuse(&self.conn, &envelope, &e, false);
        }
    }
}
