//! Durable state: one SQLite file with one writer, an etcd-shaped key-value view of it, small files that
//! are replaced as a whole, and logs. This room does not know what is stored.

pub mod atomic;
pub mod backup;
mod db;
mod generations;
pub mod journal;
mod kv;
mod open;
pub mod original;
mod seal;
mod sealed;
#[cfg(test)]
pub(crate) mod testing;
mod writer;

pub use db::Db;
pub use journal::Journal;
pub use kv::{
    Chain, Kv, KvDone, KvEvent, KvRead, KvSink, KvWatch, Snapshot, SqliteKv, Txn, Versioned,
};
pub use open::Schema;
pub use seal::Key;
pub use sealed::{KEY_VARIABLE, reseal};

/// What a job of [`Db::write`] and [`Db::read`] works with; they need no other name of that crate.
pub use rusqlite;

use crate::base::{Code, Error};

impl From<rusqlite::Error> for Error {
    fn from(e: rusqlite::Error) -> Error {
        Error::new(Code::StorageError, format!("database: {e}"))
    }
}
