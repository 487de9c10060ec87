//! The outer object of every JSON message: `channel`, `type`, and what names the request
//! (spec: control 3.1 and 3.3, namespace 2.1, fs 2).

use super::Fields;
use crate::base::Error;
use std::borrow::Cow;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    Control,
    Acheron,
}

/// Types that stand for another one of their channel.
const OTHER_SPELLINGS: [(Channel, &str, &str); 10] = [
    (Channel::Control, "debug.subscribe", "debug_subscribe"),
    (Channel::Control, "debug.unsubscribe", "debug_unsubscribe"),
    (Channel::Control, "agent.run.start", "agent_run_start"),
    (Channel::Control, "agent.run.step", "agent_run_step"),
    (Channel::Control, "agent.run.resume", "agent_run_resume"),
    (Channel::Control, "agent.run.pause", "agent_run_pause"),
    (Channel::Control, "agent.run.cancel", "agent_run_cancel"),
    (Channel::Control, "agent.run.status", "agent_run_status"),
    (Channel::Control, "agent.run.events", "agent_run_events"),
    (Channel::Control, "agent.run.list", "agent_run_list"),
];

/// A message whose outer form is right.
#[derive(Clone, Debug)]
pub struct Envelope<'a> {
    pub channel: Channel,
    /// The type without its `control.` or `acheron.` prefix.
    pub name: Cow<'a, str>,
    pub id: Option<Cow<'a, str>>,
    pub tag: Option<u32>,
    pub correlation_id: Option<Cow<'a, str>>,
    pub session_key: Option<Cow<'a, str>>,
    /// All members, the above included.
    pub fields: Fields<'a>,
}

/// A message whose outer form is wrong: the fault by the name that old clients know, and what could
/// still be read of it so that the answer finds its request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    pub fault: &'static str,
    pub channel: Option<Channel>,
    /// The `type` as sent, where there is one.
    pub kind: Option<String>,
    pub id: Option<String>,
    pub tag: Option<u32>,
}

impl<'a> Envelope<'a> {
    pub fn parse(text: &'a str) -> Result<Envelope<'a>, Malformed> {
        let malformed = |fault| Malformed { fault, channel: None, kind: None, id: None, tag: None };
        let fields = Fields::parse(text)
            .map_err(|e| malformed(if e.is_some() { "SyntaxError" } else { "InvalidEnvelope" }))?;
        // Read what can be read first: a fault must still find its request.
        let channel = fields.str("channel").map(|c| {
            c.map(|c| match &*c {
                "control" => Some(Channel::Control),
                "acheron" => Some(Channel::Acheron),
                _ => None,
            })
        });
        let kind = fields.str("type");
        let (id, tag) = (fields.str("id"), fields.u32("tag"));
        let fault = |fault| Malformed {
            fault,
            channel: channel.as_ref().ok().copied().flatten().flatten(),
            kind: kind.as_ref().ok().and_then(|k| k.as_deref()).map(str::to_owned),
            id: id.as_ref().ok().and_then(|i| i.as_deref()).map(str::to_owned),
            tag: tag.as_ref().ok().copied().flatten(),
        };
        let wrong_type = |_: &Error| fault("InvalidType");
        let known = channel.as_ref().map_err(wrong_type)?.ok_or_else(|| fault("MissingField"))?;
        let known = known.ok_or_else(|| fault("InvalidType"))?;
        let full = kind.as_ref().map_err(wrong_type)?.as_ref();
        let full = full.ok_or_else(|| fault("MissingField"))?;
        let prefix = match known {
            Channel::Control => "control.",
            Channel::Acheron => "acheron.",
        };
        let unsupported = || fault("UnsupportedType");
        let other = OTHER_SPELLINGS.iter().find(|(c, other, _)| *c == known && full == other);
        let name = match (other, full) {
            (Some((.., name)), _) => Cow::Borrowed(*name),
            (None, Cow::Borrowed(s)) => {
                Cow::Borrowed(s.strip_prefix(prefix).ok_or_else(unsupported)?)
            }
            (None, Cow::Owned(s)) => {
                Cow::Owned(s.strip_prefix(prefix).ok_or_else(unsupported)?.to_owned())
            }
        };
        let wrong = |e: Error| wrong_type(&e);
        Ok(Envelope {
            channel: known,
            name,
            tag: *tag.as_ref().map_err(wrong_type)?,
            correlation_id: fields.str("correlation_id").map_err(wrong)?,
            session_key: fields.str("session_key").map_err(wrong)?,
            id: id.as_ref().map_err(wrong_type)?.clone(),
            fields,
        })
    }

    /// The payload as text; `{}` when there is none.
    pub fn payload(&self) -> &'a str {
        self.fields.get("payload").map_or("{}", |v| v.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> &'static str {
        Envelope::parse(text).unwrap_err().fault
    }

    #[test]
    fn faults_have_the_names_that_were_recorded() {
        assert_eq!(fault("nope"), "SyntaxError");
        assert_eq!(fault("[]"), "InvalidEnvelope");
        assert_eq!(fault(r#"{"type":"session.send"}"#), "MissingField");
        assert_eq!(fault(r#"{"channel":"control"}"#), "MissingField");
        assert_eq!(fault(r#"{"channel":"x","type":"control.ping"}"#), "InvalidType");
        assert_eq!(fault(r#"{"channel":"control","type":"control.ping","id":7}"#), "InvalidType");
        assert_eq!(fault(r#"{"channel":"control","type":"acheron.t_walk"}"#), "UnsupportedType");
        assert_eq!(
            fault(r#"{"channel":"acheron","type":"acheron.t_walk","tag":-1}"#),
            "InvalidType"
        );
    }

    #[test]
    fn a_fault_keeps_what_names_the_request() {
        let m = Envelope::parse(r#"{"channel":"control","type":"session.send","id":"r1","tag":3}"#);
        let m = m.unwrap_err();
        assert_eq!((m.id.as_deref(), m.tag), (Some("r1"), Some(3)));
        assert_eq!(m.channel, Some(Channel::Control));
    }

    #[test]
    fn a_good_envelope() {
        let text = r#"{"channel":"control","type":"control.ping","id":"1","payload":{"a":1}}"#;
        let e = Envelope::parse(text).unwrap();
        assert_eq!((&*e.name, e.id.as_deref(), e.payload()), ("ping", Some("1"), r#"{"a":1}"#));
        for kind in ["debug.subscribe", "control.debug_subscribe"] {
            let text = format!(r#"{{"channel":"control","type":"{kind}"}}"#);
            assert_eq!(Envelope::parse(&text).unwrap().name, "debug_subscribe");
        }
        for (channel, kind) in [("acheron", "debug.subscribe"), ("control", "debug.other")] {
            let text = format!(r#"{{"channel":"{channel}","type":"{kind}"}}"#);
            assert_eq!(fault(&text), "UnsupportedType");
        }
    }
}
