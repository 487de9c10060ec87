//! A service: one invocation at a time, on the thread of whoever asks, while the others queue.

use super::child::{self, Program, Ran};
use super::state::{About, Op, State, Times};
use super::terminal::Terminal;
use crate::base::{Cancel, Code, Deadline, Error, Gauge, Notify, Result, TreePath, now_ms};
use crate::vfs::{Cx, Synthetic};
use bytes::Bytes;
use serde_json::Value;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::Instant;

/// Callers of one service, the one that is served included.
const CALLERS_MAX: usize = 8;

/// Files whose content a run or a control operation may change.
const CHANGING: [&str; 6] =
    ["result.json", "status.json", "metrics.json", "health.json", "last_error.txt", "config.json"];

/// What a service is; replaced as a whole when its manifest changes.
#[derive(Clone)]
pub struct Spec {
    pub about: About,
    pub readme: String,
    pub schema: Value,
    pub template: Value,
    pub driver: Driver,
}

/// What does the work.
#[derive(Clone)]
pub enum Driver {
    /// A program, started anew for each invocation.
    Process(Program),
    Terminal(Arc<Terminal>),
}

/// What the services of a node share.
pub struct Common {
    /// Callers of all services: each takes a thread.
    pub callers: Gauge,
    /// Called when there is something to keep; may block.
    pub keep: Box<dyn Fn() + Send + Sync>,
    /// Called with the id of a service that is to be given another chance.
    pub revive: Box<dyn Fn(&str) + Send + Sync>,
}

pub struct Service {
    spec: RwLock<Arc<Spec>>,
    state: Mutex<State>,
    common: Arc<Common>,
    callers: Gauge,
    /// What ends the run under way.
    running: Mutex<Option<Cancel>>,
    free: Notify,
    /// It was taken out, or the program ends.
    gone: Cancel,
    tree: OnceLock<Weak<Synthetic>>,
}

impl Service {
    pub fn new(spec: Spec, state: State, common: Arc<Common>) -> Service {
        Service {
            spec: RwLock::new(Arc::new(spec)),
            state: Mutex::new(state),
            common,
            callers: Gauge::new(CALLERS_MAX, "callers of this service"),
            running: Mutex::default(),
            free: Notify::default(),
            gone: Cancel::new(),
            tree: OnceLock::new(),
        }
    }

    /// The tree that shows its files, told when they change.
    pub fn shown_in(&self, tree: &Arc<Synthetic>) {
        let _ = self.tree.set(Arc::downgrade(tree));
        if let Driver::Terminal(terminal) = &self.spec().driver {
            terminal.sessions.shown_in(tree);
        }
    }

    pub fn spec(&self) -> Arc<Spec> {
        self.spec.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over a changed manifest; what runs goes on as it began.
    pub fn set_spec(&self, spec: Spec) {
        *self.spec.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(spec);
        let fixed = ["README.md", "SCHEMA.json", "schema.json", "TEMPLATE.json", "template.json"];
        self.announce(fixed.iter().chain(&CHANGING));
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes to the tree's watchers.
    fn announce<'a>(&self, names: impl Iterator<Item = &'a &'a str>) {
        let Some(tree) = self.tree.get().and_then(Weak::upgrade) else { return };
        let paths = names.filter_map(|name| TreePath::parse(format!("/{name}")).ok());
        paths.for_each(|path| tree.changed(&path));
    }

    fn changed(&self) {
        self.announce(CHANGING.iter());
        (self.common.keep)();
    }

    pub fn control(&self, op: Op) {
        self.state().control(op, now_ms());
        if matches!(op, Op::Disable | Op::Restart) {
            self.end_run();
        }
        if matches!(op, Op::Enable | Op::Restart) {
            (self.common.revive)(&self.spec().about.service_id);
        }
        self.changed();
    }

    /// Errors: EINVAL.
    pub fn configure(&self, text: &[u8]) -> Result<()> {
        self.state().configure(&String::from_utf8_lossy(text), now_ms())?;
        self.changed();
        Ok(())
    }

    fn running(&self) -> MutexGuard<'_, Option<Cancel>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_run(&self) {
        if let Some(run) = self.running().clone() {
            run.cancel();
        }
    }

    /// Ends what runs; from now on nothing is taken.
    pub fn retire(&self) {
        self.gone.cancel();
        self.end_run();
        self.free.notify();
        if let Driver::Terminal(terminal) = &self.spec().driver {
            terminal.sessions.close_all();
        }
    }

    /// Whether anything may be asked of it now. Errors: EPERM when it is disabled, EAGAIN while it cools
    /// down, ESTALE when it is gone.
    pub fn admit(&self) -> Result<()> {
        if self.gone.is_cancelled() {
            return Err(Error::new(Code::Estale, "the service is gone"));
        }
        let admitted = self.state().admit(&self.spec().about, now_ms());
        if admitted.is_err() {
            self.announce(CHANGING.iter());
        }
        admitted
    }

    /// Waits until nobody else is served. Errors: as [`crate::base::Wait::block`].
    fn turn(&self, cx: &Cx) -> Result<Turn<'_>> {
        loop {
            let seen = self.free.seen();
            let mut running = self.running();
            if running.is_none() || self.gone.is_cancelled() {
                let cancel = Cancel::new();
                *running = Some(cancel.clone());
                return Ok(Turn { service: self, cancel });
            }
            drop(running);
            self.free.wait(seen, Deadline::never()).block(cx.deadline, &cx.cancel)?;
        }
    }

    /// One invocation (spec: fs 15.3); returns when it is over, with the result. A driver that fails is
    /// no error: the status says so. Errors: EPERM when disabled; EAGAIN while cooling down and when too
    /// many ask; EINVAL; EIO for a driver that cannot be started or writes too much.
    pub fn invoke(&self, cx: &Cx, payload: &[u8]) -> Result<Bytes> {
        self.admit()?;
        let payload = payload.trim_ascii();
        if payload.is_empty() {
            return Ok(Bytes::new());
        }
        if serde_json::from_slice::<serde_json::Map<String, Value>>(payload).is_err() {
            let text = "service invoke payload invalid: write one JSON object";
            // A shell does not hear of an error at the close.
            self.state().last_error = text.into();
            self.announce(CHANGING.iter());
            return Err(Error::invalid(text));
        }
        let _places = (self.callers.enter()?, self.common.callers.enter()?);
        let turn = self.turn(cx)?;
        // The one before may have been one too many.
        self.admit()?;
        let spec = self.spec();
        let (started_ms, since) = (now_ms(), Instant::now());
        self.state().begin(&spec.about, started_ms);
        self.announce(CHANGING.iter());
        let ran = run(&spec, payload, &turn.cancel);
        let times = Times { started_ms, duration_ms: since.elapsed().as_millis() as u64 };
        self.state().conclude(&spec.about, times, &ran);
        drop(turn);
        self.changed();
        ran.map(|_| self.state().result_json.clone().into())
    }
}

fn run(spec: &Spec, payload: &[u8], cancel: &Cancel) -> Result<Ran> {
    let deadline = Deadline::after_ms(spec.about.timeout_ms);
    let ran = match &spec.driver {
        Driver::Process(program) => child::run(program, payload, deadline, cancel),
        Driver::Terminal(terminal) => terminal.exec(payload, deadline, cancel),
    };
    // Whatever the host's reason: this did not run (spec: fs 15.3, step 8).
    ran.map_err(|e| e.recode(Code::Eio))
}

/// The right to run. Dropped, the next in the queue has it.
struct Turn<'a> {
    service: &'a Service,
    cancel: Cancel,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.service.running() = None;
        self.service.free.notify();
    }
}
