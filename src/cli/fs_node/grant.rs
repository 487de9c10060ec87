//! `spiderweb-fs-node --grant`: makes a token that opens some exports of a node for a time.

use super::super::{Args, duration_ms, print, usage};
use super::client_token;
use crate::base::{Result, id, now_ms};
use crate::config::Env;
use crate::node;
use crate::wire::fs::{Access, Grant, Rights};
use std::path::Path;

/// How long a grant is good, unless it is said.
const TTL: &str = "30d";

/// Flags that mean something with `--grant` only.
const FLAGS: [&str; 2] = ["--grant-ttl", "--grant-sub"];

/// Prints a grant if one is asked for; false if not. Errors: `usage`; `invalid_config` for a state file.
pub(super) fn run(args: &Args, env: &Env) -> Result<bool> {
    let Some(spec) = args.string("--grant")? else {
        let alone = FLAGS.iter().find(|flag| args.has(flag));
        return alone.map_or(Ok(false), |flag| Err(usage(format!("{flag} needs --grant"))));
    };
    let exports = rights(&spec)?;
    let ttl = args.string("--grant-ttl")?;
    let ttl_ms = duration_ms("--grant-ttl", ttl.as_deref().unwrap_or(TTL))?;
    if ttl_ms == 0 {
        return Err(usage("--grant-ttl must be more than 0"));
    }
    let expires_at_s = u64::try_from(now_ms().saturating_add(ttl_ms) / 1000).unwrap_or_default();
    let sub = args.string("--grant-sub")?.unwrap_or_default();
    if !sub.is_empty() && !id::is_identifier(&sub, 128) {
        return Err(usage(format!("--grant-sub {sub:?}: 1 to 128 of A-Z a-z 0-9 . _ -")));
    }
    let grant = Grant { exports, sub, expires_at_s };
    let token = grant.mint(&secret(args, env)?).map_err(|e| e.context("--grant"))?;
    print(&format!("{token}\n"))?;
    Ok(true)
}

fn rights(spec: &str) -> Result<Rights> {
    let bad = |what: &str| {
        usage(format!("--grant {spec:?}: {what}; write EXPORT[:ro|:rw], several with commas"))
    };
    let mut rights = Rights::new();
    for one in spec.split(',') {
        let (name, access) = match one.rsplit_once(':') {
            Some((name, "ro")) => (name, Access::ReadOnly),
            Some((name, "rw")) => (name, Access::ReadWrite),
            Some(_) => return Err(bad("after : comes ro or rw")),
            None => (one, Access::ReadWrite),
        };
        if !id::is_identifier(name, 128) {
            return Err(bad(&format!("{name:?} is no name of an export")));
        }
        if rights.insert(name.to_owned(), access).is_some() {
            return Err(bad(&format!("{name:?} is given twice")));
        }
    }
    Ok(rights)
}

/// That of a node that listens, or the one that a member was given.
fn secret(args: &Args, env: &Env) -> Result<String> {
    let token = client_token(args, env)?;
    let file = args.os("--state-file").map(Path::new);
    let joined = file.map(node::secret_in).transpose()?.flatten();
    match (token, joined) {
        (Some(_), Some(_)) => Err(usage(
            "--grant: both a token of clients and a state file with a secret are given; only one \
             can be the node's",
        )),
        (Some(secret), None) | (None, Some(secret)) => Ok(secret),
        (None, None) => Err(usage(
            "--grant needs the node's secret: --auth-token-file or SPIDERWEB_FS_NODE_AUTH_TOKEN of a \
             node that listens, or --state-file of one that has joined",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_read_as_documented() {
        let both = [("work".into(), Access::ReadWrite), ("docs".into(), Access::ReadOnly)].into();
        assert_eq!(rights("work,docs:ro").unwrap(), both);
        assert_eq!(rights("docs:ro,work:rw").unwrap(), both);
        for bad in ["", ",", "a,", "a:x", ":ro", "a b", "a,a:ro", "a:ro:ro"] {
            let e = rights(bad).unwrap_err();
            assert!(e.message.contains("--grant"), "{e}");
        }
    }
}
