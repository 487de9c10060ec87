//! What is to be mounted, as the command line and the environment say it: endpoints with their tokens, and
//! the gateway.

use crate::base::{Result, ResultExt};
use crate::cli::{Args, usage};
use crate::mount::endpoint::{self, Endpoint};
use crate::mount::workspace::Gateway;
use crate::net::WsUrl;

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
    for spec in args.all("--endpoint-token-file")? {
        let flag = format!("--endpoint-token-file {spec:?}");
        let (name, file) =
            spec.split_once('=').ok_or_else(|| usage(format!("{flag}: write NAME=FILE")))?;
        let token = std::fs::read_to_string(file).context(&flag)?;
        let token = Some(token.trim().to_owned()).filter(|t| !t.is_empty());
        let token = token.ok_or_else(|| usage(format!("{flag}: the file is empty")))?;
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
            None => Ok(None),
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
