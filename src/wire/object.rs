//! Writes one compact JSON object, member by member, into one string. For messages whose shape is
//! known: no intermediate values, and file data is encoded once, in place.

use serde::Serialize;
use std::fmt::Write;
use std::io;

/// Takes JSON as it is written, in pieces of whole characters.
struct Text<'a>(&'a mut String);

impl io::Write for Text<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.0.push_str(std::str::from_utf8(piece).map_err(io::Error::other)?);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An object under construction.
#[derive(Clone)]
pub struct Object(String);

impl Object {
    pub fn new() -> Object {
        Object::with_capacity(128)
    }

    /// With room for `bytes` of text.
    pub fn with_capacity(bytes: usize) -> Object {
        let mut s = String::with_capacity(bytes);
        s.push('{');
        Object(s)
    }

    fn key(&mut self, key: &str) -> &mut String {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        let _ = write!(self.0, "\"{key}\":");
        &mut self.0
    }

    /// Any value that serialises. `key` is one of ours and needs no escaping.
    #[must_use]
    pub fn put(mut self, key: &str, value: impl Serialize) -> Object {
        let to = self.key(key);
        let begin = to.len();
        // Our values are numbers, strings, and structs of them: none can fail to serialise.
        if serde_json::to_writer(Text(to), &value).is_err() {
            to.truncate(begin);
            to.push_str("null");
        }
        self
    }

    #[must_use]
    pub fn put_some(self, key: &str, value: Option<impl Serialize>) -> Object {
        match value {
            Some(value) => self.put(key, value),
            None => self,
        }
    }

    /// A value that is JSON already.
    #[must_use]
    pub fn raw(mut self, key: &str, json: &str) -> Object {
        self.key(key).push_str(json);
        self
    }

    /// A value that `write` writes as JSON.
    #[must_use]
    pub fn with(mut self, key: &str, write: impl FnOnce(&mut String)) -> Object {
        write(self.key(key));
        self
    }

    #[must_use]
    pub fn object(self, key: &str, inner: Object) -> Object {
        self.raw(key, &inner.finish())
    }

    /// Bytes as standard base64.
    #[must_use]
    pub fn base64(mut self, key: &str, data: &[u8]) -> Object {
        let encoded = super::base64_encode(data);
        let s = self.key(key);
        s.push('"');
        s.push_str(&encoded);
        s.push('"');
        self
    }

    pub fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

impl Default for Object {
    fn default() -> Object {
        Object::new()
    }
}
