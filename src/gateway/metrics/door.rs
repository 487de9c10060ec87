//! The port for those who watch over the gateway (spec: control 11.1): plain HTTP, no token. It shares the
//! I/O threads, the limits and the HTTP of the main port.

use super::exposition::{TEXT, text};
use crate::base::{Code, Error, Result, ResultExt};
use crate::config::Env;
use crate::gateway::Gateway;
use crate::net::{Answer, Head, Listener, Net, Response, Service};
use std::net::SocketAddr;
use std::sync::Arc;

/// Names the port.
const VARIABLE: &str = "SPIDERWEB_METRICS_PORT";

/// The port that is asked for; none when the variable is unset, empty or 0. Errors: `invalid_config`,
/// naming the variable.
pub fn port(env: &Env, main: u16) -> Result<Option<u16>> {
    let wrong = |what: String| Err(Error::new(Code::Config, format!("{VARIABLE} {what}")));
    let Some(value) = env.get(VARIABLE).map(str::trim).filter(|v| !v.is_empty()) else {
        return Ok(None);
    };
    match value.parse::<u16>() {
        Ok(0) => Ok(None),
        Ok(port) if port == main => {
            wrong(format!("is {port}, which is server.port; choose another one"))
        }
        Ok(port) => Ok(Some(port)),
        Err(_) => wrong(format!("must be a port from 1 to 65535, or 0 for none, not {value:?}")),
    }
}

/// Errors: `address_in_use`, naming the variable.
pub fn listen(gateway: &Arc<Gateway>, net: &Net, port: u16) -> Result<Listener> {
    let addr = SocketAddr::new(gateway.config.server.bind, port);
    let listener = net.listen(addr, Arc::new(MetricsDoor(gateway.clone()))).context(VARIABLE)?;
    log::info!("metrics at http://{addr}/metrics");
    Ok(listener)
}

struct MetricsDoor(Arc<Gateway>);

impl Service for MetricsDoor {
    fn request(&self, head: &Head, _: SocketAddr) -> Answer {
        // A page of another host could else read the figures through a browser on this one.
        if head.is_foreign(&[]) {
            return Answer::Http(Response::text(403, "pages of this origin may not ask"));
        }
        let found = health(&self.0, &head.path).or_else(|| figures(&self.0, &head.path));
        Answer::Http(found.unwrap_or_else(|| Response::text(404, "not found")))
    }
}

/// `/livez` and `/readyz`, here and on the main port.
pub fn health(gateway: &Gateway, path: &str) -> Option<Response> {
    match path {
        "/livez" => Some(Response::text(200, "ok")),
        "/readyz" if gateway.is_ready() => Some(Response::text(200, "ready")),
        "/readyz" => Some(Response::text(503, "not ready")),
        _ => None,
    }
}

/// `/metrics` and `/metrics.json`, here, and for admins on the main port.
pub fn figures(gateway: &Gateway, path: &str) -> Option<Response> {
    let (content_type, body) = match path {
        "/metrics" => (TEXT, text(&gateway.metrics.families())),
        "/metrics.json" => ("application/json", gateway.metrics.object().finish()),
        _ => return None,
    };
    Some(Response { content_type, body: body.into(), ..Response::text(200, "") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_a_port_and_none_is_none() {
        let read = |value: &str| port(&[(VARIABLE, value)].into_iter().collect(), 18790);
        assert_eq!(port(&Env::default(), 18790).unwrap(), None);
        assert_eq!([read("").unwrap(), read(" ").unwrap(), read("0").unwrap()], [None; 3]);
        assert_eq!(read(" 9464 ").unwrap(), Some(9464));
        for wrong in ["65536", "-1", "x", "80 80", "1e3", "18790"] {
            let e = read(wrong).unwrap_err();
            assert!(e.code == Code::Config && e.message.contains(VARIABLE), "{wrong}: {e}");
        }
    }
}
