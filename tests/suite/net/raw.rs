//! WebSocket by hand: a socket, and frames byte by byte.

use super::server::LONG;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use tungstenite::handshake::derive_accept_key;

pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CONTINUE: u8 = 0x0;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;
pub const FIN: u8 = 0x80;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// FIN, reserved bits and opcode.
    pub first: u8,
    pub masked: bool,
    pub payload: Vec<u8>,
}

/// A masked frame, its length in the shortest form.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = header(first, payload.len() as u64, true);
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

pub fn header(first: u8, len: u64, masked: bool) -> Vec<u8> {
    let mut out = vec![first];
    match len {
        0..=125 => out.push(len as u8),
        126..=0xffff => {
            out.push(126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&len.to_be_bytes());
        }
    }
    if masked {
        out[1] |= 0x80;
    }
    out
}

pub struct Raw {
    pub tcp: TcpStream,
}

impl Raw {
    /// Connected, nothing sent.
    pub fn bare(addr: SocketAddr) -> Raw {
        Raw::on(TcpStream::connect(addr).unwrap())
    }

    pub fn on(tcp: TcpStream) -> Raw {
        tcp.set_read_timeout(Some(LONG)).unwrap();
        tcp.set_nodelay(true).unwrap();
        Raw { tcp }
    }

    /// After the handshake.
    pub fn connect(addr: SocketAddr) -> Raw {
        let mut raw = Raw::bare(addr);
        raw.send(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        );
        assert!(raw.head().starts_with("HTTP/1.1 101 "));
        raw
    }

    /// The server's side of a handshake with the next client.
    pub fn accept(listener: &TcpListener) -> Raw {
        let (tcp, _) = listener.accept().unwrap();
        tcp.set_read_timeout(Some(LONG)).unwrap();
        let mut raw = Raw { tcp };
        let head = raw.head();
        let key = head.lines().find_map(|l| l.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            derive_accept_key(key.as_bytes())
        );
        raw.send(answer.as_bytes());
        raw
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.tcp.write_all(bytes).unwrap();
    }

    /// Bytes up to and with the blank line.
    pub fn head(&mut self) -> String {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.extend(self.bytes(1));
        }
        String::from_utf8(bytes).unwrap()
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.tcp.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.tcp.read_to_end(&mut bytes).unwrap();
        bytes
    }

    pub fn frame(&mut self) -> Frame {
        let head = self.bytes(2);
        let len = match head[1] & 0x7f {
            126 => u16::from_be_bytes(self.bytes(2).try_into().unwrap()).into(),
            127 => u64::from_be_bytes(self.bytes(8).try_into().unwrap()),
            len => len.into(),
        };
        let masked = head[1] & 0x80 != 0;
        let mask = if masked { self.bytes(4) } else { vec![0; 4] };
        let mut payload = self.bytes(len as usize);
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, m)| *byte ^= m);
        Frame { first: head[0], masked, payload }
    }

    /// The next frame is this one, unmasked and whole.
    pub fn expect(&mut self, opcode: u8, payload: &[u8]) {
        let got = self.frame();
        assert_eq!((got.first, got.masked), (FIN | opcode, false));
        assert!(
            got.payload == payload,
            "{} bytes, not the {} expected",
            got.payload.len(),
            payload.len()
        );
    }

    /// The server says goodbye with that code, or an empty frame, and hangs up.
    pub fn expect_close(&mut self, code: Option<u16>) {
        let got = self.frame();
        let said = got.payload.get(..2).map(|c| u16::from_be_bytes([c[0], c[1]]));
        assert_eq!((got.first, said), (FIN | CLOSE, code));
        if code.is_none() {
            assert!(got.payload.is_empty());
        }
        assert!(self.rest().is_empty());
    }
}
