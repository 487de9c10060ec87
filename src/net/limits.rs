//! What one connection may use, and how long it may be silent: the figures, not their enforcement.

use std::time::Duration;

/// The frame limit on every path: 4 MiB of data and a header's worth (design: 10).
pub const MESSAGE_MAX: usize = (4 << 20) + (64 << 10);

/// The frame limit before authentication (design: 10).
pub const MESSAGE_MAX_UNAUTHENTICATED: usize = 64 << 10;

/// What one connection may use, and how long it may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Payload bytes of an incoming message; above it the connection is closed with 1009.
    pub max_message: usize,
    /// Requests in flight ([`Conn::begin`]); at it, reading pauses.
    pub max_inflight: usize,
    /// Bytes queued for the peer above which reading pauses.
    pub outbox_high: usize,
    /// Bytes queued for the peer above which [`Conn::push`] refuses.
    pub push_max: usize,
    /// A peer silent this long, pings unanswered, is taken for dead. [`Limits::NEVER`] suits peers
    /// that read only while they wait for a reply; that their host is gone is noticed all the same.
    pub idle: Duration,
    /// Silence after which it is pinged.
    pub ping: Duration,
    /// A peer that takes not one byte of what is queued for this long is dropped.
    pub write_stall: Duration,
    /// Has not proved who it is, and counts among those of its origin ([`super::STRANGERS_MAX`]).
    pub stranger: bool,
}

impl Limits {
    /// For `idle`, `ping` or `write_stall`: no limit.
    pub const NEVER: Duration = Duration::from_secs(365 * 86_400);

    /// What a peer gets before it has proved who it is.
    pub fn unauthenticated() -> Limits {
        Limits { max_message: MESSAGE_MAX_UNAUTHENTICATED, stranger: true, ..Limits::default() }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_message: MESSAGE_MAX,
            max_inflight: 64,
            outbox_high: 4 << 20,
            push_max: 1 << 20,
            idle: Duration::from_secs(90),
            ping: Duration::from_secs(30),
            write_stall: Duration::from_secs(30),
            stranger: false,
        }
    }
}
