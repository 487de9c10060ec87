//! Agents on disk: one directory each, with `agent.json` and the documents that make up its character
//! (spec: runtime 8.6, namespace 14). Read anew on every call; people edit these files.

use super::provider::Effort;
use crate::base::{Code, Error, Result, ResultExt, id};
use crate::config;
use crate::control::AgentInfo;
use crate::store::atomic;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Largest `agent.json`.
const SETTINGS_MAX: usize = 64 * 1024;
/// Largest document of an agent's.
const DOCUMENT_MAX: usize = 64 * 1024;
/// Most agents: a client that invents names can make so many and no more.
pub const AGENTS_MAX: usize = 1024;
const ID_MAX: usize = 64;
/// Lines of a document in which the agent's name is looked for.
const NAME_LINES: usize = 21;
const CAPABILITIES: [&str; 4] = ["chat", "code", "plan", "research"];
const MOTHER: &str = "mother";
const IDENTITY: [&str; 3] = ["SOUL.md", "AGENT.md", "IDENTITY.md"];

/// What a newborn is told, where no template says otherwise.
const HATCH: &str = "# Hatching\n\n\
    You have just been created and have no character yet. Find out from the person you talk to who you \
    are to be: a name, a manner, what you are to work on. Write what you learn to `SOUL.md`, greet, and \
    remove this file; then you are hatched.\n";

/// An agent: how it is shown, and how it works.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Agent {
    pub info: AgentInfo,
    pub settings: Settings,
}

/// What `agent.json` says about how the agent works; `None` leaves it to the config file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    pub provider: Option<String>,
    pub model: Option<String>,
    pub effort: Option<Effort>,
    /// Only these tools, where given; a denied one is never offered.
    pub allowed_tools: Option<Vec<String>>,
    pub denied_tools: Vec<String>,
}

impl Settings {
    pub fn allows(&self, tool: &str) -> bool {
        let named = |tools: &[String]| tools.iter().any(|t| t == tool);
        !named(&self.denied_tools) && self.allowed_tools.as_deref().is_none_or(named)
    }
}

/// How to make an agent; what is `None` is not written.
#[derive(Clone, Debug, Default)]
pub struct NewAgent {
    pub name: Option<String>,
    pub description: Option<String>,
    pub capabilities: Option<Vec<String>>,
    /// The text of `HATCH.md`; the template's otherwise.
    pub hatch: Option<String>,
}

/// What a listing found.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Sorted by id.
    pub agents: Vec<Agent>,
    /// The others, and why they could not be read.
    pub problems: Vec<(String, Error)>,
}

/// The directory of agents.
pub struct Registry {
    agents_dir: PathBuf,
    assets_dir: PathBuf,
    default_id: String,
    implicit: bool,
}

impl Registry {
    pub fn new(settings: &config::Runtime) -> Registry {
        Registry {
            agents_dir: settings.agents_dir.clone(),
            assets_dir: settings.assets_dir.clone(),
            default_id: settings.default_agent_id.clone(),
            implicit: settings.implicit_agents,
        }
    }

    /// Makes `mother/agent.json` where it is missing (spec: runtime 8.6).
    pub fn scaffold(&self) -> Result<()> {
        let path = self.agents_dir.join(MOTHER).join("agent.json");
        if path.exists() {
            return Ok(());
        }
        let settings = json!({
            "name": "Mother",
            "description": "Looks after this gateway: sets up projects and agents",
            "is_default": true,
            "capabilities": ["chat", "plan", "code", "research"],
        });
        write_json(&path, &settings)
    }

    /// Every agent; one that cannot be read does not hide the others.
    pub fn list(&self) -> Result<Listing> {
        let mut listing = Listing::default();
        for id in self.ids()? {
            match self.read(&id) {
                Ok(agent) => listing.agents.push(agent),
                Err(e) => listing.problems.push((id, e)),
            }
        }
        // One is the default in any case: as marked, as configured, mother, the first.
        let agents = &mut listing.agents;
        if !agents.iter().any(|a| a.info.is_default) {
            let place = |id: &str| agents.iter().position(|a| a.info.id == id);
            let default = place(&self.default_id).or_else(|| place(MOTHER)).unwrap_or(0);
            if let Some(agent) = agents.get_mut(default) {
                agent.info.is_default = true;
            }
        }
        Ok(listing)
    }

    /// Errors: `agent_not_found`; `invalid_config` when its `agent.json` cannot be read.
    pub fn get(&self, id: &str) -> Result<Agent> {
        if !self.exists(id) {
            return Err(Error::new(Code::AgentNotFound, format!("agent {id:?} does not exist")));
        }
        self.read(id)
    }

    pub fn exists(&self, id: &str) -> bool {
        is_agent_id(id) && self.agents_dir.join(id).is_dir()
    }

    /// Makes sure that an agent exists. Errors: `agent_not_found` for an unknown one where implicit
    /// agents are not allowed; `invalid_payload` for an id that can name none.
    pub fn ensure(&self, id: &str) -> Result<()> {
        if self.exists(id) {
            return Ok(());
        }
        if !self.implicit {
            return Err(Error::new(Code::AgentNotFound, format!("agent {id:?} does not exist")));
        }
        match self.create(id, NewAgent::default()) {
            Err(e) if e.code == Code::Eexist => Ok(()),
            created => created,
        }
    }

    /// Makes an unhatched agent, durably, or nothing. Errors: `eexist`, `invalid_payload`, `limit_exceeded`.
    pub fn create(&self, id: &str, new: NewAgent) -> Result<()> {
        if !is_agent_id(id) {
            let message = format!("agent id {id:?} is not 1 to {ID_MAX} of [A-Za-z0-9_-]");
            return Err(Error::new(Code::InvalidPayload, message));
        }
        if self.ids()?.len() >= AGENTS_MAX {
            let message = format!("there are {AGENTS_MAX} agents; remove one first");
            return Err(Error::new(Code::LimitExceeded, message));
        }
        let hatch = new.hatch.clone().unwrap_or_else(|| self.hatch_template());
        std::fs::create_dir_all(&self.agents_dir).context(self.agents_dir.display())?;
        let dir = self.agents_dir.join(id);
        std::fs::create_dir(&dir).context(format!("agent {id}"))?;
        let write = || {
            atomic::write(&dir.join("HATCH.md"), hatch.as_bytes())?;
            if let Some(settings) = new.settings() {
                write_json(&dir.join("agent.json"), &settings)?;
            }
            Ok(std::fs::File::open(&self.agents_dir)?.sync_all()?)
        };
        write().inspect_err(|_| {
            let _ = std::fs::remove_dir_all(&dir);
        })
    }

    /// A document of an agent's: its own, else the template; `None` where there is neither.
    pub fn document(&self, id: &str, name: &str) -> Option<String> {
        let own = self.agents_dir.join(id).join(name);
        let places = [own, self.assets_dir.join(name)];
        places.iter().find_map(|path| match atomic::read(path, DOCUMENT_MAX) {
            Ok(text) => Some(String::from_utf8_lossy(&text).into_owned()),
            Err(e) if e.errno() == libc::ENOENT || e.errno() == libc::ENOTDIR => None,
            Err(e) => {
                log::warn!("agent {id}: {e}");
                None
            }
        })
    }

    fn hatch_template(&self) -> String {
        let places = [&self.assets_dir, &self.agents_dir].map(|dir| dir.join("HATCH.template.md"));
        let text = places.iter().find_map(|path| atomic::read(path, DOCUMENT_MAX).ok());
        text.map_or(HATCH.into(), |text| String::from_utf8_lossy(&text).into_owned())
    }

    fn ids(&self) -> Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.agents_dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::from(e).context(self.agents_dir.display())),
        };
        let id = |entry: std::io::Result<std::fs::DirEntry>| {
            let entry = entry.ok()?;
            let id = entry.file_name().into_string().ok()?;
            (is_agent_id(&id) && entry.path().is_dir()).then_some(id)
        };
        let mut ids: Vec<String> = entries.filter_map(id).collect();
        ids.sort();
        Ok(ids)
    }

    fn read(&self, id: &str) -> Result<Agent> {
        let dir = self.agents_dir.join(id);
        let path = dir.join("agent.json");
        let (file, described) = match atomic::read(&path, SETTINGS_MAX) {
            Ok(text) => {
                let file = serde_json::from_slice(&text).map_err(|e| wrong(&path, &e))?;
                (file, true)
            }
            Err(e) if e.errno() == libc::ENOENT => (AgentFile::default(), false),
            Err(e) => return Err(e.recode(Code::Config)),
        };
        let capabilities = match &file.capabilities {
            Some(named) => CAPABILITIES
                .iter()
                .filter(|c| named.iter().any(|n| n == *c))
                .map(|c| (*c).to_owned())
                .collect(),
            None => guess_capabilities(id),
        };
        let name = file.name.clone().filter(|n| !n.trim().is_empty());
        let name = name.or_else(|| if described { None } else { name_in_documents(&dir) });
        Ok(Agent {
            info: AgentInfo {
                id: id.to_owned(),
                name: name.unwrap_or_else(|| id.to_owned()),
                description: file.description.clone().unwrap_or_default(),
                is_default: file.is_default,
                identity_loaded: IDENTITY.iter().any(|name| dir.join(name).exists()),
                needs_hatching: dir.join("HATCH.md").exists(),
                capabilities,
            },
            settings: file.settings().map_err(|e| wrong(&path, &e))?,
        })
    }
}

impl NewAgent {
    fn settings(&self) -> Option<Value> {
        let members = [
            ("name", self.name.as_ref().map(|v| json!(v))),
            ("description", self.description.as_ref().map(|v| json!(v))),
            ("capabilities", self.capabilities.as_ref().map(|v| json!(v))),
        ];
        let given = members.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?)));
        let given: Map<String, Value> = given.collect();
        (!given.is_empty()).then_some(Value::Object(given))
    }
}

/// `agent.json`; what it holds beyond this is not ours.
#[derive(Default, Deserialize)]
#[serde(default)]
struct AgentFile {
    name: Option<String>,
    description: Option<String>,
    is_default: bool,
    capabilities: Option<Vec<String>>,
    provider: Option<ProviderChoice>,
    model: Option<String>,
    #[serde(alias = "thinking_level", alias = "reasoning")]
    think_level: Option<String>,
    allowed_tools: Option<Vec<String>>,
    denied_tools: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ProviderChoice {
    Name(String),
    Full { name: Option<String>, model: Option<String>, think_level: Option<String> },
}

impl AgentFile {
    fn settings(self) -> Result<Settings, String> {
        let (name, model, level) = match self.provider {
            Some(ProviderChoice::Name(name)) => (Some(name), None, None),
            Some(ProviderChoice::Full { name, model, think_level }) => (name, model, think_level),
            None => (None, None, None),
        };
        let level = level.or(self.think_level);
        Ok(Settings {
            provider: name,
            model: model.or(self.model),
            effort: level.as_deref().map_or(Ok(None), effort)?,
            allowed_tools: self.allowed_tools,
            denied_tools: self.denied_tools,
        })
    }
}

fn effort(level: &str) -> Result<Option<Effort>, String> {
    match level.trim() {
        "" | "off" | "none" => Ok(None),
        level => serde_json::from_value(level.into()).map(Some).map_err(|_| {
            format!("think_level {level:?} is not off, minimal, low, medium, high or xhigh")
        }),
    }
}

fn wrong(path: &Path, e: &dyn std::fmt::Display) -> Error {
    Error::new(Code::Config, format!("{}: {e}", path.display()))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).expect("JSON can be written as JSON");
    atomic::write(path, (text + "\n").as_bytes())
}

/// `[A-Za-z0-9_-]{1,64}`.
pub fn is_agent_id(s: &str) -> bool {
    id::is_identifier(s, ID_MAX) && !s.contains('.')
}

/// A `Name:` line, or the first heading, of the documents that an agent writes about itself.
fn name_in_documents(dir: &Path) -> Option<String> {
    ["IDENTITY.md", "SOUL.md"].iter().find_map(|name| {
        let text = atomic::read(&dir.join(name), DOCUMENT_MAX).ok()?;
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().take(NAME_LINES).map(str::trim).collect();
        let named = lines.iter().find_map(|line| {
            line.trim_start_matches(['-', '*', ' ']).strip_prefix("Name:").map(str::trim)
        });
        let heading = || lines.iter().find_map(|line| line.strip_prefix("# ").map(str::trim));
        named.or_else(heading).filter(|name| !name.is_empty()).map(str::to_owned)
    })
}

fn guess_capabilities(id: &str) -> Vec<String> {
    let id = id.to_ascii_lowercase();
    let fits = |words: &[&str]| words.iter().any(|word| id.contains(word));
    let guesses = [
        ("chat", true),
        ("code", fits(&["code", "dev", "prog"])),
        ("plan", fits(&["plan", "pm", "manage"])),
        ("research", fits(&["research", "search"])),
    ];
    guesses.iter().filter(|(_, fits)| *fits).map(|(name, _)| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::TempDir;

    fn registry(dir: &TempDir, implicit: bool) -> Registry {
        Registry::new(&config::Runtime {
            agents_dir: dir.path("agents"),
            assets_dir: dir.path("templates"),
            implicit_agents: implicit,
            ..config::Config::defaults().runtime
        })
    }

    fn write(dir: &TempDir, path: &str, text: &str) {
        atomic::write(&dir.path(path), text.as_bytes()).unwrap();
    }

    #[test]
    fn one_broken_agent_is_reported_and_does_not_hide_the_others() {
        let dir = TempDir::new();
        let registry = registry(&dir, true);
        assert!(registry.list().unwrap().agents.is_empty());
        write(&dir, "agents/broken/agent.json", "{\"name\":");
        write(&dir, "agents/odd/agent.json", "{\"think_level\":\"deep\"}");
        write(&dir, "agents/dev-pm/IDENTITY.md", "intro\n- Name: Ada\n");
        write(
            &dir,
            "agents/zed/agent.json",
            r#"{"name":"Zed","capabilities":["plan","fly","chat"]}"#,
        );
        write(&dir, "agents/.git/x", "");
        registry.scaffold().unwrap();
        let Listing { agents, problems } = registry.list().unwrap();
        let infos: Vec<_> = agents.iter().map(|a| &a.info).collect();
        let names: Vec<_> = infos.iter().map(|i| (i.id.as_str(), i.name.as_str())).collect();
        assert_eq!(names, [("dev-pm", "Ada"), ("mother", "Mother"), ("zed", "Zed")]);
        assert_eq!(infos[0].capabilities, ["chat", "code", "plan"]);
        assert!(infos[0].identity_loaded && !infos[0].is_default && infos[1].is_default);
        assert_eq!(infos[2].capabilities, ["chat", "plan"]);
        assert_eq!(problems.len(), 2);
        assert!(problems[0].1.message.contains("broken/agent.json"), "{problems:?}");
        assert!(problems[1].1.message.contains("think_level \"deep\""), "{problems:?}");
        assert_eq!(registry.get("broken").unwrap_err().code, Code::Config);
        assert_eq!(registry.get("../agents/zed").unwrap_err().code, Code::AgentNotFound);
    }

    #[test]
    fn an_unknown_agent_begins_unhatched_unless_that_is_forbidden() {
        let dir = TempDir::new();
        assert_eq!(registry(&dir, false).ensure("alice").unwrap_err().code, Code::AgentNotFound);
        let registry = registry(&dir, true);
        assert_eq!(registry.ensure("a/b").unwrap_err().code, Code::InvalidPayload);
        registry.ensure("alice").unwrap();
        registry.ensure("alice").unwrap();
        assert!(registry.get("alice").unwrap().info.needs_hatching);
        assert!(registry.document("alice", "HATCH.md").unwrap().contains("SOUL.md"));
        let again = registry.create("alice", NewAgent::default()).unwrap_err();
        assert_eq!(again.code, Code::Eexist);

        write(&dir, "templates/HATCH.template.md", "from the template");
        let new = NewAgent { name: Some("Bob".into()), ..NewAgent::default() };
        registry.create("bob", new).unwrap();
        assert_eq!(registry.document("bob", "HATCH.md").unwrap(), "from the template");
        assert_eq!(registry.get("bob").unwrap().info.name, "Bob");
    }

    #[test]
    fn settings_say_how_an_agent_works_and_denied_wins() {
        let dir = TempDir::new();
        let registry = registry(&dir, true);
        write(
            &dir,
            "agents/a/agent.json",
            r#"{"provider":{"name":"echo","think_level":"high"},"model":"m",
                "allowed_tools":["file_read","file_write"],"denied_tools":["file_write"]}"#,
        );
        write(&dir, "agents/b/agent.json", r#"{"provider":"openai","reasoning":"off"}"#);
        let a = registry.get("a").unwrap().settings;
        assert_eq!((a.provider.as_deref(), a.model.as_deref()), (Some("echo"), Some("m")));
        assert_eq!(a.effort, Some(Effort::High));
        let allowed = ["file_read", "file_write", "file_list"].map(|t| a.allows(t));
        assert_eq!(allowed, [true, false, false]);
        let b = registry.get("b").unwrap().settings;
        assert_eq!((b.provider.as_deref(), b.effort), (Some("openai"), None));
        assert!(b.allows("anything"));
    }
}
