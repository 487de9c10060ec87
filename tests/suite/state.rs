//! The state at rest, from the built programs: sealed, kept, backed up, restored, taken over from the
//! original, and refused where it cannot be trusted.

use crate::program::{Gateway, Scratch};
use serde_json::{Value, json};
use spiderweb::store::rusqlite::{self, Connection, params};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const CONFIG: &str = env!("CARGO_BIN_EXE_spiderweb-config");
const GATEWAY: &str = env!("CARGO_BIN_EXE_spiderweb");
const KEY: &str = "SPIDERWEB_CONTROL_STATE_KEY_HEX";
const NEW_KEY: &str = "SPIDERWEB_CONTROL_STATE_NEW_KEY_HEX";
const KEY_A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const KEY_B: &str = "BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB";

fn ltm(home: &Path) -> PathBuf {
    home.join(".spiderweb-ltm")
}

fn database(home: &Path) -> PathBuf {
    ltm(home).join("runtime-memory.db")
}

/// Exit status and standard error.
fn run(program: &str, home: &Path, env: &[(&str, &str)], args: &[&str]) -> (i32, String) {
    let output = Command::new(program)
        .args(args)
        .env_clear()
        .env("HOME", home)
        .env("SPIDERWEB__PROVIDER__NAME", "echo")
        .envs(env.iter().copied())
        .current_dir(home)
        .output()
        .unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn config(home: &Path, env: &[(&str, &str)], args: &[&str]) -> String {
    let (status, text) = run(CONFIG, home, env, args);
    assert_eq!(status, 0, "{args:?}: {text}");
    text
}

/// The gateway must not start, say `word`, and leave every byte of the state.
fn refused(home: &Path, env: &[(&str, &str)], status: i32, word: &str) {
    let before = contents(home);
    let (got, text) = run(GATEWAY, home, env, &["--port", "0"]);
    assert!(got == status && text.contains(word), "{got} instead of {status} {word}: {text}");
    assert!(before == contents(home), "{word}: the state was changed");
}

/// Every file of the state but the lock, SQLite's index of the log, and a log that holds nothing.
fn contents(home: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(ltm(home)).unwrap().map(|e| e.unwrap().path());
    let files = entries.filter(|p| p.is_file() && !p.to_str().unwrap().ends_with("-shm"));
    let files = files.filter(|p| p.extension().is_none_or(|e| e != "lock"));
    let files = files.map(|p| (p.clone(), std::fs::read(p).unwrap()));
    files.filter(|(_, bytes)| !bytes.is_empty()).collect()
}

/// The files of the state that hold a text; the tokens are meant to be readable.
fn holders(home: &Path, text: &str) -> Vec<String> {
    let has = |bytes: &[u8]| bytes.windows(text.len()).any(|w| w == text.as_bytes());
    let files = std::fs::read_dir(ltm(home)).unwrap().map(|e| e.unwrap().path());
    let files = files.filter(|p| p.is_file() && has(&std::fs::read(p).unwrap()));
    let names = files.map(|p| p.file_name().unwrap().to_str().unwrap().to_owned());
    names.filter(|n| !n.starts_with("auth_tokens.json")).collect()
}

fn stop(mut gateway: Gateway) {
    gateway.program.signal(libc::SIGTERM);
    assert_eq!(gateway.program.wait(), 0);
}

fn start(home: &Path, env: &[(&str, &str)]) -> Gateway {
    Gateway::with(home, "0", env)
}

fn create(gateway: &Gateway, name: &str) {
    gateway.admin().control("project_create", json!({"name": name, "vision": "v"}));
}

fn names(gateway: &Gateway) -> Vec<String> {
    let list = gateway.admin().control("project_list", json!({}));
    let names = list["projects"].as_array().unwrap().iter();
    names.map(|p| p["name"].as_str().unwrap().to_owned()).filter(|n| n != "System").collect()
}

/// A node's secret and a project's token.
fn secrets(gateway: &Gateway) -> [String; 2] {
    let mut admin = gateway.admin();
    let project = admin.control("project_create", json!({"name": "Demo", "vision": "v"}));
    let rotated =
        admin.control("project_token_rotate", json!({"project_id": project["project_id"]}));
    let invite = admin.control("node_invite_create", json!({}));
    let node = admin.control("node_join", json!({"invite_token": invite["invite_token"]}));
    [&node["node_secret"], &rotated["project_token"]].map(|s| s.as_str().unwrap().to_owned())
}

#[test]
fn a_plain_state_is_sealed_and_no_secret_is_left_in_any_file() {
    let scratch = Scratch::new();
    let home = scratch.path();
    let gateway = start(home, &[]);
    let secrets = secrets(&gateway);
    stop(gateway);
    stop(start(home, &[]));
    for secret in &secrets {
        assert!(!holders(home, secret).is_empty());
    }

    let sealed = [(KEY, KEY_A)];
    let mut gateway = start(home, &sealed);
    create(&gateway, "Later");
    gateway.program.kill();
    for secret in &secrets {
        assert_eq!(holders(home, secret), [""; 0]);
    }
    refused(home, &[], 78, KEY);
    refused(home, &[(KEY, KEY_B)], 78, KEY);
    refused(home, &[(KEY, "short")], 78, KEY);
    let gateway = start(home, &sealed);
    assert_eq!(names(&gateway), ["Demo", "Later"]);
    let token = json!({"project_id": "proj-1", "project_token": secrets[1]});
    gateway.user().control("project_get", token);
    stop(gateway);

    let both = [(KEY, KEY_A), (NEW_KEY, KEY_B)];
    assert!(config(home, &both, &["state", "reseal"]).contains(KEY));
    refused(home, &sealed, 78, KEY);
    let sealed = [(KEY, KEY_B)];
    stop(start(home, &sealed));
    assert_eq!(run(CONFIG, home, &[(KEY, KEY_A)], &["state", "unseal"]).0, 78);
    config(home, &sealed, &["state", "unseal"]);
    // What is sealed again does not cost the sealed state that was kept.
    stop(start(home, &sealed));
    config(home, &sealed, &["state", "unseal"]);
    assert!(ltm(home).join("runtime-memory.db.prev").exists());
    let gateway = start(home, &[]);
    assert_eq!(names(&gateway), ["Demo", "Later"]);
    let (status, text) = run(CONFIG, home, &sealed, &["state", "unseal"]);
    assert!(status == 74 && text.contains("is using it"), "{status} {text}");
}

#[test]
fn sealed_rows_cannot_be_exchanged_removed_or_put_back() {
    let scratch = Scratch::new();
    let home = scratch.path();
    let env = [(KEY, KEY_A)];
    let gateway = start(home, &env);
    create(&gateway, "One");
    create(&gateway, "Two");
    stop(gateway);
    let old = std::fs::read(database(home)).unwrap();
    let gateway = start(home, &env);
    let update = json!({"project_id": "proj-1", "vision": "newer"});
    gateway.admin().control("project_update", update);
    stop(gateway);
    let good = std::fs::read(database(home)).unwrap();

    let before = home.join("before.db");
    std::fs::write(&before, old).unwrap();
    let attach = format!("ATTACH '{}' AS old;", before.display());
    for change in [
        "UPDATE kv SET value = (SELECT value FROM kv WHERE key = 'control/project/2')
             WHERE key = 'control/project/1'",
        "DELETE FROM kv WHERE key = 'control/project/2'",
        "INSERT OR REPLACE INTO kv SELECT * FROM old.kv WHERE key = 'control/project/1'",
        "UPDATE kv_revision SET revision = revision - 1",
        "UPDATE seal SET digest = (SELECT digest FROM old.seal)",
        "UPDATE kv SET value = zeroblob(64) WHERE key = 'control/project/2'",
    ] {
        std::fs::write(database(home), &good).unwrap();
        let conn = Connection::open(database(home)).unwrap();
        conn.execute_batch(&format!("{attach} {change}")).unwrap();
        drop(conn);
        let (status, text) = run(GATEWAY, home, &env, &["--port", "0"]);
        assert!(matches!(status, 74 | 78), "{change}: {status} {text}");
    }
    std::fs::write(database(home), &good).unwrap();
    assert_eq!(names(&start(home, &env)), ["One", "Two"]);
}

#[test]
fn what_cannot_be_trusted_stops_the_start_and_is_left_as_it_is() {
    let scratch = Scratch::new();
    let home = scratch.path();
    let mut gateway = start(home, &[]);
    create(&gateway, "Demo");
    let (status, text) = run(GATEWAY, home, &[], &["--port", "0"]);
    assert!(status == 74 && text.contains("is using it"), "{status} {text}");
    gateway.program.kill();

    let log = ltm(home).join("runtime-memory.db-wal");
    let kept = std::fs::read(&log).unwrap();
    std::fs::remove_file(&log).unwrap();
    refused(home, &[], 74, "-wal with the newest changes is missing");
    std::fs::write(&log, &kept).unwrap();
    let moved = home.join("moved.db");
    std::fs::rename(database(home), &moved).unwrap();
    refused(home, &[], 74, "is missing, but its log");
    std::fs::rename(&moved, database(home)).unwrap();
    let gateway = start(home, &[]);
    assert_eq!(names(&gateway), ["Demo"]);
    stop(gateway);

    let good = std::fs::read(database(home)).unwrap();
    let foreign = home.join("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE bookmarks (url)").unwrap();
    let mut newer = good.clone();
    newer[60..64].copy_from_slice(&99u32.to_be_bytes());
    for (bytes, word) in [
        (good[..good.len() / 2].to_vec(), "restore a backup"),
        (b"\x00\x01random bytes, longer than a header of any kind".repeat(999), "not an SQLite"),
        (std::fs::read(&foreign).unwrap(), "another program's"),
        (newer, "newer version (format 99"),
    ] {
        std::fs::write(database(home), bytes).unwrap();
        refused(home, &[], 74, word);
    }
    std::fs::remove_file(database(home)).unwrap();
    std::fs::create_dir(database(home)).unwrap();
    refused(home, &[], 74, "directory");
    std::fs::remove_dir(database(home)).unwrap();
    std::fs::write(database(home), &good).unwrap();
    assert_eq!(names(&start(home, &[])), ["Demo"]);
}

#[test]
fn a_state_that_may_not_be_written_is_not_touched() {
    use std::os::unix::process::CommandExt;
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let scratch = Scratch::new();
    let home = scratch.path();
    stop(start(home, &[]));
    for (path, mode) in [(home.to_owned(), 0o755), (ltm(home), 0o755), (database(home), 0o644)] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    let (config, nobody) = (home.join("config.json"), 65_534);
    std::fs::copy(home.join(".config/spiderweb/config.json"), &config).unwrap();
    std::fs::set_permissions(&config, PermissionsExt::from_mode(0o644)).unwrap();
    let before = contents(home);
    let mut command =
        Gateway::command(home, "0", &[("SPIDERWEB_CONFIG", config.to_str().unwrap())]);
    let output = command.uid(nobody).gid(nobody).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let said = text.contains("permission denied") && text.contains("runtime-memory.db");
    assert!(output.status.code() == Some(74) && said, "{text}");
    assert!(before == contents(home));
}

#[test]
fn a_program_that_reads_holds_up_no_start_but_a_change_of_the_whole_file() {
    let scratch = Scratch::new();
    let home = scratch.path();
    let mut gateway = start(home, &[]);
    create(&gateway, "Demo");
    let reader = Connection::open(database(home)).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM kv").unwrap();
    create(&gateway, "Later");
    gateway.program.kill();
    let (status, text) = run(GATEWAY, home, &[(KEY, KEY_A)], &["--port", "0"]);
    assert!(status == 74 && text.contains("another program is reading it"), "{status} {text}");
    let gateway = start(home, &[]);
    assert_eq!(names(&gateway), ["Demo", "Later"]);
    let backup = home.join("backup.db");
    config(home, &[], &["backup", backup.to_str().unwrap()]);
    stop(gateway);
    // It need not even be reading: it has the file open.
    reader.execute_batch("COMMIT").unwrap();
    let state = contents(home);
    let (status, text) = run(CONFIG, home, &[], &["restore", backup.to_str().unwrap()]);
    assert!(status == 74 && text.contains("another program is reading it"), "{status} {text}");
    assert!(state == contents(home));
    drop(reader);
    assert_eq!(names(&start(home, &[(KEY, KEY_A)])), ["Demo", "Later"]);
}

#[test]
fn a_change_of_key_that_is_killed_leaves_one_of_two_whole_states() {
    let scratch = Scratch::new();
    let home = scratch.path();
    let gateway = start(home, &[(KEY, KEY_A)]);
    for n in 0..20 {
        create(&gateway, &format!("P{n}"));
    }
    stop(gateway);
    let waiting = ltm(home).join("runtime-memory.db.new");
    let mut keys = [KEY_A, KEY_B];
    for _ in 0..8 {
        let mut change = Command::new(CONFIG)
            .args(["state", "reseal"])
            .env_clear()
            .envs([("HOME", home.to_str().unwrap()), (KEY, keys[0]), (NEW_KEY, keys[1])])
            .current_dir(home)
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !waiting.exists() && change.try_wait().unwrap().is_none() {
            std::hint::spin_loop();
        }
        let _ = change.kill();
        change.wait().unwrap();
        // Done again, unless it was done already.
        let env = [(KEY, keys[0]), (NEW_KEY, keys[1])];
        let (status, text) = run(CONFIG, home, &env, &["state", "reseal"]);
        assert!(matches!(status, 0 | 78), "{status} {text}");
        keys.reverse();
        let gateway = start(home, &[(KEY, keys[0])]);
        assert_eq!(names(&gateway).len(), 20);
        stop(gateway);
    }
}

#[test]
fn earlier_states_are_kept_and_can_be_gone_back_to() {
    let scratch = Scratch::new();
    let home = scratch.path();
    let prev = |n: &str| ltm(home).join(format!("runtime-memory.db.prev{n}"));
    for n in 1..=5 {
        let gateway = start(home, &[]);
        create(&gateway, &format!("P{n}"));
        stop(gateway);
    }
    assert!(prev("").exists() && prev(".2").exists() && prev(".3").exists());
    assert!(!prev(".4").exists());
    assert_eq!(prev("").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    stop(start(home, &[]));
    let newest = std::fs::read(prev("")).unwrap();
    for _ in 0..3 {
        stop(start(home, &[]));
        assert!(std::fs::read(prev("")).unwrap() == newest, "nothing had changed");
    }

    std::fs::write(database(home), "spoilt").unwrap();
    refused(home, &[], 74, ".prev");
    let from = prev(".2");
    let text = config(home, &[], &["restore", from.to_str().unwrap()]);
    assert!(text.contains("access tokens stay") && text.contains(".prev"), "{text}");
    assert_eq!(std::fs::read(prev("")).unwrap(), b"spoilt");
    for beside in ["-wal", "-shm"] {
        assert!(!prev(&format!(".3{beside}")).exists() && !prev(beside).exists());
    }
    assert_eq!(names(&start(home, &[])).len(), 4);
}

#[test]
fn a_backup_under_load_has_all_that_was_answered_before_it_began() {
    let scratch = Scratch::new();
    let home = scratch.path();
    let env = [(KEY, KEY_A)];
    let mut gateway = start(home, &env);
    let (file, token) = (home.join("backup.db"), gateway.token("admin_token"));
    let backup = file.to_str().unwrap();
    let answered = std::sync::atomic::AtomicUsize::new(0);
    let done = std::sync::atomic::AtomicBool::new(false);
    use std::sync::atomic::Ordering::SeqCst;
    let before = std::thread::scope(|scope| {
        for thread in 0..4 {
            let (answered, done, mut admin) = (&answered, &done, gateway.admin());
            scope.spawn(move || {
                for n in 0.. {
                    if done.load(SeqCst) {
                        return;
                    }
                    let name = format!("T{thread}-{n}");
                    admin.control("project_create", json!({"name": name, "vision": "v"}));
                    answered.fetch_add(1, SeqCst);
                }
            });
        }
        while answered.load(SeqCst) < 100 {
            std::thread::yield_now();
        }
        let before = answered.load(SeqCst);
        config(home, &[], &["backup", backup]);
        done.store(true, SeqCst);
        before
    });
    let (status, text) = run(CONFIG, home, &[], &["backup", backup]);
    assert!(status == 73 && text.contains("--force"), "{status} {text}");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let (status, text) = run(CONFIG, home, &env, &["restore", backup]);
    assert!(status == 74 && text.contains("is using it"), "{status} {text}");
    gateway.program.kill();
    let gateway = start(home, &env);
    assert!(names(&gateway).len() >= answered.load(SeqCst));
    stop(gateway);

    // Elsewhere, from nothing.
    let other = Scratch::new();
    let (status, text) = run(CONFIG, other.path(), &[], &["restore", backup]);
    assert!(status == 78 && text.contains(KEY), "{status} {text}");
    assert!(!database(other.path()).exists());
    let text = config(other.path(), &env, &["restore", backup]);
    assert!(text.contains("restored the state of 2"), "{text}");
    let gateway = start(other.path(), &env);
    assert_eq!(gateway.token("admin_token"), token);
    let restored = names(&gateway);
    assert!(restored.len() >= before, "{} of {before}", restored.len());
    let mut ends = [0; 4];
    for name in &restored {
        let (thread, n) = name[1..].split_once('-').unwrap();
        ends[thread.parse::<usize>().unwrap()] += 1;
        assert!(n.parse::<usize>().unwrap() < restored.len());
    }
    // What each has made is there without a gap.
    for (thread, end) in ends.iter().enumerate() {
        for n in 0..*end {
            assert!(restored.contains(&format!("T{thread}-{n}")));
        }
    }

    // Over what is there, which is damaged, with its log.
    start(home, &env).program.kill();
    assert!(ltm(home).join("runtime-memory.db-wal").exists());
    std::fs::write(database(home), "spoilt").unwrap();
    config(home, &env, &["restore", backup]);
    assert_eq!(names(&start(home, &env)).len(), restored.len());
    // And offline, over an older one; a spoilt one is refused, and changes nothing.
    config(home, &[], &["backup", "--force", backup]);
    std::fs::write(&file, &std::fs::read(&file).unwrap()[..20_000]).unwrap();
    let state = contents(home);
    let (status, text) = run(CONFIG, home, &env, &["restore", backup]);
    assert!(status == 74 && text.contains("damaged"), "{status} {text}");
    assert!(state == contents(home));
}

fn original(home: &Path, content: &str) {
    std::fs::create_dir_all(ltm(home)).unwrap();
    let conn = Connection::open(database(home)).unwrap();
    conn.execute_batch(
        "CREATE TABLE mem_versions (base_id TEXT, version INTEGER, kind TEXT, content_json TEXT,
             created_at_ms INTEGER, PRIMARY KEY (base_id, version));
         INSERT INTO mem_versions VALUES ('note', 1, 'memory', '{}', 5)",
    )
    .unwrap();
    let base = "spiderweb:control-plane:state";
    let row = params![base, content];
    conn.execute("INSERT INTO mem_versions VALUES (?1, 1, 'control_plane_state_v1', ?2, 5)", row)
        .unwrap();
    let tokens = json!({"schema": 3, "admin_token": "sw-admin_old", "user_token": "sw-user_old",
        "user_last_target": {"agent_id": "alice", "project_id": "proj-3"}, "updated_at_ms": 7});
    std::fs::write(ltm(home).join("auth_tokens.json"), tokens.to_string()).unwrap();
}

fn original_row(home: &Path) -> rusqlite::Result<String> {
    let sql = "SELECT content_json FROM mem_versions WHERE kind = 'control_plane_state_v1'";
    Connection::open(database(home))?.query_row(sql, [], |r| r.get(0))
}

fn snapshot() -> Value {
    json!({"schema": 1, "next": {"invite_id": 2, "node_id": 9, "pending_join_id": 1, "project_id": 4},
        "metrics": {}, "invites": [], "pending_joins": [],
        "nodes": [{"id": "node-8", "name": "edge", "fs_url": "", "secret": "secret-old",
            "lease_token": "lease-old", "platform": {}, "labels": {}, "services": [],
            "joined_at_ms": 1, "last_seen_ms": 2, "lease_expires_at_ms": 3}],
        "projects": [{"id": "proj-3", "name": "Demo", "vision": "v", "status": "active",
            "kind": "normal", "is_delete_protected": false, "token_locked": true,
            "mutation_token": "proj-old", "created_at_ms": 1, "updated_at_ms": 2,
            "access_policy": {"actions": {}, "agents": {}},
            "mounts": [{"mount_path": "/src", "node_id": "node-8", "export_name": "work"},
                {"mount_path": "/gone", "node_id": "node-7", "export_name": "work"}],
            "binds": []}],
        "active_project_by_agent": [{"agent_id": "alice", "project_id": "proj-3"}]})
}

/// The snapshot in the original's encrypted form, made with the system's own means.
fn encrypted(key: [u8; 32]) -> String {
    use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    let mut text = snapshot().to_string().into_bytes();
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
    let nonce = [7; 12];
    let aad = Aad::from(b"spiderweb-control-plane-state-v1");
    let unique = Nonce::assume_unique_for_key(nonce);
    let tag = cipher.seal_in_place_separate_tag(unique, aad, &mut text).unwrap();
    let b64 = spiderweb::wire::base64_encode;
    json!({"schema": 1, "enc": "aes-256-gcm", "nonce": b64(&nonce), "tag": b64(tag.as_ref()),
        "ciphertext": b64(&text)})
    .to_string()
}

fn taken_over(home: &Path, env: &[(&str, &str)]) {
    let gateway = start(home, env);
    assert_eq!(gateway.token("admin_token"), "sw-admin_old");
    let mut admin = gateway.admin();
    let project = admin.control("project_get", json!({"project_id": "proj-3"}));
    assert_eq!(project["mounts"].as_array().unwrap().len(), 1);
    let old = json!({"node_id": "node-8", "node_secret": "secret-old"});
    admin.control("node_lease_refresh", old);
    let token = json!({"project_id": "proj-3", "project_token": "proj-old"});
    gateway.user().control("project_get", token);
    let made = admin.control("project_create", json!({"name": "New", "vision": "v"}));
    assert_eq!(made["project_id"], "proj-4");
    admin.control("project_delete", json!({"project_id": "proj-3"}));
    stop(gateway);
    let gateway = start(home, env);
    assert_eq!(names(&gateway), ["New"]);
    stop(gateway);
}

#[test]
fn the_state_of_an_original_gateway_is_taken_over_once() {
    let plain = Scratch::new();
    original(plain.path(), &snapshot().to_string());
    stop(start(plain.path(), &[]));
    let found = ltm(plain.path()).join("runtime-memory.db.prev");
    let tables = "SELECT group_concat(name) FROM sqlite_schema WHERE type = 'table'";
    let tables: String =
        Connection::open(found).unwrap().query_row(tables, [], |r| r.get(0)).unwrap();
    assert_eq!(tables, "mem_versions");
    taken_over(plain.path(), &[]);
    assert_eq!(original_row(plain.path()).unwrap(), snapshot().to_string());

    let sealed = Scratch::new();
    let text = encrypted([0xaa; 32]);
    original(sealed.path(), &text);
    refused(sealed.path(), &[], 78, KEY);
    refused(sealed.path(), &[(KEY, KEY_B)], 78, KEY);
    taken_over(sealed.path(), &[(KEY, KEY_A)]);
    assert_eq!(original_row(sealed.path()).unwrap(), text);

    // A plain one is encrypted as the original would have done it, and no file has it in clear.
    let to_seal = Scratch::new();
    original(to_seal.path(), &snapshot().to_string());
    taken_over(to_seal.path(), &[(KEY, KEY_A)]);
    assert!(original_row(to_seal.path()).unwrap().contains(r#""enc":"aes-256-gcm""#));
    for secret in ["secret-old", "proj-old"] {
        assert_eq!(holders(to_seal.path(), secret), [""; 0]);
    }

    let broken = Scratch::new();
    original(broken.path(), r#"{"schema":1,"nodes":7}"#);
    let (status, text) = run(GATEWAY, broken.path(), &[], &["--port", "0"]);
    assert!(status == 74 && text.contains("cannot be taken over"), "{status} {text}");
    assert_eq!(original_row(broken.path()).unwrap(), r#"{"schema":1,"nodes":7}"#);
}
