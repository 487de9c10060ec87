//! Replies of the node protocol (spec: fs 2 and 5), and the error reply. Field names of the later SDKs
//! (`node`, `handle`) are sent beside the real ones (design: field spellings).

use super::bin::{BinKind, Framing, Head, decode_bin, encode_bin};
use super::{HelloReply, Lock, Op, Range, get_name, put_name};
use crate::base::{Code, Error, Result};
use crate::wire::{Channel, Envelope, Fields, Frame, Object};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::ffi::OsString;

/// Attributes under their wire names (spec: fs 4). Times are nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    pub id: u64,
    /// 1 file (and every other type), 2 directory, 3 symlink.
    #[serde(rename = "k")]
    pub kind: u8,
    #[serde(rename = "m")]
    pub mode: u32,
    #[serde(rename = "n", default)]
    pub nlink: u32,
    #[serde(rename = "u", default)]
    pub uid: u32,
    #[serde(rename = "g", default)]
    pub gid: u32,
    #[serde(rename = "sz", default)]
    pub size: u64,
    /// Allocated 512-byte units (ours); old nodes do not say.
    #[serde(rename = "bl", default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<u64>,
    #[serde(rename = "at", default)]
    pub atime_ns: i64,
    #[serde(rename = "mt", default)]
    pub mtime_ns: i64,
    #[serde(rename = "ct", default)]
    pub ctime_ns: i64,
    #[serde(rename = "gen", default)]
    pub generation: u64,
    /// Tells a file from others also when the node was started anew (ours); 0: not said.
    #[serde(rename = "fi", default, skip_serializing_if = "is_unsaid")]
    pub identity: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_unsaid(identity: &u64) -> bool {
    *identity == 0
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    pub name: OsString,
    pub attr: Attr,
    /// Ours: where to go on behind this entry. Old clients count entries instead.
    pub cookie: Option<u64>,
}

/// An export as `exports` lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    pub name: String,
    pub root: u64,
    #[serde(default)]
    pub ro: bool,
    #[serde(default)]
    pub desc: String,
    #[serde(default)]
    pub source_kind: String,
    #[serde(default)]
    pub source_id: String,
    #[serde(default)]
    pub caps: ExportCaps,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExportCaps {
    pub native_watch: bool,
    pub case_sensitive: bool,
    pub symlink: bool,
    pub xattr: bool,
    pub locks: bool,
    pub statfs: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReply {
    pub h: u64,
    pub readable: bool,
    pub writable: bool,
    pub generation: u64,
    /// Ours: `message` or `stream` for files that do not behave like disk files, else absent.
    pub kind: Option<String>,
    /// Ours: how long a write or a flush may take, where that is longer than usual.
    pub patience_ms: Option<u64>,
    /// Ours, in binary frames alone: all that is in the file, where it was wanted.
    pub content: Option<Bytes>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatFs {
    pub bsize: u32,
    pub frsize: u32,
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub favail: u64,
    pub namemax: u32,
}

/// The payload of a success.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Hello(HelloReply),
    Exports(Vec<Export>),
    /// lookup, getattr; ours also mkdir, symlink, link, setattr.
    Attr(Attr),
    Dir {
        entries: Vec<DirEntry>,
        next: u64,
        eof: bool,
        dir_gen: u64,
    },
    Open(OpenReply),
    Created(Attr, OpenReply),
    Data {
        bytes: Bytes,
        eof: bool,
    },
    /// `attr` (ours): what the file is like now. `extra`: what a message file answered.
    Written {
        n: u64,
        attr: Option<Attr>,
        extra: Option<serde_json::Map<String, serde_json::Value>>,
    },
    StatFs(StatFs),
    Value(Vec<u8>),
    Names(Vec<OsString>),
    Target(OsString),
    Walked(Vec<Attr>),
    /// The lock in the way, if there is one.
    Held(Option<(Lock, Range)>),
    Sought(u64),
    Done,
}

/// An `err_fs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub tag: Option<u32>,
    pub errno: i32,
    pub message: String,
}

impl Failure {
    pub fn new(tag: Option<u32>, e: &Error) -> Failure {
        Failure { tag, errno: e.errno(), message: e.message.to_string() }
    }

    pub fn encode(&self) -> Frame {
        let error = Object::new().put("errno", self.errno).put("message", &self.message);
        let o = Object::new().put("channel", "acheron").put("type", "acheron.err_fs");
        Frame::Text(o.put_some("tag", self.tag).put("ok", false).object("error", error).finish())
    }
}

impl Reply {
    /// The frame to send; READ's, and OPEN's with content, as a binary one where that was negotiated, READDIRP's
    /// where it is compressed.
    pub fn encode(&self, op: Op, tag: Option<u32>, framing: Framing) -> Frame {
        let head = Head { kind: BinKind::Reply, op, tag: tag.unwrap_or(0) };
        match self {
            Reply::Data { bytes, eof } if framing >= Framing::Binary => {
                let meta = Object::new().put("eof", eof).finish();
                return encode_bin(head, &meta, bytes, framing);
            }
            Reply::Open(OpenReply { content: Some(content), .. }) if framing >= Framing::Binary => {
                return encode_bin(head, &self.payload().finish(), content, framing);
            }
            Reply::Dir { .. } if framing == Framing::Lz4 => {
                let payload = Bytes::from(self.payload().finish());
                return encode_bin(head, "{}", &payload, framing);
            }
            _ => {}
        }
        let o = Object::new()
            .put("channel", "acheron")
            .put("type", format_args!("acheron.r_fs_{}", op.wire()))
            .put_some("tag", tag)
            .put("ok", true);
        Frame::Text(o.object("payload", self.payload()).finish())
    }

    /// Without what is only there to save a READ: for replies that are kept.
    #[must_use]
    pub fn without_content(self) -> Reply {
        match self {
            Reply::Open(open) => Reply::Open(OpenReply { content: None, ..open }),
            reply => reply,
        }
    }

    fn payload(&self) -> Object {
        let o = Object::new();
        match self {
            Reply::Hello(hello) => hello.payload(),
            Reply::Exports(exports) => o.put("exports", exports),
            Reply::Attr(attr) => o.put("attr", attr).put("node", attr.id),
            Reply::Dir { entries, next, eof, dir_gen } => {
                let mut list = String::with_capacity(entries.len() * 200 + 2);
                list.push('[');
                for (i, e) in entries.iter().enumerate() {
                    if i > 0 {
                        list.push(',');
                    }
                    list.push_str(
                        &put_name(Object::new(), "name", &e.name)
                            .put("attr", e.attr)
                            .put_some("c", e.cookie)
                            .finish(),
                    );
                }
                list.push(']');
                o.raw("ents", &list).put("next", next).put("eof", eof).put("dir_gen", dir_gen)
            }
            Reply::Open(open) => open.put(o),
            Reply::Created(attr, open) => open.put(o.put("attr", attr).put("node", attr.id)),
            Reply::Data { bytes, eof } => Object::with_capacity(bytes.len() / 3 * 4 + 64)
                .base64("data_b64", bytes)
                .put("eof", eof),
            Reply::Written { n, attr, extra } => {
                let extra = extra.iter().flatten().filter(|(k, _)| *k != "n" && *k != "attr");
                let o = o.put("n", n).put_some("attr", attr.as_ref());
                extra.fold(o, |o, (k, v)| o.put(k, v))
            }
            Reply::StatFs(st) => o
                .put("bsize", st.bsize)
                .put("frsize", st.frsize)
                .put("blocks", st.blocks)
                .put("bfree", st.bfree)
                .put("bavail", st.bavail)
                .put("files", st.files)
                .put("ffree", st.ffree)
                .put("favail", st.favail)
                .put("namemax", st.namemax),
            Reply::Value(value) => o.base64("value_b64", value),
            Reply::Names(names) => {
                // Names that are not UTF-8 are left out: the base protocol has no form for them.
                o.put("names", names.iter().filter_map(|n| n.to_str()).collect::<Vec<_>>())
            }
            Reply::Target(target) => put_name(o, "target", target),
            Reply::Walked(attrs) => o.put("attrs", attrs),
            Reply::Held(None) => o.put("held", false),
            Reply::Held(Some((kind, range))) => {
                Range::put(Some(*range), o.put("held", true).put("kind", kind.wire()))
            }
            Reply::Sought(off) => o.put("off", off),
            Reply::Done => o,
        }
    }

    fn read(op: Op, f: &Fields<'_>) -> Result<Reply> {
        Ok(match op {
            Op::Hello => Reply::Hello(HelloReply::read(f)?),
            Op::Exports => Reply::Exports(typed(f, "exports")?),
            Op::Lookup | Op::Getattr | Op::Setattr => Reply::Attr(typed(f, "attr")?),
            Op::Mkdir | Op::Symlink | Op::Link if f.has("attr") => Reply::Attr(typed(f, "attr")?),
            Op::Readdirp => Reply::Dir {
                entries: read_entries(f)?,
                next: need(f.u64("next")?, "next")?,
                eof: need(f.bool("eof")?, "eof")?,
                dir_gen: f.u64("dir_gen")?.unwrap_or(0),
            },
            Op::Open => Reply::Open(OpenReply::read(f)?),
            Op::Create => Reply::Created(typed(f, "attr")?, OpenReply::read(f)?),
            Op::Read => {
                let data = need(f.base64("data_b64")?, "data_b64")?;
                Reply::Data { bytes: data.into(), eof: f.bool("eof")?.unwrap_or(false) }
            }
            Op::Write | Op::Flush | Op::Copy => {
                let mut extra = serde_json::Map::new();
                for (k, v) in f.iter().filter(|(k, _)| *k != "n" && *k != "attr") {
                    extra.insert(k.to_owned(), serde_json::from_str(v.get()).unwrap_or_default());
                }
                let n = f.u64("n")?.unwrap_or(0);
                let attr = if f.has("attr") { Some(typed(f, "attr")?) } else { None };
                Reply::Written { n, attr, extra: (!extra.is_empty()).then_some(extra) }
            }
            Op::Getlk if !need(f.bool("held")?, "held")? => Reply::Held(None),
            Op::Getlk => {
                let kind = match f.str("kind")?.as_deref() {
                    Some("exclusive") => Lock::Exclusive,
                    _ => Lock::Shared,
                };
                let (start, end) = (f.u64("start")?, f.u64("end")?);
                let range = Range { start: start.unwrap_or(0), end: end.unwrap_or(u64::MAX) };
                Reply::Held(Some((kind, range)))
            }
            Op::Seek => Reply::Sought(need(f.u64("off")?, "off")?),
            Op::Statfs => Reply::StatFs(StatFs {
                bsize: f.u32("bsize")?.unwrap_or(4096),
                frsize: f.u32("frsize")?.unwrap_or(4096),
                blocks: f.u64("blocks")?.unwrap_or(0),
                bfree: f.u64("bfree")?.unwrap_or(0),
                bavail: f.u64("bavail")?.unwrap_or(0),
                files: f.u64("files")?.unwrap_or(0),
                ffree: f.u64("ffree")?.unwrap_or(0),
                favail: f.u64("favail")?.unwrap_or(0),
                namemax: f.u32("namemax")?.unwrap_or(255),
            }),
            Op::Getxattr => Reply::Value(need(f.base64("value_b64")?, "value_b64")?),
            Op::Listxattr => {
                let names = f.strings("names")?.unwrap_or_default();
                Reply::Names(names.into_iter().map(OsString::from).collect())
            }
            Op::Readlink => Reply::Target(need(get_name(f, "target")?, "target")?),
            Op::Walk => Reply::Walked(typed(f, "attrs")?),
            _ => Reply::Done,
        })
    }
}

impl OpenReply {
    fn put(&self, o: Object) -> Object {
        let caps = Object::new().put("rd", self.readable).put("wr", self.writable);
        o.put("h", self.h)
            .put("handle", self.h)
            .object("caps", caps)
            .put("gen", self.generation)
            .put_some("kind", self.kind.as_ref())
            .put_some("patience_ms", self.patience_ms)
    }

    fn read(f: &Fields<'_>) -> Result<OpenReply> {
        let caps = f.object("caps")?.unwrap_or_default();
        Ok(OpenReply {
            h: need(f.u64("h")?, "h")?,
            readable: caps.bool("rd")?.unwrap_or(true),
            writable: caps.bool("wr")?.unwrap_or(false),
            generation: f.u64("gen")?.unwrap_or(0),
            kind: f.string("kind")?,
            patience_ms: f.u64("patience_ms")?,
            content: None,
        })
    }
}

/// What a peer answered to `op` in JSON. Errors: the peer's own, with its errno; `unavailable` for an
/// answer that makes no sense, for then nothing this peer says can be trusted.
pub fn decode_reply(op: Op, text: &str) -> Result<Reply> {
    let nonsense = |what: &str| nonsense(op, what);
    let e = Envelope::parse(text).map_err(|m| nonsense(m.fault))?;
    if e.channel != Channel::Acheron {
        return Err(nonsense("is of another channel"));
    }
    if e.name == "err_fs" {
        return Err(read_failure(&e.fields).unwrap_or_else(|_| nonsense("is a broken error")));
    }
    if e.name.strip_prefix("r_fs_") != Some(op.wire()) {
        return Err(nonsense("is of another type"));
    }
    if e.fields.bool("ok").ok().flatten() == Some(false) {
        return Err(nonsense("says both success and failure"));
    }
    let payload = Fields::parse(e.payload()).map_err(|_| nonsense("has no payload object"))?;
    Reply::read(op, &payload).map_err(|e| nonsense(&e.message))
}

/// What a peer answered to `op` in a binary frame: READ, OPEN with the content as its data, and READDIRP with the
/// payload as that. Data that was not compressed is a slice of it.
pub fn decode_bin_reply(op: Op, frame: &Bytes) -> Result<Reply> {
    let nonsense = |what: &str| nonsense(op, what);
    let (head, meta, data) = decode_bin(frame, Framing::Lz4).map_err(|e| nonsense(&e.message))?;
    let meta = std::str::from_utf8(&meta).ok().and_then(|m| Fields::parse(m).ok());
    let meta = meta.ok_or_else(|| nonsense("has no JSON meta"))?;
    match op {
        _ if head.kind != BinKind::Reply || head.op != op => {}
        Op::Read => {
            let eof = meta.bool("eof").ok().flatten().unwrap_or(false);
            return Ok(Reply::Data { bytes: data, eof });
        }
        Op::Open => {
            let open = OpenReply::read(&meta).map_err(|e| nonsense(&e.message))?;
            return Ok(Reply::Open(OpenReply { content: Some(data), ..open }));
        }
        Op::Readdirp => {
            let payload = std::str::from_utf8(&data).ok().and_then(|d| Fields::parse(d).ok());
            let payload = payload.ok_or_else(|| nonsense("has no payload object"))?;
            return Reply::read(op, &payload).map_err(|e| nonsense(&e.message));
        }
        _ => {}
    }
    Err(nonsense("is a binary frame of another operation"))
}

fn nonsense(op: Op, what: &str) -> Error {
    Error::new(Code::Unavailable, format!("the peer's reply to {} {what}", op.upper()))
}

fn read_failure(f: &Fields<'_>) -> Result<Error> {
    let error = f.object("error")?.unwrap_or_default();
    let errno = error.i64("errno")?.or(error.i64("no")?).unwrap_or(i64::from(libc::EIO));
    let errno = i32::try_from(errno).ok().filter(|n| (1..4096).contains(n));
    let message = error.string("message")?.or(error.string("msg")?).unwrap_or_default();
    Ok(Error::from_errno(errno.ok_or_else(|| Error::missing("errno"))?, message))
}

fn read_entries(f: &Fields<'_>) -> Result<Vec<DirEntry>> {
    let raw: Vec<&RawValue> = need(f.array("ents")?, "ents")?;
    let entry = |v: &&RawValue| {
        let f = Fields::of("ents[]", v)?;
        let name = need(get_name(&f, "name")?, "name")?;
        Ok(DirEntry { name, attr: typed(&f, "attr")?, cookie: f.u64("c")? })
    };
    raw.iter().map(entry).collect()
}

fn need<T>(value: Option<T>, name: &str) -> Result<T> {
    value.ok_or_else(|| Error::missing(name))
}

fn typed<T: serde::de::DeserializeOwned>(f: &Fields<'_>, name: &str) -> Result<T> {
    let value = need(f.get(name), name)?;
    serde_json::from_str(value.get()).map_err(|e| Error::invalid(format!("{name}: {e}")))
}
