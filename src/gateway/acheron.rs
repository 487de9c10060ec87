//! An `acheron-1` session (spec: namespace 2): a table of fids on one tree. Requests of one fid keep
//! their order, others overtake them; a read that has to wait is parked and holds no thread.

use crate::base::{
    Cancel, Code, Counted, Deadline, Error, Gauge, Lanes, Name, Pool, Requests, Result, Timer,
    TreePath, Wait,
};
use crate::net::{Conn, InFlight};
use crate::vfs::{Attr, Cx, FileKind, Kind, NodeId, OpenFlags, Opened, Read, Tree, Who, walk};
use crate::wire::acheron::{self, Call, IOUNIT, MSIZE_MAX};
use crate::wire::{Frame, Object};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Fids of one session.
const FIDS_MAX: usize = 4096;
/// Entries of a directory that are listed.
const LIST_MAX: usize = 100_000;

/// Reads that wait for something to read, of one session. They hold no thread and no place among the
/// requests in flight, or the request that gives them up could not be read.
const PARKED_MAX: usize = 256;

/// Where a session's requests run, and how long they may take.
#[derive(Clone)]
pub struct Works {
    pub pool: Arc<Pool>,
    pub timer: Timer,
    pub timeout_ms: u64,
}

pub struct Session {
    tree: Arc<dyn Tree>,
    who: Arc<Who>,
    works: Works,
    lanes: Lanes<u32>,
    state: Mutex<State>,
    parked: Gauge,
}

#[derive(Default)]
struct State {
    fids: HashMap<u32, Arc<Fid>>,
    /// What is being done, to be given up by tag, by fid, or with the session.
    running: HashMap<u64, Running>,
    next: u64,
}

struct Running {
    tag: Option<u32>,
    fid: Option<u32>,
    cancel: Cancel,
}

/// A place in the tree, with the way back up.
struct Fid {
    path: TreePath,
    attr: Attr,
    open: Option<Open>,
}

enum Open {
    File {
        opened: Opened,
        write: bool,
    },
    /// The names as they were when the directory was opened, so that pieces fit together.
    Dir(Bytes),
}

/// A request with what is needed to answer it. Dropped without an answer (a panic), it answers `eio`.
pub struct Request {
    pub tag: Option<u32>,
    pub call: Call,
    pub correlation_id: Option<Arc<str>>,
    reply: Reply,
}

impl Request {
    /// `requests`: where it is counted what becomes of it.
    pub fn new(
        conn: &Conn,
        requests: &Arc<Requests>,
        name: &str,
        tag: Option<u32>,
        call: Call,
        correlation_id: Option<Arc<str>>,
    ) -> Request {
        let reply = Reply {
            conn: conn.clone(),
            name: name.into(),
            tag,
            in_flight: Some(conn.begin()),
            since: Instant::now(),
            requests: requests.clone(),
            done: false,
        };
        Request { tag, call, correlation_id, reply }
    }
}

struct Reply {
    conn: Conn,
    name: Box<str>,
    tag: Option<u32>,
    in_flight: Option<InFlight>,
    since: Instant,
    requests: Arc<Requests>,
    done: bool,
}

impl Reply {
    fn send(mut self, outcome: Result<Object>) {
        self.done = true;
        let outcome = outcome.map_err(spoken);
        self.count(outcome.as_ref().err().map(|e| e.code));
        self.frame(match outcome {
            Ok(payload) => acheron::reply(&self.name, self.tag, payload),
            Err(e) => acheron::error(self.tag, &e),
        });
    }

    fn count(&self, error: Option<Code>) {
        // Those that have given up their place waited for what others do.
        let since = self.in_flight.is_some().then_some(self.since);
        self.requests.done(since, error);
    }

    fn frame(&self, frame: Frame) {
        // A peer that is gone needs no answer.
        let _ = self.conn.send(frame);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.done {
            self.count(Some(Code::Eio));
            self.frame(acheron::error(self.tag, &Error::new(Code::Eio, "internal error")));
        }
    }
}

/// The error under one of the codes of this protocol (spec: namespace 2.4 and 9.6).
fn spoken(e: Error) -> Error {
    let code = match e.errno() {
        _ if !is_errno_code(e.code) => return e,
        libc::ENOENT | libc::ESTALE => Code::Enoent,
        libc::EISDIR => Code::Eisdir,
        libc::ENOTDIR => Code::Enotdir,
        libc::EACCES | libc::EPERM | libc::EROFS => Code::Eperm,
        libc::EAGAIN => Code::Again,
        libc::ETIMEDOUT => Code::Unavailable,
        libc::EINVAL | libc::EBADF => Code::Invalid,
        _ if e.is_peer_lost() => Code::Unavailable,
        _ => Code::Eio,
    };
    e.recode(code)
}

/// True for codes that stand for an errno; the others (queue_saturated, forbidden, …) are told as they
/// are.
fn is_errno_code(code: Code) -> bool {
    (code as u32) <= (Code::Invalid as u32)
}

/// An id that fits the 32 bits that clients of this protocol read.
fn qid(attr: &Attr) -> Object {
    let kind = if attr.kind == Kind::Dir { "dir" } else { "file" };
    Object::new().put("path", qid_path(attr.id)).put("type", kind)
}

fn qid_path(node: NodeId) -> u32 {
    (node.0 ^ (node.0 >> 32)) as u32
}

impl Session {
    pub fn new(tree: Arc<dyn Tree>, who: Arc<Who>, works: Works) -> Arc<Session> {
        let lanes = Lanes::new(works.pool.clone());
        let parked = Gauge::new(PARKED_MAX, "reads waiting in this session");
        Arc::new(Session { tree, who, works, lanes, state: Mutex::default(), parked })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a request; never blocks. The answer comes when it is done.
    pub fn take(self: &Arc<Session>, request: Request) {
        let Request { tag, call, correlation_id, reply } = request;
        if let Call::Flush { oldtag } = call {
            self.give_up(|r| oldtag.is_some() && r.tag == oldtag);
            return reply.send(Ok(Object::new()));
        }
        let fid = call.fid();
        if let Call::Clunk { fid } = call {
            self.give_up(|r| r.fid == Some(fid));
        }
        let cancel = Cancel::new();
        let key = {
            let mut s = self.lock();
            let key = s.next;
            s.next += 1;
            s.running.insert(key, Running { tag, fid, cancel: cancel.clone() });
            key
        };
        let deadline = Deadline::after_ms(self.works.timeout_ms);
        let cx = Cx { who: self.who.clone(), deadline, cancel, correlation_id };
        let listed = Listed { session: self.clone(), key };
        Job { session: self.clone(), call, cx, reply, parked: None, _listed: listed }.submit();
    }

    fn give_up(&self, which: impl Fn(&Running) -> bool) {
        let running: Vec<_> =
            self.lock().running.values().filter(|r| which(r)).map(|r| r.cancel.clone()).collect();
        running.iter().for_each(Cancel::cancel);
    }

    /// The connection is gone: gives up what runs and closes what is open.
    pub fn close(self: &Arc<Session>) {
        self.give_up(|_| true);
        let fids = std::mem::take(&mut self.lock().fids);
        let session = self.clone();
        let closing = self.works.pool.submit(move || {
            fids.into_values().for_each(|fid| session.release(&fid));
        });
        if closing.is_err() {
            log::debug!(
                "the file pool is full; open files of a lost session close with their tree"
            );
        }
    }

    fn release(&self, fid: &Fid) {
        if let Some(Open::File { opened, .. }) = &fid.open {
            let cx = Cx::new(self.who.clone(), Deadline::after_ms(self.works.timeout_ms));
            let flushed = self.tree.flush(&cx, opened.handle);
            if let Err(e) = flushed.and_then(|_| self.tree.release(&cx, opened.handle)) {
                log::debug!("closing {}: {e}", fid.path);
            }
        }
    }

    fn fid(&self, fid: u32) -> Result<Arc<Fid>> {
        let found = self.lock().fids.get(&fid).cloned();
        found.ok_or_else(|| Error::new(Code::Enoent, format!("unknown fid {fid}")))
    }

    fn set(&self, number: u32, fid: Fid) -> Result<()> {
        let old = {
            let mut s = self.lock();
            if s.fids.len() >= FIDS_MAX && !s.fids.contains_key(&number) {
                return Err(Error::invalid(format!("{FIDS_MAX} fids are in use; clunk some")));
            }
            s.fids.insert(number, Arc::new(fid))
        };
        if let Some(old) = old {
            self.release(&old);
        }
        Ok(())
    }

    /// Runs a call that answers at once; reads are in [`Job`].
    fn run(&self, cx: &Cx, call: &Call) -> Result<Object> {
        match call {
            Call::Attach { fid } => {
                let attr = self.tree.getattr(cx, NodeId::ROOT)?;
                let payload = Object::new()
                    .object("qid", qid(&attr))
                    .put("layout", "unified-v2-fs")
                    .put("project_id", &self.who.project_id)
                    .put("roots", self.roots(cx)?)
                    .put("dynamic_bind_paths", true);
                self.set(*fid, Fid { path: TreePath::root(), attr, open: None })?;
                Ok(payload)
            }
            Call::Walk { fid, newfid, path } => {
                let from = self.fid(*fid)?;
                let (to, attr) = self.walk(cx, &from, path)?;
                let payload = Object::new().object("qid", qid(&attr)).put("walked", path.len());
                self.set(*newfid, Fid { path: to, attr, open: None })?;
                Ok(payload)
            }
            Call::Open { fid, write } => self.open(cx, *fid, *write),
            Call::Write { fid, offset, data } => self.write(cx, *fid, *offset, data),
            Call::Stat { fid } => self.stat(cx, *fid),
            Call::Clunk { fid } => {
                let fid = self.lock().fids.remove(fid);
                fid.iter().for_each(|fid| self.release(fid));
                Ok(Object::new())
            }
            Call::Version { .. } | Call::Flush { .. } | Call::Read { .. } => {
                Err(Error::new(Code::Unsupported, "not a call of a session"))
            }
        }
    }

    fn roots(&self, cx: &Cx) -> Result<Vec<String>> {
        let (entries, _) = walk::list(&*self.tree, cx, NodeId::ROOT, LIST_MAX)?;
        let dirs = entries.iter().filter(|e| e.attr.kind == Kind::Dir);
        Ok(dirs.map(|e| e.name.to_string_lossy().into_owned()).collect())
    }

    /// All or nothing (spec: namespace 2.3): `..` climbs but never out of the root.
    fn walk(&self, cx: &Cx, from: &Fid, segments: &[String]) -> Result<(TreePath, Attr)> {
        let (mut path, mut attr) = (from.path.clone(), from.attr.clone());
        for segment in segments {
            if segment == "." {
                continue;
            }
            if segment == ".." {
                path = path.split_last().map_or_else(TreePath::root, |(parent, _)| parent);
                attr = walk::resolve(&*self.tree, cx, &path)?;
                continue;
            }
            let name = Name::text(segment)?;
            // A file as a directory is a miss here, as it always was.
            let next = match attr.kind {
                Kind::Dir => self.tree.lookup(cx, attr.id, name)?,
                _ => return Err(Error::new(Code::Enoent, format!("{path} is not a directory"))),
            };
            path = path.join(name);
            attr = match next.kind {
                Kind::Symlink => walk::resolve(&*self.tree, cx, &path)?,
                _ => next,
            };
        }
        Ok((path, attr))
    }

    fn open(&self, cx: &Cx, number: u32, write: bool) -> Result<Object> {
        let fid = self.fid(number)?;
        let open = if fid.attr.kind == Kind::Dir {
            if write {
                return Err(Error::new(Code::Eisdir, format!("{} is a directory", fid.path)));
            }
            let (entries, _) = walk::list(&*self.tree, cx, fid.attr.id, LIST_MAX)?;
            let mut names: Vec<_> = entries.iter().filter_map(|e| e.name.to_str()).collect();
            names.sort_unstable();
            Open::Dir(names.join("\n").into())
        } else {
            let flags = if write { OpenFlags::READ_WRITE } else { OpenFlags::READ };
            let opened = self.tree.open(cx, fid.attr.id, flags)?;
            Open::File { opened, write }
        };
        let payload = Object::new().object("qid", qid(&fid.attr)).put("iounit", IOUNIT);
        let opened = Fid { path: fid.path.clone(), attr: fid.attr.clone(), open: Some(open) };
        self.set(number, opened)?;
        Ok(payload)
    }

    fn write(&self, cx: &Cx, number: u32, offset: u64, data: &[u8]) -> Result<Object> {
        let fid = self.fid(number)?;
        let opened = match &fid.open {
            Some(Open::File { opened, write: true }) => opened,
            Some(Open::File { write: false, .. }) => {
                return Err(Error::new(
                    Code::Eperm,
                    format!("fid {number} was opened for reading"),
                ));
            }
            Some(Open::Dir(_)) => return Err(Error::new(Code::Eisdir, "is a directory")),
            None => return Err(not_open(number)),
        };
        let data = Bytes::copy_from_slice(data);
        let message = opened.kind == FileKind::Message;
        // A write here is a whole message, wherever it says that it goes (spec: namespace 2.3).
        let offset = if message { 0 } else { offset };
        let written = self.tree.write(cx, opened.handle, offset, data)?;
        let mut extra = written.extra;
        if message {
            extra = self.tree.flush(cx, opened.handle)?.extra.or(extra);
        }
        let n = extra.as_ref().and_then(|e| e.get("n")).and_then(serde_json::Value::as_u64);
        let payload = Object::new().put("n", n.unwrap_or(written.n));
        let members = extra.iter().flatten().filter(|(key, _)| *key != "n");
        Ok(members.fold(payload, |o, (key, value)| o.put(key, value)))
    }

    fn stat(&self, cx: &Cx, number: u32) -> Result<Object> {
        let fid = self.fid(number)?;
        let attr = self.tree.getattr(cx, fid.attr.id)?;
        let name = fid.path.names().next_back();
        let name = name.map_or("/".into(), |n| n.as_os_str().to_string_lossy());
        let dir = attr.kind == Kind::Dir;
        Ok(Object::new()
            .put("id", qid_path(attr.id))
            .put("name", name)
            .put("kind", if dir { "dir" } else { "file" })
            .put("size", if dir { 0 } else { attr.size })
            .put("mode", attr.mode)
            .put("writable", !dir && attr.mode & 0o222 != 0))
    }

    /// One attempt at a read; a wait where there is nothing yet.
    fn read(&self, cx: &Cx, number: u32, offset: u64, count: u32) -> Result<Attempt> {
        let fid = self.fid(number)?;
        let count = count.min(MSIZE_MAX);
        match &fid.open {
            None => Err(not_open(number)),
            Some(Open::Dir(names)) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(names.len());
                let end = start.saturating_add(count as usize).min(names.len());
                Ok(Attempt::Done(data(&names[start..end], end == names.len())))
            }
            Some(Open::File { opened, .. }) => {
                match self.tree.read(cx, opened.handle, offset, count)? {
                    Read::Data { bytes, eof } => Ok(Attempt::Done(data(&bytes, eof))),
                    Read::Wait(wait) => Ok(Attempt::Wait(wait)),
                }
            }
        }
    }
}

enum Attempt {
    Done(Object),
    Wait(Wait),
}

fn data(bytes: &[u8], eof: bool) -> Object {
    let o = Object::with_capacity(bytes.len() / 3 * 4 + 64);
    o.base64("data_b64", bytes).put("n", bytes.len()).put("eof", eof)
}

fn not_open(fid: u32) -> Error {
    Error::invalid(format!("fid {fid} is not open"))
}

/// One request under way.
struct Job {
    session: Arc<Session>,
    call: Call,
    cx: Cx,
    reply: Reply,
    parked: Option<Counted>,
    _listed: Listed,
}

/// Keeps a request in [`State::running`], whatever way it ends.
struct Listed {
    session: Arc<Session>,
    key: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.session.lock().running.remove(&self.key);
    }
}

impl Job {
    fn submit(self) {
        let session = self.session.clone();
        let lane = self.call.fid();
        if let Err((e, job)) = session.lanes.hand(lane, self, Job::run) {
            job.reply.send(Err(e));
        }
    }

    fn run(self) {
        if let Err(e) = self.cx.check() {
            return self.reply.send(Err(e));
        }
        let Call::Read { fid, offset, count } = self.call else {
            return self.reply.send(self.session.run(&self.cx, &self.call));
        };
        match self.session.read(&self.cx, fid, offset, count) {
            Ok(Attempt::Done(payload)) => self.reply.send(Ok(payload)),
            Err(e) => self.reply.send(Err(e)),
            Ok(Attempt::Wait(wait)) => self.park(wait),
        }
    }

    /// Lets go of the thread until there is something to read. The file keeps its own time (a wait
    /// may outlast the deadline of ordinary operations), so only giving up ends it early.
    fn park(mut self, wait: Wait) {
        if self.parked.is_none() {
            match self.session.parked.enter() {
                Ok(counted) => self.parked = Some(counted),
                Err(e) => return self.reply.send(Err(e)),
            }
            self.reply.in_flight = None;
        }
        self.cx.deadline = Deadline::never();
        let (timer, cancel) = (self.session.works.timer.clone(), self.cx.cancel.clone());
        wait.park(&timer, Deadline::never(), &cancel, move || self.submit());
    }
}
