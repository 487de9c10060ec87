//! The config file from the shell.

use std::process::ExitCode;

fn main() -> ExitCode {
    spiderweb::cli::main(&spiderweb::cli::config::PROGRAM, spiderweb::cli::config::run)
}
