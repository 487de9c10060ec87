//! Earlier states of a file, kept beside it: `<file>.prev` is the newest, `<file>.prev.2` the one before,
//! and so on. A database's generation is whole in itself, unless it was put aside with its log (`-wal`).

use super::atomic::{self, Waiting};
use super::open::{connect, log_of, snapshot};
use crate::base::{Cancel, Code, Error, Result, ResultExt};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use std::ffi::OsString;
use std::fs::{FileTimes, Metadata, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

/// Generations that are kept.
const KEPT: usize = 3;
/// Pages copied between two looks at whether to go on.
const STEP_PAGES: i32 = 1024;
/// Ends the name of a generation that is being made.
const COPY: &str = ".prev.tmp";

/// Where generation `n` of a file stands; 1 is the newest.
pub(super) fn place(file: &Path, n: usize) -> PathBuf {
    match n {
        1 => with(file, ".prev"),
        n => with(file, &format!(".prev.{n}")),
    }
}

fn with(file: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = file.into();
    name.push(suffix);
    name.into()
}

/// Renames or removes; what is not there is no error.
fn absent_is_fine(outcome: std::io::Result<()>) -> Result<()> {
    match outcome {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

/// Moves every generation back by one, so that the place of the newest is free.
fn rotate(file: &Path) -> Result<()> {
    absent_is_fine(std::fs::remove_file(log_of(&place(file, KEPT))))?;
    for n in (1..KEPT).rev() {
        let (from, to) = (place(file, n), place(file, n + 1));
        absent_is_fine(std::fs::rename(&from, &to)).context(from.display())?;
        absent_is_fine(std::fs::rename(log_of(&from), log_of(&to))).context(from.display())?;
    }
    Ok(())
}

/// Keeps the file as it is now, and its log where it has one; both also stay where they are.
pub(super) fn keep_link(file: &Path) -> Result<()> {
    if !file.exists() {
        return Ok(());
    }
    rotate(file)?;
    let prev = place(file, 1);
    absent_is_fine(std::fs::remove_file(&prev))?;
    std::fs::hard_link(file, &prev).context(prev.display())?;
    absent_is_fine(std::fs::hard_link(log_of(file), log_of(&prev))).context(prev.display())
}

/// Removes every generation of a database but those that are sealed, as far as can be told.
pub(super) fn forget_plain(file: &Path) -> Result<()> {
    let is_sealed = |path: &Path| -> Result<bool> {
        Ok(connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?.table_exists(None, "seal")?)
    };
    for path in (1..=KEPT).map(|n| place(file, n)) {
        if path.exists() && !is_sealed(&path).unwrap_or(false) {
            absent_is_fine(std::fs::remove_file(log_of(&path)))?;
            absent_is_fine(std::fs::remove_file(&path))?;
        }
    }
    Ok(())
}

/// Removes what a process that was killed has left half done.
pub(super) fn sweep(file: &Path) -> Result<()> {
    absent_is_fine(std::fs::remove_file(with(file, COPY)))?;
    drop(Waiting::beside(file));
    let prev = place(file, 1);
    let same = |a: Metadata, b: Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    // Kept by a link, but never replaced: it would change with the file.
    if let (Ok(a), Ok(b)) = (file.metadata(), prev.metadata())
        && same(a, b)
    {
        absent_is_fine(std::fs::remove_file(log_of(&prev)))?;
        absent_is_fine(std::fs::remove_file(prev))?;
    }
    Ok(())
}

/// Copies what `from` sees to a new file `to` (0600), and returns once it is on stable storage. Between two
/// pieces it asks whether to go on. Errors: `cancelled` when not; `again` when another program holds it.
pub(super) fn copy(from: &Connection, to: &Path, go_on: &dyn Fn() -> bool) -> Result<()> {
    absent_is_fine(std::fs::remove_file(to))?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let mut copy = Connection::open(to)?;
    copy.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")?;
    let backup = Backup::new(from, &mut copy)?;
    loop {
        match backup.step(STEP_PAGES)? {
            StepResult::Done => break,
            StepResult::More if go_on() => {}
            StepResult::More => return Err(Error::new(Code::Cancelled, "stopped")),
            _ => return Err(Error::new(Code::Again, "another program holds the database")),
        }
    }
    drop(backup);
    // No copy needs a log to be read.
    copy.execute_batch("PRAGMA journal_mode = DELETE")?;
    copy.close().map_err(|(_, e)| e)?;
    Ok(file.sync_all()?)
}

/// A database as it was found, to be kept as a generation.
pub(super) struct Found {
    path: PathBuf,
    snapshot: Connection,
    times: FileTimes,
}

impl Found {
    /// `None` if nothing has changed since the newest generation was made, or there is nothing yet. Only of a
    /// file whose log is empty can be told whether it has changed.
    pub(super) fn look(path: &Path, is_folded: bool) -> Result<Option<Found>> {
        let now = path.metadata()?;
        let state = |m: &Metadata| (m.len(), m.mtime(), m.mtime_nsec());
        let is_kept = place(path, 1).metadata().is_ok_and(|kept| state(&kept) == state(&now));
        if is_kept && is_folded {
            return Ok(None);
        }
        let snapshot = snapshot(path)?;
        // A state that was sealed before there was any is none.
        let tables: i64 = snapshot.query_row(
            "SELECT count(*) FROM sqlite_schema WHERE name != 'seal'",
            [],
            |r| r.get(0),
        )?;
        if tables == 0 {
            return Ok(None);
        }
        let times = FileTimes::new().set_modified(now.modified()?);
        Ok(Some(Found { path: path.to_owned(), snapshot, times }))
    }

    /// Copies it to its place.
    pub(super) fn keep(self, stop: &Cancel) -> Result<()> {
        let temporary = with(&self.path, COPY);
        let prev = place(&self.path, 1);
        let keep = || {
            copy(&self.snapshot, &temporary, &|| !stop.is_cancelled())?;
            OpenOptions::new().write(true).open(&temporary)?.set_times(self.times)?;
            rotate(&self.path)?;
            std::fs::rename(&temporary, &prev)?;
            atomic::sync_dir(&prev)
        };
        let kept: Result<()> = keep();
        if kept.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        kept.context(format!("keeping {}", prev.display()))
    }

    /// Copies it beside the work that goes on.
    pub(super) fn keep_in_background(self) -> Result<Keeping> {
        let stop = Cancel::new();
        let stopped = stop.clone();
        let thread =
            std::thread::Builder::new().name("state-prev".into()).spawn(move || {
                match self.keep(&stopped) {
                    Err(e) if e.code != Code::Cancelled => {
                        log::warn!("state database: no generation was kept: {e}");
                    }
                    _ => {}
                }
            })?;
        Ok(Keeping { stop, thread: Some(thread) })
    }
}

/// A generation that is being made; given up where this is dropped.
pub(super) struct Keeping {
    stop: Cancel,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::TempDir;
    use super::super::{Db, Schema};
    use super::*;

    const NOTES: Schema = Schema { room: "notes", migrations: &["CREATE TABLE notes (note TEXT)"] };

    fn inode(path: &Path) -> Option<u64> {
        path.metadata().ok().map(|m| m.ino())
    }

    #[test]
    fn what_was_cut_short_is_cleared_away() {
        let dir = TempDir::new();
        let path = dir.path("state.db");
        Db::open(&path, &[NOTES]).unwrap().close();
        let prev = place(&path, 1);
        keep_link(&path).unwrap();
        assert_eq!(inode(&prev), inode(&path));
        std::fs::write(with(&path, COPY), "half").unwrap();
        std::fs::write(with(&path, ".new"), "half").unwrap();
        Db::open(&path, &[NOTES]).unwrap().close();
        assert_ne!(inode(&prev), inode(&path));
        assert!(!with(&path, COPY).exists() && !with(&path, ".new").exists());
    }

    #[test]
    fn a_generation_moves_with_its_log() {
        let dir = TempDir::new();
        let path = dir.path("state.db");
        for n in 1..=5 {
            std::fs::write(&path, n.to_string()).unwrap();
            match n {
                2 => std::fs::write(log_of(&path), "log of 2").unwrap(),
                _ => absent_is_fine(std::fs::remove_file(log_of(&path))).unwrap(),
            }
            keep_link(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            for at in 1..=n.min(KEPT) {
                let (expected, at) = (n + 1 - at, place(&path, at));
                assert_eq!(std::fs::read_to_string(&at).unwrap(), expected.to_string());
                assert_eq!(log_of(&at).exists(), expected == 2, "{n} {}", at.display());
            }
            assert!(!place(&path, KEPT + 1).exists());
        }
        forget_plain(&path).unwrap();
        assert!((1..=KEPT).all(|n| !place(&path, n).exists()));
    }
}
