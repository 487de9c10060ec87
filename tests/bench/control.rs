//! The control plane at scale: a thousand projects with a hundred mounts each. Durable mutations through
//! the gateway and through the plane, beside SQLite alone with the same rows and the same grouping; what a
//! workspace costs to look at; and how long a start takes.

use super::house::{Asker, House, PlainAsker};
use spiderweb::base::{Error, Result, ResultExt};
use spiderweb::control::audit::Entry;
use spiderweb::control::state::{Draft, Mount};
use spiderweb::control::{Commit, Plane};
use spiderweb::store::rusqlite::{Connection, params};
use spiderweb::store::{Db, SqliteKv};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::time::{Duration, Instant};

const CLIENTS: u64 = 64;
const MOUNTS_PER_PROJECT: u64 = 100;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(2);
const LOOKS: usize = 300;
/// Mutations for each commit of SQLite alone that are to be reached.
const RATIO: f64 = 0.5;

/// Nodes, and projects; each has [`MOUNTS_PER_PROJECT`] mounts.
const SMALL: u64 = 1;
const TENTH: u64 = 100;
const FULL: u64 = 1_000;

/// Prints lines to read to stderr, and one JSON object to stdout.
pub fn run(gateway: &Path, dir: &Path) -> Result<()> {
    let (mut looks, mut starts) = (Vec::new(), Vec::new());
    for (name, size) in [("small", SMALL), ("tenth", TENTH), ("full", FULL)] {
        let home = dir.join(name);
        let house = House::start(gateway, &home)?;
        seed(&house, size)?;
        house.stop()?;
        let house = House::start(gateway, &home)?;
        starts.push((size * MOUNTS_PER_PROJECT, house.took.as_millis()));
        for (mounts, project) in [(1, size + 1), (MOUNTS_PER_PROJECT, 1)] {
            looks.push((name, mounts, look(&house.client()?, project)?));
        }
        house.stop()?;
    }
    starts.iter().for_each(|(mounts, ms)| eprintln!("start with {mounts} mounts: {ms} ms"));
    for (state, mounts, us) in &looks {
        eprintln!("workspace_status of {mounts} mounts, {state} state: {us} us");
    }
    let rates = rates(gateway, dir)?;
    let [gateway, brief, plane, sqlite] = rates;
    eprintln!(
        "durable mutations of {CLIENTS} clients: gateway {gateway:.0}/s, {brief:.0}/s with brief replies, \
         plane {plane:.0}/s, SQLite alone {sqlite:.0}/s"
    );
    let targets = [
        ("gateway/sqlite", gateway / sqlite),
        ("brief/sqlite", brief / sqlite),
        ("plane/sqlite", plane / sqlite),
    ];
    for (of, reached) in targets {
        let missed = if reached < RATIO { " MISSED" } else { "" };
        eprintln!("    {of} {reached:.2} of {RATIO}{missed}");
    }
    let targets = targets.map(|(of, reached)| {
        let met = reached >= RATIO;
        format!(r#"{{"of":"{of}","reached":{reached:.2},"target":{RATIO},"met":{met}}}"#)
    });
    let starts: Vec<_> = starts.iter().map(|(n, ms)| format!("\"{n}\":{ms}")).collect();
    let looks: Vec<_> = looks.iter().map(|(s, n, us)| format!("\"{s}_{n}\":{us}")).collect();
    println!(
        "{{\"mutations_per_s\":{{\"gateway\":{gateway:.0},\"brief\":{brief:.0},\"plane\":{plane:.0},\"sqlite\":{sqlite:.0},\
         \"targets\":[{}]}},\"start_ms\":{{{}}},\"workspace_status_us\":{{{}}}}}",
        targets.join(","),
        starts.join(","),
        looks.join(",")
    );
    Ok(())
}

/// Makes `size` nodes and projects, and one more project with a single mount.
fn seed(house: &House, size: u64) -> Result<()> {
    shared(house, size, |client, n| {
        client.call("node_ensure", &format!(r#"{{"node_name":"n{n}","lease_ttl_ms":86400000}}"#))
    })?;
    let mount = |n: u64, size: u64| {
        let node = 1 + n % size;
        format!(r#"{{"mount_path":"/mounts/m{n}","node_id":"node-{node}","export_name":"work"}}"#)
    };
    let up = |client: &Asker, name: u64, mounts: u64| {
        let mounts: Vec<_> = (0..mounts).map(|n| mount(name + n, size)).collect();
        client.call(
            "project_up",
            &format!(
                r#"{{"name":"p{name}","vision":"to be measured","activate":false,"desired_mounts":[{}]}}"#,
                mounts.join(",")
            ),
        )
    };
    shared(house, size, |client, n| up(client, n, MOUNTS_PER_PROJECT))?;
    up(&house.client()?, size, 1)
}

/// Has the clients do something for each number below `count`.
fn shared(
    house: &House,
    count: u64,
    work: impl Fn(&Asker, u64) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicU64::new(0);
    let client = || -> Result<()> {
        let client = house.client()?;
        loop {
            match next.fetch_add(1, Ordering::Relaxed) {
                n if n < count => work(&client, n)?,
                _ => return Ok(()),
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS.min(count)).map(|_| scope.spawn(client)).collect();
        threads.into_iter().try_for_each(|t| t.join().expect("a client does not panic"))
    })
}

/// The median time of `workspace_status`, in microseconds.
fn look(client: &Asker, project: u64) -> Result<u128> {
    let payload = format!(r#"{{"project_id":"proj-{project}"}}"#);
    let mut took = Vec::with_capacity(LOOKS);
    for _ in 0..LOOKS {
        let at = Instant::now();
        client.call("workspace_status", &payload)?;
        took.push(at.elapsed().as_micros());
    }
    took.sort_unstable();
    Ok(took[LOOKS / 2])
}

/// Mutations per second of the gateway, of the plane, and of SQLite alone, each with a full state of its
/// own; the median of rounds in which they take turns.
fn rates(gateway: &Path, dir: &Path) -> Result<[f64; 4]> {
    let database = |home: &str| dir.join(home).join(".spiderweb-ltm/runtime-memory.db");
    for home in ["plane", "sqlite"] {
        std::fs::create_dir_all(database(home).parent().expect("it has one"))?;
        std::fs::copy(database("full"), database(home)).context("the full state")?;
    }
    let house = House::start(gateway, &dir.join("full"))?;
    let mut clients = (0..CLIENTS).map(|_| house.plain_client()).collect::<Result<Vec<_>>>()?;
    let mut nobody = vec![(); CLIENTS as usize];
    let db = Db::open(&database("plane"), &[SqliteKv::SCHEMA])?;
    let plane = Plane::open(Arc::new(SqliteKv::new(db)))?;
    let alone = Alone::open(&database("sqlite"))?;
    let mut rates: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        for (n, more) in ["", r#","brief":true"#].into_iter().enumerate() {
            let through = |c: &mut _, n, turn| through_gateway(c, n, turn, more);
            rates[n].push(rate(&mut clients, through)?);
        }
        rates[2].push(rate(&mut nobody, |_, n, turn| through_plane(&plane, n, turn))?);
        rates[3].push(rate(&mut nobody, |_, n, turn| alone.put(n, turn))?);
    }
    house.stop()?;
    Ok(rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[ROUNDS / 2]
    }))
}

/// How often a second the clients get something done, each after the other; told their number and turn.
fn rate<C: Send>(
    clients: &mut [C],
    work: impl Fn(&mut C, u64, u64) -> Result<()> + Sync,
) -> Result<f64> {
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let run = |client: &mut C, n: u64| -> Result<()> {
        for turn in 0.. {
            // A client goes on to where it began, so that a round leaves what it found.
            if stop.load(Ordering::Relaxed) && turn % 3 == 0 {
                break;
            }
            work(client, n, turn)?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let at = Instant::now();
        let with_numbers = clients.iter_mut().zip(1..);
        let run = &run;
        let threads: Vec<_> =
            with_numbers.map(|(client, n)| scope.spawn(move || run(client, n))).collect();
        std::thread::sleep(ROUND);
        let rate = done.load(Ordering::Relaxed) as f64 / at.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|t| t.join().expect("a client does not panic"))?;
        Ok(rate)
    })
}

/// `more`: members of each payload.
fn through_gateway(client: &mut PlainAsker, n: u64, turn: u64, more: &str) -> Result<()> {
    match turn % 3 {
        0 => client.call(
            "project_mount_set",
            &format!(
                r#"{{"project_id":"proj-{n}","mount_path":"/more","node_id":"node-{n}","export_name":"work"{more}}}"#
            ),
        ),
        1 => client.call(
            "project_update",
            &format!(r#"{{"project_id":"proj-{n}","vision":"to be measured, turn {turn}"{more}}}"#),
        ),
        _ => client.call(
            "project_mount_remove",
            &format!(r#"{{"project_id":"proj-{n}","mount_path":"/more"{more}}}"#),
        ),
    }
}

fn through_plane(plane: &Arc<Plane>, n: u64, turn: u64) -> Result<()> {
    let entry = Entry::new("control.project_mount_set");
    let decided = plane.decide(Some(entry), |state, now_ms| {
        let mut project = Draft::of(state.project(&format!("proj-{n}"))?);
        match turn % 3 {
            0 => project.add_mount(Mount {
                mount_path: "/more".into(),
                node_id: format!("node-{n}"),
                export_name: "work".into(),
            }),
            1 => project.profile_mut().vision = format!("to be measured, turn {turn}"),
            _ => drop(project.remove_mounts_at("/more", |_| true)),
        }
        Ok(((), project.finish(now_ms).1))
    })?;
    decided.commit.map_or(Ok(()), Commit::wait)
}

/// SQLite with nothing around it: whoever has rows hands them to one thread, which commits together all
/// that wait, and answers.
struct Alone {
    jobs: Sender<Job>,
    records: AtomicU64,
}

struct Job {
    rows: [(String, Option<Vec<u8>>); 4],
    done: std::sync::mpsc::SyncSender<()>,
}

impl Alone {
    fn open(database: &Path) -> Result<Alone> {
        let conn = Connection::open(database)?;
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        let (jobs, waiting) = channel();
        std::thread::spawn(move || {
            if let Err(e) = write(&conn, &waiting) {
                eprintln!("bench: SQLite alone: {e}");
            }
        });
        Ok(Alone { jobs, records: AtomicU64::new(0) })
    }

    /// Rows as those of a mount, of its project, and of the record of it in the audit log.
    fn put(&self, n: u64, turn: u64) -> Result<()> {
        let mount = format!(
            r#"{{"mount_path":"/more","node_id":"node-{n}","export_name":"work","turn":{turn}}}"#
        );
        let mount = (turn % 3 != 2).then(|| mount.into_bytes());
        let project = vec![b'x'; 330 + (turn % 10) as usize];
        let (done, answered) = sync_channel(1);
        let record = self.records.fetch_add(1, Ordering::Relaxed);
        let rows = [
            (format!("control/project/{n}/mount/1000"), mount),
            (format!("control/project/{n}"), Some(project)),
            (format!("audit/row/{record:014x}"), Some(vec![b'x'; 420])),
            ("audit/head".into(), Some(vec![b'x'; 80])),
        ];
        let sent = self.jobs.send(Job { rows, done });
        sent.ok().and_then(|()| answered.recv().ok()).ok_or_else(|| Error::invalid("it has ended"))
    }
}

fn write(conn: &Connection, waiting: &Receiver<Job>) -> Result<()> {
    while let Ok(first) = waiting.recv() {
        let group: Vec<_> = std::iter::once(first).chain(waiting.try_iter()).collect();
        let tx = conn.unchecked_transaction()?;
        for (key, value) in group.iter().flat_map(|job| &job.rows) {
            match value {
                Some(value) => tx
                    .prepare_cached(
                        "INSERT OR REPLACE INTO kv (key, value, mod_revision) VALUES (?1, ?2, 1)",
                    )?
                    .execute(params![key, value])?,
                None => tx.prepare_cached("DELETE FROM kv WHERE key = ?1")?.execute([key])?,
            };
        }
        tx.commit()?;
        for job in group {
            let _ = job.done.send(());
        }
    }
    Ok(())
}
