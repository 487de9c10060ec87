//! What has happened to the control plane since it was opened (spec: control 11.2), seen in the changes
//! themselves: whatever operation made them, and only when they are durable.

use super::state::{Change, MOTHER, Profile, State};
use crate::base::Total;

/// Totals, by what was done.
#[derive(Debug, Default)]
pub struct Counts {
    pub invites_created: Total,
    pub invites_redeemed: Total,
    pub node_joins: Total,
    pub lease_refreshes: Total,
    pub node_deletes: Total,
    pub project_creates: Total,
    pub project_updates: Total,
    pub project_deletes: Total,
    pub token_rotates: Total,
    pub token_revokes: Total,
    pub activations: Total,
    pub mount_sets: Total,
    pub mount_removes: Total,
}

impl Counts {
    /// Counts a change of a mutation that is about to be applied to `before`.
    pub(super) fn see(&self, before: &State, change: &Change) {
        match change {
            Change::PutInvite(new) => match before.invites.get(&new.number) {
                None => self.invites_created.add(1),
                Some(old) => self.invites_redeemed.add(u64::from(new.redeemed && !old.redeemed)),
            },
            Change::PutNode(new) => match before.nodes.get(&new.number) {
                None => self.node_joins.add(1),
                Some(old) => {
                    let renewed = old.lease_expires_at_ms != new.lease_expires_at_ms;
                    self.lease_refreshes.add(u64::from(renewed));
                }
            },
            Change::DeleteNode(_) => self.node_deletes.add(1),
            // The system project comes with the state.
            Change::PutProject(new) => match before.projects.get(&new.number) {
                None => self.project_creates.add(u64::from(!new.is_system())),
                Some(old) => self.project(old, new),
            },
            Change::DeleteProject(old) => {
                self.project_deletes.add(1);
                self.mount_removes.add(old.mounts.len() as u64);
            }
            Change::Mount(placing) => match placing.thing {
                Some(_) => self.mount_sets.add(1),
                None => self.mount_removes.add(1),
            },
            Change::Activate { agent_id, project } => {
                let at_start = *project == 0 && agent_id == MOTHER;
                self.activations.add(u64::from(!at_start));
            }
            Change::Bind(_)
            | Change::DeleteInvite(_)
            | Change::PutPending(_)
            | Change::DeletePending(_)
            | Change::Deactivate { .. }
            | Change::Last(..)
            | Change::ServiceEvent(_) => {}
        }
    }

    fn project(&self, old: &Profile, new: &Profile) {
        let same = (&old.name, &old.vision, &old.status) == (&new.name, &new.vision, &new.status);
        let updated = !same || old.policy != new.policy;
        self.project_updates.add(u64::from(updated));
        let revoked = old.token_locked && !new.token_locked;
        self.token_revokes.add(u64::from(revoked));
        self.token_rotates.add(u64::from(!revoked && old.token != new.token));
    }
}
