//! The table of exports, and how a node id on the wire names a node of one of them.

use super::convert;
use crate::base::{Code, Error, Result};
use crate::vfs::{Caps, NodeId, Tree, Watch};
use crate::wire::fs::{self, Access, ExportCaps, Rights};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

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

/// The exports that a client sees. They may come and go while it is connected; their places give the
/// node ids, and the place of one that is gone is not given to another. Cloning shares the table.
#[derive(Clone, Default)]
pub struct Exports {
    table: Arc<RwLock<Table>>,
    view: View,
}

/// What is seen of the table: everything, or what somebody has rights to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct View(Option<Arc<Rights>>);

impl View {
    /// The one place that decides what a client finds: an export as he may use it, or nothing.
    fn of(&self, place: &Place) -> Option<Arc<Export>> {
        let Some(rights) = &self.0 else { return Some(place.export.clone()) };
        rights.get(&place.export.name).map(|access| match access {
            Access::ReadWrite => place.export.clone(),
            Access::ReadOnly => place.read_only.clone(),
        })
    }
}

#[derive(Default)]
struct Table {
    /// `None` where an export was taken out.
    places: Vec<Option<Place>>,
    sinks: Vec<Sink>,
    last_sink: u64,
}

/// Who listens to what he sees.
#[derive(Clone)]
struct Sink {
    key: u64,
    view: View,
    sink: WireSink,
}

struct Place {
    export: Arc<Export>,
    /// The same for those who may only read it.
    read_only: Arc<Export>,
    /// Who listens to its tree.
    watches: Vec<(u64, Watch)>,
}

impl Place {
    fn new(export: Export) -> Place {
        let read_only = Arc::new(Export { ro: true, ..export.clone() });
        Place { export: Arc::new(export), read_only, watches: Vec::new() }
    }
}

/// Where events under wire ids go; as [`crate::vfs::EventSink`].
pub type WireSink = Arc<dyn Fn(fs::Event) + Send + Sync>;

/// Bits of a wire id that name the node within its export; ids stay below 2^53, so that every JSON
/// reader holds them exactly (spec: fs 23.2 row 22).
const INNER_BITS: u32 = 40;
const EXPORTS_MAX: usize = 1 << 12;

impl Exports {
    /// Errors: as [`Exports::change`].
    pub fn new(exports: Vec<Export>) -> Result<Exports> {
        let table = Exports::default();
        table.change(&[], exports)?;
        Ok(table)
    }

    /// The same table as somebody sees it who has these rights and no others.
    #[must_use]
    pub fn under(&self, rights: Rights) -> Exports {
        Exports { table: self.table.clone(), view: View(Some(Arc::new(rights))) }
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out the exports of these names and puts in new ones: all of it or, on an error, nothing.
    /// What stays keeps its place, its tree and all that is open in it. Errors: `usage` for a name that
    /// is empty or given twice, and when there is no place left.
    pub fn change(&self, gone: &[String], new: Vec<Export>) -> Result<()> {
        let mut t = self.write();
        let stays = t.places.iter().flatten().map(|p| &*p.export.name);
        let mut names: HashSet<&str> = stays.filter(|n| !gone.iter().any(|g| g == n)).collect();
        if let Some(bad) = new.iter().find(|e| e.name.is_empty() || !names.insert(&e.name)) {
            let fault = if bad.name.is_empty() { "is empty" } else { "is given twice" };
            return Err(Error::new(Code::Usage, format!("export name {:?} {fault}", bad.name)));
        }
        if t.places.len() + new.len() > EXPORTS_MAX {
            let message = format!("at most {EXPORTS_MAX} exports may come and go in one run");
            return Err(Error::new(Code::Usage, message));
        }
        let mut out = Vec::new();
        for (index, place) in t.places.iter_mut().enumerate() {
            if place.as_ref().is_some_and(|p| gone.contains(&p.export.name)) {
                out.extend(place.take().map(|p| (index, p)));
            }
        }
        let first = t.places.len();
        t.places.extend(new.into_iter().map(|e| Some(Place::new(e))));
        let seen = |s: &Sink| {
            let gone: Vec<_> = out.iter().filter(|(_, p)| s.view.of(p).is_some()).collect();
            let gone: Vec<_> = gone.into_iter().map(|(index, _)| *index).collect();
            let added: Vec<_> = t.seen(&s.view).filter(|(index, _)| *index >= first).collect();
            (s.clone(), gone, added)
        };
        let told: Vec<_> = t.sinks.iter().map(seen).collect();
        drop(t);
        for (s, gone, added) in told {
            if gone.is_empty() && added.is_empty() {
                continue;
            }
            for root in gone.iter().filter_map(|index| Exports::id(*index, NodeId::ROOT).ok()) {
                (s.sink)(fs::Event::All { node: root, generation: None });
            }
            added.iter().for_each(|(index, export)| self.subscribe(*index, export, &s));
            // Whoever has asked what there is has to ask again.
            (s.sink)(fs::Event::Resync);
        }
        Ok(())
    }

    /// Calls `sink` for every change in any of the exports, those that are put in later included.
    pub fn watch(&self, sink: WireSink) -> Watch {
        let mut t = self.write();
        t.last_sink += 1;
        let key = t.last_sink;
        let listener = Sink { key, view: self.view.clone(), sink };
        t.sinks.push(listener.clone());
        let all: Vec<_> = t.seen(&self.view).collect();
        drop(t);
        all.iter().for_each(|(index, export)| self.subscribe(*index, export, &listener));
        let exports = self.clone();
        Watch::new(move || exports.unwatch(key))
    }

    fn subscribe(&self, index: usize, export: &Export, listener: &Sink) {
        let (key, sink) = (listener.key, listener.sink.clone());
        let watch = export.tree.watch(Arc::new(move |event| {
            if let Some(event) = convert::event(index, event) {
                sink(event);
            }
        }));
        // A tree that announces nothing cannot be watched; its clients go by their time-outs.
        let Ok(watch) = watch else { return };
        let mut t = self.write();
        let listens = t.sinks.iter().any(|s| s.key == key);
        match &mut t.places[index] {
            Some(place) if listens => place.watches.push((key, watch)),
            // A watch ends outside of the lock.
            _ => drop((t, watch)),
        }
    }

    fn unwatch(&self, key: u64) {
        let mut t = self.write();
        t.sinks.retain(|s| s.key != key);
        let places = t.places.iter_mut().flatten();
        let ended: Vec<_> =
            places.flat_map(|p| p.watches.extract_if(.., |(k, _)| *k == key)).collect();
        drop((t, ended));
    }

    pub fn is_empty(&self) -> bool {
        self.read().seen(&self.view).next().is_none()
    }

    /// Errors: ESTALE for one that is gone; ENOENT for one that never was there, as for one that is not
    /// this client's.
    pub fn get(&self, index: usize) -> Result<Arc<Export>> {
        let t = self.read();
        let place = match t.places.get(index) {
            Some(None) => return Err(Error::new(Code::Estale, "the export is gone")),
            Some(Some(place)) => self.view.of(place),
            None => None,
        };
        place.ok_or_else(|| Error::new(Code::Enoent, "unknown node"))
    }

    /// The export and node that a wire id names. Errors: ENOENT; ESTALE where the export is gone.
    pub fn node(&self, id: u64) -> Result<(usize, Arc<Export>, NodeId)> {
        let index = usize::try_from(id >> INNER_BITS).ok().and_then(|i| i.checked_sub(1));
        let inner = id & ((1 << INNER_BITS) - 1);
        let index = index.filter(|_| inner != 0);
        let index = index.ok_or_else(|| Error::new(Code::Enoent, "unknown node"))?;
        Ok((index, self.get(index)?, NodeId(inner)))
    }

    /// The wire id of a node. Errors: EIO for a tree whose ids do not fit.
    pub fn id(index: usize, node: NodeId) -> Result<u64> {
        if node.0 >= 1 << INNER_BITS {
            return Err(Error::new(Code::Eio, format!("node id {} does not fit the wire", node.0)));
        }
        Ok((index as u64 + 1) << INNER_BITS | node.0)
    }

    /// True for exports of the same names in the same order, with the same rights to them.
    pub fn is_alike(&self, other: &Exports) -> bool {
        let same = || Arc::ptr_eq(&self.table, &other.table) || self.names() == other.names();
        self.has_rights_of(other) && same()
    }

    pub fn has_rights_of(&self, other: &Exports) -> bool {
        self.view == other.view
    }

    pub fn names(&self) -> Vec<String> {
        self.read().seen(&self.view).map(|(_, e)| e.name.clone()).collect()
    }

    /// What the hello tells: the logical AND over all exports (spec: fs 3.1).
    pub fn caps(&self) -> fs::Caps {
        let exports: Vec<_> = self.read().seen(&self.view).collect();
        let all = |cap: fn(Caps) -> bool| exports.iter().all(|(_, e)| cap(e.caps()));
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
        let one = |(index, e): (usize, Arc<Export>)| {
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
        let exports: Vec<_> = self.read().seen(&self.view).collect();
        exports.into_iter().map(one).collect()
    }
}

impl Table {
    fn seen<'t>(&'t self, view: &'t View) -> impl Iterator<Item = (usize, Arc<Export>)> + 't {
        let places = self.places.iter().enumerate();
        places.filter_map(|(index, p)| Some((index, view.of(p.as_ref()?)?)))
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
        // It is that of a directory in the gateway's tree.
        if matches!(name, "." | "..") {
            return Err(bad("the name leads elsewhere"));
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
    use crate::base::{Deadline, Name};
    use crate::vfs::synthetic::MemDir;
    use crate::vfs::{Cx, Synthetic};
    use std::sync::Mutex;

    #[test]
    fn specs_are_read_as_documented() {
        let spec = |s: &str| s.parse::<ExportSpec>();
        let work = spec("work=.:rw").unwrap();
        assert_eq!((&*work.name, work.path.to_str().unwrap(), work.ro), ("work", ".", false));
        assert!(spec("repo=/home/u/repo:ro").unwrap().ro);
        assert!(spec("x=/a:ro:rw").unwrap().ro, "the leftmost suffix wins");
        assert_eq!(spec("x=C:\\y").unwrap().path.to_str(), Some("C:\\y"));
        for bad in [
            "work",
            "=/a",
            "a=",
            "a=:ro",
            "c=drive:root",
            "a b=/x",
            "c=/x:cred=team",
            ".=/x",
            "..=/x",
        ] {
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

    fn export(name: &str) -> Export {
        Export {
            name: name.into(),
            tree: Arc::new(Synthetic::new(MemDir::new(1 << 20)).unwrap()),
            ro: false,
            desc: String::new(),
            source_kind: "namespace".into(),
            source_id: name.into(),
        }
    }

    #[test]
    fn what_somebody_has_no_rights_to_comes_and_goes_unseen() {
        let all = Exports::new(vec![export("a"), export("b")]).unwrap();
        let seen =
            all.under([("b".into(), Access::ReadOnly), ("c".into(), Access::ReadWrite)].into());
        let heard = Arc::<Mutex<Vec<fs::Event>>>::default();
        let sink = heard.clone();
        let _watch = seen.watch(Arc::new(move |e| sink.lock().unwrap().push(e)));
        assert_eq!(seen.names(), ["b"]);
        let errno = |e: &Exports, id| e.node(id).err().unwrap().errno();
        let root = |index| Exports::id(index, NodeId::ROOT).unwrap();
        assert_eq!(errno(&seen, root(0)), errno(&seen, root(7)), "it was never there");
        assert!(seen.get(0).is_err() && seen.get(1).unwrap().ro && !all.get(1).unwrap().ro);

        all.change(&["a".into()], vec![export("x")]).unwrap();
        assert!(heard.lock().unwrap().is_empty());
        all.change(&["b".into()], vec![export("c")]).unwrap();
        let gone = fs::Event::All { node: root(1), generation: None };
        assert_eq!(std::mem::take(&mut *heard.lock().unwrap()), [gone, fs::Event::Resync]);
        assert_eq!(seen.names(), ["c"]);
        assert!(!seen.is_alike(&all) && !seen.is_alike(&all.under(Rights::new())));
    }

    #[test]
    fn exports_come_and_go_and_what_stays_is_not_touched() {
        let exports = Exports::new(vec![export("a"), export("b")]).unwrap();
        let heard = Arc::<Mutex<Vec<fs::Event>>>::default();
        let sink = heard.clone();
        let watch = exports.watch(Arc::new(move |e| sink.lock().unwrap().push(e)));
        let (b, root_of_a) = (exports.get(1).unwrap(), Exports::id(0, NodeId::ROOT).unwrap());

        exports.change(&["a".into()], vec![export("a"), export("c")]).unwrap();
        assert!(Arc::ptr_eq(&b, &exports.get(1).unwrap()));
        assert_eq!(exports.node(root_of_a).err().unwrap().errno(), libc::ESTALE);
        let names: Vec<_> = exports.list().unwrap().into_iter().map(|e| e.name).collect();
        assert_eq!(names, ["b", "a", "c"]);
        let gone = fs::Event::All { node: root_of_a, generation: None };
        assert_eq!(std::mem::take(&mut *heard.lock().unwrap()), [gone, fs::Event::Resync]);

        let mkdir = |index: usize, name: &str| {
            let (tree, cx) =
                (exports.get(index).unwrap().tree.clone(), Cx::internal(Deadline::never()));
            tree.mkdir(&cx, NodeId::ROOT, Name::new(name.as_ref()).unwrap(), 0o755).unwrap();
        };
        mkdir(3, "x");
        assert!(!heard.lock().unwrap().is_empty(), "a new export is listened to");
        drop(watch);
        heard.lock().unwrap().clear();
        mkdir(1, "y");
        mkdir(3, "z");
        assert!(heard.lock().unwrap().is_empty());

        let e = exports.change(&["b".into()], vec![export("c")]).unwrap_err();
        assert!(e.code == Code::Usage && exports.get(1).is_ok(), "all or nothing");
    }
}
