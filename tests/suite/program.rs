//! Running the built programs, and talking to them as a plain WebSocket client does.

use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tungstenite::client::IntoClientRequest;
use tungstenite::error::ProtocolError;
use tungstenite::{Message, WebSocket};

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A directory that goes with the test.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        let dir = std::env::temp_dir().join(spiderweb::base::id::hex_token("spiderweb-test-"));
        std::fs::create_dir(&dir).unwrap();
        Scratch(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A program that runs until it is dropped.
pub struct Program {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Program {
    pub fn start(mut command: Command) -> Program {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (send, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Program { child, lines, seen: Vec::new() }
    }

    /// What follows `mark` in the first line that has it.
    pub fn wait_for(&mut self, mark: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if let Some((_, rest)) = line.split_once(mark) {
                        return rest.to_owned();
                    }
                }
                Err(_) => panic!("no line with {mark:?} in:\n{}", self.seen.join("\n")),
            }
        }
    }

    /// How often it has said something, as far as was waited for.
    pub fn said(&self, mark: &str) -> usize {
        self.seen.iter().filter(|line| line.contains(mark)).count()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: kill(2) takes no pointers; the child is ours and not reaped yet.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The exit status, once it ends.
    pub fn wait(&mut self) -> i32 {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            std::thread::yield_now();
        }
        panic!("it does not end; it said:\n{}", self.seen.join("\n"));
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A gateway of its own home and port.
pub struct Gateway {
    pub program: Program,
    pub addr: String,
    pub home: PathBuf,
    _scratch: Option<Scratch>,
}

impl Gateway {
    pub fn start() -> Gateway {
        let scratch = Scratch::new();
        let home = scratch.path().to_owned();
        Gateway { _scratch: Some(scratch), ..Gateway::at(&home, "0") }
    }

    /// In a home that may have been used before.
    pub fn at(home: &Path, port: &str) -> Gateway {
        Gateway::with(home, port, &[])
    }

    /// With variables of the environment set.
    pub fn with(home: &Path, port: &str, variables: &[(&str, &str)]) -> Gateway {
        Gateway::started(home, Gateway::command(home, port, variables))
    }

    /// From a command made by [`Gateway::command`].
    pub fn started(home: &Path, command: Command) -> Gateway {
        let mut program = Program::start(command);
        let addr = program.wait_for("listening at ws://").trim_end_matches('/').to_owned();
        Gateway { program, addr, home: home.to_owned(), _scratch: None }
    }

    pub fn command(home: &Path, port: &str, variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spiderweb"));
        command
            .current_dir(home)
            .env_clear()
            .env("HOME", home)
            .env("SPIDERWEB__PROVIDER__NAME", "echo");
        if home.join("script.json").exists() {
            command.env("SPIDERWEB__PROVIDER__SCRIPT", home.join("script.json"));
        }
        command.args(["--port", port]).envs(variables.iter().copied());
        command
    }

    /// `admin_token` or `user_token`.
    pub fn token(&self, which: &str) -> String {
        let text = std::fs::read(self.home.join(".spiderweb-ltm/auth_tokens.json")).unwrap();
        let tokens: Value = serde_json::from_slice(&text).unwrap();
        tokens[which].as_str().unwrap().to_owned()
    }

    pub fn url(&self, path: &str) -> String {
        format!("ws://{}{path}", self.addr)
    }

    pub fn open(&self, path: &str, token: Option<&str>) -> Client {
        Client::open(&self.url(path), token)
    }

    /// An admin's connection that has negotiated the control channel.
    pub fn admin(&self) -> Client {
        let mut client = self.open("/", Some(&self.token("admin_token")));
        client.negotiate();
        client
    }

    pub fn user(&self) -> Client {
        let mut client = self.open("/", Some(&self.token("user_token")));
        client.negotiate();
        client
    }

    /// The answer to a plain HTTP request.
    pub fn http(&self, request: &str) -> String {
        http(&self.addr, request)
    }
}

/// The answer to a plain HTTP request.
pub fn http(addr: &str, request: &str) -> String {
    use std::io::Write;
    let mut socket = TcpStream::connect(addr).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

/// A client that knows nothing of our own code.
pub struct Client {
    socket: WebSocket<TcpStream>,
    next: u32,
    /// Frames that came while a reply was awaited.
    pushed: VecDeque<Value>,
}

/// What came in.
#[derive(Debug, PartialEq)]
pub enum Got {
    Json(Value),
    Closed,
}

impl Client {
    pub fn open(url: &str, token: Option<&str>) -> Client {
        let mut request = url.into_client_request().unwrap();
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.headers_mut().insert("Authorization", value);
        }
        let host = request.uri().authority().unwrap().to_string();
        let tcp = TcpStream::connect(host).unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        let (socket, _) = tungstenite::client(request, tcp).unwrap();
        Client { socket, next: 0, pushed: VecDeque::new() }
    }

    pub fn send(&mut self, text: impl ToString) {
        self.socket.send(Message::text(text.to_string())).unwrap();
    }

    /// False when the gateway is gone.
    pub fn try_send(&mut self, text: impl ToString) -> bool {
        self.socket.send(Message::text(text.to_string())).is_ok()
    }

    pub fn recv(&mut self) -> Got {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return Got::Json(serde_json::from_str(&text).unwrap()),
                Ok(Message::Close(_)) => return Got::Closed,
                Ok(_) => {}
                // As it ends, or is killed.
                Err(
                    tungstenite::Error::ConnectionClosed
                    | tungstenite::Error::Io(_)
                    | tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake),
                ) => {
                    return Got::Closed;
                }
                Err(e) => panic!("{e}"),
            }
        }
    }

    pub fn json(&mut self) -> Value {
        match self.recv() {
            Got::Json(value) => value,
            Got::Closed => panic!("the connection was closed"),
        }
    }

    /// The next frame that nobody asked for.
    pub fn pushed(&mut self) -> Value {
        self.pushed.pop_front().unwrap_or_else(|| self.json())
    }

    /// One that has come while a reply was awaited.
    pub fn try_pushed(&mut self) -> Option<Value> {
        self.pushed.pop_front()
    }

    /// Sends and takes the next frame.
    pub fn ask(&mut self, request: Value) -> Value {
        self.send(request);
        self.json()
    }

    pub fn negotiate(&mut self) {
        self.control("version", json!({"protocol": "unified-v2"}));
        self.control("connect", json!({}));
    }

    /// The reply to a control operation, error or not.
    pub fn control_reply(&mut self, name: &str, payload: Value) -> Value {
        self.next += 1;
        let id = format!("t{}", self.next);
        self.send(json!({"channel": "control", "type": format!("control.{name}"), "id": id,
            "payload": payload}));
        loop {
            let reply = self.json();
            if reply["id"] == id.as_str() {
                return reply;
            }
            self.pushed.push_back(reply);
        }
    }

    /// The reply to a control operation, error or not; `None` when the gateway is gone before it came.
    pub fn try_control(&mut self, name: &str, payload: Value) -> Option<Value> {
        self.next += 1;
        let id = format!("t{}", self.next);
        let request = json!({"channel": "control", "type": format!("control.{name}"), "id": id,
            "payload": payload});
        if !self.try_send(request) {
            return None;
        }
        loop {
            if let Message::Text(text) = self.socket.read().ok()? {
                let reply: Value = serde_json::from_str(&text).unwrap();
                if reply["id"] == id.as_str() {
                    return Some(reply);
                }
            }
        }
    }

    /// The payload of a control operation that must succeed.
    pub fn control(&mut self, name: &str, payload: Value) -> Value {
        let reply = self.control_reply(name, payload);
        assert_eq!(reply["ok"], true, "{name}: {reply}");
        reply["payload"].clone()
    }

    /// The reply to an acheron request, error or not.
    pub fn acheron_reply(&mut self, op: &str, mut fields: Value) -> Value {
        self.next += 1;
        let tag = self.next;
        fields["channel"] = "acheron".into();
        fields["type"] = format!("acheron.{op}").into();
        fields["tag"] = tag.into();
        self.send(fields);
        loop {
            let reply = self.json();
            if reply["tag"] == tag {
                return reply;
            }
            self.pushed.push_back(reply);
        }
    }

    pub fn acheron(&mut self, op: &str, fields: Value) -> Value {
        let reply = self.acheron_reply(op, fields);
        assert_eq!(reply["ok"], true, "{op}: {reply}");
        reply["payload"].clone()
    }

    /// Negotiates acheron-1 and attaches fid 1.
    pub fn attach(&mut self) {
        self.acheron("t_version", json!({"msize": 1_048_576, "version": "acheron-1"}));
        self.acheron("t_attach", json!({"fid": 1}));
    }

    /// Walks fid 2 to a path and opens it.
    pub fn open_path(&mut self, path: &str, mode: &str) {
        let names: Vec<_> = path.split('/').filter(|s| !s.is_empty()).collect();
        self.acheron("t_walk", json!({"fid": 1, "newfid": 2, "path": names}));
        self.acheron("t_open", json!({"fid": 2, "mode": mode}));
    }

    /// The whole of a file, or of a directory's listing.
    pub fn read(&mut self, path: &str) -> String {
        self.open_path(path, "r");
        let mut all = Vec::new();
        loop {
            let piece =
                self.acheron("t_read", json!({"fid": 2, "offset": all.len(), "count": 65536}));
            let data = piece["data_b64"].as_str().unwrap();
            all.extend(spiderweb::wire::base64_decode(data).unwrap());
            if piece["eof"] == true {
                self.acheron("t_clunk", json!({"fid": 2}));
                return String::from_utf8(all).unwrap();
            }
        }
    }

    /// One write to a file.
    pub fn write(&mut self, path: &str, text: &str) -> Value {
        self.open_path(path, "rw");
        let payload = self.acheron("t_write", json!({"fid": 2, "offset": 0, "data": text}));
        self.acheron("t_clunk", json!({"fid": 2}));
        payload
    }
}
