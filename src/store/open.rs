//! Opening the database file: who may use it, whether it is one of ours and whole, and bringing its
//! tables up to date. A file that is refused is left as it was.

use super::atomic;
use crate::base::{Code, Deadline, Error, Result, ResultExt};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The tables of one room: statement number `n` takes them from version `n` to `n + 1`. Released
/// statements never change; new ones are added at the end.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    pub room: &'static str,
    pub migrations: &'static [&'static str],
}

/// `user_version` of files that this version reads and writes.
const FORMAT: i64 = 1;
/// How long a connection waits for another's lock before it gives up.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait for a process (or a thread of this one) that is just letting go of the file.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_POLL: Duration = Duration::from_millis(10);
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// The one table of a database written by the original (spec: control 12.1).
const ORIGINAL_TABLE: &str = "mem_versions";

/// Keeps other processes out for as long as it lives; the kernel drops it with the process.
pub(super) struct Lock(#[expect(dead_code, reason = "held for its flock")] Flock<File>);

/// Opens `path` for the writer, made (0600, its directory 0700) when it is missing.
pub(super) fn writer(path: &Path, schemas: &[Schema]) -> Result<(Connection, Lock)> {
    open_writer(path, schemas).map_err(|e| {
        e.recode(Code::StorageError).context(format!("state database {}", path.display()))
    })
}

fn open_writer(path: &Path, schemas: &[Schema]) -> Result<(Connection, Lock)> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .context(format!("creating directory {}", dir.display()))?;
    let lock = lock(path)?;
    ensure_file(path)?;
    let mut conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    check(&conn)?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    migrate(&mut conn, schemas)?;
    Ok((conn, lock))
}

/// Opens `path` for reading beside the writer.
pub(super) fn reader(path: &Path) -> Result<Connection> {
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    conn.pragma_update(None, "query_only", true)?;
    Ok(conn)
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection> {
    let conn = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    Ok(conn)
}

/// The lock is on a file of its own: SQLite's locks on the database would be lost with any descriptor
/// of it that this process closes.
fn lock(path: &Path) -> Result<Lock> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .context(format!("opening {}", lock_path.display()))?;
    let patience = Deadline::after(LOCK_PATIENCE);
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0)?;
                writeln!(file, "{}", std::process::id())?;
                return Ok(Lock(file));
            }
            Err((held, Errno::EWOULDBLOCK)) if !patience.passed() => {
                std::thread::sleep(LOCK_POLL);
                file = held;
            }
            Err((held, Errno::EWOULDBLOCK)) => return Err(in_use(&held)),
            Err((_, e)) => return Err(Error::from(e).context(lock_path.display())),
        }
    }
}

fn in_use(lock: &File) -> Error {
    let mut pid = String::new();
    let _ = lock.take(32).read_to_string(&mut pid);
    let pid = if pid.trim().is_empty() { "unknown" } else { pid.trim() };
    let message = format!(
        "process {pid} is using it; stop that one, or set runtime.ltm_directory to another place"
    );
    Error::new(Code::StorageError, message)
}

/// Makes an empty file where there is none; looks at the first bytes where there is one.
fn ensure_file(path: &Path) -> Result<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(file) => return Ok(file.sync_all()?),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e.into()),
    }
    let file = File::open(path).map_err(|e| {
        Error::from(e).context("cannot be read; check its owner and mode, it was not touched")
    })?;
    let mut head = Vec::new();
    (&file).take(MAGIC.len() as u64).read_to_end(&mut head)?;
    if !head.is_empty() && head != MAGIC {
        return Err(refused("is not an SQLite database"));
    }
    atomic::make_private(path)
}

fn refused(what: &str) -> Error {
    Error::new(
        Code::StorageError,
        format!("{what}; it was left as it is: restore it from a backup or move it away"),
    )
}

/// Refuses what is damaged, foreign or newer, before anything is written.
fn check(conn: &Connection) -> Result<()> {
    let damaged = |e: rusqlite::Error| refused(&format!("is damaged ({e})"));
    let whole: String =
        conn.query_row("PRAGMA quick_check(1)", [], |r| r.get(0)).map_err(damaged)?;
    if whole != "ok" {
        return Err(refused(&format!("is damaged ({whole})")));
    }
    let format: i64 = conn.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    if format > FORMAT {
        return Err(newer(&format!("format {format}"), &format!("format {FORMAT}")));
    }
    if format == 0 {
        let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
        let original: bool = conn.query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1)",
            [ORIGINAL_TABLE],
            |r| r.get(0),
        )?;
        if tables > 0 && !original {
            return Err(refused("is another program's database"));
        }
    }
    Ok(())
}

fn newer(found: &str, known: &str) -> Error {
    Error::new(
        Code::StorageError,
        format!(
            "was written by a newer version ({found}, this one knows {known}); it was left as it \
             is: run that version, or set runtime.ltm_directory to another place"
        ),
    )
}

/// Brings all rooms up to date, or none.
fn migrate(conn: &mut Connection, schemas: &[Schema]) -> Result<()> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.execute_batch(
        "CREATE TABLE IF NOT EXISTS schema_versions (
             room TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID",
    )?;
    for Schema { room, migrations } in schemas {
        let at: Option<usize> = tx
            .query_row("SELECT version FROM schema_versions WHERE room = ?1", [room], |r| r.get(0))
            .optional()?;
        let at = at.unwrap_or(0);
        let Some(todo) = migrations.get(at..) else {
            let found = format!("{room} tables of version {at}");
            return Err(newer(&found, &migrations.len().to_string()));
        };
        for (n, statement) in todo.iter().enumerate() {
            tx.execute_batch(statement).context(format!("{room} migration {}", at + n + 1))?;
        }
        tx.execute(
            "INSERT OR REPLACE INTO schema_versions (room, version) VALUES (?1, ?2)",
            rusqlite::params![room, migrations.len()],
        )?;
    }
    tx.pragma_update(None, "user_version", FORMAT)?;
    Ok(tx.commit()?)
}
