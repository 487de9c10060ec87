//! spiderweb-fs-mount as its users meet it: the built program against nodes that run here, from a shell
//! and as a real FUSE mount. Every command that touches a mount runs under `timeout`.

mod across;
mod compress;
mod copy;
mod disk;
mod faults;
mod fuse;
mod hostile;
mod push;
mod running;
mod tls;
mod tools;
mod verbs;
mod workspace;

use crate::conformance::Scratch;
use crate::program::Program;
use spiderweb::base::{Deadline, Pool, Timer};
use spiderweb::net::{Listener, Net};
use spiderweb::node::{Export, Exports, FsService, Server, TokenDoor};
use spiderweb::vfs::{Local, LocalOptions, Tree};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const TOKEN: &str = "node-secret";

/// A node that asks for [`TOKEN`].
pub struct Node {
    listener: Listener,
    net: Arc<Net>,
    timer: Timer,
}

impl Node {
    pub fn start(dir: &Path, ro: bool) -> Node {
        let tree = Arc::new(Local::open(dir, LocalOptions::default()).unwrap());
        Node::serve(tree, ro, "127.0.0.1:0".parse().unwrap())
    }

    pub fn serve(tree: Arc<dyn Tree>, ro: bool, at: SocketAddr) -> Node {
        let timer = Timer::start().unwrap();
        let net = Net::start(1, timer.clone()).unwrap();
        let export = Export {
            name: "work".into(),
            tree,
            ro,
            desc: String::new(),
            source_kind: "linux".into(),
            source_id: "linux:work".into(),
        };
        let exports = Arc::new(Exports::new(vec![export]).unwrap());
        let door = TokenDoor { name: "node".into(), exports, token: Some(TOKEN.into()) };
        let pool = Pool::start("files", 4, 256).unwrap();
        let server = Arc::new(Server::new(pool, timer.clone()));
        let service = Arc::new(FsService { server, door: Arc::new(door) });
        let listener = net.listen(at, service).unwrap();
        Node { listener, net, timer }
    }

    pub fn url(&self) -> String {
        format!("ws://{}/v2/fs", self.listener.addr())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.net.stop(Deadline::after_ms(1000));
        self.timer.stop();
    }
}

/// A directory, exported by the built program for as long as this lives.
pub struct Exported {
    dir: Scratch,
    pub port: u16,
    pub program: Program,
}

impl Exported {
    pub fn start() -> Exported {
        let dir = Scratch::new();
        // Not one that the host gives to connections: it must be free when the node is started anew.
        let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
        let first = 10_000 + (spiderweb::base::id::random_u53() % 20_000) as u16;
        let port = (first..).find(free).expect("a free port");
        let (program, port) = Exported::serve(dir.path(), port);
        Exported { dir, port, program }
    }

    fn serve(dir: &Path, port: u16) -> (Program, u16) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spiderweb-fs-node"));
        let export = format!("work={}", dir.display());
        command.args(["--export", &export, "--port", &port.to_string()]);
        command.args(["--auth-token", TOKEN]).env_clear();
        let mut program = Program::start(command);
        let at = program.wait_for("listening at ws://127.0.0.1:");
        let digits = at.split('/').next().unwrap_or_default();
        (program, digits.parse().unwrap())
    }

    /// After its end, on the same port.
    pub fn start_again(&mut self) {
        self.program = Exported::serve(self.dir.path(), self.port).0;
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{}/v2/fs", self.port)
    }

    /// Mounts the export, with further arguments.
    pub fn mount(&self, args: &[&str]) -> Option<Mount> {
        let endpoint = format!("a={}@/", self.url());
        Mount::start(&[&["--endpoint", &endpoint], args].concat())
    }
}

/// The program, with a clean environment and the nodes' token.
pub fn program(args: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60", env!("CARGO_BIN_EXE_spiderweb-fs-mount")]).args(args);
    command.env_remove("SPIDERWEB_AUTH_TOKEN").env("SPIDERWEB_FS_TOKEN", TOKEN);
    command.stdin(Stdio::null());
    command
}

pub fn run(args: &[&str]) -> Output {
    program(args).output().unwrap()
}

/// What a command that must succeed prints.
#[track_caller]
pub fn ok(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// The exit status and messages of a command that must fail.
#[track_caller]
pub fn failed(output: Output) -> (i32, String) {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "succeeded: {}", String::from_utf8_lossy(&output.stdout));
    (output.status.code().unwrap_or(-1), errors)
}

/// Waits for a condition.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < end, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A mounted filesystem, run by the program; unmounted with the value.
pub struct Mount {
    pub at: PathBuf,
    pub child: Child,
    log: PathBuf,
    _scratch: Scratch,
}

impl Mount {
    /// `None`, with the reason printed, where the host cannot mount.
    pub fn start(args: &[&str]) -> Option<Mount> {
        let scratch = Scratch::new();
        let at = scratch.path().join("mnt");
        std::fs::create_dir(&at).unwrap();
        Mount::start_at(args, at, scratch)
    }

    pub fn start_at(args: &[&str], at: PathBuf, scratch: Scratch) -> Option<Mount> {
        if !Path::new("/dev/fuse").exists() {
            println!("skipped: this host has no /dev/fuse");
            return None;
        }
        let log = scratch.path().join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_spiderweb-fs-mount"))
            .args(args)
            .arg("mount")
            .arg(&at)
            .env_remove("SPIDERWEB_AUTH_TOKEN")
            .env("SPIDERWEB_FS_TOKEN", TOKEN)
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut mount = Mount { at, child, log, _scratch: scratch };
        until("mounting", || {
            assert!(mount.child.try_wait().unwrap().is_none(), "it ended: {}", mount.messages());
            mount.messages().contains("mounted on")
        });
        Some(mount)
    }

    pub fn messages(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Runs a shell script in the mount, `$DIR` being `dir`.
    pub fn shell(&self, script: &str, dir: &Path) -> Output {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "60", "sh", "-euc"]);
        command.arg(format!("cd \"$MNT\"; {script}")).env("MNT", &self.at).env("DIR", dir);
        command.stdin(Stdio::null()).output().unwrap()
    }

    pub fn is_mounted(&self) -> bool {
        let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
        table.contains(&format!(" {} ", self.at.display()))
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmount = ["20", "fusermount3", "-u", "-z", "-q", "--"];
        let _ = Command::new("timeout").args(unmount).arg(&self.at).status();
        // Unmounted, it ends by itself, and takes away what it made.
        let end = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("its messages:\n{}", self.messages());
        }
    }
}
