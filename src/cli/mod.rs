//! The programs as a user meets them: flags, help, output, exit codes, and one `run` per program. What
//! they do stands in the rooms to the left.

pub mod config;
pub mod control;
mod flags;
pub mod fs_mount;
pub mod fs_node;
pub mod gateway;

pub use flags::{Args, Command, Flag, Program, help, main, main_with, usage};

use crate::base::{Result, ResultExt};

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
        let text = crate::store::atomic::read(std::path::Path::new(file), TOKEN_FILE_MAX);
        let text = text.context("--auth-token-file")?;
        let text = String::from_utf8_lossy(&text);
        let admin = serde_json::from_str::<serde_json::Value>(&text).ok();
        let admin = admin.and_then(|v| v.get("admin_token")?.as_str().map(str::to_owned));
        return Ok(Some(admin.unwrap_or_else(|| text.trim().to_owned())));
    }
    let var = std::env::var("SPIDERWEB_AUTH_TOKEN").ok();
    Ok(var.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()))
}

/// Writes to standard output; a reader that has gone away is no error.
pub fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
