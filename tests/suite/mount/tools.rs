//! The tools that people use, on the built programs: what they print and leave behind in a mount is what
//! they print and leave behind in a plain directory.

use super::{Exported, Mount, ok, until};
use crate::conformance::Scratch;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

/// Says why a test does nothing where a tool is not installed.
fn has(tools: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = tools.iter().find(|t| !std::env::split_paths(&path).any(|d| d.join(t).exists()));
    if let Some(tool) = missing {
        println!("skipped: {tool} is not installed; `make setup` installs it");
    }
    missing.is_none()
}

/// Runs a script in `dir`, `$OUT` being a place outside of it.
fn shell(script: &str, dir: &Path, out: &Path) -> String {
    let mut command = Command::new("timeout");
    // A make that runs the tests would have its say in what is printed.
    for variable in ["MAKELEVEL", "MAKEFLAGS", "MFLAGS"] {
        command.env_remove(variable);
    }
    command.args(["-k", "5", "60", "sh", "-euc", script]).current_dir(dir);
    command.env("OUT", out).env("HOME", out).env("TZ", "UTC").env("LC_ALL", "C");
    let mut output = command.stdin(Stdio::null()).output().unwrap();
    // Not all names are UTF-8.
    output.stdout = String::from_utf8_lossy(&output.stdout).into_owned().into_bytes();
    ok(output)
}

/// Everything in a directory, without times.
const TREE: &str = "find . -printf '%P %y %m %n %l\\n' -type f -printf '%P: %s\\n' | sort
    find . -type f -print0 | sort -z | xargs -0 -r md5sum";

/// Runs a script in a mount and in a plain directory: it prints the same, and leaves the same files.
#[track_caller]
fn works_as_in_a_plain_directory(tools: &[&str], script: &str) {
    if !has(tools) {
        return;
    }
    let exported = Exported::start();
    let Some(mount) = exported.mount(&[]) else { return };
    let (plain, out, plain_out) = (Scratch::new(), Scratch::new(), Scratch::new());
    let expected = shell(script, plain.path(), plain_out.path());
    let got = shell(script, &mount.at, out.path());
    assert_eq!(got, expected, "printed in the mount and in a plain directory");
    let expected = shell(TREE, plain.path(), plain_out.path());
    assert_eq!(shell(TREE, &mount.at, out.path()), expected, "left, as seen in the mount");
    assert_eq!(shell(TREE, exported.dir(), out.path()), expected, "left at the node");
}

#[test]
fn git_keeps_its_repositories() {
    works_as_in_a_plain_directory(
        &["git"],
        r#"
        export GIT_AUTHOR_DATE='2001-02-03T04:05:06Z' GIT_COMMITTER_DATE='2001-02-03T04:05:06Z'
        printf '[user]\nname=n\nemail=e@x\n[init]\ndefaultBranch=main\n[safe]\ndirectory=*\n[gc]\nauto=0\n' \
            > "$HOME"/.gitconfig
        git init -q r; cd r; mkdir -p a/b
        for n in $(seq 60); do echo "file $n" > a/b/f$n; done
        ln -s b/f1 a/l; printf '#!/bin/sh\n' > run; chmod +x run
        git add .; git commit -qm one; git status --porcelain; git rev-parse HEAD
        git checkout -qb side; echo side >> a/b/f2; git mv a/b/f3 a/moved; git rm -q a/b/f4
        git commit -qam side; git checkout -q main; test ! -e a/moved; cat a/b/f2
        echo main >> a/b/f5; git stash -q; cat a/b/f5; git stash pop -q; git commit -qam main
        git merge -q -m merged side; git log --format='%H %s'; cat a/b/f2 a/b/f5
        cd ..; git clone -q --no-local r c; cd c; git log --format=%H -1; git status --porcelain
        git checkout -q HEAD~1; git status --porcelain; git fsck --strict 2>&1
        git checkout -q main; git repack -qad; git gc -q --prune=now; git fsck --strict 2>&1
        cd ..; rm -rf c r/.git/index; (cd r; git reset -q --hard; git status --porcelain; ls a a/b)
        rm -rf r/.git/objects/pack r/.git/logs r/.git/hooks r/.git/index
        "#,
    );
}

#[test]
fn make_builds_what_changed_and_nothing_else() {
    works_as_in_a_plain_directory(
        &["make", "cc"],
        r#"
        for n in 1 2 3 4 5 6; do
            printf '#include "h.h"\nint f%d(void) { return H + %d; }\n' $n $n > f$n.c
        done
        echo '#define H 10' > h.h
        printf '#include <stdio.h>\nint f1(void); int f6(void);\nint main(void) { printf("%%d\\n", f1() + f6()); return 0; }\n' > main.c
        {
            printf 'OBJS = main.o f1.o f2.o f3.o f4.o f5.o f6.o\n'
            printf 'prog: $(OBJS)\n\tcc -o $@ $(OBJS)\n'
            printf '%%.o: %%.c\n\tcc -c -o $@ $<\n'
            printf 'f1.o f2.o f3.o f4.o f5.o f6.o: h.h\n'
        } > Makefile
        make -j2 | sort; ./prog; make -j2
        sleep 0.02; touch f3.c; make -j2 | sort
        sleep 0.02; echo '#define H 20' > h.h; make -j2 | sort; ./prog; make -q; echo $?
        ar rc lib.a f1.o f2.o; ar t lib.a; rm -f prog *.o lib.a
        "#,
    );
}

/// A directory with all that copying has to keep.
const VARIETY: &str = r#"
    mkdir -p src/deep/er src/empty; cd src
    head -c 3000000 /dev/urandom > big; : > nothing; printf x > one
    truncate -s 5M sparse; printf end >> sparse
    ln -s deep/er link; ln -s /nowhere dangling; ln one hard
    printf 'odd' > 'a name with  spaces and "quotes"'; printf n > "$(printf 'new\nline')"
    printf '\377' > "$(printf 'not utf\377')"; printf '#!/bin/sh\n' > run
    for n in $(seq 120); do echo $n > deep/f$n; done
    chmod 700 run; chmod 600 one; chmod 750 deep; chmod 444 nothing
    find . -type f -exec touch -h -d '2001-02-03 04:05:06.789012345 UTC' {} +
    touch -h -d '2002-03-04 05:06:07.123456789 UTC' link dangling
    touch -d '2003-04-05 06:07:08.5 UTC' deep/er deep empty .
    cd ..
"#;

/// What [`VARIETY`] is made of, times and owners included.
const DETAILS: &str =
    "find . -printf '%P|%y|%m|%n|%l|%U:%G|%T@\\n' -type f -printf '%P: %s\\n' | sort
    find . -type f -print0 | sort -z | xargs -0 md5sum";

#[test]
fn copies_are_what_was_copied() {
    if !has(&["rsync", "tar"]) {
        return;
    }
    let exported = Exported::start();
    let Some(mount) = exported.mount(&[]) else { return };
    let out = Scratch::new();
    shell(VARIETY, out.path(), out.path());
    let expected = shell(DETAILS, &out.path().join("src"), out.path());
    assert!(expected.contains("|981173106.7890123450\n"), "{expected}");
    for (how, into, back) in [
        ("rsync", "rsync -aH \"$OUT\"/src/ rsync/", "rsync -aH rsync/ \"$OUT\"/rsync/"),
        ("cp", "cp -a \"$OUT\"/src cp", "cp -a cp \"$OUT\"/cp"),
        (
            "tar",
            "mkdir tar; tar -H posix -cf - -C \"$OUT\"/src . | tar -xpf - -C tar",
            "mkdir \"$OUT\"/tar; tar -H posix -cf tar.tar -C tar .; tar -xpf tar.tar -C \"$OUT\"/tar",
        ),
    ] {
        shell(into, &mount.at, out.path());
        for at in [&mount.at.join(how), &exported.dir().join(how)] {
            assert_eq!(shell(DETAILS, at, out.path()), expected, "{how} into the mount");
        }
        shell(back, &mount.at, out.path());
        let details = shell(DETAILS, &out.path().join(how), out.path());
        assert_eq!(details, expected, "{how} out of the mount");
    }
    // A second run finds nothing to do; a third sees the one change.
    let again = "rsync -aHi --delete \"$OUT\"/src/ rsync/";
    assert_eq!(shell(again, &mount.at, out.path()), "");
    shell("echo more >> src/deep/f7; rm src/deep/f8", out.path(), out.path());
    let changed = shell(again, &mount.at, out.path());
    assert!(changed.contains("*deleting   deep/f8") && changed.contains(" deep/f7"), "{changed}");
    shell("diff -r --no-dereference \"$OUT\"/src rsync", &mount.at, out.path());
    shell("rm -rf rsync cp tar tar.tar", &mount.at, out.path());
    assert_eq!(fs::read_dir(exported.dir()).unwrap().count(), 0);
}

#[test]
fn small_tools_do_what_they_do() {
    works_as_in_a_plain_directory(
        &[],
        r#"
        dd if=/dev/zero of=z bs=64k count=20 status=none; dd if=z of=y bs=1M conv=fsync status=none
        printf abc | dd of=y bs=1 seek=100000 conv=notrunc status=none; cmp -l z y || true
        printf end | dd of=y oflag=append conv=notrunc status=none; tail -c 5 y | od -c
        dd if=y bs=1000 skip=100 count=1 status=none | md5sum; truncate -s 10 y; wc -c < y
        truncate -s 20 y; od -c y; mkdir -p a/b/c; mv y a/b; mv a/b/y a/c; mv a d; find . | sort
        cp z d/z; mv -f z d/z; test ! -e z; cat d/z d/c | md5sum; ls -A d | sort; rm -r d
        seq 20000 > n; sort -R n | sort -n | cmp - n; sed -i 's/^1/x/' n; grep -c ^x n
        sort -u -o n n; wc -l < n; split -l 5000 n part.; cat part.* | cmp - n; rm part.*
        perm() { stat -c '%A %s %h' "$1"; }; umask 027; echo > m; perm m; mkdir q; perm q | cut -c-10
        chmod u=rwx,go= m; perm m; chmod 2755 q; perm q | cut -c-10; cp -p m m2; perm m2
        ln m m3; perm m; rm m; perm m3; mkfifo p 2>/dev/null || true; rm -f p
        exec 3> held; echo one >&3; mv held kept; echo two >&3; rm kept; echo three >&3; exec 3>&-
        test ! -e kept; : > e; test ! -s e; printf 'a\0b' > e; od -c e; ls
        i=0; while test $i -lt 40; do echo $i > t.tmp; mv t.tmp t; read v < t; test $v = $i; i=$((i+1)); done
        "#,
    );
}

#[test]
fn an_editor_saves_in_all_its_ways() {
    works_as_in_a_plain_directory(
        &["vim"],
        r#"
        seq 100 > f; chmod 640 f
        v() { vim -es -u NONE -i NONE "$@" < /dev/null; }
        v -c 'set backup writebackup backupcopy=no' -c '%s/^5$/five/' -c wq f; grep -n five f; ls -A
        v -c 'set nobackup writebackup backupcopy=yes' -c '$d' -c 'norm ggOtop' -c wq f; head -2 f; tail -1 f
        v -c 'set swapfile directory=. undofile undodir=.' -c 'g/7/d' -c wq f; wc -l < f; ls -A | grep -v un
        ln f g; v -c 'set backupcopy=auto' -c '1d' -c wq g; cmp f g; stat -c '%h %a' f
        ln -s f l; v -c '1d' -c wq l; test -L l; wc -l < f; v -c 'w! new' -c q f; cmp f new
        rm -f .*.un~
        "#,
    );
}

#[test]
fn appends_from_many_processes_lose_nothing() {
    let exported = Exported::start();
    let Some(first) = exported.mount(&[]) else { return };
    let Some(second) = exported.mount(&[]) else { return };
    let out = Scratch::new();
    let script = |who: &str| {
        format!(
            "for p in 1 2 3 4; do
                (for n in $(seq 50); do echo {who} $p $n >> log; done) &
            done; wait"
        )
    };
    std::thread::scope(|threads| {
        threads.spawn(|| shell(&script("first"), &first.at, out.path()));
        threads.spawn(|| shell(&script("second"), &second.at, out.path()));
    });
    let text = fs::read_to_string(exported.dir().join("log")).unwrap();
    let mut expected = Vec::new();
    for who in ["first", "second"] {
        for p in 1..=4 {
            let of = format!("{who} {p} ");
            let numbers = text.lines().filter_map(|l| l.strip_prefix(&of)?.parse::<u32>().ok());
            assert_eq!(numbers.collect::<Vec<_>>(), (1..=50).collect::<Vec<_>>(), "{of}in {text}");
            expected.push(of);
        }
    }
    assert_eq!(text.lines().count(), 400);
    for mount in [&first, &second] {
        assert_eq!(fs::read_to_string(mount.at.join("log")).unwrap(), text);
    }
}

/// Follows a file as people do.
struct Tail {
    child: std::process::Child,
    seen: Arc<Mutex<String>>,
}

impl Tail {
    fn start(mount: &Mount, args: &[&str]) -> Tail {
        let mut tail = Command::new("timeout");
        tail.args(["-k", "5", "60", "tail"]).args(args).current_dir(&mount.at);
        let mut child = tail.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let (seen, mut from) = (Arc::<Mutex<String>>::default(), child.stdout.take().unwrap());
        let sink = seen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Tail { child, seen }
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        until(&format!("tail to show {text:?}"), || *self.seen.lock().unwrap() == text);
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

#[test]
fn a_file_that_grows_elsewhere_is_followed() {
    let exported = Exported::start();
    let Some(mount) = exported.mount(&[]) else { return };
    let Some(other) = exported.mount(&[]) else { return };
    let at = exported.dir().join("log");
    fs::write(&at, "one\n").unwrap();
    let tail = Tail::start(&mount, &["-n", "+1", "-s", "0.05", "-f", "log"]);
    tail.shows("one\n");
    let append = |at: &Path, text: &str| {
        OpenOptions::new().append(true).open(at).unwrap().write_all(text.as_bytes()).unwrap();
    };
    append(&at, "two\n");
    tail.shows("one\ntwo\n");
    append(&other.at.join("log"), "three\n");
    tail.shows("one\ntwo\nthree\n");
    append(&mount.at.join("log"), "four\n");
    append(&at, "five\n");
    tail.shows("one\ntwo\nthree\nfour\nfive\n");
    drop(tail);
    // By name, over a rotation.
    let tail = Tail::start(&mount, &["-q", "-n", "+5", "-s", "0.05", "-F", "log"]);
    tail.shows("five\n");
    fs::rename(&at, exported.dir().join("log.1")).unwrap();
    fs::write(&at, "six\n").unwrap();
    tail.shows("five\nsix\n");
}

const DATABASE: &str =
    "create table t(who, n, primary key(who, n)) without rowid; create table b(x);";

/// One of several writers: `count` transactions, each of two statements.
fn writes(who: &str, count: u32) -> String {
    format!(
        "{{ echo '.timeout 60000'; for n in $(seq {count}); do
            echo \"begin immediate; insert into t values('{who}', $n);
                   insert into b values(randomblob(2000)); commit;\"
        done; }} | sqlite3 -bail db"
    )
}

fn check_database(dir: &Path, out: &Path, rows: u32) {
    let query =
        "sqlite3 db 'pragma integrity_check; select count(*) from t; select count(*) from b'";
    assert_eq!(shell(query, dir, out), format!("ok\n{rows}\n{rows}\n"), "{}", dir.display());
}

#[test]
fn a_database_has_several_writers_in_one_mount() {
    if !has(&["sqlite3"]) {
        return;
    }
    let exported = Exported::start();
    let Some(mount) = exported.mount(&[]) else { return };
    let out = Scratch::new();
    for journal in ["delete", "truncate", "persist", "wal"] {
        shell("rm -f db db-*", &mount.at, out.path());
        let create = format!("sqlite3 db 'pragma journal_mode={journal}; {DATABASE}'");
        assert_eq!(shell(&create, &mount.at, out.path()), format!("{journal}\n"));
        std::thread::scope(|threads| {
            for who in ["a", "b", "c"] {
                let (mount, out) = (&mount, &out);
                threads.spawn(move || shell(&writes(who, 10), &mount.at, out.path()));
            }
        });
        check_database(&mount.at, out.path(), 30);
        check_database(exported.dir(), out.path(), 30);
    }
}

#[test]
fn a_database_has_writers_in_two_mounts() {
    if !has(&["sqlite3"]) {
        return;
    }
    let exported = Exported::start();
    let Some(first) = exported.mount(&[]) else { return };
    let Some(second) = exported.mount(&[]) else { return };
    let out = Scratch::new();
    shell(&format!("sqlite3 db '{DATABASE}'"), &first.at, out.path());
    std::thread::scope(|threads| {
        for (mount, who) in [(&first, "a"), (&first, "b"), (&second, "c"), (&second, "d")] {
            let out = &out;
            threads.spawn(move || shell(&writes(who, 10), &mount.at, out.path()));
        }
    });
    for dir in [&*first.at, &*second.at, exported.dir()] {
        check_database(dir, out.path(), 40);
    }
}

#[test]
fn what_was_closed_is_seen_when_it_is_opened_elsewhere() {
    let exported = Exported::start();
    let Some(first) = exported.mount(&[]) else { return };
    let Some(second) = exported.mount(&[]) else { return };
    let places = [first.at.as_path(), second.at.as_path(), exported.dir()];
    let content =
        |round: usize, len: usize| -> Vec<u8> { (0..len).map(|n| (n / 7 + round) as u8).collect() };
    for round in 0..300 {
        // Small ones, ones of some pages, now and then a large one; each longer or shorter than before.
        let len = match round % 10 {
            9 => 3_000_000 + round * 1000,
            n => [1, 0, 5000, 17, 4096, 70_000, 3, 200_000, 12][n],
        };
        let (writer, name) = (places[round % 3], format!("f{}", round % 2));
        let expected = content(round, len);
        if round % 4 == 3 {
            let temporary = writer.join("new");
            fs::write(&temporary, &expected).unwrap();
            fs::rename(&temporary, writer.join(&name)).unwrap();
        } else {
            fs::write(writer.join(&name), &expected).unwrap();
        }
        for (n, reader) in places.iter().enumerate() {
            // The host writes without telling; that is heard of in a moment, and asserted elsewhere.
            if round % 3 == 2 && n < 2 {
                let whole = || fs::read(reader.join(&name)).is_ok_and(|found| found == expected);
                until(&format!("round {round}: what the host wrote to be seen"), whole);
                continue;
            }
            let found = fs::read(reader.join(&name)).unwrap();
            let same = found == expected;
            assert!(same, "round {round}: {} bytes instead of {len} in place {n}", found.len());
        }
    }
}

#[test]
fn a_change_is_seen_in_the_other_mount() {
    let exported = Exported::start();
    let Some(first) = exported.mount(&[]) else { return };
    let Some(second) = exported.mount(&[]) else { return };
    for (from, seen) in [
        (first.at.as_path(), second.at.as_path()),
        (exported.dir(), second.at.as_path()),
        (second.at.as_path(), first.at.as_path()),
    ] {
        let (f, g) = (from.join("d/f"), from.join("d/g"));
        let (seen_f, seen_g) = (seen.join("d/f"), seen.join("d/g"));
        let size = |len: u64| fs::metadata(&seen_f).is_ok_and(|m| m.len() == len);
        let names = |wanted: &[&str]| {
            let list = fs::read_dir(seen.join("d"));
            let mut found: Vec<_> = list
                .into_iter()
                .flatten()
                .filter_map(|e| e.ok()?.file_name().into_string().ok())
                .collect();
            found.sort();
            found == wanted
        };
        assert!(fs::metadata(seen.join("d")).is_err(), "known to be absent");
        fs::create_dir(from.join("d")).unwrap();
        until("mkdir to be seen", || names(&[]));
        fs::write(&f, "hello").unwrap();
        until("a new file to be seen", || names(&["f"]) && size(5));
        assert_eq!(fs::read(&seen_f).unwrap(), b"hello");
        // A file that stays open, there and here.
        let mut held = File::open(&seen_f).unwrap();
        let mut writer = OpenOptions::new().write(true).open(&f).unwrap();
        writer.write_all(b"J").unwrap();
        writer.sync_all().unwrap();
        until("content to be seen", || {
            let mut text = String::new();
            held.seek(SeekFrom::Start(0)).unwrap();
            held.read_to_string(&mut text).unwrap();
            text == "Jello"
        });
        writer.set_len(2).unwrap();
        until("truncation to be seen", || size(2));
        fs::set_permissions(&f, fs::Permissions::from_mode(0o600)).unwrap();
        let mode = || fs::metadata(&seen_f).is_ok_and(|m| m.mode() & 0o777 == 0o600);
        until("the mode to be seen", mode);
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(981_173_106, 5);
        writer.set_modified(time).unwrap();
        let mtime = || fs::metadata(&seen_f).is_ok_and(|m| m.modified().unwrap() == time);
        until("the time to be seen", mtime);
        fs::hard_link(&f, &g).unwrap();
        until("a link to be seen", || {
            names(&["f", "g"]) && fs::metadata(&seen_f).is_ok_and(|m| m.nlink() == 2)
        });
        fs::remove_file(&f).unwrap();
        until("unlink to be seen", || !seen_f.exists() && names(&["g"]));
        fs::rename(&g, &f).unwrap();
        until("rename to be seen", || names(&["f"]) && seen_f.exists() && !seen_g.exists());
        std::os::unix::fs::symlink("f", &g).unwrap();
        until("a symlink to be seen", || fs::read_link(&seen_g).is_ok_and(|t| t == Path::new("f")));
        // Another file under the same name.
        fs::write(from.join("d/new"), "another").unwrap();
        fs::rename(from.join("d/new"), &f).unwrap();
        until("a replacement to be seen", || fs::read(&seen_f).is_ok_and(|c| c == b"another"));
        fs::rename(from.join("d"), from.join("e")).unwrap();
        until("a directory's rename to be seen", || {
            !seen.join("d").exists() && fs::read(seen.join("e/f")).is_ok_and(|c| c == b"another")
        });
        fs::remove_dir_all(from.join("e")).unwrap();
        until("removal to be seen", || !seen.join("e").exists());
    }
}
