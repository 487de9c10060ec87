//! How memory is taken from the host. A C library that gives each thread an area of its own keeps in all of
//! them what each once needed: many times what is in use, in programs that move large pieces.

/// Areas that threads take memory from.
#[cfg(target_env = "gnu")]
const AREAS_MAX: libc::c_int = 2;

/// Keeps a node small; in a mount, whose threads have large buffers from the start, it would do the opposite.
/// Called once, before there are threads; where the C library has no such setting,
/// nothing happens.
pub fn be_frugal() {
    // SAFETY: sets a number; what the library does not know it refuses.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, AREAS_MAX)
    };
}
