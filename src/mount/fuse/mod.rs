//! A tree as a mounted filesystem: the FUSE session with its threads, from mounting to the last answer.
//! It knows no endpoints and no gateway.
//!
//! Session threads, [`THREADS`] of them, call the tree directly, so that a quick call costs no change of
//! threads; where many are slow, others take over ([`threads`]). What waits for long (a stream with
//! nothing to read, a lock) leaves its thread at once.

mod adapter;
mod content;
mod convert;
mod dirs;
mod executing;
mod invalidate;
mod listing;
mod locks;
mod ops;
mod threads;
mod waiting;

use crate::base::{Cancel, Code, Deadline, Error, Notify, Result, ResultExt, Timer};
use crate::mount::copy::Across;
use crate::mount::options::Options;
use crate::vfs::{Caller, Tree, Watch, Who};
use executing::Executing;
use invalidate::Changes;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use threads::Threads;
use waiting::Waiting;

/// Threads that take in requests.
const THREADS: usize = 16;
/// An unmounted filesystem that goes on for this long is in use by somebody.
const IDLE_MS: u64 = 500;
/// How often its end is looked for.
const STEP_MS: u64 = 10;

/// A filesystem that is mounted.
pub struct Mounted {
    point: PathBuf,
    waiting: Arc<Waiting>,
    threads: Arc<Threads>,
    cancel: Cancel,
    timer: Timer,
    running: Arc<AtomicUsize>,
    changes: Changes,
    notifiers: Vec<JoinHandle<()>>,
    ended: Notify,
    watch: Option<Watch>,
    session: JoinHandle<()>,
}

/// Mounts `tree` on a directory (see [`super::point`]) and serves it. `ended` is called when it is
/// unmounted, by whomever. `across`: what renames where the tree cannot.
pub fn mount(
    tree: Arc<dyn Tree>,
    across: Option<Across>,
    point: &Path,
    options: &Options,
    ended: impl FnOnce() + Send + 'static,
) -> Result<Mounted> {
    use fuser::MountOption as O;
    let mut config = fuser::Config::default();
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    config.mount_options = vec![
        // Commas separate options, and fusermount3 knows no way around that.
        O::FSName(options.source.replace(',', ";")),
        O::CUSTOM("subtype=spiderweb".into()),
        O::NoDev,
        O::NoSuid,
        O::NoAtime,
    ];
    if options.read_only {
        config.mount_options.push(O::RO);
    }
    if options.no_exec {
        config.mount_options.push(O::NoExec);
    }
    if options.allow_other {
        config.acl = fuser::SessionACL::All;
    }
    if options.allow_other || options.default_permissions {
        config.mount_options.push(O::DefaultPermissions);
    }
    let (timer, cancel, changes) = (Timer::start()?, Cancel::new(), Changes::default());
    let waiting = Waiting::start(timer.clone())?;
    let running = Arc::new(AtomicUsize::new(0));
    let (sink, caller) = (changes.clone(), Caller::unique());
    // What the kernel itself asked for it knows.
    let watch = tree.watch(Arc::new(move |event| {
        if !caller.is_here() {
            sink.add(event);
        }
    }));
    let adapter = adapter::Adapter {
        tree,
        across,
        who: Arc::new(Who { principal: "mount".into(), ..Who::default() }),
        timeout_ms: options.timeout_ms,
        view: options.view,
        cancel: cancel.clone(),
        waiting: waiting.clone(),
        dirs: dirs::OpenDirs::default(),
        running: running.clone(),
        caller,
        changes: changes.clone(),
        contents: adapter::Contents::default(),
        locks: Arc::default(),
        executing: Executing::default(),
    };
    let threads = Arc::new(Threads::default());
    let front = adapter::Front { adapter: Arc::new(adapter), threads: threads.clone() };
    let session = fuser::Session::new(front, point, &config)
        .and_then(fuser::Session::spawn)
        .map_err(|e| explain(point, &e))?;
    let notifiers = changes.tell(session.notifier())?;
    let gone = Notify::default();
    let tell = gone.clone();
    let join = move || {
        if let Err(e) = session.join() {
            log::error!("the FUSE session failed: {e}");
        }
        tell.notify();
        ended();
    };
    let session = std::thread::Builder::new().name("fuse-end".into()).spawn(join);
    Ok(Mounted {
        point: point.to_owned(),
        waiting,
        threads,
        cancel,
        timer,
        running,
        changes,
        notifiers,
        ended: gone,
        watch: watch.ok(),
        session: session.context("FUSE thread")?,
    })
}

/// What a failed mount means and what to do.
fn explain(point: &Path, e: &std::io::Error) -> Error {
    let text = e.to_string();
    let at = point.display();
    let (code, what) = if e.raw_os_error() == Some(libc::ENOENT) || text.contains("No such file") {
        (Code::Config, "fusermount3 is missing; install the package fuse3".to_owned())
    } else if text.contains("user_allow_other") {
        let what = "--allow-other needs the line user_allow_other in /etc/fuse.conf";
        (Code::Config, what.to_owned())
    } else if text.contains("Permission denied") {
        let what = format!("{text}; may this user read and write /dev/fuse?");
        (Code::Eperm, what)
    } else {
        (Code::Eio, text)
    };
    Error::new(code, format!("cannot mount on {at}: {}", what.trim_end()))
}

impl Mounted {
    /// Asks for the root as any process would. Errors: the tree's.
    pub fn check(&self) -> Result<()> {
        use std::os::unix::fs::MetadataExt;
        let root = std::fs::metadata(&self.point).context(self.point.display())?;
        // Large reads ahead are worth more over a network than the kernel thinks; only root may say so.
        let (major, minor) = (nix::sys::stat::major(root.dev()), nix::sys::stat::minor(root.dev()));
        let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        let _ = std::fs::write(setting, (adapter::TRANSFER_MAX / 1024).to_string());
        Ok(())
    }

    /// Takes the mount point away, lets running operations end until `grace`, and joins the threads.
    /// Files that others still have open lose their filesystem.
    pub fn unmount(mut self, grace: Deadline) {
        if !self.session.is_finished() {
            super::point::detach(&self.point);
        }
        self.waiting.stop();
        // Unused, it ends by itself now; otherwise as soon as nothing is going on in it.
        let unused = Deadline::after_ms(IDLE_MS);
        while !self.session.is_finished() && !grace.passed() {
            if unused.passed() && self.running.load(Ordering::Acquire) == 0 {
                log::warn!("{} is still in use by others", self.point.display());
                break;
            }
            let seen = self.ended.seen();
            let step = self.ended.wait(seen, Deadline::after_ms(STEP_MS));
            let _ = step.block(grace, &Cancel::new());
        }
        self.cancel.cancel();
        drop(self.watch.take());
        self.changes.stop();
        self.timer.stop();
        if self.session.is_finished() {
            self.threads.stop();
            self.notifiers.into_iter().for_each(|thread| drop(thread.join()));
            let _ = self.session.join();
        }
    }
}
