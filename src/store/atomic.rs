//! Small files that are replaced as a whole: a reader, and a crash, see the old content or the new.

use crate::base::{Code, Error, Result, ResultExt, id};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// Replaces the file at `path` (mode 0600) and returns once it is on stable storage. A missing directory
/// is made (0700); a symlink stays, what it leads to is replaced.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    replace(path, content).context(format!("writing {}", path.display()))
}

fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let path = match std::fs::canonicalize(path) {
        Ok(path) => path,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => path.to_owned(),
        Err(e) => return Err(e.into()),
    };
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut temporary = Temporary::create(dir)?;
    temporary.file.write_all(content)?;
    keep_owner(&temporary.file, &path);
    temporary.file.sync_all()?;
    std::fs::rename(&temporary.path, &path)?;
    sync_dir(&path)
}

/// A file that waits beside another to take its place.
pub(super) struct Waiting(PathBuf);

impl Waiting {
    /// Where it will be; the caller makes it. Always the same place: what a crash leaves there is found.
    pub(super) fn beside(path: &Path) -> Waiting {
        Waiting::named(path, ".new")
    }

    /// At a place that nobody else uses.
    pub(super) fn apart(path: &Path) -> Waiting {
        Waiting::named(path, &id::hex_token(".tmp-"))
    }

    fn named(path: &Path, suffix: &str) -> Waiting {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        Waiting(name.into())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Puts it on stable storage, then in the other's place.
    pub(super) fn replace(self, path: &Path) -> Result<()> {
        self.rename(path, RenameFlags::empty()).context(format!("replacing {}", path.display()))
    }

    /// Puts it on stable storage, then in a place that is free. Errors: EEXIST.
    pub(super) fn place(self, path: &Path) -> Result<()> {
        self.rename(path, RenameFlags::RENAME_NOREPLACE).context(path.display())
    }

    fn rename(&self, path: &Path, flags: RenameFlags) -> Result<()> {
        let file = File::open(&self.0)?;
        keep_owner(&file, path);
        file.sync_all()?;
        renameat2(AT_FDCWD, &self.0, AT_FDCWD, path, flags)?;
        sync_dir(path)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Gives a file that takes another's place to that one's owner: root may be at work for somebody else, who
/// could not use it afterwards. Others may give nothing away, and need not.
fn keep_owner(new: &File, old: &Path) {
    if let Ok(old) = old.metadata() {
        let _ = fchown(new, Some(old.uid()), Some(old.gid()));
    }
}

/// Makes the names in a file's directory durable.
pub(super) fn sync_dir(path: &Path) -> Result<()> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(File::open(dir)?.sync_all()?)
}

/// Removed again unless it was renamed.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    fn create(dir: &Path) -> Result<Temporary> {
        let path = dir.join(id::hex_token(".tmp-"));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Temporary { path, file })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The whole file. Errors: ENOENT as the host says it; `invalid` when it is larger than `max` bytes.
pub fn read(path: &Path, max: usize) -> Result<Vec<u8>> {
    let read = || {
        let mut content = Vec::new();
        File::open(path)?.take(max as u64 + 1).read_to_end(&mut content)?;
        if content.len() > max {
            return Err(Error::new(Code::Invalid, format!("is larger than {max} bytes")));
        }
        Ok(content)
    };
    read().context(path.display())
}

/// Takes a file that holds secrets away from group and others, if it was theirs to read.
pub fn make_private(path: &Path) -> Result<()> {
    let mut permissions = std::fs::metadata(path).context(path.display())?.permissions();
    let mode = permissions.mode() & 0o777;
    if mode & 0o077 != 0 {
        permissions.set_mode(0o600);
        std::fs::set_permissions(path, permissions).context(path.display())?;
        log::warn!("{} had mode {mode:o}, open to others; it is 600 now", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::TempDir;
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let dir = TempDir::new();
        let path = dir.path("new/file.json");
        write(&path, b"one").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(read(&path, 3).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path("new")).unwrap().count(), 1);
        if std::os::unix::fs::chown(&path, Some(65_534), None).is_ok() {
            write(&path, b"two").unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().uid(), 65_534);
        }

        let link = dir.path("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write(&link, b"three").unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(read(&path, 9).unwrap(), b"three");
    }

    #[test]
    fn reading_is_bounded_and_names_the_file() {
        let dir = TempDir::new();
        let path = dir.path("file");
        assert_eq!(read(&path, 9).unwrap_err().errno(), libc::ENOENT);
        write(&path, b"0123456789").unwrap();
        let e = read(&path, 9).unwrap_err();
        assert!(e.message.contains("file") && e.message.contains("9 bytes"), "{e}");
    }
}
