//! When a service that fails is left alone: `supervision` of its `config.json` (spec: fs 15.4).

use crate::base::{Error, Result};
use crate::wire::Fields;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// 0: no limit.
    pub max_consecutive_failures: u64,
    pub max_consecutive_timeouts: u64,
    /// Time after a failure during which invocations are refused.
    pub cooldown_ms: u64,
    pub auto_disable_on_threshold: bool,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            max_consecutive_failures: 0,
            max_consecutive_timeouts: 0,
            cooldown_ms: 0,
            auto_disable_on_threshold: true,
        }
    }
}

impl Policy {
    /// That of a config; what it does not say is as by default. Errors: naming the field.
    pub fn read(config: &Fields<'_>) -> Result<Policy> {
        let Some(f) = config.object("supervision")? else { return Ok(Policy::default()) };
        let within = |e: Error| e.context("supervision");
        let number = |name: &str| f.u64(name).map(Option::unwrap_or_default).map_err(within);
        let auto = f.bool("auto_disable_on_threshold").map_err(within)?;
        Ok(Policy {
            max_consecutive_failures: number("max_consecutive_failures")?,
            max_consecutive_timeouts: number("max_consecutive_timeouts")?,
            cooldown_ms: number("cooldown_ms")?,
            auto_disable_on_threshold: auto.unwrap_or(true),
        })
    }
}
