//! Mounts that run unattended: in the background, from fstab, asked how they are.

use super::{Mount, Node, TOKEN, failed, ok, program, run, until};
use crate::conformance::Scratch;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A mount in the background; ended with the value.
struct Daemon {
    at: PathBuf,
    pid: Pid,
}

impl Daemon {
    /// After a start that must have succeeded.
    fn at(at: &Path, started: Output) -> Daemon {
        ok(started);
        let status = status(at);
        let pid = Pid::from_raw(status["pid"].as_i64().unwrap() as i32);
        Daemon { at: at.to_owned(), pid }
    }

    fn end(&self, signal: Signal) {
        kill(self.pid, signal).unwrap();
        until("the end of the process", || kill(self.pid, None).is_err());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let unmount = ["20", "fusermount3", "-u", "-z", "-q", "--"];
        let _ = Command::new("timeout").args(unmount).arg(&self.at).stderr(Stdio::null()).status();
    }
}

fn status(at: &Path) -> Value {
    serde_json::from_str(&ok(run(&["status", at.to_str().unwrap()]))).unwrap()
}

fn is_mounted(at: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
    table.contains(&format!(" {} ", at.display()))
}

fn has_fuse() -> bool {
    let there = Path::new("/dev/fuse").exists();
    if !there {
        println!("skipped: this host has no /dev/fuse");
    }
    there
}

/// The program under the name that mount(8) calls it by.
fn helper(scratch: &Scratch, args: &[&str]) -> Command {
    let name = scratch.path().join("mount.spiderweb");
    let _ = std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_spiderweb-fs-mount"), &name);
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60"]).arg(name).args(args);
    command
        .env_clear()
        .env("SPIDERWEB_FS_TOKEN", TOKEN)
        .env("PATH", std::env::var("PATH").unwrap());
    command.stdin(Stdio::null());
    command
}

#[test]
fn a_mount_in_the_background_works_when_its_start_returns() {
    if !has_fuse() {
        return;
    }
    let (scratch, dir) = (Scratch::new(), Scratch::new());
    std::fs::write(dir.path().join("f"), "there").unwrap();
    let node = Node::start(dir.path(), false);
    let endpoint = format!("a={}@/", node.url());
    // Missing: it is made, and goes with the mount.
    let (at, log) = (scratch.path().join("mnt"), scratch.path().join("log"));
    let args = ["--endpoint", &endpoint, "mount", "--daemon", "--log-file", "log", "mnt"];
    let daemon = Daemon::at(&at, program(&args).current_dir(scratch.path()).output().unwrap());
    assert_eq!(std::fs::read_to_string(at.join("f")).unwrap(), "there");
    std::fs::write(at.join("g"), "written").unwrap();
    let said = || std::fs::read_to_string(&log).unwrap();
    until("the log", || said().contains("mounted on"));
    assert_eq!(std::fs::metadata(&log).unwrap().mode() & 0o777, 0o600);
    // A log that was moved away is made anew.
    std::fs::rename(&log, scratch.path().join("log.1")).unwrap();
    kill(daemon.pid, Signal::SIGHUP).unwrap();
    until("a new log", || log.exists());
    daemon.end(Signal::SIGTERM);
    assert!(!is_mounted(&at) && !at.exists() && said().contains("unmounted"));
    assert_eq!(std::fs::read_to_string(dir.path().join("g")).unwrap(), "written");
    let (code, errors) = failed(run(&["status", at.to_str().unwrap()]));
    assert!(code == 66 && errors.contains("no spiderweb-fs-mount of this user runs"), "{errors}");
}

#[test]
fn a_mount_that_cannot_be_made_says_so_and_leaves_nothing() {
    if !has_fuse() {
        return;
    }
    let scratch = Scratch::new();
    let at = scratch.path().join("mnt");
    let at_text = at.to_str().unwrap();
    let (code, errors) =
        failed(run(&["--endpoint", "a=ws://127.0.0.1:9/v2/fs@/", "mount", "--daemon", at_text]));
    assert!(
        code == 69 && errors.contains("a (ws://127.0.0.1:9/v2/fs) cannot be reached"),
        "{errors}"
    );
    assert_eq!(errors.matches("spiderweb-fs-mount:").count(), 1, "said once: {errors}");
    assert!(!is_mounted(&at) && !at.exists());
    for (args, part) in [
        (&["--daemon", "readdir", "/"][..], "--daemon is for mount"),
        (&["--log-file", "/nonexistent/x", "mount", at_text], "log file /nonexistent/x"),
        (&["-o", "bogus", "mount", at_text], "unknown option \"bogus\""),
        (&["-o", "uid=nobody-here", "mount", at_text], "knows no \"nobody-here\""),
        (&["mount"], "<mountpoint> is missing"),
        (&["status", "/", "--mount", "/"], "either [mountpoint] or --mount"),
    ] {
        let (_, errors) = failed(run(args));
        assert!(errors.contains(part), "{args:?}: {errors}");
    }
    assert!(!at.exists());
}

#[test]
fn fstab_mounts_an_export() {
    if !has_fuse() {
        return;
    }
    let (scratch, dir) = (Scratch::new(), Scratch::new());
    std::fs::write(dir.path().join("f"), "there").unwrap();
    std::fs::set_permissions(dir.path().join("f"), PermissionsExt::from_mode(0o777)).unwrap();
    let node = Node::start(dir.path(), false);
    let source = format!("{}#work", node.url());
    let at = scratch.path().join("mnt");
    std::fs::create_dir(&at).unwrap();
    let at_text = at.to_str().unwrap();
    let token = scratch.path().join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let options = format!(
        "rw,_netdev,nofail,x-systemd.automount,noexec,allow_other,uid=4711,gid=7,fmask=133,\
         endpoint_token_file=source={},cache_size=8M,attr_timeout=2.5",
        token.display()
    );
    let args = [&*source, at_text, "-o", &options];
    assert!(helper(&scratch, &[&args[..], &["-f"]].concat()).status().unwrap().success());
    assert!(!is_mounted(&at), "-f does nothing");
    let started = helper(&scratch, &args).env_remove("SPIDERWEB_FS_TOKEN").output().unwrap();
    assert!(started.stderr.is_empty(), "{}", String::from_utf8_lossy(&started.stderr));
    let daemon = Daemon::at(&at, started);
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().find(|line| line.contains(at_text)).unwrap();
    assert!(line.starts_with(&format!("{} ", source.replace('#', "\\043"))), "{line}");
    for option in ["fuse.spiderweb", "noexec", "nosuid", "nodev", "allow_other"] {
        assert!(line.contains(option), "{option} in {line}");
    }
    let meta = std::fs::metadata(at.join("f")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (4711, 7, 0o644));
    let dir_mode = std::fs::metadata(&at).unwrap().mode() & 0o777;
    assert_eq!(
        dir_mode,
        std::fs::metadata(dir.path()).unwrap().mode() & 0o777,
        "fmask is for files"
    );
    // The owner that is shown may be given again, another not.
    std::os::unix::fs::chown(at.join("f"), Some(4711), Some(7)).unwrap();
    let other = std::os::unix::fs::chown(at.join("f"), Some(1), None).unwrap_err();
    assert_eq!(other.raw_os_error(), Some(libc::EPERM));
    assert_eq!(std::fs::metadata(dir.path().join("f")).unwrap().uid(), 0);
    let options = &status(&at)["options"];
    assert_eq!((&options["cache_size"], &options["uid"]), (&(8 << 20).into(), &4711.into()));
    assert_eq!((&options["fmask"], &options["attr_timeout_ms"]), (&"133".into(), &2500.into()));
    // umount(8) ends it.
    let unmounted = Command::new("timeout").args(["20", "umount", at_text]).status().unwrap();
    assert!(unmounted.success());
    until("the end of the process", || kill(daemon.pid, None).is_err());
}

#[test]
fn a_helper_that_is_called_wrongly_answers_as_mount_expects() {
    let scratch = Scratch::new();
    for (args, status, part) in [
        (&[][..], 1, "<source> is missing"),
        (&["ws://h/v2/fs"], 1, "<directory> is missing"),
        (
            &["http://h/v2/fs", "/mnt"],
            1,
            "the source: URL \"http://h/v2/fs\": the scheme is neither",
        ),
        (&["none", "/mnt"], 1, "needs -o endpoint"),
        (&["ws://h/v2/fs", "/mnt", "-o", "bogus"], 1, "unknown option"),
        (&["ws://h/v2/fs", "/mnt", "-z"], 1, "unknown flag -z"),
        (&["-fs", "ws://h/v2/fs", "/mnt", "-o", "timeout_ms=0"], 1, "must not be 0"),
    ] {
        let (code, errors) = failed(helper(&scratch, args).output().unwrap());
        assert_eq!(code, status, "{args:?}: {errors}");
        assert!(errors.starts_with("mount.spiderweb: ") && errors.contains(part), "{errors}");
    }
    let fine = ["-sfnv", "ws://h/v2/fs", "/mnt", "-o", "bogus,ro"];
    assert!(helper(&scratch, &fine).status().unwrap().success(), "sloppy");
    if has_fuse() {
        let at = scratch.path().join("mnt");
        let args = ["ws://127.0.0.1:9/v2/fs", at.to_str().unwrap()];
        let (code, errors) = failed(helper(&scratch, &args).output().unwrap());
        assert!(code == 32 && errors.contains("refused"), "{code} {errors}");
    }
    assert!(ok(helper(&scratch, &["--help"]).output().unwrap()).contains("mount -t spiderweb"));
}

#[test]
fn a_running_mount_tells_how_it_stands_and_what_was_lost() {
    let (first, second) = (Scratch::new(), Scratch::new());
    std::fs::write(first.path().join("x"), "x").unwrap();
    std::fs::write(second.path().join("x"), "x").unwrap();
    let tree = || {
        let options = spiderweb::vfs::LocalOptions::default();
        std::sync::Arc::new(spiderweb::vfs::Local::open(first.path(), options).unwrap())
    };
    let node = Node::serve(tree(), false, "127.0.0.1:0".parse().unwrap());
    let addr = node.listener.addr();
    let other = Node::start(second.path(), false);
    let (a, b) = (format!("a={}@/m", node.url()), format!("b={}@/m", other.url()));
    let Some(mount) = Mount::start(&["--endpoint", &a, "--endpoint", &b]) else { return };
    ok(mount.shell("cat m/x", first.path()));
    let held = std::fs::File::open(mount.at.join("m/x")).unwrap();
    let s = status(&mount.at);
    assert_eq!(s["mount_point"], mount.at.to_str().unwrap());
    assert_eq!(s["pid"].as_u64().unwrap(), u64::from(mount.child.id()));
    assert_eq!(s["open_files"], 1);
    assert_eq!(
        s["mounts"][0],
        serde_json::json!({"path": "/m", "active": "a", "members": ["a", "b"], "failovers": 0})
    );
    assert_eq!(
        (&s["endpoints"][0]["healthy"], &s["endpoints"][1]["healthy"]),
        (&true.into(), &true.into())
    );
    let times = |s: &Value| {
        let of = |name: &str| s["endpoints"][0][name].as_i64().unwrap();
        (of("last_success_ms"), of("last_failure_ms"))
    };
    let before = times(&s);
    assert!(before.0 > 0 && before.1 == 0, "{before:?}");
    drop(held);

    drop(node);
    until("the loss to be told", || mount.messages().contains("/m: a (ws://"));
    assert_eq!(mount.messages().matches("is lost").count(), 1, "{}", mount.messages());
    until("the other to take over", || mount.shell("cat m/x", first.path()).status.success());
    let s = status(&mount.at);
    assert_eq!((&s["mounts"][0]["active"], &s["mounts"][0]["failovers"]), (&"b".into(), &1.into()));
    let after = times(&s);
    assert!(after.1 > 0 && after.1 >= after.0 && after.0 >= before.0, "{before:?} {after:?}");
    assert!(s["endpoints"][0]["last_error"].is_string());
    // Times are those of what happened, not of the question.
    let cold: Value =
        serde_json::from_str(&ok(run(&["status", "--no-probe", mount.at.to_str().unwrap()])))
            .unwrap();
    let again = serde_json::from_str(&ok(run(&[
        "status",
        "--no-probe",
        "--mount",
        mount.at.to_str().unwrap(),
    ])));
    assert_eq!(times(&cold), times(&again.unwrap()));

    let _back = Node::serve(tree(), false, addr);
    until("it to be back", || {
        status(&mount.at);
        mount.messages().contains("is back")
    });
    let table = ok(run(&["status", "--table", mount.at.to_str().unwrap()]));
    assert!(table.contains("up     a") && table.contains("Open files 0"), "{table}");
}

#[test]
fn the_status_socket_is_for_its_user_and_takes_no_nonsense() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    let dir = Scratch::new();
    let node = Node::start(dir.path(), false);
    let endpoint = format!("a={}@/", node.url());
    let Some(mut mount) = Mount::start(&["--endpoint", &endpoint]) else { return };
    let open = std::fs::read_dir(format!("/proc/{}/fd", mount.child.id())).unwrap();
    assert!(open.count() > 0);
    let table = std::fs::read_to_string(format!("/proc/{}/net/unix", mount.child.id())).unwrap();
    let sockets: Vec<_> =
        table.lines().filter_map(|l| l.split_whitespace().nth(7)).map(Path::new).collect();
    let dir_of = |p: &&&Path| p.parent().is_some_and(|d| d.ends_with("spiderweb"));
    // Its name when it was bound, before it was put in its place.
    let bound = sockets.iter().find(|p| dir_of(p) && p.ends_with(format!(".{}", mount.child.id())));
    let home = bound.unwrap().parent().unwrap();
    let ours = |p: &PathBuf| {
        let Ok(mut s) = UnixStream::connect(p) else { return false };
        s.write_all(b"{\"op\":\"status\"}\n").unwrap();
        let mut reply = String::new();
        s.read_to_string(&mut reply).is_ok() && reply.contains(mount.at.to_str().unwrap())
    };
    let all = std::fs::read_dir(home).unwrap().filter_map(|e| Some(e.ok()?.path()));
    let socket = all.into_iter().find(ours).expect("a socket in its place");
    assert_eq!(std::fs::symlink_metadata(&socket).unwrap().mode() & 0o777, 0o600);
    for (question, part) in [
        (&b"{\"op\":\"explode\"}\n"[..], "unsupported"),
        (b"nonsense\n", "JSON object"),
        (&[b'x'; 10_000], "longer than 4096"),
    ] {
        let mut s = UnixStream::connect(&socket).unwrap();
        // It may stop listening before all was said.
        let _ = s.write_all(question);
        let mut reply = String::new();
        let _ = s.read_to_string(&mut reply);
        assert!(reply.contains(part), "{reply}");
    }
    // One who connects and says nothing does not keep the others from asking.
    let _silent = UnixStream::connect(&socket).unwrap();
    assert_eq!(status(&mount.at)["endpoints"][0]["healthy"], true);
    // What a killed mount leaves is replaced by the next.
    mount.signal(Signal::SIGKILL);
    mount.child.wait().unwrap();
    assert!(socket.exists());
    let at = mount.at.clone();
    let Some(mut next) = Mount::start_at(&["--endpoint", &endpoint], at, Scratch::new()) else {
        return;
    };
    assert_eq!(status(&next.at)["pid"].as_u64().unwrap(), u64::from(next.child.id()));
    next.signal(Signal::SIGINT);
    assert!(next.child.wait().unwrap().success());
    assert!(!socket.exists(), "taken away at the end");
}
