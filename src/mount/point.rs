//! Mount points: whether a directory can be one, and how it is given back.

use crate::base::{Code, Error, Result, ResultExt};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::statvfs::statvfs;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A directory to mount on.
pub struct Point {
    /// Absolute.
    pub path: PathBuf,
    /// It was made for this mount.
    made: bool,
}

/// The directory to mount on, made if it is missing (spec: fs 17), its parents not. A mount that a killed
/// process left behind is taken away first. Errors: `usage`, `invalid_config` where the host lacks FUSE,
/// each saying what to do.
pub fn prepare(point: &Path) -> Result<Point> {
    device()?;
    let shown = point.display();
    if is_dead(point) {
        log::warn!("{shown}: taking away the mount that a killed process left behind");
        detach(point);
    }
    let bad = |what: String| Error::new(Code::Usage, format!("mount point {shown} {what}"));
    let made = match DirBuilder::new().mode(0o755).create(point) {
        Ok(()) => true,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(bad(format!("has no parent directory; make it with: mkdir -p {shown}")));
        }
        Err(e) if e.kind() == ErrorKind::AlreadyExists => false,
        // Whether it is there is still to be seen.
        Err(_) if point.exists() => false,
        Err(e) => return Err(e).context(format!("mount point {shown} cannot be made")),
    };
    let meta = std::fs::metadata(point).context(format!("mount point {shown}"))?;
    if !meta.is_dir() {
        return Err(bad("is not a directory".into()));
    }
    let path = point.canonicalize().context(format!("mount point {shown}"))?;
    let above = path.parent().and_then(|parent| parent.metadata().ok());
    if above.is_some_and(|above| above.dev() != meta.dev()) && is_spiderweb(&path) {
        return Err(bad(format!("is mounted already; unmount it with: fusermount3 -u {shown}")));
    }
    if std::fs::read_dir(&path).context(format!("mount point {shown}"))?.next().is_some() {
        return Err(bad("is not empty; choose an empty directory".into()));
    }
    Ok(Point { path, made })
}

impl Drop for Point {
    /// Takes away again what was made.
    fn drop(&mut self) {
        if self.made
            && let Err(e) = std::fs::remove_dir(&self.path)
        {
            log::debug!("{} stays: {e}", self.path.display());
        }
    }
}

fn device() -> Result<()> {
    if Path::new("/dev/fuse").exists() {
        return Ok(());
    }
    let text = "this host has no /dev/fuse: load it with \"modprobe fuse\", and install the package \
                fuse3; a container needs --device /dev/fuse";
    Err(Error::new(Code::Config, text))
}

/// True for the mount point of a FUSE process that is gone. Attributes may still be cached, what
/// statfs(2) tells never is.
fn is_dead(point: &Path) -> bool {
    matches!(statvfs(point), Err(Errno::ENOTCONN | Errno::ECONNABORTED))
}

fn is_spiderweb(point: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(table) = std::fs::read("/proc/self/mounts") else { return false };
    table.split(|b| *b == b'\n').any(|line| {
        let mut fields = line.split(|b| *b == b' ').skip(1);
        let place = fields.next().map(unescape);
        place.is_some_and(|p| p == point.as_os_str().as_bytes())
            && fields.next() == Some(b"fuse.spiderweb")
    })
}

/// The kernel writes blanks in paths as octal numbers.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal =
            tail.get(..3).filter(|d| *first == b'\\' && d.iter().all(|b| (b'0'..b'8').contains(b)));
        if let Some(&[a, b, c]) = octal {
            out.push((a - b'0').wrapping_mul(64).wrapping_add((b - b'0') * 8 + (c - b'0')));
            rest = &tail[3..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

/// Takes the mount away, also while it is in use. A user who is not root needs fusermount3 for it.
pub fn detach(point: &Path) {
    match umount2(point, MntFlags::MNT_DETACH) {
        Err(Errno::EPERM) => {
            let mut command = Command::new("fusermount3");
            command.args(["-u", "-z", "-q", "--"]).arg(point).stdin(Stdio::null());
            match command.status() {
                Ok(status) if status.success() => {}
                Ok(status) => log::warn!("fusermount3 -u -z {}: {status}", point.display()),
                Err(e) => log::warn!("fusermount3: {e}"),
            }
        }
        Err(e) if e != Errno::EINVAL => log::warn!("unmounting {}: {e}", point.display()),
        // EINVAL: somebody else was faster.
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_in_the_mount_table_are_read() {
        assert_eq!(unescape(b"/a\\040b\\134c"), b"/a b\\c");
        assert_eq!(unescape(b"/a\\04"), b"/a\\04");
    }
}
