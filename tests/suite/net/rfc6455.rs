//! RFC 6455: the examples of section 5.7, fragmentation, lengths, violations, the closing handshake.

use super::raw::{BINARY, CLOSE, CONTINUE, FIN, PING, PONG, Raw, TEXT, frame, header};
use super::server::{Collect, LONG, Server};
use proptest::prelude::*;
use spiderweb::base::Deadline;
use spiderweb::net::{Closed, DialOptions, Limits, Message, Net};
use std::net::TcpListener;
use std::sync::LazyLock;

const MESSAGE_MAX: usize = 1 << 20;

fn limits() -> Limits {
    Limits { max_message: MESSAGE_MAX, ..Limits::default() }
}

#[test]
fn the_examples_of_section_5_7_sent_to_a_server() {
    let server = Server::echo(limits());
    let mut raw = Raw::connect(server.addr());
    raw.send(&[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
    assert_eq!(raw.bytes(7), [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
    // An unsolicited pong gets no answer.
    raw.send(&[0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
    raw.send(&frame(FIN | PING, b"Hello"));
    assert_eq!(raw.bytes(7), [0x8a, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
    raw.send(&frame(FIN | BINARY, &[7; 256]));
    assert_eq!(raw.bytes(4), [0x82, 0x7e, 0x01, 0x00]);
    raw.bytes(256);
    raw.send(&frame(FIN | BINARY, &[7; 65536]));
    assert_eq!(raw.bytes(10), [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
}

#[test]
fn the_examples_of_section_5_7_sent_to_a_client() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let peer = std::thread::spawn(move || {
        let mut raw = Raw::accept(&listener);
        raw.send(&[0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        raw.send(&[0x01, 0x03, 0x48, 0x65, 0x6c, 0x80, 0x02, 0x6c, 0x6f]);
        raw.send(&[0x89, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        let pong = raw.frame();
        assert_eq!((pong.first, pong.masked, &pong.payload[..]), (0x8a, true, &b"Hello"[..]));
        raw.send(&[&header(FIN | BINARY, 256, false)[..], &[1; 256]].concat());
        raw.send(&[&header(FIN | BINARY, 65536, false)[..], &[2; 65536]].concat());
        // A masked frame is a server's mistake.
        raw.send(&frame(FIN | TEXT, b"no"));
        let close = raw.frame();
        assert_eq!((close.first, close.masked, &close.payload[..2]), (0x88, true, &[3, 0xea][..]));
    });
    let server = Server::echo(limits());
    let (handler, messages, closed) = Collect::new();
    let deadline = Deadline::after(LONG);
    let _conn = server.net.dial(&url, &DialOptions::default(), deadline, handler).unwrap();
    let expected = [
        Message::text("Hello"),
        Message::text("Hello"),
        Message::binary(vec![1; 256]),
        Message::binary(vec![2; 65536]),
    ];
    for message in expected {
        assert_eq!(messages.recv_timeout(LONG).unwrap(), message);
    }
    assert!(matches!(closed.recv_timeout(LONG).unwrap(), Closed::Lost(_)));
    peer.join().unwrap();
}

#[test]
fn every_length_boundary_comes_back_whole() {
    let server = Server::echo(limits());
    let mut raw = Raw::connect(server.addr());
    for len in [0, 1, 125, 126, 127, 4095, 4096, 16384, 16385, 65535, 65536, 65537, MESSAGE_MAX] {
        let payload: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
        raw.send(&frame(FIN | BINARY, &payload));
        raw.expect(BINARY, &payload);
    }
}

#[test]
fn fragments_with_control_frames_in_between_make_one_message() {
    let server = Server::echo(limits());
    let mut raw = Raw::connect(server.addr());
    // Empty fragments at the beginning, in the middle and at the end; a character cut in two.
    let euro = "€".as_bytes();
    raw.send(&frame(TEXT, b""));
    raw.send(&frame(FIN | PING, b"1"));
    raw.expect(PONG, b"1");
    raw.send(&frame(CONTINUE, &euro[..1]));
    raw.send(&frame(CONTINUE, b""));
    raw.send(&frame(FIN | PONG, b"unasked"));
    raw.send(&frame(FIN | PING, b""));
    raw.expect(PONG, b"");
    raw.send(&frame(CONTINUE, &euro[1..]));
    raw.send(&frame(FIN | CONTINUE, b""));
    raw.expect(TEXT, euro);
    // One frame in two packets, cut in the header.
    let bytes = frame(FIN | BINARY, &[1; 300]);
    for part in [&bytes[..1], &bytes[1..3], &bytes[3..7], &bytes[7..100], &bytes[100..]] {
        raw.send(part);
    }
    raw.expect(BINARY, &[1; 300]);
    // The whole of it in fragments of one byte each.
    let mut bytes = frame(BINARY, b"x");
    for _ in 0..200 {
        bytes.extend(frame(CONTINUE, b"y"));
    }
    bytes.extend(frame(FIN | CONTINUE, b"z"));
    raw.send(&bytes);
    raw.expect(BINARY, format!("x{}z", "y".repeat(200)).as_bytes());
}

#[test]
fn violations_close_with_the_code_of_the_rfc() {
    let server = Server::echo(limits());
    let fragment = frame(TEXT, b"a");
    let mut unmasked = header(FIN | TEXT, 2, false);
    unmasked.extend_from_slice(b"hi");
    let too_long = header(FIN | BINARY, MESSAGE_MAX as u64 + 1, true);
    let half = vec![0u8; MESSAGE_MAX / 2 + 1];
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("unmasked", unmasked, 1002),
        ("reserved bit 1", frame(FIN | 0x40 | TEXT, b"a"), 1002),
        ("reserved bit 3", frame(FIN | 0x10 | TEXT, b"a"), 1002),
        ("reserved data opcode", frame(FIN | 0x3, b""), 1002),
        ("reserved control opcode", frame(FIN | 0xb, b""), 1002),
        ("fragmented ping", frame(PING, b""), 1002),
        ("long ping", frame(FIN | PING, &[0; 126]), 1002),
        ("lone continuation", frame(FIN | CONTINUE, b"a"), 1002),
        ("text within a message", [fragment.clone(), frame(FIN | TEXT, b"b")].concat(), 1002),
        ("one byte of close code", frame(FIN | CLOSE, &[3]), 1002),
        ("close code 999", frame(FIN | CLOSE, &999u16.to_be_bytes()), 1002),
        ("close code 1005", frame(FIN | CLOSE, &1005u16.to_be_bytes()), 1002),
        ("close reason", frame(FIN | CLOSE, &[3, 0xe8, 0xff]), 1007),
        ("text", frame(FIN | TEXT, &[0xc3, 0x28]), 1007),
        ("text cut short", frame(FIN | TEXT, &[0xe2, 0x82]), 1007),
        ("continued text", [fragment, frame(FIN | CONTINUE, &[0xff])].concat(), 1007),
        ("announced too long", too_long, 1009),
        ("announced beyond all bounds", header(FIN | BINARY, u64::MAX, true), 1009),
        ("grown too long", [frame(BINARY, &half), frame(FIN | CONTINUE, &half)].concat(), 1009),
    ];
    for (what, bytes, code) in cases {
        println!("{what}");
        let mut raw = Raw::connect(server.addr());
        raw.send(&bytes);
        // The rest of the header, where only that was sent, so that it is complete.
        if code == 1009 && bytes.len() < 20 {
            raw.send(&[0; 4]);
        }
        raw.expect_close(Some(code));
    }
    // The server is none the worse.
    let mut raw = Raw::connect(server.addr());
    raw.send(&frame(FIN | TEXT, b"still here"));
    raw.expect(TEXT, b"still here");
}

#[test]
fn a_close_frame_is_answered_empty_after_all_replies() {
    let server = Server::echo(limits());
    for payload in [&b""[..], &[3, 0xe8], b"\x03\xe8bye", &4000u16.to_be_bytes()] {
        let mut raw = Raw::connect(server.addr());
        raw.send(&[frame(FIN | TEXT, b"last words"), frame(FIN | CLOSE, payload)].concat());
        raw.expect(TEXT, b"last words");
        raw.expect_close(None);
        let Closed::Peer { code, .. } = server.next_closed() else { panic!("not by the peer") };
        assert_eq!(code, payload.get(..2).map(|c| u16::from_be_bytes([c[0], c[1]])));
    }
}

#[test]
fn our_close_comes_after_what_is_queued_and_ends_with_the_peers_answer() {
    let server = Server::start(limits(), |conn, _| {
        for _ in 0..8 {
            conn.send(Message::binary(vec![5; 1 << 20])).unwrap();
        }
        conn.close(Some(4001), "enough");
        assert!(conn.send(Message::text("too late")).is_err() && !conn.is_open());
    });
    let mut raw = Raw::connect(server.addr());
    raw.send(&frame(FIN | TEXT, b"go"));
    for _ in 0..8 {
        raw.expect(BINARY, &[5; 1 << 20]);
    }
    let close = raw.frame();
    assert_eq!((close.first, &close.payload[..]), (0x88, &b"\x0f\xa1enough"[..]));
    assert!(matches!(server.next_closed(), Closed::Local));
    raw.send(&frame(FIN | TEXT, b"ignored"));
    raw.send(&frame(FIN | CLOSE, &close.payload));
    assert!(raw.rest().is_empty());
}

/// A message, how it is cut, and where pings go.
fn cut_message() -> impl Strategy<Value = (bool, Vec<u8>, Vec<usize>, Vec<bool>)> {
    let text = "\\PC{0,300}".prop_map(|s| (true, s.into_bytes()));
    let binary = prop::collection::vec(any::<u8>(), 0..3000).prop_map(|b| (false, b));
    (
        prop_oneof![text, binary],
        prop::collection::vec(0..3000usize, 0..6),
        prop::collection::vec(any::<bool>(), 6),
    )
        .prop_map(|((is_text, payload), mut cuts, pings)| {
            cuts.iter_mut().for_each(|cut| *cut = (*cut).min(payload.len()));
            cuts.sort_unstable();
            (is_text, payload, cuts, pings)
        })
}

static ECHO: LazyLock<Server> = LazyLock::new(|| Server::echo(limits()));

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn messages_survive_any_fragmentation(
        messages in prop::collection::vec(cut_message(), 1..8),
        packets in prop::collection::vec(1..400usize, 1..20),
    ) {
        let mut stream = Vec::new();
        let mut pongs = Vec::new();
        for (is_text, payload, cuts, pings) in &messages {
            let mut opcode = if *is_text { TEXT } else { BINARY };
            let mut start = 0;
            for (cut, ping) in cuts.iter().zip(pings) {
                stream.extend(frame(opcode, &payload[start..*cut]));
                (opcode, start) = (CONTINUE, *cut);
                if *ping {
                    let body = format!("ping {}", pongs.len()).into_bytes();
                    stream.extend(frame(FIN | PING, &body));
                    pongs.push(body);
                }
            }
            stream.extend(frame(FIN | opcode, &payload[start..]));
        }
        let mut raw = Raw::connect(ECHO.addr());
        let (mut rest, mut sizes) = (&stream[..], packets.iter().cycle());
        while !rest.is_empty() {
            let (packet, more) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
            raw.send(packet);
            rest = more;
        }
        let mut pongs = pongs.into_iter();
        for (is_text, payload, ..) in &messages {
            let mut got = raw.frame();
            while got.first == FIN | PONG {
                prop_assert_eq!(Some(got.payload), pongs.next());
                got = raw.frame();
            }
            let opcode = if *is_text { TEXT } else { BINARY };
            prop_assert_eq!((got.first, &got.payload), (FIN | opcode, payload));
        }
        prop_assert_eq!(pongs.next(), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_do_harm(noise in prop::collection::vec(any::<u8>(), 1..200)) {
        let mut raw = Raw::connect(ECHO.addr());
        // What it makes of them does not matter; that it serves others afterwards does.
        raw.send(&noise);
        let mut other = Raw::connect(ECHO.addr());
        other.send(&frame(FIN | TEXT, b"well?"));
        other.expect(TEXT, b"well?");
    }
}

#[test]
fn a_client_and_a_server_of_ours_agree() {
    let server = Server::echo(Limits::default());
    let net = Net::start(1, server.timer.clone()).unwrap();
    let (handler, messages, closed) = Collect::new();
    let options = DialOptions { bearer: Some("T".into()), ..DialOptions::default() };
    let conn = net.dial(&server.url(), &options, Deadline::after(LONG), handler).unwrap();
    for len in [0, 1, 125, 126, 16384, 16385, 65536, 4 << 20] {
        let message = Message::binary(vec![9; len]);
        conn.send(message.clone()).unwrap();
        assert!(messages.recv_timeout(LONG).unwrap() == message, "{len}");
    }
    conn.close(None, "");
    assert!(matches!(closed.recv_timeout(LONG).unwrap(), Closed::Local));
    assert!(matches!(server.next_closed(), Closed::Peer { code: None, .. }));
    let stats = server.net.stats();
    assert_eq!((stats.accepted, stats.messages_in, stats.messages_out), (1, 8, 8));
    net.stop(Deadline::after(LONG));
}
