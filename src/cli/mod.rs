//! The programs as a user meets them: flags, help, output, exit codes, and one `run` per program. What
//! they do stands in the rooms to the left.

mod flags;
mod fs_mount;

pub use flags::{Args, Command, Flag, Program, main};
pub use fs_mount::{FS_MOUNT, run as fs_mount};

/// Every program, for the manual-page check and the shell completions.
pub const PROGRAMS: &[&Program] = &[&FS_MOUNT];

/// Writes to standard output; a reader that has gone away is no error.
pub fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
