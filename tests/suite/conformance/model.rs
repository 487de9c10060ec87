//! What a tree should be, in the simplest form: maps and byte vectors, with the errors of POSIX.

use std::collections::BTreeMap;

pub type Path = Vec<&'static str>;
type Outcome<T> = Result<T, i32>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Dir(BTreeMap<&'static str, Node>),
    File(Vec<u8>),
}

pub struct Model(pub Node);

impl Model {
    pub fn new() -> Model {
        Model(Node::Dir(BTreeMap::new()))
    }

    pub fn node(&mut self, path: &[&'static str]) -> Outcome<&mut Node> {
        path.iter().try_fold(&mut self.0, |at, name| match at {
            Node::Dir(entries) => entries.get_mut(name).ok_or(libc::ENOENT),
            Node::File(_) => Err(libc::ENOTDIR),
        })
    }

    fn entries(&mut self, dir: &[&'static str]) -> Outcome<&mut BTreeMap<&'static str, Node>> {
        match self.node(dir)? {
            Node::Dir(entries) => Ok(entries),
            Node::File(_) => Err(libc::ENOTDIR),
        }
    }

    fn parent(
        &mut self,
        path: &[&'static str],
    ) -> Outcome<(&mut BTreeMap<&'static str, Node>, &'static str)> {
        let (name, dir) = path.split_last().ok_or(libc::EINVAL)?;
        Ok((self.entries(dir)?, name))
    }

    fn file(&mut self, path: &[&'static str]) -> Outcome<&mut Vec<u8>> {
        match self.node(path)? {
            Node::File(content) => Ok(content),
            Node::Dir(_) => Err(libc::EISDIR),
        }
    }

    pub fn create(&mut self, path: &[&'static str]) -> Outcome<()> {
        self.make(path, Node::File(Vec::new()))
    }

    pub fn mkdir(&mut self, path: &[&'static str]) -> Outcome<()> {
        self.make(path, Node::Dir(BTreeMap::new()))
    }

    fn make(&mut self, path: &[&'static str], node: Node) -> Outcome<()> {
        let (entries, name) = self.parent(path)?;
        if entries.contains_key(name) {
            return Err(libc::EEXIST);
        }
        entries.insert(name, node);
        Ok(())
    }

    pub fn unlink(&mut self, path: &[&'static str]) -> Outcome<()> {
        let (entries, name) = self.parent(path)?;
        match entries.get(name).ok_or(libc::ENOENT)? {
            Node::Dir(_) => Err(libc::EISDIR),
            Node::File(_) => {
                entries.remove(name);
                Ok(())
            }
        }
    }

    pub fn rmdir(&mut self, path: &[&'static str]) -> Outcome<()> {
        let (entries, name) = self.parent(path)?;
        match entries.get(name).ok_or(libc::ENOENT)? {
            Node::File(_) => Err(libc::ENOTDIR),
            Node::Dir(below) if !below.is_empty() => Err(libc::ENOTEMPTY),
            Node::Dir(_) => {
                entries.remove(name);
                Ok(())
            }
        }
    }

    pub fn rename(&mut self, from: &[&'static str], to: &[&'static str]) -> Outcome<()> {
        self.parent(from)?;
        self.parent(to)?;
        let moved = self.node(from)?.clone();
        if to.len() > from.len() && to.starts_with(from) {
            return Err(libc::EINVAL);
        }
        if from.len() > to.len() && from.starts_with(to) {
            return Err(libc::ENOTEMPTY);
        }
        if from == to {
            return Ok(());
        }
        match (&moved, self.node(to)) {
            (Node::Dir(_), Ok(Node::File(_))) => return Err(libc::ENOTDIR),
            (Node::File(_), Ok(Node::Dir(_))) => return Err(libc::EISDIR),
            (_, Ok(Node::Dir(below))) if !below.is_empty() => return Err(libc::ENOTEMPTY),
            _ => {}
        }
        let (entries, name) = self.parent(from)?;
        entries.remove(name);
        let (entries, name) = self.parent(to)?;
        entries.insert(name, moved);
        Ok(())
    }

    pub fn write(&mut self, path: &[&'static str], offset: usize, data: &[u8]) -> Outcome<()> {
        let content = self.file(path)?;
        if content.len() < offset + data.len() {
            content.resize(offset + data.len(), 0);
        }
        content[offset..offset + data.len()].copy_from_slice(data);
        Ok(())
    }

    pub fn read(&mut self, path: &[&'static str], offset: usize, len: usize) -> Outcome<Vec<u8>> {
        let content = self.file(path)?;
        let start = offset.min(content.len());
        Ok(content[start..content.len().min(start + len)].to_vec())
    }

    pub fn truncate(&mut self, path: &[&'static str], size: usize) -> Outcome<()> {
        self.file(path)?.resize(size, 0);
        Ok(())
    }

    pub fn list(&mut self, path: &[&'static str]) -> Outcome<Vec<&'static str>> {
        Ok(self.entries(path)?.keys().copied().collect())
    }
}
