//! `spiderweb-config auth`: the access tokens of the gateway whose config file this is, be it running or
//! not. A running one takes over what is changed here by itself.

use super::super::{Args, duration_ms, print, usage};
use crate::base::{Code, Error, Result, now_ms};
use crate::config::tokens::{Named, Role, Tokens, masked};
use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// Subcommands, for messages.
const SUBCOMMANDS: &str = "list, add, revoke, rotate, status, path, reset";

pub(super) fn run(args: &Args, path: &Path) -> Result<()> {
    let sub = args.word(1, "<subcommand>")?;
    match sub.as_str() {
        "path" => {
            args.at_most(2)?;
            print(&format!("{}\n", path.display()))?;
            Ok(())
        }
        "status" => status(args, path),
        "list" => list(args, path),
        "add" => add(args, path),
        "revoke" => revoke(args, path),
        "rotate" => rotate(args, path),
        "reset" => reset(args, path),
        other => Err(usage(format!("unknown subcommand {other:?}; there are: {SUBCOMMANDS}"))),
    }
}

fn status(args: &Args, path: &Path) -> Result<()> {
    args.at_most(2)?;
    let tokens = load(path)?;
    let reveal = args.has("--reveal");
    let shown = |role: Role| match reveal {
        true => tokens.shared(role).to_owned(),
        false => masked(tokens.shared(role)),
    };
    if args.has("--json") {
        let all = serde_json::json!({"path": path, "admin_token": shown(Role::Admin),
            "user_token": shown(Role::User), "revealed": reveal, "tokens": tokens.tokens.len()});
        return json(&all);
    }
    let mut text = String::new();
    let _ = writeln!(text, "File: {}", path.display());
    let _ = writeln!(text, "Admin: {}", shown(Role::Admin));
    let _ = writeln!(text, "User: {}", shown(Role::User));
    let _ = writeln!(text, "Named tokens: {}", tokens.tokens.len());
    print(&text)?;
    Ok(())
}

fn list(args: &Args, path: &Path) -> Result<()> {
    args.at_most(2)?;
    let (tokens, now_ms) = (load(path)?, now_ms());
    if args.has("--json") {
        let one = |t: &Named| {
            serde_json::json!({"name": t.name, "role": t.role, "created_at_ms": t.created_at_ms,
                "expires_at_ms": t.expires_at_ms, "expired": t.is_expired(now_ms)})
        };
        return json(&tokens.tokens.iter().map(one).collect());
    }
    let width = tokens.tokens.iter().map(|t| t.name.len()).max().unwrap_or(0).max(4);
    let mut text = format!("{:width$}  ROLE   CREATED               EXPIRES\n", "NAME");
    for t in &tokens.tokens {
        let mut expires = t.expires_at_ms.map_or("never".into(), time);
        if t.is_expired(now_ms) {
            expires.push_str(" (expired)");
        }
        let (role, created) = (t.role.name(), time(t.created_at_ms));
        let _ = writeln!(text, "{:width$}  {role:5}  {created:20}  {expires}", t.name);
    }
    print(&text)?;
    Ok(())
}

fn add(args: &Args, path: &Path) -> Result<()> {
    args.at_most(3)?;
    let name = args.word(2, "<name>")?;
    let role = args.string("--role")?.map_or(Ok(Role::User), |text| role("--role", &text))?;
    let expires_in_ms = args.string("--expires-in")?.map(|t| duration_ms("--expires-in", &t));
    let expires_in_ms = expires_in_ms.transpose()?;
    // Where the gateway was never started, this makes the file.
    Tokens::load_or_create(path)?;
    let (_, token) = Tokens::update(path, |tokens| tokens.add(&name, role, expires_in_ms))?;
    if args.has("--json") {
        return json(&serde_json::json!({"name": name, "role": role, "token": token}));
    }
    eprintln!("the token of {name}, role {}; it is not kept and not shown again:", role.name());
    print(&format!("{token}\n"))?;
    Ok(())
}

fn revoke(args: &Args, path: &Path) -> Result<()> {
    args.at_most(3)?;
    let name = args.word(2, "<name>")?;
    if Role::parse(&name).is_some() {
        return Err(usage(format!(
            "the token of role {name} is replaced: spiderweb-config --revoke auth rotate {name}"
        )));
    }
    load(path)?;
    Tokens::update(path, |tokens| tokens.revoke(&name))?;
    eprintln!("revoked the token of {name}; its connections end");
    Ok(())
}

fn rotate(args: &Args, path: &Path) -> Result<()> {
    args.at_most(3)?;
    let role = role("<role>", &args.word(2, "<role>")?)?;
    let revoke = args.has("--revoke");
    load(path)?;
    let (_, token) = Tokens::update(path, |tokens| Ok(tokens.rotate(role, revoke)))?;
    if args.has("--json") {
        return json(&serde_json::json!({"role": role, "token": token, "revoked": revoke}));
    }
    let old = if revoke { "end" } else { "go on until they are closed" };
    eprintln!("the new token of role {}; connections by the old one {old}:", role.name());
    print(&format!("{token}\n"))?;
    Ok(())
}

fn reset(args: &Args, path: &Path) -> Result<()> {
    args.at_most(2)?;
    if !args.has("--yes") {
        return Err(usage(
            "reset makes all tokens worthless, the named ones too, and ends all connections; say \
             --yes if that is meant",
        ));
    }
    let (_, made) = Tokens::load_or_create(path)?;
    if !made {
        Tokens::update(path, |tokens| {
            tokens.reset();
            Ok(())
        })?;
    }
    eprintln!("all tokens are new; see spiderweb-config --reveal auth status");
    Ok(())
}

/// Errors: as [`Tokens::load`], saying how the file comes to be.
fn load(path: &Path) -> Result<Tokens> {
    Tokens::load(path).map_err(|e| match e.errno() {
        libc::ENOENT => {
            let path = path.display();
            let message = format!("{path}: no tokens yet; start the gateway, or use auth add");
            Error::new(Code::NotFound, message)
        }
        _ => e,
    })
}

fn role(what: &str, text: &str) -> Result<Role> {
    Role::parse(text).ok_or_else(|| usage(format!("{what}: {text:?} is not admin or user")))
}

fn time(ms: i64) -> String {
    let since = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    // What lies beyond the year 9999 has no such form.
    match UNIX_EPOCH.checked_add(since).filter(|_| ms < 253_402_300_800_000) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
        None => format!("{ms} ms"),
    }
}

fn json(value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    print(&format!("{text}\n"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_beyond_all_calendars_are_numbers() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(i64::MAX), format!("{} ms", i64::MAX));
    }
}
