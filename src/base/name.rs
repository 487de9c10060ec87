//! Names of directory entries and absolute paths of a tree. Bytes, not text: a host name need not be
//! UTF-8. A value of these types cannot hold `..`, a slash in a name, NUL, or an empty name.

use super::{Code, Error, Result};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Longest entry name, in bytes (Linux NAME_MAX).
pub const NAME_MAX: usize = 255;
/// Longest path, in bytes (Linux PATH_MAX).
pub const PATH_MAX: usize = 4096;

/// The checked name of a directory entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name<'a>(&'a OsStr);

impl<'a> Name<'a> {
    /// Errors: EINVAL for an empty name, `.`, `..`, `/` or NUL; ENAMETOOLONG past [`NAME_MAX`].
    pub fn new(name: &'a OsStr) -> Result<Name<'a>> {
        let b = name.as_bytes();
        if b.is_empty() || b == b"." || b == b".." || b.contains(&b'/') || b.contains(&0) {
            return Err(Error::invalid(format!("invalid child name {name:?}")));
        }
        if b.len() > NAME_MAX {
            return Err(Error::from_errno(
                libc::ENAMETOOLONG,
                format!("name of {} bytes is longer than {NAME_MAX}", b.len()),
            ));
        }
        Ok(Name(name))
    }

    pub fn text(name: &'a str) -> Result<Name<'a>> {
        Name::new(OsStr::new(name))
    }

    pub fn as_os_str(self) -> &'a OsStr {
        self.0
    }

    /// The name, where it is UTF-8.
    pub fn as_str(self) -> Option<&'a str> {
        self.0.to_str()
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// An absolute path in normal form: `/` or `/a/b`, no empty, `.` or `..` segments.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TreePath(OsString);

impl TreePath {
    pub fn root() -> TreePath {
        TreePath("/".into())
    }

    /// Normalises `/a//b/./c/`; a missing leading slash is added. `..` is refused with EINVAL, for
    /// the caller meant a place that mounts and symlinks make ambiguous.
    pub fn parse(path: impl AsRef<OsStr>) -> Result<TreePath> {
        let bytes = path.as_ref().as_bytes();
        if bytes.len() > PATH_MAX {
            return Err(Error::from_errno(libc::ENAMETOOLONG, "path is longer than 4096 bytes"));
        }
        let mut out = Vec::with_capacity(bytes.len() + 1);
        for segment in bytes.split(|b| *b == b'/').filter(|s| !s.is_empty() && *s != b".") {
            let name = Name::new(OsStr::from_bytes(segment))
                .map_err(|e| e.context(format!("path {:?}", path.as_ref())))?;
            out.push(b'/');
            out.extend_from_slice(name.as_os_str().as_bytes());
        }
        if out.is_empty() {
            out.push(b'/');
        }
        Ok(TreePath(OsString::from_vec(out)))
    }

    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }

    pub fn names(&self) -> impl DoubleEndedIterator<Item = Name<'_>> {
        let segments = self.0.as_bytes().split(|b| *b == b'/').filter(|s| !s.is_empty());
        segments.map(|s| Name(OsStr::from_bytes(s)))
    }

    #[must_use]
    pub fn join(&self, name: Name<'_>) -> TreePath {
        let mut s = if self.is_root() { OsString::new() } else { self.0.clone() };
        s.push("/");
        s.push(name.as_os_str());
        TreePath(s)
    }

    /// The path of the directory that holds this one, and its name there; `None` for the root.
    pub fn split_last(&self) -> Option<(TreePath, Name<'_>)> {
        let bytes = self.0.as_bytes();
        let cut = bytes.iter().rposition(|b| *b == b'/').filter(|_| bytes.len() > 1)?;
        let parent = if cut == 0 { b"/" } else { &bytes[..cut] };
        Some((
            TreePath(OsStr::from_bytes(parent).to_owned()),
            Name(OsStr::from_bytes(&bytes[cut + 1..])),
        ))
    }

    /// What is left of this path below `base` (`/` when equal), or `None` when it is not inside.
    pub fn below(&self, base: &TreePath) -> Option<TreePath> {
        if base.is_root() {
            return Some(self.clone());
        }
        match self.0.as_bytes().strip_prefix(base.0.as_bytes())? {
            b"" => Some(TreePath::root()),
            rest if rest[0] == b'/' => Some(TreePath(OsStr::from_bytes(rest).to_owned())),
            _ => None,
        }
    }

    /// This path followed by all of `rest`.
    #[must_use]
    pub fn append(&self, rest: &TreePath) -> TreePath {
        rest.names().fold(self.clone(), |path, name| path.join(name))
    }

    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }

    /// As text; bytes that are not UTF-8 are replaced, so only for people to read.
    pub fn display(&self) -> std::borrow::Cow<'_, str> {
        self.0.to_string_lossy()
    }
}

impl std::str::FromStr for TreePath {
    type Err = Error;
    fn from_str(s: &str) -> Result<TreePath> {
        if !s.starts_with('/') {
            return Err(Error::new(Code::Invalid, format!("path {s:?} must begin with /")));
        }
        TreePath::parse(s)
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(s: &str) -> TreePath {
        TreePath::parse(s).unwrap()
    }

    #[test]
    fn paths_are_normalised_and_dotdot_refused() {
        assert_eq!(path("//a/./b/").as_os_str(), "/a/b");
        assert_eq!(path("").as_os_str(), "/");
        assert_eq!(TreePath::parse("/a/../b").unwrap_err().errno(), libc::EINVAL);
        assert_eq!(TreePath::parse("/a\0").unwrap_err().errno(), libc::EINVAL);
        let long = "x".repeat(300);
        assert_eq!(TreePath::parse(&long).unwrap_err().errno(), libc::ENAMETOOLONG);
    }

    #[test]
    fn prefixes_end_at_a_segment() {
        assert_eq!(path("/safe/x").below(&path("/safe")), Some(path("/x")));
        assert_eq!(path("/safeguard").below(&path("/safe")), None);
        assert_eq!(path("/safe").below(&path("/safe")), Some(TreePath::root()));
        assert_eq!(path("/a").below(&TreePath::root()), Some(path("/a")));
    }

    #[test]
    fn splitting_and_joining_agree() {
        let p = path("/a/b");
        let (parent, name) = p.split_last().unwrap();
        assert_eq!((parent.join(name), parent), (p.clone(), path("/a")));
        assert_eq!(path("/a").split_last().unwrap().0, TreePath::root());
        assert!(TreePath::root().split_last().is_none());
        assert_eq!(path("/m").append(&p), path("/m/a/b"));
    }
}
