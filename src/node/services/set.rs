//! All services of a node: which there are, when their manifests and programs are looked at, what is
//! kept of them.

use super::catalogue::{self, Files, terminal_service};
use super::manifest::{self, Manifest, SERVICES_MAX, Sources};
use super::probe::{self, Probe};
use super::service::{Common, Driver, Service, Spec};
use super::state::{About, State};
use super::terminal::{self, Terminal};
use super::{files, kept};
use crate::base::{Code, Deadline, Error, Gauge, Notify, Pool, Result, Timer, TimerKey, now_ms};
use crate::node::{Export, Exports};
use crate::vfs::Synthetic;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Callers of all services of a node together: each takes a thread of the pool.
pub const WAITERS_MAX: usize = 32;
/// When the pool has no room for a look at something, it is tried again.
const BUSY_MS: u64 = 1_000;
const NATIVE: &str = "native_proc";

pub struct Options {
    pub sources: Sources,
    /// How often manifests are read again; `None`: only when told to.
    pub reload_interval_ms: Option<u64>,
    pub terminals: Vec<String>,
    /// The node's files are a service, too, called `fs`.
    pub fs_service: bool,
    /// Beside which file the state of services is kept; `None`: not at all.
    pub state_file: Option<PathBuf>,
}

pub struct Services {
    options: Options,
    exports: Exports,
    pool: Arc<Pool>,
    timer: Timer,
    common: Arc<Common>,
    terminals: Vec<Arc<Service>>,
    set: Mutex<Set>,
    /// One reads the manifests at a time.
    reloading: Mutex<()>,
    /// One writes at a time, so that the last state stays.
    keeping: Mutex<()>,
    /// Notified when the catalogue has changed.
    changed: Notify,
    this: Weak<Services>,
}

struct Set {
    /// What reading the sources gave last.
    texts: Result<Vec<(PathBuf, Vec<u8>)>>,
    entries: BTreeMap<String, Entry>,
    last_watch: u64,
    reload: Option<TimerKey>,
    stopped: bool,
}

/// A service that a manifest describes.
struct Entry {
    manifest: Manifest,
    /// Only where there is something to run.
    running: Option<Running>,
}

struct Running {
    service: Arc<Service>,
    probe: Probe,
    /// Which watch of its program this is: looks that an earlier one has planned mean nothing.
    watch: u64,
    next_look: Option<TimerKey>,
}

type Job = Arc<dyn Fn(&Services) + Send + Sync>;

impl Set {
    fn next_watch(&mut self) -> u64 {
        self.last_watch += 1;
        self.last_watch
    }

    fn watched(&mut self, id: &str, watch: u64) -> Option<(&Manifest, &mut Running)> {
        let entry = self.entries.get_mut(id)?;
        let running = entry.running.as_mut().filter(|r| r.watch == watch)?;
        Some((&entry.manifest, running))
    }
}

impl Services {
    /// Reads the manifests and puts what they offer into `exports`. Errors: `invalid_config`, naming file
    /// and field; the host's; as [`Exports::change`].
    pub fn start(
        options: Options,
        exports: Exports,
        pool: Arc<Pool>,
        timer: Timer,
    ) -> Result<Arc<Services>> {
        let texts = options.sources.read().map_err(|e| e.recode(Code::Config))?;
        let manifests = manifest::parse_all(&texts)?;
        let set = Set {
            texts: Ok(texts),
            entries: BTreeMap::new(),
            last_watch: 0,
            reload: None,
            stopped: false,
        };
        let mut old = match &options.state_file {
            Some(file) => kept::load(&kept::path(file))?,
            None => BTreeMap::new(),
        };
        let services = Arc::new_cyclic(|this: &Weak<Services>| {
            let (keep, revive) = (this.clone(), this.clone());
            let common = Arc::new(Common {
                callers: Gauge::new(WAITERS_MAX, "callers of services of this node"),
                keep: Box::new(move || keep.upgrade().iter().for_each(|s| s.keep())),
                revive: Box::new(move |id| revive.upgrade().iter().for_each(|s| s.revive(id))),
            });
            let terminals = options.terminals.iter().map(|id| {
                let state = old.remove(&terminal_service(id));
                Arc::new(new_terminal(id, state, common.clone()))
            });
            Services {
                terminals: terminals.collect(),
                options,
                exports,
                pool,
                timer,
                common,
                set: Mutex::new(set),
                reloading: Mutex::default(),
                keeping: Mutex::default(),
                changed: Notify::default(),
                this: this.clone(),
            }
        });
        let terminals = services.options.terminals.iter().zip(&services.terminals);
        let terminals = terminals.map(|(id, service)| {
            let name = terminal_service(id);
            export(name.clone(), &name, format!("/terminal/{id}"), service)
        });
        services.exports.change(&[], terminals.collect::<Result<_>>()?)?;
        services.apply(manifests, old)?;
        services.reload_later();
        Ok(services)
    }

    fn set(&self) -> MutexGuard<'_, Set> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notified when [`Services::catalogue`] would tell something else.
    pub fn changed(&self) -> &Notify {
        &self.changed
    }

    /// The entries for a gateway's catalogue, as a JSON array. `files`: what the service `fs` is.
    pub fn catalogue(&self, node_id: &str, files: Option<Files>) -> String {
        let mut all: Vec<Value> = Vec::new();
        all.extend(files.map(|f| catalogue::files(f, &self.exports.names(), node_id)));
        all.extend(self.options.terminals.iter().map(|id| catalogue::terminal(id, node_id)));
        let set = self.set();
        all.extend(set.entries.values().map(|e| {
            catalogue::service(&e.manifest, e.running.as_ref().map(|r| &r.probe), node_id)
        }));
        Value::Array(all).to_string()
    }

    /// Reads the manifests again. What cannot be used is logged, and all stays as it was.
    pub fn reload(&self) {
        let _one = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let texts = self.options.sources.read();
        {
            // The same again, good or bad, is no news.
            let mut set = self.set();
            if set.stopped || set.texts == texts {
                return;
            }
            set.texts = texts.clone();
        }
        let outcome = texts
            .and_then(|texts| manifest::parse_all(&texts))
            .and_then(|manifests| self.apply(manifests, BTreeMap::new()));
        if let Err(e) = outcome {
            log::warn!("services stay as they were: {e}");
        }
    }

    fn reload_later(&self) {
        let Some(ms) = self.options.reload_interval_ms else { return };
        if self.options.sources.is_empty() {
            return;
        }
        let look = |services: &Services| {
            services.reload();
            services.reload_later();
        };
        let mut set = self.set();
        if !set.stopped {
            set.reload = Some(self.later(ms, Arc::new(look)));
        }
    }

    /// Has `job` run on the pool in `ms`, or, where the pool is full then, a little later.
    fn later(&self, ms: u64, job: Job) -> TimerKey {
        let this = self.this.clone();
        let on_time = move || {
            let Some(services) = this.upgrade() else { return };
            let again = job.clone();
            let run = move || {
                if let Some(services) = this.upgrade() {
                    job(&services);
                }
            };
            if services.pool.submit(run).is_err() {
                services.later(BUSY_MS, again);
            }
        };
        self.timer.at(Deadline::after_ms(ms).instant(), Box::new(on_time))
    }
}

impl Services {
    /// Makes the services those of `manifests`: what is the same is not touched, what has changed keeps
    /// its tree and its state. `old` has the states of earlier runs. All of it or nothing. Errors:
    /// `invalid_config`; as [`Exports::change`].
    fn apply(&self, manifests: Vec<Manifest>, mut old: BTreeMap<String, State>) -> Result<()> {
        self.check(&manifests)?;
        let mut set = self.set();
        if set.stopped {
            return Ok(());
        }
        let mut before = std::mem::take(&mut set.entries);
        let (mut new, mut added) = (BTreeMap::new(), Vec::new());
        for m in &manifests {
            let Some(spec) = spec(m) else { continue };
            if before.get(&m.service_id).is_none_or(|e| e.running.is_none()) {
                let state = old.remove(&m.service_id).unwrap_or_else(|| State::new(&m.service_id));
                let service = Arc::new(Service::new(spec, state, self.common.clone()));
                new.insert(m.service_id.clone(), service);
            }
        }
        let runs = |id: &str| manifests.iter().any(|m| m.service_id == id && m.process.is_some());
        let gone = before.iter().filter(|(id, e)| e.running.is_some() && !runs(id));
        let gone: Vec<_> = gone.map(|(id, _)| service_export(id)).collect();
        let made = new.iter().try_for_each(|(id, service)| {
            added.push(export(service_export(id), id, format!("service:{id}"), service)?);
            Ok(())
        });
        let is_news = !gone.is_empty() || !added.is_empty();
        if let Err(e) = made.and_then(|()| self.exports.change(&gone, added)) {
            set.entries = before;
            return Err(e);
        }
        let last_watch = set.last_watch;
        for m in manifests {
            let (was, watch) = (before.remove(&m.service_id), set.next_watch());
            let entry = self.entry(m, was, &mut new, watch);
            set.entries.insert(entry.manifest.service_id.clone(), entry);
        }
        let all = set.entries.iter().filter_map(|(id, e)| Some((id, e.running.as_ref()?.watch)));
        let fresh = all.filter(|(_, watch)| *watch > last_watch);
        let fresh: Vec<_> = fresh.map(|(id, watch)| (id.clone(), watch)).collect();
        drop(set);
        before.into_values().filter_map(|e| e.running).for_each(|r| self.retire(r));
        fresh.iter().for_each(|(id, watch)| self.look(id, *watch));
        if is_news {
            self.keep();
        }
        self.changed.notify();
        Ok(())
    }

    fn check(&self, manifests: &[Manifest]) -> Result<()> {
        let own = |id: &str| {
            id == "fs" && self.options.fs_service
                || self.options.terminals.iter().any(|t| terminal_service(t) == id)
        };
        if let Some(m) = manifests.iter().find(|m| own(&m.service_id)) {
            let text =
                format!("service_id {:?} is that of a service of the node itself", m.service_id);
            return Err(Error::new(Code::Config, text));
        }
        if manifests.len() + self.terminals.len() > SERVICES_MAX {
            return Err(Error::new(Code::Config, format!("at most {SERVICES_MAX} services")));
        }
        Ok(())
    }

    fn entry(
        &self,
        manifest: Manifest,
        was: Option<Entry>,
        new: &mut BTreeMap<String, Arc<Service>>,
        watch: u64,
    ) -> Entry {
        if let Some(was) = was {
            if was.manifest == manifest {
                return was;
            }
            if let Some(running) = was.running {
                match spec(&manifest) {
                    Some(spec) => {
                        self.cancel(running.next_look);
                        running.service.set_spec(spec);
                        return watched(manifest, running.service, watch);
                    }
                    None => self.retire(running),
                }
            }
        }
        match new.remove(&manifest.service_id) {
            Some(service) => watched(manifest, service, watch),
            None => Entry { manifest, running: None },
        }
    }

    fn retire(&self, running: Running) {
        self.cancel(running.next_look);
        running.service.retire();
    }

    fn cancel(&self, key: Option<TimerKey>) {
        if let Some(key) = key {
            self.timer.cancel(key);
        }
    }

    /// Looks at a service's program, and plans the next look, if its watch is still this one.
    fn look(&self, id: &str, watch: u64) {
        let found = self.set().watched(id, watch).and_then(|(m, _)| m.process.clone());
        let Some(process) = found else { return };
        // Without the lock: it may wait for the disk.
        let health = probe::look(process.executable());
        let mut set = self.set();
        let stopped = set.stopped;
        let Some((_, running)) = set.watched(id, watch) else { return };
        let state = running.probe.state();
        let next_ms = running.probe.saw(&health, now_ms());
        let is_news = state != running.probe.state();
        if let Some(ms) = next_ms.filter(|_| !stopped) {
            let name = id.to_owned();
            let look = move |services: &Services| services.look(&name, watch);
            running.next_look = Some(self.later(ms, Arc::new(look)));
        }
        drop(set);
        if is_news {
            if let Err(e) = health {
                log::warn!("service {id}: {e}");
            }
            self.changed.notify();
        }
    }

    /// Begins to watch a service's program anew, now.
    fn revive(&self, id: &str) {
        let mut set = self.set();
        let watch = set.next_watch();
        let running = set.entries.get_mut(id).and_then(|e| e.running.as_mut());
        let Some(running) = running.filter(|r| r.probe.is_disabled()) else { return };
        running.probe = running.probe.anew(now_ms());
        running.watch = watch;
        drop(set);
        self.look(id, watch);
    }

    fn running(&self) -> Vec<Arc<Service>> {
        let set = self.set();
        let services =
            set.entries.values().filter_map(|e| Some(e.running.as_ref()?.service.clone()));
        self.terminals.iter().cloned().chain(services).collect()
    }

    /// Writes down how the services are.
    fn keep(&self) {
        let Some(file) = &self.options.state_file else { return };
        let _one = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        let states = self.running().iter().map(|s| s.state().kept()).collect();
        if let Err(e) = kept::save(&kept::path(file), states) {
            log::error!("the state of services cannot be kept: {e}");
        }
    }

    /// Ends what runs, interactive sessions included, and takes nothing more.
    pub fn stop(&self) {
        let mut set = self.set();
        set.stopped = true;
        self.cancel(set.reload.take());
        for running in set.entries.values_mut().filter_map(|e| e.running.as_mut()) {
            self.cancel(running.next_look.take());
        }
        drop(set);
        self.running().iter().for_each(|s| s.retire());
    }
}

/// The export of a service (spec: fs 14.3).
fn service_export(id: &str) -> String {
    format!("svc-{id}")
}

fn watched(manifest: Manifest, service: Arc<Service>, watch: u64) -> Entry {
    let running = manifest.process.as_ref().map(|process| {
        let probe = Probe::new(process.supervision, now_ms());
        Running { service, probe, watch, next_look: None }
    });
    Entry { manifest, running }
}

fn export(name: String, id: &str, desc: String, service: &Arc<Service>) -> Result<Export> {
    let tree = Arc::new(Synthetic::new(files::root(service))?);
    service.shown_in(&tree);
    Ok(Export {
        name,
        tree,
        ro: false,
        desc,
        source_kind: "namespace".into(),
        source_id: format!("service:{id}"),
    })
}

/// `None` for what is only an entry of the catalogue.
fn spec(m: &Manifest) -> Option<Spec> {
    let process = m.process.as_ref()?;
    let about =
        About { service_id: m.service_id.clone(), runtime: NATIVE, timeout_ms: process.timeout_ms };
    let readme = m.help_md.clone().unwrap_or_else(|| {
        format!(
            "# {}\n\nWrite a JSON object to `control/invoke.json`; `result.json` then holds the answer, \
             `status.json` and `last_error.txt` say what became of it.\n",
            m.service_id
        )
    });
    Some(Spec {
        about,
        readme,
        schema: m.schema.clone().unwrap_or_else(files::schema_default),
        template: m.invoke_template.clone(),
        driver: Driver::Process(process.program.clone()),
    })
}

fn new_terminal(id: &str, state: Option<State>, common: Arc<Common>) -> Service {
    let service_id = terminal_service(id);
    let about =
        About { service_id: service_id.clone(), runtime: NATIVE, timeout_ms: terminal::TIMEOUT_MS };
    let spec = Spec {
        about,
        readme: catalogue::terminal_help(id),
        schema: terminal::schema(),
        template: terminal::template(),
        driver: Driver::Terminal(Arc::new(Terminal::new(id))),
    };
    let state = state.unwrap_or_else(|| State::new(&service_id));
    Service::new(spec, state, common)
}
