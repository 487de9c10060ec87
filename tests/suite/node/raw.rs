//! A client by hand: JSON frames on a WebSocket, one after the other, as old clients write them.

use serde_json::{Value, json};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Raw {
    ws: WebSocket<TcpStream>,
    /// Frames that came without a tag or id.
    pub events: Vec<Value>,
    tag: u32,
}

impl Raw {
    pub fn open(addr: SocketAddr, path: &str, bearer: Option<&str>) -> Raw {
        let tcp = TcpStream::connect(addr).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        tcp.set_nodelay(true).unwrap();
        let mut request = format!("ws://{addr}{path}").into_client_request().unwrap();
        if let Some(bearer) = bearer {
            let value = format!("Bearer {bearer}").parse().unwrap();
            request.headers_mut().insert("Authorization", value);
        }
        let (ws, _) = tungstenite::client(request, tcp).unwrap();
        Raw { ws, events: Vec::new(), tag: 0 }
    }

    pub fn send_text(&mut self, text: &str) {
        self.ws.send(Message::text(text)).unwrap();
    }

    pub fn send(&mut self, value: &Value) {
        self.send_text(&value.to_string());
    }

    pub fn send_binary(&mut self, data: &[u8]) {
        self.ws.send(Message::binary(data.to_vec())).unwrap();
    }

    /// The next frame; `None` for a close.
    pub fn next(&mut self) -> Option<Value> {
        loop {
            match self.ws.read() {
                Ok(Message::Text(text)) => return Some(serde_json::from_str(&text).unwrap()),
                Ok(Message::Close(_)) => return None,
                Ok(_) => {}
                Err(tungstenite::Error::ConnectionClosed) => return None,
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// Why the connection is closed, before anything else comes.
    #[track_caller]
    pub fn closed_with(&mut self) -> (u16, String) {
        loop {
            match self.ws.read().unwrap() {
                Message::Close(Some(frame)) => {
                    return (frame.code.into(), frame.reason.as_str().to_owned());
                }
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next frame that answers something.
    pub fn answer(&mut self) -> Option<Value> {
        loop {
            let frame = self.next()?;
            if frame.get("type").is_some_and(|t| t.as_str().unwrap().starts_with("acheron.e_")) {
                self.events.push(frame);
            } else {
                return Some(frame);
            }
        }
    }

    #[track_caller]
    pub fn closes(&mut self) {
        assert_eq!(self.next(), None);
    }

    /// Sends `t_fs_<op>` with a fresh tag, which it returns. `on` is `{"node":…}` or `{"h":…}`.
    pub fn start(&mut self, op: &str, on: Value, payload: Value) -> u32 {
        self.tag += 1;
        let mut frame = json!({
            "channel": "acheron", "type": format!("acheron.t_fs_{op}"), "tag": self.tag,
            "payload": payload,
        });
        frame.as_object_mut().unwrap().extend(on.as_object().unwrap().clone());
        self.send(&frame);
        self.tag
    }

    /// The whole reply to a request.
    #[track_caller]
    pub fn ask(&mut self, op: &str, on: Value, payload: Value) -> Value {
        let tag = self.start(op, on, payload);
        let reply = self.answer().expect("an answer");
        assert_eq!(reply["tag"], tag, "{reply}");
        reply
    }

    /// The payload of a reply that must be one of success.
    #[track_caller]
    pub fn call(&mut self, op: &str, on: Value, payload: Value) -> Value {
        let reply = self.ask(op, on, payload);
        assert_eq!(reply["type"], format!("acheron.r_fs_{op}"), "{reply}");
        assert_eq!(reply["ok"], true);
        reply["payload"].clone()
    }

    /// The errno and the message of a reply that must be one of failure.
    #[track_caller]
    pub fn fails(&mut self, op: &str, on: Value, payload: Value) -> (i32, String) {
        errno(&self.ask(op, on, payload))
    }

    pub fn hello(&mut self, more: Value) -> Value {
        let mut payload = json!({"protocol": "unified-v2-fs", "proto": 2});
        payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.call("hello", json!({}), payload)
    }

    /// The first export's root.
    pub fn root(&mut self) -> u64 {
        self.call("exports", json!({}), json!({}))["exports"][0]["root"].as_u64().unwrap()
    }

    /// One control operation: the reply's payload, or the error's code.
    pub fn control(&mut self, op: &str, payload: Value) -> Result<Value, String> {
        self.tag += 1;
        let id = format!("t-{}", self.tag);
        self.send(&json!({
            "channel": "control", "type": format!("control.{op}"), "id": id, "payload": payload,
        }));
        loop {
            let frame = self.next().expect("a reply");
            if frame["id"] != id {
                continue;
            }
            return match frame["ok"].as_bool() {
                Some(true) => Ok(frame["payload"].clone()),
                _ => Err(frame["error"]["code"].as_str().unwrap_or_default().to_owned()),
            };
        }
    }

    /// A request of acheron-1: the payload, or the error's code.
    pub fn acheron(&mut self, op: &str, more: Value) -> Result<Value, String> {
        self.tag += 1;
        let mut frame =
            json!({"channel": "acheron", "type": format!("acheron.t_{op}"), "tag": self.tag});
        frame.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.send(&frame);
        loop {
            let frame = self.next().expect("a reply");
            if frame["tag"] != self.tag {
                continue;
            }
            return match frame["ok"].as_bool() {
                Some(true) => Ok(frame["payload"].clone()),
                _ => Err(frame["error"]["code"].as_str().unwrap_or_default().to_owned()),
            };
        }
    }
}

#[track_caller]
pub fn errno(reply: &Value) -> (i32, String) {
    assert_eq!(reply["type"], "acheron.err_fs", "{reply}");
    assert_eq!(reply["ok"], false);
    let e = &reply["error"];
    (e["errno"].as_i64().unwrap() as i32, e["message"].as_str().unwrap().to_owned())
}

/// Waits until `f` gives something.
#[track_caller]
pub fn eventually<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = f() {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}
