use super::*;
use crate::wire::{Envelope, Frame};
use bytes::Bytes;
use proptest::prelude::*;

fn fault(text: &str) -> Fault {
    Request::decode_text(text).unwrap_err()
}

/// A binary frame as it arrives.
fn joined(frame: &Frame) -> Bytes {
    let Frame::Binary { head, data } = frame else { panic!("a binary frame expected") };
    [&head[..], &data[..]].concat().into()
}

fn decode(frame: &Frame) -> Request {
    match frame {
        Frame::Text(text) => Request::decode_text(text).unwrap(),
        Frame::Binary { .. } => {
            let (head, meta, data) = decode_bin(&joined(frame), Framing::Lz4).unwrap();
            Request::decode_bin(&head, std::str::from_utf8(&meta).unwrap(), data).unwrap()
        }
    }
}

fn reply(op: Op, frame: &Frame) -> Reply {
    match frame {
        Frame::Text(text) => decode_reply(op, text).unwrap(),
        Frame::Binary { .. } => decode_bin_reply(op, &joined(frame)).unwrap(),
    }
}

#[test]
fn arguments_that_lack_are_named() {
    let e = fault(
        r#"{"channel":"acheron","type":"acheron.t_fs_lookup","tag":7,"payload":{"name":"x"}}"#,
    );
    assert_eq!((e.tag, &*e.message, e.close), (Some(7), "LOOKUP requires node", false));
    let e = fault(r#"{"channel":"acheron","type":"acheron.t_fs_lookup","tag":7,"node":1}"#);
    assert_eq!(e.message, "LOOKUP requires a.name");
    let e =
        fault(r#"{"channel":"acheron","type":"acheron.t_fs_read","h":1,"payload":{"len":"x"}}"#);
    assert_eq!(e.message, "len must be u32");
    let e =
        fault(r#"{"channel":"acheron","type":"acheron.t_fs_lock","h":1,"payload":{"kind":"x"}}"#);
    assert_eq!(e.message, "invalid lock kind");
    let e = fault(
        r#"{"channel":"acheron","type":"acheron.t_fs_write","h":1,"payload":{"data_b64":"*"}}"#,
    );
    assert_eq!(e.message, "invalid base64 payload");
}

#[test]
fn only_what_is_no_request_of_any_kind_closes() {
    assert!(fault("nope").close);
    assert!(fault(r#"{"channel":"acheron","type":"acheron.t_fs_frobnicate","tag":1}"#).close);
    assert!(!fault(r#"{"channel":"acheron","type":"acheron.t_walk","tag":1}"#).close);
    assert!(!fault(r#"{"channel":"control","type":"control.ping"}"#).close);
}

#[test]
fn the_later_spellings_are_read_too() {
    let r = r#"{"channel":"acheron","type":"acheron.t_fs_read","tag":1,"h":3,"payload":{"offset":5,"count":6}}"#;
    assert_eq!(Request::decode_text(r).unwrap().call, Call::Read { h: 3, off: 5, len: 6 });
    let r = r#"{"channel":"acheron","type":"acheron.t_fs_open","tag":1,"node":3,"payload":{"mode":"rw"}}"#;
    assert_eq!(
        Request::decode_text(r).unwrap().call,
        Call::Open { node: 3, flags: 2, content_max: 0 }
    );
    let r = r#"{"channel":"acheron","type":"acheron.t_fs_readdirp","tag":1,"node":3,"payload":{"count":9}}"#;
    let call = Request::decode_text(r).unwrap().call;
    assert_eq!(call, Call::Readdirp { dir: 3, cookie: 0, max: 9, bytes: 0 });
}

#[test]
fn old_error_spellings_and_hostile_replies() {
    let text = |s: &str| decode_reply(Op::Lookup, s).unwrap_err();
    let e = text(
        r#"{"channel":"acheron","type":"acheron.err_fs","tag":1,"ok":false,"error":{"no":39,"msg":"x"}}"#,
    );
    assert_eq!((e.errno(), &*e.message), (39, "x"));
    for broken in [
        "{}",
        "x",
        r#"{"channel":"acheron","type":"acheron.r_fs_read","tag":1,"ok":true,"payload":{}}"#,
        r#"{"channel":"acheron","type":"acheron.r_fs_lookup","tag":1,"ok":true,"payload":{"attr":7}}"#,
        r#"{"channel":"acheron","type":"acheron.err_fs","tag":1,"ok":false,"error":{"errno":99999999999}}"#,
    ] {
        assert!(text(broken).is_peer_lost(), "{broken}");
    }
}

#[test]
fn hello_offers_and_accepts() {
    let binding = Binding { agent_id: Some("alice".into()), ..Binding::default() };
    let hello = Hello {
        auth_token: Some("t".into()),
        binding: Some(binding),
        ext: Some(Ext::all()),
        ..Hello::default()
    };
    let request = Request::new(1, Call::Hello(hello.clone()));
    assert_eq!(decode(&request.encode(Framing::Text)), request);
    let ours =
        Ext { framing: Framing::Text, max_inflight: 8, ops: vec![Op::Fsync], ..Ext::default() };
    let accepted = hello.ext.unwrap().accept(&ours);
    assert_eq!(
        (accepted.framing, accepted.max_inflight, accepted.ops),
        (Framing::Text, 8, vec![Op::Fsync])
    );
    let other = r#"{"protocol":"unified-v2-fs","proto":2,"ext":{"v":9}}"#;
    assert_eq!(Hello::read(&Fields::parse(other).unwrap()).unwrap().ext, None);
    for (text, message) in [
        (r#"{}"#, "MissingField"),
        (r#"{"protocol":"zz","proto":2}"#, "ProtocolMismatch"),
        (r#"{"protocol":"unified-v2-fs","proto":"2"}"#, "InvalidType"),
    ] {
        assert_eq!(Hello::read(&Fields::parse(text).unwrap()).unwrap_err().message, message);
    }
}

#[test]
fn events_survive_the_wire() {
    for event in [
        Event::Attr { node: 5 },
        Event::Data { node: 5, generation: Some(9) },
        Event::All { node: 5, generation: None },
        Event::Dir { dir: 7, name: None },
        Event::Dir { dir: 7, name: Some(OsString::from_vec(b"n\xff".to_vec())) },
        Event::Resync,
    ] {
        let text = event.encode(Some(3));
        assert_eq!(Event::decode(&Envelope::parse(&text).unwrap()), Some(event));
    }
}

#[test]
fn binary_frames_that_lie_about_their_lengths_are_refused() {
    let call = Call::Write { h: 1, off: 2, data: Bytes::from_static(b"abc") };
    let good = joined(&Request::new(9, call).encode(Framing::Binary));
    assert_eq!(frame_tag(&good), Some(9));
    for cut in 0..good.len() {
        assert!(decode_bin(&good.slice(..cut), Framing::Lz4).is_err());
    }
    let mut bad = good.to_vec();
    bad[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(decode_bin(&bad.into(), Framing::Lz4).is_err());
}

#[test]
fn data_is_compressed_where_that_makes_it_smaller() {
    let request = |data: Bytes| Request::new(9, Call::Write { h: 1, off: 2, data });
    let noise: Bytes = (0..4096).map(|_| crate::base::id::random_u53() as u8).collect();
    for (data, smaller) in [
        (Bytes::from(b"fn main() {}\n".repeat(1000)), true),
        (Bytes::from(vec![0; crate::wire::DATA_MAX]), true),
        (Bytes::from(vec![0; 511]), false),
        (noise, false),
    ] {
        let plain = joined(&request(data.clone()).encode(Framing::Binary));
        let packed = joined(&request(data.clone()).encode(Framing::Lz4));
        assert_eq!((packed.len() < plain.len(), packed == plain), (smaller, !smaller));
        assert_eq!((raw_len(&packed), raw_len(&plain)), (plain.len(), plain.len()));
        assert_eq!(decode_bin(&packed, Framing::Lz4).unwrap().2, data);
        assert_eq!(decode_bin(&packed, Framing::Binary).is_err(), smaller);
    }
}

#[test]
fn blocks_that_lie_about_their_length_are_refused() {
    let raw = b"0123456789abcdef".repeat(64);
    let call = Call::Write { h: 1, off: 2, data: raw.clone().into() };
    let good = joined(&Request::new(9, call).encode(Framing::Lz4));
    let max = unpacked_max(Op::Write);
    let refused = |frame: &[u8]| {
        let e = decode_bin(&Bytes::copy_from_slice(frame), Framing::Lz4).unwrap_err();
        e.message.to_string()
    };
    for cut in 0..good.len() {
        refused(&good[..cut]);
    }
    let says = |len: usize| {
        let mut frame = good.to_vec();
        frame[12..16].copy_from_slice(&(len as u32).to_le_bytes());
        frame
    };
    assert!(decode_bin(&says(raw.len()).into(), Framing::Lz4).is_ok());
    for len in [0, 1, raw.len() - 1, raw.len() + 1, max, max + 1, u32::MAX as usize] {
        assert!(refused(&says(len)).contains("LZ4 block"), "{len}");
    }
    // A block that goes on for longer than it may.
    let bomb = vec![0; max + 1];
    let mut frame = says(max);
    frame.truncate(BIN_HEADER + u32::from_le_bytes(good[8..12].try_into().unwrap()) as usize);
    frame.extend(lz4_flex::block::compress(&bomb));
    assert!(refused(&frame).contains("LZ4 block"));
    // A match from before the beginning.
    frame.truncate(frame.len().min(BIN_HEADER + good[8] as usize));
    frame.extend([0x0f, 0xff, 0xff, 0xff, 0xff]);
    assert!(refused(&frame).contains("LZ4 block"));
    // A meta that is longer than the message.
    let mut long = good.to_vec();
    long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(refused(&long).contains("do not add up"));
}

#[test]
fn compression_needs_both_sides_to_have_said_it() {
    let ext = |text: &str| {
        let hello = format!(r#"{{"protocol":"unified-v2-fs","proto":2,"ext":{text}}}"#);
        Hello::read(&Fields::parse(&hello).unwrap()).unwrap().ext.unwrap().framing
    };
    assert_eq!(ext(r#"{"v":1,"bin":1,"lz4":1}"#), Framing::Lz4);
    assert_eq!(ext(r#"{"v":1,"bin":1}"#), Framing::Binary);
    assert_eq!(ext(r#"{"v":1,"lz4":1}"#), Framing::Text);
    let offered = Ext { framing: Framing::Binary, ..Ext::all() };
    assert_eq!(offered.accept(&Ext::all()), offered);
    let hello = Hello { ext: Some(offered), ..Hello::default() };
    let Frame::Text(text) = Request::new(1, Call::Hello(hello)).encode(Framing::Text) else {
        panic!()
    };
    assert!(!text.contains("lz4"));
}

#[test]
fn a_write_is_not_guessed_from_fields_of_another_type() {
    let head = Head { kind: BinKind::Request, op: Op::Write, tag: 9 };
    for (meta, says) in [
        (r#"{"h":1,"payload":5}"#, "payload"),
        (r#"{"h":1,"payload":{"off":-1}}"#, "off must be u64"),
        (r#"{"h":1,"rid":"x","payload":{"off":0}}"#, "rid must be u64"),
        (r#"{"h":1,"rid":1,"ack":-1,"payload":{"off":0}}"#, "ack must be u64"),
        (r#"{"payload":{"off":0}}"#, "WRITE requires h"),
    ] {
        let fault = Request::decode_bin(&head, meta, Bytes::from_static(b"x")).unwrap_err();
        assert!(fault.tag == Some(9) && !fault.close, "{meta}");
        assert!(fault.message.contains(says), "{meta}: {}", fault.message);
    }
    let text = r#"{"channel":"acheron","type":"acheron.t_fs_close","tag":1,"h":1,"rid":"x"}"#;
    assert_eq!(Request::decode_text(text).unwrap_err().message, "rid must be u64");
}

#[test]
fn tags_are_found_without_parsing_everything() {
    for reply in [Reply::Done, Reply::Data { bytes: Bytes::from_static(b"\"tag\":3"), eof: true }] {
        let Frame::Text(text) = reply.encode(Op::Read, Some(42), Framing::Text) else { panic!() };
        assert_eq!(text_tag(&text), Some(42));
    }
    assert_eq!(
        text_tag(r#"{"payload":{"tag":1},"tag":2,"channel":"acheron","type":"acheron.x"}"#),
        Some(2)
    );
    assert_eq!(text_tag(&Event::Resync.encode(None)), None);
    assert_eq!(text_tag("garbage"), None);
}

fn name() -> impl Strategy<Value = OsString> {
    proptest::collection::vec(1u8..=255, 1..20).prop_map(OsString::from_vec)
}

fn framing() -> impl Strategy<Value = Framing> {
    prop_oneof![Just(Framing::Text), Just(Framing::Binary), Just(Framing::Lz4)]
}

fn call() -> impl Strategy<Value = Call> {
    let id = 1u64..(1 << 53);
    prop_oneof![
        (id.clone(), name()).prop_map(|(dir, name)| Call::Lookup { dir, name }),
        (id.clone(), any::<u64>(), any::<u32>(), 0u32..9)
            .prop_map(|(dir, cookie, max, bytes)| { Call::Readdirp { dir, cookie, max, bytes } }),
        (id.clone(), any::<u64>(), proptest::collection::vec(any::<u8>(), 0..200), 1usize..20)
            .prop_map(|(h, off, data, n)| Call::Write { h, off, data: data.repeat(n).into() }),
        (id.clone(), name(), any::<u32>(), any::<u32>())
            .prop_map(|(dir, name, mode, flags)| Call::Create { dir, name, mode, flags }),
        ((id.clone(), name()), (id.clone(), name()), 0u32..3)
            .prop_map(|(from, to, flags)| Call::Rename { from, to, flags }),
        (id.clone(), any::<bool>(), any::<u64>()).prop_map(|(h, wait, owner)| Call::Lock {
            h,
            kind: Lock::Shared,
            wait,
            owner,
            range: wait.then_some(Range { start: owner / 2, end: owner }),
        }),
        (id.clone(), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(
            |(h, off, len, keep_size)| Call::Allocate {
                h,
                off,
                len,
                how: Allocate::Zero { keep_size }
            }
        ),
        (id.clone(), any::<u64>()).prop_map(|(h, off)| Call::Seek { h, off, to: SeekTo::Hole }),
        (id.clone(), id.clone(), any::<u64>(), any::<u64>()).prop_map(|(from, h, off, len)| {
            Call::Copy { from, from_off: len / 3, h, off, len }
        }),
        (id.clone(), any::<Option<u32>>(), any::<Option<i64>>(), any::<bool>()).prop_map(
            |(node, mode, mtime_ns, atime_now)| Call::Setattr {
                node,
                h: None,
                set: SetAttr { mode, mtime_ns, atime_now, ..SetAttr::default() }
            }
        ),
        (id.clone(), id, name()).prop_map(|(node, dir, name)| Call::Link { node, dir, name }),
    ]
}

proptest! {
    #[test]
    fn requests_survive_the_wire(tag in any::<u32>(), call in call(), framing in framing()) {
        let slot = (framing == Framing::Lz4).then_some(Slot { rid: 7, ack: 3 });
        let request = Request { tag: Some(tag), call, slot };
        prop_assert_eq!(decode(&request.encode(framing)), request);
    }

    #[test]
    fn data_and_listings_survive_the_wire(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        names in proptest::collection::vec(name(), 0..5),
        eof: bool, framing in framing(), times in 1usize..20,
    ) {
        let data = Reply::Data { bytes: bytes.repeat(times).into(), eof };
        prop_assert_eq!(reply(Op::Read, &data.encode(Op::Read, Some(1), framing)), data);
        let entries = names.into_iter().map(|name| DirEntry { name, attr: Attr { id: 9, kind: 1, ..Attr::default() }, cookie: eof.then_some(7) });
        let dir = Reply::Dir { entries: entries.collect(), next: 7, eof, dir_gen: 3 };
        prop_assert_eq!(reply(Op::Readdirp, &dir.encode(Op::Readdirp, Some(1), framing)), dir);
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let _ = decode_bin(&bytes, Framing::Lz4);
        let text = String::from_utf8_lossy(&bytes);
        let _ = Request::decode_text(&text);
        let _ = text_tag(&text);
    }
}
