//! Lists, reads, writes and mounts exports, workspaces and the namespace.

fn main() -> std::process::ExitCode {
    spiderweb::cli::main(&spiderweb::cli::fs_mount::PROGRAM, spiderweb::cli::fs_mount::run)
}
