//! Reading: from bytes to request heads and messages. tungstenite decodes; what it would write is
//! discarded here, since every byte that goes out comes through the outbox.

use super::conn::Conn;
use super::head::{self, HEAD_MAX, Parsed};
use super::message::{Frame, Message, Role};
use super::outbox::{Gate, Shared, lost};
use super::transport::Transport;
use super::{Closed, Handler};
use crate::base::{Code, Error};
use std::cell::Cell;
use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{self, WebSocketConfig, WebSocketContext};

/// Read buffer of a connection; it also bounds how much of an announced message is set aside before
/// its bytes come.
const READ_BUFFER: usize = 4 << 10;
/// What is taken from the kernel at a time, by each thread that reads.
const PIECE: usize = 32 << 10;
/// Messages and bytes read from one connection before others get their turn.
const TURN_MESSAGES: usize = 64;
const TURN_BYTES: usize = 1 << 20;

/// An open WebSocket.
pub(super) struct Session {
    /// Reads only. What it would write (pongs, close replies) we write ourselves, through the outbox.
    context: WebSocketContext,
    /// `None` once the handler has been told of the end and only the peer's close frame is awaited.
    pub handler: Option<Box<dyn Handler>>,
    /// A ping is unanswered.
    pub pinged: bool,
    /// When to stop waiting for the peer's close frame.
    pub close_by: Option<Instant>,
}

/// What reading came to.
pub(super) enum Outcome {
    /// Nothing more is there.
    Dry,
    /// Reading stopped early: the turn was over, or the outbox or the requests in flight are full.
    More,
    Request(Parsed),
    /// The stream is at its end, or what came cannot be understood.
    End {
        reply: Option<(Option<u16>, &'static str)>,
        reason: Closed,
    },
}

impl Outcome {
    fn broken(code: u16, words: &'static str, error: Error) -> Outcome {
        Outcome::End { reply: Some((Some(code), words)), reason: Closed::Lost(error) }
    }

    fn lost(e: &io::Error) -> Outcome {
        Outcome::End { reply: None, reason: Closed::Lost(lost(e)) }
    }
}

impl Session {
    pub fn new(shared: &Shared, rest: Vec<u8>, handler: Box<dyn Handler>) -> Session {
        let role = match shared.role {
            Role::Server => protocol::Role::Server,
            Role::Client => protocol::Role::Client,
        };
        let max = Some(shared.max_message.load(Ordering::Relaxed));
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_message_size(max)
            .max_frame_size(max);
        let context = WebSocketContext::from_partially_read(rest, role, Some(config));
        Session { context, handler: Some(handler), pinged: false, close_by: None }
    }

    pub fn read(&mut self, shared: &Arc<Shared>, source: &mut Source<'_>) -> Outcome {
        let conn = Conn(shared.clone());
        for _ in 0..TURN_MESSAGES {
            match shared.gate() {
                Gate::Paused => return Outcome::More,
                // The handler has closed: it hears of no more messages.
                Gate::Closing if self.handler.is_some() => return Outcome::More,
                Gate::Open | Gate::Closing => {}
            }
            let max = Some(shared.max_message.load(Ordering::Relaxed));
            if self.context.get_config().max_message_size != max {
                self.context.set_config(|c| (c.max_message_size, c.max_frame_size) = (max, max));
            }
            match self.context.read(source) {
                Ok(tungstenite::Message::Text(text)) => self.message(&conn, Message::Text(text)),
                Ok(tungstenite::Message::Binary(data)) => {
                    self.message(&conn, Message::Binary(data));
                }
                Ok(tungstenite::Message::Ping(payload)) => {
                    if self.handler.is_some() {
                        shared.queue_raw(Frame::pong(payload, shared.role));
                    }
                }
                Ok(tungstenite::Message::Close(frame)) => return closed_by_peer(frame),
                Ok(_) => {}
                Err(tungstenite::Error::Io(e)) if e.kind() == ErrorKind::WouldBlock => {
                    return if source.spent() { Outcome::More } else { Outcome::Dry };
                }
                Err(e) => return failed(e),
            }
        }
        Outcome::More
    }

    fn message(&mut self, conn: &Conn, message: Message) {
        conn.0.port.received.add(1);
        self.call(conn, |handler, conn| handler.message(conn, message));
    }

    /// A handler that panics loses its connection, and nothing else happens.
    pub fn call(&mut self, conn: &Conn, f: impl FnOnce(&mut dyn Handler, &Conn)) {
        let Some(handler) = self.handler.as_deref_mut() else { return };
        if catch_unwind(AssertUnwindSafe(|| f(handler, conn))).is_err() {
            log::error!(
                "the handler of the connection with {} panicked; it is closed",
                conn.peer()
            );
            conn.close(Some(1011), "internal error");
        }
    }
}

/// Our answer to a close frame is empty, as the original's (spec: control 2.3), unless the peer's
/// was malformed.
fn closed_by_peer(frame: Option<protocol::CloseFrame>) -> Outcome {
    let code = frame.as_ref().map(|f| u16::from(f.code));
    let reply = match &frame {
        // What tungstenite makes of a code that may not be sent.
        Some(f) if f.code == CloseCode::Protocol => (Some(1002), ""),
        _ => (None, ""),
    };
    let reason = frame.map(|f| f.reason).unwrap_or_default();
    Outcome::End { reply: Some(reply), reason: Closed::Peer { code, reason } }
}

fn failed(e: tungstenite::Error) -> Outcome {
    use tungstenite::Error as E;
    match e {
        E::Io(e) => Outcome::lost(&e),
        E::Capacity(e) => {
            Outcome::broken(1009, "message too big", Error::new(Code::LimitExceeded, e.to_string()))
        }
        E::Utf8(e) => Outcome::broken(1007, "invalid UTF-8", Error::invalid(e)),
        E::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)
        | E::ConnectionClosed
        | E::AlreadyClosed => Outcome::lost(&ErrorKind::UnexpectedEof.into()),
        e => Outcome::broken(1002, "protocol error", Error::invalid(e.to_string())),
    }
}

pub(super) fn read_head(bytes: &mut Vec<u8>, source: &mut Source<'_>) -> Outcome {
    let mut buffer = [0u8; READ_BUFFER];
    loop {
        let room = (HEAD_MAX - bytes.len()).min(buffer.len());
        let fresh = bytes.len().saturating_sub(2);
        match source.read(&mut buffer[..room]) {
            Ok(0) => return Outcome::lost(&ErrorKind::UnexpectedEof.into()),
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Outcome::Dry,
            Err(e) => return Outcome::lost(&e),
        }
        let fresh = &bytes[fresh..];
        // Parsed only where a head can have ended, so that a trickle of bytes costs little.
        let ended =
            fresh.windows(2).any(|w| w == b"\n\n") || fresh.windows(3).any(|w| w == b"\n\r\n");
        if ended || bytes.len() == HEAD_MAX {
            match head::parse(bytes) {
                Parsed::Incomplete => {}
                parsed => return Outcome::Request(parsed),
            }
        }
    }
}

pub(super) fn discard(source: &mut Source<'_>) -> Outcome {
    let mut buffer = [0u8; READ_BUFFER];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Outcome::lost(&ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                return if source.spent() { Outcome::More } else { Outcome::Dry };
            }
            Err(e) => return Outcome::lost(&e),
        }
    }
}

/// The incoming bytes of one turn, bounded. They are taken from the kernel in large pieces, as tungstenite
/// asks for small ones. What tungstenite writes goes nowhere.
pub(super) struct Source<'a> {
    transport: &'a Transport,
    buffer: Box<[u8]>,
    /// What of the buffer has not been read yet.
    left: Range<usize>,
    got: usize,
    dry: bool,
}

thread_local! {
    /// Taken for the length of a turn.
    static BUFFER: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

impl<'a> Source<'a> {
    /// `rest` is what the turn before has left.
    pub fn new(transport: &'a Transport, rest: &mut Vec<u8>) -> Source<'a> {
        let mut buffer = BUFFER.take().unwrap_or_else(|| vec![0; PIECE].into());
        let left = 0..rest.len();
        buffer[left.clone()].copy_from_slice(rest);
        // Its memory too: few turns leave anything.
        *rest = Vec::new();
        Source { transport, buffer, left, got: 0, dry: false }
    }

    /// How many bytes have come, and what of them was not read: the next turn's.
    pub fn end(self) -> (usize, Vec<u8>) {
        (self.got, self.buffer[self.left.clone()].to_vec())
    }

    /// The turn's share is used up; there may be more.
    fn spent(&self) -> bool {
        self.got >= TURN_BYTES
    }

    fn fill(&mut self) -> io::Result<()> {
        if self.dry || self.spent() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let n = loop {
            match self.transport.read(&mut self.buffer) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                done => break done?,
            }
        };
        self.got += n;
        self.dry = n > 0 && n < self.buffer.len() && self.transport.short_read_is_dry();
        self.left = 0..n;
        Ok(())
    }
}

impl Drop for Source<'_> {
    fn drop(&mut self) {
        BUFFER.set(Some(std::mem::take(&mut self.buffer)));
    }
}

impl Read for Source<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left.is_empty() {
            self.fill()?;
        }
        let n = self.left.len().min(into.len());
        into[..n].copy_from_slice(&self.buffer[self.left.start..self.left.start + n]);
        self.left.start += n;
        Ok(n)
    }
}

impl Write for Source<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
