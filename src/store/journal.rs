//! Append-only logs of one record per line. Who tells something hands a line over and goes on; a thread
//! of its own writes, rotates and compresses. What cannot be written, or comes faster than the disk takes
//! it, is lost and counted, and hinders nobody. It does not know what a line says.

use crate::base::{Result, ResultExt, now_ms};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Bytes of lines that may wait for the disk.
const PENDING_MAX: usize = 16 << 20;
/// What a log's name ends with; an archive has `.gz` behind it once it is compressed.
const SUFFIX: &str = ".ndjson";
/// What an archive that is just being compressed ends with.
const UNFINISHED: &str = ".part";

/// When a log is rotated, and what is kept of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes above which the log becomes an archive; 0 for never.
    pub max_bytes: u64,
    /// Archives kept, the newest; 0 for all.
    pub keep: usize,
}

/// A log that is written to. Its end writes what is pending.
pub struct Journal {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    pending: Mutex<Pending>,
    news: Condvar,
}

#[derive(Default)]
struct Pending {
    lines: Vec<u8>,
    lost: u64,
    /// Of these, what was not reported yet.
    newly_lost: u64,
    stopped: bool,
}

impl Journal {
    /// The log `<dir>/<stem>.ndjson`, made at its first line (0600). Errors: the directory cannot be made,
    /// or an existing log not be taken from others' eyes.
    pub fn open(dir: &Path, stem: &'static str, rotation: Rotation) -> Result<Journal> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).context(dir.display())?;
        let writer = Writer { dir: dir.to_owned(), stem, rotation, failing: false };
        if writer.path().exists() {
            super::atomic::make_private(&writer.path())?;
        }
        let shared = Arc::new(Shared { pending: Mutex::default(), news: Condvar::new() });
        let of_thread = shared.clone();
        let run = move || writer.run(&of_thread);
        let thread = std::thread::Builder::new().name("journal".into()).spawn(run);
        let thread = Mutex::new(Some(thread.context("journal thread")?));
        Ok(Journal { shared, thread })
    }

    /// Hands over a line, which must not contain a line break. Never waits for the disk.
    pub fn append(&self, line: &str) {
        debug_assert!(!line.contains('\n'));
        let mut pending = self.shared.lock();
        if pending.stopped || pending.lines.len() + line.len() >= PENDING_MAX {
            pending.lose(1);
            return;
        }
        pending.lines.extend_from_slice(line.as_bytes());
        pending.lines.push(b'\n');
        drop(pending);
        self.shared.news.notify_one();
    }

    /// Lines that were lost since the start.
    pub fn lost(&self) -> u64 {
        self.shared.lock().lost
    }

    /// Writes what is pending, and ends; what comes later is lost.
    pub fn stop(&self) {
        self.shared.lock().stopped = true;
        self.shared.news.notify_one();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Pending {
    fn lose(&mut self, lines: u64) {
        self.lost += lines;
        self.newly_lost += lines;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines. `None` once stopped and empty.
    fn take(&self) -> Option<Vec<u8>> {
        let mut pending = self.lock();
        while pending.lines.is_empty() {
            if pending.stopped {
                return None;
            }
            pending = self.news.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
        Some(std::mem::take(&mut pending.lines))
    }
}

/// The thread's own.
struct Writer {
    dir: PathBuf,
    stem: &'static str,
    rotation: Rotation,
    /// It was said that lines are lost.
    failing: bool,
}

impl Writer {
    fn path(&self) -> PathBuf {
        self.dir.join(format!("{}{SUFFIX}", self.stem))
    }

    fn run(mut self, shared: &Shared) {
        // What a crash left half done.
        self.tidy();
        while let Some(lines) = shared.take() {
            let mut rest = &lines[..];
            let mut outcome = Ok(());
            while outcome.is_ok() && !rest.is_empty() {
                outcome = self.write(&mut rest);
            }
            let mut pending = shared.lock();
            if outcome.is_err() {
                pending.lose(rest.iter().filter(|b| **b == b'\n').count() as u64);
            }
            let lost = std::mem::take(&mut pending.newly_lost);
            drop(pending);
            self.report(outcome, lost);
        }
    }

    /// Says once that lines are lost, and once that they no longer are.
    fn report(&mut self, outcome: io::Result<()>, lost: u64) {
        let path = self.path();
        match outcome {
            Err(e) if !self.failing => {
                log::error!("{}: {e}; its lines are lost until it can be written", path.display());
            }
            Ok(()) if self.failing && lost == 0 => {
                log::warn!("{} is written again", path.display())
            }
            Ok(()) if !self.failing && lost > 0 => {
                log::warn!("{}: the disk is too slow; lines are lost", path.display());
            }
            _ => {}
        }
        self.failing = lost > 0;
    }

    /// Writes as many lines as the log has room for, at least one, and takes them off `rest`. The log is
    /// opened each time: it may be moved away by others, and nothing need be remembered of it.
    fn write(&self, rest: &mut &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).append(true).create(true).mode(0o600).open(self.path())?;
        let mut size = file.metadata()?.len();
        if is_torn(&file, size)? {
            // The half line becomes one that readers skip, and the next is whole.
            file.write_all(b"\n")?;
            size += 1;
        }
        let room = match self.rotation.max_bytes {
            0 => u64::MAX,
            max => max.saturating_sub(size),
        };
        let now = fitting(rest, room);
        file.write_all(now)?;
        *rest = &rest[now.len()..];
        size += now.len() as u64;
        if self.rotation.max_bytes > 0 && size > self.rotation.max_bytes {
            self.rotate();
        }
        Ok(())
    }

    /// Makes the log an archive. Where that fails, the log grows on.
    fn rotate(&self) {
        let rotated = self.archive().and_then(|archive| {
            self.tidy();
            compress(&archive)
        });
        if let Err(e) = rotated {
            log::warn!("{}: rotating: {e}", self.path().display());
        }
    }

    /// Renames the log to a name that no archive has.
    fn archive(&self) -> io::Result<PathBuf> {
        let now_ms = now_ms();
        for n in 0..=u32::MAX {
            let again = if n == 0 { String::new() } else { format!("-{n}") };
            let archive = self.dir.join(format!("{}-{now_ms}{again}{SUFFIX}", self.stem));
            if !archive.exists() && !with(&archive, ".gz").exists() {
                std::fs::rename(self.path(), &archive)?;
                return Ok(archive);
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Removes archives that are too many, and what was never finished.
    fn tidy(&self) {
        let mut archives = Vec::new();
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let (whole, unfinished) = match name.strip_suffix(UNFINISHED) {
                Some(whole) => (whole, true),
                None => (name, false),
            };
            match archive_age(self.stem, whole) {
                Some(_) if unfinished => drop(std::fs::remove_file(entry.path())),
                Some(age) => archives.push((age, entry.path())),
                None => {}
            }
        }
        archives.sort();
        let keep = if self.rotation.keep == 0 { usize::MAX } else { self.rotation.keep };
        for (_, path) in archives.iter().take(archives.len().saturating_sub(keep)) {
            if let Err(e) = std::fs::remove_file(path) {
                log::warn!("{}: {e}", path.display());
            }
        }
    }
}

/// Whether the last line has no end, as after a crash or on a full disk.
fn is_torn(file: &File, size: u64) -> io::Result<bool> {
    let mut last = [b'\n'];
    if size > 0 {
        file.read_exact_at(&mut last, size - 1)?;
    }
    Ok(last != [b'\n'])
}

/// The first of the lines: all that fit, and the one that fits no more.
fn fitting(lines: &[u8], room: u64) -> &[u8] {
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    if lines.len() <= room {
        return lines;
    }
    let end = lines[room..].iter().position(|b| *b == b'\n').map(|at| room + at + 1);
    &lines[..end.unwrap_or(lines.len())]
}

/// When an archive was made, and which of that moment it is; `None` for what is none.
fn archive_age(stem: &str, name: &str) -> Option<(u64, u32)> {
    let name = name.strip_suffix(".gz").unwrap_or(name).strip_suffix(SUFFIX)?;
    let age = name.strip_prefix(stem)?.strip_prefix('-')?;
    let (ms, again) = age.split_once('-').unwrap_or((age, "0"));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    (digits(ms) && digits(again)).then_some(())?;
    Some((ms.parse().ok()?, again.parse().ok()?))
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Replaces an archive by a compressed one; where that fails, it stays as it is.
fn compress(archive: &Path) -> io::Result<()> {
    let done = with(archive, ".gz");
    let unfinished = with(&done, UNFINISHED);
    let pack = || {
        let mut options = OpenOptions::new();
        let packed = options.write(true).create_new(true).mode(0o600).open(&unfinished)?;
        let mut packer = GzEncoder::new(packed, Compression::fast());
        io::copy(&mut File::open(archive)?, &mut packer)?;
        packer.finish()?.sync_all()?;
        std::fs::rename(&unfinished, &done)?;
        std::fs::remove_file(archive)
    };
    pack().inspect_err(|_| drop(std::fs::remove_file(&unfinished)))
}

/// The end of a log.
#[derive(Default)]
pub struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    /// The last `max` bytes at most. A log that is not there is empty.
    pub fn read(path: &Path, max: u64) -> Result<Tail> {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = match File::open(path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(e) => return Err(e),
            };
            let size = file.metadata()?.len();
            // One byte more tells whether a line begins here.
            let from = size.saturating_sub(max.saturating_add(1));
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.take(size - from).read_to_end(&mut bytes)?;
            if from > 0 {
                let end = bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |at| at + 1);
                bytes.drain(..end);
            }
            Ok(bytes)
        };
        Ok(Tail { bytes: read().context(path.display())? })
    }

    /// The lines that are whole and text, oldest first.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        let whole =
            self.bytes.split_inclusive(|b| *b == b'\n').filter_map(|l| l.strip_suffix(b"\n"));
        whole.filter_map(|line| std::str::from_utf8(line).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::TempDir;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const NEVER: Rotation = Rotation { max_bytes: 0, keep: 0 };

    fn names(dir: &TempDir) -> Vec<String> {
        let all = std::fs::read_dir(dir.path("")).unwrap();
        let mut all: Vec<_> = all.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    fn write(dir: &TempDir, rotation: Rotation, lines: &[&str]) -> u64 {
        let journal = Journal::open(&dir.path(""), "log", rotation).unwrap();
        lines.iter().for_each(|l| journal.append(l));
        journal.stop();
        journal.lost()
    }

    #[test]
    fn lines_are_appended_in_order_and_a_torn_one_is_closed() {
        let dir = TempDir::new();
        let path = dir.path("log.ndjson");
        assert_eq!(write(&dir, NEVER, &["one", "two"]), 0);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"tor").unwrap();
        let lines =
            |max| Tail::read(&path, max).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(lines(100), ["one", "two"], "what is not whole is skipped");
        write(&dir, NEVER, &["three"]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\ntor\nthree\n");
        assert_eq!(lines(6), ["three"]);
        assert_eq!(lines(8), ["three"], "not the half of a line");
        assert_eq!(lines(10), ["tor", "three"], "a line that begins right there");
        assert!(Tail::read(&dir.path("none"), 9).unwrap().lines().next().is_none());
    }

    #[test]
    fn a_log_is_rotated_when_it_has_grown_and_the_newest_archives_are_kept() {
        let dir = TempDir::new();
        std::fs::write(dir.path("log-5.ndjson.gz.part"), "half").unwrap();
        std::fs::write(dir.path("log-6.ndjson"), "old").unwrap();
        std::fs::write(dir.path("log-book.ndjson"), "another's").unwrap();
        let rotation = Rotation { max_bytes: 8, keep: 2 };
        write(&dir, rotation, &["aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff", "g"]);
        let all = names(&dir);
        let archives: Vec<_> = all.iter().filter(|n| n.ends_with(".ndjson.gz")).collect();
        assert_eq!(archives.len(), 2, "{all:?}");
        assert_eq!(all.len(), 4, "{all:?}");
        assert_eq!(std::fs::read_to_string(dir.path("log.ndjson")).unwrap(), "g\n");
        // By age, not by name: of one moment the first has no number.
        let mut by_age = archives.clone();
        by_age.sort_by_key(|n| archive_age("log", n));
        let texts = by_age.iter().map(|name| {
            let mut text = String::new();
            let file = File::open(dir.path(name)).unwrap();
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
            text
        });
        assert_eq!(texts.collect::<Vec<_>>(), ["cccc\ndddd\n", "eeee\nffff\n"]);
    }

    #[test]
    fn what_cannot_be_written_is_lost_and_counted_and_then_it_goes_on() {
        let dir = TempDir::new();
        // In place of the log something that takes no lines.
        std::fs::create_dir(dir.path("log.ndjson")).unwrap();
        assert_eq!(write(&dir, NEVER, &["one", "two"]), 2);
        std::fs::remove_dir(dir.path("log.ndjson")).unwrap();
        assert_eq!(write(&dir, NEVER, &["three"]), 0);
        let full = "x".repeat(PENDING_MAX);
        assert_eq!(write(&dir, NEVER, &[&full, "four"]), 1);
        assert_eq!(std::fs::read_to_string(dir.path("log.ndjson")).unwrap(), "three\nfour\n");
    }

    /// A small disk, until it is dropped.
    struct Disk(PathBuf);

    impl Disk {
        fn mount(at: PathBuf) -> Option<Disk> {
            use nix::mount::{MsFlags, mount};
            std::fs::create_dir(&at).unwrap();
            let (source, flags, size) = (Some("tmpfs"), MsFlags::empty(), Some("size=64k"));
            let mounted = mount(source, &at, Some("tmpfs"), flags, size);
            mounted.is_ok().then_some(Disk(at))
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
        }
    }

    #[test]
    fn a_full_disk_costs_lines_and_the_others_stay_whole() {
        let dir = TempDir::new();
        let Some(disk) = Disk::mount(dir.path("disk")) else {
            eprintln!("skipped: only root may mount a small disk");
            return;
        };
        let other = disk.0.join("other");
        std::fs::write(&other, vec![0; 40 << 10]).unwrap();
        let journal = Journal::open(&disk.0, "log", NEVER).unwrap();
        let line = "x".repeat(999);
        (0..60).for_each(|_| journal.append(&line));
        let patience = crate::base::Deadline::after_ms(10_000);
        while journal.lost() == 0 {
            assert!(!patience.passed(), "nothing is lost");
            std::thread::yield_now();
        }
        std::fs::remove_file(&other).unwrap();
        journal.append("last");
        journal.stop();
        let log = Tail::read(&disk.0.join("log.ndjson"), 1 << 20).unwrap();
        let lines: Vec<_> = log.lines().collect();
        let (last, rest) = lines.split_last().unwrap();
        assert_eq!(*last, "last");
        assert!(rest.contains(&&*line) && rest.iter().all(|l| line.starts_with(*l)));
    }

    #[test]
    fn only_names_that_archives_are_given_are_archives() {
        for (name, age) in [
            ("log-17.ndjson", Some((17, 0))),
            ("log-17-3.ndjson.gz", Some((17, 3))),
            ("log.ndjson", None),
            ("log-.ndjson", None),
            ("log-17-.ndjson", None),
            ("log-+17.ndjson", None),
            ("log-17.txt", None),
            ("logs-17.ndjson", None),
        ] {
            assert_eq!(archive_age("log", name), age, "{name}");
        }
    }
}
