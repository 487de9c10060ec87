//! The runtime protocol `acheron-1` (spec: namespace 2): requests on fids, their replies and errors.

use super::{Envelope, Fields, Frame, Object};
use crate::base::{Error, Result};

pub const VERSION: &str = "acheron-1";
/// Largest message size offered (design: frame limits).
pub const MSIZE_MAX: u32 = 1024 * 1024;
pub const IOUNIT: u32 = 65536;

/// A request with its arguments; the tag stands beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Version {
        msize: Option<u32>,
        version: Option<String>,
    },
    Attach {
        fid: u32,
    },
    Walk {
        fid: u32,
        newfid: u32,
        path: Vec<String>,
    },
    /// `write` where the mode asks for it.
    Open {
        fid: u32,
        write: bool,
    },
    Read {
        fid: u32,
        offset: u64,
        count: u32,
    },
    Write {
        fid: u32,
        offset: u64,
        data: Vec<u8>,
    },
    Stat {
        fid: u32,
    },
    Clunk {
        fid: u32,
    },
    /// Gives up on the request with that tag (ours).
    Flush {
        oldtag: Option<u32>,
    },
}

/// The names that are requests here.
pub const REQUESTS: [&str; 9] = [
    "t_version",
    "t_attach",
    "t_walk",
    "t_open",
    "t_read",
    "t_write",
    "t_stat",
    "t_clunk",
    "t_flush",
];
const REPLIES: [&str; 10] = [
    "r_version",
    "r_attach",
    "r_walk",
    "r_open",
    "r_read",
    "r_write",
    "r_stat",
    "r_clunk",
    "r_flush",
    "error",
];

/// True for a type name of the acheron channel that is known anywhere, request or not.
pub fn is_known(name: &str) -> bool {
    let fs =
        |prefix| name.strip_prefix(prefix).is_some_and(|op| super::fs::Op::from_wire(op).is_some());
    REQUESTS.contains(&name)
        || REPLIES.contains(&name)
        || matches!(name, "err_fs" | "e_fs_inval" | "e_fs_inval_dir")
        || fs("t_fs_")
        || fs("r_fs_")
}

impl Call {
    /// Reads a request; `None` when the name is not one of [`REQUESTS`]. Errors: `invalid`, naming the
    /// member.
    pub fn read(envelope: &Envelope<'_>) -> Option<Result<Call>> {
        REQUESTS
            .contains(&&*envelope.name)
            .then(|| Call::arguments(&envelope.name, &envelope.fields))
    }

    fn arguments(name: &str, f: &Fields<'_>) -> Result<Call> {
        let invalid = |e: Error| e.recode(crate::base::Code::Invalid);
        let number = |key: &str| {
            let value = f.u32(key).map_err(invalid)?;
            value.ok_or_else(|| Error::invalid(format!("{name} requires {key}")))
        };
        let offset = || f.u64("offset").map_err(invalid).map(|o| o.unwrap_or(0));
        Ok(match name {
            "t_version" => Call::Version {
                msize: f.u32("msize").map_err(invalid)?,
                version: f.string("version").map_err(invalid)?,
            },
            "t_attach" => Call::Attach { fid: number("fid")? },
            "t_walk" => Call::Walk {
                fid: number("fid")?,
                newfid: number("newfid")?,
                path: f.strings("path").map_err(invalid)?.unwrap_or_default(),
            },
            "t_open" => {
                let mode = f.str("mode").map_err(invalid)?;
                Call::Open { fid: number("fid")?, write: mode.is_some_and(|m| m.contains('w')) }
            }
            "t_read" => Call::Read {
                fid: number("fid")?,
                offset: offset()?,
                count: f.u32("count").map_err(invalid)?.unwrap_or(65536),
            },
            "t_write" => Call::Write {
                fid: number("fid")?,
                offset: offset()?,
                data: match (
                    f.base64("data_b64").map_err(invalid)?,
                    f.str("data").map_err(invalid)?,
                ) {
                    (Some(data), _) => data,
                    (None, Some(text)) => text.into_owned().into_bytes(),
                    (None, None) => {
                        return Err(Error::invalid("t_write requires data_b64 or data"));
                    }
                },
            },
            "t_stat" => Call::Stat { fid: number("fid")? },
            "t_clunk" => Call::Clunk { fid: number("fid")? },
            _ => Call::Flush { oldtag: f.u32("oldtag").map_err(invalid)? },
        })
    }

    /// The fid whose requests keep their order.
    pub fn fid(&self) -> Option<u32> {
        match *self {
            Call::Attach { fid }
            | Call::Walk { fid, .. }
            | Call::Open { fid, .. }
            | Call::Read { fid, .. }
            | Call::Write { fid, .. }
            | Call::Stat { fid }
            | Call::Clunk { fid } => Some(fid),
            Call::Version { .. } | Call::Flush { .. } => None,
        }
    }
}

/// `r_<op>` for request `t_<op>`.
pub fn reply(request: &str, tag: Option<u32>, payload: Object) -> Frame {
    let op = request.strip_prefix("t_").unwrap_or(request);
    let o = Object::new()
        .put("channel", "acheron")
        .put("type", format_args!("acheron.r_{op}"))
        .put_some("tag", tag)
        .put("ok", true);
    Frame::Text(o.object("payload", payload).finish())
}

pub fn error(tag: Option<u32>, e: &Error) -> Frame {
    let error = Object::new().put("code", e.code.wire()).put("message", &e.message);
    let o = Object::new().put("channel", "acheron").put("type", "acheron.error");
    Frame::Text(o.put_some("tag", tag).put("ok", false).object("error", error).finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(text: &str) -> Result<Call> {
        Call::read(&Envelope::parse(text).unwrap()).unwrap()
    }

    #[test]
    fn requests_are_read_with_their_defaults() {
        let c = call(
            r#"{"channel":"acheron","type":"acheron.t_walk","fid":1,"newfid":2,"path":["a","b"]}"#,
        );
        assert_eq!(
            c.unwrap(),
            Call::Walk { fid: 1, newfid: 2, path: vec!["a".into(), "b".into()] }
        );
        let c = call(r#"{"channel":"acheron","type":"acheron.t_read","fid":1}"#);
        assert_eq!(c.unwrap(), Call::Read { fid: 1, offset: 0, count: 65536 });
        let c = call(r#"{"channel":"acheron","type":"acheron.t_write","fid":1,"data":"hé"}"#);
        assert_eq!(c.unwrap(), Call::Write { fid: 1, offset: 0, data: "hé".into() });
        let c = call(r#"{"channel":"acheron","type":"acheron.t_open","fid":1,"mode":"rw"}"#);
        assert_eq!(c.unwrap(), Call::Open { fid: 1, write: true });
    }

    #[test]
    fn what_lacks_is_named_and_other_names_are_not_ours() {
        let e = call(r#"{"channel":"acheron","type":"acheron.t_read"}"#).unwrap_err();
        assert_eq!(e.message, "t_read requires fid");
        let other = Envelope::parse(r#"{"channel":"acheron","type":"acheron.r_walk"}"#).unwrap();
        assert!(Call::read(&other).is_none() && is_known("r_walk") && !is_known("t_nope"));
    }
}
