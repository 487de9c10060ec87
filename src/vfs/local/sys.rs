//! The system calls of the local tree: each relative to a directory descriptor, none of which follows
//! a symlink or leaves the directory it is given. All `unsafe` of the tree is here.

use crate::base::{Error, Result};
use crate::vfs::ranges::Level;
use crate::vfs::{Attr, Kind, NodeId, Range};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What tells one inode from every other, also from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileKey {
    dev: (u32, u32),
    ino: u64,
    /// 0 where the filesystem does not tell.
    birth_ns: i64,
    format: u16,
}

#[derive(Clone, Copy)]
pub struct Stat(libc::statx);

impl Stat {
    pub fn key(&self) -> FileKey {
        let birth = self.0.stx_mask & libc::STATX_BTIME != 0;
        FileKey {
            dev: (self.0.stx_dev_major, self.0.stx_dev_minor),
            ino: self.0.stx_ino,
            birth_ns: if birth { ns(self.0.stx_btime) } else { 0 },
            format: self.0.stx_mode & libc::S_IFMT as u16,
        }
    }

    pub fn kind(&self) -> Kind {
        match u32::from(self.0.stx_mode) & libc::S_IFMT {
            libc::S_IFREG => Kind::File,
            libc::S_IFDIR => Kind::Dir,
            libc::S_IFLNK => Kind::Symlink,
            _ => Kind::Special,
        }
    }

    pub fn size(&self) -> u64 {
        self.0.stx_size
    }

    pub fn mode(&self) -> u32 {
        u32::from(self.0.stx_mode)
    }

    pub fn nlink(&self) -> u32 {
        self.0.stx_nlink
    }

    /// spec: fs 4, generation of local files.
    pub fn generation(&self) -> u64 {
        u64::try_from(ns(self.0.stx_mtime)).unwrap_or(0)
    }

    /// The same for every process, as long as the file is there.
    fn identity(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.key().hash(&mut hasher);
        hasher.finish() >> 11
    }

    /// A number that changes with whatever a client can see of the file.
    pub fn state(&self) -> u64 {
        let s = &self.0;
        let mut hasher = DefaultHasher::new();
        (ns(s.stx_mtime), ns(s.stx_ctime), s.stx_size).hash(&mut hasher);
        (s.stx_mode, s.stx_nlink, s.stx_uid, s.stx_gid).hash(&mut hasher);
        hasher.finish()
    }

    pub fn attr(&self, id: NodeId) -> Attr {
        Attr {
            id,
            kind: self.kind(),
            mode: self.mode(),
            nlink: self.nlink(),
            uid: self.0.stx_uid,
            gid: self.0.stx_gid,
            size: self.0.stx_size,
            blocks: self.0.stx_blocks,
            atime_ns: ns(self.0.stx_atime),
            mtime_ns: ns(self.0.stx_mtime),
            ctime_ns: ns(self.0.stx_ctime),
            generation: self.generation(),
            identity: self.identity(),
        }
    }
}

fn ns(t: libc::statx_timestamp) -> i64 {
    t.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(t.tv_nsec))
}

/// A descriptor that only names the node at `path` below `dir`: nothing is opened, no symlink is
/// followed on the way, a symlink at the end is the node itself. `path` is relative and not empty.
pub fn open_beneath(dir: impl AsFd, path: &OsStr) -> Result<OwnedFd> {
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).resolve(
        ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_SYMLINKS,
    );
    Ok(openat2(dir, path, how)?)
}

/// Errors: `unsupported`, saying what this system lacks.
pub fn probe(root: &OwnedFd) -> Result<()> {
    let lacking = |what: &'static str| {
        move |e: Error| Error::new(crate::base::Code::Unsupported, what).context(e)
    };
    reopen(root, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
        .map_err(lacking("exports need /proc to be mounted"))?;
    open_beneath(root, OsStr::new("."))
        .map_err(lacking("exports need openat2, in Linux since 5.6"))
        .map(drop)
}

/// The directory above a directory, wherever that is: only to be looked at, never handed out.
pub fn parent(dir: impl AsFd) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::openat(dir, "..", flags, Mode::empty())?)
}

/// Opens what `fd` names, and nothing else, whatever its path has become.
pub fn reopen(fd: impl AsFd, flags: OFlag) -> Result<File> {
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let fd = nix::fcntl::open(proc_path(fd).as_c_str(), flags, Mode::empty())?;
    Ok(File::from(fd))
}

/// The path under which the kernel finds exactly the node of `fd`.
pub fn proc_path(fd: impl AsFd) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).expect("digits hold no NUL")
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::invalid("a name must not contain NUL"))
}

/// The node called `name` in `dir`, or `dir` itself with an empty name.
pub fn stat(dir: impl AsFd, name: &OsStr) -> Result<Stat> {
    let name = c_string(name.as_bytes())?;
    let mut out = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    // SAFETY: `name` is a C string and `out` has room for one statx.
    let rc = unsafe {
        libc::statx(dir.as_fd().as_raw_fd(), name.as_ptr(), flags, mask, out.as_mut_ptr())
    };
    check(rc as isize)?;
    // SAFETY: zeroed, and filled by the kernel.
    Ok(Stat(unsafe { out.assume_init() }))
}

fn check(rc: isize) -> Result<usize> {
    usize::try_from(rc).map_err(|_| Error::last_os())
}

/// Up to `len` bytes at `offset`; fewer only at the end of the file.
pub fn pread(file: &File, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut out = Vec::<u8>::with_capacity(len);
    while out.len() < len {
        let want = len - out.len();
        let at = offset.saturating_add(out.len() as u64);
        let at = i64::try_from(at).map_err(|_| Error::invalid("offset is beyond every file"))?;
        let room = &mut out.spare_capacity_mut()[..want];
        // SAFETY: `room` is writable memory of `want` bytes.
        let rc = unsafe { libc::pread(file.as_raw_fd(), room.as_mut_ptr().cast(), want, at) };
        let n = match check(rc) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.errno() == libc::EINTR => continue,
            Err(_) if !out.is_empty() => break,
            Err(e) => return Err(e),
        };
        // SAFETY: the kernel has filled `n` bytes of the room.
        unsafe { out.set_len(out.len() + n) };
    }
    Ok(out)
}

/// As much of `len` bytes at `offset` as needs no disk. Errors: EAGAIN; those of filesystems that cannot
/// tell.
pub fn pread_cached(file: &File, offset: u64, len: usize) -> Result<Vec<u8>> {
    let at = i64::try_from(offset).map_err(|_| Error::invalid("offset is beyond every file"))?;
    let mut out = Vec::<u8>::with_capacity(len);
    let room = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: len };
    // SAFETY: `room` is writable memory of `len` bytes.
    let rc = unsafe { libc::preadv2(file.as_raw_fd(), &room, 1, at, libc::RWF_NOWAIT) };
    let n = check(rc)?;
    // SAFETY: the kernel has filled `n` bytes of the room.
    unsafe { out.set_len(n) };
    Ok(out)
}

/// An entry as the directory has it.
pub struct Dirent {
    pub name: OsString,
    /// Where the directory goes on after it.
    pub next: u64,
}

/// The entries from the descriptor's position on that fit into `buffer`; none at the end.
pub fn getdents(dir: impl AsFd, buffer: &mut [u8]) -> Result<Vec<Dirent>> {
    // struct linux_dirent64: u64 ino, i64 off, u16 reclen, u8 type, name, NUL.
    const OFF: usize = 8;
    const RECLEN: usize = 16;
    const NAME: usize = 19;
    // SAFETY: `buffer` is writable memory of the length given.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            dir.as_fd().as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    let mut rest = &buffer[..check(rc as isize)?];
    let mut out = Vec::new();
    while rest.len() > NAME {
        let reclen = usize::from(u16::from_ne_bytes([rest[RECLEN], rest[RECLEN + 1]]));
        let (entry, tail) = rest.split_at(reclen.clamp(NAME + 1, rest.len()));
        let name = entry[NAME..].split(|b| *b == 0).next().unwrap_or_default();
        let next = entry[OFF..OFF + 8].try_into().map(u64::from_ne_bytes).unwrap_or_default();
        out.push(Dirent { name: OsString::from_vec(name.to_vec()), next });
        rest = tail;
    }
    Ok(out)
}

/// Calls `get` with growing buffers until the value fits. Linux bounds both values and lists of
/// extended attributes by 64 KiB.
fn sized(get: impl Fn(&mut [u8]) -> isize) -> Result<Vec<u8>> {
    let mut value = vec![0; 4096];
    loop {
        match check(get(&mut value)) {
            Ok(n) => {
                value.truncate(n);
                return Ok(value);
            }
            Err(e) if e.errno() == libc::ERANGE && value.len() < 64 * 1024 => {
                value.resize(64 * 1024, 0);
            }
            Err(e) => return Err(e),
        }
    }
}

pub fn getxattr(path: &CStr, name: &[u8]) -> Result<Vec<u8>> {
    let name = c_string(name)?;
    // SAFETY: C strings, and a buffer with its length.
    sized(|b| unsafe {
        libc::getxattr(path.as_ptr(), name.as_ptr(), b.as_mut_ptr().cast(), b.len())
    })
}

pub fn listxattr(path: &CStr) -> Result<Vec<Vec<u8>>> {
    // SAFETY: a C string, and a buffer with its length.
    let all = sized(|b| unsafe { libc::listxattr(path.as_ptr(), b.as_mut_ptr().cast(), b.len()) })?;
    Ok(all.split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect())
}

pub fn setxattr(path: &CStr, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
    let name = c_string(name)?;
    // SAFETY: C strings, and a value with its length.
    let rc = unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags)
    };
    check(rc as isize).map(drop)
}

pub fn removexattr(path: &CStr, name: &[u8]) -> Result<()> {
    let name = c_string(name)?;
    // SAFETY: C strings.
    check(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) } as isize).map(drop)
}

/// `operation` is one of the LOCK_ constants; never waits.
pub fn flock(file: &File, operation: i32) -> Result<()> {
    // SAFETY: the descriptor is open.
    check(unsafe { libc::flock(file.as_raw_fd(), operation | libc::LOCK_NB) } as isize).map(drop)
}

/// The host's words for a lock of a range: through an open file description, not by process.
fn range_lock(level: Level, range: Range) -> Result<libc::flock> {
    let start = i64::try_from(range.start).map_err(|_| Error::invalid("start is too large"))?;
    let kind = match level {
        Level::Free => libc::F_UNLCK,
        Level::Shared => libc::F_RDLCK,
        Level::Exclusive => libc::F_WRLCK,
    };
    // SAFETY: a plain structure of integers; the process must be 0.
    let mut lock = unsafe { MaybeUninit::<libc::flock>::zeroed().assume_init() };
    lock.l_type = kind as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock.l_start = start;
    // 0: to the end, wherever that will be.
    lock.l_len = match i64::try_from(range.end) {
        Ok(end) if end < i64::MAX => end - start + 1,
        _ => 0,
    };
    Ok(lock)
}

/// Never waits. Errors: EAGAIN or EACCES when another holds what is in the way.
pub fn set_range(file: &File, level: Level, range: Range) -> Result<()> {
    let lock = range_lock(level, range)?;
    // SAFETY: the descriptor is open, and the structure is what F_OFD_SETLK reads.
    let rc = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    check(rc as isize).map(drop)
}

/// The lock of somebody else that bars this one.
pub fn test_range(file: &File, level: Level, range: Range) -> Result<Option<(Level, Range)>> {
    let mut lock = range_lock(level, range)?;
    // SAFETY: the descriptor is open, and the structure is what F_OFD_GETLK reads and writes.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) } as isize)?;
    let level = match i32::from(lock.l_type) {
        libc::F_UNLCK => return Ok(None),
        libc::F_RDLCK => Level::Shared,
        _ => Level::Exclusive,
    };
    let start = u64::try_from(lock.l_start).unwrap_or(0);
    let end = match u64::try_from(lock.l_len) {
        Ok(len @ 1..) => start.saturating_add(len - 1),
        _ => u64::MAX,
    };
    Ok(Some((level, Range { start, end })))
}

/// Copies up to `len` bytes from one offset to another within the host; 0 at the end.
pub fn copy_range(from: (&File, i64), to: (&File, i64), len: usize) -> Result<usize> {
    let (mut read, mut write) = (from.1, to.1);
    let (from, to) = (from.0.as_raw_fd(), to.0.as_raw_fd());
    // SAFETY: the descriptors are open, and the offsets are ours.
    check(unsafe { libc::copy_file_range(from, &mut read, to, &mut write, len, 0) })
}
