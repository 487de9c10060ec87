//! Lists, reads, writes and mounts exports, workspaces and the namespace.

fn main() -> std::process::ExitCode {
    spiderweb::cli::fs_mount::main()
}
