//! The runtime: takes messages to agents, has each answered in its turn, and tells what happens.
//!
//! A message is a job. Jobs of one conversation run one after the other, others side by side on a fixed
//! pool. Whoever is first ends a job: the turn, its deadline, or a cancellation; the others find it over.

use super::agents::{Agent, Registry};
use super::event::{Body, Event};
use super::history;
use super::jobs::{Conversation, JobId, JobStore};
use super::prompt;
use super::provider::{self, Asked, Model, Provider, Setup};
use super::roster::complain;
use super::turn::{Said, Turn};
use crate::base::{Cancel, Code, Deadline, Error, Lanes, Notify, Pool, Result, Timer, TimerKey};
use crate::config::credentials::Credentials;
use crate::config::{self, Env};
use crate::store::{Db, Schema};
use crate::vfs::{Cx, Tree, Who};
use crate::wire::Object;
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// Longest message to an agent.
pub const TEXT_MAX: usize = 1 << 20;
/// Most tokens of earlier turns that a model is shown; never more than half its context.
const HISTORY_TOKENS: usize = 48_000;
/// Longest wait, when stopping, for the last results to be on stable storage.
const DURABLE_WITHIN: Duration = Duration::from_secs(5);

/// Gives a caller's tree: all that its agent can reach.
pub type Trees = Arc<dyn Fn(&Arc<Who>) -> Result<Arc<dyn Tree>> + Send + Sync>;
/// Takes events. Called on the thread where it happens: must be short and must not wait.
pub type Sink = Arc<dyn Fn(&Event) + Send + Sync>;

/// The settings that the runtime acts on.
pub struct Options {
    pub provider: config::Provider,
    pub runtime: config::Runtime,
    pub env: Env,
    pub credentials: Arc<Credentials>,
}

pub struct Runtime {
    options: Options,
    db: Arc<Db>,
    jobs: JobStore,
    pub(super) registry: Registry,
    timer: Timer,
    pool: Arc<Pool>,
    lanes: Lanes<Conversation>,
    trees: OnceLock<Trees>,
    providers: Mutex<HashMap<String, Arc<dyn Provider>>>,
    state: Mutex<State>,
    /// Notified when a job is over, and when that is durable.
    over: Notify,
    sinks: Mutex<BTreeMap<u64, Sink>>,
    asked: Asked,
    /// What the log was told of agents that cannot be read.
    pub(super) complained: Mutex<BTreeMap<String, Error>>,
}

#[derive(Default)]
struct State {
    /// Jobs that are not over.
    active: HashMap<JobId, Arc<Active>>,
    /// Jobs that are over, but not durably so yet.
    ending: usize,
    /// Places taken in the queue.
    queued: usize,
    stopping: bool,
    next_sink: u64,
}

/// A job that is not over.
struct Active {
    id: JobId,
    conversation: Conversation,
    text: String,
    cx: Cx,
    stage: Mutex<Stage>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting(Option<TimerKey>),
    Running(Option<TimerKey>),
    Over,
}

impl Runtime {
    /// The tables that [`Runtime::start`] needs in its database.
    pub const SCHEMAS: [Schema; 2] = [JobStore::SCHEMA, history::SCHEMA];

    /// Jobs that were under way when the last process ended fail. A provider that cannot be used is
    /// told to whoever asks it something, and to the log now.
    pub fn start(
        options: Options,
        db: Arc<Db>,
        timer: Timer,
        registry: Registry,
    ) -> Result<Arc<Runtime>> {
        registry.scaffold()?;
        let complained = complain(&registry.list()?, &BTreeMap::new());
        let jobs = JobStore::open(db.clone())?;
        let settings = &options.runtime;
        let threads = settings.runtime_worker_threads;
        let pool = Pool::start("runtime", threads, settings.runtime_request_queue_max.max(1))?;
        let runtime = Arc::new(Runtime {
            options,
            db,
            jobs,
            registry,
            timer,
            lanes: Lanes::new(pool.clone()),
            pool,
            trees: OnceLock::new(),
            providers: Mutex::default(),
            state: Mutex::default(),
            over: Notify::default(),
            sinks: Mutex::default(),
            asked: Asked::default(),
            complained: Mutex::new(complained),
        });
        if let Err(e) = runtime.provider(&runtime.options.provider.name) {
            crate::base::log::error("provider.name", &e);
        }
        Ok(runtime)
    }

    /// Says where callers' trees come from; the first time counts.
    pub fn bind_trees(&self, trees: Trees) {
        let _ = self.trees.set(trees);
    }

    pub fn jobs(&self) -> &JobStore {
        &self.jobs
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Calls `sink` for everything that happens, until the subscription is dropped.
    pub fn subscribe(self: &Arc<Runtime>, sink: Sink) -> Subscription {
        let mut state = self.lock();
        let id = state.next_sink;
        state.next_sink += 1;
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sink);
        Subscription { runtime: Arc::downgrade(self), id }
    }

    /// Hands a message to the caller's agent; the job is durable when this returns. The time that
    /// `runtime.chat_operation_timeout_ms` allows begins now; the caller's own deadline and cancel flag
    /// are about this call only. Errors: `queue_saturated` (no job is left then), `invalid`.
    pub fn chat(self: &Arc<Runtime>, cx: &Cx, text: &str) -> Result<JobId> {
        let text = text.trim();
        if text.is_empty() {
            return Err(Error::invalid("the message is empty"));
        }
        if text.len() > TEXT_MAX {
            return Err(Error::invalid(format!("the message is longer than {TEXT_MAX} bytes")));
        }
        let place = self.reserve()?;
        let conversation = Conversation {
            agent_id: cx.who.agent_id.as_str().into(),
            project_id: cx.who.project_id.as_deref().map(Into::into),
        };
        let id = self.jobs.create(&conversation, cx.correlation_id.clone())?;
        let deadline = Deadline::after_ms(self.options.runtime.chat_operation_timeout_ms);
        let active = Arc::new(Active {
            id,
            conversation,
            text: text.to_owned(),
            cx: Cx { deadline, cancel: Cancel::new(), ..cx.clone() },
            stage: Mutex::new(Stage::Waiting(None)),
        });
        self.lock().active.insert(id, active.clone());
        self.progress(&active, "queued");
        self.limit(&active);
        self.submit(active, place)?;
        Ok(id)
    }

    fn submit(self: &Arc<Runtime>, active: Arc<Active>, place: Place) -> Result<()> {
        let (runtime, job) = (self.clone(), active.clone());
        let lane = active.conversation.clone();
        let submitted = self.lanes.submit(Some(lane), move || {
            drop(place);
            runtime.work(&job);
        });
        submitted.inspect_err(|_| {
            if self.take_over(&active) {
                self.jobs.remove(active.id);
                self.ended();
            }
        })
    }

    /// Ends the job when its time is up, whatever it is doing then.
    fn limit(self: &Arc<Runtime>, active: &Arc<Active>) {
        let (runtime, job) = (Arc::downgrade(self), Arc::downgrade(active));
        let expire = move || {
            if let (Some(runtime), Some(job)) = (runtime.upgrade(), job.upgrade()) {
                let late = Error::new(Code::RuntimeTimeout, "runtime operation timeout");
                runtime.conclude(&job, Err(late), Vec::new(), || {});
                job.cx.cancel.cancel();
            }
        };
        let key = self.timer.at(active.cx.deadline.instant(), Box::new(expire));
        match &mut *active.stage() {
            Stage::Waiting(timer) | Stage::Running(timer) => *timer = Some(key),
            Stage::Over => self.timer.cancel(key),
        }
    }

    /// Ends a job as cancelled; false when it is over, or there is none.
    pub fn cancel(self: &Arc<Runtime>, id: JobId) -> bool {
        let Some(active) = self.lock().active.get(&id).cloned() else { return false };
        let cancelled = Error::new(Code::RuntimeCancelled, "cancelled");
        let first = self.conclude(&active, Err(cancelled), Vec::new(), || {});
        active.cx.cancel.cancel();
        first
    }

    /// True while a job of the agent is queued or running.
    pub fn in_flight(&self, agent_id: &str) -> bool {
        self.lock().active.values().any(|a| &*a.conversation.agent_id == agent_id)
    }

    /// Jobs that wait for a worker.
    pub fn queue_depth(&self) -> usize {
        let active: Vec<_> = self.lock().active.values().cloned().collect();
        active.iter().filter(|a| matches!(*a.stage(), Stage::Waiting(_))).count()
    }

    /// Places taken in the queue, those of jobs that were given up meanwhile included, and how many there
    /// are.
    pub fn queue(&self) -> (usize, usize) {
        (self.lock().queued, self.options.runtime.runtime_request_queue_max)
    }

    /// True unless a worker has ended before [`Runtime::stop`].
    pub fn is_whole(&self) -> bool {
        self.pool.is_whole()
    }

    /// What was asked of providers.
    pub fn asked(&self) -> &Asked {
        &self.asked
    }

    /// Takes no more messages, lets those under way finish until `grace` has passed, then cancels what
    /// is left and joins the workers.
    pub fn stop(self: &Arc<Runtime>, grace: Deadline) {
        self.lock().stopping = true;
        self.wait_until(grace, |state| state.active.is_empty());
        let left: Vec<JobId> = self.lock().active.keys().copied().collect();
        for id in left {
            self.cancel(id);
        }
        self.pool.stop();
        self.wait_until(Deadline::after(DURABLE_WITHIN), |state| state.ending == 0);
    }

    fn wait_until(&self, deadline: Deadline, there: impl Fn(&State) -> bool) {
        loop {
            let seen = self.over.seen();
            if there(&self.lock()) || deadline.passed() {
                return;
            }
            let _ = self.over.wait(seen, Deadline::never()).block(deadline, &Cancel::new());
        }
    }

    /// A place among those that wait. Errors: `queue_saturated`, `unavailable` when stopping.
    fn reserve(self: &Arc<Runtime>) -> Result<Place> {
        let mut state = self.lock();
        if state.stopping {
            return Err(Error::new(Code::Unavailable, "the gateway is stopping"));
        }
        if state.queued >= self.options.runtime.runtime_request_queue_max {
            return Err(Error::new(Code::QueueSaturated, "runtime request queue saturated"));
        }
        state.queued += 1;
        Ok(Place(self.clone()))
    }

    fn work(self: &Arc<Runtime>, active: &Arc<Active>) {
        {
            let mut stage = active.stage();
            let Stage::Waiting(timer) = *stage else { return };
            *stage = Stage::Running(timer);
        }
        self.jobs.start(active.id, &active.conversation.agent_id);
        self.progress(active, "running");
        let said = catch_unwind(AssertUnwindSafe(|| self.turn(active))).unwrap_or_else(|_| {
            log::error!("{} panicked", active.id);
            Err(Error::new(Code::ExecutionFailed, "internal error; the gateway's log tells more"))
        });
        let (reply, messages) = match said {
            Ok(Said { reply, messages }) => (reply, messages),
            Err(e) => (Err(e), Vec::new()),
        };
        // The next turn of the conversation reads what this one leaves behind.
        let (done, durable) = crossbeam_channel::bounded::<()>(1);
        let done = move || drop(done);
        if self.conclude(active, reply, messages, done) {
            let _ = durable.recv();
        }
    }

    fn turn(&self, active: &Active) -> Result<Said> {
        let Conversation { agent_id, project_id } = &active.conversation;
        let trees = self.trees.get().ok_or_else(|| {
            Error::new(Code::Unavailable, "the gateway is starting; its namespace is not there yet")
        })?;
        let agent = self.registry.get(agent_id)?;
        let (model, provider) = self.choose(&agent)?;
        let tree = trees(&active.cx.who)?;
        let budget = HISTORY_TOKENS.min(model.context as usize / 2);
        let window = history::load(&self.db, &active.conversation, budget)?;
        let before = window.before.as_deref();
        let instructions =
            prompt::instructions(&self.registry, &agent, &active.conversation, before);
        let turn = Turn {
            cx: &active.cx,
            tree: &*tree,
            provider: &*provider,
            asked: &self.asked,
            model: &model,
            effort: agent.settings.effort,
            instructions: &instructions,
            conversation: &format!("{agent_id}-{}", project_id.as_deref().unwrap_or("none")),
            allows: &|tool| agent.settings.allows(tool),
            inflight_max: self.options.runtime.max_inflight_tool_calls_per_run,
            emit: &|body| {
                if *active.stage() != Stage::Over {
                    self.emit(active, body);
                }
            },
        };
        Ok(turn.run(window.turns, &active.text))
    }

    /// An agent that names a provider but no model gets that provider's usual one.
    fn choose(&self, agent: &Agent) -> Result<(Model, Arc<dyn Provider>)> {
        let (own, configured) = (&agent.settings, &self.options.provider);
        let name = own.provider.as_ref().unwrap_or(&configured.name);
        let configured_model = configured.model.as_ref().filter(|_| *name == configured.name);
        let model = own.model.as_ref().or(configured_model);
        Ok((provider::model(name, model.map(String::as_str)), self.provider(name)?))
    }

    fn provider(&self, name: &str) -> Result<Arc<dyn Provider>> {
        let mut providers = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(provider) = providers.get(name) {
            return Ok(provider.clone());
        }
        let Options { provider: settings, env, credentials, .. } = &self.options;
        let made =
            provider::make(name, &Setup { settings, credentials: credentials.clone(), env })?;
        providers.insert(name.to_owned(), made.clone());
        Ok(made)
    }

    /// Ends the job, unless it is over; `done` is called once that is durable. Never waits for long.
    fn conclude(
        self: &Arc<Runtime>,
        active: &Arc<Active>,
        outcome: Result<String>,
        messages: Vec<provider::Message>,
        done: impl FnOnce() + Send + 'static,
    ) -> bool {
        if !self.take_over(active) {
            return false;
        }
        self.emit(
            active,
            match &outcome {
                Ok(reply) => Body::Receive { content: reply.clone() },
                Err(e) => Body::error(e),
            },
        );
        let (runtime, job) = (self.clone(), active.clone());
        let state = if outcome.is_ok() { "done" } else { "failed" };
        self.jobs.finish_then(active.id, &active.conversation, &outcome, messages, move || {
            runtime.progress(&job, state);
            runtime.ended();
            done();
        });
        true
    }

    /// Takes the right to end the job, which only one gets. It no longer counts as under way then: nobody
    /// may see its end and still find its agent busy.
    fn take_over(&self, active: &Active) -> bool {
        let stage = std::mem::replace(&mut *active.stage(), Stage::Over);
        match stage {
            Stage::Waiting(Some(key)) | Stage::Running(Some(key)) => self.timer.cancel(key),
            Stage::Waiting(None) | Stage::Running(None) => {}
            Stage::Over => return false,
        }
        {
            let mut state = self.lock();
            state.active.remove(&active.id);
            state.ending += 1;
        }
        self.over.notify();
        true
    }

    /// The end of a job that was taken over is durable.
    fn ended(&self) {
        self.lock().ending -= 1;
        self.over.notify();
    }

    fn progress(&self, active: &Active, status: &'static str) {
        let body = Body::Progress { phase: "job", status, detail: String::new() };
        self.tell(active, body);
    }

    /// Tells it, and writes it to the job's log.
    fn emit(&self, active: &Active, body: Body) {
        let kept = !body.is_piece();
        let event = self.tell(active, body);
        if kept {
            let line = event.frame(Object::new());
            self.jobs.log(active.id, &active.conversation.agent_id, line);
        }
    }

    fn tell(&self, active: &Active, body: Body) -> Event {
        let Conversation { agent_id, project_id } = active.conversation.clone();
        let event = Event::now(agent_id, project_id, active.id, body);
        let sinks: Vec<Sink> = {
            let sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
            sinks.values().cloned().collect()
        };
        for sink in sinks {
            sink(&event);
        }
        event
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Active {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue, held until a worker comes to the job: one that was cancelled meanwhile still
/// takes memory there.
struct Place(Arc<Runtime>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().queued -= 1;
    }
}

/// Keeps a sink subscribed.
#[must_use]
pub struct Subscription {
    runtime: Weak<Runtime>,
    id: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.upgrade() {
            runtime.sinks.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        }
    }
}
