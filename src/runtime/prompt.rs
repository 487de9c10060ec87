//! The system prompt: what holds for every agent first, what changes most often last, so that providers
//! can reuse what they have read before.

use super::agents::{Agent, Registry};
use super::jobs::Conversation;
use std::time::SystemTime;

/// What every agent is told, where no `CORE.md` says otherwise.
const CORE: &str = "\
You are an agent of a Spiderweb gateway. Everything you can reach is a file in one tree, and you work on \
it with your tools; paths are absolute.

- `/agents/self` holds what is yours: `chat` and `jobs`. Places explain themselves in `README.md`, \
`SCHEMA.json` and `CAPS.json`.
- `/nodes` leads to other machines, `/nodes/<node_id>/fs` to the files of one. What your project works on is \
mounted at paths of its own; list `/` to see them.
- A file in a `control` directory takes what is written to it as one message; the answer comes with the \
write.
- Some files make their readers wait until there is something to tell. Do not read in a loop.

Look before you act, act rather than announce, and say when something failed and why. Your answer to the \
person you talk to is what you write when you call no more tools.";

/// Documents of an agent's, in this order.
const DOCUMENTS: [&str; 4] = ["SOUL.md", "AGENT.md", "IDENTITY.md", "USER.md"];

/// The prompt of an agent for a conversation; `before` tells of turns that are not shown.
pub(super) fn instructions(
    registry: &Registry,
    agent: &Agent,
    conversation: &Conversation,
    before: Option<&str>,
) -> String {
    let info = &agent.info;
    let core = registry.document(&info.id, "CORE.md").unwrap_or_else(|| CORE.to_owned());
    let mut parts = vec![core];
    parts.extend(DOCUMENTS.iter().filter_map(|name| registry.document(&info.id, name)));
    if info.needs_hatching {
        parts.extend(registry.document(&info.id, "HATCH.md"));
    }
    let mut facts = format!("You are agent `{}`", info.id);
    if info.name != info.id {
        facts += &format!(", called {}", info.name);
    }
    if !info.description.is_empty() {
        facts += &format!(" ({})", info.description);
    }
    if let Some(project) = &conversation.project_id {
        facts += &format!("; you work in project `{project}`");
    }
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    // The day only: a time would make every prompt a new one.
    facts += &format!(". Today is {} (UTC).", &now[..10]);
    parts.push(facts);
    parts.extend(before.map(str::to_owned));
    parts.iter().map(|part| part.trim()).filter(|p| !p.is_empty()).collect::<Vec<_>>().join("\n\n")
}
