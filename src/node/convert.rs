//! Between the words of trees and those of the wire, where the ids of exports come in.

use super::exports::Exports;
use crate::base::{Name, Result};
use crate::vfs::{Attr, Event, OpenFlags, Opened, wire};
use crate::wire::fs;
use std::ffi::OsStr;

pub fn attr(export: usize, a: &Attr) -> Result<fs::Attr> {
    Ok(wire::attr_to(Exports::id(export, a.id)?, a))
}

pub fn open_reply(h: u64, opened: &Opened, flags: OpenFlags) -> fs::OpenReply {
    fs::OpenReply {
        h,
        readable: flags.reads(),
        writable: flags.writes(),
        generation: opened.generation,
        kind: wire::kind_to(opened.kind),
        patience_ms: opened.patience_ms,
        content: opened.content.clone(),
    }
}

/// An event of an export's tree under wire ids; `None` for what has no wire id.
pub fn event(export: usize, event: Event) -> Option<fs::Event> {
    let id = |node| Exports::id(export, node).ok();
    Some(match event {
        Event::Attr(node) => fs::Event::Attr { node: id(node)? },
        Event::Data { node, generation } => fs::Event::Data { node: id(node)?, generation },
        Event::All { node, generation } => fs::Event::All { node: id(node)?, generation },
        Event::Dir(dir) => fs::Event::Dir { dir: id(dir)?, name: None },
        Event::Entry { dir, name } => {
            fs::Event::Dir { dir: id(dir)?, name: Some(name.to_os_string()) }
        }
        Event::Resync => fs::Event::Resync,
    })
}

pub fn name(name: &OsStr) -> Result<Name<'_>> {
    Name::new(name)
}
