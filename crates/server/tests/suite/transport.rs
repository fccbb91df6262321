//! Sockets that misbehave.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use allotrope_server::ServerConfig;
use serde_json::json;

use crate::support::client::{Reply, Request, connect, exchange, read_all, read_until};
use crate::support::engine::{self, Step, script, tokens};
use crate::support::{DEADLINE, TestServer, config, until};

fn small() -> ServerConfig {
    let mut config = config();
    config.limits.body_bytes = 10_000;
    config.limits.header_timeout = Duration::from_millis(400);
    config.limits.body_timeout = Duration::from_millis(400);
    config.limits.keep_alive = Duration::from_millis(400);
    config
}

const POST: &str = "POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n";

#[track_caller]
fn status(text: &str) -> u16 {
    Reply::parse(text).unwrap_or_else(|| panic!("no answer: {text:?}")).status
}

#[test]
fn a_body_above_the_limit_is_413_and_the_connection_closes() {
    let server = TestServer::with(small(), engine::words());
    let honest = format!("{POST}content-length: 20000\r\n\r\n{}", "x".repeat(20_000));
    let claimed = format!("{POST}content-length: 99999999999\r\n\r\n{{");
    let mut chunked = format!("{POST}transfer-encoding: chunked\r\n\r\n");
    for _ in 0..30 {
        chunked.push_str(&format!("3e8\r\n{}\r\n", "x".repeat(1000)));
    }
    chunked.push_str("0\r\n\r\n");
    for bytes in [honest, claimed, chunked] {
        let mut stream = connect(server.address);
        // It may be closed before all is sent.
        let _ = stream.write_all(bytes.as_bytes());
        let reply = Reply::read_to_end(&mut stream);
        reply.error(413);
        assert_eq!(reply.header("connection"), Some("close"));
    }
    let endless = format!("{POST}content-length: 10000000000\r\n\r\n");
    let mut stream = connect(server.address);
    stream.write_all(endless.as_bytes()).unwrap();
    let started = Instant::now();
    while stream.write_all(&[b'x'; 65536]).is_ok() {
        assert!(started.elapsed() < DEADLINE, "a client may not send for ever");
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn lengths_that_lie_end_as_errors_of_their_request() {
    let server = TestServer::with(small(), engine::words());
    // Fewer bytes than said, then the end.
    let text = exchange(server.address, format!("{POST}content-length: 500\r\n\r\n{{\"prompt\"").as_bytes());
    assert!(text.is_empty() || status(&text) == 400, "{text}");
    // More bytes than said: the rest is no request.
    let mut stream = connect(server.address);
    stream.write_all(format!("{POST}content-length: 2\r\n\r\n{{}}{{\"prompt\": \"a\"}}\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(status(&read_all(&mut stream)), 400);
    let text =
        exchange(server.address, format!("{POST}transfer-encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n").as_bytes());
    assert!(text.is_empty() || status(&text) == 400, "{text}");
    assert!(server.engine.requests().is_empty());
}

#[test]
fn what_is_no_request_is_refused_or_closed() {
    let server = TestServer::with(small(), engine::words());
    let many = (0..10_000).map(|place| format!("x-{place}: y\r\n")).collect::<String>();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        (
            "a header of 5 MB",
            format!("GET /health HTTP/1.1\r\nhost: t\r\nx: {}\r\n\r\n", "y".repeat(5 << 20)).into_bytes(),
        ),
        ("10 000 headers", format!("GET /health HTTP/1.1\r\nhost: t\r\n{many}\r\n").into_bytes()),
        ("200 headers", format!("GET /health HTTP/1.1\r\nhost: t\r\n{}\r\n", "x: y\r\n".repeat(200)).into_bytes()),
        ("a long line", format!("GET /{} HTTP/1.1\r\nhost: t\r\n\r\n", "y".repeat(1 << 20)).into_bytes()),
        ("HTTP/0.9", b"GET /health\r\n".to_vec()),
        ("HTTP/3", b"GET /health HTTP/3.0\r\nhost: t\r\n\r\n".to_vec()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("a hello of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03random\x00\xff\xfe".to_vec()),
        ("garbage", (0..2000_u32).map(|place| (place * 7919 % 251) as u8).collect()),
        ("zeros", vec![0; 100_000]),
        ("no line end", vec![b'G'; 100_000]),
        ("a space in a name", b"GET /health HTTP/1.1\r\nhost : t\r\n\r\n".to_vec()),
        ("a NUL in a value", b"GET /health HTTP/1.1\r\nhost: t\x00\r\n\r\n".to_vec()),
        ("a folded header", b"GET /health HTTP/1.1\r\nhost: t\r\n x\r\n\r\n".to_vec()),
        ("two lengths", format!("{POST}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}").into_bytes()),
        ("a signed length", format!("{POST}content-length: +2\r\n\r\n{{}}").into_bytes()),
        ("a negative length", format!("{POST}content-length: -2\r\n\r\n{{}}").into_bytes()),
        ("a length above 2^64", format!("{POST}content-length: 99999999999999999999\r\n\r\n{{}}").into_bytes()),
        ("another coding", format!("{POST}transfer-encoding: gzip\r\n\r\n{{}}").into_bytes()),
        (
            "chunked, then another",
            format!("{POST}transfer-encoding: chunked, gzip\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n").into_bytes(),
        ),
    ];
    for (what, bytes) in cases {
        let text = exchange(server.address, &bytes);
        assert!(text.is_empty() || (400..500).contains(&status(&text)), "{what}: {text:?}");
    }
    assert_eq!(server.get("/health").status, 200);
    assert!(server.engine.requests().is_empty());
}

#[test]
fn headers_above_the_limits_are_told_so() {
    let server = TestServer::with(small(), engine::words());
    let long = format!("GET /health HTTP/1.1\r\nhost: t\r\nx: {}\r\n\r\n", "y".repeat(200_000));
    let many = format!("GET /health HTTP/1.1\r\nhost: t\r\n{}\r\n", "x: y\r\n".repeat(200));
    for bytes in [long, many] {
        assert_eq!(status(&exchange(server.address, bytes.as_bytes())), 431);
    }
}

#[test]
fn nothing_is_smuggled_behind_two_lengths() {
    let server = TestServer::with(small(), engine::words());
    let hidden = "GET /version HTTP/1.1\r\nhost: t\r\n\r\n";
    for headers in [
        format!("content-length: {}\r\ntransfer-encoding: chunked\r\n", 5 + hidden.len()),
        format!("transfer-encoding: chunked\r\ncontent-length: {}\r\n", 5 + hidden.len()),
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n".to_owned(),
        "transfer-encoding: xchunked\r\n".to_owned(),
    ] {
        let mut stream = connect(server.address);
        stream.write_all(format!("{POST}{headers}\r\n0\r\n\r\n{hidden}").as_bytes()).unwrap();
        let text = read_all(&mut stream);
        assert!(!text.contains("\"version\""), "{headers}: {text}");
        assert!(text.is_empty() || status(&text) == 400, "{headers}: {text}");
    }
}

#[test]
fn slow_headers_slow_bodies_and_idle_connections_are_closed() {
    let server = TestServer::with(small(), engine::words());
    let mut silent = connect(server.address);
    let mut slow_headers = connect(server.address);
    slow_headers.write_all(b"GET /health HTTP/1.1\r\n").unwrap();
    let mut slow_body = connect(server.address);
    slow_body.write_all(format!("{POST}content-length: 100\r\n\r\n{{").as_bytes()).unwrap();
    let mut idle = connect(server.address);
    idle.write_all(&Request::get("/version").bytes(false)).unwrap();
    read_until(&mut idle, "version");
    // One more byte now and then must not help.
    let started = Instant::now();
    while slow_headers.write_all(b"x").is_ok() && slow_body.write_all(b" ").is_ok() {
        assert!(started.elapsed() < DEADLINE);
        assert_eq!(server.get("/health").status, 200, "others are served");
        std::thread::sleep(Duration::from_millis(50));
    }
    for (what, stream) in [("silent", &mut silent), ("headers", &mut slow_headers), ("idle", &mut idle)] {
        assert_eq!(read_all(stream), "", "{what}");
    }
    let reply = read_all(&mut slow_body);
    assert!(reply.is_empty() || status(&reply) == 408, "{reply}");
}

#[test]
fn a_slow_body_is_told_so() {
    let server = TestServer::with(small(), engine::words());
    let mut stream = connect(server.address);
    stream.write_all(format!("{POST}content-length: 100\r\n\r\n{{").as_bytes()).unwrap();
    let reply = Reply::read_to_end(&mut stream);
    reply.error(408);
    assert_eq!(reply.header("connection"), Some("close"));
}

#[test]
fn a_client_that_reads_nothing_is_dropped_and_its_request_with_it() {
    let mut config = small();
    config.limits.write_timeout = Duration::from_millis(400);
    // Each token is told with its twenty likeliest rivals, far more than the buffers of a socket hold.
    let city = tokens(" city")[0];
    let mut steps = vec![Step::Token(city); 1000];
    steps.push(Step::Hang);
    let server = TestServer::with(config, script(steps));
    let body = json!({"prompt": "a", "n": 32, "temperature": 1, "max_tokens": 1000, "stream": true, "logprobs": 20, "ignore_eos": true});
    let mut client = Request::post("/v1/completions", &body.to_string()).open(server.address);
    let mut byte = [0; 1];
    client.read_exact(&mut byte).unwrap();
    until("the requests are cancelled", || server.engine.cancelled() == 32);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn connections_above_the_cap_wait_for_others_to_end() {
    let mut config = small();
    config.limits.connections = 4;
    config.limits.header_timeout = Duration::from_millis(800);
    let server = TestServer::with(config, engine::words());
    let idle: Vec<_> = (0..4).map(|_| connect(server.address)).collect();
    // The others time out, and then it is this one's turn.
    let started = Instant::now();
    assert_eq!(server.get("/health").status, 200);
    assert!(started.elapsed() < DEADLINE);
    drop(idle);
}

#[test]
fn many_idle_connections_hinder_nobody() {
    let server = TestServer::start();
    let idle: Vec<_> = (0..300).map(|_| connect(server.address)).collect();
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.post("/v1/completions", &json!({"prompt": "a"})).status, 200);
    drop(idle);
}

#[test]
fn bodies_that_are_being_read_have_a_bound_together() {
    let mut config = config();
    config.limits.total_body_bytes = 1000;
    let server = TestServer::with(config, engine::words());
    let body = format!("{{\"prompt\": \"a\"}}{}", " ".repeat(300));
    let load = || server.get("/load").json()["server_load"].as_u64();
    let mut first = None;
    until("the first body has its room", || {
        // Where the other body came before the bytes of the first, both begin anew.
        first = None;
        until("nothing is being read", || load() == Some(0));
        let mut stream = connect(server.address);
        stream.write_all(format!("{POST}content-length: 900\r\n\r\n{}", " ".repeat(800)).as_bytes()).unwrap();
        first = Some(stream);
        until("it is being read", || load() == Some(1));
        Request::post("/v1/completions", &body).send(server.address).status == 503
    });
    drop(first);
    until("the room is given back", || Request::post("/v1/completions", &body).send(server.address).status == 200);
}

#[test]
fn a_silent_stream_outlives_the_timeouts_of_requests() {
    let city = tokens(" city")[0];
    let server =
        TestServer::with(small(), script(vec![Step::Token(city), Step::Gate, engine::says(" city")[0].clone()]));
    let body = json!({"prompt": "a", "stream": true});
    let mut client = Request::post("/v1/completions", &body.to_string()).open(server.address);
    let whole = std::thread::spawn({
        let request = Request::post("/v1/completions", "{\"prompt\": \"a\"}");
        let address = server.address;
        move || request.send(address)
    });
    let mut text = read_until(&mut client, "city");
    std::thread::sleep(Duration::from_millis(1200));
    server.engine.pass(2);
    text.push_str(&read_all(&mut client));
    assert!(text.contains("[DONE]"), "{text}");
    assert_eq!(whole.join().unwrap().status, 200);
}

#[test]
fn many_at_once_are_all_answered() {
    let server = TestServer::start();
    std::thread::scope(|scope| {
        let ask = |place: usize| {
            let body = json!({"prompt": "a", "max_tokens": 20 + place, "stream": place.is_multiple_of(2)});
            let reply = server.post("/v1/completions", &body);
            assert_eq!(reply.body.matches("city").count(), 20 + place, "{}", reply.body);
        };
        for place in 0..64 {
            scope.spawn(move || ask(place));
        }
    });
    assert_eq!(server.get("/load").json(), json!({"server_load": 0}));
}
