//! The asking end of the control channel (spec: fs 13.2): connects, shakes hands, and correlates replies
//! with requests. What the operations mean is their callers' business.

use super::{Closed, DialOptions, Inbound, Message, Mux, Net, Text, WsUrl};
use crate::base::{Cancel, Code, Deadline, Error, Result};
use crate::wire::control;
use std::sync::{Arc, Mutex, PoisonError};

/// A connection that has shaken hands.
pub struct Control {
    mux: Mux,
    ids: &'static str,
    refusal: Refusal,
}

/// Told of frames that were not asked for, and, with `None`, of the end of the connection. Called on the
/// I/O thread: it must not block.
pub type Hear = Arc<dyn Fn(Option<&Text>) + Send + Sync>;

/// Why the gateway refused the whole connection, which it may say before anything was asked.
type Refusal = Arc<Mutex<Option<Error>>>;

impl Control {
    /// `ids` begins the ids of the requests, for who reads the gateway's logs. Errors: as [`Net::dial`],
    /// and the gateway's own.
    pub fn open(
        net: &Net,
        url: &WsUrl,
        bearer: Option<String>,
        ids: &'static str,
        deadline: Deadline,
        cancel: &Cancel,
    ) -> Result<Control> {
        Control::open_hearing(net, url, bearer, ids, deadline, cancel, Arc::new(|_| ()))
    }

    /// As [`Control::open`], for who wants to hear what the gateway says by itself.
    pub fn open_hearing(
        net: &Net,
        url: &WsUrl,
        bearer: Option<String>,
        ids: &'static str,
        deadline: Deadline,
        cancel: &Cancel,
        hear: Hear,
    ) -> Result<Control> {
        let options = DialOptions { bearer, ..DialOptions::default() };
        let refusal = Refusal::default();
        let replies = Box::new(Replies { ids, refusal: refusal.clone(), hear });
        let mux = Mux::dial(net, url, &options, deadline, 1, replies)?;
        let control = Control { mux, ids, refusal };
        let version = format!(r#"{{"protocol":"{}"}}"#, control::PROTOCOL);
        control.call("version", &version, deadline, cancel)?;
        control.call("connect", "{}", deadline, cancel)?;
        Ok(control)
    }

    /// The reply as it came, error or not. Errors: `timeout`, `unavailable`, `cancelled`.
    pub fn ask(
        &self,
        name: &str,
        payload: &str,
        deadline: Deadline,
        cancel: &Cancel,
    ) -> Result<Text> {
        let id = |tag: u32| format!("{}-{tag}", self.ids);
        let build = |tag| Message::text(control::request(name, &id(tag), payload));
        let reply = self.mux.call(build, deadline, cancel).map_err(|e| {
            let refused = self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take();
            refused.unwrap_or(e.error)
        });
        match reply? {
            Message::Text(text) => Ok(text),
            Message::Binary(_) => {
                let text = format!("the gateway's reply to control.{name} is binary");
                Err(Error::new(Code::Unavailable, text))
            }
        }
    }

    /// The payload of a success, as JSON. Errors: also the gateway's, under its code.
    pub fn call(
        &self,
        name: &str,
        payload: &str,
        deadline: Deadline,
        cancel: &Cancel,
    ) -> Result<String> {
        control::read_reply(name, &self.ask(name, payload, deadline, cancel)?)
    }
}

/// Finds a reply's request by the number in its id. A connection that is refused outright gets a frame
/// without an id; other frames were not asked for.
struct Replies {
    ids: &'static str,
    refusal: Refusal,
    hear: Hear,
}

impl Inbound for Replies {
    fn tag(&mut self, message: &Message) -> Option<u32> {
        let Message::Text(text) = message else { return None };
        control::text_id(text)?.strip_prefix(self.ids)?.strip_prefix('-')?.parse().ok()
    }

    fn event(&mut self, message: Message) {
        let Message::Text(text) = message else { return };
        if let Some(e) = control::read_refusal(&text) {
            *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
        }
        (self.hear)(Some(&text));
    }

    fn lost(&mut self, _: &Closed) {
        (self.hear)(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_told_apart_by_the_end_of_their_id() {
        let mut replies =
            Replies { ids: "op", refusal: Refusal::default(), hear: Arc::new(|_| ()) };
        let mut tag = |text: &str| replies.tag(&Message::text(text.to_owned()));
        assert_eq!(tag(r#"{"channel":"control","id":"op-7"}"#), Some(7));
        assert_eq!(tag(r#"{"channel":"control","id":"other-7"}"#), None);
        assert_eq!(tag("{}"), None);
    }
}
