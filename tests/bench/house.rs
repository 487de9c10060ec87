//! A gateway of the built program, and clients that ask it.

use spiderweb::base::{Cancel, Deadline, Error, Result, ResultExt, Timer};
use spiderweb::net::{Control, Net};
use std::io::{BufRead, BufReader};
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
        let tokens = self.home.join(".spiderweb-ltm/auth_tokens.json");
        let tokens = std::fs::read(&tokens).context(tokens.display())?;
        let tokens: serde_json::Value =
            serde_json::from_slice(&tokens).map_err(|e| Error::invalid(e.to_string()))?;
        let token = tokens["admin_token"].as_str().map(str::to_owned);
        let url = format!("ws://{}/", self.addr).parse()?;
        let deadline = Deadline::after_ms(PATIENCE_MS);
        Ok(Asker(Control::open(&self.net, &url, token, "bench", deadline, &Cancel::default())?))
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
