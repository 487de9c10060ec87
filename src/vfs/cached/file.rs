//! Open files of a cached tree: what is read ahead and written behind, and what became of the writes.

use super::Cached;
use super::ahead::{Ahead, Fetch, Share};
use super::behind::Sender;
use super::disk::Volume;
use crate::base::{Error, Result};
use crate::vfs::{
    Attr, Cx, Event, FileKind, Handle, Kind, NodeId, OpenFlags, Opened, Read, Written,
};
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Files of at most so many bytes come with their opening.
pub(super) const CONTENT_MAX: u32 = 64 << 10;

pub(super) struct OpenFile {
    pub node: NodeId,
    flags: OpenFlags,
    kind: FileKind,
    ahead: Arc<Ahead>,
    /// The first write that failed since it was last told.
    failed: Mutex<Option<Error>>,
}

impl OpenFile {
    fn fail(&self, e: Error) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get_or_insert(e);
    }

    fn take_failure(&self) -> Result<()> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        failed.map_or(Ok(()), Err)
    }

    /// Appending belongs to the tree, which alone knows where a file ends.
    fn is_written_behind(&self) -> bool {
        self.kind == FileKind::Plain && self.flags.writes() && !self.flags.append
    }
}

/// Sends what was written behind.
pub(super) struct Delivery(pub Weak<Cached>);

impl Sender for Delivery {
    fn send(&self, node: NodeId, handle: Handle, offset: u64, data: Bytes) {
        let Some(cached) = self.0.upgrade() else { return };
        // Of several writes on their way at once none tells what the file is like after all of them.
        let since = cached.meta.edit(node);
        let cx = cached.background();
        let written = cached.sending.run(|| cached.write_all(&cx, handle, offset, data));
        match written {
            Ok(Some(attr)) => cached.meta.wrote(since, &attr, cached.until()),
            Ok(None) => drop(cached.meta.edit(node)),
            Err(e) => {
                cached.meta.edit(node);
                if let Some(file) = cached.file(handle) {
                    file.fail(e);
                }
            }
        }
    }
}

impl Cached {
    fn write_all(
        &self,
        cx: &Cx,
        handle: Handle,
        mut offset: u64,
        mut data: Bytes,
    ) -> Result<Option<Attr>> {
        loop {
            let written = self.inner.write(cx, handle, offset, data.clone())?;
            let n = usize::try_from(written.n).unwrap_or(usize::MAX).min(data.len());
            if n == data.len() {
                return Ok(written.attr);
            }
            if n == 0 {
                return Err(Error::from_errno(libc::ENOSPC, "the device takes no more"));
            }
            offset += n as u64;
            data = data.slice(n..);
        }
    }

    /// Waits until what was written to a file is on the tree.
    pub(super) fn drain(&self, cx: &Cx, node: NodeId) -> Result<()> {
        if !self.behind.is_dirty(node) {
            return Ok(());
        }
        let Some(sender) = self.sender.get() else { return Ok(()) };
        self.behind.drain(node, &**sender, cx.deadline, &cx.cancel)
    }

    /// As [`Cached::drain`], for everything: before the program ends.
    pub fn drain_all(&self, cx: &Cx) -> Result<()> {
        let mut outcome = Ok(());
        for node in self.behind.nodes() {
            outcome = outcome.and(self.drain(cx, node));
        }
        outcome
    }

    pub(super) fn drain_handle(&self, cx: &Cx, handle: Handle) -> Result<()> {
        self.file(handle).map_or(Ok(()), |file| self.drain(cx, file.node))
    }

    /// Notes an open file, and tells by its version whether its content is the one that was seen last.
    pub(super) fn keep(&self, node: NodeId, flags: OpenFlags, opened: Opened) -> Opened {
        let file = OpenFile {
            node,
            flags,
            kind: opened.kind,
            ahead: Arc::default(),
            failed: Mutex::default(),
        };
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        files.insert(opened.handle, Arc::new(file));
        drop(files);
        Opened { generation: self.meta.version(node, opened.generation), ..opened }
    }

    /// Room for the content of a file that is small, and that neither the kernel nor the disk has got. Where nobody
    /// tells of changes, it could be read long after it has changed.
    pub(super) fn wants_content(&self, node: NodeId, flags: OpenFlags) -> Option<Share> {
        let attr = self.meta.known(node).filter(|a| a.kind == Kind::File)?;
        let small = (1..=u64::from(CONTENT_MAX)).contains(&attr.size);
        let fresh = || {
            let kept = |volume: Volume| volume.read(0, attr.size as u32).is_some();
            self.meta.edition(node).is_none() && !self.volume(&attr).is_some_and(kept)
        };
        let live = self.inner.is_live();
        let wanted = live && flags.reads() && !flags.truncate && small && fresh();
        wanted.then(|| self.workers.contents.take(attr.size as usize)).flatten()
    }

    /// What came when a file was opened is there for its reader.
    pub(super) fn begin_with(&self, node: NodeId, handle: Handle, content: Bytes, share: Share) {
        if let Some(volume) = self.meta.known(node).and_then(|attr| self.volume(&attr)) {
            volume.keep(0, &content);
        }
        if let (Some(file), Some(edition)) = (self.file(handle), self.meta.edition(node)) {
            file.ahead.begin(edition, content, CONTENT_MAX.into(), share);
        }
    }

    pub(super) fn read_file(
        self: &Cached,
        cx: &Cx,
        handle: Handle,
        offset: u64,
        len: u32,
    ) -> Result<Read> {
        let file = self.file(handle).filter(|f| f.kind == FileKind::Plain && f.flags.reads());
        let Some(file) = file else { return self.inner.read(cx, handle, offset, len) };
        self.drain(cx, file.node)?;
        let (inner, who, timeout_ms) =
            (self.inner.clone(), self.background.clone(), self.workers.options.timeout_ms);
        let attr = self.meta.known(file.node);
        let volume = attr.as_ref().and_then(|attr| self.volume(attr)).map(Arc::new);
        let kept = volume.clone();
        let fetch: Fetch = Arc::new(move |offset, len| {
            if let Some(bytes) = kept.as_ref().and_then(|volume| volume.read(offset, len)) {
                return Ok(bytes);
            }
            let cx = Cx::new(who.clone(), crate::base::Deadline::after_ms(timeout_ms));
            let bytes = crate::vfs::walk::read_full(&*inner, &cx, handle, offset, len)?;
            if let Some(volume) = &kept {
                volume.keep(offset, &bytes);
            }
            Ok(bytes)
        });
        let known = (self.meta.edition(file.node), attr.map(|attr| attr.size));
        let (deadline, cancel) = (cx.deadline, &cx.cancel);
        let at = (offset, len);
        match file.ahead.read(at, known, &self.workers, &fetch, deadline, cancel)? {
            Some(bytes) => {
                let eof = bytes.len() < len as usize;
                Ok(Read::Data { bytes, eof })
            }
            None => self.read_through(cx, (file.node, handle), at, volume.as_deref()),
        }
    }

    /// From the disk, or from the tree, and then to the disk.
    fn read_through(
        &self,
        cx: &Cx,
        (node, handle): (NodeId, Handle),
        (offset, len): (u64, u32),
        volume: Option<&Volume>,
    ) -> Result<Read> {
        if let Some(bytes) = volume.and_then(|volume| volume.read(offset, len)) {
            let eof = bytes.len() < len as usize;
            return Ok(Read::Data { bytes, eof });
        }
        let read = self.known(node, self.inner.read(cx, handle, offset, len))?;
        if let (Some(volume), Read::Data { bytes, .. }) = (volume, &read) {
            volume.keep(offset, bytes);
        }
        Ok(read)
    }

    fn volume(&self, attr: &Attr) -> Option<Volume> {
        Volume::of(self.workers.disk.as_ref()?, self.source.as_ref()?, attr)
    }

    pub(super) fn write_file(
        &self,
        cx: &Cx,
        handle: Handle,
        offset: u64,
        data: Bytes,
    ) -> Result<Written> {
        let file =
            self.file(handle).ok_or_else(|| Error::from_errno(libc::EBADF, "unknown handle"))?;
        let len = data.len();
        let data =
            if file.is_written_behind() && len > 0 && offset.checked_add(len as u64).is_some() {
                let sender = self.sender.get().cloned();
                let sender = sender.ok_or_else(|| Error::from_errno(libc::EIO, "not ready"))?;
                self.meta.edit(file.node);
                match self.behind.write(file.node, handle, offset, data, &self.workers, &sender) {
                    Ok(()) => {
                        self.watchers
                            .announce(&[Event::Data { node: file.node, generation: None }]);
                        return Ok(Written::bytes(len));
                    }
                    Err(data) => data,
                }
            } else {
                data
            };
        // Too much is on its way, or the file is of another kind: nothing overtakes what was written.
        self.drain(cx, file.node)?;
        let since = self.meta.edit(file.node);
        let written = self.own.run(|| self.inner.write(cx, handle, offset, data));
        match written.as_ref().map(|w| &w.attr) {
            Ok(Some(attr)) => self.meta.wrote(since, attr, self.until()),
            _ => drop(self.meta.edit(file.node)),
        }
        self.acted(&file);
        self.known(file.node, written)
    }

    /// A message has been given to a file, perhaps. It may have had any effect, and its sender looks for
    /// that at once, also where the tree tells of none.
    fn acted(&self, file: &OpenFile) {
        if file.kind == FileKind::Message && !self.inner.is_live() {
            self.meta.clear();
        }
    }

    /// What was written is on the tree, or the first error is told.
    pub(super) fn settle(&self, cx: &Cx, handle: Handle) -> Result<()> {
        let Some(file) = self.file(handle) else { return Ok(()) };
        self.drain(cx, file.node)?;
        file.take_failure()
    }

    pub(super) fn flush_file(&self, cx: &Cx, handle: Handle) -> Result<Written> {
        self.settle(cx, handle)?;
        match self.file(handle) {
            // Nothing is left to do for it.
            Some(file) if file.kind == FileKind::Plain => Ok(Written::default()),
            Some(file) => {
                let flushed = self.inner.flush(cx, handle);
                self.acted(&file);
                flushed
            }
            None => self.inner.flush(cx, handle),
        }
    }

    pub(super) fn release_file(&self, cx: &Cx, handle: Handle) -> Result<()> {
        if let Err(e) = self.settle(cx, handle) {
            log::warn!("a file was closed before it was written: {e}");
        }
        self.files.write().unwrap_or_else(PoisonError::into_inner).remove(&handle);
        self.inner.release(cx, handle)
    }
}
