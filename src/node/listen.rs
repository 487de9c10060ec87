//! The standalone node server: a listener whose connections speak the node protocol (spec: fs 3.1), and
//! the door for those who know its token.

use super::door::{Door, Entry, limits_after_hello, limits_before_hello};
use super::exports::Exports;
use super::session::{Server, Session};
use crate::base::{Code, Error, Result, id, now_ms};
use crate::net::{Accept, Answer, Closed, Conn, Handler, Head, Message, Response, Service};
use crate::vfs::Who;
use crate::wire::fs::{Failure, Grant, Hello};
use std::net::SocketAddr;
use std::sync::Arc;

/// A door that asks for a token, or, without one, for nothing.
pub struct TokenDoor {
    pub name: String,
    pub exports: Arc<Exports>,
    pub token: Option<String>,
}

impl Door for TokenDoor {
    fn enter(&self, hello: &Hello) -> Result<Entry> {
        if let Some(token) = &self.token {
            let given = hello.auth_token.as_ref();
            let given = given.ok_or_else(|| Error::new(Code::Invalid, "AuthMissing"))?;
            if Grant::is_one(given) {
                let now_s = u64::try_from(now_ms() / 1000).unwrap_or_default();
                let grant = Grant::open(token, given, now_s)?;
                return Ok(Entry::granted(&self.exports, grant, self.name.clone()));
            }
            if !id::same_secret(given, token) {
                return Err(Error::new(Code::Invalid, "AuthFailed"));
            }
        }
        let who = Who { principal: "node-client".into(), ..Who::default() };
        let (exports, name) = (self.exports.clone(), self.name.clone());
        Ok(Entry { exports, who, name, expires_at_s: None })
    }

    /// Old clients use one connection, and end with a hello that does not subscribe (spec: fs 3.1, 19.3).
    fn tells_all(&self) -> bool {
        true
    }
}

/// What a standalone node's listener serves.
pub struct FsService {
    pub server: Arc<Server>,
    pub door: Arc<dyn Door>,
}

impl Service for FsService {
    fn request(&self, head: &Head, _: SocketAddr) -> Answer {
        if !head.is_upgrade() {
            return Answer::Http(Response::text(426, "this is a WebSocket endpoint"));
        }
        if head.is_foreign(&[]) {
            return Answer::Http(Response::text(403, "browsers may not connect from this origin"));
        }
        let handler: Box<dyn Handler> = match &*head.path {
            "/" | "/v2/fs" => Box::new(FsHandler::new(self.server.clone(), self.door.clone())),
            _ => Box::new(WrongPath),
        };
        Answer::Upgrade(Accept { handler, limits: limits_before_hello() })
    }
}

/// Hands a connection's messages to its session.
pub struct FsHandler {
    server: Arc<Server>,
    door: Arc<dyn Door>,
    session: Option<Arc<Session>>,
}

impl FsHandler {
    pub fn new(server: Arc<Server>, door: Arc<dyn Door>) -> FsHandler {
        FsHandler { server, door, session: None }
    }
}

impl Handler for FsHandler {
    fn message(&mut self, conn: &Conn, message: Message) {
        let (server, door) = (&self.server, &self.door);
        let new = || Session::new(server.clone(), door.clone(), conn.clone(), limits_after_hello());
        self.session.get_or_insert_with(new).message(message);
    }

    fn closed(&mut self, _: &Conn, _: &Closed) {
        if let Some(session) = self.session.take() {
            session.closed();
        }
    }
}

/// Old clients read the reason from a frame, after the upgrade (spec: fs 3.1).
struct WrongPath;

impl Handler for WrongPath {
    fn open(&mut self, conn: &Conn) {
        let e = Error::invalid("invalid FS endpoint path");
        let _ = conn.send(Failure::new(None, &e).encode());
        conn.close(None, "");
    }

    fn message(&mut self, _: &Conn, _: Message) {}
}
