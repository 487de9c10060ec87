//! Real mounts, used with the tools that people use.

use super::{Mount, Node, failed, ok, run, until};
use crate::conformance::Scratch;
use nix::sys::signal::Signal;
use std::path::Path;

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
    let unmounted = std::process::Command::new("timeout").args(args).arg(&mount.at).status();
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
    let missing = scratch.path().join("missing");
    let (code, errors) = mount(&missing);
    assert!(code == 64 && errors.contains(&format!("mkdir {}", missing.display())), "{errors}");
    std::fs::write(scratch.path().join("f"), "").unwrap();
    assert!(mount(&scratch.path().join("f")).1.contains("is not a directory"));
    assert!(mount(scratch.path()).1.contains("is not empty"));
    let Some(mounted) = Mount::start(&["--endpoint", &endpoint]) else { return };
    assert!(mount(&mounted.at).1.contains("is mounted already"));
}
