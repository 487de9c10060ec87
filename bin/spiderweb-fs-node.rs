//! The filesystem node.

use std::process::ExitCode;

fn main() -> ExitCode {
    spiderweb::cli::main(&spiderweb::cli::fs_node::PROGRAM, spiderweb::cli::fs_node::run)
}
