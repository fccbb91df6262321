//! From the first probe to the last answer.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use allotrope_engine::QueueLimits;
use allotrope_server::{MAX_TIME, Server, ServerConfig, ServerError};
use serde_json::json;

use crate::support::client::{Reply, Request, connect, read_all, read_until};
use crate::support::engine::{self, Step, hangs_after_one, script, tokens};
use crate::support::{DEADLINE, TestServer, config, until};

fn stream() -> Request {
    Request::post("/v1/completions", &json!({"prompt": "The", "max_tokens": 9, "stream": true}).to_string())
}

fn gated() -> engine::Script {
    let city = tokens(" city")[0];
    script(vec![Step::Token(city), Step::Gate, engine::says(" city")[0].clone()])
}

#[test]
fn before_the_model_is_there_probes_are_answered_and_requests_are_not() {
    let (server, llm) = TestServer::without_model(config(), engine::words(), QueueLimits::UNLIMITED);
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/version").status, 200);
    assert_eq!(server.get("/metrics").status, 200);
    let bodies = json!({"prompt": "a"});
    let replies = [
        server.get("/ready"),
        server.get("/v1/models"),
        server.post("/v1/completions", &bodies),
        server.post("/v1/chat/completions", &bodies),
        server.post("/tokenize", &bodies),
        server.post("/detokenize", &bodies),
    ];
    for reply in replies {
        assert!(reply.error(503).contains("still being loaded"));
        assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
    }
    server.handle.set_model(llm).unwrap();
    assert_eq!(server.get("/ready").status, 200);
    assert_eq!(server.post("/v1/completions", &bodies).status, 200);
}

#[test]
fn a_model_that_can_not_be_loaded_ends_the_server_with_its_message() {
    let (server, _llm) = TestServer::without_model(config(), engine::words(), QueueLimits::UNLIMITED);
    server.handle.fail("config.json: `vocab_size` is 0");
    match server.join() {
        Err(ServerError::Model(message)) => assert_eq!(message, "config.json: `vocab_size` is 0"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_server_can_end_before_its_model_is_there() {
    let (server, _llm) = TestServer::without_model(config(), engine::words(), QueueLimits::UNLIMITED);
    assert_eq!(server.get("/health").status, 200);
    server.handle.shutdown();
    assert!(server.handle.is_shutting_down());
    server.join().unwrap();
}

#[test]
fn the_first_call_lets_streams_finish_and_takes_nothing_new() {
    let server = TestServer::with(ServerConfig { shutdown_timeout: DEADLINE, ..config() }, gated());
    let mut client = stream().open(server.address);
    read_until(&mut client, "city");
    let mut idle = connect(server.address);
    server.handle.shutdown();
    until("it is not ready", || server.get("/ready").status == 503);
    let refused = stream().send(server.address);
    assert!(refused.error(503).contains("shutting down"));
    assert_eq!(refused.header("connection"), Some("close"));
    assert_eq!(server.get("/health").status, 200);
    server.engine.pass(1);
    let rest = read_all(&mut client);
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]"), "{rest}");
    assert_eq!(read_all(&mut idle), "", "a connection without a request is closed");
    let address = server.address;
    server.join().unwrap();
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn whole_answers_that_slow_clients_read_are_finished_too() {
    let server = TestServer::with(ServerConfig { shutdown_timeout: DEADLINE, ..config() }, engine::words());
    // Far more than the buffers of a socket hold.
    let body =
        json!({"prompt": "a", "n": 16, "temperature": 1, "max_tokens": 1000, "logprobs": 20, "ignore_eos": true});
    let mut client = Request::post("/v1/completions", &body.to_string()).open(server.address);
    until("it is generated", || server.engine.requests().len() == 16 && server.status.running() == 0);
    let mut byte = [0; 1];
    client.read_exact(&mut byte).unwrap();
    server.handle.shutdown();
    until("it drains", || server.get("/ready").status == 503);
    // Longer than answers have that are cut off.
    std::thread::sleep(Duration::from_millis(1500));
    let text = format!("{}{}", char::from(byte[0]), read_all(&mut client));
    let choices = Reply::parse(&text).unwrap().json()["choices"].as_array().unwrap().len();
    assert_eq!(choices, 16);
    server.join().unwrap();
}

#[test]
fn without_time_open_streams_are_told_and_end() {
    let server = TestServer::with(config(), hangs_after_one());
    let mut client = stream().open(server.address);
    read_until(&mut client, "city");
    server.handle.shutdown();
    let rest = read_all(&mut client);
    assert!(rest.contains("shutting down") && rest.contains("[DONE]"), "{rest}");
    server.join().unwrap();
}

#[test]
fn a_second_call_ends_everything_now() {
    let started = Instant::now();
    let server = TestServer::with(ServerConfig { shutdown_timeout: 10 * DEADLINE, ..config() }, hangs_after_one());
    let mut client = stream().open(server.address);
    read_until(&mut client, "city");
    server.handle.shutdown();
    until("it drains", || server.get("/ready").status == 503);
    server.handle.shutdown();
    server.join().unwrap();
    read_all(&mut client);
    assert!(started.elapsed() < DEADLINE);
}

#[test]
fn a_stream_that_does_not_end_in_time_is_aborted() {
    let config = ServerConfig { shutdown_timeout: Duration::from_millis(300), ..config() };
    let server = TestServer::with(config, hangs_after_one());
    let mut client = stream().open(server.address);
    read_until(&mut client, "city");
    server.handle.shutdown();
    assert!(read_all(&mut client).contains("[DONE]"));
    server.join().unwrap();
}

#[test]
fn a_unix_socket_serves_and_goes_with_its_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server.socket");
    let server = Server::bind(ServerConfig { uds: Some(path.clone()), ..config() }).unwrap();
    assert_eq!(server.address(), format!("unix:{}", path.display()));
    let handle = server.handle();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(server.run())
    });
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(&Request::get("/health").bytes(true)).unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    handle.shutdown();
    thread.join().unwrap().unwrap();
    assert!(!path.exists());
}

#[test]
fn settings_that_can_not_be_are_told_before_anything_is_opened() {
    let mut endless = config();
    endless.limits.request_time = Some(Duration::MAX);
    let wrong: [(&str, ServerConfig); 8] = [
        ("request_time", endless),
        ("sse_keep_alive_interval", ServerConfig { sse_keep_alive_interval: Some(Duration::MAX), ..config() }),
        ("api_keys", ServerConfig { api_keys: vec![String::new()], ..config() }),
        ("metrics_prefix", ServerConfig { metrics_prefix: "9 lives".to_owned(), ..config() }),
        ("root_path", ServerConfig { root_path: "llm/".to_owned(), ..config() }),
        ("stream_interval", ServerConfig { stream_interval: 0, ..config() }),
        ("allowed_origins", ServerConfig { allowed_origins: vec!["\n".to_owned()], ..config() }),
        ("served_model_names", ServerConfig { served_model_names: vec!["\u{1b}".to_owned()], ..config() }),
    ];
    for (field, config) in wrong {
        let message = Server::bind(config).unwrap_err().to_string();
        assert!(message.contains(field), "{field}: {message}");
    }
}

#[test]
fn the_longest_times_that_can_be_set_are_times_to_serve_with() {
    let mut config = ServerConfig { sse_keep_alive_interval: Some(MAX_TIME), step_watchdog: MAX_TIME, ..config() };
    config.shutdown_timeout = MAX_TIME;
    let limits = &mut config.limits;
    (limits.header_timeout, limits.body_timeout, limits.write_timeout) = (MAX_TIME, MAX_TIME, MAX_TIME);
    (limits.keep_alive, limits.preparation_time, limits.request_time) = (MAX_TIME, MAX_TIME, Some(MAX_TIME));
    let server = TestServer::with(config, engine::words());
    assert_eq!(stream().send(server.address).events().len(), 9);
    // Where the connection goes on, too.
    let mut client = connect(server.address);
    for _ in 0..2 {
        client.write_all(&stream().bytes(false)).unwrap();
        read_until(&mut client, "[DONE]");
    }
    drop(client);
    server.handle.shutdown();
    server.join().unwrap();
}

#[test]
fn signals_ask_for_an_end_as_calls_do() {
    let server = TestServer::with(ServerConfig { shutdown_timeout: 10 * DEADLINE, ..config() }, hangs_after_one());
    let mut client = stream().open(server.address);
    read_until(&mut client, "city");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _listening = runtime.block_on(async { allotrope_server::signals(server.handle.clone()) }).unwrap();
    let send = |signal: &str| {
        let process = std::process::id().to_string();
        assert!(std::process::Command::new("kill").args([signal, &process]).status().unwrap().success());
    };
    send("-TERM");
    until("the first lets streams finish", || server.get("/ready").status == 503);
    send("-INT");
    server.join().unwrap();
}
