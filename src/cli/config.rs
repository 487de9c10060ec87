//! `spiderweb-config`: the config file, the access tokens and the state from the shell (spec: runtime 2.2).

mod audit;
mod auth;
mod state;

use super::{Args, Command, Flag, Program, usage};
use crate::base::{Result, ResultExt, log::parse_level};
use crate::config::{self, Env, KEYS, edit};
use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

pub const PROGRAM: Program = Program {
    name: "spiderweb-config",
    section: 1,
    about: "show and change the config file and the access tokens of the gateway, and keep its state safe",
    usage: &[
        "[options] config [<subcommand>]",
        "[options] auth <subcommand>",
        "[options] backup|restore <file>",
        "[options] state <subcommand>",
        "[options] audit <subcommand>",
    ],
    commands: &[
        Command { name: "config", args: "", help: "Show what is configured" },
        Command { name: "config path", args: "", help: "Print where the config file is" },
        Command {
            name: "config set-provider",
            args: "<name> [<model>]",
            help: "Choose who answers, and with which model",
        },
        Command {
            name: "config set-server",
            args: "[--bind <ip>] [--port <n>]",
            help: "Choose where the gateway listens",
        },
        Command { name: "config set-log", args: "<level>", help: "Choose what is logged" },
        Command { name: "auth list", args: "", help: "Show the named tokens" },
        Command {
            name: "auth add",
            args: "<name> [--role <role>] [--expires-in <time>]",
            help: "Make a token, and print it once",
        },
        Command { name: "auth revoke", args: "<name>", help: "End a token and its connections" },
        Command {
            name: "auth rotate",
            args: "admin|user [--revoke]",
            help: "Replace the token that a role shares, and print the new one",
        },
        Command { name: "auth status", args: "[--reveal]", help: "Show the shared tokens" },
        Command { name: "auth path", args: "", help: "Print where the tokens are" },
        Command {
            name: "auth reset",
            args: "--yes",
            help: "Make all tokens worthless, and new ones",
        },
        state::BACKUP,
        state::RESTORE,
        state::RESEAL,
        state::UNSEAL,
        audit::TAIL,
        audit::VERIFY,
    ],
    flags: &[
        Flag::value("--config", "file", "Use this config file"),
        Flag::value("--bind", "ip", "With set-server: the address to listen on"),
        Flag::value("--port", "n", "With set-server: the port to listen on"),
        Flag::value("--role", "role", "With auth add: admin or user (user)"),
        Flag::value(
            "--expires-in",
            "time",
            "With auth add: how long it lasts, as in 30d (for ever)",
        ),
        Flag::switch("--revoke", "With auth rotate: end the connections of the old token"),
        Flag::switch("--reveal", "With auth status: show the tokens themselves"),
        Flag::switch("--yes", "With auth reset: do it"),
        Flag::switch("--force", "With backup: replace a file that is there"),
        Flag::value("--expect", "id:hash", "With audit verify: a record that was noted earlier"),
        Flag::switch("--json", "Print what is shown as JSON"),
    ],
    examples: &[
        "spiderweb-config config",
        "spiderweb-config config set-provider openai gpt-4.1-mini",
        "spiderweb-config config set-server --port 18791",
        "spiderweb-config auth add alice --expires-in 30d",
        "spiderweb-config backup spiderweb-backup.db",
    ],
};

pub fn run(args: Args) -> Result<()> {
    let env = Env::process();
    let path = config::location(args.os("--config").map(Path::new), &env);
    if args.words.is_empty() {
        super::print(&super::help(&PROGRAM))?;
        return Ok(());
    }
    match args.words[0].to_str() {
        Some("config") => {}
        Some("auth") => {
            let loaded = config::load(&path, &env, &[]).context("config")?;
            return auth::run(&args, &loaded.config.tokens()?);
        }
        Some("backup" | "restore" | "state") => {
            let loaded = config::load(&path, &env, &[]).context("config")?;
            return state::run(&args, &loaded.config, &env);
        }
        Some("audit") => {
            let loaded = config::load(&path, &env, &[]).context("config")?;
            return audit::run(&args, &loaded.config, &env);
        }
        _ => {
            let known = "config, auth, backup, restore, state, audit";
            return Err(usage(format!("unknown command {:?}; there are: {known}", args.words[0])));
        }
    }
    let sub = match args.words.get(1) {
        None => return show(&args, &path, &env),
        Some(_) => args.word(1, "<subcommand>")?,
    };
    match sub.as_str() {
        "path" => {
            args.at_most(2)?;
            super::print(&format!("{}\n", path.display()))?;
            Ok(())
        }
        "set-provider" => {
            args.at_most(4)?;
            let name = args.word(2, "<name>")?;
            let model = args.words.get(3).map(|_| args.word(3, "<model>")).transpose()?;
            crate::runtime::provider::check(&name)?;
            edit::set_provider(&path, &name, model.as_deref())?;
            saved(&path)
        }
        "set-server" => {
            args.at_most(2)?;
            let bind: Option<IpAddr> = args.parsed("--bind", "an IP address")?;
            let port: Option<u16> = args.parsed("--port", "a port number")?;
            if bind.is_none() && port.is_none() {
                return Err(usage("set-server needs --bind or --port"));
            }
            edit::set_server(&path, bind, port)?;
            saved(&path)
        }
        "set-log" => {
            args.at_most(3)?;
            let level = parse_level(&args.word(2, "<level>")?)?;
            edit::set_log(&path, level)?;
            saved(&path)
        }
        other => Err(usage(format!(
            "unknown subcommand {other:?}; there are: path, set-provider, set-server, set-log"
        ))),
    }
}

fn saved(path: &Path) -> Result<()> {
    eprintln!("saved {}; restart the gateway to apply it", path.display());
    Ok(())
}

fn show(args: &Args, path: &Path, env: &Env) -> Result<()> {
    let loaded = config::load(path, env, &[]).context("config")?;
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    let c = &loaded.config;
    if args.has("--json") {
        let values = KEYS.iter().map(|key| {
            let origin = loaded.origins.get(key.path).map(ToString::to_string);
            let value = serde_json::json!({"value": (key.get)(c), "origin": origin});
            (key.path.to_owned(), value)
        });
        let all: serde_json::Map<_, _> = values.collect();
        let text = serde_json::to_string_pretty(&all).unwrap_or_default();
        super::print(&format!("{text}\n"))?;
        return Ok(());
    }
    let mut text = String::new();
    let model = c.provider.model.as_deref().unwrap_or("(default)");
    let file = if loaded.file_exists { "" } else { " (not there yet; defaults)" };
    let _ = writeln!(text, "Config: {}{file}", path.display());
    let _ = writeln!(text, "Bind: {}:{}", c.server.bind, c.server.port);
    let _ = writeln!(text, "Provider: {}/{model}", c.provider.name);
    let _ = writeln!(text, "Default Agent: {}", c.runtime.default_agent_id);
    let _ = writeln!(text, "State: {}", c.database()?.display());
    let _ = writeln!(text, "Log: {}", c.log.level.as_str().to_ascii_lowercase());
    super::print(&text)?;
    Ok(())
}
