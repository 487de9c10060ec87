//! Says in the log when a node that is mounted is lost, and when it is back: once each.

use super::world::{Attached, World};
use crate::vfs::remote::Peer;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

#[derive(Default)]
pub struct Reporter {
    watched: Mutex<Vec<Weak<Peer>>>,
    quiet: Arc<AtomicBool>,
}

impl Reporter {
    /// Reports on all that is mounted from now on. What it reports on already is not told twice.
    pub fn watch(&self, world: &World) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|peer| peer.strong_count() > 0);
        for attached in world.attached() {
            let peer = Arc::downgrade(attached.remote.peer());
            if !watched.iter().any(|known| known.ptr_eq(&peer)) {
                listen(&attached, &self.quiet);
                watched.push(peer);
            }
        }
    }

    /// The end is wanted: what is lost now is no news.
    pub fn quiet(&self) {
        self.quiet.store(true, Ordering::Release);
    }
}

fn listen(attached: &Attached, quiet: &Arc<AtomicBool>) {
    let endpoint = &attached.source.endpoint;
    let what = format!("{}: {} ({})", endpoint.mount_path, endpoint.name, endpoint.url);
    let (peer, quiet) = (attached.remote.peer(), quiet.clone());
    let lost = AtomicBool::new(false);
    let weak = Arc::downgrade(peer);
    let tell = move || {
        let Some(status) = weak.upgrade().map(|peer| peer.status()) else { return };
        let was_lost = lost.swap(!status.connected, Ordering::AcqRel);
        if was_lost != status.connected || quiet.load(Ordering::Acquire) {
            return;
        }
        let why = status.last_error.as_deref().unwrap_or("the connection ended");
        match (status.connected, status.last_success_ms) {
            (true, _) => log::warn!("{what} is back"),
            (false, 0) => log::warn!("{what} cannot be reached: {why}"),
            (false, _) => log::warn!("{what} is lost: {why}"),
        }
    };
    peer.listen(Arc::new(move |event| {
        if event.is_none() {
            tell();
        }
    }));
}
