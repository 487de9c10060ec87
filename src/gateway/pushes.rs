//! What agents do, told as it happens to the connections that have attached to them (design: pushed
//! frames). A reader that is too slow misses frames and sees it by the gap in `seq`.

use super::client::Shared;
use crate::control::Binding;
use crate::net::{Conn, Message};
use crate::runtime::Subscription;
use crate::runtime::event::{Body, Event};
use crate::wire::Object;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

#[derive(Default)]
pub struct Pushes {
    /// The sessions that are followed: key, agent, project.
    followed: Mutex<Vec<Followed>>,
    subscription: OnceLock<Subscription>,
    seq: AtomicU64,
}

/// A session that is followed.
#[derive(Clone, PartialEq)]
pub struct Followed {
    key: String,
    pub agent_id: String,
    pub project_id: Option<String>,
}

impl Pushes {
    fn followed(&self) -> MutexGuard<'_, Vec<Followed>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows these sessions from now on, and no others. Returns those that it did not.
    pub fn follow<'s>(
        &self,
        shared: &Arc<Shared>,
        conn: &Conn,
        attached: impl Iterator<Item = (&'s str, &'s Binding)>,
    ) -> Vec<Followed> {
        let now: Vec<_> = attached
            .map(|(key, b)| Followed {
                key: key.to_owned(),
                agent_id: b.agent_id.clone(),
                project_id: b.project_id.clone(),
            })
            .collect();
        let nobody = now.is_empty();
        let mut followed = self.followed();
        let mut new = Vec::new();
        if *followed != now {
            new.extend(now.iter().filter(|f| !followed.contains(f)).cloned());
            *followed = now;
        }
        drop(followed);
        if !nobody {
            let (weak, conn) = (Arc::downgrade(shared), conn.clone());
            self.subscription.get_or_init(|| {
                shared.gateway.runtime.subscribe(Arc::new(move |event| {
                    if let Some(shared) = weak.upgrade() {
                        shared.pushes().tell(&conn, event);
                    }
                }))
            });
        }
        new
    }

    fn tell(&self, conn: &Conn, event: &Event) {
        // What is only for hunting errors is asked for in another way.
        if matches!(event.body, Body::Debug { .. }) {
            return;
        }
        let is_it = |f: &&Followed| {
            f.agent_id == *event.agent_id && f.project_id.as_deref() == event.project_id.as_deref()
        };
        let keys: Vec<String> =
            self.followed().iter().filter(is_it).map(|f| f.key.clone()).collect();
        for key in keys {
            let seq = self.seq.fetch_add(1, Ordering::Relaxed) + 1;
            let head = Object::new().put("channel", "control").put("session_key", key);
            let _ = conn.push(Message::text(event.frame(head.put("seq", seq))));
        }
    }
}
