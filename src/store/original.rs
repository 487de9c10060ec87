//! The control plane's snapshot in a database written by the original (spec: control 12.1, 12.2): one row,
//! plain or encrypted. What it says is for others to read; the rows are never taken away.

use super::Db;
use super::seal::Key;
use crate::base::{Code, Error, Result, ResultExt};
use crate::wire::{base64_decode, base64_encode};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

/// The table of versioned texts, of which the snapshot is one.
pub(super) const TABLE: &str = "mem_versions";
const BASE_ID: &str = "spiderweb:control-plane:state";
/// Associated data of the encrypted form.
const AAD: &[u8] = b"spiderweb-control-plane-state-v1";
const ALGORITHM: &str = "aes-256-gcm";
const TAG_LEN: usize = 16;

/// The encrypted form.
#[derive(Serialize, Deserialize)]
struct Encrypted {
    schema: u32,
    enc: String,
    nonce: String,
    tag: String,
    ciphertext: String,
}

/// The snapshot's JSON text; `None` in a database that has none. Errors: `invalid_config` when the key is
/// missing or is not the right one, `storage_error` when it cannot be read.
pub fn snapshot(db: &Db, key: Option<&Key>) -> Result<Option<String>> {
    db.read(|conn| read(conn, key))
}

pub(super) fn read(conn: &Connection, key: Option<&Key>) -> Result<Option<String>> {
    let Some((_, text)) = row(conn)? else { return Ok(None) };
    let plain = match encrypted(&text) {
        None => text,
        Some(encrypted) => decrypt(&encrypted, key).context("the original's state")?,
    };
    Ok(Some(plain))
}

/// Encrypts a plain snapshot as the original would have at its next write with this key.
pub(super) fn encrypt(conn: &Connection, key: &Key) -> Result<()> {
    let Some((version, text)) = row(conn)?.filter(|(_, text)| encrypted(text).is_none()) else {
        return Ok(());
    };
    let (nonce, mut ciphertext) = key.seal(AAD, text.as_bytes());
    let tag = ciphertext.split_off(ciphertext.len() - TAG_LEN);
    let form = Encrypted {
        schema: 1,
        enc: ALGORITHM.into(),
        nonce: base64_encode(&nonce),
        tag: base64_encode(&tag),
        ciphertext: base64_encode(&ciphertext),
    };
    let text = serde_json::to_string(&form).expect("strings and a number serialise");
    let sql = format!("UPDATE {TABLE} SET content_json = ?1 WHERE base_id = ?2 AND version = ?3");
    conn.execute(&sql, params![text, BASE_ID, version])?;
    Ok(())
}

fn row(conn: &Connection) -> Result<Option<(i64, String)>> {
    if !conn.table_exists(None, TABLE)? {
        return Ok(None);
    }
    let sql = format!(
        "SELECT version, content_json FROM {TABLE} WHERE base_id = ?1 ORDER BY version DESC LIMIT 1"
    );
    let row = conn.query_row(&sql, [BASE_ID], |r| Ok((r.get(0)?, r.get(1)?))).optional();
    row.context("the original's state")
}

fn encrypted(text: &str) -> Option<Encrypted> {
    serde_json::from_str(text).ok()
}

fn decrypt(form: &Encrypted, key: Option<&Key>) -> Result<String> {
    let Some(key) = key else { return Err(super::sealed::needs_key()) };
    let bytes = |text: &str| base64_decode(text).ok();
    let plain = || {
        let nonce = bytes(&form.nonce)?.try_into().ok()?;
        let sealed = [bytes(&form.ciphertext)?, bytes(&form.tag)?].concat();
        String::from_utf8(key.open(nonce, AAD, &sealed)?).ok()
    };
    if (form.schema, &*form.enc) != (1, ALGORITHM) {
        let message = format!("is encrypted with {:?} of schema {}", form.enc, form.schema);
        return Err(Error::new(Code::StorageError, message));
    }
    plain().ok_or_else(super::sealed::wrong_key)
}
