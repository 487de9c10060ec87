//! What a gateway offers to mount, asked over its control channel (spec: fs 18): its own namespace at `/`,
//! and over it, directly, the exports of the project's nodes that can be reached from here. A mount asks
//! again now and then.

use super::endpoint::Endpoint;
use super::report::Reporter;
use super::world::{Attached, Source, World};
use crate::base::{Cancel, Code, Deadline, Error, Notify, Result, ResultExt, TreePath};
use crate::net::{Control, Net, WsUrl};
use crate::wire::control::REPLY_TIMEOUT_MS;
use crate::wire::fs::Binding;
use crate::wire::{Fields, Object};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Mounts taken from one workspace.
const MOUNTS_MAX: usize = 1024;
/// Nodes asked at the same time whether they can be reached, and how long they have to answer.
const PROBES: usize = 16;
const PROBE_MS: u64 = 3_000;
/// The gateway is asked this often whatever was configured: what opens its nodes' files is good for an hour.
const TOKENS_MS: u64 = 900_000;
/// The gateway's export of its whole tree (design: exports of the gateway's own node).
const NAMESPACE: &str = "namespace";

/// A gateway, and in whose name it is asked.
#[derive(Clone)]
pub struct Gateway {
    pub url: WsUrl,
    pub bearer: Option<String>,
    pub agent_id: Option<String>,
    pub project_id: Option<String>,
    pub project_token: Option<String>,
}

impl Gateway {
    /// What names the project to the gateway, and for whom it is looked at.
    pub(super) fn project(&self) -> Object {
        Object::new()
            .put_some("project_id", self.project_id.as_ref())
            .put_some("project_token", self.project_token.as_ref())
            .put_some("agent_id", self.agent_id.as_ref())
    }
}

/// Everything to mount: `explicit`, the gateway's namespace where it has one, and the workspace's
/// exports. Errors: the gateway's; `not_found` when there is nothing.
pub fn hydrate(
    world: &World,
    net: &Net,
    gateway: &Gateway,
    explicit: &[Source],
) -> Result<Vec<Attached>> {
    let all = attach(world, gateway, explicit, mounts(&status(net, gateway)?)?);
    if all.is_empty() {
        let text = "NoWorkspaceMounts: the gateway offers nothing to mount; give the project a mount \
                    (spiderweb-control project_mount_set) or name one with --endpoint";
        return Err(Error::new(Code::NotFound, text));
    }
    Ok(all)
}

/// As [`hydrate`], for a mount that is there already: what is not offered any more, or not to us, goes.
/// Also says why, if that is a refusal. Errors: the gateway cannot be asked.
fn again(
    world: &World,
    net: &Net,
    gateway: &Gateway,
    explicit: &[Source],
) -> Result<(Vec<Attached>, Option<Error>)> {
    match status(net, gateway) {
        Ok(payload) => Ok((attach(world, gateway, explicit, mounts(&payload)?), None)),
        Err(e) if is_refusal(e.code) => Ok((attach(world, gateway, explicit, Vec::new()), Some(e))),
        Err(e) => Err(e),
    }
}

/// The workspace is not ours: the project was deleted, its token replaced, or its policy changed.
pub(super) fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::ProjectNotFound
            | Code::ProjectAuthFailed
            | Code::ProjectPolicyForbidden
            | Code::ProjectAssignmentForbidden
    )
}

fn attach(
    world: &World,
    gateway: &Gateway,
    explicit: &[Source],
    mounts: Vec<Endpoint>,
) -> Vec<Attached> {
    let mut all: Vec<_> = explicit.iter().map(|source| world.attach(source)).collect();
    let root_is_taken = all.iter().any(|a| a.source.endpoint.mount_path.is_root());
    let namespace = world.attach(&namespace(gateway));
    let mounted = world.attached().iter().any(|a| a.source == namespace.source);
    let mut direct: Vec<_> =
        mounts.into_iter().map(|endpoint| world.attach(&endpoint.into())).collect();
    if root_is_taken {
        all.extend(direct);
        return all;
    }
    match if mounted { Ok(()) } else { namespace.probe(Deadline::after_ms(PROBE_MS)) } {
        Ok(()) => {
            all.push(namespace);
            // The others are reached through the gateway.
            direct = reachable(direct);
        }
        Err(e) => log::info!("the gateway's namespace cannot be mounted: {e}"),
    }
    all.extend(direct);
    all
}

fn namespace(gateway: &Gateway) -> Source {
    let Gateway { url, bearer, agent_id, project_id, project_token } = gateway.clone();
    let binding = Binding { agent_id, project_id, project_token };
    Source {
        endpoint: Endpoint {
            name: NAMESPACE.into(),
            url: url.with_path("/v2/fs"),
            export: Some(NAMESPACE.into()),
            mount_path: TreePath::root(),
            token: None,
        },
        bearer,
        binding: Some(binding).filter(|b| *b != Binding::default()),
    }
}

/// The mounts with at least one export that answers, with all of their exports.
fn reachable(all: Vec<Attached>) -> Vec<Attached> {
    let deadline = Deadline::after_ms(PROBE_MS);
    let mut answering: Vec<TreePath> = Vec::new();
    for some in all.chunks(PROBES) {
        let found = std::thread::scope(|threads| {
            let probe = |a: &'_ Attached| a.probe(deadline).is_ok();
            let asked: Vec<_> = some.iter().map(|a| threads.spawn(move || probe(a))).collect();
            asked.into_iter().map(|t| t.join().unwrap_or(false)).collect::<Vec<_>>()
        });
        let paths = some.iter().map(|a| a.source.endpoint.mount_path.clone());
        answering.extend(paths.zip(found).filter_map(|(path, found)| found.then_some(path)));
    }
    all.into_iter().filter(|a| answering.contains(&a.source.endpoint.mount_path)).collect()
}

/// The payload of `control.workspace_status`.
fn status(net: &Net, gateway: &Gateway) -> Result<String> {
    let (deadline, cancel) = (Deadline::after_ms(REPLY_TIMEOUT_MS), Cancel::new());
    let url = gateway.url.clone().or_path("/");
    let bearer = gateway.bearer.clone();
    let control = Control::open(net, &url, bearer, "fs-mount", deadline, &cancel).context(&url)?;
    let project = gateway.project().finish();
    let status = control.call("workspace_status", &project, deadline, &cancel);
    let status = status.map_err(|e| match e.code {
        Code::ProjectContextRequired => Error::new(
            e.code,
            "the token of a user opens no workspace by itself; give --project-id",
        ),
        _ => e,
    });
    status.context(&url)
}

/// The exports in a workspace: all that are configured, where the gateway tells them, else those it
/// selected. Entries without an address are left out.
fn mounts(payload: &str) -> Result<Vec<Endpoint>> {
    let bad = |what: String| Error::new(Code::InvalidPayload, format!("workspace_status: {what}"));
    let fields = Fields::parse(payload).map_err(|_| bad("the payload is not an object".into()))?;
    let desired = fields.array("desired_mounts")?.filter(|all| !all.is_empty());
    let listed = match desired {
        Some(listed) => listed,
        None => fields.array("mounts")?.unwrap_or_default(),
    };
    if listed.len() > MOUNTS_MAX {
        return Err(bad(format!("more than {MOUNTS_MAX} mounts")));
    }
    let mut all = Vec::new();
    for (n, entry) in listed.into_iter().enumerate() {
        let f = Fields::of("a mount", entry).map_err(|e| bad(format!("mounts[{n}]: {e}")))?;
        let text = |name: &str| f.string(name).ok().flatten().filter(|s| !s.is_empty());
        let path =
            text("mount_path").ok_or_else(|| bad(format!("mounts[{n}].mount_path is missing")))?;
        let mount_path = TreePath::parse(&path).map_err(|e| bad(format!("mounts[{n}]: {e}")))?;
        let url = text("fs_url").filter(|url| url.contains("/v2/fs"));
        let Some(url) = url.and_then(|url| WsUrl::parse(&url).ok()) else { continue };
        all.push(Endpoint {
            name: text("node_name").or_else(|| text("node_id")).unwrap_or_else(|| "node".into()),
            url,
            export: text("export_name"),
            mount_path,
            token: text("fs_auth_token"),
        });
    }
    Ok(all)
}

/// The threads that keep a mount as the workspace is.
pub struct Following {
    cancel: Cancel,
    threads: Vec<JoinHandle<()>>,
}

/// Asks the gateway when it says that something has changed, and every `interval_ms` whatever it says, if
/// not more often, and applies what changed; open files stay. A gateway that is away changes nothing.
pub fn follow(
    world: Arc<World>,
    net: Arc<Net>,
    gateway: Gateway,
    explicit: Vec<Source>,
    interval_ms: u64,
    reporter: Arc<Reporter>,
) -> Result<Following> {
    let (cancel, changed) = (Cancel::new(), Notify::default());
    let push = {
        let (net, gateway, changed, ended) =
            (net.clone(), gateway.clone(), changed.clone(), cancel.clone());
        move || super::push::listen(&net, &gateway, &changed, &ended)
    };
    let (ended, mut seen) = (cancel.clone(), changed.seen());
    let sync = move || {
        let (mut away, mut refused) = (false, false);
        loop {
            let next = changed.wait(seen, Deadline::after_ms(interval_ms.min(TOKENS_MS)));
            if next.block(Deadline::never(), &ended).is_err() {
                return;
            }
            // What changes from here on asks again.
            seen = changed.seen();
            let found = again(&world, &net, &gateway, &explicit);
            let applied = found.and_then(|(wanted, refusal)| world.set(wanted).map(|()| refusal));
            match &applied {
                Ok(refusal) => {
                    reporter.watch(&world);
                    match refusal {
                        Some(e) if !refused => log::warn!("the workspace's mounts are gone: {e}"),
                        None if away || refused => log::info!("the workspace is known again"),
                        _ => {}
                    }
                    refused = refusal.is_some();
                }
                Err(e) if !away => log::warn!("the workspace stays as it was: {e}"),
                Err(_) => {}
            }
            away = applied.is_err();
        }
    };
    let thread = |name: &str| std::thread::Builder::new().name(name.into());
    let sync = thread("workspace-sync").spawn(sync).context("workspace thread")?;
    let mut threads = vec![sync];
    match thread("workspace-push").spawn(push) {
        Ok(push) => threads.push(push),
        Err(e) => log::warn!("changes of the workspace are asked for, not heard of: {e}"),
    }
    Ok(Following { cancel, threads })
}

/// Takes over new tokens, and nothing else that changes.
pub fn renew(world: Arc<World>, net: Arc<Net>, gateway: Gateway) -> Result<Following> {
    let cancel = Cancel::new();
    let (ended, never) = (cancel.clone(), Notify::default());
    let run = move || {
        loop {
            let next = never.wait(never.seen(), Deadline::after_ms(TOKENS_MS));
            if next.block(Deadline::never(), &ended).is_err() {
                return;
            }
            match status(&net, &gateway).and_then(|payload| mounts(&payload)) {
                // What is mounted takes over its token; what is not is forgotten again.
                Ok(all) => all.into_iter().for_each(|e| drop(world.attach(&e.into()))),
                Err(e) => log::warn!("the gateway tells no new tokens: {e}"),
            }
        }
    };
    let thread = std::thread::Builder::new().name("workspace-sync".into());
    let threads = vec![thread.spawn(run).context("workspace thread")?];
    Ok(Following { cancel, threads })
}

impl Following {
    /// Ends the threads without waiting for a gateway that does not answer.
    pub fn stop(self) {
        self.cancel.cancel();
        for thread in self.threads {
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_as_gateways_send_them() {
        let entry = r#"{"mount_path":"/nodes/local/fs","node_id":"node-1","export_name":"work",
            "node_name":"local","fs_url":"ws://127.0.0.1:1/v2/fs","fs_auth_token":"s","state":"online"}"#;
        let bare = r#"{"mount_path":"/src/","node_id":"node-2","export_name":"","node_name":null,
            "fs_url":"ws://127.0.0.1:2/v2/fs","fs_auth_token":null}"#;
        let missing = r#"{"mount_path":"/x","node_id":"node-3","fs_url":null,"state":"missing"}"#;
        let all = mounts(&format!(r#"{{"mounts":[{entry},{bare},{missing}]}}"#)).unwrap();
        let shown: Vec<_> = all
            .iter()
            .map(|e| (&*e.name, e.mount_path.to_string(), e.export.as_deref(), e.token.as_deref()))
            .collect();
        assert_eq!(
            shown,
            [
                ("local", "/nodes/local/fs".to_owned(), Some("work"), Some("s")),
                ("node-2", "/src".to_owned(), None, None)
            ]
        );
        let both = format!(r#"{{"mounts":[{entry}],"desired_mounts":[{bare},{entry}]}}"#);
        assert_eq!(mounts(&both).unwrap().len(), 2);
        assert!(mounts("{}").unwrap().is_empty());
        for bad in [
            "[]",
            r#"{"mounts":[7]}"#,
            r#"{"mounts":[{}]}"#,
            r#"{"mounts":[{"mount_path":"/../x"}]}"#,
        ] {
            let e = mounts(bad).unwrap_err();
            assert!(
                e.code == Code::InvalidPayload && e.message.contains("workspace_status"),
                "{e}"
            );
        }
    }
}
