//! What a call is about, and its arguments as they are written.

use super::{Allocate, Call, Lock, Op, Range, SeekTo, put_name};
use crate::wire::Object;

impl Call {
    pub fn op(&self) -> Op {
        match self {
            Call::Hello(_) => Op::Hello,
            Call::Exports => Op::Exports,
            Call::Lookup { .. } => Op::Lookup,
            Call::Getattr { .. } => Op::Getattr,
            Call::Readdirp { .. } => Op::Readdirp,
            Call::Open { .. } => Op::Open,
            Call::Read { .. } => Op::Read,
            Call::Write { .. } => Op::Write,
            Call::Close { .. } => Op::Close,
            Call::Create { .. } => Op::Create,
            Call::Truncate { .. } => Op::Truncate,
            Call::Unlink { .. } => Op::Unlink,
            Call::Mkdir { .. } => Op::Mkdir,
            Call::Rmdir { .. } => Op::Rmdir,
            Call::Rename { .. } => Op::Rename,
            Call::Statfs { .. } => Op::Statfs,
            Call::Symlink { .. } => Op::Symlink,
            Call::Setxattr { .. } => Op::Setxattr,
            Call::Getxattr { .. } => Op::Getxattr,
            Call::Listxattr { .. } => Op::Listxattr,
            Call::Removexattr { .. } => Op::Removexattr,
            Call::Lock { .. } => Op::Lock,
            Call::Flush { .. } => Op::Flush,
            Call::Fsync { .. } => Op::Fsync,
            Call::Setattr { .. } => Op::Setattr,
            Call::Readlink { .. } => Op::Readlink,
            Call::Link { .. } => Op::Link,
            Call::Walk { .. } => Op::Walk,
            Call::Getlk { .. } => Op::Getlk,
            Call::Allocate { .. } => Op::Allocate,
            Call::Seek { .. } => Op::Seek,
            Call::Copy { .. } => Op::Copy,
        }
    }

    /// The node that the request names at the top of its envelope.
    pub fn node(&self) -> Option<u64> {
        match *self {
            Call::Lookup { dir, .. }
            | Call::Readdirp { dir, .. }
            | Call::Create { dir, .. }
            | Call::Unlink { dir, .. }
            | Call::Mkdir { dir, .. }
            | Call::Rmdir { dir, .. }
            | Call::Symlink { dir, .. }
            | Call::Walk { dir, .. } => Some(dir),
            Call::Getattr { node }
            | Call::Open { node, .. }
            | Call::Truncate { node, .. }
            | Call::Statfs { node }
            | Call::Setxattr { node, .. }
            | Call::Getxattr { node, .. }
            | Call::Listxattr { node }
            | Call::Removexattr { node, .. }
            | Call::Setattr { node, .. }
            | Call::Readlink { node }
            | Call::Link { node, .. } => Some(node),
            _ => None,
        }
    }

    /// The open file that the request is about: requests of one handle keep their order.
    pub fn handle(&self) -> Option<u64> {
        match *self {
            Call::Read { h, .. }
            | Call::Write { h, .. }
            | Call::Close { h }
            | Call::Lock { h, .. }
            | Call::Flush { h }
            | Call::Fsync { h, .. }
            | Call::Getlk { h, .. }
            | Call::Allocate { h, .. }
            | Call::Seek { h, .. }
            | Call::Copy { h, .. } => Some(h),
            Call::Setattr { h, .. } => h,
            _ => None,
        }
    }

    pub(super) fn payload(&self) -> Object {
        let o = Object::new();
        match self {
            Call::Hello(hello) => hello.payload(),
            Call::Lookup { name, .. }
            | Call::Unlink { name, .. }
            | Call::Rmdir { name, .. }
            | Call::Getxattr { name, .. }
            | Call::Removexattr { name, .. } => put_name(o, "name", name),
            Call::Readdirp { cookie, max, bytes, .. } => {
                let o = o.put("cookie", cookie).put("max", max);
                if *bytes > 0 { o.put("bytes", bytes) } else { o }
            }
            Call::Open { flags, content_max, .. } => {
                let o = o.put("flags", flags);
                if *content_max > 0 { o.put("content_max", content_max) } else { o }
            }
            Call::Read { off, len, .. } => o.put("off", off).put("len", len),
            Call::Write { off, data, .. } => Object::with_capacity(data.len() / 3 * 4 + 64)
                .put("off", off)
                .base64("data_b64", data),
            Call::Create { name, mode, flags, .. } => {
                put_name(o, "name", name).put("mode", mode).put("flags", flags)
            }
            Call::Truncate { size, .. } => o.put("sz", size),
            Call::Mkdir { name, mode, .. } => put_name(o, "name", name).put_some("mode", *mode),
            Call::Rename { from, to, flags } => {
                let o = put_name(o.put("old_parent", from.0), "old_name", &from.1);
                let o = put_name(o.put("new_parent", to.0), "new_name", &to.1);
                if *flags > 0 { o.put("flags", flags) } else { o }
            }
            Call::Symlink { name, target, .. } => {
                put_name(put_name(o, "name", name), "target", target)
            }
            Call::Setxattr { name, value, flags, .. } => {
                put_name(o, "name", name).base64("value_b64", value).put("flags", flags)
            }
            Call::Lock { kind, wait, owner, range, .. } => {
                let o = o.put("kind", kind.wire()).put("wait", wait).put("owner", owner);
                Range::put(*range, o)
            }
            Call::Getlk { kind, owner, range, .. } => {
                Range::put(*range, o.put("kind", kind.wire()).put("owner", owner))
            }
            Call::Allocate { off, len, how, .. } => {
                let (how, keep_size) = match how {
                    Allocate::Reserve { keep_size } => ("reserve", *keep_size),
                    Allocate::PunchHole => ("punch", true),
                    Allocate::Zero { keep_size } => ("zero", *keep_size),
                };
                o.put("off", off).put("len", len).put("how", how).put("keep_size", keep_size)
            }
            Call::Seek { off, to, .. } => {
                let to = match to {
                    SeekTo::Data => "data",
                    SeekTo::Hole => "hole",
                };
                o.put("off", off).put("to", to)
            }
            Call::Copy { from, from_off, off, len, .. } => {
                o.put("from", from).put("from_off", from_off).put("off", off).put("len", len)
            }
            Call::Fsync { data_only, .. } => o.put("datasync", data_only),
            Call::Setattr { set, .. } => o
                .put_some("mode", set.mode)
                .put_some("uid", set.uid)
                .put_some("gid", set.gid)
                .put_some("size", set.size)
                .put_some("atime", set.atime_ns)
                .put_some("mtime", set.mtime_ns)
                .put_some("atime_now", set.atime_now.then_some(true))
                .put_some("mtime_now", set.mtime_now.then_some(true)),
            Call::Link { dir, name, .. } => put_name(o.put("dir", dir), "name", name),
            Call::Walk { names, .. } => o.put("names", names),
            _ => o,
        }
    }
}

impl Lock {
    pub(super) fn wire(self) -> &'static str {
        match self {
            Lock::Shared => "shared",
            Lock::Exclusive => "exclusive",
            Lock::Unlock => "unlock",
        }
    }
}

impl Range {
    pub(super) fn put(range: Option<Range>, o: Object) -> Object {
        match range {
            Some(Range { start, end }) => o.put("start", start).put("end", end),
            None => o,
        }
    }
}
