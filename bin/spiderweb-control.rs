//! One control operation from the shell.

use std::process::ExitCode;

fn main() -> ExitCode {
    spiderweb::cli::main(&spiderweb::cli::control::PROGRAM, spiderweb::cli::control::run)
}
