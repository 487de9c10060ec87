//! The gateway.

use std::process::ExitCode;

fn main() -> ExitCode {
    spiderweb::cli::main(&spiderweb::cli::gateway::PROGRAM, spiderweb::cli::gateway::run)
}
