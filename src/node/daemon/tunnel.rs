//! The node's end of a tunnel (spec: fs 3.3): it dials the gateway, proves who it is, and then serves
//! its files over that connection.

use super::DIAL_TIMEOUT_MS;
use super::state::Identity;
use crate::base::{Code, Deadline, Error, Result};
use crate::net::{Closed, Conn, DialOptions, Handler, Limits, Message, Net, WsUrl};
use crate::node::{Door, Server, Session};
use crate::wire::fs::{
    Call, Framing, Hello, HelloReply, Op, Reply, Request, decode_reply, text_tag,
};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::sync::Arc;
use std::time::Duration;

/// Time for the gateway to answer the hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(15);
/// The tag of the hello; the gateway's own requests come after its answer.
const HELLO_TAG: u32 = 1;

/// A tunnel through which the gateway asks for files.
pub struct Tunnel {
    pub conn: Conn,
    ended: Receiver<Told>,
}

enum Told {
    Welcome,
    Refused(Error),
    Ended(Error),
}

impl Tunnel {
    /// Errors: `enoent` when the gateway does not know the node, `eperm` when the secret is not its,
    /// and as [`Net::dial`].
    pub fn open(
        net: &Net,
        url: &WsUrl,
        bearer: Option<&str>,
        identity: &Identity,
        server: &Arc<Server>,
        door: &Arc<dyn Door>,
    ) -> Result<Tunnel> {
        // Welcome or refused, then the end.
        let (tell, told) = bounded(2);
        let hello = Hello {
            node: Some((identity.node_id.clone(), identity.secret.clone())),
            ..Hello::default()
        };
        let (server, door) = (server.clone(), door.clone());
        let end = End { tell, hello, server, door, session: None };
        let options = DialOptions { bearer: bearer.map(str::to_owned), ..DialOptions::default() };
        let deadline = Deadline::after_ms(DIAL_TIMEOUT_MS);
        let conn = net.dial(url, &options, deadline, Box::new(end))?;
        match told.recv_timeout(HELLO_TIMEOUT) {
            Ok(Told::Welcome) => Ok(Tunnel { conn, ended: told }),
            Ok(Told::Refused(e) | Told::Ended(e)) => Err(e),
            Err(RecvTimeoutError::Timeout) => {
                conn.close(None, "");
                Err(Error::new(Code::Timeout, format!("{url} did not answer the hello")))
            }
            Err(RecvTimeoutError::Disconnected) => Err(Closed::Local.error()),
        }
    }

    /// Blocks until it has ended, and says why.
    pub fn wait(self) -> Error {
        match self.ended.recv() {
            Ok(Told::Ended(e) | Told::Refused(e)) => e,
            Ok(Told::Welcome) | Err(_) => Closed::Local.error(),
        }
    }
}

/// True for the gateway's word that it has no such node, or another secret for it (spec: fs 3.3).
pub fn is_unknown(e: &Error) -> bool {
    e.message.contains("NodeNotFound") || e.message.contains("NodeAuthFailed")
}

struct End {
    tell: Sender<Told>,
    hello: Hello,
    server: Arc<Server>,
    door: Arc<dyn Door>,
    session: Option<Arc<Session>>,
}

impl End {
    fn welcomed(&mut self, conn: &Conn, message: &Message) {
        let Message::Text(text) = message else { return };
        let reply = match decode_reply(Op::Hello, text) {
            Ok(Reply::Hello(HelloReply::Tunnel { node_id })) => {
                let asked = self.hello.node.as_ref().is_some_and(|(id, _)| *id == node_id);
                if asked { Ok(()) } else { Err(nonsense("names another node")) }
            }
            Ok(_) => Err(nonsense("is not one")),
            // What has no tag of ours was not for us.
            Err(e) if e.is_peer_lost() && text_tag(text) != Some(HELLO_TAG) => return,
            Err(e) => Err(e),
        };
        match reply {
            Ok(()) => {
                let (server, door) = (self.server.clone(), self.door.clone());
                let limits = Limits::default();
                self.session = Some(Session::new(server, door, conn.clone(), limits));
                let _ = self.tell.try_send(Told::Welcome);
            }
            Err(e) => {
                let _ = self.tell.try_send(Told::Refused(e));
                conn.close(None, "");
            }
        }
    }
}

fn nonsense(what: &str) -> Error {
    Error::new(Code::Unavailable, format!("the gateway's answer to the hello {what}"))
}

impl Handler for End {
    fn open(&mut self, conn: &Conn) {
        let call = Call::Hello(self.hello.clone());
        let request = Request::new(HELLO_TAG, call);
        let _ = conn.send(request.encode(Framing::Text));
    }

    fn message(&mut self, conn: &Conn, message: Message) {
        match &self.session {
            Some(session) => session.message(message),
            None => self.welcomed(conn, &message),
        }
    }

    fn closed(&mut self, _: &Conn, reason: &Closed) {
        if let Some(session) = self.session.take() {
            session.closed();
        }
        let _ = self.tell.try_send(Told::Ended(reason.error()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_identity_is_told_from_other_errors() {
        let refusal = |message: &str| {
            let text = format!(
                r#"{{"channel":"acheron","type":"acheron.err_fs","tag":1,"ok":false,"error":{{"errno":5,"message":"{message}"}}}}"#
            );
            decode_reply(Op::Hello, &text).unwrap_err()
        };
        assert!(is_unknown(&refusal("NodeNotFound")) && is_unknown(&refusal("NodeAuthFailed")));
        assert!(!is_unknown(&refusal("MissingField")));
    }
}
