//! Files that are renamed from one node to another.

use super::{Exported, Mount, Node, ok, until};
use crate::conformance::{Scratch, SmallDisk};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Two nodes' directories under `a` and `b` of one mount.
struct Two {
    a: Scratch,
    b: Scratch,
    mount: Mount,
    _nodes: [Node; 2],
}

impl Two {
    fn start(read_only: [bool; 2]) -> Option<Two> {
        let (a, b) = (Scratch::new(), Scratch::new());
        let nodes = [Node::start(a.path(), read_only[0]), Node::start(b.path(), read_only[1])];
        let mount = mount(&[&nodes[0].url(), &nodes[1].url()], &["-o", "copy_across"])?;
        Some(Two { a, b, mount, _nodes: nodes })
    }

    fn at(&self, path: &str) -> PathBuf {
        self.mount.at.join(path)
    }
}

fn mount(urls: &[&str; 2], more: &[&str]) -> Option<Mount> {
    let (a, b) = (format!("a={}@/a", urls[0]), format!("b={}@/b", urls[1]));
    Mount::start(&[&["--endpoint", &*a, "--endpoint", &*b], more].concat())
}

fn rename(from: &Path, to: &Path, flags: u32) -> Result<(), i32> {
    let c = |path: &Path| std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    let (from, to) = (c(from), c(to));
    let at = libc::AT_FDCWD;
    // SAFETY: both paths end with a zero and live as long as the call.
    match unsafe { libc::renameat2(at, from.as_ptr(), at, to.as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap()),
    }
}

/// False where the host's disk has no such attributes.
fn set_mark(path: &Path) -> bool {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: strings that end with a zero, and a value of two bytes.
    let outcome = unsafe {
        libc::setxattr(path.as_ptr(), c"user.mark".as_ptr(), c"me".as_ptr().cast(), 2, 0)
    };
    if outcome != 0 {
        println!("not tested: {}", std::io::Error::last_os_error());
    }
    outcome == 0
}

fn mark(path: &Path) -> Vec<u8> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut value = vec![0; 16];
    let room = value.as_mut_ptr().cast();
    // SAFETY: strings that end with a zero, and room for 16 bytes.
    let n = unsafe { libc::getxattr(path.as_ptr(), c"user.mark".as_ptr(), room, 16) };
    value.truncate(n.try_into().expect("the attribute"));
    value
}

fn names(dir: &Path) -> Vec<String> {
    let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
    let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(name).collect();
    all.sort();
    all
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n / 7 + n / 4099) as u8).collect()
}

#[test]
fn a_file_goes_to_another_node_with_all_that_belongs_to_it() {
    let Some(two) = Two::start([false, false]) else { return };
    let (here, bytes) = (two.a.path().join("file"), content(5 << 20));
    fs::write(&here, &bytes).unwrap();
    fs::set_permissions(&here, fs::Permissions::from_mode(0o440)).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    fs::File::open(&here).unwrap().set_modified(then).unwrap();
    let marked = set_mark(&here);
    fs::write(two.b.path().join("old"), "in the way").unwrap();
    let (from, to) = (two.at("a/file"), two.at("b/old"));
    let number = fs::metadata(&from).unwrap().ino();
    rename(&from, &to, 0).unwrap();
    assert!(names(two.a.path()).is_empty() && names(two.b.path()) == ["old"]);
    let there = two.b.path().join("old");
    assert!(fs::read(&there).unwrap() == bytes);
    let meta = fs::metadata(&there).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.modified().unwrap()), (0o440, then));
    if marked {
        assert_eq!(mark(&there), b"me");
    }
    // As after any rename: the same number, at once, and no file under the old name.
    assert_eq!(fs::metadata(&to).unwrap().ino(), number);
    assert!(fs::read(&to).unwrap() == bytes);
    assert!(fs::metadata(&from).is_err());
    // The file is like any other.
    fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&to, "new").unwrap();
    assert_eq!(fs::read(&there).unwrap(), b"new");
    rename(&to, &two.at("b/renamed"), 0).unwrap();
    rename(&two.at("b/renamed"), &two.at("a/back"), 0).unwrap();
    assert_eq!(fs::read(two.a.path().join("back")).unwrap(), b"new");
    assert!(names(two.b.path()).is_empty());
}

#[test]
fn what_cannot_be_copied_stays_where_it_is() {
    let Some(two) = Two::start([false, false]) else { return };
    let a = two.a.path();
    for name in ["file", "linked"] {
        fs::write(a.join(name), name).unwrap();
    }
    fs::hard_link(a.join("linked"), a.join("linked too")).unwrap();
    symlink("file", a.join("symlink")).unwrap();
    fs::create_dir(a.join("dir")).unwrap();
    fs::write(two.b.path().join("taken"), "taken").unwrap();
    fs::create_dir(two.b.path().join("dir")).unwrap();
    for (from, to, flags, errno) in [
        ("a/linked", "b/new", 0, libc::EXDEV),
        ("a/symlink", "b/new", 0, libc::EXDEV),
        ("a/dir", "b/new", 0, libc::EXDEV),
        ("a/file", "b/taken", libc::RENAME_EXCHANGE, libc::EXDEV),
        ("a/file", "b/taken", libc::RENAME_NOREPLACE, libc::EEXIST),
        ("a/file", "b/dir", 0, libc::EISDIR),
    ] {
        assert_eq!(rename(&two.at(from), &two.at(to), flags), Err(errno), "{from} to {to}");
    }
    assert_eq!(names(a), ["dir", "file", "linked", "linked too", "symlink"]);
    assert_eq!(names(two.b.path()), ["dir", "taken"]);
    assert_eq!(rename(&two.at("a/file"), &two.at("b/new"), libc::RENAME_NOREPLACE), Ok(()));
    assert_eq!(fs::read(two.b.path().join("new")).unwrap(), b"file");
    // mv(1) does the rest by itself.
    ok(two.mount.shell("mv a/dir b/moved && mv a/symlink b/", a));
    assert_eq!(names(two.b.path()), ["dir", "moved", "new", "symlink", "taken"]);
}

#[test]
fn read_only_sides_refuse() {
    for read_only in [[true, false], [false, true]] {
        let Some(two) = Two::start(read_only) else { return };
        fs::write(two.a.path().join("file"), "x").unwrap();
        assert_eq!(rename(&two.at("a/file"), &two.at("b/file"), 0), Err(libc::EROFS));
        assert!(names(two.a.path()) == ["file"] && names(two.b.path()).is_empty());
    }
}

#[test]
fn without_the_option_nothing_is_copied() {
    let (a, b) = (Scratch::new(), Scratch::new());
    let nodes = [Node::start(a.path(), false), Node::start(b.path(), false)];
    let Some(mount) = mount(&[&nodes[0].url(), &nodes[1].url()], &[]) else { return };
    fs::write(a.path().join("file"), "x").unwrap();
    let (from, to) = (mount.at.join("a/file"), mount.at.join("b/file"));
    assert_eq!(rename(&from, &to, 0), Err(libc::EXDEV));
}

#[test]
fn a_file_seen_through_two_endpoints_is_not_lost() {
    let dir = Scratch::new();
    let nodes = [Node::start(dir.path(), false), Node::start(dir.path(), false)];
    let urls = [&*nodes[0].url(), &*nodes[1].url()];
    let Some(mount) = mount(&urls, &["-o", "copy_across"]) else { return };
    fs::write(dir.path().join("file"), "x").unwrap();
    rename(&mount.at.join("a/file"), &mount.at.join("b/file"), 0).unwrap();
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"x");
    rename(&mount.at.join("a/file"), &mount.at.join("b/other"), 0).unwrap();
    assert_eq!(names(dir.path()), ["other"]);
}

#[test]
fn a_full_disk_leaves_everything_as_it_was() {
    let (a, b) = (Scratch::new(), Scratch::new());
    let Some(_disk) = SmallDisk::mount(b.path()) else {
        return println!("skipped: mounting a tmpfs needs root");
    };
    let nodes = [Node::start(a.path(), false), Node::start(b.path(), false)];
    let urls = [&*nodes[0].url(), &*nodes[1].url()];
    let Some(mount) = mount(&urls, &["-o", "copy_across"]) else { return };
    fs::write(a.path().join("file"), content(5 << 20)).unwrap();
    fs::write(b.path().join("old"), "old").unwrap();
    let (from, to) = (mount.at.join("a/file"), mount.at.join("b/old"));
    assert_eq!(rename(&from, &to, 0), Err(libc::ENOSPC));
    assert_eq!((names(a.path()), names(b.path())), (vec!["file".into()], vec!["old".into()]));
    assert_eq!(fs::read(&to).unwrap(), b"old");
    assert!(fs::read(&from).unwrap() == content(5 << 20));
}

#[test]
fn a_node_that_is_killed_meanwhile_leaves_the_source() {
    let (a, mut b) = (Exported::start(), Exported::start());
    let more = ["-o", "copy_across", "--timeout-ms", "3000"];
    let Some(mount) = mount(&[&a.url(), &b.url()], &more) else { return };
    // Large enough that it is not copied before the node is gone.
    let size = 1 << 30;
    fs::File::create(a.dir().join("file")).unwrap().set_len(size).unwrap();
    fs::create_dir(b.dir().join("elsewhere")).unwrap();
    fs::write(b.dir().join("elsewhere/x"), "x").unwrap();
    assert_eq!(names(&mount.at.join("b/elsewhere")), ["x"]);
    let (from, to) = (mount.at.join("a/file"), mount.at.join("b/file"));
    let renaming = {
        let (from, to) = (from.clone(), to.clone());
        std::thread::spawn(move || rename(&from, &to, 0))
    };
    until("the copy", || {
        let begun = |name: &String| fs::metadata(b.dir().join(name)).is_ok_and(|m| m.len() > 0);
        names(b.dir()).iter().any(begun)
    });
    // What is elsewhere does not wait for the copy.
    assert_eq!(names(&mount.at.join("b/elsewhere")), ["x"]);
    fs::write(mount.at.join("b/elsewhere/y"), "y").unwrap();
    assert!(!renaming.is_finished());
    b.program.kill();
    assert!(renaming.join().unwrap().is_err());
    assert_eq!(fs::metadata(&from).unwrap().len(), size);
    assert!(!names(b.dir()).contains(&"file".into()));
    b.start_again();
    until("the node's return", || fs::metadata(mount.at.join("b")).is_ok());
    fs::File::create(a.dir().join("file")).unwrap().set_len(9).unwrap();
    until("the second try", || rename(&from, &to, 0).is_ok());
    assert_eq!(fs::metadata(b.dir().join("file")).unwrap().len(), 9);
}
