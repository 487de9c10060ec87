//! `get` and `put`, as those expect them who know cp and scp.

use super::{Node, TOKEN, failed, ok, program, run, until};
use crate::conformance::Scratch;
use spiderweb::base::Notify;
use spiderweb::vfs::synthetic::{dir, stream};
use spiderweb::vfs::{Read, Synthetic};
use std::fs::{self, FileTimes, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

/// Bytes that show when pieces are mixed up.
fn content(len: u32) -> Vec<u8> {
    (0..len / 4).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn age(path: &Path, mode: u32) {
    let file = fs::File::open(path).unwrap();
    file.set_permissions(Permissions::from_mode(mode)).unwrap();
    let then = UNIX_EPOCH + Duration::new(981_173_106, 500_000_000);
    file.set_times(FileTimes::new().set_modified(then)).unwrap();
}

fn kept(path: &Path) -> (u32, i64, i64) {
    let meta = fs::metadata(path).unwrap();
    (meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec())
}

const AGED: (u32, i64, i64) = (0o640, 981_173_106, 500_000_000);

#[test]
fn files_go_there_and_back_with_their_modes_and_times() {
    let (there, here) = (Scratch::new(), Scratch::new());
    let node = Node::start(there.path(), false);
    let endpoint = format!("a={}", node.url());
    let fs = |args: &[&str]| {
        let all = [&["--endpoint", &*endpoint], args].concat();
        program(&all).current_dir(here.path()).output().unwrap()
    };
    for len in [0, 4, 1 << 20, (9 << 20) + 4] {
        let (a, data) = (here.path().join("a"), content(len));
        fs::write(&a, &data).unwrap();
        age(&a, 0o640);
        assert_eq!(ok(fs(&["put", "a", "/a/b"])), "ok\n");
        assert!(fs::read(there.path().join("b")).unwrap() == data, "{len}");
        assert_eq!(kept(&there.path().join("b")), AGED);
        fs::remove_file(&a).unwrap();
        assert_eq!(ok(fs(&["get", "/a/b", "c"])), "");
        assert!(fs::read(here.path().join("c")).unwrap() == data, "{len}");
        assert_eq!(kept(&here.path().join("c")), AGED);
    }
    // Into a directory, under the old name; over what is there.
    fs::create_dir(here.path().join("d")).unwrap();
    fs::write(here.path().join("d/b"), "old").unwrap();
    ok(fs(&["get", "/a/b", "d"]));
    assert_eq!(kept(&here.path().join("d/b")), AGED);
    ok(fs(&["get", "/a/b"]));
    fs::write(here.path().join("small"), "new").unwrap();
    ok(fs(&["put", "small", "/a/b"]));
    assert_eq!(fs::read_to_string(there.path().join("b")).unwrap(), "new", "cut to its size");
    ok(fs(&["put", "small", "/a"]));
    assert_eq!(ok(fs(&["get", "/a/small", "-"])), "new");
    // A link is followed to what is replaced; a device stays what it is.
    symlink("d/b", here.path().join("l")).unwrap();
    ok(fs(&["get", "/a/b", "l"]));
    assert_eq!(fs::read_to_string(here.path().join("d/b")).unwrap(), "new");
    assert!(here.path().join("l").is_symlink());
    ok(fs(&["get", "/a/b", "/dev/null"]));
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    let names: Vec<_> =
        fs::read_dir(here.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|n| !n.to_string_lossy().starts_with('.')), "left over: {names:?}");
}

#[test]
fn standard_input_and_output_stream() {
    let there = Scratch::new();
    let node = Node::start(there.path(), false);
    let endpoint = format!("a={}", node.url());
    let data = content(6 << 20);
    let mut child = program(&["--endpoint", &endpoint, "put", "-", "/a/big"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&data).unwrap();
    ok(child.wait_with_output().unwrap());
    assert!(fs::read(there.path().join("big")).unwrap() == data);
    let got = run(&["--endpoint", &endpoint, "get", "/a/big", "-"]);
    assert!(got.status.success() && got.stdout == data);
    // A reader that goes away is no error.
    let script = "set -o pipefail; \"$BIN\" --endpoint \"$A\" get /a/big - | head -c 5 | wc -c";
    let mut bash = Command::new("timeout");
    bash.args(["60", "bash", "-c", script]).env("BIN", env!("CARGO_BIN_EXE_spiderweb-fs-mount"));
    bash.env("A", &endpoint).env("SPIDERWEB_FS_TOKEN", TOKEN);
    assert_eq!(ok(bash.output().unwrap()).trim(), "5");
}

#[test]
fn directories_are_copied_with_all_that_is_in_them() {
    let (there, here) = (Scratch::new(), Scratch::new());
    let node = Node::start(there.path(), false);
    let endpoint = format!("a={}", node.url());
    let fs = |args: &[&str]| {
        let all = [&["--endpoint", &*endpoint], args].concat();
        program(&all).current_dir(here.path()).output().unwrap()
    };
    let src = here.path().join("src");
    fs::create_dir_all(src.join("deep/er")).unwrap();
    fs::write(src.join("deep/er/x"), "x").unwrap();
    fs::write(src.join("empty"), "").unwrap();
    symlink("deep/er/x", src.join("link")).unwrap();
    symlink("/nowhere", src.join("dangling")).unwrap();
    age(&src.join("deep/er/x"), 0o640);
    age(&src.join("deep"), 0o750);
    assert_eq!(ok(fs(&["put", "-r", "src", "/a/copy"])), "ok\n");
    assert_eq!(kept(&there.path().join("copy/deep/er/x")), AGED);
    assert_eq!(kept(&there.path().join("copy/deep")), (0o750, AGED.1, AGED.2));
    let link = |path: &Path| fs::read_link(path).unwrap();
    assert_eq!(link(&there.path().join("copy/link")), Path::new("deep/er/x"));
    // Again: into what is there now, and over itself.
    ok(fs(&["put", "--recursive", "src", "/a/copy"]));
    assert!(there.path().join("copy/src/deep/er/x").exists());
    ok(fs(&["put", "-r", "src", "/a/copy"]));
    ok(fs(&["get", "-r", "/a/copy", "back"]));
    assert_eq!(kept(&here.path().join("back/deep/er/x")), AGED);
    assert_eq!(kept(&here.path().join("back/deep")), (0o750, AGED.1, AGED.2));
    assert_eq!(link(&here.path().join("back/dangling")), Path::new("/nowhere"));
    ok(fs(&["get", "-r", "/a/copy", "back"]));
    assert!(here.path().join("back/copy/empty").exists());
}

#[test]
fn what_cannot_be_copied_is_refused_or_told_of() {
    let (there, here) = (Scratch::new(), Scratch::new());
    fs::create_dir_all(there.path().join("dir/sub")).unwrap();
    fs::write(there.path().join("dir/sub/evil"), "through a link").unwrap();
    fs::write(there.path().join("dir/fine"), "fine").unwrap();
    fs::write(there.path().join("f"), "f").unwrap();
    nix::unistd::mkfifo(&there.path().join("dir/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let node = Node::start(there.path(), false);
    let endpoint = format!("a={}", node.url());
    let fs = |args: &[&str]| {
        let all = [&["--endpoint", &*endpoint], args].concat();
        program(&all).current_dir(here.path()).output().unwrap()
    };
    fs::create_dir_all(here.path().join("out/f")).unwrap();
    fs::create_dir(here.path().join("elsewhere")).unwrap();
    fs::write(here.path().join("plain"), "p").unwrap();
    for (args, status, words) in [
        (&["get", "/a/dir"][..], 65, "--recursive"),
        (&["put", "out", "/a"], 65, "--recursive"),
        (&["get", "/a/f", "out"], 65, "is a directory"),
        (&["put", "plain", "/a/dir/sub/../x"], 65, "invalid child name"),
        (&["get", "/a/nope", "x"], 66, "/a/nope"),
        (&["put", "nope", "/a/x"], 66, "nope"),
        (&["get", "-r", "/a/dir", "plain"], 65, "not a directory"),
        (&["get", "/", "-r"], 64, "[local] is missing"),
        (&["get", "/a/f", "no/such/dir"], 66, "no/such/dir"),
        (&["get", "/a/dir", "-"], 65, "irectory"),
        (&["put", "plain"], 64, "<remote> is missing"),
        (&["put"], 64, "<local> is missing"),
        (&["cat", "-r", "/a/f"], 64, "--recursive is for get and put"),
        (&["get", "/a/f", "x", "y"], 64, "unexpected argument"),
    ] {
        let (code, errors) = failed(fs(args));
        assert_eq!(code, status, "{args:?}: {errors}");
        assert!(errors.contains(words), "{args:?}: {errors}");
    }
    // Nothing is written through a link below the directory; the rest is copied all the same.
    fs::create_dir(here.path().join("got")).unwrap();
    symlink("../elsewhere", here.path().join("got/sub")).unwrap();
    fs::create_dir(here.path().join("dir")).unwrap();
    fs::rename(here.path().join("got"), here.path().join("dir/dir")).unwrap();
    let (code, errors) = failed(fs(&["get", "-r", "/a/dir", "dir"]));
    assert!(code == 74 && errors.contains("2 files were not copied"), "{errors}");
    assert!(errors.contains("fifo is neither") && errors.contains("sub is not a dir"), "{errors}");
    assert!(!here.path().join("elsewhere/evil").exists());
    assert_eq!(fs::read_to_string(here.path().join("dir/dir/fine")).unwrap(), "fine");
}

#[test]
fn an_interrupted_copy_leaves_nothing_behind() {
    let here = Scratch::new();
    fs::write(here.path().join("f"), "old").unwrap();
    let never = Notify::default();
    let next = stream(move |_, turn| {
        let until = turn.until(Duration::from_secs(600));
        Ok(Read::Wait(never.wait(never.seen(), until)))
    });
    let tree = Arc::new(Synthetic::new(dir([("next", next)])).unwrap());
    let node = Node::serve(tree, false, "127.0.0.1:0".parse().unwrap());
    let mut child = Command::new(env!("CARGO_BIN_EXE_spiderweb-fs-mount"))
        .args(["--endpoint", &format!("a={}", node.url()), "get", "/a/next", "f"])
        .current_dir(here.path())
        .env("SPIDERWEB_FS_TOKEN", TOKEN)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let names = || fs::read_dir(here.path()).unwrap().count();
    until("a part of the file", || names() == 2);
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    until("the end", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(75));
    assert_eq!((names(), &*fs::read_to_string(here.path().join("f")).unwrap()), (1, "old"));
}

#[test]
fn a_terminal_is_told_how_far_a_copy_is() {
    let there = Scratch::new();
    fs::write(there.path().join("f"), content(4 << 20)).unwrap();
    let node = Node::start(there.path(), false);
    let endpoint = format!("a={}", node.url());
    // script(1) makes a terminal; without it there is none to be told.
    let Ok(probe) = Command::new("script").arg("--version").output() else {
        println!("skipped: this host has no script(1)");
        return;
    };
    assert!(probe.status.success());
    let inner = format!("'{}' --endpoint '{endpoint}' ", env!("CARGO_BIN_EXE_spiderweb-fs-mount"));
    let terminal = |rest: &str, no_color: &str| {
        let mut script = Command::new("timeout");
        script.args(["60", "script", "-qec", &format!("{inner}{rest}"), "/dev/null"]);
        script.env("SPIDERWEB_FS_TOKEN", TOKEN).env("NO_COLOR", no_color).stdin(Stdio::null());
        ok(script.output().unwrap())
    };
    let listed = terminal("readdir /a", "1");
    assert!(listed.contains("-rw-r--r--") && !listed.contains('\x1b'), "{listed}");
    assert!(terminal("readdir /", "").contains("\x1b[1;34ma"));
    assert!(terminal("readdir --json /a", "").starts_with(r#"{"ents":"#));
    assert!(terminal("status", "").contains("\x1b[32mup"));
    let (code, errors) = failed(run(&["--json", "--table", "readdir", "/"]));
    assert!(code == 64 && errors.contains("either --json or --table"), "{errors}");
    let table = ok(run(&["--endpoint", &endpoint, "--table", "getattr", "/a/f"]));
    assert!(table.contains("Size      4194304") && !table.contains('\x1b'), "{table}");
}
