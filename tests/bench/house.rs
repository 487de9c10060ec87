//! A gateway of the built program, and clients that ask it.

use spiderweb::base::{Cancel, Deadline, Error, Result, ResultExt, Timer};
use spiderweb::net::{Control, Net};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATIENCE_MS: u64 = 60_000;

pub struct House {
    child: Child,
    addr: String,
    home: PathBuf,
    net: Arc<Net>,
    timer: Timer,
    /// From the start until it listened.
    pub took: Duration,
}

/// An admin's connection.
pub struct Asker(Control);

/// The same of a client that does nothing but send and receive, so that it is not what is measured.
pub struct PlainAsker {
    socket: TcpStream,
    reply: Vec<u8>,
}

impl House {
    /// In a home that may have been used before.
    pub fn start(gateway: &Path, home: &Path) -> Result<House> {
        std::fs::create_dir_all(home).context(home.display())?;
        let at = Instant::now();
        let mut child = Command::new(std::path::absolute(gateway)?)
            .args(["--port", "0"])
            .current_dir(home)
            .env_clear()
            .env("HOME", home)
            .env("SPIDERWEB__PROVIDER__NAME", "echo")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context(gateway.display())?;
        let stderr = child.stderr.take().expect("it was asked for");
        let mut lines = BufReader::new(stderr).lines().map_while(|line| line.ok());
        let addr = lines.find_map(|line| {
            let (_, rest) = line.split_once("listening at ws://")?;
            Some(rest.trim_end_matches('/').to_owned())
        });
        let took = at.elapsed();
        // So that it never waits for somebody to read.
        std::thread::spawn(move || lines.for_each(drop));
        let addr = addr.ok_or_else(|| Error::invalid("the gateway did not start"))?;
        let timer = Timer::start()?;
        let net = Net::start(1, timer.clone())?;
        Ok(House { child, addr, home: home.to_owned(), net, timer, took })
    }

    pub fn client(&self) -> Result<Asker> {
        let url = format!("ws://{}/", self.addr).parse()?;
        let deadline = Deadline::after_ms(PATIENCE_MS);
        let token = Some(self.token()?);
        Ok(Asker(Control::open(&self.net, &url, token, "bench", deadline, &Cancel::default())?))
    }

    pub fn plain_client(&self) -> Result<PlainAsker> {
        let mut socket = TcpStream::connect(&self.addr)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(Duration::from_millis(PATIENCE_MS)))?;
        let head = format!(
            "GET / HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Authorization: Bearer {}\r\n\r\n",
            self.addr,
            self.token()?
        );
        socket.write_all(head.as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte)?;
            answer.push(byte[0]);
        }
        let mut client = PlainAsker { socket, reply: Vec::new() };
        client.call("version", r#"{"protocol":"unified-v2"}"#)?;
        client.call("connect", "{}")?;
        Ok(client)
    }

    fn token(&self) -> Result<String> {
        let tokens = self.home.join(".spiderweb-ltm/auth_tokens.json");
        let tokens = std::fs::read(&tokens).context(tokens.display())?;
        let tokens: serde_json::Value =
            serde_json::from_slice(&tokens).map_err(|e| Error::invalid(e.to_string()))?;
        let token = tokens["admin_token"].as_str().map(str::to_owned);
        token.ok_or_else(|| Error::invalid("there is no admin_token"))
    }

    /// Has it end in order.
    pub fn stop(mut self) -> Result<()> {
        // SAFETY: kill(2) takes no pointers; the child is ours and not reaped yet.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.net.stop(Deadline::after_ms(0));
        self.timer.stop();
    }
}

impl Asker {
    pub fn call(&self, operation: &str, payload: &str) -> Result<()> {
        let deadline = Deadline::after_ms(PATIENCE_MS);
        self.0.call(operation, payload, deadline, &Cancel::default()).map(drop)
    }
}

impl PlainAsker {
    /// Errors: the reply is none of a success.
    pub fn call(&mut self, operation: &str, payload: &str) -> Result<()> {
        let request = format!(
            r#"{{"channel":"control","type":"control.{operation}","id":"b","payload":{payload}}}"#
        );
        let len = u16::try_from(request.len()).map_err(|_| Error::invalid("too long"))?;
        // A whole text, of 16-bit length, with a mask of zeroes (RFC 6455, 5.2).
        let mut frame = vec![0x81, 0x80 | 126];
        frame.extend(len.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(request.as_bytes());
        self.socket.write_all(&frame)?;
        let mut head = [0; 2];
        self.socket.read_exact(&mut head)?;
        let mut size = [0; 8];
        let bytes = match head[1] {
            126 => 2,
            127 => 8,
            len => {
                size[7] = len;
                0
            }
        };
        self.socket.read_exact(&mut size[8 - bytes..])?;
        self.reply.resize(u64::from_be_bytes(size) as usize, 0);
        self.socket.read_exact(&mut self.reply)?;
        let start = String::from_utf8_lossy(&self.reply[..self.reply.len().min(200)]);
        match start.contains(r#""ok":true"#) {
            true => Ok(()),
            false => Err(Error::invalid(format!("control.{operation}: {start}"))),
        }
    }
}
