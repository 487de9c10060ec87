//! A mount over the base protocol: the hello offers no extensions, so the node answers as an old one
//! does, in JSON. Otherwise it is put together as the mount program's.

use spiderweb::base::{Deadline, Result, Signals, Timer};
use spiderweb::mount::options::{Options, View};
use spiderweb::mount::{fuse, point};
use spiderweb::net::{Closed, DialOptions, Inbound, Message, Mux, Net, WsUrl};
use spiderweb::vfs::remote::{Connector, Hooks, Link, Peer, Remote, say_hello};
use spiderweb::vfs::{CacheOptions, Cached, Member, MountPoint, NodeId, Union, Workers};
use spiderweb::wire::Envelope;
use spiderweb::wire::fs::{Event, Hello, text_tag};
use std::path::Path;
use std::sync::Arc;

const INFLIGHT_MAX: usize = 256;
const TIMEOUT_MS: u64 = 15_000;
const GRACE_MS: u64 = 10_000;

struct OldClient {
    net: Arc<Net>,
    url: WsUrl,
}

impl Connector for OldClient {
    fn connect(&self, deadline: Deadline, hooks: Hooks) -> Result<Link> {
        let (options, inbound) = (DialOptions::default(), Box::new(Frames(hooks)));
        let mux = Mux::dial(&self.net, &self.url, &options, deadline, INFLIGHT_MAX, inbound)?;
        say_hello(mux, Hello::default(), deadline)
    }

    fn target(&self) -> String {
        self.url.to_string()
    }
}

struct Frames(Hooks);

impl Inbound for Frames {
    fn tag(&mut self, message: &Message) -> Option<u32> {
        match message {
            Message::Text(text) => text_tag(text),
            Message::Binary(_) => None,
        }
    }

    fn event(&mut self, message: Message) {
        if let Message::Text(text) = message
            && let Ok(envelope) = Envelope::parse(&text)
            && let Some(event) = Event::decode(&envelope)
        {
            (self.0.event)(event);
        }
    }

    fn lost(&mut self, why: &Closed) {
        (self.0.lost)(&why.error());
    }
}

pub fn mount(url: &str, at: &Path) -> Result<()> {
    let timer = Timer::start()?;
    let net = Net::start(0, timer.clone())?;
    let peer = Peer::restless(Arc::new(OldClient { net: net.clone(), url: url.parse()? }));
    let cache = CacheOptions { timeout_ms: TIMEOUT_MS, ..CacheOptions::default() };
    let workers = Workers::start(cache, timer.clone())?;
    let tree = Cached::new(Remote::new(peer, None), workers.clone());
    let member = Member { name: "old".into(), tree, root: NodeId::ROOT };
    let whole = MountPoint { path: "/".parse()?, members: vec![member] };
    let union = Arc::new(Union::for_mount()?);
    union.set(vec![whole], Vec::new())?;
    let options = Options {
        source: url.into(),
        allow_other: false,
        default_permissions: false,
        read_only: false,
        no_exec: false,
        copy_across: false,
        timeout_ms: TIMEOUT_MS,
        view: View::default(),
        cache_bytes: None,
        cache_dir: None,
    };
    let point = point::prepare(at)?;
    let signals = Signals::install()?;
    let mounted = fuse::mount(union, None, &point.path, &options, signals.stopper())?;
    signals.wait();
    mounted.unmount(Deadline::after_ms(GRACE_MS));
    workers.stop();
    net.stop(Deadline::after_ms(0));
    timer.stop();
    Ok(())
}
