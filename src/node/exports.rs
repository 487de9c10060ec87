//! The table of exports, and how a node id on the wire names a node of one of them.

use crate::base::{Code, Error, Result};
use crate::vfs::{Caps, NodeId, Tree};
use crate::wire::fs::{self, ExportCaps};
use std::path::PathBuf;
use std::sync::Arc;

/// A tree under a name.
#[derive(Clone)]
pub struct Export {
    pub name: String,
    pub tree: Arc<dyn Tree>,
    /// Refuses every change, whatever the tree allows.
    pub ro: bool,
    pub desc: String,
    /// `linux` for a host directory, `namespace` for made-up files (spec: fs 10).
    pub source_kind: String,
    pub source_id: String,
}

impl Export {
    pub fn caps(&self) -> Caps {
        let caps = self.tree.caps();
        Caps { read_only: caps.read_only || self.ro, ..caps }
    }
}

/// The exports that one client sees. Their order gives the node ids.
#[derive(Clone, Default)]
pub struct Exports(Vec<Export>);

/// Bits of a wire id that name the node within its export; ids stay below 2^53, so that every JSON
/// reader holds them exactly (spec: fs 23.2 row 22).
const INNER_BITS: u32 = 40;
const EXPORTS_MAX: usize = 1 << 12;

impl Exports {
    /// Errors: `usage` for a name that is empty or stands twice.
    pub fn new(exports: Vec<Export>) -> Result<Exports> {
        if exports.len() > EXPORTS_MAX {
            return Err(Error::new(Code::Usage, format!("at most {EXPORTS_MAX} exports")));
        }
        for (i, export) in exports.iter().enumerate() {
            if export.name.is_empty() || exports[..i].iter().any(|e| e.name == export.name) {
                let message = format!("export name {:?} is empty or stands twice", export.name);
                return Err(Error::new(Code::Usage, message));
            }
        }
        Ok(Exports(exports))
    }

    pub fn iter(&self) -> impl Iterator<Item = (usize, &Export)> {
        self.0.iter().enumerate()
    }

    pub fn get(&self, index: usize) -> Option<&Export> {
        self.0.get(index)
    }

    /// The export and node that a wire id names. Errors: ENOENT.
    pub fn node(&self, id: u64) -> Result<(usize, &Export, NodeId)> {
        let index = usize::try_from(id >> INNER_BITS).ok().and_then(|i| i.checked_sub(1));
        let inner = id & ((1 << INNER_BITS) - 1);
        let found = index.and_then(|i| Some((i, self.0.get(i)?, NodeId(inner))));
        found.filter(|_| inner != 0).ok_or_else(|| Error::new(Code::Enoent, "unknown node"))
    }

    /// The wire id of a node. Errors: EIO for a tree whose ids do not fit.
    pub fn id(index: usize, node: NodeId) -> Result<u64> {
        if node.0 >= 1 << INNER_BITS {
            return Err(Error::new(Code::Eio, format!("node id {} does not fit the wire", node.0)));
        }
        Ok((index as u64 + 1) << INNER_BITS | node.0)
    }

    /// True for exports of the same names in the same order.
    pub fn is_alike(&self, other: &Exports) -> bool {
        self.0.iter().map(|e| &e.name).eq(other.0.iter().map(|e| &e.name))
    }

    /// What the hello tells: the logical AND over all exports (spec: fs 3.1).
    pub fn caps(&self) -> fs::Caps {
        let all = |cap: fn(Caps) -> bool| self.0.iter().all(|e| cap(e.caps()));
        fs::Caps {
            readdirp: true,
            symlink: all(|c| c.symlink),
            xattr: all(|c| c.xattr),
            locks: all(|c| c.locks),
            case_sensitive: all(|c| c.case_sensitive),
            max_read: crate::wire::DATA_MAX as u32,
            max_write: crate::wire::DATA_MAX as u32,
        }
    }

    /// As `exports` lists them.
    pub fn list(&self) -> Result<Vec<fs::Export>> {
        let one = |(index, e): (usize, &Export)| {
            let caps = e.caps();
            Ok(fs::Export {
                name: e.name.clone(),
                root: Exports::id(index, NodeId::ROOT)?,
                ro: caps.read_only,
                desc: e.desc.clone(),
                source_kind: e.source_kind.clone(),
                source_id: e.source_id.clone(),
                caps: ExportCaps {
                    native_watch: caps.native_watch,
                    case_sensitive: caps.case_sensitive,
                    symlink: caps.symlink,
                    xattr: caps.xattr,
                    locks: caps.locks,
                    statfs: true,
                },
            })
        };
        self.iter().map(one).collect()
    }
}

/// What `--export` says (spec: fs 10): `name=path`, then any of `:ro`, `:rw`, `:cred=…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportSpec {
    pub name: String,
    pub path: PathBuf,
    pub ro: bool,
}

impl std::str::FromStr for ExportSpec {
    type Err = Error;

    fn from_str(spec: &str) -> Result<ExportSpec> {
        let bad = |what: &str| {
            Error::new(
                Code::Usage,
                format!("--export {spec:?}: {what}; write NAME=DIRECTORY[:ro|:rw]"),
            )
        };
        let (name, mut path) = spec.split_once('=').ok_or_else(|| bad("there is no ="))?;
        if name.is_empty() {
            return Err(bad("the name is empty"));
        }
        if !crate::base::id::is_identifier(name, 128) {
            return Err(bad("the name may hold A-Z a-z 0-9 . _ -"));
        }
        let mut ro = false;
        // Suffixes are taken off from the right, so the leftmost has the last word.
        loop {
            if let Some(rest) = path.strip_suffix(":ro") {
                (path, ro) = (rest, true);
            } else if let Some(rest) = path.strip_suffix(":rw") {
                (path, ro) = (rest, false);
            } else if path
                .rsplit_once(":cred=")
                .is_some_and(|(_, c)| !c.is_empty() && !c.contains(':'))
            {
                return Err(bad(
                    "credentials belong to Google Drive exports, which are not supported",
                ));
            } else {
                break;
            }
        }
        if path.is_empty() {
            return Err(bad("the directory is empty"));
        }
        if path.starts_with("drive:") || path.starts_with("gdrive:") {
            return Err(bad("Google Drive exports are not supported; export a directory"));
        }
        Ok(ExportSpec { name: name.into(), path: path.into(), ro })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_read_as_documented() {
        let spec = |s: &str| s.parse::<ExportSpec>();
        let work = spec("work=.:rw").unwrap();
        assert_eq!((&*work.name, work.path.to_str().unwrap(), work.ro), ("work", ".", false));
        assert!(spec("repo=/home/u/repo:ro").unwrap().ro);
        assert!(spec("x=/a:ro:rw").unwrap().ro, "the leftmost suffix wins");
        assert_eq!(spec("x=C:\\y").unwrap().path.to_str(), Some("C:\\y"));
        for bad in ["work", "=/a", "a=", "a=:ro", "c=drive:root", "a b=/x", "c=/x:cred=team"] {
            let e = spec(bad).unwrap_err();
            assert!(e.code == Code::Usage && e.message.contains(bad), "{e}");
        }
    }

    #[test]
    fn wire_ids_lead_back_to_their_export_and_fit_a_double() {
        let id = Exports::id(EXPORTS_MAX - 1, NodeId((1 << 40) - 1)).unwrap();
        assert!(id < 1 << 53);
        assert!(Exports::id(0, NodeId(1 << 40)).is_err());
        assert_eq!(Exports::default().node(7).err().unwrap().errno(), libc::ENOENT);
    }
}
