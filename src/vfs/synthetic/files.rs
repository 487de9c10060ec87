//! The ready-made directories and files.

use super::{Dir, File, FileStat, Item, OpenFile, not_found, slice};
use crate::base::{Deadline, Error, Result};
use crate::vfs::{Cx, FileKind, OpenFlags, Read, Written};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most that is collected of one message.
pub const MESSAGE_MAX: usize = 1 << 20;

/// A directory with these entries.
pub fn dir<N: Into<String>>(entries: impl IntoIterator<Item = (N, Item)>) -> Item {
    struct Static(BTreeMap<String, Item>);
    impl Dir for Static {
        fn lookup(&self, _: &Cx, name: &str) -> Result<Item> {
            self.0.get(name).cloned().ok_or_else(|| not_found(name))
        }
        fn list(&self, _: &Cx) -> Result<Vec<(String, Item)>> {
            Ok(self.0.iter().map(|(name, item)| (name.clone(), item.clone())).collect())
        }
    }
    Item::Dir(Arc::new(Static(entries.into_iter().map(|(n, i)| (n.into(), i)).collect())))
}

/// A directory whose entries are found by functions.
pub fn listing(
    lookup: impl Fn(&Cx, &str) -> Result<Item> + Send + Sync + 'static,
    list: impl Fn(&Cx) -> Result<Vec<(String, Item)>> + Send + Sync + 'static,
) -> Item {
    struct Listing<A, B>(A, B);
    impl<A, B> Dir for Listing<A, B>
    where
        A: Fn(&Cx, &str) -> Result<Item> + Send + Sync + 'static,
        B: Fn(&Cx) -> Result<Vec<(String, Item)>> + Send + Sync + 'static,
    {
        fn lookup(&self, cx: &Cx, name: &str) -> Result<Item> {
            (self.0)(cx, name)
        }
        fn list(&self, cx: &Cx) -> Result<Vec<(String, Item)>> {
            (self.1)(cx)
        }
    }
    Item::Dir(Arc::new(Listing(lookup, list)))
}

/// A file that is always the same.
pub fn fixed(content: impl Into<Bytes>) -> Item {
    struct Fixed(Bytes);
    impl File for Fixed {
        fn kind(&self) -> FileKind {
            FileKind::Plain
        }
        fn writable(&self, _: &Cx) -> bool {
            false
        }
        fn stat(&self, _: &Cx) -> Result<FileStat> {
            Ok(FileStat { size: self.0.len() as u64, ..FileStat::default() })
        }
        fn open(self: Arc<Self>, _: &Cx, _: OpenFlags) -> Result<Box<dyn OpenFile>> {
            Ok(Box::new(OpenFixed(self.0.clone())))
        }
    }
    struct OpenFixed(Bytes);
    impl OpenFile for OpenFixed {
        fn read(&mut self, _: &Cx, offset: u64, len: u32) -> Result<Read> {
            Ok(slice(&self.0, offset, len))
        }
    }
    Item::File(Arc::new(Fixed(content.into())))
}

/// A file whose content `make` makes: once for an open file, and anew when it is read from the start
/// again, so that reading in pieces never mixes two contents. A `stat` makes it too, for the size.
pub fn text<T: Into<Bytes>>(make: impl Fn(&Cx) -> Result<T> + Send + Sync + 'static) -> Item {
    type Make = Arc<dyn Fn(&Cx) -> Result<Bytes> + Send + Sync>;
    struct Text(Make);
    impl File for Text {
        fn kind(&self) -> FileKind {
            FileKind::Stream
        }
        fn writable(&self, _: &Cx) -> bool {
            false
        }
        fn stat(&self, cx: &Cx) -> Result<FileStat> {
            let content = (self.0)(cx)?;
            let mut hasher = DefaultHasher::new();
            content.hash(&mut hasher);
            let (size, generation) = (content.len() as u64, hasher.finish() >> 11);
            Ok(FileStat { size, generation, ..FileStat::default() })
        }
        fn open(self: Arc<Self>, _: &Cx, _: OpenFlags) -> Result<Box<dyn OpenFile>> {
            Ok(Box::new(OpenText { make: self.0.clone(), kept: None }))
        }
    }
    struct OpenText {
        make: Make,
        kept: Option<Bytes>,
    }
    impl OpenFile for OpenText {
        fn read(&mut self, cx: &Cx, offset: u64, len: u32) -> Result<Read> {
            match &self.kept {
                Some(content) if offset > 0 => Ok(slice(content, offset, len)),
                _ => Ok(slice(self.kept.insert((self.make)(cx)?), offset, len)),
            }
        }
    }
    Item::File(Arc::new(Text(Arc::new(move |cx: &Cx| make(cx).map(Into::into)))))
}

/// One reading of a blocking file, from its start to its end.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    began: Instant,
}

impl Turn {
    /// The moment until which a file that lets its readers wait for `wait` may do so.
    pub fn until(&self, wait: Duration) -> Deadline {
        Deadline::after(wait.saturating_sub(self.began.elapsed()))
    }
}

/// A file that may keep its readers waiting. `make` gives the whole content, or what to wait for before
/// it is asked again; when [`Turn::until`] has passed it gives what a time-out gives. A read from the
/// start begins a new turn.
pub fn stream(make: impl Fn(&Cx, &Turn) -> Result<Read> + Send + Sync + 'static) -> Item {
    type Make = Arc<dyn Fn(&Cx, &Turn) -> Result<Read> + Send + Sync>;
    struct Stream(Make);
    impl File for Stream {
        fn kind(&self) -> FileKind {
            FileKind::Stream
        }
        fn writable(&self, _: &Cx) -> bool {
            false
        }
        fn stat(&self, _: &Cx) -> Result<FileStat> {
            Ok(FileStat::default())
        }
        fn open(self: Arc<Self>, _: &Cx, _: OpenFlags) -> Result<Box<dyn OpenFile>> {
            Ok(Box::new(OpenStream { make: self.0.clone(), state: State::Fresh }))
        }
    }
    enum State {
        Fresh,
        Waiting(Turn),
        Made(Bytes),
    }
    struct OpenStream {
        make: Make,
        state: State,
    }
    impl OpenFile for OpenStream {
        fn read(&mut self, cx: &Cx, offset: u64, len: u32) -> Result<Read> {
            let turn = match &self.state {
                State::Made(content) if offset > 0 => return Ok(slice(content, offset, len)),
                State::Waiting(turn) => *turn,
                _ => Turn { began: Instant::now() },
            };
            match (self.make)(cx, &turn)? {
                Read::Data { bytes, .. } => {
                    let piece = slice(&bytes, offset, len);
                    self.state = State::Made(bytes);
                    Ok(piece)
                }
                wait => {
                    self.state = State::Waiting(turn);
                    Ok(wait)
                }
            }
        }
    }
    Item::File(Arc::new(Stream(Arc::new(make))))
}

/// What a message file answers.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Members of the write's own answer; see [`Written::extra`].
    pub extra: Option<serde_json::Map<String, serde_json::Value>>,
    /// What is read from the same handle afterwards.
    pub body: Bytes,
}

/// A control file: what is written up to a flush, or until it is `complete`, is one message, which
/// `deliver` takes. Errors of the file: EFBIG beyond [`MESSAGE_MAX`].
pub fn message(
    complete: fn(&[u8]) -> bool,
    deliver: impl Fn(&Cx, &[u8]) -> Result<Reply> + Send + Sync + 'static,
) -> Item {
    Item::File(Arc::new(Message { complete, deliver: Arc::new(deliver) }))
}

/// A [`message`] that is complete as soon as it is one JSON object.
pub fn json_message(deliver: impl Fn(&Cx, &[u8]) -> Result<Reply> + Send + Sync + 'static) -> Item {
    message(is_json_object, deliver)
}

fn is_json_object(message: &[u8]) -> bool {
    let text = message.trim_ascii();
    // Looked at first, so that a message in many pieces is not parsed at every piece.
    text.first() == Some(&b'{')
        && text.last() == Some(&b'}')
        && serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok()
}

type Deliver = Arc<dyn Fn(&Cx, &[u8]) -> Result<Reply> + Send + Sync>;

struct Message {
    complete: fn(&[u8]) -> bool,
    deliver: Deliver,
}

impl File for Message {
    fn kind(&self) -> FileKind {
        FileKind::Message
    }

    fn writable(&self, _: &Cx) -> bool {
        true
    }

    fn stat(&self, _: &Cx) -> Result<FileStat> {
        Ok(FileStat::default())
    }

    fn open(self: Arc<Self>, _: &Cx, _: OpenFlags) -> Result<Box<dyn OpenFile>> {
        Ok(Box::new(OpenMessage {
            complete: self.complete,
            deliver: self.deliver.clone(),
            collected: Vec::new(),
            written_to: 0,
            body: Bytes::new(),
            body_at: None,
        }))
    }
}

struct OpenMessage {
    complete: fn(&[u8]) -> bool,
    deliver: Deliver,
    collected: Vec<u8>,
    /// The file position after the last write.
    written_to: u64,
    body: Bytes,
    /// The offset at which the reader sees the body begin, once it has begun to read.
    body_at: Option<u64>,
}

impl OpenMessage {
    fn deliver(&mut self, cx: &Cx) -> Result<Option<serde_json::Map<String, serde_json::Value>>> {
        let message = std::mem::take(&mut self.collected);
        (self.body, self.body_at) = (Bytes::new(), None);
        let reply = (self.deliver)(cx, &message)?;
        self.body = reply.body;
        Ok(reply.extra)
    }
}

impl OpenFile for OpenMessage {
    /// A reader that goes on at its file position sees the reply begin there; one that reads from 0,
    /// at 0.
    fn read(&mut self, _: &Cx, offset: u64, len: u32) -> Result<Read> {
        let first = if offset == self.written_to { offset } else { 0 };
        let at = *self.body_at.get_or_insert(first);
        if offset < at {
            self.body_at = Some(0);
            return Ok(slice(&self.body, offset, len));
        }
        Ok(slice(&self.body, offset - at, len))
    }

    fn write(&mut self, cx: &Cx, offset: u64, data: &[u8]) -> Result<Written> {
        if self.collected.len() + data.len() > MESSAGE_MAX {
            self.collected.clear();
            let text = format!("message is longer than {MESSAGE_MAX} bytes");
            return Err(Error::from_errno(libc::EFBIG, text));
        }
        self.collected.extend_from_slice(data);
        self.written_to = offset.saturating_add(data.len() as u64);
        let extra = if (self.complete)(&self.collected) { self.deliver(cx)? } else { None };
        Ok(Written { n: data.len() as u64, attr: None, extra })
    }

    fn flush(&mut self, cx: &Cx) -> Result<Written> {
        if self.collected.is_empty() {
            return Ok(Written::default());
        }
        Ok(Written { n: 0, attr: None, extra: self.deliver(cx)? })
    }
}
