//! What is to be mounted, as the command line and the environment say it: endpoints with their tokens, and
//! the gateway.

use crate::base::Result;
use crate::cli::{Args, token_file, usage};
use crate::mount::endpoint::{self, Endpoint};
use crate::mount::workspace::Gateway;
use crate::net::WsUrl;
use std::collections::BTreeSet;
use std::path::Path;

/// Holds the token for all endpoints that have none of their own.
const TOKEN: &str = "SPIDERWEB_FS_TOKEN";

pub fn endpoints(args: &Args) -> Result<Vec<Endpoint>> {
    let mut specs = args.all("--endpoint")?;
    if specs.is_empty() && !args.has("--workspace-url") {
        specs.push(endpoint::DEFAULT.into());
    }
    let mut all: Vec<Endpoint> = specs.iter().map(|s| s.parse()).collect::<Result<_>>()?;
    for e in &mut all {
        e.token = variable(&token_variable(&e.name)).or_else(|| variable(TOKEN));
    }
    let mut with_file = BTreeSet::new();
    for spec in args.all("--endpoint-token-file")? {
        let flag = format!("--endpoint-token-file {spec:?}");
        let parts =
            spec.split_once('=').filter(|(name, file)| !name.is_empty() && !file.is_empty());
        let (name, file) = parts.ok_or_else(|| usage(format!("{flag}: write NAME=FILE")))?;
        if !with_file.insert(name.to_owned()) {
            return Err(usage(format!("{flag}: endpoint {name:?} has one already")));
        }
        let token = token_file("--endpoint-token-file", Path::new(file))?;
        let mut named = all.iter_mut().filter(|e| e.name == name).peekable();
        if named.peek().is_none() {
            return Err(usage(format!("{flag}: there is no endpoint {name:?}")));
        }
        named.for_each(|e| e.token = Some(token.clone()));
    }
    Ok(all)
}

pub fn gateway(args: &Args) -> Result<Option<Gateway>> {
    let project_id = args.string("--project-id")?;
    let project_token = args.string("--project-token")?;
    if project_token.is_some() && project_id.is_none() {
        return Err(usage("--project-token needs --project-id"));
    }
    let Some(url) = args.parsed::<WsUrl>("--workspace-url", "a ws:// or wss:// URL")? else {
        let of_gateway = ["--project-id", "--agent-id"];
        return match of_gateway.into_iter().find(|flag| args.has(flag)) {
            Some(flag) => Err(usage(format!("{flag} needs --workspace-url"))),
            None => {
                let of_bearer = ["--auth-token", "--auth-token-file"];
                if let Some(flag) = of_bearer.into_iter().find(|flag| args.has(flag)) {
                    log::warn!(
                        "{flag} has no effect without --workspace-url; the token of a node is given \
                         with --endpoint-token-file"
                    );
                }
                Ok(None)
            }
        };
    };
    let bearer = crate::cli::bearer(args)?;
    Ok(Some(Gateway {
        url,
        bearer,
        agent_id: args.string("--agent-id")?,
        project_id,
        project_token,
    }))
}

/// The variable with the token of one endpoint: `SPIDERWEB_FS_TOKEN_NAME`.
fn token_variable(endpoint: &str) -> String {
    let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("{TOKEN}_{}", endpoint.chars().map(upper).collect::<String>())
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
}
