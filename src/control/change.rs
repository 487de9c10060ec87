//! The changes that can be made to the state, and their form in the store.

use super::events::ServiceEvent;
use super::project::{Bind, Mount, Placing, Profile, Project};
use super::state::{Counter, Invite, Node, PendingJoin};
use serde::Serialize;
use std::sync::Arc;

/// One step of a mutation. A mutation is a list of them, applied whole or not at all.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    PutNode(Arc<Node>),
    DeleteNode(u64),
    PutInvite(Arc<Invite>),
    DeleteInvite(u64),
    PutPending(Arc<PendingJoin>),
    DeletePending(u64),
    /// What is mounted and bound in it stays.
    PutProject(Arc<Profile>),
    /// With all that is mounted and bound in it.
    DeleteProject(Arc<Project>),
    Mount(Placing<Mount>),
    Bind(Placing<Bind>),
    Activate {
        agent_id: String,
        project: u64,
    },
    Deactivate {
        agent_id: String,
    },
    /// The number was given out.
    Last(Counter, u64),
    /// A node has told of its services. The state keeps only the event's number.
    ServiceEvent(Arc<ServiceEvent>),
}

/// Where the plane's rows stand in the store.
pub const PREFIX: &str = "control/";

/// A row to write, or with no value to delete.
pub type Row = (String, Option<Vec<u8>>);

impl Change {
    /// The change as rows of the store.
    pub fn rows(&self) -> Vec<Row> {
        let put = |key: String, value: Vec<u8>| vec![(format!("{PREFIX}{key}"), Some(value))];
        let delete = |key: String| vec![(format!("{PREFIX}{key}"), None)];
        match self {
            Change::PutNode(n) => put(format!("node/{}", n.number), json(&**n)),
            Change::DeleteNode(n) => delete(format!("node/{n}")),
            Change::PutInvite(i) => put(format!("invite/{}", i.number), json(&**i)),
            Change::DeleteInvite(n) => delete(format!("invite/{n}")),
            Change::PutPending(p) => put(format!("pending/{}", p.number), json(&**p)),
            Change::DeletePending(n) => delete(format!("pending/{n}")),
            Change::PutProject(p) => put(format!("project/{}", p.number), json(&**p)),
            Change::DeleteProject(p) => {
                let gone = delete(format!("project/{}", p.number)).into_iter();
                let mounts = p.mounts.numbered().map(|(n, _)| placed(p.number, "mount", n));
                let binds = p.binds.numbered().map(|(n, _)| placed(p.number, "bind", n));
                gone.chain(mounts.chain(binds).flat_map(delete)).collect()
            }
            Change::Mount(Placing { project, number, thing }) => {
                let key = placed(*project, "mount", *number);
                thing.as_ref().map_or_else(|| delete(key.clone()), |m| put(key.clone(), json(&**m)))
            }
            Change::Bind(Placing { project, number, thing }) => {
                let key = placed(*project, "bind", *number);
                thing.as_ref().map_or_else(|| delete(key.clone()), |b| put(key.clone(), json(&**b)))
            }
            Change::Activate { agent_id, project } => {
                put(format!("active/{agent_id}"), project.to_string().into_bytes())
            }
            Change::Deactivate { agent_id } => delete(format!("active/{agent_id}")),
            Change::Last(counter, n) => put(counter.key().into(), n.to_string().into_bytes()),
            Change::ServiceEvent(e) => Change::Last(Counter::ServiceEvent, e.seq).rows(),
        }
    }
}

/// The key of what stands in a project: behind that of the project itself.
fn placed(project: u64, kind: &str, number: u64) -> String {
    format!("project/{project}/{kind}/{number}")
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("structs of strings and numbers serialise")
}
