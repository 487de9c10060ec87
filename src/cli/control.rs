//! `spiderweb-control`: one control operation from the shell (spec: control 1.1).

use super::{Args, Flag, Program, usage};
use crate::base::{Cancel, Deadline, Result, ResultExt, Timer};
use crate::net::{Control, Net, WsUrl};
use crate::wire::control;
use serde_json::Value;
use std::io::Read;

pub const PROGRAM: Program = Program {
    name: "spiderweb-control",
    section: 1,
    about: "one control operation of a spiderweb gateway",
    usage: &["[options] <operation> [payload]", "[options] <operation> -"],
    commands: &[],
    flags: &[
        Flag::value("--url", "ws-url", "Gateway [ws://127.0.0.1:18790/]"),
        Flag::value("--auth-token", "token", "Bearer token; better in SPIDERWEB_AUTH_TOKEN"),
        Flag::value("--auth-token-file", "file", "File that holds the token, or auth_tokens.json"),
        Flag::value(
            "--operator-token",
            "token",
            "Second factor of mutations, put into the payload",
        ),
        Flag::value("--timeout-ms", "n", "Time to wait for the gateway [45000]"),
        Flag::switch("--pretty", "Print the reply indented"),
    ],
    examples: &[
        "spiderweb-control workspace_status",
        r#"spiderweb-control project_up '{"name":"Demo","vision":"Try it","agent_id":"alice"}'"#,
        "spiderweb-control --auth-token-file ~/.spiderweb-ltm/auth_tokens.json node_list",
    ],
};

/// Largest payload read from standard input.
const PAYLOAD_MAX: u64 = 4 << 20;

/// Operations that take `operator_token` (spec: control 5.4).
fn takes_operator_token(operation: &str) -> bool {
    crate::control::find(operation).is_some_and(|op| op.scope != crate::control::Scope::None)
}

pub fn run(args: Args) -> Result<()> {
    args.at_most(2)?;
    let operation = args.word(0, "<operation>")?;
    let operation = operation.strip_prefix("control.").unwrap_or(&operation).to_owned();
    let payload = payload(&args, &operation)?;
    let url = args.string("--url")?.unwrap_or_else(|| "ws://127.0.0.1:18790/".into());
    let url: WsUrl = url.parse().context("--url")?;
    let deadline = Deadline::after_ms(
        args.parsed("--timeout-ms", "a number")?.unwrap_or(control::REPLY_TIMEOUT_MS),
    );

    let net = Net::start(1, Timer::start()?)?;
    let (bearer, cancel) = (super::bearer(&args)?, Cancel::new());
    let control = Control::open(&net, &url, bearer, "control-cli", deadline, &cancel)?;
    let reply = control.ask(&operation, &payload, deadline, &cancel)?;
    let outcome = control::read_reply(&operation, &reply);
    let shown = if args.has("--pretty") { indented(&reply) } else { reply.to_string() };
    match outcome {
        Ok(_) => super::print(&format!("{shown}\n"))?,
        // The whole envelope goes to standard error, as scripts expect; the exit status says the rest.
        Err(e) => {
            eprintln!("{shown}");
            return Err(e);
        }
    }
    net.stop(Deadline::after_ms(1000));
    Ok(())
}

fn payload(args: &Args, operation: &str) -> Result<String> {
    let text = match args.words.get(1) {
        None => "{}".to_owned(),
        Some(word) if word == "-" => {
            let mut text = String::new();
            std::io::stdin()
                .take(PAYLOAD_MAX)
                .read_to_string(&mut text)
                .context("standard input")?;
            text
        }
        Some(_) => args.word(1, "<payload>")?,
    };
    let mut value: Value =
        serde_json::from_str(&text).map_err(|e| usage(format!("the payload is not JSON: {e}")))?;
    if let Some(token) = args.string("--operator-token")?
        && takes_operator_token(operation)
        && let Some(object) = value.as_object_mut()
        && !object.contains_key("operator_token")
    {
        object.insert("operator_token".into(), token.into());
    }
    Ok(value.to_string())
}

fn indented(json: &str) -> String {
    let value: Option<Value> = serde_json::from_str(json).ok();
    value.and_then(|v| serde_json::to_string_pretty(&v).ok()).unwrap_or_else(|| json.to_owned())
}
