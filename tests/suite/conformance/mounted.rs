//! A mount is a directory of the host: the suite on a [`Local`] tree in one. What it asks for goes through
//! the kernel, FUSE, the mount's cache, the wire and the node to the directory that is exported.

use super::local::{fcntl_lock, flock};
use super::{Fixture, Scratch, conformance_without, random};
use crate::mount::{Mount, Node, ok};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use spiderweb::vfs::{Local, LocalOptions};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An exported directory, mounted.
struct Export {
    dir: Scratch,
    node: Node,
}

impl Export {
    fn new() -> Export {
        let dir = Scratch::new();
        let node = Node::start(dir.path(), false);
        Export { dir, node }
    }

    /// `None` where the host cannot mount.
    fn mount(&self) -> Option<Mount> {
        Mount::start(&["--endpoint", &format!("a={}@/", self.node.url())])
    }
}

fn opened(path: PathBuf) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn a_mount_conforms() {
    let export = Export::new();
    let Some(mount) = export.mount() else { return };
    let made = AtomicUsize::new(0);
    let make = || {
        let at = mount.at.join(format!("fixture-{}", made.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&at).unwrap();
        let tree = Arc::new(Local::open(&at, LocalOptions::default()).unwrap());
        Fixture { tree, links: true, host_like: true, keep: Box::new(()) }
    };
    // The kernel closes a file a moment after its last descriptor, and flock ends only then.
    conformance_without(&["locks"], &make);
    random::compare_with_model(&make);
}

/// Another process that holds a lock while it lives.
struct Holder(Child);

impl Holder {
    /// Of a file that is not open here: what a process inherits it closes, and its locks end.
    fn lock(path: PathBuf, kind: i32, start: i64, len: i64) -> Holder {
        let file = opened(path);
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let hold = move || {
            fcntl_lock(&file, kind, start, len)?;
            // Closing a descriptor would end the lock (fcntl(2)).
            nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
            Ok(())
        };
        // SAFETY: only system calls between fork and exec.
        let mut child = unsafe { command.pre_exec(hold) }.spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn locks_bar_processes_mounts_and_the_nodes_host() {
    let export = Export::new();
    let (Some(here), Some(there)) = (export.mount(), export.mount()) else { return };
    fs::write(export.dir.path().join("f"), "0123456789").unwrap();
    let holder = Holder::lock(here.at.join("f"), libc::F_WRLCK, 2, 3);
    let (ours, theirs) = (opened(here.at.join("f")), opened(there.at.join("f")));
    let host = opened(export.dir.path().join("f"));
    let again = Err(Errno::EAGAIN);

    for (file, of) in [(&ours, "the mount"), (&theirs, "another"), (&host, "the host")] {
        assert_eq!(fcntl_lock(file, libc::F_RDLCK, 4, 1), again, "{of}");
        fcntl_lock(file, libc::F_WRLCK, 5, 1).unwrap();
        fcntl_lock(file, libc::F_UNLCK, 0, 0).unwrap();
    }
    let mut asked =
        libc::flock { l_type: libc::F_RDLCK as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    nix::fcntl::fcntl(&theirs, nix::fcntl::FcntlArg::F_GETLK(&mut asked)).unwrap();
    assert_eq!((asked.l_type, asked.l_start, asked.l_len), (libc::F_WRLCK as i16, 2, 3));
    drop(holder);
    fcntl_lock(&ours, libc::F_WRLCK, 0, 0).unwrap();
    assert_eq!(fcntl_lock(&theirs, libc::F_RDLCK, 0, 1), again);
    assert_eq!(fcntl_lock(&host, libc::F_RDLCK, 0, 1), again);

    // Whoever closes any descriptor of a file loses its locks on it.
    drop(opened(here.at.join("f")));
    fcntl_lock(&theirs, libc::F_WRLCK, 0, 0).unwrap();
    drop(theirs);
    // Not as a process: the node is in this one, and closes files.
    let all = flock(libc::F_WRLCK, 0, 0);
    nix::fcntl::fcntl(&host, nix::fcntl::FcntlArg::F_OFD_SETLK(&all)).unwrap();
    assert_eq!(fcntl_lock(&ours, libc::F_RDLCK, 9, 1), again);
}

#[test]
fn flock_and_fcntl_do_not_see_each_other_in_a_mount() {
    let export = Export::new();
    let Some(mount) = export.mount() else { return };
    fs::write(export.dir.path().join("f"), "x").unwrap();
    let whole = Flock::lock(opened(mount.at.join("f")), FlockArg::LockExclusiveNonblock);
    let whole = whole.map_err(|(_, e)| e).unwrap();
    let file = opened(mount.at.join("f"));
    fcntl_lock(&file, libc::F_WRLCK, 0, 0).unwrap();
    let other = Flock::lock(opened(mount.at.join("f")), FlockArg::LockSharedNonblock);
    assert_eq!(other.map(|_| ()).map_err(|(_, e)| e), Err(Errno::EAGAIN));
    drop(whole);
    let reader = File::open(mount.at.join("f")).unwrap();
    let reader = Flock::lock(reader, FlockArg::LockExclusiveNonblock);
    assert!(reader.is_ok(), "flock asks for no right to write");
}

#[test]
fn a_lock_is_waited_for_in_a_mount() {
    let export = Export::new();
    let (Some(here), Some(there)) = (export.mount(), export.mount()) else { return };
    fs::write(export.dir.path().join("f"), "x").unwrap();
    let holder = Holder::lock(here.at.join("f"), libc::F_WRLCK, 0, 1);
    let file = opened(there.at.join("f"));
    let waiting = std::thread::spawn(move || {
        let lock = flock(libc::F_WRLCK, 0, 1);
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETLKW(&lock)).map(drop)
    });
    // Others are served meanwhile.
    assert_eq!(fs::read(there.at.join("f")).unwrap(), b"x");
    assert!(!waiting.is_finished());
    drop(holder);
    waiting.join().unwrap().unwrap();
}

#[test]
fn a_database_keeps_its_promises_between_mounts() {
    let has = Command::new("sqlite3").arg("-version").stdout(Stdio::null()).status().is_ok();
    if !has {
        return println!("skipped: sqlite3 is not installed");
    }
    let export = Export::new();
    let (Some(here), Some(there)) = (export.mount(), export.mount()) else { return };
    let sql = |mount: &Mount, text: &str| {
        let script = format!("sqlite3 -cmd '.timeout 20000' db \"{text}\"");
        ok(mount.shell(&script, Path::new("/")))
    };
    sql(&here, "create table t(n integer); insert into t values (0);");
    std::thread::scope(|threads| {
        for mount in [&here, &here, &there] {
            threads.spawn(move || {
                for _ in 0..5 {
                    sql(mount, "begin immediate; update t set n = n + 1; commit;");
                }
            });
        }
    });
    assert_eq!(sql(&there, "select n from t; pragma integrity_check;"), "15\nok\n");
}
