//! The files of a service (spec: fs 15.1). What is written to its control files goes to the service.

use super::pty_files;
use super::service::{Driver, Service};
use super::state::Op;
use crate::base::{Result, now_ms};
use crate::node::job::CALL_TIMEOUT_MS;
use crate::vfs::synthetic::{
    File, FileStat, Item, OpenFile, Reply, dir, json_message, message, text,
};
use crate::vfs::{Cx, FileKind, OpenFlags, Read, Written};
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;

/// Old mounts send a message in pieces of whole pages, and each piece alone.
const PAGE: usize = 4096;
/// Beyond the time that a driver has: for those before it, for whom a request waits no longer than for
/// anything else, for its start and its end, and for the way to and fro.
const MARGIN_MS: u64 = CALL_TIMEOUT_MS + 5_000;

/// The root of a service's tree.
pub fn root(service: &Arc<Service>) -> Item {
    let made = |make: fn(&Service) -> String| {
        let service = service.clone();
        text(move |_| Ok(make(&service)))
    };
    let schema = || made(|s| s.spec().schema.to_string());
    let template = || made(|s| s.spec().template.to_string());
    let mut entries = vec![
        ("README.md", made(|s| s.spec().readme.clone())),
        ("SCHEMA.json", schema()),
        ("schema.json", schema()),
        ("TEMPLATE.json", template()),
        ("template.json", template()),
        ("HOST.json", made(|s| host(s.spec().about.runtime).to_string())),
        ("result.json", made(|s| s.state().result_json.clone())),
        ("status.json", made(|s| s.state().status_json.clone())),
        ("last_error.txt", made(|s| s.state().last_error.clone())),
        ("metrics.json", made(|s| s.state().metrics().to_string())),
        ("health.json", made(|s| s.state().health(&s.spec().about, now_ms()).to_string())),
        ("config.json", config(service)),
        ("control", control(service)),
    ];
    if let Driver::Terminal(terminal) = &service.spec().driver {
        entries.push(("pty", pty_files::place(service, terminal)));
    }
    dir(entries)
}

/// What a manifest without a `schema` gets.
pub fn schema_default() -> Value {
    json!({"model": "namespace-service-v1",
        "control": {"invoke": "control/invoke.json", "reset": "control/reset",
            "enable": "control/enable", "disable": "control/disable", "restart": "control/restart"},
        "result": "result.json", "status": "status.json", "last_error": "last_error.txt",
        "metrics": "metrics.json", "config": "config.json", "health": "health.json",
        "host": "HOST.json"})
}

fn host(runtime: &str) -> Value {
    json!({"schema": 1, "contract": "acheron.namespace-driver", "abi": "namespace-driver-v1",
        "host_kind": "native_process", "runtime_kind": runtime,
        "features": {"supervision": true, "hot_reload": true, "dynamic_mounts": true}})
}

fn config(service: &Arc<Service>) -> Item {
    let (of_content, of_write) = (service.clone(), service.clone());
    let content = move || of_content.state().config().to_owned().into();
    let write = message(is_settled, move |_, text| {
        of_write.configure(text)?;
        let body = of_write.state().config().to_owned().into();
        Ok(Reply { body, ..Reply::default() })
    });
    control_file(content, write, || None)
}

fn control(service: &Arc<Service>) -> Item {
    let mut entries = Vec::new();
    let invoked = service.clone();
    let invoke = message(is_settled, move |cx: &Cx, text: &[u8]| {
        Ok(Reply { body: invoked.invoke(cx, text)?, ..Reply::default() })
    });
    let timed = service.clone();
    let patience = move || Some(timed.spec().about.timeout_ms.saturating_add(MARGIN_MS));
    entries.push(("invoke.json", control_file(Bytes::new, invoke, patience)));
    for op in Op::ALL {
        let service = service.clone();
        let act = move |_: &Cx, _: &[u8]| {
            service.control(op);
            Ok(Reply::default())
        };
        entries.push((op.name(), control_file(Bytes::new, json_message(act), || None)));
    }
    dir(entries)
}

/// Whether a message is one JSON object, or will never be one, however it goes on.
fn is_settled(message: &[u8]) -> bool {
    let text = message.trim_ascii();
    match text.first() {
        None => false,
        Some(b'{') => {
            text.last() == Some(&b'}')
                && serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok()
        }
        Some(_) => true,
    }
}

/// A message file that can be read, too: a handle that has written nothing sees `content`, one that has,
/// the answer.
fn control_file(
    content: impl Fn() -> Bytes + Send + Sync + 'static,
    message: Item,
    patience_ms: impl Fn() -> Option<u64> + Send + Sync + 'static,
) -> Item {
    match message {
        Item::File(message) => {
            let (content, patience_ms) = (Arc::new(content), Box::new(patience_ms));
            Item::File(Arc::new(Control { message, content, patience_ms }))
        }
        dir => dir,
    }
}

type Content = Arc<dyn Fn() -> Bytes + Send + Sync>;

struct Control {
    message: Arc<dyn File>,
    content: Content,
    /// How long a message may take to be dealt with.
    patience_ms: Box<dyn Fn() -> Option<u64> + Send + Sync>,
}

impl File for Control {
    fn kind(&self) -> FileKind {
        self.message.kind()
    }

    fn writable(&self, cx: &Cx) -> bool {
        self.message.writable(cx)
    }

    fn patience_ms(&self) -> Option<u64> {
        (self.patience_ms)()
    }

    fn stat(&self, _: &Cx) -> Result<FileStat> {
        Ok(FileStat { size: (self.content)().len() as u64, ..FileStat::default() })
    }

    fn open(self: Arc<Self>, cx: &Cx, flags: OpenFlags) -> Result<Box<dyn OpenFile>> {
        let message = self.message.clone().open(cx, flags)?;
        let content = self.content.clone();
        Ok(Box::new(OpenControl { message, content, kept: Bytes::new(), wrote: None }))
    }
}

struct OpenControl {
    message: Box<dyn OpenFile>,
    content: Content,
    /// What is being read.
    kept: Bytes,
    /// Bytes of the last write, once there was one.
    wrote: Option<usize>,
}

impl OpenFile for OpenControl {
    fn read(&mut self, cx: &Cx, offset: u64, len: u32) -> Result<Read> {
        if self.wrote.is_some() {
            return self.message.read(cx, offset, len);
        }
        if offset == 0 {
            self.kept = (self.content)();
        }
        Ok(piece(&self.kept, offset, len))
    }

    fn write(&mut self, cx: &Cx, offset: u64, data: &[u8]) -> Result<Written> {
        self.wrote = Some(data.len());
        self.message.write(cx, offset, data)
    }

    /// For clients that know no flush the node flushes after each write. Whole pages are likely a piece
    /// of a message: the rest follows, or the close (spec: fs 23.2 row 28).
    fn flush(&mut self, cx: &Cx) -> Result<Written> {
        match &mut self.wrote {
            Some(n) if *n > 0 && n.is_multiple_of(PAGE) => {
                *n = 0;
                Ok(Written::default())
            }
            _ => self.message.flush(cx),
        }
    }
}

/// What a read of `content` gives.
fn piece(content: &Bytes, offset: u64, len: u32) -> Read {
    let start = usize::try_from(offset).map_or(content.len(), |o| o.min(content.len()));
    let end = content.len().min(start.saturating_add(len as usize));
    Read::Data { bytes: content.slice(start..end), eof: end == content.len() }
}
