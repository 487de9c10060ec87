//! The house stays as it was drawn: rooms know only what stands to their left, files stay readable,
//! and the manual pages say what the programs do.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms from left to right (ARCHITECTURE.md).
const ROOMS: [&str; 13] = [
    "base",
    "wire",
    "net",
    "store",
    "vfs",
    "config",
    "node",
    "mount",
    "control",
    "runtime",
    "namespace",
    "gateway",
    "cli",
];
/// Pairs that stand side by side: neither knows the other.
const STRANGERS: [[&str; 2]; 3] = [["node", "mount"], ["node", "control"], ["mount", "control"]];
/// Past this a file holds a second room.
const LINES_MAX: usize = 800;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// The rooms that a source text names as `crate::room`.
fn named(text: &str) -> BTreeSet<&str> {
    let code = text.lines().filter(|l| !l.trim_start().starts_with("//"));
    let ends = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    code.flat_map(|line| line.split("crate::").skip(1))
        .filter_map(|rest| rest.split(ends).next())
        .collect()
}

#[test]
fn rooms_know_only_what_stands_to_their_left() {
    for (place, room) in ROOMS.iter().enumerate() {
        for file in sources(&root().join("src").join(room)) {
            let text = fs::read_to_string(&file).unwrap();
            for other in named(&text) {
                let at = ROOMS.iter().position(|r| *r == other);
                let at =
                    at.unwrap_or_else(|| panic!("{}: crate::{other} is no room", file.display()));
                assert!(at <= place, "{}: {room} must not know {other}", file.display());
                let strangers = STRANGERS.iter().any(|p| p.contains(room) && p.contains(&other));
                assert!(
                    !strangers || *room == other,
                    "{}: {room} must not know {other}",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn files_open_with_what_they_own_and_stay_readable() {
    for file in sources(&root().join("src")).into_iter().chain(sources(&root().join("bin"))) {
        let text = fs::read_to_string(&file).unwrap();
        let is_test = file.file_name().is_some_and(|n| n == "tests.rs");
        assert!(is_test || text.starts_with("//!"), "{} has no opening lines", file.display());
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines", file.display());
    }
    for file in sources(&root().join("bin")) {
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 20, "{}: a program is a call of its room", file.display());
    }
}

#[test]
fn the_manual_pages_name_every_command_and_flag_and_no_others() {
    for program in spiderweb::cli::PROGRAMS {
        let page =
            ["1", "8"].iter().map(|s| root().join("man").join(format!("{}.{s}", program.name)));
        let page = page.into_iter().find(|p| p.exists());
        let page = page.unwrap_or_else(|| panic!("{} has no manual page", program.name));
        let text = fs::read_to_string(&page).unwrap();
        // A flag is written `.It Fl -name`, a command `.It Cm name`.
        let items = |macro_name: &str| -> BTreeSet<String> {
            let prefix = format!(".It {macro_name} ");
            let found = text.lines().filter_map(|l| l.strip_prefix(&prefix));
            found.filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect()
        };
        let flags: BTreeSet<_> = program.flags.iter().map(|f| f.name[1..].to_owned()).collect();
        let mut written = items("Fl");
        for standard in ["-help", "-version"] {
            assert!(written.remove(standard), "{} does not tell of -{standard}", page.display());
        }
        assert_eq!(written, flags, "flags of {}", page.display());
        let commands: BTreeSet<_> = program.commands.iter().map(|c| c.name.to_owned()).collect();
        let first = |name: &String| name.split(' ').next().unwrap_or_default().to_owned();
        let commands: BTreeSet<_> = commands.iter().map(first).collect();
        assert_eq!(items("Cm"), commands, "commands of {}", page.display());
    }
}

#[test]
fn the_protocol_page_has_an_entry_for_every_control_operation() {
    let text = fs::read_to_string(root().join("man/spiderweb-protocol.7")).unwrap();
    for op in spiderweb::control::TABLE {
        let entry = format!(".It Ic control.{}", op.name);
        assert!(text.contains(&entry), "spiderweb-protocol(7) has no {entry:?}");
    }
    for (alias, _) in spiderweb::control::ALIASES {
        let named = text.split(|c: char| c.is_whitespace() || c == '.').any(|word| word == *alias);
        assert!(named, "spiderweb-protocol(7) does not name {alias}");
    }
}

#[test]
fn tracked_files_name_no_machine_and_no_registry() {
    let home = std::env::var("HOME").unwrap_or_default();
    let bad = [format!("{}/", root().display()), format!("{home}/.cargo"), "static.crates.".into()];
    let texts = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "Makefile", "Cargo.toml"];
    for file in texts.iter().map(|f| root().join(f)).chain(sources(&root().join("src"))) {
        let text = fs::read_to_string(&file).unwrap();
        for bad in bad.iter().filter(|b| b.len() > 8) {
            assert!(!text.contains(bad.as_str()), "{} names {bad}", file.display());
        }
    }
}
