//! What an agent remembers of a conversation: whole turns, of which the model is shown as many of the
//! newest as fit, and told of the others.

use super::jobs::{Conversation, JobId};
use super::provider::{Assistant, Message, ToolCall};
use crate::base::Result;
use crate::store::rusqlite::{self, Connection, OptionalExtension, params};
use crate::store::{Db, Schema};
use serde_json::Value;

/// Turns kept of one conversation.
const TURNS_MAX: i64 = 1000;
/// Longest tool result, and longest single text among a call's arguments, that is remembered.
const TEXT_MAX: usize = 8 * 1024;
/// Forgotten turns of which the model is told how they began.
const TOLD_MAX: i64 = 5;
/// Longest beginning that is told.
const BEGINNING_MAX: usize = 120;

pub const SCHEMA: Schema = Schema {
    room: "history",
    migrations: &["CREATE TABLE messages (
             id INTEGER PRIMARY KEY,
             agent_id TEXT NOT NULL,
             project_id TEXT NOT NULL,
             turn INTEGER NOT NULL,
             role TEXT NOT NULL,
             body TEXT NOT NULL
         );
         CREATE INDEX messages_by_turn ON messages (agent_id, project_id, turn, id)"],
};

/// The part of a conversation that the model is shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    /// Whole turns, oldest first.
    pub turns: Vec<Vec<Message>>,
    /// What came before, in a paragraph, where anything did.
    pub before: Option<String>,
}

/// About how many tokens a text is.
pub fn tokens(text: &str) -> usize {
    text.len().div_ceil(4)
}

pub fn message_tokens(message: &Message) -> usize {
    /// What stands around each message.
    const FRAME: usize = 8;
    FRAME
        + match message {
            Message::User { text } => tokens(text),
            Message::Tool { output, .. } => tokens(output),
            Message::Assistant(said) => {
                let calls = said.tool_calls.iter().map(|c| tokens(&c.name) + tokens(&c.arguments));
                let opaque = said.opaque.iter().map(|o| tokens(&o.to_string()));
                tokens(&said.text) + calls.chain(opaque).sum::<usize>()
            }
        }
}

/// Adds a turn; nothing where `said` is empty.
pub(super) fn append(
    tx: &Connection,
    of: &Conversation,
    turn: JobId,
    said: &[Message],
) -> Result<()> {
    let (agent, project, turn) = (&of.agent_id, of.project(), turn.number());
    let mut insert = tx.prepare_cached(
        "INSERT INTO messages (agent_id, project_id, turn, role, body) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for message in said {
        let role = match message {
            Message::User { .. } => "user",
            Message::Assistant(_) => "assistant",
            Message::Tool { .. } => "tool",
        };
        let body = serde_json::to_string(&shortened(message)).expect("messages are plain data");
        insert.execute(params![agent, project, turn, role, body])?;
    }
    let oldest: Option<u64> = tx
        .prepare_cached(
            "SELECT DISTINCT turn FROM messages WHERE agent_id = ?1 AND project_id = ?2
             ORDER BY turn DESC LIMIT 1 OFFSET ?3",
        )?
        .query_row(params![agent, project, TURNS_MAX], |r| r.get(0))
        .optional()?;
    if let Some(oldest) = oldest {
        tx.prepare_cached(
            "DELETE FROM messages WHERE agent_id = ?1 AND project_id = ?2 AND turn <= ?3",
        )?
        .execute(params![agent, project, oldest])?;
    }
    Ok(())
}

/// As many of the newest turns as make up about `budget` tokens.
pub(super) fn load(db: &Db, of: &Conversation, budget: usize) -> Result<Window> {
    db.read(|c| {
        let mut q = c.prepare_cached(
            "SELECT turn, body FROM messages WHERE agent_id = ?1 AND project_id = ?2
             ORDER BY turn DESC, id DESC",
        )?;
        let mut rows = q.query(params![of.agent_id, of.project()])?;
        // Newest first, each turn backwards; a turn is shown once it was read whole.
        let mut turns: Vec<(u64, Vec<Message>)> = Vec::new();
        let (mut used, mut cut) = (0, None);
        while let Some(row) = rows.next()? {
            let turn: u64 = row.get(0)?;
            // A message that a later version wrote differently is as good as forgotten.
            let Ok(message) = serde_json::from_str(row.get_ref(1)?.as_str().unwrap_or_default())
            else {
                cut = Some(turn);
                break;
            };
            used += message_tokens(&message);
            if used > budget {
                cut = Some(turn);
                break;
            }
            match turns.last_mut() {
                Some((last, messages)) if *last == turn => messages.push(message),
                _ => turns.push((turn, vec![message])),
            }
        }
        turns.retain(|(turn, _)| cut.is_none_or(|cut| *turn > cut));
        let in_order = |(_, mut messages): (u64, Vec<Message>)| {
            messages.reverse();
            messages
        };
        Ok(Window {
            turns: turns.into_iter().rev().map(in_order).collect(),
            before: cut.map(|cut| before(c, of, cut)).transpose()?,
        })
    })
}

/// Tells of the turns up to `last`.
fn before(c: &Connection, of: &Conversation, last: u64) -> Result<String> {
    let up_to = params![of.agent_id, of.project(), last];
    let count: u64 = c
        .prepare_cached(
            "SELECT count(DISTINCT turn) FROM messages
             WHERE agent_id = ?1 AND project_id = ?2 AND turn <= ?3",
        )?
        .query_row(up_to, |r| r.get(0))?;
    let mut q = c.prepare_cached(
        "SELECT body FROM messages
         WHERE agent_id = ?1 AND project_id = ?2 AND turn <= ?3 AND role = 'user'
         ORDER BY id DESC LIMIT ?4",
    )?;
    let bodies: Vec<String> = q
        .query_map(params![of.agent_id, of.project(), last, TOLD_MAX], |r| r.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let asked = bodies.iter().rev().filter_map(|body| match serde_json::from_str(body).ok()? {
        Message::User { text } => {
            let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let end = line.floor_char_boundary(BEGINNING_MAX);
            Some(format!("\"{}{}\"", &line[..end], if end < line.len() { "…" } else { "" }))
        }
        _ => None,
    });
    let asked = asked.collect::<Vec<_>>().join("; ");
    Ok(format!(
        "This conversation began earlier: {count} turns before those shown are left out. The last of \
         them began with: {asked}."
    ))
}

/// What is worth remembering: long tool results and arguments lose their middle or end.
fn shortened(message: &Message) -> Message {
    match message {
        Message::Tool { call_id, name, output, is_error } => Message::Tool {
            call_id: call_id.clone(),
            name: name.clone(),
            output: shorten(output, TEXT_MAX),
            is_error: *is_error,
        },
        Message::Assistant(said) => Message::Assistant(Assistant {
            tool_calls: said.tool_calls.iter().map(shortened_call).collect(),
            ..said.clone()
        }),
        user => user.clone(),
    }
}

fn shortened_call(call: &ToolCall) -> ToolCall {
    let arguments = match serde_json::from_str::<Value>(&call.arguments) {
        Ok(Value::Object(mut members)) if call.arguments.len() > TEXT_MAX => {
            for value in members.values_mut() {
                if let Value::String(text) = value {
                    *text = shorten(text, TEXT_MAX);
                }
            }
            Value::Object(members).to_string()
        }
        Ok(_) => call.arguments.clone(),
        // No JSON is nothing that could be shown again.
        Err(_) => "{}".to_owned(),
    };
    ToolCall { arguments, ..call.clone() }
}

/// The text, or its head and tail with a note of what is missing between.
pub(super) fn shorten(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let head = text.floor_char_boundary(max / 2);
    let tail = text.ceil_char_boundary(text.len() - max / 2);
    format!("{}\n[… {} bytes left out …]\n{}", &text[..head], tail - head, &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::TempDir;
    use std::sync::Arc;

    fn open(dir: &TempDir) -> Arc<Db> {
        Db::open(&dir.path("db"), &[SCHEMA]).unwrap()
    }

    fn conversation(project: Option<&str>) -> Conversation {
        Conversation { agent_id: "a".into(), project_id: project.map(Into::into) }
    }

    fn turn(n: u64, reply: &str) -> Vec<Message> {
        let call = ToolCall { id: "c".into(), name: "file_list".into(), arguments: "{}".into() };
        vec![
            Message::User { text: format!("question {n}") },
            Message::Assistant(Assistant { tool_calls: vec![call], ..Assistant::default() }),
            Message::Tool {
                call_id: "c".into(),
                name: "file_list".into(),
                output: "[]".into(),
                is_error: false,
            },
            Message::Assistant(Assistant { text: reply.into(), ..Assistant::default() }),
        ]
    }

    fn remember(db: &Db, of: &Conversation, n: u64, said: Vec<Message>) {
        let of = of.clone();
        db.write(move |tx| append(tx, &of, JobId::test(n), &said)).unwrap();
    }

    #[test]
    fn whole_turns_are_shown_and_the_others_are_told_of() {
        let dir = TempDir::new();
        let db = open(&dir);
        let of = conversation(Some("p"));
        for n in 1..=20 {
            remember(&db, &of, n, turn(n, &"x".repeat(400)));
        }
        let all = load(&db, &of, 1 << 20).unwrap();
        assert_eq!((all.turns.len(), all.before), (20, None));
        assert_eq!(all.turns[0], turn(1, &"x".repeat(400)));

        let some = load(&db, &of, 500).unwrap();
        let kept = some.turns.len();
        assert!((2..5).contains(&kept));
        assert_eq!(some.turns[kept - 1], turn(20, &"x".repeat(400)));
        assert!(some.turns.iter().all(|t| t.len() == 4), "no turn is cut");
        let before = some.before.unwrap();
        assert!(before.contains(&format!("{} turns", 20 - kept)), "{before}");
        assert!(before.contains(&format!("\"question {}\".", 20 - kept)), "{before}");

        assert_eq!(load(&db, &of, 1).unwrap().turns.len(), 0);
        assert_eq!(load(&db, &conversation(None), 1 << 20).unwrap(), Window::default());
    }

    #[test]
    fn long_texts_are_shortened_and_calls_stay_json() {
        let dir = TempDir::new();
        let db = open(&dir);
        let of = conversation(None);
        let long = "ü".repeat(20_000);
        let call =
            |arguments: String| ToolCall { id: "c".into(), name: "file_write".into(), arguments };
        let calls = vec![
            call(serde_json::json!({"path": "/x", "content": long}).to_string()),
            call("{\"pa".into()),
        ];
        let said = vec![
            Message::Assistant(Assistant { tool_calls: calls, ..Assistant::default() }),
            Message::Tool { call_id: "c".into(), name: "n".into(), output: long, is_error: true },
        ];
        remember(&db, &of, 1, said);
        let window = load(&db, &of, 1 << 20).unwrap();
        let [Message::Assistant(said), Message::Tool { output, .. }] = &window.turns[0][..] else {
            panic!("{window:?}");
        };
        let arguments: Value = serde_json::from_str(&said.tool_calls[0].arguments).unwrap();
        assert_eq!(arguments["path"], "/x");
        assert!(arguments["content"].as_str().unwrap().contains("bytes left out"));
        assert_eq!(said.tool_calls[1].arguments, "{}");
        assert!(output.len() < TEXT_MAX + 100 && output.contains("bytes left out"));
    }
}
