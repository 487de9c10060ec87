//! Opening the database file: who may use it, whether it is one of ours and whole, and bringing its
//! tables up to date. A file that is refused is left as it was.

use super::generations::{self, Keeping};
use super::seal::{Key, Sealer};
use super::{atomic, original, sealed};
use crate::base::{Cancel, Code, Deadline, Error, Result, ResultExt};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
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

/// A database that was opened for its writer.
pub(super) struct Opened {
    pub(super) conn: Connection,
    pub(super) lock: Lock,
    /// Seals the values of `kv`, where they are.
    pub(super) sealer: Option<Sealer>,
    /// What was found, while it becomes a generation.
    pub(super) keeping: Option<Keeping>,
}

/// Opens `path` for the writer, made (0600, its directory 0700) when it is missing, and sealed when there
/// is a key and it is plain.
pub(super) fn writer(path: &Path, schemas: &[Schema], key: Option<&Key>) -> Result<Opened> {
    open_writer(path, schemas, key).map_err(|e| about(path, e))
}

/// `invalid_config` stays: it is a setting that is wrong then, not the database.
pub(super) fn about(path: &Path, e: Error) -> Error {
    let e = if e.code == Code::Config { e } else { e.recode(Code::StorageError) };
    e.context(format!("state database {}", path.display()))
}

fn open_writer(path: &Path, schemas: &[Schema], key: Option<&Key>) -> Result<Opened> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .context(format!("creating directory {}", dir.display()))?;
    let lock = Lock::take(path)?;
    let Exclusive { mut conn, mut sealer, is_current, is_folded } =
        exclusive(path, &lock, schemas, key)?;
    if let (None, Some(key)) = (&sealer, key) {
        leave_log(&conn, &lock)?;
        drop(conn);
        sealed::convert(path, None, Some(key))?;
        log::info!("state database {}: sealed; no plain copy of it was kept", path.display());
        conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        sealer = sealed::opener(&conn, Some(key))?;
        set_up(&conn)?;
    }
    let mut keeping = None;
    if let Some(found) = generations::Found::look(path, is_folded)? {
        match is_current {
            true => keeping = Some(found.keep_in_background()?),
            false => found.keep(&Cancel::new())?,
        }
    }
    if !is_current {
        migrate(&mut conn, schemas)?;
    }
    // The log's name must be durable before anybody counts on it.
    atomic::sync_dir(path)?;
    lock.note(State::Open)?;
    Ok(Opened { conn, lock, sealer, keeping })
}

/// A database that nobody else writes to, checked.
pub(super) struct Exclusive {
    pub(super) conn: Connection,
    pub(super) sealer: Option<Sealer>,
    /// No migration is due.
    pub(super) is_current: bool,
    /// The file alone is the state: its log is empty. Not so while another program reads.
    pub(super) is_folded: bool,
}

/// Errors leave everything as it was.
pub(super) fn exclusive(
    path: &Path,
    lock: &Lock,
    schemas: &[Schema],
    key: Option<&Key>,
) -> Result<Exclusive> {
    check_log(path, lock)?;
    ensure_file(path)?;
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // Until it is accepted, also its log stays.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let is_current = check(&conn, schemas)?;
    let sealer = sealed::opener(&conn, key)?;
    if conn.query_row("PRAGMA user_version", [], |r| r.get::<_, i64>(0))? == 0 {
        original::read(&conn, key)?;
    }
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    generations::sweep(path)?;
    set_up(&conn)?;
    // SQLite ends the change to WAL only with the next statement, and does not fold a log before.
    conn.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    // Whoever reads, such as a backup, is not waited for.
    conn.busy_timeout(Duration::ZERO)?;
    let is_busy: bool = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| r.get(0))?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    let is_folded = !is_busy;
    if is_folded {
        lock.note(State::Closed)?;
    }
    Ok(Exclusive { conn, sealer, is_current, is_folded })
}

/// Folds the log in for good, so that the file can be replaced. Errors: `again` while another program has it
/// open: SQLite would go on writing to what it knows under the same name.
pub(super) fn leave_log(conn: &Connection, lock: &Lock) -> Result<()> {
    conn.busy_timeout(Duration::ZERO)?;
    let left = conn.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()));
    left.map_err(|e| match e.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            let message = "another program is reading it; try again when that is done";
            Error::new(Code::Again, message)
        }
        _ => e.into(),
    })?;
    lock.note(State::Closed)
}

fn set_up(conn: &Connection) -> Result<()> {
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    Ok(conn.pragma_update(None, "foreign_keys", true)?)
}

/// Opens `path` for reading beside the writer.
pub(super) fn reader(path: &Path) -> Result<Connection> {
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    conn.pragma_update(None, "query_only", true)?;
    Ok(conn)
}

/// Opens `path` for reading it as it is now, whatever is written later.
pub(super) fn snapshot(path: &Path) -> Result<Connection> {
    let conn = reader(path)?;
    conn.execute_batch("BEGIN")?;
    conn.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(conn)
}

pub(super) fn connect(path: &Path, access: OpenFlags) -> Result<Connection> {
    let conn = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    Ok(conn)
}

/// Where SQLite writes first what goes into the database later.
pub(super) fn log_of(database: &Path) -> PathBuf {
    with(database, "-wal")
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Keeps other processes out for as long as it lives; the kernel drops it with the process. It is on a file
/// of its own: SQLite's locks on the database would be lost with any descriptor of it that this process
/// closes. The file names the process, and says whether it has closed the database.
pub(super) struct Lock {
    file: Flock<File>,
    path: PathBuf,
    /// Who held the lock before has not closed the database.
    unclosed: bool,
}

/// What the lock's file says of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Its log belongs to it.
    Open,
    Closed,
}

/// The word for [`State::Open`].
const OPEN: &str = "open";

impl Lock {
    pub(super) fn take(database: &Path) -> Result<Lock> {
        let path = with(database, ".lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .context(format!("opening {}", path.display()))?;
        let patience = Deadline::after(LOCK_PATIENCE);
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => {
                    let unclosed = noted(&file).contains(OPEN);
                    let lock = Lock { file, path, unclosed };
                    lock.note(if unclosed { State::Open } else { State::Closed })?;
                    return Ok(lock);
                }
                Err((held, Errno::EWOULDBLOCK)) if !patience.passed() => {
                    std::thread::sleep(LOCK_POLL);
                    file = held;
                }
                Err((held, Errno::EWOULDBLOCK)) => return Err(in_use(&held)),
                Err((_, e)) => return Err(Error::from(e).context(path.display())),
            }
        }
    }

    pub(super) fn note(&self, state: State) -> Result<()> {
        let word = if state == State::Open { OPEN } else { "" };
        let note = format!("{:<10} {word:<5}\n", std::process::id());
        let write = || {
            self.file.write_all_at(note.as_bytes(), 0)?;
            self.file.set_len(note.len() as u64)?;
            self.file.sync_data()
        };
        write().context(self.path.display())
    }
}

fn noted(lock: &File) -> String {
    let mut note = [0; 32];
    let len = lock.read_at(&mut note, 0).unwrap_or(0);
    String::from_utf8_lossy(&note[..len]).into_owned()
}

fn in_use(lock: &File) -> Error {
    let note = noted(lock);
    let pid = note.split_whitespace().next().unwrap_or("unknown");
    let message = format!(
        "process {pid} is using it; stop that one, or set runtime.ltm_directory to another place"
    );
    Error::new(Code::StorageError, message)
}

/// Refuses to go on with half of a database: SQLite would take what is left for all there is.
fn check_log(path: &Path, lock: &Lock) -> Result<()> {
    let len = |path: &Path| path.metadata().map(|m| m.len()).ok();
    let (database, log) = (len(path), len(&log_of(path)));
    let log_name = log_of(path);
    let log_name = log_name.display();
    if log.is_some_and(|len| len > 0) && database.unwrap_or(0) == 0 {
        return Err(refused(&format!("is missing, but its log {log_name} is there")));
    }
    if lock.unclosed && log.is_none() && database.is_some_and(|len| len > 0) {
        let lock = lock.path.display();
        return Err(refused(&format!(
            "was in use when its program ended, and its log {log_name} with the newest changes is \
             missing (to go on without these, remove {lock})"
        )));
    }
    Ok(())
}

/// Makes an empty file where there is none; looks at the first bytes where there is one.
fn ensure_file(path: &Path) -> Result<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(file) => return Ok(file.sync_all()?),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e.into()),
    }
    check_magic(path)?;
    atomic::make_private(path)
}

/// Errors: `storage_error` for a file that does not begin as a database does. An empty one passes.
pub(super) fn check_magic(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(|e| {
        Error::from(e).context("cannot be read; check its owner and mode, it was not touched")
    })?;
    let mut head = Vec::new();
    (&file).take(MAGIC.len() as u64).read_to_end(&mut head)?;
    if !head.is_empty() && head != MAGIC {
        return Err(refused("is not an SQLite database"));
    }
    Ok(())
}

pub(super) fn refused(what: &str) -> Error {
    Error::new(
        Code::StorageError,
        format!(
            "{what}; it was left as it is: restore a backup, or the state before (.prev), with \
             `spiderweb-config restore`, or move it away"
        ),
    )
}

/// Refuses what is damaged, foreign or newer, before anything is written. True if nothing is to be migrated.
pub(super) fn check(conn: &Connection, schemas: &[Schema]) -> Result<bool> {
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
            [original::TABLE],
            |r| r.get(0),
        )?;
        if tables > 0 && !original {
            return Err(refused("is another program's database"));
        }
        return Ok(false);
    }
    let mut is_current = format == FORMAT;
    for schema in schemas {
        let (at, known) = (version(conn, schema)?, schema.migrations.len());
        if at > known {
            let found = format!("{} tables of version {at}", schema.room);
            return Err(newer(&found, &known.to_string()));
        }
        is_current &= at == known;
    }
    Ok(is_current)
}

/// How many of a room's migrations were done.
fn version(conn: &Connection, schema: &Schema) -> Result<usize> {
    let mut q = conn.prepare("SELECT version FROM schema_versions WHERE room = ?1")?;
    Ok(q.query_row([schema.room], |r| r.get(0)).optional()?.unwrap_or(0))
}

pub(super) fn newer(found: &str, known: &str) -> Error {
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
    for schema in schemas {
        let (Schema { room, migrations }, at) = (schema, version(&tx, schema)?);
        for (n, statement) in migrations.iter().enumerate().skip(at) {
            tx.execute_batch(statement).context(format!("{room} migration {}", n + 1))?;
        }
        tx.execute(
            "INSERT OR REPLACE INTO schema_versions (room, version) VALUES (?1, ?2)",
            rusqlite::params![room, migrations.len()],
        )?;
    }
    tx.pragma_update(None, "user_version", FORMAT)?;
    Ok(tx.commit()?)
}
