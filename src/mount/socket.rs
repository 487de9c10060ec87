//! The socket on which a running mount answers questions about itself: one line of JSON asks, one line
//! answers, and the connection ends. It knows where the socket is, and nothing of what is asked.

use crate::base::{Code, Error, Result, ResultExt};
use crate::wire::{Fields, Object};
use std::fs::DirBuilder;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest question and longest answer, in bytes.
const REQUEST_MAX: u64 = 4096;
const REPLY_MAX: u64 = 4 << 20;
/// Time for a question to come in whole, and for its answer to be taken.
const PEER: Duration = Duration::from_secs(2);
/// Time for a mount to answer: it may have to ask nodes.
const ANSWER: Duration = Duration::from_secs(10);
/// After a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers questions until it is stopped.
pub struct Server {
    path: PathBuf,
    inode: u64,
    listener: Arc<UnixListener>,
    thread: JoinHandle<()>,
}

/// What a mount says to a question: the JSON object that is the whole answer.
pub type Answer = dyn Fn(&str, &Fields<'_>) -> Result<String> + Send + Sync;

impl Server {
    /// Listens for questions about a mount point, which is absolute. A socket that a mount there left
    /// behind is replaced.
    pub fn start(mount_point: &Path, answer: Arc<Answer>) -> Result<Server> {
        let dir = own_directory()?;
        let path = dir.join(name(mount_point));
        // Nobody may connect before the permissions are right, nor find no socket in between.
        let fresh = dir.join(format!(".{}", std::process::id()));
        let _ = std::fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh).context(fresh.display())?;
        let placed = std::fs::set_permissions(&fresh, PermissionsExt::from_mode(0o600))
            .and_then(|()| std::fs::rename(&fresh, &path))
            .and_then(|()| std::fs::symlink_metadata(&path));
        let inode = placed.context(path.display())?.ino();
        let listener = Arc::new(listener);
        let accepting = listener.clone();
        let serve = move || {
            for stream in accepting.incoming() {
                match stream {
                    Ok(stream) => {
                        if let Err(e) = serve(&stream, &*answer) {
                            log::debug!("a question about this mount: {e}");
                        }
                    }
                    // Shut down.
                    Err(e) if e.kind() == ErrorKind::InvalidInput => return,
                    // A host without descriptors may have some again.
                    Err(_) => std::thread::sleep(PAUSE),
                }
            }
        };
        let thread = std::thread::Builder::new().name("mount-status".into()).spawn(serve);
        Ok(Server { path, inode, listener, thread: thread.context("status thread")? })
    }

    pub fn stop(self) {
        // A mount that came after this one may have put its own there.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
        let shut =
            nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        if shut.is_ok() {
            let _ = self.thread.join();
        }
    }
}

fn serve(stream: &UnixStream, answer: &Answer) -> Result<()> {
    stream.set_read_timeout(Some(PEER))?;
    stream.set_write_timeout(Some(PEER))?;
    let asked = line(stream, REQUEST_MAX).and_then(|text| {
        let bad = |_| Error::invalid("a question is a JSON object in one line");
        let fields = Fields::parse(&text).map_err(bad)?;
        answer(&fields.required("op")?, &fields)
    });
    let mut reply = asked.unwrap_or_else(|e| {
        let error = Object::new().put("code", e.code.wire()).put("message", &e.message);
        Object::new().object("error", error).finish()
    });
    reply.push('\n');
    let mut stream = stream;
    Ok(stream.write_all(reply.as_bytes())?)
}

/// One line, without its end, as long as it is not longer than `max`.
fn line(stream: &UnixStream, max: u64) -> Result<String> {
    let mut text = String::new();
    BufReader::new(stream.take(max)).read_line(&mut text)?;
    match text.strip_suffix('\n') {
        Some(line) => Ok(line.to_owned()),
        None if text.len() as u64 == max => {
            Err(Error::invalid(format!("a line is longer than {max} bytes")))
        }
        None => Err(Error::new(Code::Unavailable, "the connection ended within a line")),
    }
}

/// Asks the mount at a directory. Errors: `not_found` when none runs there that this user may ask, else
/// what the mount says.
pub fn ask(mount_point: &Path, question: Object) -> Result<String> {
    let shown = &mount_point.display();
    let found =
        connect(&by_parent(mount_point)).or_else(|| connect(&mount_point.canonicalize().ok()?));
    let stream = found.ok_or_else(|| {
        let text = format!("no spiderweb-fs-mount of this user runs at {shown}");
        Error::new(Code::NotFound, text)
    })?;
    stream.set_write_timeout(Some(PEER))?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut question = question.finish();
    question.push('\n');
    (&stream).write_all(question.as_bytes()).context(shown)?;
    let reply = line(&stream, REPLY_MAX).map_err(|e| match e.code {
        Code::Again => Error::new(Code::Timeout, format!("the mount at {shown} does not answer")),
        _ => e.context(shown),
    })?;
    let nonsense = |_| Error::new(Code::Unavailable, format!("{shown}: the answer is no object"));
    let fields = Fields::parse(&reply).map_err(nonsense)?;
    if let Some(error) = fields.object("error")? {
        let code = error.str("code")?.and_then(|code| Code::from_wire(&code));
        let message = error.string("message")?.unwrap_or_default();
        return Err(Error::new(code.unwrap_or(Code::Eio), message).context(shown));
    }
    Ok(reply)
}

/// A mount point's absolute path, found without asking the mount, which may not answer.
fn by_parent(mount_point: &Path) -> PathBuf {
    let absolute = std::path::absolute(mount_point).unwrap_or_else(|_| mount_point.to_owned());
    match (absolute.parent().and_then(|dir| dir.canonicalize().ok()), absolute.file_name()) {
        (Some(dir), Some(name)) => dir.join(name),
        _ => absolute,
    }
}

fn connect(mount_point: &Path) -> Option<UnixStream> {
    let name = name(mount_point);
    directories().into_iter().find_map(|dir| UnixStream::connect(dir.join(&name)).ok())
}

/// Of a mount point's path, short enough for the address of a socket. Not for telling paths apart that
/// are chosen to look the same (FNV-1a).
fn name(mount_point: &Path) -> String {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = mount_point.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, mix);
    format!("mount-{hash:016x}.sock")
}

/// Where sockets of this user may be, the best place first.
fn directories() -> Vec<PathBuf> {
    let var =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let uid = nix::unistd::geteuid();
    let root = uid.is_root().then(|| PathBuf::from("/run"));
    // Where XDG_RUNTIME_DIR leads in a session, for who asks from elsewhere.
    let session = Some(PathBuf::from(format!("/run/user/{uid}"))).filter(|dir| dir.is_dir());
    let cache = var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")));
    let bases = var("XDG_RUNTIME_DIR").into_iter().chain(root).chain(session).chain(cache);
    bases.map(|base| base.join("spiderweb")).collect()
}

/// The first of them that is, or can be made, a directory for this user alone.
fn own_directory() -> Result<PathBuf> {
    let uid = nix::unistd::geteuid().as_raw();
    let is_own = |dir: &PathBuf| {
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        let meta = std::fs::symlink_metadata(dir);
        meta.is_ok_and(|m| m.is_dir() && m.uid() == uid && m.mode() & 0o022 == 0)
    };
    directories().into_iter().find(is_own).ok_or_else(|| {
        let text = "there is no place for a socket; set XDG_RUNTIME_DIR or HOME";
        Error::new(Code::Config, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_fit_into_an_address() {
        let of = |path: &str| name(Path::new(path));
        assert_ne!(of("/mnt/a"), of("/mnt/b"));
        assert_eq!(of(&format!("/{}", "x".repeat(4000))).len(), of("/").len());
    }

    #[test]
    fn a_question_is_one_bounded_line() {
        let answer = |op: &str, f: &Fields<'_>| match op {
            "echo" => Ok(Object::new().put("said", f.string("word")?).finish()),
            other => Err(Error::new(Code::Unsupported, format!("no {other}"))),
        };
        let answered = |question: &[u8]| {
            let (here, there) = UnixStream::pair().unwrap();
            (&here).write_all(question).unwrap();
            here.shutdown(std::net::Shutdown::Write).unwrap();
            serve(&there, &answer).unwrap();
            line(&here, REPLY_MAX).unwrap()
        };
        assert_eq!(answered(b"{\"op\":\"echo\",\"word\":\"hi\"}\nmore"), r#"{"said":"hi"}"#);
        for (bad, part) in [
            (&b"{\"op\":\"fly\"}\n"[..], "no fly"),
            (b"nonsense\n", "JSON object"),
            (b"{}\n", "op is required"),
            (b"{\"op\":\"echo\"", "within a line"),
            (b"\xff\n", "error"),
            (&[b'x'; REQUEST_MAX as usize], "longer than 4096"),
        ] {
            let reply = answered(bad);
            assert!(reply.starts_with(r#"{"error":"#) && reply.contains(part), "{reply}");
        }
    }
}
