//! `t_fs_hello` and its reply: who speaks, with what right, and what both sides understand
//! (spec: fs 3.1, 3.3 and 23.1).

use super::{Framing, Op};
use crate::base::{Code, Error, Result};
use crate::wire::{Fields, Object};
use serde::Serialize;

pub const PROTOCOL: &str = "unified-v2-fs";
pub const PROTO: i64 = 2;

/// What a client (or, on the tunnel, a node) says first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    pub auth_token: Option<String>,
    pub subscribe_invalidations: bool,
    /// On `/v2/node` only: the node that dials, and its secret.
    pub node: Option<(String, String)>,
    /// Ours, on the gateway's `/v2/fs`: in whose name the `namespace` export is seen.
    pub binding: Option<Binding>,
    pub ext: Option<Ext>,
}

/// The agent and project that a client asks to act for; absent parts are the gateway's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    pub agent_id: Option<String>,
    pub project_id: Option<String>,
    pub project_token: Option<String>,
}

/// The extensions offered, and in the reply those accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ext {
    pub framing: Framing,
    /// Requests that may be in flight at once on this connection; 0 = not said.
    pub max_inflight: u32,
    pub ops: Vec<Op>,
    /// Names a session that outlives its connection.
    pub session: Option<String>,
    /// In the reply: the session was known, with its open files.
    pub resumed: bool,
}

/// What a node can do; the logical AND over its exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Caps {
    pub readdirp: bool,
    pub symlink: bool,
    pub xattr: bool,
    pub locks: bool,
    pub case_sensitive: bool,
    pub max_read: u32,
    pub max_write: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloReply {
    /// From whoever serves files.
    Node { name: String, version: String, caps: Caps, ext: Option<Ext> },
    /// From the gateway to a node on its tunnel.
    Tunnel { node_id: String },
}

impl Hello {
    /// Errors: EINVAL with the texts that old clients look for (`MissingField`, `InvalidType`,
    /// `ProtocolMismatch`).
    pub fn read(f: &Fields<'_>) -> Result<Hello> {
        let wrong = |_| Error::new(Code::Invalid, "InvalidType");
        let missing = || Error::new(Code::Invalid, "MissingField");
        let protocol = f.str("protocol").map_err(wrong)?.ok_or_else(missing)?;
        let proto = f.i64("proto").map_err(wrong)?.ok_or_else(missing)?;
        if protocol != PROTOCOL || proto != PROTO {
            return Err(Error::new(Code::Invalid, "ProtocolMismatch"));
        }
        let node = match (f.string("node_id"), f.string("node_secret")) {
            (Ok(Some(id)), Ok(Some(secret))) => Some((id, secret)),
            (Ok(_), Ok(_)) => None,
            _ => return Err(Error::new(Code::Invalid, "InvalidType")),
        };
        let binding = Binding {
            agent_id: f.string("agent_id").map_err(wrong)?,
            project_id: f.string("project_id").map_err(wrong)?,
            project_token: f.string("project_token").map_err(wrong)?,
        };
        Ok(Hello {
            binding: (binding != Binding::default()).then_some(binding),
            auth_token: f.string("auth_token").map_err(wrong)?,
            subscribe_invalidations: f
                .bool("subscribe_invalidations")
                .map_err(wrong)?
                .unwrap_or(false),
            node,
            ext: Ext::read(f),
        })
    }

    pub(super) fn payload(&self) -> Object {
        let mut o = Object::new().put("protocol", PROTOCOL).put("proto", PROTO);
        if let Some((id, secret)) = &self.node {
            o = o.put("node_id", id).put("node_secret", secret);
        } else {
            o = o.put("subscribe_invalidations", self.subscribe_invalidations);
        }
        let binding = self.binding.clone().unwrap_or_default();
        o.put_some("auth_token", self.auth_token.as_ref())
            .put_some("agent_id", binding.agent_id)
            .put_some("project_id", binding.project_id)
            .put_some("project_token", binding.project_token)
            .put_ext(self.ext.as_ref())
    }
}

impl Object {
    fn put_ext(self, ext: Option<&Ext>) -> Object {
        let Some(ext) = ext else { return self };
        let names: Vec<_> = ext.ops.iter().map(|op| op.wire()).collect();
        let o = Object::new()
            .put("v", 1)
            .put("bin", u8::from(ext.framing >= Framing::Binary))
            .put_some("lz4", (ext.framing == Framing::Lz4).then_some(1))
            .put("max_inflight", ext.max_inflight)
            .put("ops", names)
            .put_some("session", ext.session.as_ref())
            .put_some("resumed", ext.resumed.then_some(true));
        self.object("ext", o)
    }
}

impl Ext {
    /// Everything this implementation knows.
    pub fn all() -> Ext {
        let ops = Op::ALL.iter().copied().filter(|op| op.is_extension()).collect();
        Ext { framing: Framing::Lz4, max_inflight: 64, ops, session: None, resumed: false }
    }

    /// What both sides know.
    #[must_use]
    pub fn accept(&self, ours: &Ext) -> Ext {
        Ext {
            framing: self.framing.min(ours.framing),
            max_inflight: match self.max_inflight {
                0 => ours.max_inflight,
                n => n.min(ours.max_inflight),
            },
            ops: self.ops.iter().copied().filter(|op| ours.ops.contains(op)).collect(),
            session: self.session.clone(),
            resumed: false,
        }
    }

    pub fn has(&self, op: Op) -> bool {
        self.ops.contains(&op)
    }

    /// An `ext` of another version, or one that makes no sense, is as good as none: the peer then
    /// speaks the base protocol.
    fn read(f: &Fields<'_>) -> Option<Ext> {
        let ext = f.object("ext").ok()??;
        if ext.u32("v").ok()? != Some(1) {
            return None;
        }
        let names = ext.strings("ops").ok()?.unwrap_or_default();
        Some(Ext {
            framing: match (ext.u32("bin").ok()?, ext.u32("lz4").ok()?) {
                (Some(1), Some(1)) => Framing::Lz4,
                (Some(1), _) => Framing::Binary,
                _ => Framing::Text,
            },
            max_inflight: ext.u32("max_inflight").ok()?.unwrap_or(0),
            ops: names
                .iter()
                .filter_map(|n| Op::from_wire(n))
                .filter(|op| op.is_extension())
                .collect(),
            session: ext.string("session").ok()?.filter(|s| !s.is_empty() && s.len() <= 64),
            resumed: ext.bool("resumed").ok()?.unwrap_or(false),
        })
    }
}

impl HelloReply {
    pub(super) fn payload(&self) -> Object {
        let o = Object::new().put("protocol", PROTOCOL).put("proto", PROTO);
        match self {
            HelloReply::Tunnel { node_id } => o.put("node_id", node_id),
            HelloReply::Node { name, version, caps, ext } => {
                let node = Object::new()
                    .put("name", name)
                    .put("os", std::env::consts::OS)
                    .put("ver", version);
                o.object("node", node).put("caps", caps).put_ext(ext.as_ref())
            }
        }
    }

    pub(super) fn read(f: &Fields<'_>) -> Result<HelloReply> {
        if let Some(node_id) = f.string("node_id")? {
            return Ok(HelloReply::Tunnel { node_id });
        }
        let node = f.object("node")?.unwrap_or_default();
        let caps = f.object("caps")?.unwrap_or_default();
        let cap = |name| caps.bool(name).map(|b| b.unwrap_or(false));
        let size = |name| caps.u32(name).map(|n| n.unwrap_or(64 * 1024));
        Ok(HelloReply::Node {
            name: node.string("name")?.unwrap_or_default(),
            version: node.string("ver")?.unwrap_or_default(),
            caps: Caps {
                readdirp: cap("readdirp")?,
                symlink: cap("symlink")?,
                xattr: cap("xattr")?,
                locks: cap("locks")?,
                case_sensitive: cap("case_sensitive")?,
                max_read: size("max_read")?,
                max_write: size("max_write")?,
            },
            ext: Ext::read(f),
        })
    }
}
