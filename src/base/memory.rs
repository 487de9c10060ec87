//! How memory is taken from the host. A C library that gives each thread an area of its own keeps in all of
//! them what each once needed: many times what is in use, in programs that move large pieces. And one that
//! hands each such piece back at once has the host clear every page of the next.

/// Areas that threads take memory from.
#[cfg(target_env = "gnu")]
const AREAS_MAX: libc::c_int = 2;
/// Pieces up to this size come from the areas.
#[cfg(target_env = "gnu")]
const PIECE_MAX: libc::c_int = 4 << 20;
/// What is free at the end of an area is kept up to this.
#[cfg(target_env = "gnu")]
const KEPT_MAX: libc::c_int = 2 << 20;

/// Keeps a node small and quick; in a mount, whose threads have large buffers from the start, it would do the
/// opposite. Called once, before there are threads; where the C library has no such setting, nothing happens.
pub fn be_frugal() {
    // SAFETY: sets numbers; what the library does not know it refuses.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, AREAS_MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, PIECE_MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_MAX);
    };
}
