//! What measuring needs and no tool of the system does: random reads, a mount that speaks the base
//! protocol, as clients and nodes did before there were extensions, and many clients of a control plane.
//!
//!     bench read FILE READS [READERS]     reads 4 KiB blocks in random order, each at most once
//!     bench mount-old WS-URL MOUNTPOINT   mounts the node's first export until SIGTERM
//!     bench relay LISTEN TO DELAY_MS      passes on what it gets that much later
//!     bench control GATEWAY DIR           measures the control plane of the gateway program, in homes in DIR

mod control;
mod house;
mod old;
mod relay;

use spiderweb::base::{Code, Error, Result, ResultExt};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK: usize = 4096;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args[..] {
        ["read", file, reads] => read(Path::new(file), reads, "1"),
        ["read", file, reads, readers] => read(Path::new(file), reads, readers),
        ["mount-old", url, point] => old::mount(url, Path::new(point)),
        ["relay", listen, to, delay_ms] => relay::run(listen, to, delay_ms),
        ["control", gateway, dir] => control::run(Path::new(gateway), Path::new(dir)),
        _ => {
            let usage = "read FILE READS [READERS] | mount-old WS-URL MOUNTPOINT | \
                         relay LISTEN TO DELAY_MS | control GATEWAY DIR";
            Err(Error::new(Code::Usage, usage))
        }
    };
    if let Err(e) = outcome {
        eprintln!("bench: {e}");
        std::process::exit(i32::from(e.code.exit()));
    }
}

fn read(path: &Path, reads: &str, readers: &str) -> Result<()> {
    let number = |text: &str| {
        text.parse::<usize>().ok().filter(|n| *n > 0).ok_or_else(|| {
            Error::new(Code::Usage, format!("{text:?} is not a number of reads or readers"))
        })
    };
    let (reads, readers) = (number(reads)?, number(readers)?);
    let file = File::open(path).context(path.display())?;
    let blocks = file.metadata().context(path.display())?.len() as usize / BLOCK;
    if blocks < reads {
        return Err(Error::invalid(format!("{} has only {blocks} blocks", path.display())));
    }
    let order = shuffled(blocks);
    std::thread::scope(|scope| {
        let parts = order[..reads].chunks(reads.div_ceil(readers));
        let threads: Vec<_> = parts.map(|part| scope.spawn(|| read_all(&file, part))).collect();
        threads.into_iter().try_for_each(|t| t.join().expect("a reader does not panic"))
    })
    .context(path.display())
}

fn read_all(file: &File, blocks: &[usize]) -> std::io::Result<()> {
    let mut block = [0; BLOCK];
    blocks.iter().try_for_each(|n| file.read_exact_at(&mut block, (n * BLOCK) as u64))
}

/// The numbers below `n` in an order that is the same each time, so that every peer reads alike.
fn shuffled(n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for last in (1..n).rev() {
        // xorshift64 (Marsaglia 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(last, (state % (last as u64 + 1)) as usize);
    }
    order
}
