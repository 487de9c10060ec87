//! What `status` prints: one object for every endpoint (spec: fs 19.6), and of a running mount how it
//! stands beside.

use super::options::Options;
use super::world::{Attached, World};
use crate::base::{Code, Deadline, Error, Result};
use crate::vfs::remote::LineStatus;
use crate::vfs::{CacheStatus, Cx, DiskStatus, MountStatus};
use crate::wire::fs::Export;
use crate::wire::{Fields, Object};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Longest time for the endpoints to answer a running mount.
const PROBE_MS: u64 = 3_000;

/// Asks every endpoint first, all at the same time, unless `probe` is `None`.
pub fn status(world: &World, probe: Option<Deadline>) -> Object {
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
    o.raw("endpoints", &array(&endpoints))
}

/// A mount that runs.
pub struct Running {
    pub world: Arc<World>,
    pub point: PathBuf,
    pub options: Options,
    pub since: Instant,
}

impl Running {
    /// Answers a question of the status socket.
    pub fn answer(&self, op: &str, question: &Fields<'_>) -> Result<String> {
        match op {
            "status" => {
                let probe = question.bool("probe")?.unwrap_or(false);
                Ok(self.status(probe))
            }
            other => Err(Error::new(Code::Unsupported, format!("a mount knows no {other:?}"))),
        }
    }

    fn status(&self, probe: bool) -> String {
        let time_ms = self.world.timeout_ms.min(PROBE_MS);
        let mounts: Vec<_> = self.world.tree.status().iter().map(mount).collect();
        status(&self.world, probe.then(|| Deadline::after_ms(time_ms)))
            .put("mount_point", self.point.to_string_lossy())
            .put("pid", std::process::id())
            .put("version", env!("CARGO_PKG_VERSION"))
            .put("uptime_ms", self.since.elapsed().as_millis() as u64)
            .object("options", self.options.describe())
            .raw("mounts", &array(&mounts))
            .put_some("disk_cache", self.world.disk.as_ref().map(|disk| disk_cache(disk.status())))
            .put("open_files", self.world.tree.open_files())
            .put("resident_bytes", resident_bytes())
            .finish()
    }
}

fn array(items: &[String]) -> String {
    format!("[{}]", items.join(","))
}

fn mount(m: &MountStatus) -> String {
    Object::new()
        .put("path", m.path.display())
        .put("active", m.members.get(m.active))
        .put("members", &m.members)
        .put("failovers", m.failovers)
        .finish()
}

/// Memory of this process; `None` where the host does not tell.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}

fn endpoint(idx: usize, a: &Attached) -> Object {
    let (e, peer) = (&a.source.endpoint, a.remote.peer().status());
    // Answered from what the connection told when it was made.
    let described: Option<Result<Export>> =
        peer.connected.then(|| a.remote.described(&Cx::internal(Deadline::after_ms(1000))));
    let missing = described.as_ref().and_then(|d| d.as_ref().err()).map(ToString::to_string);
    let d = described.as_ref().and_then(|d| d.as_ref().ok());
    let healthy = d.is_some() && peer.healthy;
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
        .put("last_health_check_ms", peer.last_success_ms.max(peer.last_failure_ms))
        .put("last_success_ms", peer.last_success_ms)
        .put("last_failure_ms", peer.last_failure_ms)
        .put_some("last_error", peer.last_error.or(missing))
        .put_some("line", peer.line.map(line))
        .put_some("cache", a.cached.as_ref().map(|c| cache(c.status())))
}

fn disk_cache(d: DiskStatus) -> serde_json::Value {
    serde_json::json!({
        "bytes": d.bytes,
        "bytes_max": d.bytes_max,
        "hits": d.hits,
        "misses": d.misses,
        "writes": d.writes,
    })
}

fn line(l: LineStatus) -> serde_json::Value {
    serde_json::json!({
        "compressed": l.compressed,
        "raw_bytes": l.raw_bytes,
        "wire_bytes": l.wire_bytes,
    })
}

/// What is remembered of an endpoint. The bytes are those of all endpoints together.
fn cache(c: CacheStatus) -> serde_json::Value {
    serde_json::json!({
        "hits": c.hits,
        "misses": c.misses,
        "live": c.live,
        "read_ahead_bytes": c.read_ahead_bytes,
        "write_behind_bytes": c.write_behind_bytes,
        "bytes_max": c.bytes_max,
    })
}
