//! Real mounts, used with the tools that people use.

use super::{Mount, Node, failed, ok, run, until};
use crate::conformance::Scratch;
use nix::sys::signal::Signal;
use spiderweb::base::{Cancel, Deadline, Notify};
use spiderweb::mount::options::{Options, View};
use spiderweb::mount::{fuse, point};
use spiderweb::vfs::synthetic::{Reply, dir, message, stream, text};
use spiderweb::vfs::{Read, Synthetic, Tree};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[test]
fn ordinary_tools_work_on_a_mount() {
    let scratch = Scratch::new();
    let node = Node::start(scratch.path(), false);
    let endpoint = format!("a={}@/", node.url());
    let Some(mount) = Mount::start(&["--endpoint", &endpoint]) else { return };
    let sh = |script: &str| ok(mount.shell(script, scratch.path()));

    sh(
        "echo hello > a.txt; cat a.txt | grep -qx hello; echo more >> a.txt; test $(wc -l < a.txt) = 2",
    );
    assert_eq!(std::fs::read_to_string(scratch.path().join("a.txt")).unwrap(), "hello\nmore\n");
    sh("cp a.txt b.txt; cmp a.txt b.txt; mv b.txt c.txt; test ! -e b.txt; ls -l c.txt");
    sh(
        "mkdir -p d/e; mv c.txt d/e/; test -f d/e/c.txt; ls -laR . | grep -q c.txt; rm -r d; test ! -e d",
    );
    sh(
        "ln -s a.txt l; test \"$(readlink l)\" = a.txt; cmp l a.txt; ln a.txt h; test $(stat -c %h a.txt) = 2; rm h",
    );
    sh("touch -d '2001-02-03 04:05:06.5 UTC' a.txt; test $(stat -c %Y a.txt) = 981173106");
    sh(
        "chmod 640 a.txt; test $(stat -c %a a.txt) = 640; truncate -s 3 a.txt; test $(stat -c %s a.txt) = 3",
    );
    sh("mkdir full; : > full/x; ! rmdir full 2> \"$DIR\"/err; grep -qi 'not empty' \"$DIR\"/err");
    sh("df . | grep -q '[1-9]'; test $(stat -f -c %b .) -gt 0");
    sh("flock a.txt true; flock -n a.txt true");
    sh("for n in $(seq 300); do : > full/$n; done; test $(ls full | wc -l) = 301");
}

#[test]
fn a_program_that_runs_is_not_truncated() {
    let scratch = Scratch::new();
    let node = Node::start(scratch.path(), false);
    let endpoint = format!("a={}@/", node.url());
    let Some(mount) = Mount::start(&["--endpoint", &endpoint]) else { return };
    // An open for writing the kernel refuses before it asks; one for reading that truncates it does not.
    let truncate = "perl -MFcntl -e 'sysopen(F, \"program\", O_RDONLY|O_TRUNC) or die \"$!\\n\"'";
    let script = format!(
        "cp $(command -v sleep) program; size=$(stat -c %s program); ./program 60 & pid=$!
        until [ \"$(readlink /proc/$pid/exe)\" = \"$PWD/program\" ]; do sleep 0.01; done
        {truncate} 2> \"$DIR\"/err && exit 1; grep -q 'Text file busy' \"$DIR\"/err || exit 2
        test $(stat -c %s \"$DIR\"/program) = $size || exit 3
        kill $pid; wait $pid || :; {truncate}; test ! -s \"$DIR\"/program"
    );
    ok(mount.shell(&script, scratch.path()));
}

#[test]
fn a_repository_is_cloned_and_changed_in_a_mount() {
    let scratch = Scratch::new();
    let source = Scratch::new();
    let node = Node::start(scratch.path(), false);
    let endpoint = format!("a={}", node.url());
    let Some(mount) = Mount::start(&["--endpoint", &endpoint]) else { return };
    let git = "git() { command git -c user.name=n -c user.email=e@x -c init.defaultBranch=main \
               -c safe.directory='*' \"$@\"; }; export HOME=\"$DIR\"; ";
    let script = "git init -q \"$DIR\"/repo; cd \"$DIR\"/repo; mkdir s; seq 9999 > s/n; ln -s n s/l;
        git add .; git commit -qm one; cd \"$MNT\"/a; git clone -q --no-hardlinks \"$DIR\"/repo r; cd r;
        test -z \"$(git status --porcelain)\"; echo x >> s/n; git commit -qam two; git fsck --strict;
        git gc -q; git log --oneline | wc -l";
    let out = ok(mount.shell(&format!("{git}{script}"), source.path()));
    assert_eq!(out.trim(), "2");
    assert!(scratch.path().join("r/.git/HEAD").exists());
}

#[test]
fn a_file_has_the_same_number_in_every_mount() {
    let scratch = Scratch::new();
    let node = Node::start(scratch.path(), false);
    let endpoint = format!("a={}@/", node.url());
    let Some(one) = Mount::start(&["--endpoint", &endpoint]) else { return };
    let number = |mount: &Mount| ok(mount.shell("stat -c '%n %i' b c/d", scratch.path()));
    ok(one.shell("echo > a; echo > b; mkdir c; echo > c/d; ls -l", scratch.path()));
    let told = number(&one);
    drop(one);
    let other = Mount::start(&["--endpoint", &endpoint]).unwrap();
    assert_eq!(number(&other), told);
}

#[test]
fn changes_made_at_the_node_are_seen() {
    let scratch = Scratch::new();
    let file = scratch.path().join("f");
    std::fs::write(&file, "one").unwrap();
    let node = Node::start(scratch.path(), false);
    let endpoint = format!("a={}@/", node.url());
    let Some(mount) = Mount::start(&["--endpoint", &endpoint]) else { return };
    let read = || ok(mount.shell("cat f", scratch.path()));
    assert_eq!(read(), "one");
    std::fs::write(&file, "two and longer").unwrap();
    until("the new content", || read() == "two and longer");
    std::fs::remove_file(&file).unwrap();
    until("the removal", || !mount.shell("cat f", scratch.path()).status.success());
}

#[test]
fn a_read_only_export_and_a_read_only_mount_refuse_changes() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path().join("f"), "x").unwrap();
    let node = Node::start(scratch.path(), true);
    let endpoint = format!("a={}@/", node.url());
    for flags in [&["--endpoint", &*endpoint][..], &["--endpoint", &endpoint, "--read-only"]] {
        let Some(mount) = Mount::start(flags) else { return };
        assert_eq!(ok(mount.shell("cat f", scratch.path())), "x");
        for change in ["echo y > f", ": > g", "mkdir d", "rm f", "touch f", "mv f g"] {
            let (_, errors) = failed(mount.shell(change, scratch.path()));
            assert!(errors.contains("ead-only file system"), "{change}: {errors}");
        }
    }
}

#[test]
fn another_node_takes_over_when_one_is_lost() {
    let (first, second) = (Scratch::new(), Scratch::new());
    for dir in [&first, &second] {
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/x"), "same").unwrap();
    }
    std::fs::write(first.path().join("who"), "first").unwrap();
    std::fs::write(second.path().join("who"), "second").unwrap();
    let (node, other) = (Node::start(first.path(), false), Node::start(second.path(), false));
    let (a, b) = (format!("a={}@/m", node.url()), format!("b={}@/m", other.url()));
    let Some(mount) = Mount::start(&["--endpoint", &a, "--endpoint", &b]) else { return };
    let sh = |script: &str| mount.shell(script, first.path());
    assert_eq!(ok(sh("cat m/who m/d/x")), "firstsame");
    drop(node);
    until("the second to answer", || sh("cat m/who").stdout == b"second");
    assert_eq!(ok(sh("cat m/d/x; echo new > m/d/y; ls m/d")), "samex\ny\n");
    assert!(second.path().join("d/y").exists());
    assert!(mount.messages().contains("takes over"));
}

#[test]
fn a_signal_unmounts_and_ends_well() {
    let scratch = Scratch::new();
    let node = Node::start(scratch.path(), false);
    let endpoint = format!("a={}@/", node.url());
    let Some(mut mount) = Mount::start(&["--endpoint", &endpoint]) else { return };
    ok(mount.shell("echo last > f", scratch.path()));
    mount.signal(Signal::SIGTERM);
    assert!(mount.child.wait().unwrap().success());
    assert!(!mount.is_mounted());
    assert_eq!(std::fs::read_to_string(scratch.path().join("f")).unwrap(), "last\n");

    // Unmounted by somebody else.
    let Some(mut mount) = Mount::start(&["--endpoint", &endpoint]) else { return };
    let args = ["20", "fusermount3", "-u", "--"];
    let unmounted = Command::new("timeout").args(args).arg(&mount.at).status();
    assert!(unmounted.unwrap().success());
    assert!(mount.child.wait().unwrap().success());
}

#[test]
fn a_mount_that_was_killed_makes_room_for_the_next() {
    let scratch = Scratch::new();
    let node = Node::start(scratch.path(), false);
    let endpoint = format!("a={}@/", node.url());
    let Some(mut mount) = Mount::start(&["--endpoint", &endpoint]) else { return };
    mount.signal(Signal::SIGKILL);
    mount.child.wait().unwrap();
    assert!(mount.is_mounted(), "the kernel keeps the dead mount");
    let Some(next) = Mount::start_at(&["--endpoint", &endpoint], mount.at.clone(), Scratch::new())
    else {
        return;
    };
    ok(next.shell("echo alive > f; cat f", scratch.path()));
    assert!(next.messages().contains("killed process left behind"));
}

#[test]
fn a_mount_point_that_will_not_do_is_explained() {
    let scratch = Scratch::new();
    let node = Node::start(scratch.path(), false);
    let endpoint = format!("a={}@/", node.url());
    let mount = |at: &Path| failed(run(&["--endpoint", &endpoint, "mount", at.to_str().unwrap()]));
    if !Path::new("/dev/fuse").exists() {
        println!("skipped: this host has no /dev/fuse");
        return;
    }
    let missing = scratch.path().join("missing/deep");
    let (code, errors) = mount(&missing);
    assert!(code == 64 && errors.contains(&format!("mkdir -p {}", missing.display())), "{errors}");
    std::fs::write(scratch.path().join("f"), "").unwrap();
    assert!(mount(&scratch.path().join("f")).1.contains("is not a directory"));
    assert!(mount(scratch.path()).1.contains("is not empty"));
    let Some(mounted) = Mount::start(&["--endpoint", &endpoint]) else { return };
    assert!(mount(&mounted.at).1.contains("is mounted already"));
}

/// A tree of files that are functions: `input` collects messages, `next` waits for one.
fn functions() -> (Arc<dyn Tree>, Arc<Mailbox>) {
    let mailbox = Arc::new(Mailbox::default());
    let (taken, waited, answered) = (mailbox.clone(), mailbox.clone(), mailbox.clone());
    let input = message(
        |_| false,
        move |_, m| {
            taken.messages.lock().unwrap().push(String::from_utf8(m.to_vec()).unwrap());
            taken.news.notify();
            Ok(Reply { extra: None, body: format!("took {}", m.len()).into() })
        },
    );
    let next = stream(move |_, turn| {
        waited.readers.fetch_add(1, Ordering::SeqCst);
        let (seen, until) = (waited.news.seen(), turn.until(Duration::from_secs(600)));
        match waited.messages.lock().unwrap().first() {
            Some(m) => Ok(Read::Data { bytes: m.clone().into(), eof: true }),
            None => Ok(Read::Wait(waited.news.wait(seen, until))),
        }
    });
    let count = text(move |_| Ok(format!("{}\n", answered.messages.lock().unwrap().len())));
    let tree = Synthetic::new(dir([("input", input), ("next", next), ("count", count)])).unwrap();
    (Arc::new(tree), mailbox)
}

#[derive(Default)]
struct Mailbox {
    messages: Mutex<Vec<String>>,
    news: Notify,
    readers: AtomicUsize,
}

#[test]
fn a_message_is_taken_by_the_shell_that_wrote_it() {
    let scratch = Scratch::new();
    let (tree, mailbox) = functions();
    let node = Node::serve(tree, false, "127.0.0.1:0".parse().unwrap());
    let endpoint = format!("a={}@/", node.url());
    let Some(mount) = Mount::start(&["--endpoint", &endpoint]) else { return };
    let sh = |script: &str| ok(mount.shell(script, scratch.path()));
    sh("echo hello > input");
    assert_eq!(*mailbox.messages.lock().unwrap(), ["hello\n"]);
    assert_eq!(sh("cat count"), "1\n");
    sh("printf two | tee input > \"$DIR\"/copy; printf three > input");
    assert_eq!(sh("cat count"), "3\n", "content is made when it is read");
    // Two writes before the descriptor is closed are one message.
    sh("{ printf a; printf b; } > input");
    assert_eq!(mailbox.messages.lock().unwrap().last().unwrap(), "ab");
    assert_eq!(ok(run(&["--endpoint", &endpoint, "write", "/input", "by verb"])), "ok\n");
    assert_eq!(mailbox.messages.lock().unwrap().last().unwrap(), "by verb");
}

#[test]
fn waiting_readers_hold_up_nobody_and_can_be_killed() {
    let scratch = Scratch::new();
    let (tree, mailbox) = functions();
    let node = Node::serve(tree, false, "127.0.0.1:0".parse().unwrap());
    let endpoint = format!("a={}@/", node.url());
    let Some(mount) = Mount::start(&["--endpoint", &endpoint]) else { return };
    let cat = || {
        let cat = ["-k", "5", "60", "cat", "next"];
        let mut child = Command::new("timeout");
        child.args(cat).current_dir(&mount.at).stdout(Stdio::piped()).spawn().unwrap()
    };
    // More than there are threads to serve them.
    let mut readers: Vec<_> = (0..100).map(|_| cat()).collect();
    until("all to wait", || mailbox.readers.load(Ordering::SeqCst) >= 100);
    assert_eq!(ok(mount.shell("cat count", scratch.path())), "0\n");
    // timeout(1) passes the signal on to its child.
    let pid = nix::unistd::Pid::from_raw(readers[0].id() as i32);
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    assert!(!readers.remove(0).wait().unwrap().success());
    ok(mount.shell("printf news > input", scratch.path()));
    for reader in readers {
        assert_eq!(ok(reader.wait_with_output().unwrap()), "news");
    }
}

#[test]
fn a_node_that_does_not_answer_holds_up_no_other() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path().join("f"), "x").unwrap();
    let node = Node::start(scratch.path(), false);
    // Takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (a, b) = (format!("a={}", node.url()), format!("b=ws://{}/", silent.local_addr().unwrap()));
    let args = ["--endpoint", &a, "--endpoint", &b, "--timeout-ms", "3000"];
    let Some(mount) = Mount::start(&args) else { return };
    let mut stuck: Vec<_> = (0..8)
        .map(|_| {
            let mut ls = Command::new("timeout");
            ls.args(["-k", "5", "60", "ls", "b/x"]).current_dir(&mount.at);
            ls.stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    assert_eq!(ok(mount.shell("cat a/f", scratch.path())), "x");
    for ls in &mut stuck {
        assert!(!ls.wait().unwrap().success());
    }
}

#[test]
fn a_lock_holds_across_mounts() {
    let scratch = Scratch::new();
    let local = Scratch::new();
    std::fs::write(scratch.path().join("f"), "").unwrap();
    let node = Node::start(scratch.path(), false);
    let endpoint = format!("a={}@/", node.url());
    let Some(first) = Mount::start(&["--endpoint", &endpoint]) else { return };
    let Some(second) = Mount::start(&["--endpoint", &endpoint]) else { return };
    ok(first.shell("mkfifo \"$DIR\"/go", local.path()));
    let (held, got) = (local.path().join("held"), local.path().join("got"));
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let script = "flock f sh -c ': > \"$DIR\"/held; cat \"$DIR\"/go'";
            ok(first.shell(script, local.path()));
        });
        until("the lock", || held.exists());
        failed(second.shell("flock -n f true", local.path()));
        threads.spawn(|| ok(second.shell("flock f touch \"$DIR\"/got", local.path())));
        assert!(!got.exists());
        std::fs::write(local.path().join("go"), "").unwrap();
        until("the second to get it", || got.exists());
    });
}

#[test]
fn a_file_that_was_removed_can_be_used_while_it_is_open() {
    let scratch = Scratch::new();
    let node = Node::start(scratch.path(), false);
    let endpoint = format!("a={}@/", node.url());
    let Some(mount) = Mount::start(&["--endpoint", &endpoint]) else { return };
    let script = "exec 3<> f; rm f; echo hello >&3; test ! -e f; \
                  test $(stat -L -c %s /proc/self/fd/3) = 6; cat /proc/self/fd/3 || true";
    ok(mount.shell(script, scratch.path()));
}

#[test]
fn a_mount_in_use_ends_when_it_is_told_to() {
    let scratch = Scratch::new();
    let (tree, mailbox) = functions();
    let node = Node::serve(tree, false, "127.0.0.1:0".parse().unwrap());
    let endpoint = format!("a={}@/", node.url());
    let Some(mut mount) = Mount::start(&["--endpoint", &endpoint]) else { return };
    let mut waiting = Command::new("timeout");
    waiting.args(["-k", "5", "60", "cat", "next"]).current_dir(&mount.at).stderr(Stdio::null());
    let mut waiting = waiting.spawn().unwrap();
    let mut sitting = Command::new("cat");
    sitting.current_dir(&mount.at).stdin(Stdio::piped());
    let mut sitting = sitting.spawn().unwrap();
    until("the reader to wait", || mailbox.readers.load(Ordering::SeqCst) > 0);
    mount.signal(Signal::SIGTERM);
    assert!(mount.child.wait().unwrap().success());
    assert!(!mount.is_mounted());
    assert!(!waiting.wait().unwrap().success());
    drop(sitting.stdin.take());
    sitting.wait().unwrap();
    drop(scratch);
}

#[test]
fn a_panic_in_a_tree_is_an_error_of_that_call() {
    let scratch = Scratch::new();
    if !Path::new("/dev/fuse").exists() {
        println!("skipped: this host has no /dev/fuse");
        return;
    }
    let boom = text::<&str>(|_| panic!("a fault in a tree"));
    let fine = text(|_| Ok("fine"));
    let tree = Arc::new(Synthetic::new(dir([("boom", boom), ("fine", fine)])).unwrap());
    let options = Options {
        source: "test".into(),
        allow_other: false,
        default_permissions: false,
        read_only: false,
        no_exec: false,
        copy_across: false,
        timeout_ms: 15_000,
        view: View::default(),
        cache_bytes: None,
        cache_dir: None,
    };
    let ended = Notify::default();
    let (seen, tell) = (ended.seen(), ended.clone());
    let point = point::prepare(scratch.path()).unwrap();
    let at = &point.path;
    let mounted = fuse::mount(tree, None, at, &options, move || tell.notify()).unwrap();
    mounted.check().unwrap();
    let cat = |name: &str| {
        let mut cat = Command::new("timeout");
        cat.args(["-k", "5", "60", "cat"]).arg(at.join(name)).output().unwrap()
    };
    for _ in 0..20 {
        let (_, errors) = failed(cat("boom"));
        assert!(errors.contains("nput/output error"), "{errors}");
    }
    assert_eq!(ok(cat("fine")), "fine");
    mounted.unmount(Deadline::after_ms(10_000));
    ended.wait(seen, Deadline::never()).block(Deadline::after_ms(10_000), &Cancel::new()).unwrap();
}
