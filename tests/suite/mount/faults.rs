//! What a mount does when something fails under it: nodes that are killed, that stop, or whose connections
//! are cut at any byte, and the mount program itself. Nothing that was answered is lost, nothing is done
//! twice, nothing hangs, and all goes on by itself when the fault is gone.

use super::{Exported, Mount, ok, until};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Content that says where it is from.
fn pattern(len: usize) -> Vec<u8> {
    (0..len / 8).flat_map(|n| (n as u64).to_le_bytes()).collect()
}

/// An export's endpoint at a mount path.
fn endpoint(name: &str, node: &Exported, at: &str) -> String {
    format!("{name}={}@{at}", node.url())
}

#[test]
fn open_files_outlive_a_node_that_was_killed() {
    let mut node = Exported::start();
    let content = pattern(4 << 20);
    fs::write(node.dir().join("read"), &content).unwrap();
    fs::create_dir(node.dir().join("d")).unwrap();
    let Some(mount) = node.mount(&["--timeout-ms", "3000"]) else { return };
    let reader = File::open(mount.at.join("read")).unwrap();
    let mut half = vec![0; 100_000];
    reader.read_exact_at(&mut half, 0).unwrap();
    let open = |name: &str| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(mount.at.join(name))
            .unwrap()
    };
    let (looked_up, untouched) = (open("d/looked-up"), open("d/untouched"));
    for file in [&looked_up, &untouched] {
        file.write_all_at(b"before", 0).unwrap();
        file.sync_all().unwrap();
    }
    node.program.kill();
    until("errors", || fs::read_dir(mount.at.join("d")).is_err());
    let asked = Instant::now();
    assert!(untouched.write_all_at(b"lost?", 100).and_then(|()| untouched.sync_all()).is_err());
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    node.start_again();
    until("the node to be found", || fs::metadata(mount.at.join("d/looked-up")).is_ok());
    assert_eq!(fs::read_dir(mount.at.join("d")).unwrap().count(), 2);
    for (file, name) in [(&looked_up, "looked-up"), (&untouched, "untouched")] {
        file.write_all_at(b"after", 6).unwrap_or_else(|e| panic!("{name}: {e}"));
        file.sync_all().unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut found = [0; 11];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(&found, b"beforeafter");
        assert!(fs::read(node.dir().join("d").join(name)).unwrap().starts_with(b"beforeafter"));
    }
    let mut rest = vec![0; content.len()];
    reader.read_exact_at(&mut rest, 0).unwrap();
    assert_eq!(rest, content);
}

#[test]
fn a_file_that_was_replaced_meanwhile_is_not_written() {
    let mut node = Exported::start();
    let Some(mount) = node.mount(&["--timeout-ms", "3000"]) else { return };
    let dir = node.dir().to_owned();
    let at = |name: &str| (dir.join(name), mount.at.join(name));
    let (seen, unseen) = (at("seen"), at("unseen"));
    let open = |(there, here): &(PathBuf, PathBuf)| {
        fs::write(there, "the first").unwrap();
        OpenOptions::new().read(true).write(true).open(here).unwrap()
    };
    let held = [open(&seen), open(&unseen)];
    node.program.kill();
    for (there, _) in [&seen, &unseen] {
        fs::write(there.with_extension("new"), "the second").unwrap();
        fs::rename(there.with_extension("new"), there).unwrap();
    }
    node.start_again();
    until("the node to be found", || fs::metadata(&seen.1).is_ok_and(|m| m.len() == 10));
    for file in &held {
        let written = file.write_all_at(b"XXX", 0).and_then(|()| file.sync_all());
        assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::ESTALE));
    }
    for (there, here) in [&seen, &unseen] {
        assert_eq!(fs::read(there).unwrap(), b"the second");
        assert_eq!(fs::read(here).unwrap(), b"the second");
    }
}

/// Also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn writers_and_readers_go_on_over_a_node_that_is_killed() {
    let mut node = Exported::start();
    let Some(mount) = node.mount(&["--timeout-ms", "3000"]) else { return };
    let stop = AtomicBool::new(false);
    // Each writes a file, and if that succeeded, it is there as it was written, for ever.
    let work = |who: usize| {
        let (mut done, mut failed) = (Vec::new(), 0);
        for n in 0.. {
            if stop.load(Ordering::Acquire) {
                break;
            }
            let name = format!("{who}-{n}");
            let content = pattern(8 * (1 + n * 7919 % 60_000));
            let written = File::create(mount.at.join(&name)).and_then(|mut f| {
                f.write_all(&content)?;
                f.sync_all()
            });
            match written {
                Ok(()) => done.push((name, content)),
                Err(_) => {
                    failed += 1;
                    std::thread::yield_now();
                }
            }
        }
        (done, failed)
    };
    let results = std::thread::scope(|threads| {
        let workers: Vec<_> = (0..3).map(|who| threads.spawn(move || work(who))).collect();
        let stopping = Stop(&stop);
        for _ in 0..3 {
            until("some work", || fs::read_dir(node.dir()).unwrap().count() > 5);
            node.program.kill();
            until("the loss", || {
                fs::metadata(mount.at.join("none")).is_err_and(|e| e.kind() != ErrorKind::NotFound)
            });
            node.start_again();
            until("the node to be found", || File::create(mount.at.join("probe")).is_ok());
        }
        drop(stopping);
        workers.into_iter().map(|w| w.join().unwrap()).collect::<Vec<_>>()
    });
    for (done, failed) in &results {
        assert!(!done.is_empty() && *failed > 0, "{} done, {failed} failed", done.len());
        for (name, content) in done {
            assert!(fs::read(node.dir().join(name)).unwrap() == *content, "{name} at the node");
            assert!(fs::read(mount.at.join(name)).unwrap() == *content, "{name} in the mount");
        }
    }
}

/// Runs a command under `timeout`; its outcome and how long it took.
fn timed(dir: &Path, script: &str) -> (bool, Duration) {
    let start = Instant::now();
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "40", "sh", "-euc", script]).current_dir(dir);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    (status.unwrap().success(), start.elapsed())
}

#[test]
fn a_node_that_stops_holds_up_no_other_and_comes_back() {
    let (stopped, other) = (Exported::start(), Exported::start());
    fs::write(stopped.dir().join("x"), pattern(1 << 20)).unwrap();
    fs::create_dir(stopped.dir().join("d")).unwrap();
    fs::write(other.dir().join("y"), "y").unwrap();
    let (a, b) = (endpoint("a", &stopped, "/a"), endpoint("b", &other, "/b"));
    let args = ["--endpoint", &a, "--endpoint", &b, "--timeout-ms", "3000"];
    let Some(mount) = Mount::start(&args) else { return };
    let at = mount.at.as_path();
    assert!(timed(at, "ls a/d; head -c 10 a/x; cat b/y").0);
    let held =
        OpenOptions::new().write(true).create(true).truncate(true).open(at.join("a/w")).unwrap();
    stopped.program.signal(libc::SIGSTOP);
    std::thread::scope(|threads| {
        let stuck: Vec<_> = (0..8)
            .map(|n| threads.spawn(move || timed(at, &format!("ls a/none{n}"))))
            .chain([threads.spawn(move || timed(at, "cat a/x > /dev/null; rm a/d/none"))])
            .chain([threads.spawn(move || timed(at, "echo x > a/new"))])
            .collect();
        let writing =
            threads.spawn(|| held.write_all_at(&pattern(64), 0).and_then(|()| held.sync_all()));
        for _ in 0..20 {
            let (fine, took) = timed(at, "ls b; cat b/y; echo z > b/z");
            assert!(fine && took < Duration::from_secs(3), "{fine} after {took:?}");
        }
        for thread in stuck {
            let (fine, took) = thread.join().unwrap();
            assert!(!fine && took < Duration::from_secs(30), "{fine} after {took:?}");
        }
        assert!(writing.join().unwrap().is_err());
    });
    stopped.program.signal(libc::SIGCONT);
    until("it to be back", || fs::read(at.join("a/x")).is_ok_and(|c| c == pattern(1 << 20)));
    assert!(timed(at, "echo again > a/again; test $(cat a/again) = again").0);
    held.write_all_at(b"after", 0).unwrap();
    held.sync_all().unwrap();
    assert!(fs::read(stopped.dir().join("w")).unwrap().starts_with(b"after"));
}

/// Whether a process sleeps in the kernel until a filesystem answers it.
fn is_waiting(process: &Child) -> bool {
    let place = fs::read_to_string(format!("/proc/{}/wchan", process.id())).unwrap_or_default();
    place.contains("fuse") || place == "request_wait_answer"
}

#[test]
fn however_many_wait_for_a_node_others_are_served() {
    const READERS: usize = 60;
    let (stopped, other) = (Exported::start(), Exported::start());
    fs::write(stopped.dir().join("x"), "x").unwrap();
    fs::write(other.dir().join("y"), "y").unwrap();
    let (a, b) = (endpoint("a", &stopped, "/a"), endpoint("b", &other, "/b"));
    let Some(mount) = Mount::start(&["--endpoint", &a, "--endpoint", &b]) else { return };
    assert!(timed(&mount.at, "cat a/x; ls b").0);
    stopped.program.signal(libc::SIGSTOP);
    let reader = |_| {
        // Without `timeout`, so that it can be looked at: the mount ends it in time.
        let mut command = Command::new("cat");
        command.arg(mount.at.join("a/x")).stdout(Stdio::null());
        command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut readers: Vec<_> = (0..READERS).map(reader).collect();
    until("all to wait", || readers.iter().all(is_waiting));
    assert!(timed(&mount.at, "ls -l b; cat b/y; echo z > b/z; cat b/z").0);
    assert!(readers.iter().all(is_waiting), "the node has been given up meanwhile");
    stopped.program.signal(libc::SIGCONT);
    for reader in &mut readers {
        assert!(reader.wait().unwrap().success(), "it came back in time");
    }
}

/// Two exports of the same files, mounted as one.
fn twins(name: &str, content: &[u8]) -> (Exported, Exported) {
    let nodes = (Exported::start(), Exported::start());
    let time = std::time::UNIX_EPOCH + Duration::from_nanos(981_173_106_123_456_789);
    for node in [&nodes.0, &nodes.1] {
        let mut file = File::create(node.dir().join(name)).unwrap();
        file.write_all(content).unwrap();
        file.set_modified(time).unwrap();
    }
    nodes
}

fn mount_twins((first, second): &(Exported, Exported)) -> Option<Mount> {
    let (a, b) = (endpoint("a", first, "/"), endpoint("b", second, "/"));
    Mount::start(&["--endpoint", &a, "--endpoint", &b, "--timeout-ms", "3000"])
}

#[test]
fn a_read_goes_on_at_the_sibling_that_has_the_same_file() {
    let content = pattern(24 << 20);
    for (what, signal) in [("killed", libc::SIGKILL), ("stopped", libc::SIGSTOP)] {
        let nodes = twins("big", &content);
        let Some(mount) = mount_twins(&nodes) else { return };
        let mut file = File::open(mount.at.join("big")).unwrap();
        let mut got = vec![0; 3 << 20];
        file.read_exact(&mut got).unwrap();
        nodes.0.program.signal(signal);
        file.read_to_end(&mut got).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(got == content, "{what}: {} bytes of {}", got.len(), content.len());
        until("new files at the sibling", || fs::write(mount.at.join("new"), "x").is_ok());
        assert!(nodes.1.dir().join("new").exists());
        nodes.0.program.signal(libc::SIGCONT);
    }
}

#[test]
fn a_read_does_not_go_on_in_another_file() {
    let content = pattern(24 << 20);
    let nodes = twins("big", &content);
    // As long, and of another time.
    let other = OpenOptions::new().write(true).open(nodes.1.dir().join("big")).unwrap();
    other.write_all_at(&vec![b'x'; content.len()], 0).unwrap();
    drop(other);
    let Some(mount) = mount_twins(&nodes) else { return };
    let mut file = File::open(mount.at.join("big")).unwrap();
    let mut got = vec![0; 1 << 20];
    file.read_exact(&mut got).unwrap();
    nodes.0.program.signal(libc::SIGKILL);
    let e = file.read_to_end(&mut got).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(libc::EIO));
    assert!(content.starts_with(&got), "all that was read is of the first");
    // Opened anew, it is the other's.
    until("the other to be read", || fs::read(mount.at.join("big")).is_ok_and(|c| c[0] == b'x'));
}

#[test]
fn writes_stay_where_they_began() {
    let nodes = twins("f", b"the same");
    let Some(mount) = mount_twins(&nodes) else { return };
    let file = OpenOptions::new().write(true).open(mount.at.join("f")).unwrap();
    file.write_all_at(b"THE", 0).unwrap();
    file.sync_all().unwrap();
    nodes.0.program.signal(libc::SIGKILL);
    assert!(file.write_all_at(b"SAME", 4).and_then(|()| file.sync_all()).is_err());
    until("the sibling", || fs::read(mount.at.join("f")).is_ok());
    assert!(file.write_all_at(b"SAME", 4).and_then(|()| file.sync_all()).is_err());
    drop(file);
    assert_eq!(fs::read(nodes.0.dir().join("f")).unwrap(), b"THE same");
    assert_eq!(fs::read(nodes.1.dir().join("f")).unwrap(), b"the same");
}

#[test]
fn what_was_flushed_is_there_when_the_mount_is_told_to_end() {
    let node = Exported::start();
    let Some(mut mount) = node.mount(&[]) else { return };
    let flushed = Arc::new(AtomicUsize::new(0));
    let (at, count) = (mount.at.join("big"), flushed.clone());
    let writer = std::thread::spawn(move || {
        let mut file = File::create(at)?;
        let block = pattern(1 << 20);
        loop {
            file.write_all(&block)?;
            file.sync_data()?;
            count.fetch_add(1, Ordering::AcqRel);
        }
        #[allow(unreachable_code)]
        std::io::Result::Ok(())
    });
    until("some to be written", || flushed.load(Ordering::Acquire) > 5);
    mount.signal(Signal::SIGTERM);
    assert!(mount.child.wait().unwrap().success());
    writer.join().unwrap().unwrap_err();
    let (found, count) =
        (fs::read(node.dir().join("big")).unwrap(), flushed.load(Ordering::Acquire));
    assert!(found.len() >= count << 20, "{} bytes, {count} MiB flushed", found.len());
    let block = pattern(1 << 20);
    assert!(found.chunks(1 << 20).take(count).all(|c| c == block));
    assert!(!mount.is_mounted());
}

/// Passes connections on to a node, and cuts them after a number of bytes, in whichever direction they go.
struct Cutter {
    port: u16,
    /// Bytes until the cut; below 0: none.
    left: Arc<AtomicI64>,
    cuts: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Cutter {
    fn start(node: u16) -> Cutter {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let cutter = Cutter {
            port: listener.local_addr().unwrap().port(),
            left: Arc::new(AtomicI64::new(-1)),
            cuts: Arc::default(),
            open: Arc::default(),
        };
        let (left, cuts, open) = (cutter.left.clone(), cutter.cuts.clone(), cutter.open.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", node)) else { continue };
                for s in [&client, &server] {
                    s.set_nodelay(true).unwrap();
                    open.lock().unwrap().push(s.try_clone().unwrap());
                }
                let ends = (client.try_clone().unwrap(), server.try_clone().unwrap());
                for (from, to) in [(client, server), (ends.1, ends.0)] {
                    let (left, cuts) = (left.clone(), cuts.clone());
                    std::thread::spawn(move || pass(from, to, &left, &cuts));
                }
            }
        });
        cutter
    }

    fn cut_after(&self, bytes: i64) {
        self.left.store(bytes, Ordering::Release);
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        for s in self.open.lock().unwrap().iter() {
            let _ = s.shutdown(Shutdown::Both);
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, left: &AtomicI64, cuts: &AtomicUsize) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let before = left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| {
            (left >= 0).then(|| (left - n as i64).max(-1))
        });
        match before {
            Ok(left) if left < n as i64 => {
                let _ = to.write_all(&buffer[..left as usize]);
                cuts.fetch_add(1, Ordering::AcqRel);
                break;
            }
            _ if to.write_all(&buffer[..n]).is_ok() => {}
            _ => break,
        }
    }
    for s in [&from, &to] {
        let _ = s.shutdown(Shutdown::Both);
    }
}

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// One operation on the mount and on what ought to be there; what differs.
fn step(
    at: &Path,
    model: &mut BTreeMap<String, Vec<u8>>,
    numbers: &mut Numbers,
) -> Result<(), String> {
    let mut name = || format!("f{}", numbers.below(12));
    let (one, two) = (name(), name());
    let (path, known) = (at.join(&one), model.contains_key(&one));
    let what = numbers.below(9);
    let content = pattern(8 * [1, 100, 10_000, 100_000][numbers.below(4)]);
    let outcome = match what {
        0 | 1 => fs::write(&path, &content).map(|()| drop(model.insert(one.clone(), content))),
        2 => match (OpenOptions::new().write(true).create_new(true).open(&path), known) {
            (Err(e), true) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
            (Ok(_), true) => return Err(format!("{one}: made twice")),
            (made, _) => made.map(|_| drop(model.insert(one.clone(), Vec::new()))),
        },
        3 | 4 => {
            let append = OpenOptions::new().append(true).create(true).open(&path);
            let written =
                append.and_then(|mut f| f.write_all(&content[..8]).and_then(|()| f.sync_all()));
            written.map(|()| model.entry(one.clone()).or_default().extend(&content[..8]))
        }
        5 => match (fs::rename(&path, at.join(&two)), known) {
            (Err(e), false) if e.kind() == ErrorKind::NotFound => Ok(()),
            (done, _) => done.map(|()| {
                let content = model.remove(&one).unwrap_or_default();
                model.insert(two.clone(), content);
            }),
        },
        6 => match (fs::remove_file(&path), known) {
            (Err(e), false) if e.kind() == ErrorKind::NotFound => Ok(()),
            (done, _) => done.map(|()| drop(model.remove(&one))),
        },
        7 if known => {
            let file = OpenOptions::new().write(true).open(&path);
            let cut = file.and_then(|f| f.set_len(5).and_then(|()| f.write_all_at(b"end", 5)));
            cut.map(|()| {
                let content = model.entry(one.clone()).or_default();
                content.resize(5, 0);
                content.extend(b"end");
            })
        }
        _ => match (fs::read(&path), model.get(&one)) {
            (Err(e), None) if e.kind() == ErrorKind::NotFound => Ok(()),
            (Ok(found), Some(content)) if found == *content => Ok(()),
            (Ok(found), content) => {
                let wanted = content.map(Vec::len);
                return Err(format!("{one}: {} bytes instead of {wanted:?}", found.len()));
            }
            (Err(e), _) => Err(e),
        },
    };
    outcome.map_err(|e| format!("operation {what} on {one}, {two}: {e}"))
}

#[test]
fn connections_that_are_cut_anywhere_lose_nothing() {
    let node = Exported::start();
    let cutter = Cutter::start(node.port);
    let endpoint = format!("a=ws://127.0.0.1:{}/v2/fs@/", cutter.port);
    let Some(mount) = Mount::start(&["--endpoint", &endpoint]) else { return };
    let (mut model, mut numbers) = (BTreeMap::new(), Numbers(20_260_101));
    fs::write(node.dir().join("probe"), "").unwrap();
    model.insert("probe".to_owned(), Vec::new());
    for round in 0..150 {
        // One cut at a time: what is sent a second time arrives. Opening asks the node.
        until("the connection", || File::open(mount.at.join("probe")).is_ok());
        let bytes = [1, 50, 200, 500, 1000, 5000, 100_000][numbers.below(7)] + numbers.below(100);
        cutter.cut_after(bytes as i64);
        for _ in 0..3 {
            if let Err(e) = step(&mount.at, &mut model, &mut numbers) {
                panic!("round {round}, {} cuts: {e}", cutter.cuts.load(Ordering::Acquire));
            }
        }
        cutter.cut_after(-1);
    }
    assert!(cutter.cuts.load(Ordering::Acquire) > 40, "{}", cutter.cuts.load(Ordering::Acquire));
    for dir in [node.dir(), &mount.at] {
        let found: BTreeMap<_, _> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()))
            .collect();
        assert!(found == model, "{}", dir.display());
    }
    ok(mount.shell("rm f* probe; test -z \"$(ls)\"", node.dir()));
}
