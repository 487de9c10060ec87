//! `spiderweb-config audit`: the audit log, read from the state database itself, with or without its gateway.

use crate::base::{Code, Error, Result};
use crate::cli::{Args, Command, print, usage};
use crate::config::state_key::state_key;
use crate::config::{Config, Env};
use crate::control::audit::{self, Filter, Verified};
use crate::control::audit_tail;
use crate::gateway::schemas;
use crate::store::{KvRead, Snapshot};
use crate::wire::Object;

pub const TAIL: Command = Command {
    name: "audit tail",
    args: "[<payload>]",
    help: "Show the newest records of the audit log, as control.audit_tail does",
};
pub const VERIFY: Command = Command {
    name: "audit verify",
    args: "[--expect <id>:<hash>]",
    help: "Look whether the audit log is as it was written",
};

pub fn run(args: &Args, config: &Config, env: &Env) -> Result<()> {
    let sub = args.word(1, "<subcommand>")?;
    let open = || Snapshot::open(&config.database()?, &schemas(), state_key(env)?.as_ref());
    match sub.as_str() {
        "tail" => {
            args.at_most(3)?;
            let payload = args.words.get(2).map(|_| args.word(2, "<payload>")).transpose()?;
            let found = audit_tail(&open()?, payload.as_deref().unwrap_or("{}"))?;
            print(&format!("{found}\n"))
        }
        "verify" => {
            args.at_most(2)?;
            let expected = args.string("--expect")?.map(|text| record(&text)).transpose()?;
            verify(&open()?, expected, args.has("--json"))
        }
        other => Err(usage(format!("unknown subcommand {other:?}; there are: tail, verify"))),
    }
}

/// A record and its hash, as somebody has noted them.
fn record(text: &str) -> Result<(u64, String)> {
    let parts = text.split_once(':').and_then(|(id, hash)| Some((id.parse().ok()?, hash)));
    let (id, hash) = parts
        .filter(|(_, hash)| hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()))
        .ok_or_else(|| usage(format!("--expect {text:?}: a record's id, a colon, and its hash")))?;
    Ok((id, hash.to_ascii_lowercase()))
}

/// Errors: `invalid` for a log that something else has changed.
fn verify(kv: &dyn KvRead, expected: Option<(u64, String)>, json: bool) -> Result<()> {
    let Verified { records, last_id, hash, broken } = audit::verify_at_rest(kv)?;
    let changed = match (&broken, expected) {
        (Some(broken), _) => Some(broken.to_string()),
        (None, Some((id, hash))) => other_than(kv, id, &hash)?,
        (None, None) => None,
    };
    let text = match json {
        true => {
            let intact = changed.is_none();
            let shown = Object::new()
                .put("records", records)
                .put("last_id", last_id)
                .put("hash", &hash)
                .put("intact", intact);
            shown.put_some("reason", changed.as_ref()).finish()
        }
        false => format!("{records} records hold; the newest is {last_id}:{hash}"),
    };
    print(&format!("{text}\n"))?;
    match changed {
        None => Ok(()),
        Some(why) => {
            let message = format!("the audit log was changed by something else: {why}");
            Err(Error::new(Code::Invalid, message))
        }
    }
}

/// Why a record is not the one that was noted.
fn other_than(kv: &dyn KvRead, id: u64, noted: &str) -> Result<Option<String>> {
    let before = id.saturating_add(1);
    let filter = Filter { before_id: Some(before), ..Filter::default() };
    let found = audit::tail(kv, &filter, 1)?.pop().filter(|(record, _)| record.id == id);
    Ok(match found {
        Some((_, hash)) if hash == noted => None,
        Some((_, hash)) => Some(format!("record {id}: its hash is {hash}")),
        None => Some(format!("record {id}: it is not there, or was removed with the oldest ones")),
    })
}
