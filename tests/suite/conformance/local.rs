//! The local tree: the suite, attempts to get out of it, and what only a host directory has.

use super::{Fixture, ROOT, Scratch, World, conformance, fails, is_gone, name};
use bytes::Bytes;
use spiderweb::base::Name;
use spiderweb::vfs::{
    Cx, Kind, Local, LocalOptions, LockKind, LockRequest, OpenFlags, PageLimit, Range, ReadDir,
    RenameFlags, SetAttr,
};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub fn fixture() -> Fixture {
    let scratch = Scratch::new();
    let tree = Arc::new(Local::open(scratch.path(), LocalOptions::default()).unwrap());
    Fixture { tree, links: true, host_like: true, keep: Box::new(scratch) }
}

/// A directory `in` that is served and one `out`, with a secret, that is not.
struct Fenced {
    scratch: Scratch,
    fixture: Fixture,
}

impl Fenced {
    fn new(options: LocalOptions) -> Fenced {
        let scratch = Scratch::new();
        for dir in ["in", "out"] {
            fs::create_dir(scratch.path().join(dir)).unwrap();
        }
        fs::write(scratch.path().join("out/secret"), "secret").unwrap();
        let tree = Arc::new(Local::open(&scratch.path().join("in"), options).unwrap());
        let fixture = Fixture { tree, links: true, host_like: true, keep: Box::new(()) };
        Fenced { scratch, fixture }
    }

    fn path(&self, p: &str) -> std::path::PathBuf {
        self.scratch.path().join(p)
    }

    fn world(&self) -> World<'_> {
        World::new(&self.fixture)
    }
}

#[test]
fn the_local_tree_conforms() {
    conformance(&fixture);
}

#[test]
fn symlinks_lead_nowhere() {
    let f = Fenced::new(LocalOptions::default());
    let w = f.world();
    symlink(f.path("out/secret"), f.path("in/file")).unwrap();
    symlink(f.path("out"), f.path("in/dir")).unwrap();
    symlink("../out", f.path("in/relative")).unwrap();
    symlink("/proc/self/root/etc", f.path("in/magic")).unwrap();
    for n in ["file", "dir", "relative", "magic"] {
        let attr = w.lookup(ROOT, n).unwrap();
        assert_eq!(attr.kind, Kind::Symlink);
        fails(libc::ENOTDIR, w.lookup(attr.id, "secret"));
        fails(libc::ELOOP, w.tree.open(&w.cx, attr.id, OpenFlags::READ));
        fails(libc::ELOOP, w.create(ROOT, n, OpenFlags::WRITE));
        let at = ReadDir { dir: attr.id, cookie: 0, limit: PageLimit::DEFAULT };
        fails(libc::ENOTDIR, w.tree.readdir(&w.cx, at));
        let cut = SetAttr { size: Some(0), ..SetAttr::default() };
        fails(libc::EINVAL, w.tree.setattr(&w.cx, attr.id, None, &cut));
        let times = SetAttr { mtime: Some(spiderweb::vfs::SetTime::At { ns: 1 }), ..cut };
        w.tree.setattr(&w.cx, attr.id, None, &SetAttr { size: None, ..times }).unwrap();
        let linked = w.tree.link(&w.cx, attr.id, ROOT, name("l")).unwrap();
        assert_eq!(linked.kind, Kind::Symlink, "a link to a symlink is not one to its target");
        w.tree.unlink(&w.cx, ROOT, name("l")).unwrap();
    }
    assert_eq!(fs::read(f.path("out/secret")).unwrap(), b"secret");
    assert_ne!(fs::metadata(f.path("out/secret")).unwrap().mtime(), 0);
    assert_eq!(fs::metadata(f.path("out/secret")).unwrap().nlink(), 1);
}

#[test]
fn dotdot_is_no_name() {
    for n in ["..", ".", "", "a/b", "/etc", "../x"] {
        assert!(Name::text(n).is_err());
    }
}

#[test]
fn a_directory_that_became_a_symlink_is_not_entered() {
    let f = Fenced::new(LocalOptions::default());
    let w = f.world();
    let dir = w.mkdir(ROOT, "d");
    let file = w.put(dir, "secret", b"mine");
    fs::rename(f.path("in/d"), f.path("in/moved")).unwrap();
    symlink(f.path("out"), f.path("in/d")).unwrap();
    // The directory was held: it is found where it went; its file with it.
    assert_eq!(w.get(file), b"mine");
    assert_eq!(w.lookup(dir, "secret").unwrap().id, file);
    assert_eq!(w.get(w.lookup(w.lookup(ROOT, "moved").unwrap().id, "secret").unwrap().id), b"mine");
}

#[test]
fn what_leaves_the_root_is_out_of_reach() {
    let f = Fenced::new(LocalOptions::default());
    let w = f.world();
    let dir = w.mkdir(ROOT, "d");
    let below = w.mkdir(dir, "below");
    let file = w.put(below, "f", b"mine");
    assert_eq!(w.names(below), ["f"]);
    fs::rename(f.path("in/d"), f.path("out/d")).unwrap();
    for id in [dir, below, file] {
        is_gone(w.tree.getattr(&w.cx, id));
    }
    is_gone(w.tree.open(&w.cx, file, OpenFlags::READ));
    is_gone(w.lookup(below, "f"));
    is_gone(w.create(below, "new", OpenFlags::WRITE));
    fs::rename(f.path("out/d"), f.path("in/back")).unwrap();
    assert_eq!(w.get(file), b"mine", "inside again, under another name");
}

#[test]
fn an_id_never_names_a_replacement() {
    let f = Fenced::new(LocalOptions::default());
    let w = f.world();
    let id = w.put(ROOT, "f", b"old");
    fs::write(f.path("in/tmp"), "new").unwrap();
    fs::rename(f.path("in/tmp"), f.path("in/f")).unwrap();
    is_gone(w.tree.getattr(&w.cx, id));
    is_gone(w.tree.open(&w.cx, id, OpenFlags::READ));
    let now = w.lookup(ROOT, "f").unwrap();
    assert_ne!(now.id, id);
    assert_eq!(w.get(now.id), b"new");
}

/// One thread swaps a directory for a symlink to the outside as fast as it can.
#[test]
fn racing_symlinks_never_win() {
    let f = Fenced::new(LocalOptions::default());
    let w = f.world();
    fs::create_dir(f.path("in/d")).unwrap();
    fs::write(f.path("in/d/secret"), "inside").unwrap();
    symlink(f.path("out"), f.path("in/evil")).unwrap();
    let stop = AtomicBool::new(false);
    let mut inside = 0;
    std::thread::scope(|s| {
        s.spawn(|| {
            let at = |p: &str| std::ffi::CString::new(f.path(p).to_str().unwrap()).unwrap();
            let (d, evil) = (at("in/d"), at("in/evil"));
            let exchange = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
            let cwd = nix::fcntl::AT_FDCWD;
            while !stop.load(Ordering::Relaxed) {
                nix::fcntl::renameat2(cwd, &*d, cwd, &*evil, exchange).unwrap();
            }
        });
        for i in 0..3000 {
            let Ok(dir) = w.lookup(ROOT, "d") else { continue };
            let created = w.create(dir.id, format!("new-{i}"), OpenFlags::WRITE);
            if let Ok((_, h)) = created {
                w.tree.release(&w.cx, h).unwrap();
            }
            let Ok(secret) = w.lookup(dir.id, "secret") else { continue };
            let Ok(opened) = w.tree.open(&w.cx, secret.id, OpenFlags::READ) else { continue };
            assert_eq!(w.read(opened.handle, 0, 100), b"inside");
            w.tree.release(&w.cx, opened.handle).unwrap();
            inside += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(fs::read_dir(f.path("out")).unwrap().count(), 1, "nothing was made outside");
    assert!(inside > 0, "the directory itself was reached now and then");
}

#[test]
fn special_files_stay_closed() {
    let f = Fenced::new(LocalOptions::default());
    let w = f.world();
    nix::unistd::mkfifo(&f.path("in/fifo"), nix::sys::stat::Mode::from_bits_truncate(0o666))
        .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(f.path("in/socket")).unwrap();
    for n in ["fifo", "socket"] {
        let attr = w.lookup(ROOT, n).unwrap();
        assert_eq!(attr.kind, Kind::Special);
        fails(libc::ENXIO, w.tree.open(&w.cx, attr.id, OpenFlags::READ_WRITE));
        fails(libc::ENXIO, w.create(ROOT, n, OpenFlags::WRITE));
    }
    assert_eq!(w.names(ROOT).len(), 2);
}

#[test]
fn the_sandbox_mark_does_not_exist() {
    let f = Fenced::new(LocalOptions::default());
    let w = f.world();
    let hidden = ".spiderweb-sandbox";
    fs::create_dir(f.path("in").join(hidden)).unwrap();
    w.put(ROOT, "f", b"");
    assert_eq!(w.names(ROOT), ["f"]);
    fails(libc::ENOENT, w.lookup(ROOT, hidden));
    fails(libc::ENOENT, w.create(ROOT, hidden, OpenFlags::WRITE));
    fails(libc::ENOENT, w.tree.rmdir(&w.cx, ROOT, name(hidden)));
    let flags = RenameFlags::default();
    fails(libc::ENOENT, w.tree.rename(&w.cx, (ROOT, name("f")), (ROOT, name(hidden)), flags));
}

#[test]
fn a_read_only_export_does_not_change() {
    let f = Fenced::new(LocalOptions { read_only: true, ..LocalOptions::default() });
    fs::write(f.path("in/f"), "x").unwrap();
    let (w, cx) = (f.world(), Cx::internal(spiderweb::base::Deadline::after_ms(60_000)));
    let id = w.lookup(ROOT, "f").unwrap().id;
    assert!(w.tree.caps().read_only);
    assert_eq!(w.get(id), b"x");
    fails(libc::EROFS, w.tree.open(&cx, id, OpenFlags::WRITE));
    fails(libc::EROFS, w.tree.open(&cx, id, OpenFlags { truncate: true, ..OpenFlags::READ }));
    fails(libc::EROFS, w.create(ROOT, "g", OpenFlags::READ));
    fails(libc::EROFS, w.tree.mkdir(&cx, ROOT, name("d"), 0o755));
    fails(libc::EROFS, w.tree.unlink(&cx, ROOT, name("f")));
    fails(libc::EROFS, w.tree.symlink(&cx, ROOT, name("s"), b"f"));
    fails(libc::EROFS, w.tree.link(&cx, id, ROOT, name("l")));
    fails(libc::EROFS, w.tree.setattr(&cx, id, None, &SetAttr::default()));
    fails(libc::EROFS, w.tree.setxattr(&cx, id, b"user.a", b"", Default::default()));
    let (_, h) = w.create(ROOT, "f", OpenFlags::READ).unwrap();
    w.tree.release(&cx, h).unwrap();
}

#[test]
fn what_others_change_is_seen() {
    let f = Fenced::new(LocalOptions::default());
    let w = f.world();
    let id = w.put(ROOT, "f", b"x");
    fs::write(f.path("in/f"), "longer").unwrap();
    fs::set_permissions(f.path("in/f"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(f.path("in/f"), f.path("in/g")).unwrap();
    let attr = w.tree.getattr(&w.cx, id).unwrap();
    assert_eq!((attr.size, attr.mode & 0o777, attr.nlink), (6, 0o600, 2));
    assert_eq!(w.lookup(ROOT, "g").unwrap().id, id);
    fs::remove_file(f.path("in/f")).unwrap();
    assert_eq!(w.get(id), b"longer", "found by its other name");
}

#[test]
fn forgotten_nodes_are_looked_up_again() {
    let f = Fenced::new(LocalOptions { nodes_max: 50, ..LocalOptions::default() });
    let w = f.world();
    let dir = w.mkdir(ROOT, "d");
    let ids: Vec<_> = (0..200).map(|i| w.put(dir, format!("f{i}"), b"x")).collect();
    is_gone(w.tree.getattr(&w.cx, ids[0]));
    let again = w.lookup(dir, "f0").unwrap().id;
    assert!(!ids.contains(&again));
    assert_eq!(w.get(again), b"x");
    assert_eq!(w.names(dir).len(), 200);
}

#[test]
fn deep_paths_end_with_a_clear_error() {
    let f = Fenced::new(LocalOptions::default());
    let w = f.world();
    let long = "d".repeat(200);
    let mut dir = ROOT;
    let mut depth = 0;
    let error = loop {
        match w.tree.mkdir(&w.cx, dir, name(&long), 0o755) {
            Ok(attr) => dir = attr.id,
            Err(e) => break e,
        }
        depth += 1;
        assert!(depth < 10_000);
    };
    assert_eq!(error.errno(), libc::ENAMETOOLONG);
    assert!(depth >= 4000 / 201);
}

#[test]
fn a_full_disk_says_so() {
    let scratch = Scratch::new();
    let Some(disk) = SmallDisk::mount(scratch.path()) else {
        return println!("skipped: mounting a tmpfs needs root");
    };
    let tree = Arc::new(Local::open(&disk.0, LocalOptions::default()).unwrap());
    let fixture = Fixture { tree, links: true, host_like: true, keep: Box::new(()) };
    let w = World::new(&fixture);
    let (_, h) = w.create(ROOT, "f", OpenFlags::WRITE).unwrap();
    let megabyte = Bytes::from(vec![7; 1 << 20]);
    let mut written = 0;
    let error = loop {
        match w.tree.write(&w.cx, h, written, megabyte.clone()) {
            Ok(n) => written += n.n,
            Err(e) => break e,
        }
    };
    assert_eq!((error.errno(), error.code.wire()), (libc::ENOSPC, "enospc"));
    assert_eq!(w.lookup(ROOT, "f").unwrap().size, written, "what was told written is there");
    assert_eq!(w.tree.statfs(&w.cx, ROOT).unwrap().bavail, 0);
    w.tree.release(&w.cx, h).unwrap();
}

/// A tmpfs of 4 MiB.
pub struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// `None` where the host does not let us.
    pub fn mount(at: &Path) -> Option<SmallDisk> {
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some("size=4m")).ok()?;
        Some(SmallDisk(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_large_directory_is_read_in_bounded_pages() {
    let f = Fenced::new(LocalOptions { nodes_max: 1000, ..LocalOptions::default() });
    let w = f.world();
    const FILES: usize = 20_000;
    for i in 0..FILES {
        fs::File::create(f.path("in").join(format!("{i}"))).unwrap();
    }
    let mut seen = vec![false; FILES];
    let limit = PageLimit { entries: 500, ..PageLimit::DEFAULT };
    let mut cookie = 0;
    loop {
        let page = w.tree.readdir(&w.cx, ReadDir { dir: ROOT, cookie, limit }).unwrap();
        assert!(page.entries.len() <= 500);
        for e in &page.entries {
            let i: usize = e.name.to_str().unwrap().parse().unwrap();
            assert!(!std::mem::replace(&mut seen[i], true), "{i} came twice");
            cookie = e.cookie;
        }
        if page.eof {
            break;
        }
    }
    assert!(seen.iter().all(|s| *s));
}

#[test]
fn only_directories_are_exported() {
    let scratch = Scratch::new();
    let file = scratch.path().join("f");
    fs::write(&file, "").unwrap();
    let open = |p: &Path| Local::open(p, LocalOptions::default()).map(|_| ());
    fails(libc::ENOTDIR, open(&file));
    let missing = scratch.path().join("none");
    let e = open(&missing).unwrap_err();
    assert_eq!(e.errno(), libc::ENOENT);
    assert!(e.message.contains(missing.to_str().unwrap()), "{e}");
    let _: &OsStr = missing.as_os_str();
}

/// A lock of bytes; to the end without a length.
pub fn flock(kind: i32, start: i64, len: i64) -> libc::flock {
    let (l_type, l_whence) = (kind as i16, libc::SEEK_SET as i16);
    libc::flock { l_type, l_whence, l_start: start, l_len: len, l_pid: 0 }
}

/// Locks as a process; never waits.
pub fn fcntl_lock(file: &fs::File, kind: i32, start: i64, len: i64) -> nix::Result<()> {
    let lock = flock(kind, start, len);
    nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_SETLK(&lock)).map(drop)
}

#[test]
fn the_hosts_processes_and_clients_bar_each_other() {
    let f = Fenced::new(LocalOptions::default());
    let w = f.world();
    let id = w.put(ROOT, "f", b"content");
    let (a, b) = (w.open(id, OpenFlags::READ_WRITE), w.open(id, OpenFlags::READ));
    let lock = |h, kind, owner, start, end| {
        let range = Some(Range { start, end });
        w.tree.lock(&w.cx, h, LockRequest { kind, owner, range })
    };
    let host = fs::File::options().read(true).write(true).open(f.path("in/f")).unwrap();
    let again = Err(nix::errno::Errno::EAGAIN);

    lock(b, LockKind::Shared, 1, 0, 9).unwrap();
    lock(b, LockKind::Shared, 2, 5, 14).unwrap();
    assert_eq!(fcntl_lock(&host, libc::F_WRLCK, 0, 1), again);
    fcntl_lock(&host, libc::F_RDLCK, 0, 1).unwrap();
    fcntl_lock(&host, libc::F_UNLCK, 0, 1).unwrap();
    // What another client still holds stays locked.
    lock(b, LockKind::Unlock, 1, 0, 9).unwrap();
    fcntl_lock(&host, libc::F_WRLCK, 0, 5).unwrap();
    assert_eq!(fcntl_lock(&host, libc::F_WRLCK, 9, 1), again);

    // Half of what is asked for can be had: nothing is taken.
    fails(libc::EAGAIN, lock(a, LockKind::Exclusive, 2, 3, 20));
    assert_eq!(fcntl_lock(&host, libc::F_WRLCK, 14, 1), again);
    fcntl_lock(&host, libc::F_RDLCK, 5, 5).unwrap();
    fcntl_lock(&host, libc::F_WRLCK, 15, 10).unwrap();
    let asked = LockRequest {
        kind: LockKind::Shared,
        owner: 3,
        range: Some(Range { start: 12, end: u64::MAX }),
    };
    let found = w.tree.test_lock(&w.cx, a, asked).unwrap().unwrap();
    assert_eq!(found.kind, LockKind::Exclusive);
    assert_eq!(found.range, Some(Range { start: 15, end: 24 }));

    w.tree.release(&w.cx, b).unwrap();
    fcntl_lock(&host, libc::F_WRLCK, 0, 0).unwrap();
    fails(libc::EAGAIN, lock(a, LockKind::Shared, 1, 1000, u64::MAX));
    drop(host);
    lock(a, LockKind::Exclusive, 1, 1000, u64::MAX).unwrap();
    w.tree.release(&w.cx, a).unwrap();
}
