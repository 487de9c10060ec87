//! The programs as a user meets them: flags, help, output, exit codes, and one `run` per program. What
//! they do stands in the rooms to the left.

pub mod config;
pub mod control;
mod flags;
pub mod fs_mount;
pub mod fs_node;
pub mod gateway;

pub use flags::{Args, Command, Flag, Program, duration_ms, help, main, main_with, usage};

use crate::base::{Result, ResultExt};
use std::path::Path;

/// Every program, for the check of the manual pages.
pub const PROGRAMS: &[&Program] = &[
    &gateway::PROGRAM,
    &config::PROGRAM,
    &control::PROGRAM,
    &fs_node::PROGRAM,
    &fs_mount::PROGRAM,
    &fs_mount::helper::PROGRAM,
];

/// Longest token file.
const TOKEN_FILE_MAX: usize = 1 << 20;

/// The bearer token for the gateway: from the flag, the file of the flag, or the environment. A file
/// may be `auth_tokens.json` itself; the admin's token is taken from it.
pub fn bearer(args: &Args) -> Result<Option<String>> {
    if let Some(token) = args.string("--auth-token")? {
        return Ok(Some(token));
    }
    if let Some(file) = args.os("--auth-token-file") {
        let text = secret_file("--auth-token-file", Path::new(file))?;
        let admin = serde_json::from_str::<serde_json::Value>(&text).ok();
        let admin = admin.and_then(|v| v.get("admin_token")?.as_str().map(str::to_owned));
        return admin.map_or_else(|| one_line("--auth-token-file", text), Ok).map(Some);
    }
    let var = std::env::var("SPIDERWEB_AUTH_TOKEN").ok();
    Ok(var.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()))
}

/// The token that a file holds. Errors: `usage` where the file is empty or more than a token, and why it
/// cannot be read; all begin with `flag`.
pub fn token_file(flag: &str, file: &Path) -> Result<String> {
    one_line(flag, secret_file(flag, file)?)
}

fn secret_file(flag: &str, file: &Path) -> Result<String> {
    let text = crate::store::atomic::read(file, TOKEN_FILE_MAX).context(flag)?;
    let bad = |what: &str| usage(format!("{flag}: {}: {what}", file.display()));
    let text = String::from_utf8(text).map_err(|_| bad("a token must be UTF-8"))?;
    // An empty token would open the door that it is meant to close.
    Some(text.trim().to_owned()).filter(|t| !t.is_empty()).ok_or_else(|| bad("the file is empty"))
}

fn one_line(flag: &str, token: String) -> Result<String> {
    if token.contains(char::is_control) {
        return Err(usage(format!("{flag}: a token is one line without control characters")));
    }
    Ok(token)
}

/// Writes to standard output; a reader that has gone away is no error.
pub fn print(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e).context("standard output"),
        _ => Ok(()),
    }
}
