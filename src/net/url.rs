//! Addresses of WebSocket servers.

use crate::base::{Error, Result};
use std::fmt;

/// A `ws://` or `wss://` URL. Its `Display` leaves the query out, which may hold a secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WsUrl {
    tls: bool,
    /// Without brackets.
    host: String,
    port: u16,
    /// Path and query as the URL gives them; `None` where it ends after the authority.
    target: Option<String>,
}

impl WsUrl {
    /// Errors: `invalid`, naming the URL.
    pub fn parse(url: &str) -> Result<WsUrl> {
        parse(url).map_err(|why| {
            let shown = url.split(['?', '#']).next().unwrap_or_default();
            let shown = match (shown.find("://"), shown.rfind('@')) {
                (Some(scheme), Some(at)) if scheme + 3 <= at => {
                    format!("{}…{}", &shown[..scheme + 3], &shown[at..])
                }
                _ => shown.to_owned(),
            };
            Error::invalid(format!("URL {shown:?}: {why}; expected ws://host[:port][/path]"))
        })
    }

    /// The same URL with `path` where none was given.
    #[must_use]
    pub fn or_path(mut self, path: &str) -> WsUrl {
        self.target.get_or_insert_with(|| path.to_owned());
        self
    }

    /// The same server, another path and query.
    #[must_use]
    pub fn with_path(mut self, path: &str) -> WsUrl {
        self.target = Some(path.to_owned());
        self
    }

    /// True for `wss://`.
    pub fn tls(&self) -> bool {
        self.tls
    }

    /// Host name or address, IPv6 without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Path without the query; `/` when none was given.
    pub fn path(&self) -> &str {
        self.target().split('?').next().unwrap_or_default()
    }

    /// Path and query, as the request line says it.
    pub fn target(&self) -> &str {
        self.target.as_deref().unwrap_or("/")
    }

    /// `host[:port]` for the `Host` header, the port only where it is not the default.
    pub fn authority(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == default_port(self.tls) { host } else { format!("{host}:{}", self.port) }
    }
}

fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

fn parse(url: &str) -> Result<WsUrl, &'static str> {
    if url.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return Err("a space or control character");
    }
    if url.contains('#') {
        return Err("a fragment has no meaning here");
    }
    let (scheme, rest) = url.split_once("://").ok_or("no scheme")?;
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "ws" => false,
        "wss" => true,
        _ => return Err("the scheme is neither ws nor wss"),
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(end);
    if authority.contains('@') {
        return Err("a user name or password does not belong here, use a token");
    }
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or("no closing bracket")?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| "not an IPv6 address in brackets")?;
        (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or("no port")?) })
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return Err("the host is empty");
    }
    if port.is_some_and(|p| p.contains(':')) {
        return Err("an IPv6 address needs brackets");
    }
    let port = match port {
        None => default_port(tls),
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
            port.parse().ok().filter(|p| *p != 0).ok_or("the port is not 1 to 65535")?
        }
        Some(_) => return Err("the port is not a number"),
    };
    let target = match target.bytes().next() {
        None => None,
        Some(b'/') => Some(target.to_owned()),
        Some(_) => Some(format!("/{target}")),
    };
    Ok(WsUrl { tls, host: host.to_owned(), port, target })
}

impl std::str::FromStr for WsUrl {
    type Err = Error;

    fn from_str(s: &str) -> Result<WsUrl> {
        WsUrl::parse(s)
    }
}

impl fmt::Display for WsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Code;

    #[test]
    fn defaults_and_brackets() {
        let url = WsUrl::parse("ws://localhost").unwrap();
        assert_eq!((url.host(), url.port(), url.target()), ("localhost", 80, "/"));
        assert_eq!(url.clone().or_path("/v2/fs").to_string(), "ws://localhost/v2/fs");
        assert_eq!(WsUrl::parse("ws://localhost/").unwrap().or_path("/v2/fs").path(), "/");

        let url = WsUrl::parse("WSS://[::1]:8443/a/b?token=secret").unwrap();
        assert_eq!((url.tls(), url.host(), url.port()), (true, "::1", 8443));
        assert_eq!((url.path(), url.target()), ("/a/b", "/a/b?token=secret"));
        assert_eq!(url.to_string(), "wss://[::1]:8443/a/b");
        assert_eq!(WsUrl::parse("wss://[::1]").unwrap().authority(), "[::1]");
        assert_eq!(WsUrl::parse("ws://h?x=1").unwrap().target(), "/?x=1");
    }

    #[test]
    fn errors_name_the_url_but_no_secret() {
        for bad in [
            "",
            "localhost",
            "http://h",
            "ws://",
            "ws://:80",
            "ws://h:",
            "ws://h:0",
            "ws://h:x",
            "ws://h:65536",
            "ws://h:+1",
            "ws://::1/",
            "ws://[::1",
            "ws://[::1]80",
            "ws://[h]",
            "ws://h/#f",
            "ws://h /",
            "ws://h\r\nX: y",
        ] {
            let e = WsUrl::parse(bad).unwrap_err();
            assert_eq!(e.code, Code::Invalid, "{bad}");
        }
        let e = WsUrl::parse("ws://me:secret@h/x?t=secret").unwrap_err();
        assert!(!e.message.contains("secret"), "{e}");
        assert!(WsUrl::parse("ftp://host/x").unwrap_err().message.contains("ftp://host/x"));
    }
}
