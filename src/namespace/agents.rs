//! `/agents`: the caller's own agent as `self`, with its places, and links for the names it goes by
//! (spec: namespace 5 to 7); `/global` shows the same places under their later names.

use super::{World, chat, described, jobs};
use crate::base::{Code, Error};
use crate::vfs::synthetic::{Item, dir, fixed, listing};
use serde_json::json;

/// The places of the caller's agent, by name.
pub(super) type Own = Vec<(&'static str, Item)>;

pub(super) fn own(world: &World) -> Own {
    vec![("chat", chat::place(world)), ("jobs", jobs::place(world))]
}

pub(super) fn place(own: &Own) -> Item {
    let me = dir(own.iter().cloned());
    let about = described(
        "Agents",
        "`self` is the agent that this session acts for; the other names are links to it.",
        json!({"kind": "collection", "entries": "agent directories", "shape": "/agents/<agent_id>"}),
        super::read_only(),
    );
    let by_name = about.clone();
    listing(
        move |cx, name| {
            if name == "self" {
                return Ok(me.clone());
            }
            if name == cx.who.agent_id {
                return Ok(link("/agents/self"));
            }
            let found = by_name.iter().find(|(n, _)| n == name).map(|(_, item)| item.clone());
            found
                .ok_or_else(|| Error::new(Code::Enoent, format!("there is no agent {name:?} here")))
        },
        {
            let me = dir(own.iter().cloned());
            move |cx| {
                let mut entries = about.clone();
                entries.push(("self".into(), me.clone()));
                if !cx.who.agent_id.is_empty() && cx.who.agent_id != "self" {
                    entries.push((cx.who.agent_id.clone(), link("/agents/self")));
                }
                Ok(entries)
            }
        },
    )
}

/// A directory that says where to look instead.
fn link(target: &str) -> Item {
    dir([
        ("README.md", fixed(format!("# Link\n\nThis agent's files are at {target}.\n"))),
        ("LINK.txt", fixed(format!("{target}\n"))),
    ])
}

/// `/global`: where the clients of later versions look for the same places.
pub(super) fn global(own: &Own) -> Item {
    let about = described(
        "Global",
        "The places of this session's agent, as later clients name them.",
        json!({"kind": "collection", "entries": "service directories", "shape": "/global/<service>"}),
        super::read_only(),
    );
    let own = own.iter().map(|(name, item)| ((*name).to_owned(), item.clone()));
    dir(about.into_iter().chain(own))
}
