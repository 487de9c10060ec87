//! Copies: between the tree and this host, `get` and `put`, with the manners of cp(1) and scp(1), and from one
//! endpoint to another with those of mv(1). To and from this host, modes and times go along; owners do not. A file of this host appears under its name only when it is whole.

mod across;
mod get;
mod put;

pub use across::Across;
pub use get::{fetch, get};
pub use put::{put, store};

use super::world::World;
use crate::base::{Cancel, Code, Error, Result};
use crate::vfs::{Attr, Cx, FileKind, SetAttr, SetTime};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Bytes moved in one request, and requests on their way at the same time.
const CHUNK: u64 = 1 << 20;
const IN_FLIGHT: usize = 8;

/// What is told while files are copied. Called from several threads.
pub trait Progress: Sync {
    /// A file begins; `total` bytes, where that is known.
    fn begin(&self, name: &str, total: Option<u64>);
    fn moved(&self, bytes: u64);
    fn end(&self);
    /// One file of many was not copied; the others are.
    fn failed(&self, what: &Error);
}

/// Tells nothing.
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: Option<u64>) {}
    fn moved(&self, _: u64) {}
    fn end(&self) {}
    fn failed(&self, _: &Error) {}
}

/// How to copy.
pub struct Job<'a> {
    pub world: &'a World,
    pub cancel: &'a Cancel,
    /// Directories too, with all that is in them.
    pub recursive: bool,
    pub progress: &'a dyn Progress,
}

impl Job<'_> {
    fn cx(&self) -> Cx {
        Cx { cancel: self.cancel.clone(), ..self.world.cx() }
    }

    fn refuse_directory(&self, shown: impl std::fmt::Display) -> Result<()> {
        if self.recursive {
            return Ok(());
        }
        let text = format!("{shown} is a directory; copy it with --recursive");
        Err(Error::from_errno(libc::EISDIR, text))
    }
}

/// How many requests a file of this kind can have on their way: order counts where offsets do not.
fn in_flight(kind: FileKind, size: Option<u64>) -> usize {
    match (kind, size) {
        (FileKind::Plain, Some(size)) => usize::try_from(size / CHUNK + 1).unwrap_or(usize::MAX),
        (FileKind::Plain, None) => IN_FLIGHT,
        _ => 1,
    }
    .min(IN_FLIGHT)
}

/// Runs `work` on so many threads, this one among them.
fn together(threads: usize, work: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // A host without threads copies with fewer requests on their way.
            let _ = std::thread::Builder::new().name("copy".into()).spawn_scoped(scope, &work);
        }
        work();
    });
}

/// Counts the files of a directory that could not be copied.
#[derive(Default)]
struct Failures(usize);

impl Failures {
    /// Goes on after what concerns one file alone.
    fn note(&mut self, job: &Job<'_>, outcome: Result<()>) -> Result<()> {
        match outcome {
            Err(e)
                if !e.is_peer_lost()
                    && !matches!(e.code, Code::Cancelled | Code::Timeout | Code::Enospc) =>
            {
                self.0 += 1;
                job.progress.failed(&e);
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn finish(self) -> Result<()> {
        match self.0 {
            0 => Ok(()),
            1 => Err(Error::new(Code::Eio, "one file was not copied")),
            n => Err(Error::new(Code::Eio, format!("{n} files were not copied"))),
        }
    }
}

/// Where a copy goes: into a directory that is there under its old name, else where it is told.
fn destination(given: PathBuf, is_dir: bool, name: Option<OsString>) -> PathBuf {
    match name {
        Some(name) if is_dir => given.join(name),
        _ => given,
    }
}

/// The permissions and time that go along with a copy.
fn kept(mode: u32, mtime_ns: i64) -> SetAttr {
    SetAttr {
        mode: Some(mode & 0o777),
        mtime: Some(SetTime::At { ns: mtime_ns }),
        ..SetAttr::default()
    }
}

/// A path of this host, for people.
fn shown(path: &Path) -> std::path::Display<'_> {
    path.display()
}

/// The bytes that a file holds, where its attributes tell.
fn is_listed_size(a: &Attr, kind: FileKind) -> Option<u64> {
    (kind == FileKind::Plain).then_some(a.size)
}
