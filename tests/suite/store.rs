//! The database under `kill -9`, and against files that it must refuse.

use rusqlite::Connection;
use spiderweb::base::Code;
use spiderweb::store::{Db, Schema, rusqlite};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PAIRS: Schema = Schema {
    room: "pairs",
    migrations: &[
        "CREATE TABLE pairs (n INTEGER NOT NULL, half INTEGER NOT NULL, PRIMARY KEY (n, half))",
    ],
};
const NEWER_PAIRS: Schema = Schema {
    migrations: &[PAIRS.migrations[0], "ALTER TABLE pairs ADD COLUMN note TEXT"],
    ..PAIRS
};
const CHILD_DB: &str = "SPIDERWEB_TEST_CHILD_DB";
const CHILD_THREADS: i64 = 4;

struct TempDir(PathBuf);

impl TempDir {
    fn new() -> TempDir {
        let name = spiderweb::base::id::hex_token("spiderweb-store-");
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir).unwrap();
        TempDir(dir)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Not a test of its own: the process that [`every_acknowledged_write_survives_kill_9`] kills. Writes
/// pairs of rows for ever, and prints the number of each once it is acknowledged.
#[test]
#[ignore = "started by another test"]
fn child_that_is_killed() {
    let Some(path) = std::env::var_os(CHILD_DB) else { return };
    let db = Db::open(Path::new(&path), &[PAIRS]).unwrap();
    let first = db.read(next_number).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..CHILD_THREADS {
            let db = &db;
            scope.spawn(move || {
                for n in (first + thread..).step_by(CHILD_THREADS as usize) {
                    db.write(move |tx| {
                        tx.execute("INSERT INTO pairs (n, half) VALUES (?1, 1)", [n])?;
                        tx.execute("INSERT INTO pairs (n, half) VALUES (?1, 2)", [n])?;
                        Ok(())
                    })
                    .unwrap();
                    writeln!(std::io::stdout(), "\nacknowledged {n}").unwrap();
                }
            });
        }
    });
}

fn next_number(conn: &Connection) -> spiderweb::base::Result<i64> {
    Ok(conn.query_row("SELECT coalesce(max(n), 0) + 1 FROM pairs", [], |r| r.get(0))?)
}

#[test]
fn every_acknowledged_write_survives_kill_9() {
    let dir = TempDir::new();
    let path = dir.0.join("state.db");
    let mut acknowledged: Vec<i64> = Vec::new();
    for round in 1..=12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::child_that_is_killed", "--ignored", "--nocapture"])
            .env(CHILD_DB, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        // Any number of writes in, and always in the middle of others.
        let enough = acknowledged.len() + spiderweb::base::id::random_u53() as usize % 40 + round;
        for line in output.by_ref() {
            acknowledged.extend(parse(&line.unwrap()));
            if acknowledged.len() >= enough {
                break;
            }
        }
        assert!(acknowledged.len() >= enough, "the child ended by itself in round {round}");
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(output.filter_map(|line| parse(&line.unwrap())));

        let db = Db::open(&path, &[PAIRS]).unwrap();
        db.read(|c| {
            for n in &acknowledged {
                let halves: i64 =
                    c.query_row("SELECT count(*) FROM pairs WHERE n = ?1", [n], |r| r.get(0))?;
                assert_eq!(halves, 2, "acknowledged row {n} in round {round}");
            }
            let torn: i64 = c.query_row(
                "SELECT count(*) FROM (SELECT n FROM pairs GROUP BY n HAVING count(*) != 2)",
                [],
                |r| r.get(0),
            )?;
            assert_eq!(torn, 0);
            Ok(())
        })
        .unwrap();
        db.close();
    }
}

fn parse(line: &str) -> Option<i64> {
    // Never a number cut short by the kill: the child writes a line at a time, and a pipe takes it whole.
    line.strip_prefix("acknowledged ")?.parse().ok()
}

/// Opening must fail, say `expected`, name the file, and leave every byte of it.
fn refused(path: &Path, expected: &str) {
    let before = std::fs::read(path).unwrap();
    let e = Db::open(path, &[PAIRS]).map(drop).unwrap_err();
    assert_eq!(e.code, Code::StorageError);
    assert!(e.message.contains(expected), "{e}");
    assert!(e.message.contains(path.to_str().unwrap()), "{e}");
    assert!(std::fs::read(path).unwrap() == before, "{expected}: the file was changed");
}

#[test]
fn what_cannot_be_trusted_is_refused_and_left_alone() {
    let dir = TempDir::new();
    let path = dir.0.join("text.db");
    std::fs::write(&path, "{\"this\":\"is not a database\"}").unwrap();
    refused(&path, "not an SQLite database");

    let path = dir.0.join("foreign.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE bookmarks (url TEXT)").unwrap();
    refused(&path, "another program's");

    let path = dir.0.join("format.db");
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    refused(&path, "newer version (format 99");

    let path = dir.0.join("room.db");
    Db::open(&path, &[NEWER_PAIRS]).unwrap().close();
    refused(&path, "newer version (pairs tables of version 2");

    let path = dir.0.join("damaged.db");
    let db = Db::open(&path, &[PAIRS]).unwrap();
    db.write(|tx| {
        for n in 0..5000 {
            tx.execute("INSERT INTO pairs (n, half) VALUES (?1, 1)", [n])?;
        }
        Ok(())
    })
    .unwrap();
    db.close();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    refused(&path, "is damaged");
}

#[test]
fn a_second_process_is_kept_out() {
    let dir = TempDir::new();
    let path = dir.0.join("state.db");
    let db = Db::open(&path, &[PAIRS]).unwrap();
    let e = Db::open(&path, &[PAIRS]).map(drop).unwrap_err();
    assert!(e.message.contains(&format!("process {} is using it", std::process::id())), "{e}");
    db.close();
    Db::open(&path, &[PAIRS]).unwrap();
}

#[test]
fn tables_are_brought_up_to_date_and_the_original_database_is_accepted() {
    let dir = TempDir::new();
    let path = dir.0.join("state.db");
    Connection::open(&path)
        .unwrap()
        .execute_batch(
            "CREATE TABLE mem_versions (base_id TEXT, version INTEGER, kind TEXT, content_json TEXT,
                 created_at_ms INTEGER, PRIMARY KEY (base_id, version));
             INSERT INTO mem_versions VALUES ('kept', 1, 'note', '{}', 5)",
        )
        .unwrap();
    Db::open(&path, &[PAIRS]).unwrap().close();
    let db = Db::open(&path, &[NEWER_PAIRS]).unwrap();
    let kept: String = db
        .read(|c| {
            c.execute_batch("SELECT note FROM pairs")?;
            Ok(c.query_row("SELECT base_id FROM mem_versions", [], |r| r.get(0))?)
        })
        .unwrap();
    assert_eq!(kept, "kept");
}
