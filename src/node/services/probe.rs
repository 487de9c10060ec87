//! Watching that a service's program is there (spec: fs 14.5): what its presence or absence means, and
//! when to look again. Looks at the file; keeps no time itself.

use super::manifest::Supervision;
use crate::base::{Error, Result, ResultExt};
use nix::unistd::{AccessFlags, access};
use serde_json::{Value, json};
use std::path::Path;

/// Doublings of the wait, so that nothing overflows.
const DOUBLINGS_MAX: u64 = 20;

/// `runtime.supervision_status` of a service in the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    policy: Supervision,
    state: &'static str,
    enabled: bool,
    running: bool,
    start_attempts_total: u64,
    restarts_total: u64,
    consecutive_failures: u64,
    backoff_until_ms: i64,
    last_transition_ms: i64,
    last_healthy_ms: Option<i64>,
    last_error: Option<String>,
    updated_at_ms: Option<i64>,
}

impl Probe {
    pub fn new(policy: Supervision, now_ms: i64) -> Probe {
        Probe {
            policy,
            // Until it is looked at, which is at once.
            state: "online",
            enabled: true,
            running: false,
            start_attempts_total: 0,
            restarts_total: 0,
            consecutive_failures: 0,
            backoff_until_ms: 0,
            last_transition_ms: now_ms,
            last_healthy_ms: None,
            last_error: None,
            updated_at_ms: None,
        }
    }

    /// `online`, `degraded` or `offline`.
    pub fn state(&self) -> &'static str {
        self.state
    }

    /// It has failed so often that it is not looked at any more.
    pub fn is_disabled(&self) -> bool {
        !self.enabled
    }

    /// Looked at again as if it had not failed.
    pub fn anew(&self, now_ms: i64) -> Probe {
        Probe {
            start_attempts_total: self.start_attempts_total,
            restarts_total: self.restarts_total,
            ..Probe::new(self.policy, now_ms)
        }
    }

    /// Takes note of a look at the program. `None` when it is not to be looked at again.
    pub fn saw(&mut self, health: &Result<()>, now_ms: i64) -> Option<u64> {
        if !self.running {
            self.start_attempts_total += 1;
        }
        let (state, wait_ms) = match health {
            Ok(()) => self.healthy(now_ms),
            Err(e) => self.failed(e, now_ms),
        };
        if state != self.state {
            self.state = state;
            self.last_transition_ms = now_ms;
        }
        self.updated_at_ms = Some(now_ms);
        self.enabled.then_some(wait_ms)
    }

    fn healthy(&mut self, now_ms: i64) -> (&'static str, u64) {
        if !self.running && self.start_attempts_total > 1 {
            self.restarts_total += 1;
        }
        self.running = true;
        self.consecutive_failures = 0;
        self.backoff_until_ms = 0;
        self.last_healthy_ms = Some(now_ms);
        self.last_error = None;
        ("online", self.policy.health_check_interval_ms)
    }

    fn failed(&mut self, e: &Error, now_ms: i64) -> (&'static str, u64) {
        let policy = &self.policy;
        self.running = false;
        self.consecutive_failures += 1;
        self.last_error = Some(e.message.to_string());
        let doublings = (self.consecutive_failures - 1).min(DOUBLINGS_MAX);
        let wait_ms = policy.restart_backoff_ms.saturating_mul(1 << doublings);
        // A wait of nothing would be a circle.
        let wait_ms = wait_ms.clamp(1, policy.restart_backoff_max_ms.max(1));
        self.backoff_until_ms = now_ms.saturating_add_unsigned(wait_ms);
        let max = policy.max_consecutive_failures;
        if policy.auto_disable_on_failures && max > 0 && self.consecutive_failures >= max {
            self.enabled = false;
        }
        let missing = matches!(e.errno(), libc::ENOENT | libc::ENOTDIR | libc::EISDIR);
        let state = if missing || !self.enabled { "offline" } else { "degraded" };
        (state, wait_ms)
    }

    pub fn to_json(&self) -> Value {
        json!({"state": self.state, "enabled": self.enabled, "running": self.running,
            "start_attempts_total": self.start_attempts_total, "restarts_total": self.restarts_total,
            "consecutive_failures": self.consecutive_failures,
            "backoff_until_ms": self.backoff_until_ms, "last_transition_ms": self.last_transition_ms,
            "last_healthy_ms": self.last_healthy_ms, "last_error": self.last_error,
            "updated_at_ms": self.updated_at_ms})
    }
}

/// Whether a program could be run now. Errors: the host's; EISDIR, EACCES.
pub fn look(executable: &Path) -> Result<()> {
    let look = || {
        if std::fs::metadata(executable)?.is_dir() {
            return Err(Error::from_errno(libc::EISDIR, "is a directory"));
        }
        Ok(access(executable, AccessFlags::X_OK)?)
    };
    look().context(executable.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Supervision = Supervision {
        health_check_interval_ms: 5000,
        restart_backoff_ms: 100,
        restart_backoff_max_ms: 350,
        max_consecutive_failures: 4,
        auto_disable_on_failures: true,
    };

    #[test]
    fn failures_back_off_and_end_in_disabling_and_a_success_ends_them() {
        let mut p = Probe::new(POLICY, 0);
        assert_eq!((p.saw(&Ok(()), 1), p.state()), (Some(5000), "online"));
        let missing = look(Path::new("/nowhere/x"));
        assert_eq!((p.saw(&missing, 2), p.state()), (Some(100), "offline"));
        let other = Err(Error::from_errno(libc::EACCES, "permission denied"));
        assert_eq!((p.saw(&other, 3), p.state()), (Some(200), "degraded"));
        assert_eq!(p.saw(&other, 4), Some(350));
        assert_eq!((p.saw(&Ok(()), 5), p.state()), (Some(5000), "online"));
        let shown = p.to_json();
        assert_eq!((&shown["restarts_total"], &shown["last_error"]), (&json!(1), &Value::Null));
        for _ in 0..3 {
            assert!(p.saw(&other, 6).is_some());
        }
        assert_eq!((p.saw(&other, 7), p.state()), (None, "offline"));
        assert_eq!(p.to_json()["enabled"], false);
    }

    #[test]
    fn a_program_is_looked_at() {
        look(Path::new("/bin/sh")).unwrap();
        assert_eq!(look(Path::new("/")).unwrap_err().errno(), libc::EISDIR);
    }
}
