//! Requests of the node protocol (spec: fs 5), and what is wrong with those that cannot be read.

use super::args::Args;
use super::bin::{BinKind, Framing, Head, encode_bin};
use super::{Hello, Op};
use crate::base::{Error, Result};
use crate::wire::{Channel, Envelope, Fields, Frame, Object, acheron};
use bytes::Bytes;
use std::ffi::OsString;

/// A request. `tag` is absent where an old client left it out, and where no answer is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub tag: Option<u32>,
    pub call: Call,
    /// Ours, in a session: the request may come twice and must take effect once.
    pub slot: Option<Slot>,
}

/// The number of a request within its session, the same when it is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub rid: u64,
    /// Every request below this number has been answered: nobody asks for those replies again.
    pub ack: u64,
}

/// An operation with its arguments. `node` and `dir` are node ids, `h` an open file's handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Hello(Hello),
    Exports,
    Lookup {
        dir: u64,
        name: OsString,
    },
    Getattr {
        node: u64,
    },
    /// At most `max` entries; `bytes` (ours) bounds the reply too, 0 = the server's own bound.
    Readdirp {
        dir: u64,
        cookie: u64,
        max: u32,
        bytes: u32,
    },
    /// `flags` as open(2) has them on Linux. `content_max` (ours): the content is wanted with the answer, in a
    /// binary frame, if it is all there in so many bytes; 0 = no.
    Open {
        node: u64,
        flags: u32,
        content_max: u32,
    },
    Read {
        h: u64,
        off: u64,
        len: u32,
    },
    Write {
        h: u64,
        off: u64,
        data: Bytes,
    },
    Close {
        h: u64,
    },
    Create {
        dir: u64,
        name: OsString,
        mode: u32,
        flags: u32,
    },
    Truncate {
        node: u64,
        size: u64,
    },
    Unlink {
        dir: u64,
        name: OsString,
    },
    Mkdir {
        dir: u64,
        name: OsString,
        mode: Option<u32>,
    },
    Rmdir {
        dir: u64,
        name: OsString,
    },
    /// `flags` (ours) as renameat2(2) has them.
    Rename {
        from: (u64, OsString),
        to: (u64, OsString),
        flags: u32,
    },
    Statfs {
        node: u64,
    },
    Symlink {
        dir: u64,
        name: OsString,
        target: OsString,
    },
    Setxattr {
        node: u64,
        name: OsString,
        value: Vec<u8>,
        flags: u32,
    },
    Getxattr {
        node: u64,
        name: OsString,
    },
    Listxattr {
        node: u64,
    },
    Removexattr {
        node: u64,
        name: OsString,
    },
    /// `kind` is `shared`, `exclusive` or `unlock`.
    Lock {
        h: u64,
        kind: Lock,
        wait: bool,
        owner: u64,
        /// `None`: the whole file, as flock(2) does; `Some` (ours) bytes, as fcntl(2) does.
        range: Option<Range>,
    },
    /// The lock that stands in the way of such a one.
    Getlk {
        h: u64,
        kind: Lock,
        owner: u64,
        range: Option<Range>,
    },
    Allocate {
        h: u64,
        off: u64,
        len: u64,
        how: Allocate,
    },
    Seek {
        h: u64,
        off: u64,
        to: SeekTo,
    },
    /// Copies within one export; `h` is written to.
    Copy {
        from: u64,
        from_off: u64,
        h: u64,
        off: u64,
        len: u64,
    },
    Flush {
        h: u64,
    },
    Fsync {
        h: u64,
        data_only: bool,
    },
    Setattr {
        node: u64,
        h: Option<u64>,
        set: SetAttr,
    },
    Readlink {
        node: u64,
    },
    Link {
        node: u64,
        dir: u64,
        name: OsString,
    },
    /// Looks the names (UTF-8 only) up one below the other; stops at the first that is missing.
    Walk {
        dir: u64,
        names: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    Shared,
    Exclusive,
    Unlock,
}

/// Bytes of a file; `end` is the last one, and counts to the end of every file at `u64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    pub start: u64,
    pub end: u64,
}

/// What becomes of a range of a file (fallocate(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Space is reserved; without `keep_size` the file grows to hold it.
    Reserve {
        keep_size: bool,
    },
    PunchHole,
    Zero {
        keep_size: bool,
    },
}

/// What to look for in a file (lseek(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekTo {
    Data,
    Hole,
}

/// What `setattr` changes. Times are nanoseconds since the epoch; `now` takes the node's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime_ns: Option<i64>,
    pub mtime_ns: Option<i64>,
    pub atime_now: bool,
    pub mtime_now: bool,
}

/// A request that cannot be carried out as it stands; answered EINVAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub tag: Option<u32>,
    pub message: String,
    /// The peer does not speak this protocol: close after the answer (spec: fs 3.1).
    pub close: bool,
}

impl Request {
    pub fn decode_text(text: &str) -> Result<Request, Fault> {
        match Envelope::parse(text) {
            Ok(envelope) => Request::decode(&envelope),
            Err(m) => Err(Fault { tag: m.tag, message: m.fault.into(), close: true }),
        }
    }

    pub fn decode(envelope: &Envelope<'_>) -> Result<Request, Fault> {
        let tag = envelope.tag;
        let unsupported = |close| Fault { tag, message: "UnsupportedType".into(), close };
        if envelope.channel == Channel::Control {
            return Err(unsupported(false));
        }
        let Some(op) = envelope.name.strip_prefix("t_fs_") else {
            return Err(unsupported(!acheron::is_known(&envelope.name)));
        };
        let op = Op::from_wire(op).ok_or_else(|| unsupported(true))?;
        // A hello that is wrong ends the connection, also a later one (spec: fs 3.1).
        let close = op == Op::Hello;
        let bad = |e: Error| Fault { tag, message: e.message.into_owned(), close };
        let payload = Fields::parse(envelope.payload())
            .map_err(|_| bad(Error::invalid("InvalidPayload: payload must be an object")))?;
        let args = Args { op, top: &envelope.fields, payload };
        let slot = Slot::read(&envelope.fields).map_err(bad)?;
        Ok(Request { tag, call: args.call(None).map_err(bad)?, slot })
    }

    /// Decodes a binary request; only WRITE travels so.
    pub fn decode_bin(head: &Head, meta: &str, data: Bytes) -> Result<Request, Fault> {
        let tag = Some(head.tag);
        let fault = |message: &str| Fault { tag, message: message.into(), close: false };
        if head.kind != BinKind::Request || head.op != Op::Write {
            return Err(fault("only WRITE requests travel as binary frames"));
        }
        let top = Fields::parse(meta).map_err(|_| fault("binary frame without JSON meta"))?;
        let bad = |e: Error| fault(&e.message);
        let payload = top.object("payload").map_err(bad)?.unwrap_or_default();
        let args = Args { op: head.op, top: &top, payload };
        let call = args.call(Some(data)).map_err(bad)?;
        Ok(Request { tag, call, slot: Slot::read(&top).map_err(bad)? })
    }

    /// A request that is sent once.
    pub fn new(tag: u32, call: Call) -> Request {
        Request { tag: Some(tag), call, slot: None }
    }

    /// A request that is not to be answered, which only CLOSE can be, for peers that know extensions.
    pub fn silent(call: Call) -> Request {
        Request { tag: None, call, slot: None }
    }

    /// The frame to send; WRITE as a binary one where that was negotiated.
    pub fn encode(&self, framing: Framing) -> Frame {
        let op = self.call.op();
        if let Call::Write { h, off, data } = &self.call
            && framing >= Framing::Binary
        {
            let meta = Slot::put(self.slot, Object::new().put("h", h));
            let meta = meta.object("payload", Object::new().put("off", off)).finish();
            let head = Head { kind: BinKind::Request, op, tag: self.tag.unwrap_or(0) };
            return encode_bin(head, &meta, data, framing);
        }
        let payload = self.call.payload();
        let o = Object::with_capacity(160)
            .put("channel", "acheron")
            .put("type", format_args!("acheron.t_fs_{}", op.wire()))
            .put_some("tag", self.tag)
            .put_some("node", self.call.node())
            .put_some("h", self.call.handle());
        let o = Slot::put(self.slot, o);
        Frame::Text(o.object("payload", payload).finish())
    }
}

impl Slot {
    fn put(slot: Option<Slot>, o: Object) -> Object {
        match slot {
            Some(Slot { rid, ack }) => o.put("rid", rid).put("ack", ack),
            None => o,
        }
    }

    fn read(f: &Fields<'_>) -> Result<Option<Slot>> {
        let Some(rid) = f.u64("rid")? else { return Ok(None) };
        Ok(Some(Slot { rid, ack: f.u64("ack")?.unwrap_or(0) }))
    }
}
