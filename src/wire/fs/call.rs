//! What a call is about, and its arguments as they are written.

use super::{Call, Lock, Op, put_name};
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
            | Call::Fsync { h, .. } => Some(h),
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
            Call::Open { flags, .. } => o.put("flags", flags),
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
            Call::Lock { kind, wait, owner, .. } => {
                let kind = match kind {
                    Lock::Shared => "shared",
                    Lock::Exclusive => "exclusive",
                    Lock::Unlock => "unlock",
                };
                o.put("kind", kind).put("wait", wait).put("owner", owner)
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
