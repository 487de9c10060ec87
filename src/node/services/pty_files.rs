//! `pty/` of a terminal: the files through which its interactive sessions are used.

use super::pty::{Output, Session};
use super::service::Service;
use super::terminal::Terminal;
use crate::base::{Code, Deadline, Error, Result};
use crate::vfs::synthetic::{
    File, FileStat, Item, OpenFile, Reply, dir, json_message, listing, text,
};
use crate::vfs::{Cx, FileKind, OpenFlags, Read, Written};
use serde_json::{Value, json};
use std::sync::Arc;

pub fn place(service: &Arc<Service>, terminal: &Arc<Terminal>) -> Item {
    let new = {
        let (service, terminal) = (service.clone(), terminal.clone());
        json_message(move |_, text| {
            service.admit()?;
            start(&terminal, text)
        })
    };
    let (all, one, by_name) = (terminal.clone(), terminal.clone(), new.clone());
    listing(
        move |_, name| match name {
            "new" => Ok(by_name.clone()),
            name => one.sessions.get(name).map(|session| directory(&one, &session)),
        },
        move |_| {
            let sessions = all.sessions.list();
            let sessions = sessions.iter().map(|s| (s.name(), directory(&all, s)));
            Ok([("new".to_owned(), new.clone())].into_iter().chain(sessions).collect())
        },
    )
}

fn start(terminal: &Terminal, text: &[u8]) -> Result<Reply> {
    let session = terminal.sessions.start(text)?;
    let name = session.name();
    let Value::Object(extra) = json!({"path": format!("pty/{name}"), "pty": name}) else {
        return Err(Error::new(Code::Eio, "no reply"));
    };
    let body = format!("{}\n", Value::Object(extra.clone())).into();
    Ok(Reply { extra: Some(extra), body })
}

fn directory(terminal: &Arc<Terminal>, session: &Arc<Session>) -> Item {
    let (shown, controlled, terminal) = (session.clone(), session.clone(), terminal.clone());
    dir([
        ("io", Item::File(Arc::new(Io(session.clone())))),
        ("status.json", text(move |_| Ok(shown.status().to_string()))),
        (
            "control",
            json_message(move |_, text| {
                terminal.control(&controlled, text).map(|()| Reply::default())
            }),
        ),
    ])
}

/// Screen and keyboard.
struct Io(Arc<Session>);

impl File for Io {
    fn kind(&self) -> FileKind {
        FileKind::Stream
    }

    fn writable(&self, _: &Cx) -> bool {
        true
    }

    fn stat(&self, _: &Cx) -> Result<FileStat> {
        Ok(FileStat::default())
    }

    /// Each that opens it sees what is kept of the output, then what comes. Offsets count from the first
    /// byte ever printed, so that a client that has to open it again goes on where it was.
    fn open(self: Arc<Self>, _: &Cx, _: OpenFlags) -> Result<Box<dyn OpenFile>> {
        Ok(Box::new(OpenIo { session: self.0.clone(), offset: 0, at: 0 }))
    }
}

struct OpenIo {
    session: Arc<Session>,
    /// The file offset that stands for position `at` of the output. What was lost has no offsets.
    offset: u64,
    at: u64,
}

impl OpenFile for OpenIo {
    fn read(&mut self, _: &Cx, offset: u64, len: u32) -> Result<Read> {
        let position = (self.at.saturating_add(offset)).saturating_sub(self.offset);
        match self.session.output(position, len as usize) {
            Output::End => Ok(Read::Data { bytes: bytes::Bytes::new(), eof: true }),
            Output::Later(seen) => {
                Ok(Read::Wait(self.session.changed().wait(seen, Deadline::never())))
            }
            Output::Bytes { lost: 0, bytes } => Ok(Read::Data { bytes: bytes.into(), eof: false }),
            Output::Bytes { lost, .. } => {
                let mark = format!("\r\n[{lost} bytes of output were not kept]\r\n");
                let mark = &mark.as_bytes()[..mark.len().min(len as usize)];
                (self.offset, self.at) =
                    (offset.saturating_add(mark.len() as u64), position + lost);
                Ok(Read::Data { bytes: mark.to_vec().into(), eof: false })
            }
        }
    }

    fn write(&mut self, _: &Cx, _: u64, data: &[u8]) -> Result<Written> {
        self.session.typed(data).map(Written::bytes)
    }
}
