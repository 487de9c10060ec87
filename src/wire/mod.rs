//! Every envelope and message as a typed value, with its JSON and binary form. No sockets here, and
//! no meaning: what a message does is decided further right.

pub mod acheron;
pub mod control;
mod envelope;
mod fields;
pub mod fs;
mod object;
pub mod secret;

pub use envelope::{Channel, Envelope, Malformed};
pub use fields::{Fields, base64_decode, base64_encode};
pub use object::Object;

use bytes::Bytes;

/// A message as it travels, before any socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Text(String),
    /// One message: what stands before the data, and the data, which is not copied behind it.
    Binary {
        head: Bytes,
        data: Bytes,
    },
}

/// Most bytes of file data in one READ reply or WRITE request.
pub const DATA_MAX: usize = 1024 * 1024;
