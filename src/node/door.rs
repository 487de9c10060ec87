//! What stands before a session: who may come in, what he finds, and what his connection may use until then
//! and afterwards.

use super::exports::Exports;
use crate::base::Result;
use crate::net::Limits;
use crate::vfs::Who;
use crate::wire::fs::{Grant, Hello};
use std::sync::Arc;

/// Requests taken before the hello is answered.
const EARLY_MAX: usize = 16;

/// What a client's connection may use until its hello is answered.
pub fn limits_before_hello() -> Limits {
    Limits { max_inflight: EARLY_MAX, ..Limits::unauthenticated() }
}

/// What it may use then. Silence is no fault: old clients read only while they wait for a reply, and
/// answer no pings meanwhile.
pub(super) fn limits_after_hello() -> Limits {
    Limits { idle: Limits::NEVER, ..Limits::default() }
}

/// Decides who may come in, and what he finds. Called on the pool: it may block.
pub trait Door: Send + Sync {
    /// Errors: `AuthMissing` and `AuthFailed` (spec: fs 3.1), or what else bars the way.
    fn enter(&self, hello: &Hello) -> Result<Entry>;

    /// True where clients that know no extensions hear of every change, whether they subscribed or not.
    fn tells_all(&self) -> bool {
        false
    }
}

pub struct Entry {
    pub exports: Arc<Exports>,
    pub who: Who,
    /// The node's name for the hello reply.
    pub name: String,
    /// When the connection ends (unix time), if it does not say hello again with a later one.
    pub expires_at_s: Option<u64>,
}

impl Entry {
    /// For the bearer of a grant: of these exports, those that it names.
    pub fn granted(exports: &Exports, grant: Grant, name: String) -> Entry {
        let who = Who { principal: format!("grant:{}", grant.sub), ..Who::default() };
        let exports = Arc::new(exports.under(grant.exports));
        Entry { exports, who, name, expires_at_s: Some(grant.expires_at_s) }
    }
}
