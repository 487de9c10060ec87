//! What the commands answer, as scripts want it (JSON) or as people do (tables).

use super::progress::size;
use crate::base::{Code, Error, Result};
use crate::cli::{Args, usage};
use serde_json::Value;
use std::fmt::Write;
use std::io::IsTerminal;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Json,
    Table { colour: bool },
}

/// Entries of a page when a whole directory is shown.
pub const PAGE: u32 = 1024;

/// A table on a terminal, JSON elsewhere, unless the flags say otherwise.
pub fn form(args: &Args) -> Result<Form> {
    let terminal = std::io::stdout().is_terminal();
    match (args.has("--json"), args.has("--table")) {
        (true, true) => Err(usage("give either --json or --table")),
        (false, false) if !terminal => Ok(Form::Json),
        (true, _) => Ok(Form::Json),
        _ => {
            // The convention of no-color.org: set and not empty.
            let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
            Ok(Form::Table { colour: terminal && !plain })
        }
    }
}

/// The answer in a form; without the end of its last line.
pub fn shown(form: Form, json: String, table: fn(&Value, Form) -> String) -> Result<String> {
    match form {
        Form::Json => Ok(json),
        Form::Table { .. } => Ok(table(&parse(&json)?, form).trim_end().to_owned()),
    }
}

pub fn parse(json: &str) -> Result<Value> {
    serde_json::from_str(json).map_err(|e| Error::new(Code::Eio, format!("not JSON: {e}")))
}

/// Attributes, a line for each.
pub fn attributes(a: &Value, _: Form) -> String {
    let mut out = String::new();
    let rows = [
        ("Id", a["id"].to_string()),
        ("Mode", format!("{} ({:04o})", mode(a), a["m"].as_u64().unwrap_or(0) & 0o7777)),
        ("Links", a["n"].to_string()),
        ("Owner", format!("{}:{}", a["u"], a["g"])),
        ("Size", a["sz"].to_string()),
        ("Accessed", time(&a["at"])),
        ("Modified", time(&a["mt"])),
        ("Changed", time(&a["ct"])),
    ];
    for (name, value) in rows {
        let _ = writeln!(out, "{name:9} {value}");
    }
    out
}

/// A page of a directory, like `ls -l`.
pub fn listing(page: &Value, form: Form) -> String {
    let entries = page["ents"].as_array().map_or(&[][..], Vec::as_slice);
    let row = |e: &Value| {
        let a = &e["attr"];
        let name = safe(&name(e));
        let name = match a["k"].as_u64() {
            Some(2) => paint(form, "1;34", name),
            Some(3) => paint(form, "1;36", name),
            _ => name,
        };
        let number = |key: &str| a[key].to_string();
        vec![mode(a), number("n"), number("u"), number("g"), number("sz"), time(&a["mt"]), name]
    };
    let rows: Vec<_> = entries.iter().map(row).collect();
    aligned(&rows, &[false, true, true, true, true, false, false])
}

/// How endpoints stand, and what a running mount says about itself.
pub fn status(s: &Value, form: Form) -> String {
    let mut out = String::new();
    if let Some(point) = s["mount_point"].as_str() {
        let up = Duration::from_secs(s["uptime_ms"].as_u64().unwrap_or(0) / 1000);
        let _ = writeln!(out, "Mount      {}", safe(point));
        let _ = writeln!(out, "Process    {}, up {}", s["pid"], humantime::format_duration(up));
        let _ = writeln!(out, "Version    {}", text(&s["version"]));
        let _ = writeln!(out, "Open files {}", s["open_files"]);
        if let Some(bytes) = s["resident_bytes"].as_u64() {
            let _ = writeln!(out, "Memory     {}", size(bytes));
        }
        out.push('\n');
    }
    if let Some(mounts) = s["mounts"].as_array().filter(|m| !m.is_empty()) {
        let row = |m: &Value| {
            let members = m["members"].as_array().map_or(&[][..], Vec::as_slice);
            let members: Vec<_> = members.iter().map(text).collect();
            let failovers = m["failovers"].to_string();
            vec![text(&m["path"]), text(&m["active"]), members.join(","), failovers]
        };
        let head = ["PATH", "ACTIVE", "MEMBERS", "FAILOVERS"].map(str::to_owned).to_vec();
        let rows: Vec<_> = std::iter::once(head).chain(mounts.iter().map(row)).collect();
        out.push_str(&aligned(&rows, &[false, false, false, true]));
        out.push('\n');
    }
    let endpoints = s["endpoints"].as_array().map_or(&[][..], Vec::as_slice);
    let row = |e: &Value| {
        let healthy = e["healthy"].as_bool() == Some(true);
        let state =
            if healthy { paint(form, "32", "up".into()) } else { paint(form, "31", "down".into()) };
        let export = Some(text(&e["export"])).filter(|x| !x.is_empty());
        let url = export.map_or_else(String::new, |x| format!("#{x}"));
        let why = e["last_error"].as_str().map(safe).unwrap_or_default();
        let line = line(&e["line"]);
        vec![state, text(&e["name"]), text(&e["mount_path"]), line, text(&e["url"]) + &url, why]
    };
    let head = ["STATE", "NAME", "PATH", "LINE", "URL", "LAST ERROR"].map(str::to_owned).to_vec();
    let rows: Vec<_> = std::iter::once(head).chain(endpoints.iter().map(row)).collect();
    out.push_str(&aligned(&rows, &[false; 6]));
    out
}

/// Whether a line is compressed, and to how much of what it moves.
fn line(l: &Value) -> String {
    let bytes = |name: &str| l[name].as_u64().unwrap_or(0);
    match l["compressed"].as_bool() {
        Some(true) => {
            let percent = bytes("wire_bytes").saturating_mul(100) / bytes("raw_bytes").max(1);
            format!("lz4 {percent}%")
        }
        Some(false) => "plain".into(),
        None => "-".into(),
    }
}

/// Columns of the same width, those of numbers to the right.
fn aligned(rows: &[Vec<String>], right: &[bool]) -> String {
    let width = |column: usize| rows.iter().map(|row| visible(&row[column])).max().unwrap_or(0);
    let widths: Vec<usize> = (0..right.len()).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for ((cell, width), right) in row.iter().zip(&widths).zip(right) {
            let blank = " ".repeat(width - visible(cell));
            let (before, after) =
                if *right { (blank, String::new()) } else { (String::new(), blank) };
            let _ = write!(line, "{before}{cell}{after}  ");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

/// Characters that take a place on the terminal: colours do not.
fn visible(cell: &str) -> usize {
    let mut colour = false;
    let takes_place = |c: &char| {
        let was = colour;
        colour = if colour { *c != 'm' } else { *c == '\x1b' };
        !was && !colour
    };
    cell.chars().filter(takes_place).count()
}

fn paint(form: Form, colour: &str, text: String) -> String {
    match form {
        Form::Table { colour: true } => format!("\x1b[{colour}m{text}\x1b[0m"),
        _ => text,
    }
}

fn text(v: &Value) -> String {
    v.as_str().map(safe).unwrap_or_default()
}

/// Names come from far away; a terminal obeys what they may hold.
fn safe(text: &str) -> String {
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().collect::<String>(),
        false => c.to_string(),
    };
    text.chars().map(escape).collect()
}

fn name(entry: &Value) -> String {
    let encoded = || {
        let bytes = crate::wire::base64_decode(entry["name_b64"].as_str()?).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    entry["name"].as_str().map(str::to_owned).or_else(encoded).unwrap_or_default()
}

/// Kind and permissions, as in `drwxr-xr-x`.
fn mode(a: &Value) -> String {
    let m = a["m"].as_u64().unwrap_or(0) as u32;
    let kind = match m & libc::S_IFMT {
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        _ => '-',
    };
    let bits = "rwxrwxrwx".chars().enumerate();
    let bits = bits.map(|(n, c)| if m & (0o400 >> n) != 0 { c } else { '-' });
    std::iter::once(kind).chain(bits).collect()
}

/// Nanoseconds since the epoch, in UTC.
fn time(ns: &Value) -> String {
    let since = Duration::from_nanos(ns.as_i64().and_then(|ns| ns.try_into().ok()).unwrap_or(0));
    let time = UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PLAIN: Form = Form::Table { colour: false };

    #[test]
    fn a_listing_looks_like_that_of_ls() {
        let attr = |k: u8, m: u32, sz: u64| {
            json!({"id": 5, "k": k, "m": m, "n": 1, "u": 0, "g": 10, "sz": sz,
                "mt": 981_173_106_500_000_000u64})
        };
        let page = json!({"ents": [
            {"name": "dir", "attr": attr(2, 0o40755, 4096)},
            {"name": "a\u{1b}[31m", "attr": attr(1, 0o100640, 7)},
            {"name_b64": "/2E=", "attr": attr(3, 0o120777, 1)},
        ]});
        let lines = listing(&page, PLAIN);
        assert_eq!(
            lines,
            "drwxr-xr-x  1  0  10  4096  2001-02-03T04:05:06Z  dir\n\
             -rw-r-----  1  0  10     7  2001-02-03T04:05:06Z  a\\u{1b}[31m\n\
             lrwxrwxrwx  1  0  10     1  2001-02-03T04:05:06Z  \u{fffd}a\n"
        );
        let coloured = listing(&page, Form::Table { colour: true });
        assert!(coloured.contains("\x1b[1;34mdir\x1b[0m\n"));
        assert!(attributes(&attr(1, 0o100640, 7), PLAIN).contains("-rw-r----- (0640)"));
    }

    #[test]
    fn a_status_shows_what_is_up_and_why_not() {
        let s = json!({"endpoints": [
            {"name": "a", "mount_path": "/a", "url": "ws://h/v2/fs", "export": "x", "healthy": true,
             "line": {"compressed": true, "raw_bytes": 1000, "wire_bytes": 250}},
            {"name": "b", "mount_path": "/b", "url": "ws://h/v2/fs", "export": "",
             "healthy": false, "last_error": "refused"}],
            "mount_point": "/mnt", "pid": 7, "uptime_ms": 61_000, "version": "1", "open_files": 2,
            "mounts": [{"path": "/a", "active": "a", "members": ["a"], "failovers": 0}]});
        let shown = status(&s, PLAIN);
        for part in
            ["7, up 1m 1s", "up     a", "lz4 25%", "ws://h/v2/fs#x\n", "down   b", "  refused\n"]
        {
            assert!(shown.contains(part), "{part:?} in\n{shown}");
        }
    }
}
