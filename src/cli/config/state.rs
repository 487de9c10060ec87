//! `spiderweb-config backup`, `restore` and `state`: the gateway's state at rest.

use crate::base::{Code, Error, Result, ResultExt};
use crate::cli::{Args, Command, usage};
use crate::config::state_key::{self, NEW_KEY_VARIABLE, state_key};
use crate::config::tokens::Tokens;
use crate::config::{Config, Env};
use crate::gateway::schemas;
use crate::store::backup::{self, File, Restore};
use crate::store::{KEY_VARIABLE, atomic, reseal};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

pub const BACKUP: Command = Command {
    name: "backup",
    args: "<file> [--force]",
    help: "Write the gateway's state to a file, also while it runs",
};
pub const RESTORE: Command = Command {
    name: "restore",
    args: "<file>",
    help: "Put a backup in the place of the state; the gateway must not run",
};
pub const RESEAL: Command =
    Command { name: "state reseal", args: "", help: "Seal the state with a new key" };
pub const UNSEAL: Command =
    Command { name: "state unseal", args: "", help: "Store the state in clear from now on" };

/// Largest token file that is taken along.
const TOKENS_MAX: usize = 1 << 20;
/// What the token file is called within a backup.
const TOKENS: &str = "auth_tokens.json";

pub fn run(args: &Args, config: &Config, env: &Env) -> Result<()> {
    match args.word(0, "<command>")?.as_str() {
        "backup" => backup(args, config),
        "restore" => restore(args, config, env),
        _ => state(args, config, env),
    }
}

fn backup(args: &Args, config: &Config) -> Result<()> {
    let to = file(args)?;
    let tokens = match atomic::read(&config.tokens()?, TOKENS_MAX) {
        Err(e) if e.errno() == libc::ENOENT => None,
        content => Some(content?),
    };
    let files: Vec<File> = tokens.map(|content| (TOKENS.to_owned(), content)).into_iter().collect();
    backup::write(&config.database()?, &schemas(), &files, to, args.has("--force"))?;
    eprintln!("wrote a backup of {} to {}", config.database()?.display(), to.display());
    Ok(())
}

fn restore(args: &Args, config: &Config, env: &Env) -> Result<()> {
    let (from, database, tokens) = (file(args)?, config.database()?, config.tokens()?);
    let key = state_key(env)?;
    let restore = Restore::prepare(from, &database, &schemas(), key.as_ref())?;
    let mut files = Vec::new();
    for (name, content) in &restore.files {
        if name != TOKENS {
            let message = format!("{} holds {name:?}, which is unknown here", from.display());
            return Err(Error::new(Code::StorageError, message));
        }
        Tokens::parse(content)
            .map_err(|e| Error::new(Code::StorageError, e))
            .context(format!("{}: {TOKENS}", from.display()))?;
        files.push((tokens.clone(), content.clone()));
    }
    let made = restore.made_at_ms.and_then(|ms| u64::try_from(ms).ok());
    let made = made.map_or_else(String::new, |ms| {
        let at = UNIX_EPOCH + Duration::from_millis(ms);
        format!(" of {}", humantime::format_rfc3339_seconds(at))
    });
    let without = if files.is_empty() { "; the access tokens stay as they are" } else { "" };
    let had_state = database.exists();
    restore.commit(&files)?;
    eprintln!(
        "restored the state{made} from {} to {}{without}",
        from.display(),
        database.display()
    );
    if had_state {
        eprintln!("what was there is kept at {}.prev", database.display());
    }
    Ok(())
}

fn state(args: &Args, config: &Config, env: &Env) -> Result<()> {
    args.at_most(2)?;
    let key = || {
        let missing = || Error::new(Code::Config, format!("{KEY_VARIABLE} must hold the key"));
        state_key(env)?.ok_or_else(missing)
    };
    let database = config.database()?;
    match args.word(1, "<subcommand>")?.as_str() {
        "unseal" => {
            reseal(&database, &schemas(), Some(&key()?), None)?;
            eprintln!(
                "{} is in clear; start the gateway without {KEY_VARIABLE}, or it is sealed again",
                database.display()
            );
        }
        "reseal" => {
            let missing =
                || Error::new(Code::Config, format!("{NEW_KEY_VARIABLE} must hold the new key"));
            let new = state_key::key(env, NEW_KEY_VARIABLE)?.ok_or_else(missing)?;
            reseal(&database, &schemas(), Some(&key()?), Some(&new))?;
            eprintln!(
                "{} is sealed with the new key; start the gateway with it as {KEY_VARIABLE}",
                database.display()
            );
        }
        other => {
            let message = format!("unknown subcommand {other:?}; there are: reseal, unseal");
            return Err(usage(message));
        }
    }
    Ok(())
}

fn file(args: &Args) -> Result<&Path> {
    args.at_most(2)?;
    args.words.get(1).map(Path::new).ok_or_else(|| usage("<file> is missing"))
}
