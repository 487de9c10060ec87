//! A runtime and all that it stands on, for the tests of it: real database, real pools, a tree in memory,
//! and a provider that plays a script or the stand-in for the API.

use super::provider_fake::events::{Item as Out, answer, started};
use super::provider_fake::{Answer, FakeOpenAi, KEY};
use serde_json::{Value, json};
use spiderweb::base::{Cancel, Deadline, Timer, id};
use spiderweb::config::credentials::Credentials;
use spiderweb::config::{Config, Env};
use spiderweb::control::Agents;
use spiderweb::runtime::agents::Registry;
use spiderweb::runtime::event::Event;
use spiderweb::runtime::jobs::{Job, JobId};
use spiderweb::runtime::{Options, Runtime, Subscription};
use spiderweb::store::Db;
use spiderweb::vfs::synthetic::{Item, MemDir, Synthetic};
use spiderweb::vfs::{Cx, Tree, Who};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const PATIENCE_MS: u64 = 20_000;
pub const PATIENCE: Duration = Duration::from_millis(PATIENCE_MS);

/// A runtime and all that it stands on.
pub struct House {
    pub runtime: Arc<Runtime>,
    pub db: Arc<Db>,
    pub timer: Timer,
    pub tree: Arc<Synthetic>,
    pub events: Arc<Mutex<Vec<Event>>>,
    _subscription: Subscription,
    pub dir: PathBuf,
}

/// What a test wants to be different.
#[derive(Clone)]
pub struct Wishes {
    pub script: Option<Value>,
    pub base_url: Option<String>,
    pub key: &'static str,
    pub config: Config,
    pub root: Arc<MemDir>,
}

impl Wishes {
    /// The echo provider, playing these turns.
    pub fn script(turns: Value) -> Wishes {
        let mut config = Config::defaults();
        config.provider.name = "echo".into();
        Wishes { script: Some(turns), base_url: None, key: "", config, root: MemDir::new(64 << 20) }
    }

    pub fn openai(fake: &FakeOpenAi) -> Wishes {
        let wishes = Wishes {
            script: None,
            base_url: Some(fake.url.clone()),
            key: KEY,
            ..Wishes::script(json!([]))
        };
        wishes.set(|c| c.provider.name = "openai".into())
    }

    pub fn set(mut self, change: impl FnOnce(&mut Config)) -> Wishes {
        change(&mut self.config);
        self
    }

    pub fn file(self, path: &str, item: Item) -> Wishes {
        self.root.put(path, item).unwrap();
        self
    }

    pub fn text(self, path: &str, content: &str) -> Wishes {
        let file = self.root.file(content.as_bytes(), true).unwrap();
        self.file(path, file)
    }

    pub fn start(self) -> House {
        let dir = std::env::temp_dir().join(id::hex_token("spiderweb-runtime-"));
        std::fs::create_dir(&dir).unwrap();
        self.start_in(dir)
    }

    pub fn start_in(self, dir: PathBuf) -> House {
        let Wishes { script, base_url, key, mut config, root } = self;
        config.runtime.agents_dir = dir.join("agents");
        config.runtime.assets_dir = dir.join("templates");
        config.provider.base_url = base_url;
        if let Some(script) = script {
            std::fs::write(dir.join("script.json"), script.to_string()).unwrap();
            config.provider.script = Some(dir.join("script.json"));
        }
        let env: Env = [("OPENAI_API_KEY", key)].into_iter().collect();
        let credentials = Arc::new(Credentials::from_env(env.clone()));
        let db = Db::open(&dir.join("state.db"), &Runtime::SCHEMAS).unwrap();
        let timer = Timer::start().unwrap();
        let registry = Registry::new(&config.runtime);
        let options =
            Options { provider: config.provider, runtime: config.runtime, env, credentials };
        let runtime = Runtime::start(options, db.clone(), timer.clone(), registry).unwrap();
        let tree = Arc::new(Synthetic::new(Item::Dir(root)).unwrap());
        let given: Arc<dyn Tree> = tree.clone();
        runtime.bind_trees(Arc::new(move |_| Ok(given.clone())));
        runtime.ensure("alice").unwrap();
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let seen = events.clone();
        let sink = move |event: &Event| seen.lock().unwrap().push(event.clone());
        let subscription = runtime.subscribe(Arc::new(sink));
        House { runtime, db, timer, tree, events, _subscription: subscription, dir }
    }
}

impl House {
    pub fn cx(&self, agent: &str) -> Cx {
        let who = Who { principal: "user".into(), agent_id: agent.into(), ..Who::default() };
        Cx::new(Arc::new(who), Deadline::after_ms(PATIENCE_MS))
    }

    pub fn chat(&self, text: &str) -> JobId {
        self.runtime.chat(&self.cx("alice"), text).unwrap()
    }

    /// Waits for a job to end.
    pub fn end(&self, id: JobId) -> Job {
        let until = Deadline::after_ms(PATIENCE_MS);
        loop {
            let seen = self.runtime.jobs().changed("alice").seen();
            let job = self.runtime.jobs().get("alice", id).unwrap();
            if job.state.is_over() {
                return job;
            }
            let wait = self.runtime.jobs().changed("alice").wait(seen, until);
            wait.block(until, &Cancel::new()).expect("the job ends");
        }
    }

    pub fn ask(&self, text: &str) -> Job {
        self.end(self.chat(text))
    }

    /// Results of the tools that a job called, as the model was told of them.
    pub fn results(&self, id: JobId) -> Vec<Value> {
        let log = self.runtime.jobs().log_text("alice", id).unwrap();
        let frames = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let results = frames.filter(|f| f["payload"]["phase"] == "result");
        results.map(|f| f["payload"]["result"].clone()).collect()
    }

    pub fn errors(&self, id: JobId) -> Vec<Value> {
        let log = self.runtime.jobs().log_text("alice", id).unwrap();
        let frames = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        frames
            .filter(|f| f["payload"]["ok"] == false)
            .map(|f| f["payload"]["error"].clone())
            .collect()
    }

    pub fn agent_json(&self, settings: Value) {
        std::fs::write(self.dir.join("agents/alice/agent.json"), settings.to_string()).unwrap();
    }

    /// Ends everything but the files.
    pub fn close(self) -> PathBuf {
        self.runtime.stop(Deadline::after_ms(PATIENCE_MS));
        self.timer.stop();
        self.db.close();
        self.dir.clone()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.timer.stop();
        // A test that reopens the place has closed it before.
        if std::thread::panicking() {
            self.runtime.stop(Deadline::after_ms(0));
        }
    }
}

pub fn done(house: House) {
    let dir = house.close();
    std::fs::remove_dir_all(dir).unwrap();
}

pub fn one_tool(name: &str, arguments: Value) -> Wishes {
    Wishes::script(json!([{"steps": [{"tool": name, "arguments": arguments}, {"text": "done"}]}]))
}

pub fn hanging() -> Answer {
    Answer::Hang(started(&[Out::Text("and then")]))
}

pub fn said(text: &str) -> Answer {
    Answer::Events(answer(&[Out::Text(text)]))
}
