//! What the gateway tells of itself (spec: control 11): one table of figures, gathered when somebody asks.
//! Counting is done where things happen, and never waits; here it is only read.

mod door;
mod exposition;
mod process;
mod watch;

pub use door::{figures, health, listen, port};

use super::watch::Watches;
use crate::base::{Errors, Pool, Requests, now_ms};
use crate::control::Plane;
use crate::net::{CONNECTIONS_MAX, Net};
use crate::node::Server;
use crate::runtime::Runtime;
use crate::store::Db;
use crate::wire::Object;
use exposition::{Family, counter, each, gauge, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where the figures are.
pub struct Metrics {
    pub plane: Arc<Plane>,
    pub net: Arc<Net>,
    pub db: Arc<Db>,
    pub control_pool: Arc<Pool>,
    pub files: Arc<Server>,
    pub runtime: Arc<Runtime>,
    pub watches: Arc<Watches>,
    /// Operations of the control channel.
    pub control: Requests,
    /// Connections that were not let in.
    pub refused: Errors,
}

impl Metrics {
    /// True while every thread that users wait for is there.
    pub fn all_work(&self) -> bool {
        let pools = [&self.control_pool, &self.files.pool];
        pools.iter().all(|pool| pool.is_whole())
            && self.runtime.is_whole()
            && self.net.is_whole()
            && self.db.is_open()
    }

    /// All figures as one object (spec: control 11.3).
    pub fn object(&self) -> Object {
        let members = json(&self.families());
        members.iter().fold(Object::with_capacity(8 << 10), |o, (key, value)| o.put(key, value))
    }

    pub fn families(&self) -> Vec<Family> {
        let mut all = self.nodes();
        all.extend(self.projects());
        all.extend(watch::families(&self.watching()));
        all.extend(self.requests());
        all.extend(self.queues());
        all.extend(self.network());
        all.extend(self.providers());
        all.extend(process::families());
        all
    }

    fn watching(&self) -> watch::Watching {
        let (told, kept) = (&self.watches.figures, self.watches.events().retained());
        let ms = |ms: Option<i64>| ms.and_then(|ms| u64::try_from(ms).ok());
        watch::Watching {
            subscribers: self.watches.count() as u64,
            subscribers_peak: told.peak.load(Ordering::Relaxed),
            replay_requests: told.replay_requests.get(),
            replay_attempted: told.replay_attempted.get(),
            replay_sent: told.replay_sent.get(),
            replay_bytes: told.replay_bytes.get(),
            fanout_events: told.fanout_events.get(),
            fanout_attempted: told.fanout_attempted.get(),
            fanout_sent: told.fanout_sent.get(),
            fanout_dropped: told.fanout_dropped.get(),
            retained_events: kept.events as u64,
            retained_capacity: kept.capacity as u64,
            oldest_ms: ms(kept.oldest_ms),
            newest_ms: ms(kept.newest_ms),
        }
    }

    fn nodes(&self) -> Vec<Family> {
        let (state, counts, now) = (self.plane.state(), self.plane.counts(), now_ms());
        vec![
            gauge(
                "spiderweb_invites_active",
                "invites.active",
                state.invites.values().filter(|i| !i.redeemed && i.expires_at_ms > now).count(),
                "Invites that can be used.",
            ),
            counter(
                "spiderweb_invites_created_total",
                "invites.created_total",
                &counts.invites_created,
                "Invites made.",
            ),
            counter(
                "spiderweb_invites_redeemed_total",
                "invites.redeemed_total",
                &counts.invites_redeemed,
                "Invites used.",
            ),
            gauge(
                "spiderweb_nodes_online",
                "nodes.online",
                state.nodes.values().filter(|n| n.online(now)).count(),
                "Nodes whose lease runs.",
            ),
            gauge("spiderweb_nodes_total", "nodes.total", state.nodes.size(), "Nodes."),
            counter(
                "spiderweb_node_joins_total",
                "nodes.joins_total",
                &counts.node_joins,
                "Nodes that joined.",
            ),
            counter(
                "spiderweb_node_lease_refresh_total",
                "nodes.lease_refresh_total",
                &counts.lease_refreshes,
                "Leases renewed.",
            ),
            counter(
                "spiderweb_nodes_ensured_total",
                "nodes.ensured_total",
                0_u64,
                "Nodes set up by the gateway itself: there are none.",
            ),
            counter(
                "spiderweb_node_deletes_total",
                "nodes.deletes_total",
                &counts.node_deletes,
                "Nodes deleted.",
            ),
            counter(
                "spiderweb_lease_reap_nodes_total",
                "nodes.reaped_total",
                0_u64,
                "Nodes removed as their lease ended: they are kept.",
            ),
        ]
    }

    fn projects(&self) -> Vec<Family> {
        let (state, counts) = (self.plane.state(), self.plane.counts());
        vec![
            gauge(
                "spiderweb_projects_total",
                "projects.total",
                state.projects.size(),
                "Projects, the system project included.",
            ),
            gauge(
                "spiderweb_active_project_bindings",
                "projects.active_bindings",
                state.active.size(),
                "Agents that work in a project.",
            ),
            counter(
                "spiderweb_project_creates_total",
                "projects.creates_total",
                &counts.project_creates,
                "Projects created.",
            ),
            counter(
                "spiderweb_project_updates_total",
                "projects.updates_total",
                &counts.project_updates,
                "Changes of a name, vision, status or policy.",
            ),
            counter(
                "spiderweb_project_deletes_total",
                "projects.deletes_total",
                &counts.project_deletes,
                "Projects deleted.",
            ),
            counter(
                "spiderweb_project_token_rotates_total",
                "projects.token_rotates_total",
                &counts.token_rotates,
                "Project tokens made anew.",
            ),
            counter(
                "spiderweb_project_token_revokes_total",
                "projects.token_revokes_total",
                &counts.token_revokes,
                "Project tokens revoked.",
            ),
            counter(
                "spiderweb_project_activations_total",
                "projects.activations_total",
                &counts.activations,
                "Times that an agent was put to work in a project.",
            ),
            gauge(
                "spiderweb_project_mounts_total",
                "projects.mounts_total",
                state.projects.values().map(|p| p.mounts.len()).sum::<usize>(),
                "Mounts of all projects.",
            ),
            counter(
                "spiderweb_mount_sets_total",
                "projects.mount_sets_total",
                &counts.mount_sets,
                "Mounts set.",
            ),
            counter(
                "spiderweb_mount_removes_total",
                "projects.mount_removes_total",
                &counts.mount_removes,
                "Mounts removed, with their project or alone.",
            ),
        ]
    }

    fn requests(&self) -> Vec<Family> {
        let (control, files) = (&self.control, &self.files.requests);
        vec![
            counter(
                "spiderweb_control_operation_seconds",
                "control.operations",
                &control.times,
                "From the arrival of an operation of the control channel to its answer.",
            ),
            counter(
                "spiderweb_control_errors_total",
                "control.errors_total.*",
                each("code", by_code(&control.errors)),
                "Operations of the control channel that were refused or failed, by code.",
            ),
            counter(
                "spiderweb_file_request_seconds",
                "files.requests",
                &files.times,
                "From the arrival of a request on files to its answer, where it did not wait for others.",
            ),
            counter(
                "spiderweb_file_errors_total",
                "files.errors_total.*",
                each("code", by_code(&files.errors)),
                "Requests on files that were refused or failed, by code.",
            ),
        ]
    }

    fn queues(&self) -> Vec<Family> {
        let (runtime, storage) = (self.runtime.queue(), self.db.queue());
        let of = |pool: &Pool| (pool.depth(), pool.limit());
        let queues = [
            ("control", of(&self.control_pool)),
            ("files", of(&self.files.pool)),
            ("runtime", runtime),
            ("storage", storage),
        ];
        vec![
            gauge(
                "spiderweb_queue_depth",
                "queues.*.depth",
                each("queue", queues.map(|(name, (depth, _))| (name, depth))),
                "What waits in a queue for a thread.",
            ),
            gauge(
                "spiderweb_queue_limit",
                "queues.*.limit",
                each("queue", queues.map(|(name, (_, limit))| (name, limit))),
                "How much may wait in a queue.",
            ),
        ]
    }

    fn network(&self) -> Vec<Family> {
        let stats = self.net.stats();
        vec![
            gauge(
                "spiderweb_connections_open",
                "connections.open",
                stats.open,
                "Connections, those to nodes included.",
            ),
            gauge(
                "spiderweb_connections_limit",
                "connections.limit",
                CONNECTIONS_MAX,
                "Connections that may be open; more are answered 503.",
            ),
            counter(
                "spiderweb_connections_accepted_total",
                "connections.accepted_total",
                stats.accepted,
                "Connections accepted.",
            ),
            counter(
                "spiderweb_connections_refused_total",
                "connections.refused_total.*",
                each("code", by_code(&self.refused)),
                "Connections refused on the main port, by code.",
            ),
            counter(
                "spiderweb_messages_received_total",
                "messages.received_total",
                stats.messages_in,
                "WebSocket messages received.",
            ),
            counter(
                "spiderweb_messages_sent_total",
                "messages.sent_total",
                stats.messages_out,
                "WebSocket messages sent.",
            ),
            counter(
                "spiderweb_received_bytes_total",
                "messages.received_bytes_total",
                stats.bytes_in,
                "Bytes read from connections.",
            ),
            counter(
                "spiderweb_sent_bytes_total",
                "messages.sent_bytes_total",
                stats.bytes_out,
                "Bytes written to connections.",
            ),
        ]
    }

    fn providers(&self) -> Vec<Family> {
        let asked = self.runtime.asked();
        let tokens = [
            ("input", asked.input.get()),
            ("cache_read", asked.cache_read.get()),
            ("output", asked.output.get()),
            ("reasoning", asked.reasoning.get()),
        ];
        vec![
            counter(
                "spiderweb_provider_call_seconds",
                "provider.calls",
                &asked.calls.times,
                "From a question to a model to the end of its answer, retries included.",
            ),
            counter(
                "spiderweb_provider_errors_total",
                "provider.errors_total.*",
                each("code", by_code(&asked.calls.errors)),
                "Questions to models that were not answered, by code.",
            ),
            counter(
                "spiderweb_provider_retries_total",
                "provider.retries_total",
                &asked.retries,
                "Times that a question was put once more.",
            ),
            counter(
                "spiderweb_provider_tokens_total",
                "provider.tokens_total.*",
                each("kind", tokens),
                "Tokens that providers have counted: of cache_read those of input, of reasoning those of output that were.",
            ),
        ]
    }
}

fn by_code(errors: &Errors) -> impl Iterator<Item = (&'static str, u64)> {
    errors.read().map(|(code, n)| (code.wire(), n))
}
