//! Binary frames (spec: fs 23.1, by negotiation of `bin:1`): a fixed header, JSON meta, raw data.
//!
//! | offset | size | what (little endian) |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | kind: 0 request, 1 reply |
//! | 2 | 2 | operation number |
//! | 4 | 4 | tag |
//! | 8 | 4 | length of the meta |
//! | 12 | 4 | length of the data |

use super::Op;
use crate::base::{Error, Result};
use crate::wire::Frame;
use bytes::{BufMut, Bytes, BytesMut};

pub const BIN_VERSION: u8 = 1;
/// Bytes before the meta.
pub const BIN_HEADER: usize = 16;
/// Where the tag stands.
const TAG_AT: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinKind {
    Request,
    Reply,
}

/// What the header says, lengths apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub kind: BinKind,
    pub op: Op,
    pub tag: u32,
}

pub(super) fn encode_bin(head: Head, meta: &str, data: &Bytes) -> Frame {
    let mut b = BytesMut::with_capacity(BIN_HEADER + meta.len());
    b.put_u8(BIN_VERSION);
    b.put_u8(match head.kind {
        BinKind::Request => 0,
        BinKind::Reply => 1,
    });
    b.put_u16_le(head.op as u16);
    b.put_u32_le(head.tag);
    b.put_u32_le(meta.len() as u32);
    b.put_u32_le(data.len() as u32);
    b.put_slice(meta.as_bytes());
    Frame::Binary { head: b.freeze(), data: data.clone() }
}

/// Splits a binary message; meta and data are slices of it. Errors: EINVAL.
pub fn decode_bin(frame: &Bytes) -> Result<(Head, Bytes, Bytes)> {
    let bad = |what: &str| Error::invalid(format!("binary frame: {what}"));
    let word =
        |at: usize| u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    if frame.len() < BIN_HEADER {
        return Err(bad("shorter than its header"));
    }
    if frame[0] != BIN_VERSION {
        return Err(bad("unknown version"));
    }
    let kind = match frame[1] {
        0 => BinKind::Request,
        1 => BinKind::Reply,
        _ => return Err(bad("unknown kind")),
    };
    let op = u16::from_le_bytes([frame[2], frame[3]]);
    let op = Op::from_number(op).ok_or_else(|| bad("unknown operation"))?;
    let (meta_len, data_len) = (word(8) as usize, word(12) as usize);
    if meta_len.checked_add(data_len) != Some(frame.len() - BIN_HEADER) {
        return Err(bad("lengths do not add up"));
    }
    let data = BIN_HEADER + meta_len;
    let head = Head { kind, op, tag: word(TAG_AT) };
    Ok((head, frame.slice(BIN_HEADER..data), frame.slice(data..)))
}

/// The tag of a message of this protocol, whatever else it holds.
pub fn frame_tag(frame: &Bytes) -> Option<u32> {
    let word = frame.get(TAG_AT..TAG_AT + 4)?;
    (frame.len() >= BIN_HEADER).then(|| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}
