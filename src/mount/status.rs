//! What `status` prints: one object for every endpoint (spec: fs 19.6).

use super::world::{Attached, World};
use crate::base::{Deadline, now_ms};
use crate::vfs::Cx;
use crate::wire::Object;
use crate::wire::fs::Export;

/// Asks every endpoint first, all at the same time, unless `probe` is `None`.
pub fn status(world: &World, probe: Option<Deadline>) -> String {
    let attached = world.attached();
    if let Some(deadline) = probe {
        std::thread::scope(|threads| {
            for a in &attached {
                threads.spawn(move || a.probe(deadline));
            }
        });
    }
    let failovers: u64 = world.tree.status().iter().map(|mount| mount.failovers).sum();
    let endpoints: Vec<_> =
        attached.iter().enumerate().map(|(idx, a)| endpoint(idx, a).finish()).collect();
    let metrics = Object::new().put("failover_events_total", failovers);
    let o = Object::new().object("metrics", metrics);
    o.raw("endpoints", &format!("[{}]", endpoints.join(","))).finish()
}

fn endpoint(idx: usize, a: &Attached) -> Object {
    let (e, peer) = (&a.source.endpoint, a.remote.peer().status());
    // Answered from what the connection told when it was made.
    let described: Option<Export> = peer
        .connected
        .then(|| a.remote.described(&Cx::internal(Deadline::after_ms(1000))).ok())
        .flatten();
    let healthy = described.is_some();
    let has_failed = !healthy && (peer.connected || peer.consecutive_failures > 0);
    let at = |then: bool| if then { now_ms() } else { 0 };
    let d = described.as_ref();
    let caps = Object::new()
        .put("native_watch", d.map(|d| d.caps.native_watch))
        .put("case_sensitive", d.map(|d| d.caps.case_sensitive));
    Object::new()
        .put("idx", idx)
        .put("name", &e.name)
        .put("mount_path", e.mount_path.display())
        .put("url", e.url.to_string())
        .put("export", e.export.as_deref().unwrap_or_default())
        .put("root", d.map_or(0, |d| d.root))
        .put("export_ro", d.map(|d| d.ro))
        .put("source_kind", d.map(|d| &d.source_kind))
        .put("source_id", d.map(|d| &d.source_id))
        .object("caps", caps)
        .put("healthy", healthy)
        .put("has_client", peer.connected)
        .put("has_auth", e.token.is_some() || a.source.bearer.is_some())
        .put("consecutive_failures", peer.consecutive_failures)
        .put("last_health_check_ms", at(healthy || has_failed))
        .put("last_success_ms", at(healthy))
        .put("last_failure_ms", at(has_failed))
        .put_some("last_error", peer.last_error)
}
