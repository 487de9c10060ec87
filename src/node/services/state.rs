//! What a service is like: its counters, its cool-down, what it said last (spec: fs 15.2-15.5). Decides
//! and counts; runs nothing, and is told the time.

use super::child::{End, Ran};
use super::policy::Policy;
use crate::base::{Error, Result};
use crate::wire::Fields;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A result that is kept over a restart; a longer one is not.
const RESULT_KEPT_MAX: usize = 64 * 1024;
const CONFIG_MAX: usize = 64 * 1024;
/// What is shown of what a driver says about its failure: the end of it.
const LAST_ERROR_MAX: usize = 16 * 1024;

/// What the documents about a service say of it besides its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    pub service_id: String,
    /// `runtime.type` of its manifest.
    pub runtime: &'static str,
    /// How long one invocation may take.
    pub timeout_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Control {
    enabled: bool,
    restarts_total: u64,
    last_control_ms: i64,
    last_control_op: String,
    config_json: String,
    cooldown_until_ms: i64,
    supervision: Policy,
}

impl Default for Control {
    fn default() -> Control {
        Control {
            enabled: true,
            restarts_total: 0,
            last_control_ms: 0,
            last_control_op: "init".into(),
            config_json: "{}".into(),
            cooldown_until_ms: 0,
            supervision: Policy::default(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Stats {
    invokes_total: u64,
    failures_total: u64,
    consecutive_failures: u64,
    timeouts_total: u64,
    consecutive_timeouts: u64,
    /// The last run, once there was one.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    last: Option<Last>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Last {
    last_duration_ms: u64,
    last_started_ms: i64,
    last_finished_ms: i64,
    last_exit_code: i32,
}

/// As it is kept over a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    pub service_id: String,
    runtime: Control,
    stats: Stats,
    pub result_json: String,
    pub status_json: String,
    pub last_error: String,
}

impl Default for State {
    fn default() -> State {
        State {
            service_id: String::new(),
            runtime: Control::default(),
            stats: Stats::default(),
            result_json: idle(),
            status_json: idle(),
            last_error: String::new(),
        }
    }
}

fn idle() -> String {
    json!({"state": "idle"}).to_string()
}

/// What a write to a control file asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Reset,
    Enable,
    Disable,
    Restart,
}

impl Op {
    pub const ALL: [Op; 4] = [Op::Reset, Op::Enable, Op::Disable, Op::Restart];

    /// Also the name of its file.
    pub const fn name(self) -> &'static str {
        match self {
            Op::Reset => "reset",
            Op::Enable => "enable",
            Op::Disable => "disable",
            Op::Restart => "restart",
        }
    }
}

/// When a run began and how long it took.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub started_ms: i64,
    pub duration_ms: u64,
}

impl State {
    pub fn new(service_id: &str) -> State {
        State { service_id: service_id.into(), ..State::default() }
    }

    /// As it is written down: nothing runs after a restart.
    pub fn kept(&self) -> State {
        let mut kept = self.clone();
        let status: Option<Value> = serde_json::from_str(&kept.status_json).ok();
        if status.is_some_and(|s| s["state"] == "running") {
            kept.status_json = kept.resting();
        }
        if kept.result_json.len() > RESULT_KEPT_MAX {
            kept.result_json = idle();
        }
        kept
    }

    /// The status of a service that nothing is asked of.
    fn resting(&self) -> String {
        match self.runtime.enabled {
            true => idle(),
            false => json!({"state": "offline", "reason": "disabled"}).to_string(),
        }
    }

    pub fn config(&self) -> &str {
        &self.runtime.config_json
    }

    fn cooldown_left(&self, now_ms: i64) -> i64 {
        self.runtime.cooldown_until_ms.saturating_sub(now_ms).max(0)
    }

    /// Whether an invocation may begin (spec: fs 15.3, steps 1 and 2). Errors: EPERM, EAGAIN.
    pub fn admit(&mut self, about: &About, now_ms: i64) -> Result<()> {
        if !self.runtime.enabled {
            self.status_json = self.resting();
            self.last_error = "service runtime disabled".into();
            return Err(Error::from_errno(libc::EPERM, "service invoke denied"));
        }
        let left = self.cooldown_left(now_ms);
        if left > 0 {
            let status = json!({"state": "backoff", "reason": "cooldown",
                "service_id": about.service_id, "runtime": about.runtime, "retry_after_ms": left});
            self.status_json = status.to_string();
            self.last_error = "service runtime cooling down".into();
            return Err(Error::from_errno(libc::EAGAIN, "service invoke cooling down"));
        }
        Ok(())
    }

    fn counters(&self) -> Map<String, Value> {
        let s = &self.stats;
        let counters = [
            ("invokes_total", s.invokes_total),
            ("failures_total", s.failures_total),
            ("consecutive_failures", s.consecutive_failures),
            ("timeouts_total", s.timeouts_total),
            ("consecutive_timeouts", s.consecutive_timeouts),
        ];
        counters.into_iter().map(|(name, n)| (name.to_owned(), n.into())).collect()
    }

    fn set_status(&mut self, about: &About, status: Value) {
        let mut all = self.counters();
        all.insert("service_id".into(), about.service_id.clone().into());
        all.insert("runtime".into(), about.runtime.into());
        if let Value::Object(status) = status {
            all.extend(status);
        }
        self.status_json = Value::Object(all).to_string();
    }

    pub fn begin(&mut self, about: &About, now_ms: i64) {
        self.stats.invokes_total += 1;
        let status =
            json!({"state": "running", "started_ms": now_ms, "timeout_ms": about.timeout_ms});
        self.set_status(about, status);
    }

    /// What came of a run (spec: fs 15.3, steps 6 to 8). An `Err` is a driver that could not be started,
    /// or wrote too much.
    pub fn conclude(&mut self, about: &About, times: Times, ran: &Result<Ran>) {
        let end = ran.as_ref().map_or(End::Killed, |r| r.end);
        let now_ms = times.started_ms.saturating_add_unsigned(times.duration_ms);
        self.stats.last = Some(Last {
            last_duration_ms: times.duration_ms,
            last_started_ms: times.started_ms,
            last_finished_ms: now_ms,
            last_exit_code: end.exit_code(),
        });
        match ran {
            Ok(ran) if ran.end == End::Exited(0) => self.succeeded(about, times, now_ms, ran),
            Ok(ran) => {
                let said = String::from_utf8_lossy(&ran.stderr).trim_end().to_owned();
                let text = match (said.is_empty(), ran.end) {
                    (false, _) => said,
                    (true, End::TimedOut) => {
                        "service invocation terminated after timeout_ms".into()
                    }
                    (true, _) => "service process failed".into(),
                };
                self.failed(about, times, now_ms, end, text);
            }
            Err(e) => self.failed(about, times, now_ms, end, e.message.to_string()),
        }
    }

    fn succeeded(&mut self, about: &About, times: Times, now_ms: i64, ran: &Ran) {
        let out = String::from_utf8_lossy(&ran.stdout).into_owned();
        self.stats.consecutive_failures = 0;
        self.stats.consecutive_timeouts = 0;
        self.runtime.cooldown_until_ms = 0;
        let status = json!({"state": "ok", "updated_ms": now_ms, "duration_ms": times.duration_ms,
            "bytes": ran.stdout.len(), "exit_code": 0});
        self.set_status(about, status);
        self.result_json = if out.trim().is_empty() { "{}".into() } else { out };
        self.last_error.clear();
    }

    fn failed(&mut self, about: &About, times: Times, now_ms: i64, end: End, text: String) {
        let timed_out = end == End::TimedOut;
        let s = &mut self.stats;
        s.failures_total += 1;
        s.consecutive_failures += 1;
        if timed_out {
            s.timeouts_total += 1;
            s.consecutive_timeouts += 1;
        } else {
            s.consecutive_timeouts = 0;
        }
        let policy = self.runtime.supervision;
        if policy.cooldown_ms > 0 {
            self.runtime.cooldown_until_ms = now_ms.saturating_add_unsigned(policy.cooldown_ms);
        }
        let reached = |n: u64, max: u64| policy.auto_disable_on_threshold && max > 0 && n >= max;
        let (state, reason) = if reached(s.consecutive_timeouts, policy.max_consecutive_timeouts) {
            ("offline", "max_consecutive_timeouts")
        } else if reached(s.consecutive_failures, policy.max_consecutive_failures) {
            ("offline", "max_consecutive_failures")
        } else if timed_out {
            ("timeout", "timeout")
        } else {
            ("error", "invoke_error")
        };
        if state == "offline" {
            self.runtime.enabled = false;
            self.noted("auto_disable", now_ms);
        }
        let status = json!({"state": state, "reason": reason, "updated_ms": now_ms,
            "duration_ms": times.duration_ms, "exit_code": end.exit_code(),
            "retry_after_ms": self.cooldown_left(now_ms)});
        self.set_status(about, status);
        let start = text.ceil_char_boundary(text.len().saturating_sub(LAST_ERROR_MAX));
        self.last_error = text[start..].to_owned();
    }

    fn noted(&mut self, op: &str, now_ms: i64) {
        self.runtime.last_control_op = op.into();
        self.runtime.last_control_ms = now_ms;
    }

    /// A write to a control file (spec: fs 15.2).
    pub fn control(&mut self, op: Op, now_ms: i64) {
        self.runtime.cooldown_until_ms = 0;
        match op {
            Op::Enable => self.runtime.enabled = true,
            Op::Disable => self.runtime.enabled = false,
            Op::Restart => self.runtime.restarts_total += 1,
            Op::Reset => {
                self.stats.consecutive_failures = 0;
                self.stats.consecutive_timeouts = 0;
            }
        }
        if matches!(op, Op::Restart | Op::Reset) {
            self.result_json = idle();
        }
        if op != Op::Disable {
            self.last_error.clear();
        }
        self.status_json = self.resting();
        self.noted(op.name(), now_ms);
    }

    /// A write to `config.json`; one without text means `{}`. Errors: EINVAL.
    pub fn configure(&mut self, text: &str, now_ms: i64) -> Result<()> {
        let text = if text.trim().is_empty() { "{}" } else { text.trim() };
        let bad = |what: String| Error::invalid(format!("service invoke payload invalid: {what}"));
        if text.len() > CONFIG_MAX {
            return Err(bad(format!("a config has at most {CONFIG_MAX} bytes")));
        }
        let fields = Fields::parse(text).map_err(|_| bad("write one JSON object".into()))?;
        let policy = Policy::read(&fields).map_err(|e| bad(e.message.into()))?;
        let value: Value = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        self.runtime.config_json = value.to_string();
        self.runtime.supervision = policy;
        self.runtime.cooldown_until_ms = 0;
        self.noted("config_update", now_ms);
        Ok(())
    }

    pub fn metrics(&self) -> Value {
        serde_json::to_value(&self.stats).unwrap_or_default()
    }

    /// `health.json` (spec: fs 15.4).
    pub fn health(&self, about: &About, now_ms: i64) -> Value {
        let (c, left) = (&self.runtime, self.cooldown_left(now_ms));
        let state = match c.enabled {
            false => "offline",
            true if left > 0 || self.stats.consecutive_failures > 0 => "degraded",
            true => "online",
        };
        let mut health = json!({"state": state, "enabled": c.enabled,
            "service_id": about.service_id, "runtime": about.runtime,
            "timeout_ms": about.timeout_ms, "last_control_op": c.last_control_op,
            "last_control_ms": c.last_control_ms, "restarts_total": c.restarts_total,
            "cooldown_until_ms": c.cooldown_until_ms, "cooldown_remaining_ms": left,
            "supervision": c.supervision});
        if let (Value::Object(health), Value::Object(stats)) = (&mut health, self.metrics()) {
            health.extend(stats);
        }
        health
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        About { service_id: "echo".into(), runtime: "native_proc", timeout_ms: 100 }
    }

    fn ran(end: End, stdout: &str, stderr: &str) -> Result<Ran> {
        Ok(Ran { end, stdout: stdout.into(), stderr: stderr.into() })
    }

    const TIMES: Times = Times { started_ms: 1000, duration_ms: 5 };

    fn json_of(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_run_goes_from_idle_over_running_to_its_end() {
        let (mut s, a) = (State::new("echo"), about());
        assert_eq!(json_of(&s.status_json), json!({"state": "idle"}));
        assert_eq!(s.metrics().as_object().unwrap().len(), 5);
        s.admit(&a, 0).unwrap();
        s.begin(&a, 1000);
        let running = json_of(&s.status_json);
        assert_eq!((&running["state"], &running["timeout_ms"]), (&json!("running"), &json!(100)));
        assert_eq!(json_of(&s.kept().status_json), json!({"state": "idle"}));
        s.conclude(&a, TIMES, &ran(End::Exited(0), "{\"ok\":true}", "noise"));
        assert_eq!((&*s.result_json, &*s.last_error), ("{\"ok\":true}", ""));
        let status = json_of(&s.status_json);
        assert_eq!((&status["state"], &status["bytes"]), (&json!("ok"), &json!(11)));
        assert_eq!(s.metrics().as_object().unwrap().len(), 9);
        s.conclude(&a, TIMES, &ran(End::Exited(0), "\n", ""));
        assert_eq!(s.result_json, "{}");

        s.conclude(&a, TIMES, &ran(End::Exited(2), "", "bad input\n"));
        let status = json_of(&s.status_json);
        assert_eq!(
            (&status["state"], &status["reason"]),
            (&json!("error"), &json!("invoke_error"))
        );
        assert_eq!((status["exit_code"].as_i64(), &*s.last_error), (Some(2), "bad input"));
        assert_eq!(s.result_json, "{}", "the last result stays");
        assert_eq!(s.health(&a, 2000)["state"], "degraded");
        let long = "ä".repeat(LAST_ERROR_MAX);
        s.conclude(&a, TIMES, &ran(End::Exited(2), "", &long));
        assert_eq!(s.last_error.len(), LAST_ERROR_MAX);
        s.conclude(&a, TIMES, &Err(Error::new(crate::base::Code::Eio, "too much")));
        assert_eq!(
            (json_of(&s.status_json)["state"].as_str(), &*s.last_error),
            (Some("error"), "too much")
        );
    }

    #[test]
    fn failures_cool_it_down_and_disable_it_as_configured() {
        let (mut s, a) = (State::new("echo"), about());
        let config = r#"{"x":1,"supervision":{"max_consecutive_timeouts":2,"cooldown_ms":500}}"#;
        s.configure(config, 1).unwrap();
        assert_eq!(json_of(s.config())["x"], 1);
        s.conclude(&a, TIMES, &ran(End::TimedOut, "", ""));
        assert_eq!(s.last_error, "service invocation terminated after timeout_ms");
        let e = s.admit(&a, 1100).unwrap_err();
        assert_eq!((e.errno(), &*e.message), (libc::EAGAIN, "service invoke cooling down"));
        let status = json_of(&s.status_json);
        assert_eq!(
            (&status["reason"], &status["retry_after_ms"]),
            (&json!("cooldown"), &json!(405))
        );
        s.admit(&a, 1505).unwrap();
        s.conclude(&a, TIMES, &ran(End::TimedOut, "", ""));
        assert_eq!(json_of(&s.status_json)["reason"], "max_consecutive_timeouts");
        assert_eq!(s.admit(&a, 9999).unwrap_err().errno(), libc::EPERM);
        assert_eq!(json_of(&s.status_json), json!({"state": "offline", "reason": "disabled"}));
        assert_eq!(s.health(&a, 9999)["last_control_op"], "auto_disable");
        s.control(Op::Enable, 1);
        s.admit(&a, 1).unwrap();
        assert_eq!(s.metrics()["consecutive_timeouts"], 2);
        s.control(Op::Reset, 2);
        assert_eq!(s.metrics()["consecutive_timeouts"], 0);
        assert_eq!(s.metrics()["timeouts_total"], 2);
    }

    #[test]
    fn a_config_that_is_none_changes_nothing() {
        let mut s = State::new("echo");
        s.configure(r#"{"supervision":{"cooldown_ms":7}}"#, 1).unwrap();
        let long = format!("{{\"x\":\"{}\"}}", "y".repeat(CONFIG_MAX));
        for bad in
            [&*long, "[]", "{", r#"{"supervision":7}"#, r#"{"supervision":{"cooldown_ms":-1}}"#]
        {
            let e = s.configure(bad, 2).unwrap_err();
            assert!(e.errno() == libc::EINVAL && e.message.contains("payload invalid"), "{e}");
        }
        assert_eq!(s.runtime.supervision.cooldown_ms, 7);
        s.configure(" \n", 3).unwrap();
        assert_eq!((s.config(), s.runtime.supervision), ("{}", Policy::default()));
    }

    #[test]
    fn it_is_kept_in_the_documented_form() {
        let mut s = State::new("echo");
        s.control(Op::Disable, 5);
        s.result_json = "x".repeat(RESULT_KEPT_MAX + 1);
        let kept = serde_json::to_value(s.kept()).unwrap();
        assert_eq!(kept["runtime"]["enabled"], false);
        assert_eq!(kept["runtime"]["config_json"], "{}");
        assert_eq!(kept["stats"]["invokes_total"], 0);
        assert_eq!(kept["result_json"], idle());
        let back: State = serde_json::from_value(kept).unwrap();
        assert!(!back.runtime.enabled && back.service_id == "echo");
    }
}
