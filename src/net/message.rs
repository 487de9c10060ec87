//! Messages and their frames on the wire (RFC 6455 section 5). It encodes only; decoding is tungstenite's.

use bytes::{Bytes, BytesMut};
use std::cell::RefCell;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// UTF-8 text in a reference-counted buffer; clones are cheap.
pub use tungstenite::Utf8Bytes as Text;

/// A whole WebSocket message. Clones share the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Text(Text),
    Binary(Bytes),
}

impl Message {
    pub fn text(text: impl Into<Text>) -> Message {
        Message::Text(text.into())
    }

    pub fn binary(data: impl Into<Bytes>) -> Message {
        Message::Binary(data.into())
    }

    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Message::Text(text) => text.as_ref(),
            Message::Binary(data) => data,
        }
    }

    /// Payload length in bytes.
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A message to be sent: what is long need not stand behind its header in memory.
pub struct Outgoing {
    opcode: Data,
    head: Bytes,
    rest: Bytes,
}

impl From<Message> for Outgoing {
    fn from(message: Message) -> Outgoing {
        let (opcode, rest) = match message {
            Message::Text(text) => (Data::Text, Bytes::from(text)),
            Message::Binary(data) => (Data::Binary, data),
        };
        Outgoing { opcode, head: Bytes::new(), rest }
    }
}

impl From<crate::wire::Frame> for Outgoing {
    fn from(frame: crate::wire::Frame) -> Outgoing {
        match frame {
            crate::wire::Frame::Text(text) => Message::text(text).into(),
            crate::wire::Frame::Binary { head, data } => {
                Outgoing { opcode: Data::Binary, head, rest: data }
            }
        }
    }
}

/// Payloads up to this many bytes are copied behind their header; longer ones are queued as they are.
const COPY_MAX: usize = 16 << 10;

/// Bytes that fit into the first cache of any processor.
const MASKED_AT_ONCE: usize = 8 << 10;

/// A control frame's payload limit (RFC 6455 section 5.5).
const CONTROL_MAX: usize = 125;

/// Bytes of the longest frame header.
const HEADER_MAX: usize = 14;

/// Clients mask what they send, servers do not (RFC 6455 section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Server,
    Client,
}

/// Bytes ready to be queued: a frame, or the raw text of an HTTP answer.
pub(super) struct Frame {
    header: ([u8; HEADER_MAX], usize),
    /// Stands before the payload, and is copied.
    head: Bytes,
    payload: Bytes,
    /// To be applied to what is copied; a long payload is masked already.
    mask: Option<[u8; 4]>,
}

impl Frame {
    /// Bytes that stand for themselves.
    pub fn raw(payload: Bytes) -> Frame {
        Frame { header: ([0; HEADER_MAX], 0), head: Bytes::new(), payload, mask: None }
    }

    pub fn data(message: Outgoing, role: Role) -> Frame {
        Frame::new(OpCode::Data(message.opcode), message.head, message.rest, role)
    }

    pub fn ping(role: Role) -> Frame {
        Frame::new(OpCode::Control(Control::Ping), Bytes::new(), Bytes::new(), role)
    }

    /// Answers a ping; `payload` is the ping's.
    pub fn pong(payload: Bytes, role: Role) -> Frame {
        Frame::new(OpCode::Control(Control::Pong), Bytes::new(), payload, role)
    }

    /// A close frame; without a code it is empty. A reason that does not fit is cut.
    pub fn close(code: Option<u16>, reason: &str, role: Role) -> Frame {
        let mut payload = Vec::new();
        if let Some(code) = code {
            let end = reason.floor_char_boundary(CONTROL_MAX - 2);
            payload.extend_from_slice(&code.to_be_bytes());
            payload.extend_from_slice(&reason.as_bytes()[..end]);
        }
        Frame::new(OpCode::Control(Control::Close), Bytes::new(), payload.into(), role)
    }

    fn new(opcode: OpCode, head: Bytes, payload: Bytes, role: Role) -> Frame {
        let mask = (role == Role::Client).then(random_mask);
        let header = FrameHeader { opcode, mask, ..FrameHeader::default() };
        let mut bytes = [0; HEADER_MAX];
        let mut rest = &mut bytes[..];
        let len = head.len() + payload.len();
        header.format(len as u64, &mut rest).expect("no header is longer");
        let used = HEADER_MAX - rest.len();
        let mut frame = Frame { header: (bytes, used), head, payload, mask };
        if let Some(mask) = mask
            && frame.payload.len() > COPY_MAX
        {
            frame.payload = masked(&frame.payload, mask, frame.head.len());
        }
        frame
    }

    pub fn len(&self) -> usize {
        self.header.1 + self.head.len() + self.payload.len()
    }

    /// Puts the frame behind `out`, or, where the payload is long, all but that, which it returns.
    pub fn append(self, out: &mut BytesMut) -> Option<Bytes> {
        out.extend_from_slice(&self.header.0[..self.header.1]);
        let start = out.len();
        out.extend_from_slice(&self.head);
        let is_long = self.payload.len() > COPY_MAX;
        if !is_long {
            out.extend_from_slice(&self.payload);
        }
        if let Some(mask) = self.mask {
            apply_mask(&mut out[start..], mask, 0);
        }
        is_long.then_some(self.payload)
    }
}

/// A masked copy, made piece by piece while the piece is in the processor's cache.
fn masked(data: &[u8], mask: [u8; 4], at: usize) -> Bytes {
    let mut copy = BytesMut::with_capacity(data.len());
    for piece in data.chunks(MASKED_AT_ONCE) {
        let start = copy.len();
        copy.extend_from_slice(piece);
        apply_mask(&mut copy[start..], mask, at + start);
    }
    copy.freeze()
}

/// `at`: bytes of the message before `data`.
fn apply_mask(data: &mut [u8], mut mask: [u8; 4], at: usize) {
    mask.rotate_left(at % 4);
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut words = data.chunks_exact_mut(8);
    for word in &mut words {
        let masked = u64::from_ne_bytes((&*word).try_into().expect("eight bytes")) ^ wide;
        word.copy_from_slice(&masked.to_ne_bytes());
    }
    for (byte, m) in words.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= m;
    }
}

/// Masks must not be predictable (RFC 6455 section 5.3); one request to the kernel fills many.
fn random_mask() -> [u8; 4] {
    const MASKS: usize = 128;
    thread_local! {
        static POOL: RefCell<Vec<[u8; 4]>> = const { RefCell::new(Vec::new()) };
    }
    POOL.with_borrow_mut(|pool| {
        pool.pop().unwrap_or_else(|| {
            let mut bytes = [0u8; 4 * MASKS];
            getrandom::fill(&mut bytes).expect("the kernel's random generator answers");
            pool.extend(bytes.as_chunks::<4>().0);
            pool.pop().expect("just filled")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(frame: Frame) -> Vec<u8> {
        let (len, mut out) = (frame.len(), BytesMut::new());
        let rest = frame.append(&mut out).unwrap_or_default();
        let bytes = [&out[..], &rest[..]].concat();
        assert_eq!(bytes.len(), len);
        bytes
    }

    #[test]
    fn server_frames_have_the_shortest_length_and_no_mask() {
        for (len, header) in [
            (0, vec![0x82, 0]),
            (125, vec![0x82, 125]),
            (126, vec![0x82, 126, 0, 126]),
            (65535, vec![0x82, 126, 0xff, 0xff]),
            (65536, vec![0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let payload = vec![7u8; len];
            let frame = joined(Frame::data(Message::binary(payload.clone()).into(), Role::Server));
            assert_eq!(frame, [header, payload].concat());
        }
    }

    #[test]
    fn a_masked_frame_unmasks_to_its_payload() {
        for len in [0, 1, 7, 8, 9, 31, 125, COPY_MAX, COPY_MAX + 1] {
            let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let frame = joined(Frame::data(Message::binary(payload.clone()).into(), Role::Client));
            let start = frame.len() - len;
            let mask: [u8; 4] = frame[start - 4..start].try_into().unwrap();
            let mut body = frame[start..].to_vec();
            body.iter_mut().zip(mask.iter().cycle()).for_each(|(b, m)| *b ^= m);
            assert!(frame[1] & 0x80 != 0 && body == payload, "{len}");
        }
    }

    #[test]
    fn a_message_in_two_pieces_is_one_message() {
        for (head, data) in [(1, 0), (5, 7), (18, COPY_MAX), (3, COPY_MAX + 1), (4, COPY_MAX + 9)] {
            let bytes: Vec<u8> = (0..head + data).map(|n| n as u8).collect();
            let (head, data) = bytes.split_at(head);
            for role in [Role::Server, Role::Client] {
                let pieces = crate::wire::Frame::Binary {
                    head: head.to_vec().into(),
                    data: data.to_vec().into(),
                };
                let mut frame = joined(Frame::data(pieces.into(), role));
                let start = frame.len() - bytes.len();
                if role == Role::Client {
                    let mask: [u8; 4] = frame[start - 4..start].try_into().unwrap();
                    apply_mask(&mut frame[start..], mask, 0);
                }
                assert!(frame[start..] == bytes[..]);
            }
        }
    }

    #[test]
    fn a_long_close_reason_is_cut_between_characters() {
        let frame = joined(Frame::close(Some(1001), &"é".repeat(100), Role::Server));
        assert_eq!(frame[..4], [0x88, 2 + 122, 0x03, 0xe9]);
        assert!(std::str::from_utf8(&frame[4..]).is_ok());
        assert_eq!(joined(Frame::close(None, "unused", Role::Server)), [0x88, 0]);
    }
}
