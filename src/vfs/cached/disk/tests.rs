//! What is kept on a disk, and what of it is believed.

use super::*;
use crate::vfs::NodeId;
use std::os::unix::fs::PermissionsExt;

/// Removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        let dir = std::env::temp_dir().join(id::hex_token("spiderweb-disk-"));
        DirBuilder::new().mode(0o700).create(&dir).unwrap();
        Scratch(dir)
    }

    fn pieces(&self) -> Vec<PathBuf> {
        let dirs = std::fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().path());
        let files = dirs.filter(|p| p.is_dir()).flat_map(|p| std::fs::read_dir(p).unwrap());
        files.map(|e| e.unwrap().path()).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn attr(size: u64) -> Attr {
    Attr {
        id: NodeId(1),
        kind: Kind::File,
        mode: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        size,
        blocks: 0,
        atime_ns: 0,
        mtime_ns: 5,
        ctime_ns: 6,
        generation: 0,
        identity: 7,
    }
}

fn content(len: u64) -> Bytes {
    (0..len).map(|n| (n * 7 % 251) as u8).collect::<Vec<_>>().into()
}

/// Keeps a file of some length, read in one go, and has it written.
fn kept(dir: &Path, len: u64) -> Bytes {
    let disk = Disk::open(dir, 1 << 30).unwrap();
    let data = content(len);
    Volume::of(&disk, "a", &attr(len)).unwrap().keep(0, &data);
    disk.stop();
    data
}

#[test]
fn what_was_kept_is_there_for_the_next_one_piece_by_piece() {
    let scratch = Scratch::new();
    let len = 2 * PIECE + 1000;
    let data = kept(&scratch.0, len);
    assert_eq!(scratch.pieces().len(), 3);
    let disk = Disk::open(&scratch.0, 1 << 30).unwrap();
    let volume = Volume::of(&disk, "a", &attr(len)).unwrap();
    for (offset, n) in [(0, len), (5, 9), (PIECE - 1, 2), (PIECE, PIECE), (len - 10, 999)] {
        let end = (offset + n).min(len) as usize;
        let found = volume.read(offset, n as u32).unwrap();
        assert_eq!(found, data[offset as usize..end], "{n} at {offset}");
    }
    assert!(volume.read(len, 1).is_none());
    for path in scratch.pieces() {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let status = disk.status();
    assert_eq!((status.misses, status.writes), (0, true));
    disk.stop();
    assert_eq!(disk.status().bytes, len + 3 * HEADER as u64);
}

#[test]
fn another_content_is_not_found() {
    let scratch = Scratch::new();
    let len = PIECE;
    kept(&scratch.0, len);
    let disk = Disk::open(&scratch.0, 1 << 30).unwrap();
    let read = |source: &str, attr: &Attr| Volume::of(&disk, source, attr)?.read(0, 10);
    let same = attr(len);
    assert!(read("a", &same).is_some());
    assert!(read("b", &same).is_none());
    for other in [
        Attr { identity: 8, ..same.clone() },
        Attr { identity: 0, ..same.clone() },
        Attr { mtime_ns: 6, ..same.clone() },
        Attr { ctime_ns: 7, ..same.clone() },
        Attr { size: len - 1, ..same.clone() },
        Attr { kind: Kind::Special, ..same.clone() },
    ] {
        assert!(read("a", &other).is_none(), "{other:?}");
    }
    disk.stop();
}

#[test]
fn only_whole_pieces_of_what_has_settled_are_kept() {
    let scratch = Scratch::new();
    let disk = Disk::open(&scratch.0, 1 << 30).unwrap();
    let len = 4 * PIECE;
    let data = content(len);
    let volume = Volume::of(&disk, "a", &attr(len)).unwrap();
    let from = (PIECE / 2) as usize;
    volume.keep(from as u64, &data.slice(from..from + 2 * PIECE as usize));
    // More than the file was known to have.
    Volume::of(&disk, "b", &attr(PIECE)).unwrap().keep(0, &data);
    let young = Attr { ctime_ns: now_ns(), ..attr(len) };
    Volume::of(&disk, "c", &young).unwrap().keep(0, &data);
    disk.stop();
    assert_eq!(scratch.pieces().len(), 1);
    assert_eq!(volume.read(PIECE, PIECE as u32).unwrap(), data[PIECE as usize..][..PIECE as usize]);
}

#[test]
fn a_piece_that_is_not_as_it_was_kept_is_removed() {
    let damages: [fn(&mut Vec<u8>); 6] = [
        |b| b[0] ^= 1,
        |b| b[5] ^= 1,
        |b| b[9] ^= 1,
        |b| b[HEADER + 100] ^= 1,
        |b| b.truncate(b.len() - 1),
        |b| b.extend([0; 9]),
    ];
    for (n, damage) in damages.iter().enumerate() {
        let scratch = Scratch::new();
        kept(&scratch.0, 5000);
        let path = scratch.pieces().remove(0);
        let mut bytes = std::fs::read(&path).unwrap();
        damage(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let disk = Disk::open(&scratch.0, 1 << 30).unwrap();
        let volume = Volume::of(&disk, "a", &attr(5000)).unwrap();
        assert!(volume.read(0, 5000).is_none(), "damage {n}");
        disk.stop();
        assert!(scratch.pieces().is_empty(), "damage {n}");
    }
}

#[test]
fn what_was_used_last_stays_when_room_is_made() {
    let scratch = Scratch::new();
    let piece = PIECE + HEADER as u64;
    let disk = Disk::open(&scratch.0, 3 * piece).unwrap();
    let volume = |n: u64| Volume::of(&disk, &n.to_string(), &attr(PIECE)).unwrap();
    let keep = |n: u64| {
        volume(n).keep(0, &content(PIECE));
        while volume(n).read(0, 1).is_none() {
            std::thread::yield_now();
        }
    };
    (0..3).for_each(keep);
    assert!(volume(0).read(0, 1).is_some());
    keep(3);
    disk.stop();
    let there = [0, 1, 2, 3].map(|n| volume(n).read(0, 1).is_some());
    assert_eq!((there, disk.status().bytes), ([true, false, true, true], 3 * piece));
    drop(disk);
    // Less room the next time, and what is no piece.
    std::fs::write(scratch.0.join("00"), "not ours").unwrap();
    let stray = scratch.pieces()[0].with_file_name("stray.new");
    std::fs::write(&stray, "unfinished").unwrap();
    let disk = Disk::open(&scratch.0, piece).unwrap();
    disk.stop();
    assert_eq!(scratch.pieces().len(), 1);
    assert!(!stray.exists() && scratch.0.join("00").exists());
}

#[test]
fn a_directory_of_others_or_in_use_is_refused() {
    let scratch = Scratch::new();
    let open = |dir: &Path| Disk::open(dir, 1 << 20).map(|disk| disk.stop());
    let disk = Disk::open(&scratch.0.join("new"), 1 << 20).unwrap();
    let e = open(&scratch.0.join("new")).unwrap_err();
    assert!(e.message.contains("another mount uses it"), "{e}");
    disk.stop();
    drop(disk);
    open(&scratch.0.join("new")).unwrap();
    let shared = scratch.0.join("shared");
    DirBuilder::new().mode(0o755).create(&shared).unwrap();
    assert!(open(&shared).unwrap_err().message.contains("chmod 700"));
    std::os::unix::fs::symlink(scratch.0.join("new"), scratch.0.join("link")).unwrap();
    assert!(open(&scratch.0.join("link")).unwrap_err().message.contains("chmod 700"));
    assert!(open(&scratch.0.join("no/such")).is_err());
}
