//! File contents kept on a local disk: what was read once does not travel again, and nothing old is shown.

use super::{Exported, Mount, failed, ok, run, until};
use crate::conformance::Scratch;
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SIZE: usize = 3 << 20;

fn content(seed: u8) -> Vec<u8> {
    (0..SIZE).map(|n| (n / 7 % 251) as u8 ^ seed).collect()
}

/// What has changed in the last two seconds is not kept.
fn settled(path: &Path) {
    let changed = std::fs::metadata(path).unwrap();
    let changed = Duration::new(changed.ctime() as u64, changed.ctime_nsec() as u32);
    until("the file to be old enough", || {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap() > changed + Duration::from_secs(2)
    });
}

/// What came over the line, and what of the disk was used.
fn figures(mount: &Mount) -> (u64, u64, u64) {
    let status = ok(run(&["status", "--no-probe", mount.at.to_str().unwrap()]));
    let status: Value = serde_json::from_str(&status).unwrap();
    let (line, disk) = (&status["endpoints"][0]["line"], &status["disk_cache"]);
    let figure = |v: &Value| v.as_u64().unwrap();
    (figure(&line["raw_bytes"]), figure(&disk["hits"]), figure(&disk["bytes"]))
}

struct House {
    node: Exported,
    dir: Scratch,
}

impl House {
    fn start() -> House {
        House { node: Exported::start(), dir: Scratch::new() }
    }

    fn mount(&self, more: &str) -> Option<Mount> {
        let options = format!("cache_dir={}{more}", self.dir.path().join("kept").display());
        self.node.mount(&["-o", &options])
    }
}

#[test]
fn what_was_read_once_does_not_travel_again() {
    let mut house = House::start();
    let (big, small) = (house.node.dir().join("big"), house.node.dir().join("small"));
    std::fs::write(&big, content(0)).unwrap();
    std::fs::write(&small, "a few bytes").unwrap();
    settled(&small);
    let Some(mount) = house.mount("") else { return };
    let read = |mount: &Mount| {
        assert!(std::fs::read(mount.at.join("big")).unwrap() == content(0));
        assert_eq!(std::fs::read(mount.at.join("small")).unwrap(), b"a few bytes");
    };
    read(&mount);
    let (moved, hits, _) = figures(&mount);
    assert!(moved >= SIZE as u64 && hits == 0, "{moved} bytes, {hits} hits");
    until("all to be kept", || figures(&mount).2 >= SIZE as u64);
    drop(mount);

    // Both have been away.
    house.node.program.kill();
    house.node.start_again();
    let mount = house.mount("").unwrap();
    read(&mount);
    let (moved, hits, _) = figures(&mount);
    assert!(moved < 64 << 10 && hits >= SIZE as u64 / (128 << 10), "{moved} bytes, {hits} hits");

    // Another content, of the same length, is another one: at once.
    std::fs::write(&big, content(1)).unwrap();
    until("the change to be seen", || std::fs::read(mount.at.join("big")).unwrap() == content(1));
    drop(mount);
    let mount = house.mount("").unwrap();
    assert!(std::fs::read(mount.at.join("big")).unwrap() == content(1));
    // What is written here is not what was kept.
    std::fs::write(mount.at.join("big"), content(2)).unwrap();
    assert!(std::fs::read(mount.at.join("big")).unwrap() == content(2));
    drop(mount);
    let mount = house.mount("").unwrap();
    assert!(std::fs::read(mount.at.join("big")).unwrap() == content(2));
}

#[test]
fn a_mount_that_is_killed_leaves_nothing_wrong_and_no_more_than_was_asked_for() {
    let house = House::start();
    let names: Vec<_> = (0..8u8).map(|n| format!("f{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        std::fs::write(house.node.dir().join(name), content(n as u8)).unwrap();
    }
    settled(&house.node.dir().join("f7"));
    let small = ",cache_dir_size=4M";
    for _ in 0..3 {
        let Some(mut mount) = house.mount(small) else { return };
        for name in &names[..5] {
            std::fs::read(mount.at.join(name)).unwrap();
        }
        mount.child.kill().unwrap();
    }
    let mount = house.mount(small).unwrap();
    for (n, name) in names.iter().enumerate() {
        assert!(std::fs::read(mount.at.join(name)).unwrap() == content(n as u8), "{name}");
    }
    until("no more than was asked for", || figures(&mount).2 <= 4 << 20);
    let (_, _, bytes) = figures(&mount);
    assert!(bytes > 1 << 20, "{bytes}");
}

#[test]
fn a_cache_that_cannot_be_used_is_refused_by_name() {
    let house = House::start();
    let Some(mount) = house.mount("") else { return };
    let again = |options: &str| {
        let endpoint = format!("a={}@/", house.node.url());
        failed(run(&["--endpoint", &endpoint, "-o", options, "mount", "/tmp"]))
    };
    let kept = house.dir.path().join("kept");
    let (status, errors) = again(&format!("cache_dir={}", kept.display()));
    assert!(errors.contains("-o cache_dir") && errors.contains("another mount"), "{errors}");
    assert_eq!(status, 74, "{errors}");
    drop(mount);
    std::fs::write(house.dir.path().join("file"), "x").unwrap();
    for (options, said) in [
        (format!("cache_dir={}", house.dir.path().join("file").display()), "chmod 700"),
        (format!("cache_dir={}/no/such", house.dir.path().display()), "-o cache_dir"),
        (format!("cache_dir={},no_cache", kept.display()), "no_cache"),
        (format!("cache_dir={},cache_dir_size=much", kept.display()), "such as 64M"),
        ("cache_dir_size=1G".into(), "needs cache_dir"),
        ("cache_dir".into(), "needs a value"),
    ] {
        let (_, errors) = again(&options);
        assert!(errors.contains(said), "{options}: {errors}");
    }
}
