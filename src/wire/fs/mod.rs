//! The node protocol `unified-v2-fs` (spec: fs 2 to 7): every `t_fs_*` request, its reply, the error
//! and the invalidation events, as types with a JSON form and, after negotiation, a binary one for
//! file data. Both directions are here: what one side encodes the other decodes.

mod args;
mod bin;
mod call;
mod event;
mod grant;
mod hello;
mod reply;
mod request;

pub use bin::{
    BIN_HEADER, BIN_VERSION, BinKind, Framing, Head, decode_bin, frame_tag, raw_len, unpacked_max,
};
pub use event::Event;
pub use grant::{Access, Grant, Rights};
pub use hello::{Binding, Caps, Ext, Hello, HelloReply, PROTO, PROTOCOL};
pub use reply::{
    Attr, DirEntry, Export, ExportCaps, Failure, OpenReply, Reply, StatFs, decode_bin_reply,
    decode_reply,
};
pub use request::{Allocate, Call, Fault, Lock, Range, Request, SeekTo, SetAttr, Slot};

use super::{Fields, Object, base64_decode};
use crate::base::Result;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

macro_rules! ops {
    ($($name:ident $wire:literal $number:literal $ext:literal)*) => {
        /// An operation. The number stands in binary frames.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Op { $($name = $number,)* }

        impl Op {
            pub const ALL: &'static [Op] = &[$(Op::$name,)*];

            /// The name behind `acheron.t_fs_`.
            pub const fn wire(self) -> &'static str { match self { $(Op::$name => $wire,)* } }
            /// True for operations that are used only after `ext.ops` of the hello named them.
            pub const fn is_extension(self) -> bool { match self { $(Op::$name => $ext,)* } }
            pub fn from_number(n: u16) -> Option<Op> { match n { $($number => Some(Op::$name),)* _ => None } }
        }
    };
}

ops! {
    Hello       "hello"       1  false
    Exports     "exports"     2  false
    Lookup      "lookup"      3  false
    Getattr     "getattr"     4  false
    Readdirp    "readdirp"    5  false
    Open        "open"        6  false
    Read        "read"        7  false
    Write       "write"       8  false
    Close       "close"       9  false
    Create      "create"      10 false
    Truncate    "truncate"    11 false
    Unlink      "unlink"      12 false
    Mkdir       "mkdir"       13 false
    Rmdir       "rmdir"       14 false
    Rename      "rename"      15 false
    Statfs      "statfs"      16 false
    Symlink     "symlink"     17 false
    Setxattr    "setxattr"    18 false
    Getxattr    "getxattr"    19 false
    Listxattr   "listxattr"   20 false
    Removexattr "removexattr" 21 false
    Lock        "lock"        22 false
    Flush       "flush"       23 true
    Fsync       "fsync"       24 true
    Setattr     "setattr"     25 true
    Readlink    "readlink"    26 true
    Link        "link"        27 true
    Walk        "walk"        28 true
    Getlk       "getlk"       29 true
    Allocate    "allocate"    30 true
    Seek        "seek"        31 true
    Copy        "copy"        32 true
}

impl Op {
    pub fn from_wire(name: &str) -> Option<Op> {
        Op::ALL.iter().copied().find(|op| op.wire() == name)
    }

    /// The operation as error texts name it.
    pub fn upper(self) -> String {
        self.wire().to_ascii_uppercase()
    }
}

/// A name under `key`, or under `key_b64` where it is not UTF-8 (spec: fs 23.2 row 23).
fn put_name(o: Object, key: &str, name: &OsStr) -> Object {
    match name.to_str() {
        Some(text) => o.put(key, text),
        None => o.base64(&format!("{key}_b64"), name.as_bytes()),
    }
}

fn get_name(f: &Fields<'_>, key: &str) -> Result<Option<OsString>> {
    if let Some(text) = f.str(key)? {
        return Ok(Some(OsString::from(text.into_owned())));
    }
    let encoded = f.str(&format!("{key}_b64"))?;
    encoded.map(|b| base64_decode(&b).map(OsString::from_vec)).transpose()
}

/// The tag of a reply or request in JSON. Ours stand near the front, so the file data behind them is
/// not looked at; other spellings are parsed.
pub fn text_tag(text: &str) -> Option<u32> {
    let near = |text: &str| {
        let rest = text.strip_prefix(r#"{"channel":"acheron","type":"acheron."#)?;
        let (_, rest) = rest.split_once('"')?;
        let digits = rest.strip_prefix(r#","tag":"#)?;
        let end = digits.find(|c: char| !c.is_ascii_digit())?;
        digits[..end].parse().ok()
    };
    near(text).or_else(|| Fields::parse(text).ok()?.u32("tag").ok()?)
}

#[cfg(test)]
mod tests;
