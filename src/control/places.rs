//! What stands at paths of a project, in the order in which it was put there. Copies share what they have
//! in common, so one costs nothing and a change costs O(log n). No decisions: what may stand where is said
//! in `ops`.

use rpds::RedBlackTreeMapSync as Map;
use serde::Serialize;
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

/// Bytes that one of them takes in JSON, with the comma; more costs a copy.
const JSON_LIKELY: usize = 96;

pub trait Placed {
    /// In normal form.
    fn path(&self) -> &str;
}

/// Each thing has a number, by which they are in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places<T> {
    all: Map<u64, Arc<Standing<T>>>,
    /// The paths as in [`key`].
    by_path: Map<(String, u64), ()>,
}

#[derive(Debug)]
struct Standing<T> {
    thing: Arc<T>,
    /// Made when it is first shown: a thing does not change, and every answer about a project shows all.
    json: OnceLock<Box<str>>,
}

impl<T: PartialEq> PartialEq for Standing<T> {
    fn eq(&self, other: &Standing<T>) -> bool {
        self.thing == other.thing
    }
}

impl<T: Eq> Eq for Standing<T> {}

impl<T> Default for Places<T> {
    fn default() -> Places<T> {
        Places { all: Map::new_sync(), by_path: Map::new_sync() }
    }
}

impl<T: Placed> Places<T> {
    pub fn len(&self) -> usize {
        self.all.size()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.all.values().map(|at| &*at.thing)
    }

    pub fn numbered(&self) -> impl Iterator<Item = (u64, &Arc<T>)> {
        self.all.iter().map(|(number, at)| (*number, &at.thing))
    }

    pub fn get(&self, number: u64) -> Option<&Arc<T>> {
        self.all.get(&number).map(|at| &at.thing)
    }

    /// The number of what is put behind all others.
    pub fn next(&self) -> u64 {
        self.all.last().map_or(0, |(number, _)| number + 1)
    }

    /// Puts something in the place of a number, or takes away what stands there.
    pub fn set(&mut self, number: u64, thing: Option<Arc<T>>) {
        if let Some(old) = self.all.get(&number) {
            self.by_path.remove_mut(&(key(old.thing.path()), number));
        }
        match thing {
            Some(new) => {
                self.by_path.insert_mut((key(new.path()), number), ());
                let at = Standing { thing: new, json: OnceLock::new() };
                self.all.insert_mut(number, Arc::new(at));
            }
            None => drop(self.all.remove_mut(&number)),
        }
    }

    /// What stands at exactly this path, with its numbers.
    pub fn at(&self, path: &str) -> impl Iterator<Item = (u64, &T)> {
        let key = key(path);
        let found = self.by_path.range((key.clone(), 0)..=(key, u64::MAX));
        found.filter_map(|((_, number), ())| Some((*number, &**self.get(*number)?)))
    }

    /// Something that stands at a directory on the way to this path.
    pub fn above(&self, path: &str) -> Option<&T> {
        let key = key(path);
        let ends = key[..key.len() - 1].match_indices('/').map(|(slash, _)| slash + 1);
        ends.filter_map(|end| self.at(&key[..end]).next()).map(|(_, thing)| thing).next()
    }

    /// Something that stands below this path.
    pub fn below(&self, path: &str) -> Option<&T> {
        let key = key(path);
        // In this order what lies below a path follows it at once.
        let behind = (Bound::Excluded((key.clone(), u64::MAX)), Bound::Unbounded);
        let ((path, number), ()) = self.by_path.range(behind).next()?;
        path.starts_with(&key).then(|| self.get(*number).map(|thing| &**thing))?
    }
}

/// A path with a slash at its end: that of a directory then begins those of what lies below it, and no
/// others.
fn key(path: &str) -> String {
    format!("{}/", path.trim_end_matches('/'))
}

impl<T: Placed> FromIterator<T> for Places<T> {
    fn from_iter<I: IntoIterator<Item = T>>(things: I) -> Places<T> {
        let mut places = Places::default();
        for thing in things {
            places.set(places.next(), Some(Arc::new(thing)));
        }
        places
    }
}

impl<T: Serialize> Places<T> {
    /// Writes all of them as a JSON array.
    pub fn write_json(&self, to: &mut String) {
        let one = |at: &Standing<T>| {
            serde_json::to_string(&*at.thing).expect("strings serialise").into_boxed_str()
        };
        to.reserve(self.all.size() * JSON_LIKELY);
        to.push('[');
        for (n, at) in self.all.values().enumerate() {
            if n > 0 {
                to.push(',');
            }
            to.push_str(at.json.get_or_init(|| one(at)));
        }
        to.push(']');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq, Serialize)]
    struct At(&'static str);

    impl Placed for At {
        fn path(&self) -> &str {
            self.0
        }
    }

    #[test]
    fn things_are_found_by_path_and_keep_their_order() {
        let mut places: Places<At> =
            ["/b", "/a/x", "/b", "/a-b", "/a.b/c"].map(At).into_iter().collect();
        let shown = |places: &Places<At>| {
            let mut json = String::new();
            places.write_json(&mut json);
            json
        };
        assert_eq!(shown(&places), r#"["/b","/a/x","/b","/a-b","/a.b/c"]"#);
        assert_eq!(places.at("/b").map(|(n, _)| n).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(places.at("/a").count(), 0);
        for (path, above, below) in [
            ("/a", None, Some("/a/x")),
            ("/a/x", None, None),
            ("/a/x/y/z", Some("/a/x"), None),
            ("/a-b/c", Some("/a-b"), None),
            ("/a-", None, None),
            ("/a.b", None, Some("/a.b/c")),
            ("/b", None, None),
            ("/", None, Some("/a-b")),
        ] {
            let found = |at: Option<&At>| at.map(|at| at.0);
            assert_eq!(
                (found(places.above(path)), found(places.below(path))),
                (above, below),
                "{path}"
            );
        }
        let before = places.clone();
        places.set(0, None);
        places.set(1, Some(Arc::new(At("/"))));
        assert_eq!((&*shown(&places), places.next()), (r#"["/","/b","/a-b","/a.b/c"]"#, 5));
        assert_eq!(places.above("/b"), Some(&At("/")));
        assert_eq!(places.above("/"), None);
        assert_eq!((before.len(), before.above("/b")), (5, None));
    }
}
