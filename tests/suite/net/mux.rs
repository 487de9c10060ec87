//! The multiplexing client against a server that answers late, never, out of order, or dies.

use super::raw::Raw;
use super::server::{LONG, Server};
use crossbeam_channel::{Receiver, Sender, unbounded};
use spiderweb::base::{Cancel, Code, Deadline};
use spiderweb::net::{CallError, Closed, Conn, DialOptions, Inbound, Limits, Message, Mux};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

/// A request is `<tag> <command> …`, a reply `<tag> <text>`; an event has no tag.
struct Client {
    events: Sender<String>,
    lost: Sender<Closed>,
    /// Who read the last reply.
    reader: Arc<Mutex<Option<ThreadId>>>,
}

impl Inbound for Client {
    fn tag(&mut self, message: &Message) -> Option<u32> {
        *self.reader.lock().unwrap() = Some(std::thread::current().id());
        text(message).split(' ').next()?.parse().ok()
    }

    fn event(&mut self, message: Message) {
        let _ = self.events.send(text(&message).to_owned());
    }

    fn lost(&mut self, reason: &Closed) {
        let _ = self.lost.send(reason.clone());
    }
}

fn text(message: &Message) -> &str {
    std::str::from_utf8(message.as_bytes()).unwrap()
}

struct Bench {
    server: Server,
    /// Requests that wait to be answered by the test.
    held: Receiver<(Conn, u32)>,
    events: Receiver<String>,
    lost: Receiver<Closed>,
    reader: Arc<Mutex<Option<ThreadId>>>,
    mux: Mux,
}

impl Bench {
    fn start(inflight_max: usize) -> Bench {
        let (hold, held) = unbounded();
        let server = Server::start(Limits::default(), move |conn, message| {
            let words = text(&message).to_owned();
            let (tag, command) = words.split_once(' ').unwrap();
            match command.split_once(' ').unwrap_or((command, "")) {
                ("echo", rest) => conn.send(Message::text(format!("{tag} {rest}"))).unwrap(),
                ("event", rest) => conn.push(Message::text(rest)).unwrap(),
                ("hold", _) => hold.send((conn.clone(), tag.parse().unwrap())).unwrap(),
                _ => conn.close(None, ""),
            }
        });
        let (events, event) = unbounded();
        let (lost, loss) = unbounded();
        let reader = Arc::default();
        let client = Box::new(Client { events, lost, reader: Arc::clone(&reader) });
        let options = DialOptions::default();
        let deadline = Deadline::after(LONG);
        let url = server.url();
        let mux = Mux::dial(&server.net, &url, &options, deadline, inflight_max, client).unwrap();
        Bench { server, held, events: event, lost: loss, reader, mux }
    }

    fn call(&self, command: &str) -> Result<String, CallError> {
        self.call_until(command, Deadline::after(LONG))
    }

    fn call_until(&self, command: &str, deadline: Deadline) -> Result<String, CallError> {
        let build = |tag| Message::text(format!("{tag} {command}"));
        let reply = self.mux.call(build, deadline, &Cancel::new())?;
        Ok(text(&reply).split_once(' ').unwrap().1.to_owned())
    }

    fn start_call(
        &self,
        command: &'static str,
        deadline: Deadline,
        done: &Sender<Result<Message, CallError>>,
    ) -> Result<u32, CallError> {
        let done = done.clone();
        let build = move |tag| Message::text(format!("{tag} {command}"));
        self.mux.start(build, deadline, move |reply| done.send(reply).unwrap())
    }

    fn next_held(&self) -> (Conn, u32) {
        self.held.recv_timeout(LONG).unwrap()
    }
}

fn answer((conn, tag): &(Conn, u32), words: &str) {
    conn.send(Message::text(format!("{tag} {words}"))).unwrap();
}

#[test]
fn a_caller_reads_its_reply_itself_and_leaves_the_rest_to_the_io_thread() {
    let bench = Bench::start(64);
    let mine = Some(std::thread::current().id());
    let until = Deadline::after(LONG);
    // Not every time: a reply can be quicker, or the I/O thread busy.
    while *bench.reader.lock().unwrap() != mine {
        assert!(!until.passed(), "never read a reply itself");
        assert_eq!(bench.call("echo x").unwrap(), "x");
    }
    bench.mux.conn().unwrap().send(Message::text("0 event later")).unwrap();
    assert_eq!(bench.events.recv_timeout(LONG).unwrap(), "later");
    assert_ne!(*bench.reader.lock().unwrap(), mine, "nobody called");
}

#[test]
fn what_is_told_is_sent_and_takes_no_place() {
    let bench = Bench::start(1);
    bench.mux.tell(Message::text("0 event one")).unwrap();
    assert_eq!(
        (bench.events.recv_timeout(LONG).unwrap().as_str(), bench.mux.in_flight()),
        ("one", 0)
    );
    bench.mux.conn().unwrap().close(None, "");
    assert_eq!(bench.mux.tell(Message::text("0 event late")).unwrap_err().code, Code::Unavailable);
}

#[test]
fn replies_find_their_callers_in_any_order() {
    let bench = Bench::start(64);
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..3).map(|_| scope.spawn(|| bench.call("hold"))).collect();
        let held: Vec<_> = (0..3).map(|_| bench.next_held()).collect();
        for request in held.iter().rev() {
            answer(request, &format!("to {}", request.1));
        }
        let mut replies: Vec<_> = calls.into_iter().map(|c| c.join().unwrap().unwrap()).collect();
        replies.sort();
        assert_eq!(replies, ["to 1", "to 2", "to 3"]);
    });
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let bench = &bench;
            scope.spawn(move || {
                for n in 0..200 {
                    let words = format!("{thread}.{n}");
                    assert_eq!(bench.call(&format!("echo {words}")).unwrap(), words);
                }
            });
        }
    });
    assert_eq!(bench.mux.in_flight(), 0);
}

#[test]
fn a_late_reply_is_dropped_and_its_tag_is_free_again() {
    let bench = Bench::start(1);
    let e = bench.call_until("hold", Deadline::after_ms(20)).unwrap_err();
    assert_eq!((e.error.code, e.sent), (Code::Timeout, true));
    assert_eq!(bench.call("echo next").unwrap(), "next");
    answer(&bench.next_held(), "late");
    assert_eq!(bench.call("echo after that").unwrap(), "after that");
    assert!(bench.events.try_recv().is_err());
}

#[test]
fn cancelling_ends_the_wait() {
    let bench = Bench::start(8);
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| {
            let build = |tag| Message::text(format!("{tag} hold"));
            bench.mux.call(build, Deadline::never(), &cancel)
        });
        bench.next_held();
        cancel.cancel();
        let e = call.join().unwrap().unwrap_err();
        assert_eq!((e.error.code, e.sent), (Code::Cancelled, true));
    });
    assert_eq!(bench.mux.in_flight(), 0);
}

#[test]
fn a_lost_connection_fails_those_that_wait_and_those_that_come() {
    let bench = Bench::start(8);
    let (done, replies) = unbounded();
    bench.start_call("hold", Deadline::never(), &done).unwrap();
    bench.next_held();
    let e = bench.call("die").unwrap_err();
    assert_eq!((e.error.code, e.sent), (Code::Unavailable, true));
    let e = replies.recv_timeout(LONG).unwrap().unwrap_err();
    assert_eq!((e.error.code, e.sent), (Code::Unavailable, true));
    assert!(matches!(bench.lost.recv_timeout(LONG).unwrap(), Closed::Peer { code: None, .. }));
    let e = bench.call("echo x").unwrap_err();
    assert_eq!((e.error.code, e.sent), (Code::Unavailable, false));
    assert!(bench.start_call("echo x", Deadline::never(), &done).is_err());
    assert!(!bench.mux.is_open());
}

#[test]
fn a_request_that_never_left_may_be_tried_elsewhere() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let peer = std::thread::spawn(move || Raw::accept(&listener));
    let bench = Bench::start(8);
    let (events, _event) = unbounded();
    let (lost, _loss) = unbounded();
    let client = Box::new(Client { events, lost, reader: Arc::default() });
    let (options, deadline) = (DialOptions::default(), Deadline::after(LONG));
    let net = &bench.server.net;
    let mux = Mux::dial(net, &url, &options, deadline, 1000, client).unwrap();
    let raw = peer.join().unwrap();
    let (done, replies) = unbounded();
    let requests = 64;
    for n in 0..requests {
        let done = done.clone();
        let build = |_| Message::binary(vec![0; 1 << 20]);
        mux.start(build, Deadline::never(), move |r| done.send((n, r)).unwrap()).unwrap();
    }
    drop(raw);
    let mut sent: Vec<_> = (0..requests)
        .map(|_| replies.recv_timeout(LONG).unwrap())
        .map(|(n, reply)| (n, reply.unwrap_err().sent))
        .collect();
    sent.sort_unstable();
    assert_eq!((sent[0], sent[requests - 1]), ((0, true), (requests - 1, false)));
    assert!(sent.is_sorted_by_key(|(_, sent)| !sent), "what was sent comes before what was not");
}

#[test]
fn requests_in_flight_are_bounded() {
    let bench = Bench::start(2);
    let (done, replies) = unbounded();
    for _ in 0..2 {
        bench.start_call("hold", Deadline::never(), &done).unwrap();
    }
    let e = bench.start_call("hold", Deadline::never(), &done).unwrap_err();
    assert_eq!((e.error.code, e.sent), (Code::QueueSaturated, false));
    let e = bench.call_until("echo x", Deadline::after_ms(20)).unwrap_err();
    assert_eq!((e.error.code, e.sent), (Code::Timeout, false));
    std::thread::scope(|scope| {
        let call = scope.spawn(|| bench.call("echo at last"));
        answer(&bench.next_held(), "done");
        assert_eq!(call.join().unwrap().unwrap(), "at last");
    });
    assert_eq!(text(&replies.recv_timeout(LONG).unwrap().unwrap()), "1 done");
}

#[test]
fn a_started_call_ends_by_reply_deadline_or_abandonment() {
    let bench = Bench::start(8);
    let (done, replies) = unbounded();
    bench.start_call("echo hi", Deadline::never(), &done).unwrap();
    assert_eq!(text(&replies.recv_timeout(LONG).unwrap().unwrap()), "1 hi");

    bench.start_call("hold", Deadline::after_ms(20), &done).unwrap();
    let e = replies.recv_timeout(LONG).unwrap().unwrap_err();
    assert_eq!((e.error.code, e.sent), (Code::Timeout, true));

    let tag = bench.start_call("hold", Deadline::never(), &done).unwrap();
    assert!(bench.mux.abandon(tag) && !bench.mux.abandon(tag));
    bench.next_held();
    answer(&bench.next_held(), "nobody waits");
    assert_eq!(bench.call("echo behind it").unwrap(), "behind it");
    assert!(replies.try_recv().is_err());
}

#[test]
fn events_go_to_the_callback_and_the_last_handle_closes() {
    let bench = Bench::start(8);
    let (done, replies) = unbounded();
    bench.start_call("event something happened", Deadline::never(), &done).unwrap();
    assert_eq!(bench.events.recv_timeout(LONG).unwrap(), "something happened");
    let Bench { server, mux, .. } = bench;
    drop(mux);
    let e = replies.recv_timeout(LONG).unwrap().unwrap_err();
    assert_eq!(e.error.code, Code::Unavailable);
    assert!(matches!(server.next_closed(), Closed::Peer { code: None, .. }));
}
