//! The HTTP side of a connection: request heads, the upgrade, and plain answers. One request per
//! connection; after an answer other than 101 the connection ends.

use crate::base::Code;
use bytes::Bytes;
use tungstenite::handshake::derive_accept_key;

/// Bytes of a request or response head, blank line included (spec: control 2.1).
pub(super) const HEAD_MAX: usize = 16 << 10;

/// Header lines of a head.
const HEADERS_MAX: usize = 100;

/// A parsed request. Bodies are not read.
#[derive(Clone, Debug)]
pub struct Head {
    pub method: String,
    /// Without the query, as sent (not percent-decoded); starts with `/`.
    pub path: String,
    /// What follows `?`; empty when there is none.
    pub query: String,
    headers: Vec<(String, String)>,
    /// HTTP/1.1, not 1.0.
    modern: bool,
}

impl Head {
    /// The value of the first header of that name, letter case ignored.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.headers
            .iter()
            .filter(move |(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }

    fn lists(&self, name: &str, token: &str) -> bool {
        self.all(name)
            .flat_map(|value| value.split(','))
            .any(|item| item.trim().eq_ignore_ascii_case(token))
    }

    /// True when the request asks to become a WebSocket, well-formed or not.
    pub fn is_upgrade(&self) -> bool {
        self.lists("upgrade", "websocket")
    }

    /// The token of `Authorization: Bearer T`; a bare `T` counts (spec: control 5.1).
    pub fn bearer(&self) -> Option<&str> {
        let value = self.header("authorization")?.trim();
        let token = match value.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            Some(_) => return None,
            None if value.eq_ignore_ascii_case("bearer") => return None,
            None => value,
        };
        (!token.is_empty()).then_some(token)
    }

    pub fn origin(&self) -> Option<&str> {
        self.header("origin")
    }

    /// True when a page of another host's opened this connection: its `Origin` is neither loopback nor
    /// one of `allowed` (design: 9). Programs that are no browsers send none.
    pub fn is_foreign(&self, allowed: &[String]) -> bool {
        let Some(origin) = self.origin() else { return false };
        let host = origin.split_once("://").map_or(origin, |(_, rest)| rest);
        let host = match host.strip_prefix('[') {
            Some(v6) => v6.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        let loopback = host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        !loopback && !allowed.iter().any(|a| a == origin)
    }
}

/// An HTTP answer; the connection closes after it.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub content_type: &'static str,
    pub body: Bytes,
    /// Beside `Content-Type`, `Content-Length` and `Connection: close`. Values must be one line.
    pub headers: Vec<(&'static str, String)>,
}

impl Response {
    /// Plain text; a line feed is added.
    pub fn text(status: u16, text: impl std::fmt::Display) -> Response {
        Response {
            status,
            content_type: "text/plain; charset=utf-8",
            body: format!("{text}\n").into(),
            headers: Vec::new(),
        }
    }

    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Response {
        self.headers.push((name, value.into()));
        self
    }

    /// The bytes on the wire; a request by HEAD gets no body.
    pub(super) fn encode(&self, with_body: bool) -> Bytes {
        let mut out = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n",
            self.status,
            reason(self.status),
            self.content_type,
            self.body.len(),
        );
        for (name, value) in &self.headers {
            // A line break would begin a header of the value's own.
            let value: String = value.chars().filter(|c| !c.is_control()).collect();
            out.push_str(&format!("{name}: {value}\r\n"));
        }
        out.push_str("\r\n");
        let mut out = out.into_bytes();
        if with_body {
            out.extend_from_slice(&self.body);
        }
        out.into()
    }
}

fn reason(status: u16) -> &'static str {
    tungstenite::http::StatusCode::from_u16(status)
        .ok()
        .and_then(|s| s.canonical_reason())
        .unwrap_or("Other")
}

/// What the bytes so far amount to.
pub(super) enum Parsed {
    Incomplete,
    /// The head, and how many bytes it took.
    Head(Head, usize),
    Refused(Response),
}

/// Parses a request head; answers 400, 405 or 431 itself.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let used = match request.parse(bytes) {
        Ok(httparse::Status::Complete(used)) if used <= HEAD_MAX => used,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Parsed::Incomplete,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            let limits = format!("more than {HEAD_MAX} bytes or {HEADERS_MAX} lines of header");
            return Parsed::Refused(Response::text(431, limits));
        }
        Err(e) => return Parsed::Refused(Response::text(400, format!("malformed request: {e}"))),
    };
    let method = request.method.unwrap_or_default();
    if !matches!(method, "GET" | "HEAD") {
        let answer =
            Response::text(405, "only GET is served here").with_header("Allow", "GET, HEAD");
        return Parsed::Refused(answer);
    }
    let Some(target) = origin_form(request.path.unwrap_or_default()) else {
        return Parsed::Refused(Response::text(400, "the request target is not a path"));
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut head = Head {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: Vec::with_capacity(request.headers.len()),
        modern: request.version == Some(1),
    };
    for header in request.headers {
        let Ok(value) = std::str::from_utf8(header.value) else {
            let answer = format!("the header {} is not UTF-8", header.name);
            return Parsed::Refused(Response::text(400, answer));
        };
        head.headers.push((header.name.to_owned(), value.trim().to_owned()));
    }
    Parsed::Head(head, used)
}

/// Path and query of a target, which may be an absolute URL (RFC 9112 section 3.2).
fn origin_form(target: &str) -> Option<&str> {
    if target.starts_with('/') {
        return Some(target);
    }
    let (scheme, rest) = target.split_once("://")?;
    if !["http", "ws"].iter().any(|s| scheme.eq_ignore_ascii_case(s)) {
        return None;
    }
    Some(rest.find('/').map_or("/", |at| &rest[at..]))
}

/// The 101 to a proper upgrade, with exactly the three headers of the original, or what is wrong
/// with the request. The key's length is not checked: recorded clients send 21 bytes (spec: control 2.1).
pub(super) fn upgrade(head: &Head) -> Result<Bytes, Response> {
    if !head.is_upgrade() {
        let answer = Response::text(426, "this path speaks WebSocket");
        return Err(answer.with_header("Upgrade", "websocket"));
    }
    if head.method != "GET" || !head.modern {
        return Err(Response::text(400, "an upgrade is a GET of HTTP/1.1"));
    }
    if !head.lists("connection", "upgrade") {
        return Err(Response::text(400, "the header Connection: Upgrade is missing"));
    }
    if head.header("sec-websocket-version") != Some("13") {
        let answer = Response::text(426, "Sec-WebSocket-Version must be 13");
        return Err(answer
            .with_header("Upgrade", "websocket")
            .with_header("Sec-WebSocket-Version", "13"));
    }
    let has_body = head.header("transfer-encoding").is_some()
        || head.all("content-length").any(|length| length != "0");
    if has_body {
        return Err(Response::text(400, "an upgrade has no body"));
    }
    match head.header("sec-websocket-key") {
        Some(key) if !key.is_empty() => Ok(format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            derive_accept_key(key.as_bytes())
        )
        .into()),
        _ => Err(Response::text(400, "the header Sec-WebSocket-Key is missing")),
    }
}

/// The end of a server's response head, if `bytes` holds it, and whether it accepts the upgrade that
/// was asked with `key`; otherwise the error that the status stands for.
pub(super) fn accepted(bytes: &[u8], key: &str) -> crate::base::Result<Option<usize>> {
    use crate::base::Error;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let used = match response.parse(bytes) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => {
            return Err(Error::new(Code::Unavailable, "the server's answer has no end"));
        }
        Err(e) => {
            let text = format!("the server does not answer in HTTP ({e})");
            return Err(Error::new(Code::Unavailable, text));
        }
    };
    let status = response.code.unwrap_or_default();
    if status != 101 {
        let code = match status {
            401 | 403 => Code::Forbidden,
            404 => Code::InvalidEndpoint,
            _ => Code::Unavailable,
        };
        let body = String::from_utf8_lossy(&bytes[used..]);
        let words = body.lines().next().unwrap_or_default();
        let text = format!("the server refused the WebSocket: HTTP {status} {words}");
        return Err(Error::new(code, text.trim_end().to_owned()));
    }
    let accept = response
        .headers
        .iter()
        .find(|h| h.name.eq_ignore_ascii_case("sec-websocket-accept"))
        .map(|h| h.value);
    if accept != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
        let text = "the server's Sec-WebSocket-Accept does not fit; it is no WebSocket server";
        return Err(Error::new(Code::Unavailable, text));
    }
    Ok(Some(used))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPGRADE: &str = "GET /v2/fs?a=1 HTTP/1.1\r\nhost: x\r\nUPGRADE: h2c, WebSocket\r\n\
        Connection: keep-alive\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n\
        sec-websocket-key: c3BpZGVyd2ViLWNvbnRyb2wtY2xp\r\ncontent-length: 0\r\n\r\n";

    fn head(text: &str) -> Head {
        match parse(text.as_bytes()) {
            Parsed::Head(head, used) => {
                assert_eq!(used, text.len());
                head
            }
            Parsed::Incomplete => panic!("incomplete"),
            Parsed::Refused(r) => panic!("{r:?}"),
        }
    }

    fn refused(text: &str) -> u16 {
        match parse(text.as_bytes()) {
            Parsed::Refused(r) => r.status,
            Parsed::Head(head, _) => upgrade(&head).unwrap_err().status,
            Parsed::Incomplete => panic!("incomplete"),
        }
    }

    #[test]
    fn the_recorded_key_gets_the_recorded_accept_and_three_headers() {
        let head = head(UPGRADE);
        assert_eq!((head.path.as_str(), head.query.as_str()), ("/v2/fs", "a=1"));
        let answer = upgrade(&head).unwrap();
        assert_eq!(
            std::str::from_utf8(&answer).unwrap(),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: YW20eEsgAOPNkxFiWngfFrNZ+hI=\r\n\r\n"
        );
    }

    #[test]
    fn every_prefix_is_incomplete() {
        for end in 0..UPGRADE.len() {
            assert!(matches!(parse(&UPGRADE.as_bytes()[..end]), Parsed::Incomplete), "{end}");
        }
    }

    #[test]
    fn what_is_wrong_gets_its_status() {
        assert_eq!(refused("GET / HTTP/1.1\r\n\r\n"), 426);
        assert_eq!(refused("POST / HTTP/1.1\r\n\r\n"), 405);
        assert_eq!(refused("nonsense\r\n\r\n"), 400);
        assert_eq!(refused("GET x HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(refused(&UPGRADE.replace(": 13", ": 8")), 426);
        assert_eq!(refused(&UPGRADE.replace("HTTP/1.1", "HTTP/1.0")), 400);
        assert_eq!(refused(&UPGRADE.replace("sec-websocket-key", "x")), 400);
        assert_eq!(refused(&UPGRADE.replace("content-length: 0", "content-length: 1")), 400);
        assert_eq!(refused(&UPGRADE.replace("Connection: upgrade\r\n", "")), 400);
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(HEAD_MAX))), 431);
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(101))), 431);
    }

    #[test]
    fn pages_of_other_hosts_are_foreign() {
        let from =
            |origin: &str| head(&format!("GET / HTTP/1.1\r\nHost: x\r\nOrigin: {origin}\r\n\r\n"));
        for own in ["http://127.0.0.1:28799", "http://localhost", "https://[::1]:8080"] {
            assert!(!from(own).is_foreign(&[]), "{own}");
        }
        for other in ["http://evil.example", "http://127.0.0.1.evil.example", "null"] {
            assert!(from(other).is_foreign(&[]), "{other}");
        }
        assert!(!from("http://a.example").is_foreign(&["http://a.example".into()]));
        assert!(!head("GET / HTTP/1.1\r\nHost: x\r\n\r\n").is_foreign(&[]));
    }

    #[test]
    fn bearer_tokens() {
        let bearer = |line: &str| {
            head(&format!("GET / HTTP/1.1\r\n{line}\r\n\r\n")).bearer().map(str::to_owned)
        };
        assert_eq!(bearer("authorization: bearer  T ").as_deref(), Some("T"));
        assert_eq!(bearer("Authorization: T").as_deref(), Some("T"));
        assert_eq!(bearer("Authorization: Bearer"), None);
        assert_eq!(bearer("Authorization: Basic T"), None);
        assert_eq!(bearer("X-Authorization: Bearer T"), None);
    }

    #[test]
    fn an_absolute_target_is_its_path() {
        assert_eq!(head("GET http://h:1/p?q HTTP/1.1\r\n\r\n").path, "/p");
        assert_eq!(head("GET ws://h HTTP/1.1\r\n\r\n").path, "/");
    }

    #[test]
    fn a_header_value_cannot_begin_another_header() {
        let bytes = Response::text(200, "x").with_header("A", "1\r\nB: 2").encode(false);
        assert!(std::str::from_utf8(&bytes).unwrap().contains("\r\nA: 1B: 2\r\n\r\n"));
    }

    #[test]
    fn a_client_takes_only_a_true_101() {
        let ok = "HTTP/1.1 101 X\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        assert_eq!(accepted(ok.as_bytes(), key).unwrap(), Some(ok.len()));
        assert_eq!(accepted(&ok.as_bytes()[..ok.len() - 1], key).unwrap(), None);
        assert!(accepted(ok.as_bytes(), "other").is_err());
        let no = accepted(b"HTTP/1.1 403 Forbidden\r\n\r\norigin\nx", key).unwrap_err();
        assert_eq!(no.code, Code::Forbidden);
        assert!(no.message.ends_with("HTTP 403 origin"), "{no}");
    }
}
