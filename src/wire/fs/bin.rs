//! Binary frames (spec: fs 23.1 and 23.2 row 24): a fixed header, JSON meta, and data, raw or as an LZ4 block.
//!
//! | offset | size | what (little endian) |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | kind: 0 request, 1 reply; 0x80 more where the data is an LZ4 block |
//! | 2 | 2 | operation number |
//! | 4 | 4 | tag |
//! | 8 | 4 | length of the meta |
//! | 12 | 4 | length of the data, before it was compressed |

use super::Op;
use crate::base::{Error, Result};
use crate::wire::{DATA_MAX, Frame};
use bytes::{BufMut, Bytes, BytesMut};
use lz4_flex::block;

pub const BIN_VERSION: u8 = 1;
/// Bytes before the meta.
pub const BIN_HEADER: usize = 16;
/// Where the tag stands.
const TAG_AT: usize = 4;
/// Bit of the kind: the data is an LZ4 block.
const PACKED: u8 = 0x80;
/// Data that is worth trying to compress.
const PACK_MIN: usize = 512;
/// Most bytes of a listing that an LZ4 block may stand for.
const LISTING_MAX: usize = 4 << 20;
/// No LZ4 block stands for more than so many times its length.
const RATIO_MAX: usize = 255;

/// How messages may travel, each as those before it, too; what both sides know is the lesser.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Framing {
    /// JSON alone.
    #[default]
    Text,
    /// File data in binary frames.
    Binary,
    /// File data and listings in binary frames, compressed where that makes them smaller.
    Lz4,
}

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

pub(super) fn encode_bin(head: Head, meta: &str, data: &Bytes, framing: Framing) -> Frame {
    let packed = if framing == Framing::Lz4 { pack(head.op, data) } else { None };
    let mut b = BytesMut::with_capacity(BIN_HEADER + meta.len());
    b.put_u8(BIN_VERSION);
    let kind = match head.kind {
        BinKind::Request => 0,
        BinKind::Reply => 1,
    };
    b.put_u8(kind | if packed.is_some() { PACKED } else { 0 });
    b.put_u16_le(head.op as u16);
    b.put_u32_le(head.tag);
    b.put_u32_le(meta.len() as u32);
    b.put_u32_le(data.len() as u32);
    b.put_slice(meta.as_bytes());
    Frame::Binary { head: b.freeze(), data: packed.unwrap_or_else(|| data.clone()) }
}

/// Most bytes that an LZ4 block may stand for.
pub const fn unpacked_max(op: Op) -> usize {
    match op {
        Op::Readdirp => LISTING_MAX,
        _ => DATA_MAX,
    }
}

/// The data as an LZ4 block, where that is smaller.
fn pack(op: Op, data: &Bytes) -> Option<Bytes> {
    if !(PACK_MIN..=unpacked_max(op)).contains(&data.len()) {
        return None;
    }
    let packed = block::compress(data);
    (packed.len() < data.len()).then(|| packed.into())
}

/// Nothing is allocated for a length that the block cannot have.
fn unpack(op: Op, block: &[u8], len: usize) -> Option<Bytes> {
    if len > unpacked_max(op) || len > block.len().saturating_mul(RATIO_MAX) {
        return None;
    }
    let mut data = vec![0; len];
    let n = block::decompress_into(block, &mut data).ok()?;
    (n == len).then(|| data.into())
}

/// Splits a binary message; meta and raw data are slices of it. `framing`: what its sender may use.
/// Errors: EINVAL.
pub fn decode_bin(frame: &Bytes, framing: Framing) -> Result<(Head, Bytes, Bytes)> {
    let bad = |what: &str| Error::invalid(format!("binary frame: {what}"));
    if frame.len() < BIN_HEADER {
        return Err(bad("shorter than its header"));
    }
    if frame[0] != BIN_VERSION {
        return Err(bad("unknown version"));
    }
    let is_packed = frame[1] & PACKED != 0;
    let kind = match frame[1] & !PACKED {
        0 => BinKind::Request,
        1 => BinKind::Reply,
        _ => return Err(bad("unknown kind")),
    };
    let op = u16::from_le_bytes([frame[2], frame[3]]);
    let op = Op::from_number(op).ok_or_else(|| bad("unknown operation"))?;
    let head = Head { kind, op, tag: word(frame, TAG_AT) };
    let (meta_len, data_len) = lengths(frame);
    let body = frame.len() - BIN_HEADER;
    if meta_len > body || (!is_packed && data_len != body - meta_len) {
        return Err(bad("lengths do not add up"));
    }
    let data_at = BIN_HEADER + meta_len;
    let (meta, data) = (frame.slice(BIN_HEADER..data_at), frame.slice(data_at..));
    if !is_packed {
        return Ok((head, meta, data));
    }
    if framing != Framing::Lz4 {
        return Err(bad("compression was not agreed on"));
    }
    let data = unpack(op, &data, data_len).ok_or_else(|| bad("not an LZ4 block of that length"))?;
    Ok((head, meta, data))
}

fn word(frame: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
}

/// Those of the meta and the raw data, as the header says them.
fn lengths(frame: &[u8]) -> (usize, usize) {
    (word(frame, 8) as usize, word(frame, 12) as usize)
}

/// Bytes that a well-formed binary message would have without compression.
pub fn raw_len(frame: &[u8]) -> usize {
    if frame.len() < BIN_HEADER {
        return frame.len();
    }
    let (meta, data) = lengths(frame);
    BIN_HEADER + meta + data
}

/// The tag of a message of this protocol, whatever else it holds.
pub fn frame_tag(frame: &Bytes) -> Option<u32> {
    (frame.len() >= BIN_HEADER).then(|| word(frame, TAG_AT))
}
