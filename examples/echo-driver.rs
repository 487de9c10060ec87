//! A driver, the program behind a service: reads one JSON object from its standard input and answers with
//! one on its standard output. What it cannot use it tells on standard error, and exits with 2.
//! `echo.json` beside this file is its manifest; spiderweb-fs-node(1) says what a driver gets.

use serde_json::{Map, Value, json};
use std::io::Read;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() -> ExitCode {
    match answer() {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(2)
        }
    }
}

fn answer() -> Result<Value, String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|e| format!("standard input: {e}"))?;
    let input: Map<String, Value> =
        serde_json::from_str(&text).map_err(|e| format!("write one JSON object: {e}"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|e| e.to_string())?;
    let now_ms = u64::try_from(now.as_millis()).map_err(|e| e.to_string())?;
    Ok(json!({"ok": true, "driver": "spiderweb-echo-driver", "ts_ms": now_ms, "echo": input}))
}
