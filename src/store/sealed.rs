//! Whether a database is sealed, with which key, and making it so or not: a table with the digest of all
//! rows of `kv`, which is there exactly when their values are sealed. A file is converted as a whole, in a
//! copy that then takes its place, so that a crash finds the one or the other.

use super::open::{self, Exclusive, Lock, Schema};
use super::seal::{Digest, Key, Sealer};
use super::{atomic, generations, original};
use crate::base::{Code, Error, Result, ResultExt};
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::path::Path;

/// Where the gateway's environment says the key. Named in messages; it is read in `config`.
pub const KEY_VARIABLE: &str = "SPIDERWEB_CONTROL_STATE_KEY_HEX";

/// What opens the values of a database that was found here; `None` for a plain one. Errors:
/// `invalid_config` without the key or with another one, `storage_error` where rows were changed, removed
/// or put back by something else than this program.
pub(super) fn opener(conn: &Connection, key: Option<&Key>) -> Result<Option<Sealer>> {
    if !conn.table_exists(None, "seal")? {
        return Ok(None);
    }
    let sealer = Sealer::new(key.ok_or_else(needs_key)?);
    let (revision, digest) = (revision(conn)?, digest_row(conn)?);
    let Ok(recorded) = sealer.open_digest(&digest, revision) else {
        return Err(wrong_key());
    };
    match digest_of_rows(conn, &sealer)? == recorded {
        true => Ok(Some(sealer)),
        false => Err(open::refused("holds rows that were removed or put back by another program")),
    }
}

pub(super) fn needs_key() -> Error {
    Error::new(
        Code::Config,
        format!("is sealed; set {KEY_VARIABLE} to its key. It was left as it is"),
    )
}

pub(super) fn wrong_key() -> Error {
    Error::new(
        Code::Config,
        format!(
            "is sealed with another key than that of {KEY_VARIABLE}, or the seal was damaged; it was \
             left as it is: set the key that it was sealed with, or restore a backup"
        ),
    )
}

fn digest_row(conn: &Connection) -> Result<Vec<u8>> {
    let mut q = conn.prepare_cached("SELECT digest FROM seal")?;
    Ok(q.query_row([], |r| r.get(0))?)
}

fn revision(conn: &Connection) -> Result<u64> {
    if !conn.table_exists(None, "kv_revision")? {
        return Ok(0);
    }
    Ok(conn.query_row("SELECT revision FROM kv_revision", [], |r| r.get(0))?)
}

fn digest_of_rows(conn: &Connection, sealer: &Sealer) -> Result<Digest> {
    let mut digest = Digest::default();
    if conn.table_exists(None, "kv")? {
        let mut q = conn.prepare("SELECT key, mod_revision FROM kv")?;
        let mut rows = q.query([])?;
        while let Some(row) = rows.next()? {
            let name = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
            sealer.toggle(&mut digest, name, row.get(1)?);
        }
    }
    Ok(digest)
}

/// The digest while a commit changes rows.
pub(super) struct Ledger<'a> {
    conn: &'a Connection,
    sealer: &'a Sealer,
    digest: Digest,
}

impl<'a> Ledger<'a> {
    /// As it was at `revision`.
    pub(super) fn at(
        conn: &'a Connection,
        sealer: &'a Sealer,
        revision: u64,
    ) -> Result<Ledger<'a>> {
        let digest = sealer.open_digest(&digest_row(conn)?, revision)?;
        Ok(Ledger { conn, sealer, digest })
    }

    /// Notes that a row left this revision, or came to it.
    pub(super) fn toggle(&mut self, name: &str, revision: u64) {
        self.sealer.toggle(&mut self.digest, name, revision);
    }

    pub(super) fn seal(&self, name: &str, revision: u64, plain: &[u8]) -> Vec<u8> {
        self.sealer.seal(name, revision, plain)
    }

    pub(super) fn finish(self, revision: u64) -> Result<()> {
        let digest = self.sealer.seal_digest(&self.digest, revision);
        self.conn.prepare_cached("UPDATE seal SET digest = ?1")?.execute([digest])?;
        Ok(())
    }
}

/// Seals the database at `path`, which nobody may be using, with another key, or makes it plain. Errors:
/// `not_found` without a database, `invalid_config` when `from` is not its key; nothing was changed then.
pub fn reseal(path: &Path, schemas: &[Schema], from: Option<&Key>, to: Option<&Key>) -> Result<()> {
    if !path.exists() {
        let message = format!("there is no state database at {}", path.display());
        return Err(Error::new(Code::NotFound, message));
    }
    let reseal = || {
        let lock = Lock::take(path)?;
        let Exclusive { conn, sealer, .. } = open::exclusive(path, &lock, schemas, from)?;
        open::leave_log(&conn, &lock)?;
        drop(conn);
        match (&sealer, to) {
            (None, None) => Err(Error::new(Code::Config, "is not sealed")),
            _ => convert(path, sealer.as_ref(), to),
        }
    };
    reseal().map_err(|e| open::about(path, e))
}

/// Replaces the database at `path`, which nobody else uses and which has no log, by a copy that is sealed
/// with `to`, or plain. What was sealed before is kept as a generation; what was plain is gone, and
/// every plain generation with it.
pub(super) fn convert(path: &Path, from: Option<&Sealer>, to: Option<&Key>) -> Result<()> {
    let copy = atomic::Waiting::beside(path);
    generations::copy(&open::snapshot(path)?, copy.path(), &|| true)?;
    let mut conn = Connection::open(copy.path())?;
    // The copy is nobody's yet, and is synced as a whole below; nothing may be written beside it.
    conn.execute_batch("PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF")?;
    let tx = conn.transaction()?;
    convert_rows(&tx, from, to)?;
    tx.commit()?;
    // Rewrites every page: what was plain stays in no free space.
    conn.execute_batch("VACUUM")?;
    conn.close().map_err(|(_, e)| e)?;
    match from {
        Some(_) => generations::keep_link(path)?,
        None => generations::forget_plain(path)?,
    }
    copy.replace(path)
}

fn convert_rows(conn: &Connection, from: Option<&Sealer>, to: Option<&Key>) -> Result<()> {
    let to_sealer = to.map(Sealer::new);
    if conn.table_exists(None, "kv")? {
        let mut next = conn.prepare(
            "SELECT key, mod_revision, value FROM kv WHERE key > ?1 ORDER BY key LIMIT 1",
        )?;
        let mut put = conn.prepare("UPDATE kv SET value = ?2 WHERE key = ?1")?;
        let row = |r: &Row<'_>| Ok((r.get(0)?, r.get(1)?, r.get(2)?));
        // One at a time: what is read may not change under the reading.
        let mut key = String::new();
        while let Some(row) = next.query_row([&key], row).optional()? {
            let (name, revision, mut value): (String, u64, Vec<u8>) = row;
            if let Some(sealer) = from {
                value = sealer.open(&name, revision, &value)?;
            }
            if let Some(sealer) = &to_sealer {
                value = sealer.seal(&name, revision, &value);
            }
            put.execute(params![name, value])?;
            key = name;
        }
    }
    conn.execute_batch("DROP TABLE IF EXISTS seal")?;
    if let (Some(sealer), Some(key)) = (&to_sealer, to) {
        let digest = sealer.seal_digest(&digest_of_rows(conn, sealer)?, revision(conn)?);
        conn.execute_batch("CREATE TABLE seal (digest BLOB NOT NULL)")?;
        conn.execute("INSERT INTO seal (digest) VALUES (?1)", [digest])?;
        original::encrypt(conn, key).context("the original's state")?;
    }
    Ok(())
}
