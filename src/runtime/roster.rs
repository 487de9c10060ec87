//! What the control plane asks of those who run the agents: which there are, making them, and their runs.

use super::Runtime;
use super::agents::{Listing, NewAgent};
use crate::base::{Code, Error, Result};
use crate::control::{AgentList, Agents, RunRequest};
use crate::wire::Object;
use std::collections::BTreeMap;
use std::sync::PoisonError;

impl Agents for Runtime {
    fn list(&self) -> Result<AgentList> {
        let listing = self.registry.list()?;
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        *complained = complain(&listing, &complained);
        let agents = listing.agents.into_iter().map(|agent| agent.info).collect();
        Ok(AgentList { agents, unreadable: listing.problems })
    }

    fn exists(&self, agent_id: &str) -> bool {
        self.registry.exists(agent_id)
    }

    fn create(&self, agent_id: &str) -> Result<bool> {
        let new = NewAgent { name: Some(agent_id.to_owned()), ..NewAgent::default() };
        match self.registry.create(agent_id, new) {
            Ok(()) => Ok(true),
            Err(e) if e.code == Code::Eexist => Ok(false),
            Err(e) if matches!(e.code, Code::InvalidPayload | Code::LimitExceeded) => Err(e),
            Err(e) => Err(e.recode(Code::StorageError)),
        }
    }

    fn ensure(&self, agent_id: &str) -> Result<()> {
        self.registry.ensure(agent_id)
    }

    fn busy(&self, agent_id: &str) -> bool {
        self.in_flight(agent_id)
    }

    fn run(&self, _agent_id: &str, _request: RunRequest) -> Result<Object> {
        let text = "this version has no engine for runs; send the agent a chat message";
        Err(Error::new(Code::Unsupported, text))
    }
}

/// Tells the log of agents that cannot be read, each trouble once; what is left of `before`.
pub(super) fn complain(
    listing: &Listing,
    before: &BTreeMap<String, Error>,
) -> BTreeMap<String, Error> {
    for (id, problem) in listing.problems.iter().filter(|(id, e)| before.get(id) != Some(e)) {
        crate::base::log::error(&format!("agent {id} is left out"), problem);
    }
    listing.problems.iter().cloned().collect()
}
