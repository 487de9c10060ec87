//! A backup is one file: the state database as it was at one moment, with a table more for the files that
//! stand beside it. It is an SQLite database itself, so that any copy of the state can be restored.

use super::atomic::Waiting;
use super::open::{self, Lock, Schema, State};
use super::seal::Key;
use super::{atomic, generations, sealed};
use crate::base::{Code, Error, Result, ResultExt, now_ms};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// `backup.format` that this version writes and reads.
const FORMAT: i64 = 1;
/// Largest file that is taken along.
const FILE_MAX: usize = 16 << 20;

/// A file beside the database: its name, and what it holds.
pub type File = (String, Vec<u8>);

/// Writes a backup of the database, which may be in use, to `to` (0600). Errors: `not_found` without a
/// database, `eexist` for a file that is there, unless it may be replaced; `storage_error` for a database
/// that is damaged or not ours. What was at `to` is then still there.
pub fn write(
    database: &Path,
    schemas: &[Schema],
    files: &[File],
    to: &Path,
    replace: bool,
) -> Result<()> {
    if !database.exists() {
        let message = format!("there is no state database at {}", database.display());
        return Err(Error::new(Code::NotFound, message));
    }
    if to.exists() && !replace {
        return Err(taken(to));
    }
    let copy = Waiting::apart(to);
    let read = || generations::copy(&open::snapshot(database)?, copy.path(), &|| true);
    read().map_err(|e| open::about(database, e))?;
    let write = || {
        let conn = Connection::open(copy.path())?;
        open::check(&conn, schemas)?;
        // One file, and nothing beside it.
        conn.execute_batch("PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; BEGIN")?;
        conn.execute_batch(
            "DROP TABLE IF EXISTS backup; DROP TABLE IF EXISTS backup_files;
             CREATE TABLE backup (format INTEGER NOT NULL, made_at_ms INTEGER NOT NULL,
                 version TEXT NOT NULL);
             CREATE TABLE backup_files (name TEXT PRIMARY KEY, content BLOB NOT NULL)",
        )?;
        let version = env!("CARGO_PKG_VERSION");
        conn.execute("INSERT INTO backup VALUES (?1, ?2, ?3)", params![FORMAT, now_ms(), version])?;
        for (name, content) in files {
            conn.execute("INSERT INTO backup_files VALUES (?1, ?2)", params![name, content])?;
        }
        conn.execute_batch("COMMIT")?;
        Ok(conn.close().map_err(|(_, e)| e)?)
    };
    let written: Result<()> = write();
    written.map_err(|e| open::about(database, e))?;
    match replace {
        true => copy.replace(to),
        false => copy.place(to).map_err(|e| match e.errno() {
            libc::EEXIST => taken(to),
            _ => e,
        }),
    }
}

fn taken(to: &Path) -> Error {
    let message = format!("{} is there already; give --force to replace it", to.display());
    Error::new(Code::Eexist, message)
}

/// A backup that was read and found good, about to take the place of the state. Nobody else can open that
/// meanwhile.
pub struct Restore {
    lock: Lock,
    database: PathBuf,
    new: Waiting,
    /// What stood beside the database; nothing where the backup is a bare copy of a database.
    pub files: Vec<File>,
    pub made_at_ms: Option<i64>,
}

impl Restore {
    /// Reads `from`: a backup, or any copy of a state database, such as an earlier generation. Errors:
    /// `storage_error` when the state is in use, or `from` is damaged, newer or foreign; `invalid_config`
    /// when it is sealed and `key` is not its key. Nothing was changed then.
    pub fn prepare(
        from: &Path,
        database: &Path,
        schemas: &[Schema],
        key: Option<&Key>,
    ) -> Result<Restore> {
        let found = from.metadata().context(from.display())?;
        let same = |d: std::fs::Metadata| (d.dev(), d.ino()) == (found.dev(), found.ino());
        if database.metadata().is_ok_and(same) {
            return Err(Error::invalid(format!("{} is the state itself", from.display())));
        }
        let dir = database.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(dir).context(dir.display())?;
        let lock = Lock::take(database).map_err(|e| open::about(database, e))?;
        let new = Waiting::beside(database);
        let read = || {
            open::check_magic(from)?;
            let copied = open::snapshot(from)
                .and_then(|source| generations::copy(&source, new.path(), &|| true));
            copied.map_err(|e| {
                let message = format!("is damaged or cannot be read ({e}); nothing was changed");
                Error::new(Code::StorageError, message)
            })?;
            let mut conn = Connection::open(new.path())?;
            open::check(&conn, schemas)?;
            sealed::opener(&conn, key)?;
            let taken = take_files(&mut conn)?;
            conn.close().map_err(|(_, e)| e)?;
            Ok(taken)
        };
        let (files, made_at_ms) = read().map_err(|e: Error| {
            let e = if e.code == Code::Config { e } else { e.recode(Code::StorageError) };
            e.context(from.display())
        })?;
        Ok(Restore { lock, database: database.to_owned(), new, files, made_at_ms })
    }

    /// Replaces the state, and `files` by their new content. What was there is kept beside each as `.prev`.
    /// Errors: `storage_error` while another program reads it; nothing was changed then.
    pub fn commit(self, files: &[(PathBuf, Vec<u8>)]) -> Result<()> {
        if let Err(e) = fold(&self.database, &self.lock)
            && e.code == Code::Again
        {
            return Err(open::about(&self.database, e));
        }
        for (path, content) in files {
            generations::keep_link(path)?;
            atomic::write(path, content)?;
        }
        generations::keep_link(&self.database)?;
        let log = open::log_of(&self.database);
        if log.exists() {
            // The log of the old state would spoil the new one; the old one without its log is refused.
            self.lock.note(State::Open)?;
            std::fs::remove_file(&log).context(log.display())?;
        }
        self.new.replace(&self.database)?;
        self.lock.note(State::Closed)
    }
}

/// What is damaged keeps its log.
fn fold(database: &Path, lock: &Lock) -> Result<()> {
    if !database.exists() {
        return Ok(());
    }
    open::leave_log(&open::connect(database, OpenFlags::SQLITE_OPEN_READ_WRITE)?, lock)
}

/// Takes what a backup has more than a database out of it.
fn take_files(conn: &mut Connection) -> Result<(Vec<File>, Option<i64>)> {
    conn.execute_batch("PRAGMA journal_mode = MEMORY; PRAGMA secure_delete = ON")?;
    if !conn.table_exists(None, "backup")? {
        return Ok((Vec::new(), None));
    }
    let backup = "SELECT format, made_at_ms FROM backup";
    let row = conn.query_row(backup, [], |r| Ok((r.get(0)?, r.get(1)?))).optional()?;
    let (format, made_at_ms): (i64, i64) = row.ok_or_else(|| open::refused("is damaged"))?;
    if format > FORMAT {
        return Err(open::newer(&format!("backup format {format}"), &FORMAT.to_string()));
    }
    let tx = conn.transaction()?;
    let mut files = Vec::new();
    {
        let mut q = tx.prepare("SELECT name, content FROM backup_files ORDER BY name")?;
        let mut rows = q.query([])?;
        while let Some(row) = rows.next()? {
            let (name, content): (String, Vec<u8>) = (row.get(0)?, row.get(1)?);
            if content.len() > FILE_MAX {
                let message = format!("{name} is larger than {FILE_MAX} bytes");
                return Err(Error::new(Code::StorageError, message));
            }
            files.push((name, content));
        }
    }
    tx.execute_batch("DROP TABLE backup; DROP TABLE backup_files")?;
    tx.commit()?;
    Ok((files, Some(made_at_ms)))
}
