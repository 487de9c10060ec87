//! The arguments of a request, read with the texts that old clients know (spec: fs 3 and 5). What a request
//! is, [`Call`] says.

use super::{Allocate, Call, Hello, Lock, Op, Range, SeekTo, SetAttr, get_name};
use crate::base::{Code, Error, Result};
use crate::wire::Fields;
use bytes::Bytes;
use std::ffi::OsString;

/// The arguments of one request, read with the texts that old clients know.
pub(super) struct Args<'a> {
    pub op: Op,
    pub top: &'a Fields<'a>,
    pub payload: Fields<'a>,
}

impl Args<'_> {
    fn top(&self, key: &str) -> Result<u64> {
        let found = self.top.u64(key).map_err(|e| e.recode(Code::Invalid))?;
        found.ok_or_else(|| Error::invalid(format!("{} requires {key}", self.op.upper())))
    }

    fn node(&self) -> Result<u64> {
        self.top("node")
    }

    fn h(&self) -> Result<u64> {
        self.top("h")
    }

    fn requires(&self, key: &str) -> Error {
        Error::invalid(format!("{} requires a.{key}", self.op.upper()))
    }

    fn name(&self, key: &str) -> Result<OsString> {
        get_name(&self.payload, key)?.ok_or_else(|| self.requires(key))
    }

    fn u32(&self, keys: &[&str]) -> Result<Option<u32>> {
        first(keys, |k| self.payload.u32(k))
    }

    fn u64(&self, keys: &[&str]) -> Result<Option<u64>> {
        first(keys, |k| self.payload.u64(k))
    }

    fn flags(&self) -> Result<u32> {
        if let Some(flags) = self.u32(&["flags"])? {
            return Ok(flags);
        }
        // The later SDKs open with `mode` (design: field spellings); CREATE's `mode` is permissions.
        if self.op != Op::Open {
            return Ok(libc::O_RDWR as u32);
        }
        Ok(match self.payload.str("mode").ok().flatten().as_deref() {
            Some("w") => libc::O_WRONLY as u32,
            Some("rw" | "r+" | "w+") => libc::O_RDWR as u32,
            _ => libc::O_RDONLY as u32,
        })
    }

    fn data(&self, key: &str) -> Result<Vec<u8>> {
        self.payload.base64(key)?.ok_or_else(|| self.requires(key))
    }

    fn lock(&self) -> Result<Lock> {
        match self.payload.str("kind")?.as_deref() {
            Some("shared") => Ok(Lock::Shared),
            Some("exclusive") => Ok(Lock::Exclusive),
            Some("unlock") => Ok(Lock::Unlock),
            Some(_) => Err(Error::invalid("invalid lock kind")),
            None => Err(self.requires("kind")),
        }
    }

    /// The range of a lock, where it has one.
    fn range(&self) -> Result<Option<Range>> {
        let Some(start) = self.u64(&["start"])? else { return Ok(None) };
        let end = self.u64(&["end"])?.unwrap_or(u64::MAX);
        if end < start {
            return Err(Error::invalid("end must not be before start"));
        }
        Ok(Some(Range { start, end }))
    }

    pub fn call(&self, binary: Option<Bytes>) -> Result<Call> {
        let p = &self.payload;
        Ok(match self.op {
            Op::Hello => Call::Hello(Hello::read(p)?),
            Op::Exports => Call::Exports,
            Op::Lookup => Call::Lookup { dir: self.node()?, name: self.name("name")? },
            Op::Getattr => Call::Getattr { node: self.node()? },
            Op::Readdirp => Call::Readdirp {
                dir: self.node()?,
                cookie: self.u64(&["cookie"])?.unwrap_or(0),
                max: self.u32(&["max", "count"])?.unwrap_or(128),
                bytes: self.u32(&["bytes"])?.unwrap_or(0),
            },
            Op::Open => Call::Open {
                node: self.node()?,
                flags: self.flags()?,
                content_max: self.u32(&["content_max"])?.unwrap_or(0),
            },
            Op::Read => Call::Read {
                h: self.h()?,
                off: self.u64(&["off", "offset"])?.unwrap_or(0),
                len: self.u32(&["len", "count"])?.unwrap_or(65536),
            },
            Op::Write => Call::Write {
                h: self.h()?,
                off: self.u64(&["off", "offset"])?.unwrap_or(0),
                data: match binary {
                    Some(data) => data,
                    None => self.data("data_b64")?.into(),
                },
            },
            Op::Close => Call::Close { h: self.h()? },
            Op::Create => Call::Create {
                dir: self.node()?,
                name: self.name("name")?,
                mode: self.u32(&["mode"])?.unwrap_or(0o100_644),
                flags: self.flags()?,
            },
            Op::Truncate => {
                Call::Truncate { node: self.node()?, size: self.u64(&["sz"])?.unwrap_or(0) }
            }
            Op::Unlink => Call::Unlink { dir: self.node()?, name: self.name("name")? },
            Op::Mkdir => Call::Mkdir {
                dir: self.node()?,
                name: self.name("name")?,
                mode: self.u32(&["mode"])?,
            },
            Op::Rmdir => Call::Rmdir { dir: self.node()?, name: self.name("name")? },
            Op::Rename => Call::Rename {
                from: (self.u64(&["old_parent"])?.unwrap_or(0), self.name("old_name")?),
                to: (self.u64(&["new_parent"])?.unwrap_or(0), self.name("new_name")?),
                flags: self.u32(&["flags"])?.unwrap_or(0),
            },
            _ => return self.rarer_call(),
        })
    }

    fn rarer_call(&self) -> Result<Call> {
        let p = &self.payload;
        Ok(match self.op {
            Op::Symlink => Call::Symlink {
                dir: self.node()?,
                name: self.name("name")?,
                target: self.name("target")?,
            },
            Op::Setxattr => Call::Setxattr {
                node: self.node()?,
                name: self.name("name")?,
                value: self.data("value_b64")?,
                flags: self.u32(&["flags"])?.unwrap_or(0),
            },
            Op::Getxattr => Call::Getxattr { node: self.node()?, name: self.name("name")? },
            Op::Listxattr => Call::Listxattr { node: self.node()? },
            Op::Removexattr => Call::Removexattr { node: self.node()?, name: self.name("name")? },
            Op::Lock => Call::Lock {
                h: self.h()?,
                kind: self.lock()?,
                wait: p.bool("wait")?.unwrap_or(true),
                owner: self.u64(&["owner"])?.unwrap_or(0),
                range: self.range()?,
            },
            Op::Getlk => Call::Getlk {
                h: self.h()?,
                kind: self.lock()?,
                owner: self.u64(&["owner"])?.unwrap_or(0),
                range: self.range()?,
            },
            Op::Allocate => {
                let keep_size = p.bool("keep_size")?.unwrap_or(false);
                Call::Allocate {
                    h: self.h()?,
                    off: self.u64(&["off"])?.unwrap_or(0),
                    len: self.u64(&["len"])?.ok_or_else(|| self.requires("len"))?,
                    how: match p.str("how")?.as_deref() {
                        Some("reserve") => Allocate::Reserve { keep_size },
                        Some("punch") => Allocate::PunchHole,
                        Some("zero") => Allocate::Zero { keep_size },
                        Some(_) => return Err(Error::invalid("how: reserve, punch or zero")),
                        None => return Err(self.requires("how")),
                    },
                }
            }
            Op::Seek => Call::Seek {
                h: self.h()?,
                off: self.u64(&["off"])?.unwrap_or(0),
                to: match p.str("to")?.as_deref() {
                    Some("data") => SeekTo::Data,
                    Some("hole") => SeekTo::Hole,
                    Some(_) => return Err(Error::invalid("to: data or hole")),
                    None => return Err(self.requires("to")),
                },
            },
            Op::Copy => Call::Copy {
                from: self.u64(&["from"])?.ok_or_else(|| self.requires("from"))?,
                from_off: self.u64(&["from_off"])?.unwrap_or(0),
                h: self.h()?,
                off: self.u64(&["off"])?.unwrap_or(0),
                len: self.u64(&["len"])?.ok_or_else(|| self.requires("len"))?,
            },
            Op::Flush => Call::Flush { h: self.h()? },
            Op::Fsync => {
                Call::Fsync { h: self.h()?, data_only: p.bool("datasync")?.unwrap_or(false) }
            }
            Op::Setattr => Call::Setattr {
                node: self.node()?,
                h: self.top.u64("h")?,
                set: SetAttr {
                    mode: self.u32(&["mode"])?,
                    uid: self.u32(&["uid"])?,
                    gid: self.u32(&["gid"])?,
                    size: self.u64(&["size"])?,
                    atime_ns: p.i64("atime")?,
                    mtime_ns: p.i64("mtime")?,
                    atime_now: p.bool("atime_now")?.unwrap_or(false),
                    mtime_now: p.bool("mtime_now")?.unwrap_or(false),
                },
            },
            Op::Readlink => Call::Readlink { node: self.node()? },
            Op::Link => Call::Link {
                node: self.node()?,
                dir: self.u64(&["dir"])?.ok_or_else(|| self.requires("dir"))?,
                name: self.name("name")?,
            },
            Op::Walk => Call::Walk {
                dir: self.node()?,
                names: p.strings("names")?.ok_or_else(|| self.requires("names"))?,
            },
            _ => Call::Statfs { node: self.node()? },
        })
    }
}

fn first<T>(keys: &[&str], get: impl Fn(&str) -> Result<Option<T>>) -> Result<Option<T>> {
    for key in keys {
        if let Some(value) = get(key)? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}
