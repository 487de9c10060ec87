//! A long line: passes on what clients and a server send each other, all of it so much later. Rates are not its
//! business.

use spiderweb::base::{Error, Result, ResultExt};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// Read at a time, and how many of those are on the line.
const PIECE: usize = 64 << 10;
const PIECES: usize = 256;

/// Serves until it is killed.
pub fn run(listen: &str, to: &str, delay_ms: &str) -> Result<()> {
    let delay = delay_ms.parse().map(Duration::from_millis);
    let delay = delay.map_err(|_| Error::invalid(format!("{delay_ms:?} is no number of ms")))?;
    let listener = TcpListener::bind(listen).context(listen)?;
    loop {
        let (near, _) = listener.accept().context(listen)?;
        let Ok(far) = TcpStream::connect(to) else { continue };
        for (from, to) in [(&near, &far), (&far, &near)] {
            let (from, to) = (from.try_clone()?, to.try_clone()?);
            from.set_nodelay(true)?;
            std::thread::spawn(move || pass(from, to, delay));
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (line, end) = sync_channel::<(Instant, Vec<u8>)>(PIECES);
    let deliver = std::thread::spawn(move || {
        for (due, bytes) in end {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    let mut piece = vec![0; PIECE];
    while let Ok(n @ 1..) = from.read(&mut piece) {
        if line.send((Instant::now() + delay, piece[..n].to_vec())).is_err() {
            break;
        }
    }
    drop(line);
    let _ = deliver.join();
    let _ = from.shutdown(Shutdown::Both);
}
