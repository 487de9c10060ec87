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

impl From<crate::wire::Frame> for Message {
    fn from(frame: crate::wire::Frame) -> Message {
        match frame {
            crate::wire::Frame::Text(text) => Message::text(text),
            crate::wire::Frame::Binary(data) => Message::Binary(data),
        }
    }
}

/// Payloads up to this many bytes are copied behind their header; longer ones are queued as they are.
const COPY_MAX: usize = 16 << 10;

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
    payload: Bytes,
    /// To be applied to the copy of a short payload; a long one is masked already.
    mask: Option<[u8; 4]>,
}

impl Frame {
    /// Bytes that stand for themselves.
    pub fn raw(payload: Bytes) -> Frame {
        Frame { header: ([0; HEADER_MAX], 0), payload, mask: None }
    }

    pub fn data(message: Message, role: Role) -> Frame {
        let (opcode, payload) = match message {
            Message::Text(text) => (Data::Text, Bytes::from(text)),
            Message::Binary(data) => (Data::Binary, data),
        };
        Frame::new(OpCode::Data(opcode), payload, role)
    }

    pub fn ping(role: Role) -> Frame {
        Frame::new(OpCode::Control(Control::Ping), Bytes::new(), role)
    }

    /// Answers a ping; `payload` is the ping's.
    pub fn pong(payload: Bytes, role: Role) -> Frame {
        Frame::new(OpCode::Control(Control::Pong), payload, role)
    }

    /// A close frame; without a code it is empty. A reason that does not fit is cut.
    pub fn close(code: Option<u16>, reason: &str, role: Role) -> Frame {
        let mut payload = Vec::new();
        if let Some(code) = code {
            let end = reason.floor_char_boundary(CONTROL_MAX - 2);
            payload.extend_from_slice(&code.to_be_bytes());
            payload.extend_from_slice(&reason.as_bytes()[..end]);
        }
        Frame::new(OpCode::Control(Control::Close), payload.into(), role)
    }

    fn new(opcode: OpCode, payload: Bytes, role: Role) -> Frame {
        let mask = (role == Role::Client).then(random_mask);
        let header = FrameHeader { opcode, mask, ..FrameHeader::default() };
        let mut bytes = [0; HEADER_MAX];
        let mut rest = &mut bytes[..];
        header.format(payload.len() as u64, &mut rest).expect("no header is longer");
        let used = HEADER_MAX - rest.len();
        let mut frame = Frame { header: (bytes, used), payload, mask };
        if let Some(mask) = mask
            && frame.payload.len() > COPY_MAX
        {
            // Nearly always nobody else holds it, and it is masked where it lies.
            let mut masked =
                frame.payload.try_into_mut().unwrap_or_else(|shared| shared[..].into());
            apply_mask(&mut masked, mask);
            (frame.payload, frame.mask) = (masked.freeze(), None);
        }
        frame
    }

    pub fn len(&self) -> usize {
        self.header.1 + self.payload.len()
    }

    /// Puts the frame behind `out`, or, where the payload is long, all but that, which it returns.
    pub fn append(self, out: &mut BytesMut) -> Option<Bytes> {
        out.extend_from_slice(&self.header.0[..self.header.1]);
        if self.payload.len() > COPY_MAX {
            return Some(self.payload);
        }
        let start = out.len();
        out.extend_from_slice(&self.payload);
        if let Some(mask) = self.mask {
            apply_mask(&mut out[start..], mask);
        }
        None
    }
}

fn apply_mask(data: &mut [u8], mask: [u8; 4]) {
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
            let frame = joined(Frame::data(Message::binary(payload.clone()), Role::Server));
            assert_eq!(frame, [header, payload].concat());
        }
    }

    #[test]
    fn a_masked_frame_unmasks_to_its_payload() {
        for len in [0, 1, 7, 8, 9, 31, 125, COPY_MAX, COPY_MAX + 1] {
            let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let frame = joined(Frame::data(Message::binary(payload.clone()), Role::Client));
            let start = frame.len() - len;
            let mask: [u8; 4] = frame[start - 4..start].try_into().unwrap();
            let mut body = frame[start..].to_vec();
            body.iter_mut().zip(mask.iter().cycle()).for_each(|(b, m)| *b ^= m);
            assert!(frame[1] & 0x80 != 0 && body == payload, "{len}");
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
